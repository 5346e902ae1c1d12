"""Try whether a tokenizer keeps the text of a sample, and count special tokens in a text."""

import re
from collections import Counter
from collections.abc import Callable

from armd_scale.data.manifest import RoundTrip
from armd_scale.data.preprocess.documents import Document
from armd_scale.data.tokenizer import IntArray, SpecialTokens, Tokenizer

# Decoding costs little for texts of this size, and what a tokenizer loses shows in any of them.
_MAX_CHARACTERS = 1000
_NUM_FIRST_DOCUMENTS = 8
_CONTEXT_CHARACTERS = 20


def make_special_token_counter(tokenizer: Tokenizer) -> Callable[[str], Counter[str]]:
    """Return a function that counts the special tokens which are written out in a text."""
    spellings = sorted(filter(None, tokenizer.special_spellings), key=len, reverse=True)
    if not spellings:
        return lambda text: Counter()
    # One expression, the longest first: a text is searched once for hundreds of tokens.
    find_all = re.compile("|".join(map(re.escape, spellings))).findall
    return lambda text: Counter(find_all(text))


def is_sampled(index: int) -> bool:
    """Return whether the document at an index of its work unit is in the sample.

    These are the first ones, and then those at the powers of two.
    """
    return index < _NUM_FIRST_DOCUMENTS or index & (index - 1) == 0


def try_round_trip(
    tokenizer: Tokenizer, document: Document, ids: IntArray, special_tokens: SpecialTokens
) -> RoundTrip:
    """Decode a document, or the start of it if it is long, and compare it with its text.

    Args:
        tokenizer: the tokenizer.
        document: the document.
        ids: its token ids.
        special_tokens: how they were made. Ids of special tokens are not decoded to text.
    """
    text = document.text
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS]
        (ids,) = tokenizer.encode_batch([text])
    if special_tokens == "ids" and any(token in text for token in tokenizer.special_spellings):
        return RoundTrip()
    decoded = tokenizer.decode(ids.tolist())
    if decoded == text:
        return RoundTrip(1)
    return RoundTrip(1, 1, _describe_difference(text, decoded))


def _describe_difference(text: str, decoded: str) -> str:
    """Return what is around the first difference, as `'a  b' comes back as 'a b'`."""
    pairs = zip(text, decoded, strict=False)
    shorter = min(len(text), len(decoded))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    part = slice(max(0, first - _CONTEXT_CHARACTERS), first + _CONTEXT_CHARACTERS)
    return f"{text[part]!r} comes back as {decoded[part]!r}"
