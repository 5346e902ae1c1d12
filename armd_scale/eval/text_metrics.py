"""Diversity of sampled texts, and ROUGE overlap with a reference.

Texts are sequences of tokens or words. Generative perplexity alone rewards repetition, so diversity
must be reported beside it.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from armd_scale.generation import entropy_bits

SMOOTHING = 0.1
"""BLEU's count for n-grams of two or more words without any match, as usual for single sentences
(Chen & Cherry, 2014, method 1). A text that shares no single word with the others scores 0."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Diversity of a set of texts."""

    entropy_bits: float
    """Entropy of a text's token frequencies in bits per token, averaged over texts."""
    distinct_1: float
    distinct_2: float
    distinct_3: float
    """Number of different n-grams divided by the number of all n-grams, over all texts together."""
    self_bleu: float | None
    """Mean BLEU-4 of each text against all others, 0 to 1; None for a single text."""


@dataclass(frozen=True, kw_only=True)
class Rouge:
    """ROUGE F1 of a text against a reference, 0 to 1 (Lin, 2004)."""

    rouge_1: float
    rouge_2: float
    """Of common unigrams and bigrams."""
    rouge_l: float
    """Of the longest common subsequence."""


def diversity(texts: Sequence[Sequence[int]]) -> Diversity:
    """Compute all diversity metrics of some texts of token ids, none of which may be empty."""
    entropies = [entropy_bits(np.asarray(text, dtype=np.int64)) for text in texts]
    return Diversity(
        entropy_bits=sum(entropies) / len(entropies),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        distinct_3=distinct(texts, 3),
        self_bleu=self_bleu(texts) if len(texts) > 1 else None,
    )


def distinct(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Compute distinct-n: different n-grams of all texts over all their n-grams (Li et al., 2016).

    0 if no text has n words.
    """
    counts = Counter(gram for text in texts for gram in _ngrams(text, n))
    return len(counts) / max(counts.total(), 1)


def self_bleu(texts: Sequence[Sequence[Hashable]], *, max_n: int = 4) -> float:
    """Compute the mean BLEU of each text against all others (Zhu et al., 2018); 1 if all are equal.

    Args:
        texts: at least two.
        max_n: longest n-grams; all lengths have equal weight.
    """
    assert len(texts) > 1
    log_precision = np.zeros(len(texts))
    shares_a_word = np.ones(len(texts), dtype=np.bool_)
    # Clipping needs, for each n-gram of a text, its highest count in any other text. The two
    # highest counts over all texts answer that for every text, so the cost is linear in the number
    # of texts; comparing all pairs would be quadratic.
    for n in range(1, max_n + 1):
        counts = [Counter(_ngrams(text, n)) for text in texts]
        top_two = _top_two_counts(counts)
        for index, own in enumerate(counts):
            matches = sum(
                min(count, next(c for c, owner in top_two[gram] if owner != index))
                for gram, count in own.items()
            )
            if n == 1:
                shares_a_word[index] = matches > 0
            log_precision[index] += math.log((matches or SMOOTHING) / max(own.total(), 1)) / max_n
    lengths = [len(text) for text in texts]
    scores = [
        shares_a_word[i]
        * math.exp(log)
        * _brevity_penalty(lengths[i], lengths[:i] + lengths[i + 1 :])
        for i, log in enumerate(log_precision)
    ]
    return sum(scores) / len(scores)


def rouge(text: Sequence[Hashable], reference: Sequence[Hashable]) -> Rouge:
    """Compute ROUGE-1, -2 and -L of a text against a reference, both given as words."""
    common = _common_subsequence_length(text, reference)
    return Rouge(
        rouge_1=_ngram_f1(text, reference, 1),
        rouge_2=_ngram_f1(text, reference, 2),
        rouge_l=_f1(common, len(text), len(reference)),
    )


def words(text: str) -> list[str]:
    """Split a text into the words that ROUGE counts: lower-case runs of a-z and digits, unstemmed.

    Letters outside a-z separate words, as in Google's rouge_score.
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def _ngrams(text: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    return zip(*(text[i:] for i in range(n)), strict=False)


def _top_two_counts(counts: Sequence[Counter]) -> dict[Hashable, list[tuple[int, int]]]:
    """For each n-gram, its two highest counts in any text, each with the index of that text."""
    top_two: dict[Hashable, list[tuple[int, int]]] = {}
    for owner, own in enumerate(counts):
        for gram, count in own.items():
            # Indices -1 and -2 stand for texts without the n-gram: every text then finds an entry
            # that is not its own.
            entries = [*top_two.get(gram, [(0, -1), (0, -2)]), (count, owner)]
            top_two[gram] = sorted(entries, reverse=True)[:2]
    return top_two


def _brevity_penalty(length: int, other_lengths: Sequence[int]) -> float:
    """BLEU's penalty for a text that is shorter than the reference closest to it in length."""
    closest = min(other_lengths, key=lambda other: (abs(other - length), other))
    return 1.0 if length > closest else math.exp(1 - closest / max(length, 1))


def _ngram_f1(text: Sequence[Hashable], reference: Sequence[Hashable], n: int) -> float:
    a, b = Counter(_ngrams(text, n)), Counter(_ngrams(reference, n))
    return _f1((a & b).total(), a.total(), b.total())


def _f1(common: int, a: int, b: int) -> float:
    """Harmonic mean of precision common / a and recall common / b."""
    return 2 * common / (a + b) if common else 0.0


def _common_subsequence_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    # The usual dynamic program with one row: lengths[j] is the result for the part of `a` read so
    # far and b[:j]; `diagonal` keeps the value of lengths[j - 1] from before this item of `a`.
    lengths = [0] * (len(b) + 1)
    for item in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if item == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]
