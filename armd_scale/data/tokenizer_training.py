"""Train a sentencepiece vocabulary on a sample of a corpus."""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from armd_scale.data.tokenizer import TRAIN_PREFIX, SentencePieceTokenizer
from armd_scale.errors import TokenizerError


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


def _training_advice(message: str) -> str:
    """Return what the user can do about an error of the trainer, from the limit that it states."""
    if upper := re.search(r"value <= (\d+)", message):
        return f"it yields at most {upper[1]}, so choose a smaller vocabulary or add text"
    if lower := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"its characters and bytes alone need {lower[1]}, so choose a larger vocabulary"
    if "sentences_.empty()" in message:
        return "it contains no text that can be read, so check the input and --text-key"
    return f"add text (sentencepiece says: {' '.join(message.split())})"
