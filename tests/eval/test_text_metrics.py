"""Diversity and overlap metrics against values computed by hand and by the usual libraries."""

import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from armd_scale.eval.text_metrics import distinct, diversity, rouge, self_bleu, words


def test_distinct_counts_ngrams_of_all_texts_together():
    texts = [list("abab"), list("ac")]
    assert distinct(texts, 1) == 3 / 6
    assert distinct(texts, 2) == 3 / 4  # ab ba ab | ac
    assert distinct([["a"]], 2) == 0


def test_self_bleu_by_hand():
    """Each text shares 2 of 3 words and 1 of 2 bigrams with the other; lengths are equal."""
    texts = [list("abc"), list("abd")]
    assert self_bleu(texts, max_n=2) == pytest.approx(math.sqrt(2 / 3 * 1 / 2))


def test_a_text_is_not_its_own_reference():
    assert self_bleu([[1, 1, 1, 1], [2, 2, 2, 2]]) == 0
    assert self_bleu([[1, 3, 3, 3], [1, 2, 2, 2]]) == pytest.approx((0.1**3 / 24) ** 0.25)
    assert self_bleu([[1, 2, 3, 4], [1, 2, 3, 4]]) == pytest.approx(1)


def test_counts_are_clipped_at_the_highest_count_in_another_text():
    """`a a a` scores two matches: no other text has more than two of them."""
    texts = [list("aaa"), list("aab"), list("acb")]
    precisions = [2 / 3, 3 / 3, 2 / 3]
    assert self_bleu(texts, max_n=1) == pytest.approx(sum(precisions) / 3)


def test_a_short_text_is_penalized():
    """One word against two: exp(1 - 2/1); the longer text finds half of its words."""
    assert self_bleu([["a"], ["a", "b"]], max_n=1) == pytest.approx((math.exp(-1) + 1 / 2) / 2)


def test_self_bleu_and_rouge_equal_those_of_the_usual_libraries():
    """Compare with sacrebleu and rouge_score on random texts, one of them unlike all others."""
    rng = np.random.default_rng(0)
    bleu = BLEU(smooth_method="floor", smooth_value=0.1, tokenize="none", effective_order=False)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for _ in range(20):
        texts = [
            [f"w{word}" for word in rng.integers(0, 9, size=rng.integers(4, 12))] for _ in range(4)
        ]
        texts.append(["other"] * 5)
        written = [" ".join(text) for text in texts]
        scores = [
            bleu.sentence_score(own, written[:i] + written[i + 1 :]).score / 100
            for i, own in enumerate(written)
        ]
        assert self_bleu(texts) == pytest.approx(sum(scores) / 5)
        expected = scorer.score(written[1], written[0])
        result = rouge(words(written[0]), words(written[1]))
        assert (result.rouge_1, result.rouge_2, result.rouge_l) == pytest.approx(
            tuple(expected[name].fmeasure for name in ("rouge1", "rouge2", "rougeL"))
        )


def test_rouge_by_hand():
    result = rouge(
        ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "lay", "on", "a", "mat"]
    )
    assert result.rouge_1 == pytest.approx(4 / 6)  # the cat on mat
    assert result.rouge_2 == pytest.approx(1 / 5)  # the cat
    assert result.rouge_l == pytest.approx(4 / 6)
    longer = rouge(list("abcdef"), list("fabc"))
    assert longer.rouge_1 == pytest.approx(2 * 4 / 10)
    assert longer.rouge_l == pytest.approx(2 * 3 / 10)
    assert rouge([], ["a"]).rouge_1 == 0


def test_rouge_counts_lower_case_ascii_words():
    assert words("It's 3-fold, Ümit!") == ["it", "s", "3", "fold", "mit"]


def test_diversity_has_all_metrics():
    result = diversity([[1, 2, 3, 4], [1, 1, 2, 2]])
    assert result.entropy_bits == (2 + 1) / 2
    assert (result.distinct_1, result.distinct_2) == (4 / 8, 5 / 6)
    assert diversity([[1, 2]]).self_bleu is None
