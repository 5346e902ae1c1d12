"""Tests of refusing requests that cannot fit into memory, before anything of their size exists."""

import numpy as np
import pytest

from armd_scale.errors import GenerationError
from armd_scale.generation.batch import generate_from_specs, generate_tokens
from armd_scale.generation.memory import require_memory_for_texts
from armd_scale.generation.strategy import GenerationSpec
from armd_scale.generation.text import encode_infill_template
from tests.support.networks import LLAMA, build


def test_too_many_or_too_long_texts_are_refused() -> None:
    for num_texts, num_tokens in ((10**12, 1), (1, 10**12), (10**6, 10**6)):
        with pytest.raises(GenerationError, match="must fit the memory that is free on cpu"):
            require_memory_for_texts(num_texts, num_tokens)


def test_a_hole_of_absurd_size_is_refused() -> None:
    with pytest.raises(GenerationError, match="1 texts of 999,999,999,999 tokens must fit"):
        encode_infill_template("{{999999999999}}", None)
    with pytest.raises(GenerationError, match="a hole must be its number of tokens") as refused:
        encode_infill_template("{{" + "9" * 5000 + "}}", None)
    assert len(str(refused.value)) < 300


def test_a_number_of_tokens_is_refused_before_their_arrays_exist(groups) -> None:
    network = build(LLAMA, groups)
    with pytest.raises(GenerationError, match="must fit the memory"):
        generate_tokens(network, [np.zeros(1, dtype=np.int64)], num_tokens=10**13)


def test_a_prompt_whose_mask_is_too_large_is_refused(groups) -> None:
    length = 400_000  # 1.6 TB for the mask of both streams; the arrays themselves are small
    tokens = np.zeros(length + 1, dtype=np.int64)
    spec = GenerationSpec(
        tokens=tokens, block=np.arange(length + 1), known=np.arange(length + 1) < length
    )
    with pytest.raises(GenerationError, match="400,000 of them given, must fit the memory"):
        generate_from_specs(build(LLAMA, groups), [spec])
