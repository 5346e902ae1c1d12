"""Turn benchmark texts from the pre-tokenized form in which they are distributed to ordinary text.

The rules are those of the published zero-shot perplexities of masked diffusion models: SEDD, MDLM
and their successors, which took WikiText and Penn Treebank from Megatron-LM. The order of the rules
and their mistakes are part of the definition: a different text gives a different perplexity.
"""

import re
from collections.abc import Callable

from armd_scale.errors import ArmdError

_Rules = tuple[tuple[str, str], ...]

# Pairs of a regular expression and its replacement, applied in this order. WikiText and LM1B also
# remove the spaces inside brackets and quotes. Some rules are wrong for some texts, for example
# "s '" also joins the opening quote after a word that ends in "s". Do not fix them: see above.
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
    """WikiText: `@-@` in numbers, spaces around punctuation, headings such as `= = Early life`."""
    return _apply(_WIKITEXT, text)


def ptb(text: str) -> str:
    """Penn Treebank in Mikolov's version: split contractions, numbers as N, rare words as <unk>."""
    return _apply(_PTB, text)


def lm1b(text: str) -> str:
    """One Billion Words, one sentence per line."""
    # By line, because the rules for the end of a sentence use $, which matches at the end of the
    # whole string only.
    return "\n".join(_apply(_LM1B, line) for line in text.split("\n"))


def lambada(text: str) -> str:
    """One LAMBADA passage: straight quotes instead of curly ones, and a line break in front."""
    return "\n" + text.replace("“", '"').replace("”", '"').strip()


def unchanged(text: str) -> str:
    """Return ordinary text as it is."""
    return text


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": unchanged,
    "wikitext": wikitext,
    "ptb": ptb,
    "lambada": lambada,
    "lm1b": lm1b,
}


def get_detokenizer(name: str) -> Callable[[str], str]:
    """Return the detokenizer with a name in DETOKENIZERS.

    Raises:
        ArmdError: the name is unknown.
    """
    if name not in DETOKENIZERS:
        raise ArmdError(
            f"--detokenizer must be one of {', '.join(DETOKENIZERS)} (got '{name}'): choose the "
            "one of the benchmark that the text comes from"
        )
    return DETOKENIZERS[name]


def _apply(rules: _Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
