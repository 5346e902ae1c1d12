"""From the tokenised form in which benchmark texts are handed out back to ordinary text.

The rules are those that published zero-shot perplexities of masked diffusion models rest on (SEDD,
MDLM and their successors, which took WikiText and Penn Treebank from Megatron-LM). Their order is
part of the convention, and so are their mistakes: a different text is a different figure.
"""

import re
from collections.abc import Callable

from armd_scale.errors import ArmdError

_Rules = tuple[tuple[str, str], ...]

# Regular expressions. In all of them a quoted or bracketed passage loses its inner blanks.
_WIKITEXT: _Rules = (
    (r"s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (r" @\.@ ", "."),
    *((f" \\{mark} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
_PTB: _Rules = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    (r"\\/", "/"),
    (" N(?= )", " 1"),
    (r"\$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)
_LM1B: _Rules = (
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    (r" \? ", "? "),
    (r" \?$", "?"),
    (" ! ", "! "),
    (" !$", "!"),
    *((f" {mark} ", f"{mark} ") for mark in ",:;"),
    (" / ", "/"),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"\$ ", "$"),
    ("£ ", "£"),
)


def wikitext(text: str) -> str:
    """WikiText: `@-@` in numbers, blanks around punctuation, headings such as `= = Early life`."""
    return _apply(_WIKITEXT, text)


def ptb(text: str) -> str:
    """Penn Treebank as Mikolov cut it: split contractions, numbers as N, rare words as <unk>."""
    return _apply(_PTB, text)


def lm1b(text: str) -> str:
    """One Billion Words, a sentence a line."""
    return "\n".join(_apply(_LM1B, line) for line in text.split("\n"))


def lambada(text: str) -> str:
    """LAMBADA, a passage: curly quotes made straight, on a line of its own."""
    return "\n" + text.replace("“", '"').replace("”", '"').strip()


def unchanged(text: str) -> str:
    """Ordinary text."""
    return text


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": unchanged,
    "wikitext": wikitext,
    "ptb": ptb,
    "lambada": lambada,
    "lm1b": lm1b,
}


def detokenizer(name: str) -> Callable[[str], str]:
    """A convention by its name.

    Raises:
        ArmdError: there is none of that name.
    """
    if name not in DETOKENIZERS:
        raise ArmdError(
            f"--detokenise must be one of {', '.join(DETOKENIZERS)}, got '{name}': choose the "
            "convention of the benchmark that the text is of"
        )
    return DETOKENIZERS[name]


def _apply(rules: _Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
