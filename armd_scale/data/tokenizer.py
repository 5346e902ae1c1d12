"""Tokenizers behind one small protocol: sentencepiece models and HF `tokenizers` files.

`transformers` is not needed: a folder's `tokenizer.json` holds everything that encoding takes, and
leaving the rest out lets a preprocessing worker start in a tenth of a second.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import numpy as np

from armd_scale.errors import TokenizerError

TRAIN_PREFIX = "train:sentencepiece:"
SENTENCEPIECE_FILE = "tokenizer.model"
HF_FILE = "tokenizer.json"
# Read, where present, for the names of the special tokens, and copied beside the shards.
_HF_SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_COMMON_EOS_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_COMMON_BOS_TOKENS = ("<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "[CLS]")
# Sentencepiece writes blanks as this character, so the character itself would come back as a blank.
_SPACE_MARK = "\u2581"


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back; ids are below `vocab_size`."""

    kind: str
    vocab_size: int
    eod: int | None
    bos: int | None
    fingerprint: str
    prefix_ids: tuple[int, ...] | None
    """Special tokens that its files put in front of every text; None where they do not say."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array a text, without any special token added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens are left out."""
        ...

    def save(self, folder: Path) -> None:
        """Copies what `load_tokenizer(folder)` needs into `folder`, with the same fingerprint."""
        ...


@final
class SentencePieceTokenizer:
    """A sentencepiece model file.

    Args:
        model: content of the model file.
        source: where it came from, for messages.
    """

    kind = "sentencepiece"
    prefix_ids: tuple[int, ...] | None = None

    def __init__(self, model: bytes, *, source: str) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model, num_threads=1)
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(
                f"{source} is not a sentencepiece model: give a model file, a folder with "
                f"{HF_FILE} or {SENTENCEPIECE_FILE}, or {TRAIN_PREFIX}VOCAB"
            ) from error
        self._model = model
        self.vocab_size: int = self._processor.get_piece_size()
        self.eod: int | None = _id_or_none(self._processor.eos_id())
        self.bos: int | None = _id_or_none(self._processor.bos_id())
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._metaspace_ids = self._ids_of_mark()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array a text, without any special token added."""
        arrays = self._encode(list(texts))
        if self._metaspace_ids is not None:
            for i, text in enumerate(texts):
                if _SPACE_MARK in text:
                    arrays[i] = self._encode_with_literal_metaspace(text, self._metaspace_ids)
        return arrays

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; control tokens such as BOS and EOS decode to nothing."""
        return self._processor.decode([int(i) for i in ids])

    def save(self, folder: Path) -> None:
        """Writes the model as `tokenizer.model`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SENTENCEPIECE_FILE).write_bytes(self._model)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.asarray(ids, np.int32) for ids in self._processor.encode(texts)]

    def _encode_with_literal_metaspace(self, text: str, mark_ids: np.ndarray) -> np.ndarray:
        first, *others = self._encode(text.split(_SPACE_MARK))
        return np.concatenate([first, *(part for ids in others for part in (mark_ids, ids))])

    def _ids_of_mark(self) -> np.ndarray | None:
        """The byte tokens of the blank mark, or None where the model cannot spell it so."""
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        if not all(self._processor.is_byte(i) for i in ids):
            return None
        mark_ids = np.asarray(ids, np.int32)
        probe = f"a{_SPACE_MARK}b"
        # A model that adds a blank in front of every text would add one after the mark as well.
        exact = self.decode(self._encode_with_literal_metaspace(probe, mark_ids).tolist()) == probe
        return mark_ids if exact else None


@final
class HFTokenizer:
    """The `tokenizer.json` of a Hugging Face folder, through the `tokenizers` library.

    As everywhere with that library, a special token spelled out in a text becomes its id.

    Args:
        folder: holds `tokenizer.json`, and `tokenizer_config.json` to name the special tokens.
    """

    kind = "hf"

    def __init__(self, folder: Path) -> None:
        import tokenizers

        definition = (folder / HF_FILE).read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(definition)
        except Exception as error:  # the library raises bare Exception and ValueError alike
            raise TokenizerError(
                f"{folder / HF_FILE} cannot be read as a tokenizer ({error}): save the folder "
                "again with save_pretrained"
            ) from error
        # Both may be left in the file by the one who saved it, and would change the documents.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._folder = folder
        # Not the count: ids may have holes, and an id must never reach vocab_size.
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self.eod: int | None = self._special("eos_token", _COMMON_EOS_TOKENS)
        self.bos: int | None = self._special("bos_token", _COMMON_BOS_TOKENS)
        self.fingerprint = hashlib.sha256(definition).hexdigest()
        self.prefix_ids: tuple[int, ...] | None = self._find_prefix_ids()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array a text, without any special token added."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Copies `tokenizer.json` and the files that name its special tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (HF_FILE, *_HF_SIDE_FILES):
            if (self._folder / name).exists():
                shutil.copyfile(self._folder / name, folder / name)

    def _find_prefix_ids(self) -> tuple[int, ...]:
        """What the post-processor of `tokenizer.json` puts in front of a text."""
        plain, whole = (
            self._tokenizer.encode("a", add_special_tokens=is_whole).ids
            for is_whole in (False, True)
        )
        starts = (n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
        return tuple(whole[: next(starts, 0)]) if plain else ()

    def _special(self, name: str, usual: Sequence[str]) -> int | None:
        """Id of the special token that the side files name, else of the first usual name known."""
        named = [_special_name(self._folder / file, name) for file in _HF_SIDE_FILES]
        ids = (self._tokenizer.token_to_id(token) for token in (*named, *usual) if token)
        return next((i for i in ids if i is not None), None)


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """The tokenizer of a sentencepiece file, a `tokenizer.json`, or a folder with one of them.

    Raises:
        TokenizerError: nothing there, or nothing that can be read.
    """
    path = Path(spec)
    if path.is_dir():
        if (path / HF_FILE).exists():
            return HFTokenizer(path)
        path = path / SENTENCEPIECE_FILE
    elif path.name == HF_FILE and path.exists():
        return HFTokenizer(path.parent)
    try:
        return SentencePieceTokenizer(path.read_bytes(), source=str(path))
    except OSError as error:
        raise TokenizerError(
            f"tokenizer {spec} cannot be read ({error.strerror}): give a sentencepiece model file, "
            f"a folder with {HF_FILE} or {SENTENCEPIECE_FILE}, or {TRAIN_PREFIX}VOCAB"
        ) from error


def parse_train_spec(spec: str) -> int | None:
    """Vocabulary size asked for by `train:sentencepiece:VOCAB`; None for any other spec.

    Raises:
        TokenizerError: VOCAB is not a positive number, or another kind of training is asked for.
    """
    if not spec.startswith("train:"):
        return None
    size = spec.removeprefix(TRAIN_PREFIX)
    if not size.isdecimal() or int(size) == 0:
        raise TokenizerError(
            f"a tokenizer to train is written {TRAIN_PREFIX}VOCAB, such as {TRAIN_PREFIX}8000, "
            f"but got {spec}"
        )
    return int(size)


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    r"""A byte-pair vocabulary whose decoding gives back every character of the text.

    Nothing is normalised, blanks and newlines are kept and may be part of a token (`:\n`, four
    blanks), and what the vocabulary lacks falls back to bytes. UNK is 0, BOS 1, EOS 2. The same
    texts give the same model.

    Args:
        texts: a sample that fits in memory some five times.
        vocab_size: tokens, the three special and 256 byte tokens included.

    Raises:
        TokenizerError: the sample is empty or cannot fill the vocabulary.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_chunks(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            character_coverage=0.9999,
            max_sentencepiece_length=32,
            num_threads=1,
            minloglevel=2,
            unk_id=0,
            bos_id=1,
            eos_id=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            f"no vocabulary of {vocab_size} tokens can be trained on this corpus: "
            f"{_trainer_advice(str(error))}"
        ) from error
    return SentencePieceTokenizer(model.getvalue(), source="the trained model")


def use_one_thread() -> None:
    """Keeps the `tokenizers` library to the calling thread, for workers that are one a core.

    The library takes this from the environment of the process only, read at each call.
    """
    os.putenv("TOKENIZERS_PARALLELISM", "false")


def _training_chunks(texts: Iterable[str], num_characters: int = 1000) -> Iterator[str]:
    """The texts in pieces below the trainer's limit of 4192 bytes, beyond which it drops them.

    A tab is the trainer's own boundary mark; encoding spells it as a byte.
    """
    for text in texts:
        for start in range(0, len(text), num_characters):
            yield from filter(None, text[start : start + num_characters].split("\t"))


def _special_name(path: Path, name: str) -> str | None:
    """The token that a side file names, written as a string or as `{"content": ...}`."""
    try:
        token = json.loads(path.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError, AttributeError):
        return None
    return token.get("content") if isinstance(token, dict) else token


def _trainer_advice(message: str) -> str:
    """What to do about the trainer's refusal, from the bound that its message holds."""
    if upper := re.search(r"value <= (\d+)", message):
        return f"it yields at most {upper[1]}, so ask for no more or give more text"
    if lower := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"its characters and bytes alone take {lower[1]}, so ask for more"
    if "sentences_.empty()" in message:
        return "it holds no text that can be read, so check the input and --text-key"
    return f"give more text (sentencepiece says: {' '.join(message.split())})"


def _id_or_none(token: int) -> int | None:
    return token if token >= 0 else None
