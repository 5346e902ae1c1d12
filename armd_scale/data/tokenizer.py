"""Tokenizers behind one small protocol: sentencepiece models and Hugging Face `tokenizers` files.

`transformers` is not used: `tokenizer.json` contains everything that encoding needs, and without
that import a preprocessing worker starts in a tenth of a second.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from armd_scale.errors import TokenizerError
from armd_scale.files import path_inside, read_regular_file

IntArray: TypeAlias = NDArray[np.int32]
SpecialTokens: TypeAlias = Literal["text", "ids"]
"""What a special token that is written out in a text becomes: ordinary tokens, or its id."""

TRAIN_PREFIX = "train:sentencepiece:"
SENTENCEPIECE_FILE = "tokenizer.model"
HF_FILE = "tokenizer.json"
# Files beside tokenizer.json, both optional, that name the special tokens.
_HF_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES = (HF_FILE, SENTENCEPIECE_FILE, *_HF_CONFIG_FILES)
"""All files that the folder of a tokenizer may need."""
# Tried in this order for a folder that names no special tokens.
_COMMON_EOS_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_COMMON_BOS_TOKENS = ("<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "[CLS]")
# Sentencepiece replaces spaces by this character ("metaspace") and decodes it as a space again. So
# where a text contains the character itself, it would come back as a space.
_METASPACE = "\u2581"


@runtime_checkable
class Tokenizer(Protocol):
    """Converts text to token ids and back; all ids are below `vocab_size`."""

    kind: str
    """`sentencepiece` or `hf`."""
    vocab_size: int
    eod: int | None
    """Id of the end-of-sequence token, which ends documents."""
    bos: int | None
    """Id of the beginning-of-sequence token."""
    fingerprint: str
    """SHA-256 of the file that defines the tokenizer."""
    prefix_ids: tuple[int, ...] | None
    """Special tokens that its files put in front of every text; None if they do not say."""
    special_spellings: tuple[str, ...]
    """How special tokens are written out."""

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Encode texts, each into an int32 array, without adding special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids; special tokens are left out."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer(folder)` needs; the fingerprint stays the same."""
        ...


@final
class SentencePieceTokenizer:
    """A sentencepiece model file.

    Args:
        model: content of the model file.
        source: where it came from, for messages.

    Raises:
        TokenizerError: the content is not a sentencepiece model.
    """

    kind: str = "sentencepiece"
    prefix_ids: tuple[int, ...] | None = None

    def __init__(self, model: bytes, *, source: str) -> None:
        import sentencepiece

        try:
            if not model:  # which the library takes for a model that is to be given later
                raise ValueError("empty")
            # Typed as Any: the library's stubs do not know the return type of `encode` for a list.
            self._processor: Any = sentencepiece.SentencePieceProcessor(
                model_proto=model,
                num_threads=1,  # by default encode uses every core, also in each of N workers
            )
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
        self.special_spellings: tuple[str, ...] = tuple(
            self._processor.id_to_piece(i)
            for i in range(min(self.vocab_size, 1000))  # the trainer puts them in front
            if self._processor.is_control(i)
        )
        self._metaspace_ids = self._find_metaspace_ids()

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Encode texts, each into an int32 array, without adding special tokens."""
        arrays = self._encode(list(texts))
        if self._metaspace_ids is not None:
            for i, text in enumerate(texts):
                if _METASPACE in text:
                    arrays[i] = self._encode_with_literal_metaspace(text, self._metaspace_ids)
        return arrays

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids; control tokens such as BOS and EOS are left out."""
        return self._processor.decode([int(i) for i in ids])

    def save(self, folder: Path) -> None:
        """Write the model as `tokenizer.model`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SENTENCEPIECE_FILE).write_bytes(self._model)

    def _encode(self, texts: list[str]) -> list[IntArray]:
        return [np.asarray(ids, np.int32) for ids in self._processor.encode(texts)]

    def _encode_with_literal_metaspace(self, text: str, metaspace_ids: IntArray) -> IntArray:
        """Encode the parts between the metaspace characters, and join them with `metaspace_ids`."""
        first, *others = self._encode(text.split(_METASPACE))
        return np.concatenate([first, *(part for ids in others for part in (metaspace_ids, ids))])

    def _find_metaspace_ids(self) -> IntArray | None:
        """Return the byte tokens that spell the metaspace character.

        None if the model has no byte tokens, or if texts encoded that way would not be decoded to
        the same text. Such a model loses the character as it always does.
        """
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _METASPACE.encode()]
        if not all(self._processor.is_byte(i) for i in ids):
            return None
        metaspace_ids = np.asarray(ids, np.int32)
        # A model that adds a space in front of every text adds one after each metaspace character
        # too, because the parts are encoded as separate texts.
        probe = f"a{_METASPACE}b"
        encoded = self._encode_with_literal_metaspace(probe, metaspace_ids)
        return metaspace_ids if self.decode(encoded.tolist()) == probe else None


@final
class HFTokenizer:
    """The `tokenizer.json` of a Hugging Face folder, used through the `tokenizers` library.

    Args:
        folder: contains `tokenizer.json`, and files that name the special tokens.
        special_tokens: what a special token that is written out in a text becomes.

    Raises:
        TokenizerError: `tokenizer.json` is not a tokenizer.
    """

    kind: str = "hf"

    def __init__(self, folder: Path, special_tokens: SpecialTokens = "ids") -> None:
        import tokenizers

        definition = read_regular_file(folder / HF_FILE)
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(definition)
        except Exception as error:  # the library raises ValueError, and also Exception itself
            raise TokenizerError(
                f"{folder / HF_FILE} cannot be read as a tokenizer ({error}): save the folder "
                "again with save_pretrained"
            ) from error
        # A file may have been saved with either switched on, which would change the documents.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Random merges, for training on varied tokens: here a text must always give the same ones.
        if getattr(self._tokenizer.model, "dropout", None) is not None:
            self._tokenizer.model.dropout = None
        self._tokenizer.encode_special_tokens = special_tokens == "text"
        added: Iterable[Any] = self._tokenizer.get_added_tokens_decoder().values()
        self.special_spellings = tuple(token.content for token in added if token.special)
        self._folder = folder
        # The highest id, not the number of tokens: ids may have gaps, and must be below vocab_size.
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self.eod: int | None = self._find_special_id("eos_token", _COMMON_EOS_TOKENS)
        self.bos: int | None = self._find_special_id("bos_token", _COMMON_BOS_TOKENS)
        self.fingerprint = hashlib.sha256(definition).hexdigest()
        self.prefix_ids: tuple[int, ...] | None = self._find_prefix_ids()

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Encode texts, each into an int32 array, without adding special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids; special tokens are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Copy `tokenizer.json` and the files that name its special tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (HF_FILE, *_HF_CONFIG_FILES):
            if (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, folder / name)

    def _find_prefix_ids(self) -> tuple[int, ...]:
        """Return the tokens that the post-processor of `tokenizer.json` puts in front of a text.

        The post-processor is not a list of tokens that one could read. So a text is encoded without
        and with it, and the prefix is what stands before the plain ids in the second result.
        """
        plain, processed = (
            self._tokenizer.encode("a", add_special_tokens=add_special_tokens).ids
            for add_special_tokens in (False, True)
        )
        starts = (n for n in range(len(processed)) if processed[n : n + len(plain)] == plain)
        return tuple(processed[: next(starts, 0)]) if plain else ()

    def _find_special_id(self, name: str, common_tokens: Sequence[str]) -> int | None:
        """Return the id of a special token.

        Args:
            name: key in the configuration files, such as `eos_token`.
            common_tokens: tried in order if the files name none that exists.
        """
        named = [_special_token(self._folder / file, name) for file in _HF_CONFIG_FILES]
        ids = (self._tokenizer.token_to_id(token) for token in (*named, *common_tokens) if token)
        return next((i for i in ids if i is not None), None)


def load_tokenizer(spec: str | Path, *, special_tokens: SpecialTokens = "ids") -> Tokenizer:
    """Load a sentencepiece model, a `tokenizer.json`, or a folder that contains one of them.

    Args:
        spec: the file or folder.
        special_tokens: see `HFTokenizer`; sentencepiece never makes control tokens of text.

    Raises:
        TokenizerError: the file does not exist or cannot be read.
    """
    path = Path(spec)
    try:
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
            if (path / HF_FILE).exists():
                return HFTokenizer(path, special_tokens)
            path = path / SENTENCEPIECE_FILE
        elif path.name == HF_FILE:
            return HFTokenizer(path.parent, special_tokens)
        return SentencePieceTokenizer(read_regular_file(path), source=str(path))
    except OSError as error:
        raise TokenizerError(
            f"tokenizer {spec} cannot be read ({error.strerror}): give a sentencepiece model file, "
            f"a folder with {HF_FILE} or {SENTENCEPIECE_FILE}, or {TRAIN_PREFIX}VOCAB"
        ) from error


def read_tokenizer_files(folder: Path, *, fingerprint: str) -> dict[str, bytes]:
    """Read the files of a tokenizer, to write them into checkpoints later.

    Nothing else of the folder is read, and no link out of it is followed.

    Args:
        folder: folder of the tokenizer of some shards.
        fingerprint: SHA-256 of the file that defines the tokenizer.

    Returns:
        Contents by file name; the definition is among them.

    Raises:
        TokenizerError: a file cannot be read, or the tokenizer is another one.
    """
    contents: dict[str, bytes] = {}
    try:
        for name in TOKENIZER_FILES:
            if (path := path_inside(folder, name)).is_file():
                contents[name] = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TokenizerError(
            f"the tokenizer in {folder} cannot be read ({reason}): fix the folder, or preprocess "
            "the corpus again"
        ) from error
    definition = contents.get(HF_FILE, contents.get(SENTENCEPIECE_FILE))
    if definition is None or hashlib.sha256(definition).hexdigest() != fingerprint:
        raise TokenizerError(
            f"{folder} must hold the tokenizer that the shards were made with, and does not: copy "
            "it there again"
        )
    return contents


def parse_train_spec(spec: str) -> int | None:
    """Return VOCAB of `train:sentencepiece:VOCAB`; None for any other spec.

    Raises:
        TokenizerError: VOCAB is not a positive number, or another kind of tokenizer is named.
    """
    if not spec.startswith("train:"):
        return None
    size = spec.removeprefix(TRAIN_PREFIX)
    if not size.isdecimal() or int(size) == 0:
        raise TokenizerError(
            f"a tokenizer to train must be written {TRAIN_PREFIX}VOCAB, such as {TRAIN_PREFIX}8000 "
            f"(got {spec})"
        )
    return int(size)


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    r"""Train a byte-pair vocabulary that decodes to every character of the text.

    Nothing is normalized. Spaces and newlines are kept and may be part of a token (`:\n`, four
    spaces), and characters that are not in the vocabulary are encoded as bytes. UNK is 0, BOS 1 and
    EOS 2. The same texts give the same model.

    Args:
        texts: a sample of the corpus. Training needs several times its size in memory.
        vocab_size: number of tokens, with the three special and the 256 byte tokens.

    Raises:
        TokenizerError: the sample is empty or too small for the vocabulary.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        trainer: Any = sentencepiece.SentencePieceTrainer
        trainer.train(
            sentence_iterator=_training_chunks(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            # These four keep the text as it is: by default sentencepiece applies NFKC, merges
            # spaces, and puts one in front of every text.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            character_coverage=0.9999,
            max_sentencepiece_length=32,
            num_threads=1,  # the result of training depends on the number of threads
            minloglevel=2,
            unk_id=0,
            bos_id=1,
            eos_id=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            f"no vocabulary of {vocab_size} tokens can be trained on this corpus: "
            f"{_training_advice(str(error))}"
        ) from error
    return SentencePieceTokenizer(model.getvalue(), source="the trained model")


def _training_chunks(texts: Iterable[str], num_characters: int = 1000) -> Iterator[str]:
    """Yield the texts in pieces that the trainer accepts.

    It drops sentences over 4192 bytes; a character has at most 4. A tab separates its sentences and
    cannot be part of one, so texts are divided there; encoding spells a tab as a byte.
    """
    for text in texts:
        for start in range(0, len(text), num_characters):
            yield from filter(None, text[start : start + num_characters].split("\t"))


def _special_token(path: Path, name: str) -> str | None:
    """Return the token that a configuration file names: a string, or `{"content": string}`."""
    try:
        token: Any = json.loads(read_regular_file(path)).get(name)
        token = token if token is None or isinstance(token, str) else token["content"]
        return token if isinstance(token, str) else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None  # no such file, or one of another form: the common names are tried


def _training_advice(message: str) -> str:
    """Return what the user can do about an error of the trainer, from the limit that it states."""
    if upper := re.search(r"value <= (\d+)", message):
        return f"it yields at most {upper[1]}, so choose a smaller vocabulary or add text"
    if lower := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"its characters and bytes alone need {lower[1]}, so choose a larger vocabulary"
    if "sentences_.empty()" in message:
        return "it contains no text that can be read, so check the input and --text-key"
    return f"add text (sentencepiece says: {' '.join(message.split())})"


def _id_or_none(token: int) -> int | None:
    return token if token >= 0 else None  # sentencepiece returns -1 for a token it does not have
