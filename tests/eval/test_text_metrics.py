"""Variety and overlap against values worked out by hand, and against the usual libraries' own."""

import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from armd_scale.eval.text_metrics import distinct, diversity, rouge, self_bleu, words


def test_distinct_counts_over_all_texts():
    texts = [list("abab"), list("ac")]
    assert distinct(texts, 1) == 3 / 6
    assert distinct(texts, 2) == 3 / 4  # ab ba ab | ac
    assert distinct([["a"]], 2) == 0


def test_self_bleu_by_hand():
    """Each text shares 2 of 3 words and 1 of 2 pairs with the other, and equal lengths."""
    texts = [list("abc"), list("abd")]
    assert self_bleu(texts, max_n=2) == pytest.approx(math.sqrt(2 / 3 * 1 / 2))


def test_a_text_is_no_reference_of_its_own():
    assert self_bleu([[1, 1, 1, 1], [2, 2, 2, 2]]) == 0
    assert self_bleu([[1, 3, 3, 3], [1, 2, 2, 2]]) == pytest.approx((0.1**3 / 24) ** 0.25)
    assert self_bleu([[1, 2, 3, 4], [1, 2, 3, 4]]) == pytest.approx(1)


def test_counts_are_clipped_at_the_best_of_the_others():
    """`a a a` may use each reference's a's once: the others hold at most two."""
    texts = [list("aaa"), list("aab"), list("acb")]
    shares = [2 / 3, 3 / 3, 2 / 3]
    assert self_bleu(texts, max_n=1) == pytest.approx(sum(shares) / 3)


def test_a_short_text_is_penalised():
    """1 against 2 words: exp(1 - 2/1), and the longer one finds half of its words."""
    assert self_bleu([["a"], ["a", "b"]], max_n=1) == pytest.approx((math.exp(-1) + 1 / 2) / 2)


def test_self_bleu_and_rouge_are_those_of_the_usual_libraries():
    """sacrebleu, and Google's rouge_score, on random texts of few words; some share nothing."""
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
        theirs = scorer.score(written[1], written[0])
        ours = rouge(words(written[0]), words(written[1]))
        assert (ours.rouge_1, ours.rouge_2, ours.rouge_l) == pytest.approx(
            tuple(theirs[name].fmeasure for name in ("rouge1", "rouge2", "rougeL"))
        )


def test_rouge_by_hand():
    found = rouge(
        ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "lay", "on", "a", "mat"]
    )
    assert found.rouge_1 == pytest.approx(4 / 6)  # the cat on mat
    assert found.rouge_2 == pytest.approx(1 / 5)  # the cat
    assert found.rouge_l == pytest.approx(4 / 6)
    longer = rouge(list("abcdef"), list("fabc"))
    assert longer.rouge_1 == pytest.approx(2 * 4 / 10)
    assert longer.rouge_l == pytest.approx(2 * 3 / 10)
    assert rouge([], ["a"]).rouge_1 == 0


def test_words_of_rouge():
    assert words("It's 3-fold, Ümit!") == ["it", "s", "3", "fold", "mit"]


def test_all_figures_at_once():
    found = diversity([[1, 2, 3, 4], [1, 1, 2, 2]])
    assert found.entropy_bits == (2 + 1) / 2
    assert (found.distinct_1, found.distinct_2) == (4 / 8, 5 / 6)
    assert diversity([[1, 2]]).self_bleu is None
