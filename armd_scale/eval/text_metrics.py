"""How varied texts are, and how close a filled hole is to what stood there.

Texts are sequences of tokens or words. Generative perplexity alone rewards repetition; these are
the figures to read beside it.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from armd_scale.generation import entropy_bits

SMOOTHING = 0.1
"""What stands for no match at all of longer n-grams in BLEU, as usual for single sentences (Chen &
Cherry, 2014, method 1); one that shares no word with any other scores 0."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How varied some texts are."""

    entropy_bits: float
    """Mean over texts of the entropy of their own token frequencies, in bits per token."""
    distinct_1: float
    distinct_2: float
    distinct_3: float
    """Different n-grams of all texts together over all their n-grams."""
    self_bleu: float | None
    """Mean BLEU-4 of each text against all others, 0 to 1; None for a single text."""


@dataclass(frozen=True, kw_only=True)
class Rouge:
    """F1 of a text against a reference, 0 to 1 (Lin, 2004)."""

    rouge_1: float
    rouge_2: float
    """Of shared unigrams and bigrams."""
    rouge_l: float
    """Of their longest common subsequence."""


def diversity(texts: Sequence[Sequence[int]]) -> Diversity:
    """All figures of some texts of token ids; none of the texts may be empty."""
    entropies = [entropy_bits(np.asarray(text, dtype=np.int64)) for text in texts]
    return Diversity(
        entropy_bits=sum(entropies) / len(entropies),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        distinct_3=distinct(texts, 3),
        self_bleu=self_bleu(texts) if len(texts) > 1 else None,
    )


def distinct(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams of all texts over the number of their n-grams (Li et al., 2016)."""
    counts = Counter(gram for text in texts for gram in _ngrams(text, n))
    return len(counts) / max(counts.total(), 1)


def self_bleu(texts: Sequence[Sequence[Hashable]], *, max_n: int = 4) -> float:
    """Mean BLEU of each text against all others (Zhu et al., 2018): 1 where all are equal.

    Args:
        texts: two or more.
        max_n: longest n-grams; all lengths weigh the same.
    """
    assert len(texts) > 1
    logs = np.zeros(len(texts))
    shares_a_word = np.ones(len(texts), dtype=np.bool_)
    for n in range(1, max_n + 1):
        counts = [Counter(_ngrams(text, n)) for text in texts]
        highest = _top_two_counts(counts)
        for number, own in enumerate(counts):
            # A text's own count is no reference: the highest of the others is the second then.
            shared = sum(
                min(count, next(c for c, owner in highest[gram] if owner != number))
                for gram, count in own.items()
            )
            if n == 1:
                shares_a_word[number] = shared > 0
            logs[number] += math.log((shared or SMOOTHING) / max(own.total(), 1)) / max_n
    lengths = [len(text) for text in texts]
    scores = [
        shares_a_word[i]
        * math.exp(log)
        * _brevity_penalty(lengths[i], lengths[:i] + lengths[i + 1 :])
        for i, log in enumerate(logs)
    ]
    return sum(scores) / len(scores)


def rouge(text: Sequence[Hashable], reference: Sequence[Hashable]) -> Rouge:
    """How much of a reference a text holds, and how much of it is in the reference."""
    return Rouge(
        rouge_1=_shared_f1(text, reference, 1),
        rouge_2=_shared_f1(text, reference, 2),
        rouge_l=_f1(_common_subsequence(text, reference), len(text), len(reference)),
    )


def words(text: str) -> list[str]:
    """The words that ROUGE counts: runs of letters a-z and digits, in lower case, unstemmed."""
    return re.findall(r"[a-z0-9]+", text.lower())


def _ngrams(text: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    return zip(*(text[i:] for i in range(n)), strict=False)


def _top_two_counts(counts: Sequence[Counter]) -> dict[Hashable, list[tuple[int, int]]]:
    """For each n-gram its two highest counts in a text, with whose they are."""
    found: dict[Hashable, list[tuple[int, int]]] = {}
    for owner, own in enumerate(counts):
        for gram, count in own.items():
            entries = [*found.get(gram, [(0, -1), (0, -2)]), (count, owner)]
            found[gram] = sorted(entries, reverse=True)[:2]
    return found


def _brevity_penalty(length: int, others: Sequence[int]) -> float:
    """BLEU's penalty of a text shorter than the reference nearest to it in length."""
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length > nearest else math.exp(1 - nearest / max(length, 1))


def _shared_f1(text: Sequence[Hashable], reference: Sequence[Hashable], n: int) -> float:
    ours, theirs = Counter(_ngrams(text, n)), Counter(_ngrams(reference, n))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _f1(shared: int, ours: int, theirs: int) -> float:
    """Harmonic mean of shared / ours and shared / theirs."""
    return 2 * shared / (ours + theirs) if shared else 0.0


def _common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    lengths = [0] * (len(b) + 1)
    for item in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if item == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]
