"""Tokenizers behind one small protocol: sentencepiece models and Hugging Face `tokenizers` files.

`transformers` is not used: `tokenizer.json` contains everything that encoding needs, and without
that import a preprocessing worker starts in a tenth of a second.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from armd_scale.data.special_tokens import (
    CONFIG_FILES,
    named_tokens,
    read_prepend_bos,
    write_prepend_bos,
)
from armd_scale.errors import TokenizerError
from armd_scale.files import path_inside, read_regular_file

IntArray: TypeAlias = NDArray[np.int32]
SpecialTokens: TypeAlias = Literal["text", "ids"]
"""What a special token that is written out in a text becomes: ordinary tokens, or its id."""

TRAIN_PREFIX = "train:sentencepiece:"
SENTENCEPIECE_FILE = "tokenizer.model"
HF_FILE = "tokenizer.json"
TOKENIZER_FILES = (HF_FILE, SENTENCEPIECE_FILE, *CONFIG_FILES)
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
    eos_ids: tuple[int, ...]
    """Ids that end a generated text: EOS, unless the files of a model say otherwise."""
    is_used: NDArray[np.bool_]
    """Which ids below `vocab_size` are tokens; the others have no text."""
    bos: int | None
    """Id of the beginning-of-sequence token."""
    fingerprint: str
    """SHA-256 of the file that defines the tokenizer."""
    prefix_ids: tuple[int, ...]
    """Special tokens in front of every text, as transformers puts them there."""
    start_id: int | None
    """Token in front of a text whose first token needs a context, where `prefix_ids` is empty."""
    special_spellings: tuple[str, ...]
    """How special tokens are written out."""

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Encode texts, each into an int32 array, without adding special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids; special tokens are left out."""
        ...

    def spell(self, token_id: int) -> str:
        """Return how a token is written in the vocabulary, special ones too."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer(folder)` needs; the fingerprint stays the same."""
        ...


@final
class SentencePieceTokenizer:
    """A sentencepiece model file.

    Texts start with BOS unless `tokenizer_config.json` says otherwise: so do those of the families
    whose tokenizer is such a file (Llama 2, Gemma).

    Args:
        model: content of the model file.
        source: where it came from, for messages.
        folder: folder of a `tokenizer_config.json`; None: there is none.
        add_bos: whether texts start with BOS; None: as the folder says.

    Raises:
        TokenizerError: the content is not a sentencepiece model.
    """

    kind: str = "sentencepiece"

    def __init__(
        self, model: bytes, *, source: str, folder: Path | None = None, add_bos: bool | None = None
    ) -> None:
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
        self.eos_ids = () if self.eod is None else (self.eod,)
        self.is_used = ~np.array(
            [self._processor.is_unused(i) for i in range(self.vocab_size)], bool
        )
        if add_bos is None and folder is not None:
            add_bos = read_prepend_bos(folder, has_tokenizer_json=False)
        self._adds_bos = self.bos is not None and add_bos is not False
        self.prefix_ids: tuple[int, ...] = () if self.bos is None else (self.bos,) * self._adds_bos
        # Without BOS, a document in training comes after the end of another one.
        self.start_id: int | None = self.bos if self._adds_bos or self.eod is None else self.eod
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._folder = folder
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

    def spell(self, token_id: int) -> str:
        """Return how a token is written in the vocabulary, special ones too."""
        is_known = 0 <= token_id < self.vocab_size
        return self._processor.id_to_piece(token_id) if is_known else str(token_id)

    def save(self, folder: Path) -> None:
        """Write the model as `tokenizer.model`, and how texts start."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SENTENCEPIECE_FILE).write_bytes(self._model)
        _copy_config_files(self._folder, folder)
        ids = {"bos_token": self.bos, "eos_token": self.eod}
        tokens = {name: self._processor.id_to_piece(i) for name, i in ids.items() if i is not None}
        write_prepend_bos(folder, self._adds_bos, tokens=tokens)

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
        add_bos: whether texts start with BOS; None: as the folder says.
        special_tokens: what a special token that is written out in a text becomes.

    Raises:
        TokenizerError: `tokenizer.json` is not a tokenizer.
    """

    kind: str = "hf"

    def __init__(
        self,
        folder: Path,
        *,
        add_bos: bool | None = None,
        special_tokens: SpecialTokens = "ids",
    ) -> None:
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
        ids = list(self._tokenizer.get_vocab().values())
        self.vocab_size = max(ids, default=-1) + 1
        self.is_used = np.zeros(self.vocab_size, dtype=np.bool_)
        self.is_used[ids] = True
        self.eod: int | None = self._find_special_id("eos_token", _COMMON_EOS_TOKENS)
        self.eos_ids = () if self.eod is None else (self.eod,)
        self.bos: int | None = self._find_special_id("bos_token", _COMMON_BOS_TOKENS)
        self.fingerprint = hashlib.sha256(definition).hexdigest()
        self._add_bos = add_bos
        self.prefix_ids: tuple[int, ...] = self._find_prefix_ids()
        self.start_id: int | None = self.eod if self.bos is None else self.bos

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Encode texts, each into an int32 array, without adding special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids; special tokens are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def spell(self, token_id: int) -> str:
        """Return how a token is written in the vocabulary, special ones too."""
        return self._tokenizer.id_to_token(token_id) or str(token_id)

    def save(self, folder: Path) -> None:
        """Copy `tokenizer.json` and the files that name its special tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._folder / HF_FILE, folder / HF_FILE)
        _copy_config_files(self._folder, folder)
        if self._add_bos is not None:
            write_prepend_bos(folder, self._add_bos, tokens={})

    def _find_prefix_ids(self) -> tuple[int, ...]:
        """Return the tokens that the post-processor of `tokenizer.json` puts in front of a text.

        The post-processor is not a list of tokens that one could read. So a text is encoded without
        and with it, and the prefix is what stands before the plain ids in the second result.
        """
        add_bos = self._add_bos
        if add_bos is None:
            add_bos = read_prepend_bos(self._folder, has_tokenizer_json=True)
        if add_bos is not None:
            return (self.bos,) if add_bos and self.bos is not None else ()
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
        tokens = (*named_tokens(self._folder, name), *common_tokens)
        ids = (self._tokenizer.token_to_id(token) for token in tokens)
        return next((i for i in ids if i is not None), None)


def load_tokenizer(
    spec: str | Path, *, add_bos: bool | None = None, special_tokens: SpecialTokens = "ids"
) -> Tokenizer:
    """Load a sentencepiece model, a `tokenizer.json`, or a folder that contains one of them.

    Args:
        spec: path of the file or folder.
        add_bos: whether texts start with BOS; None: as the files say.
        special_tokens: see `HFTokenizer`; sentencepiece never makes control tokens of text.

    Raises:
        TokenizerError: the file does not exist or cannot be read, or `add_bos` is set and the
            vocabulary has no BOS.
    """
    path = Path(spec)
    try:
        if os.path.isdir(path) and not (path / HF_FILE).exists():  # noqa: PTH112 - see below
            path = path / SENTENCEPIECE_FILE
        # os.path.isdir above and here: Path.is_dir raises for a name that is too long.
        if os.path.isdir(path) or path.name == HF_FILE:  # noqa: PTH112
            folder = path.parent if path.name == HF_FILE else path
            tokenizer: Tokenizer = HFTokenizer(
                folder, add_bos=add_bos, special_tokens=special_tokens
            )
        else:
            model = read_regular_file(path)
            tokenizer = SentencePieceTokenizer(
                model, source=str(path), folder=path.parent, add_bos=add_bos
            )
    except OSError as error:
        raise TokenizerError(
            f"tokenizer {spec} cannot be read ({error.strerror}): give a sentencepiece model file, "
            f"a folder with {HF_FILE} or {SENTENCEPIECE_FILE}, or {TRAIN_PREFIX}VOCAB"
        ) from error
    if add_bos and tokenizer.bos is None:
        raise TokenizerError(
            f"tokenizer {spec} must have a BOS token to start texts with, and has none: name it as "
            "bos_token in its tokenizer_config.json, or start texts without it"
        )
    return tokenizer


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


def _copy_config_files(source: Path | None, folder: Path) -> None:
    """Copy the files that name special tokens, those that exist."""
    if source is None or source == folder:
        return
    for name in CONFIG_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _id_or_none(token: int) -> int | None:
    return token if token >= 0 else None  # sentencepiece returns -1 for a token it does not have
