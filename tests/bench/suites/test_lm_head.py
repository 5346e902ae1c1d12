"""Peak memory of the head is counted to the byte, and all cases compute the same gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.suites.lm_head import (
    HeadShape,
    HeadStep,
    chunked_step,
    dense_step,
    measure,
    our_step,
    peak_bytes,
    random_inputs,
)
from armd_scale.config import derived

CPU = torch.device("cpu")
SMALL = HeadShape(rows=50, hidden=2, vocab_size=4096)


@pytest.fixture
def cases(groups: ProcessGroupCollection, monkeypatch: pytest.MonkeyPatch) -> dict[str, HeadStep]:
    monkeypatch.setattr(derived, "MIN_ROWS_PER_CHUNK", 1)
    monkeypatch.setattr(
        derived, "MAX_LOGITS_PER_CHUNK_CPU", 8 * SMALL.vocab_size
    )  # the last chunk has 2 rows
    return {"dense": dense_step, "chunks": chunked_step, "ours": partial(our_step, groups.tp)}


def overlapping_blocks() -> None:
    first = torch.empty(1000)
    second = torch.empty(500)
    del first
    third = torch.empty(2000)
    del second, third
    torch.empty(2100)


@pytest.mark.parametrize(("call", "expected"), [(overlapping_blocks, 10_000), (lambda: None, 0)])
def test_the_peak_is_exact(call: Callable[[], None], expected: int) -> None:
    assert peak_bytes(call, CPU) == expected


def test_temporaries_inside_an_operator_count() -> None:
    values = torch.zeros(1000)
    assert peak_bytes(lambda: values.logsumexp(0), CPU) > values.nbytes


def test_blocks_from_before_the_call_do_not_count() -> None:
    before = [torch.empty(1 << 20)]

    def call() -> None:
        before.clear()
        torch.empty(100)

    assert peak_bytes(call, CPU) == 400


def test_all_cases_compute_the_same_gradients(cases: dict[str, HeadStep]) -> None:
    gradients = {}
    for name, step in cases.items():
        rows, weight, labels = random_inputs(SMALL, CPU)
        step(rows, weight, labels)
        gradients[name] = (rows.grad, weight.grad)
    for name in ("chunks", "ours"):
        torch.testing.assert_close(gradients[name], gradients["dense"])


def test_chunks_hold_less_than_all_logits(cases: dict[str, HeadStep]) -> None:
    measured = measure(SMALL, cases, device=CPU, repeats=1)
    rows: dict[str, dict[str, Any]] = {str(row["case"]): row for row in measured}
    assert list(rows) == ["dense", "chunks", "ours"]
    logits, chunk = 4 * 50 * 4096, 4 * 8 * 4096
    gradients = 4 * 2 * (50 + 4096)
    dense = rows["dense"]["peak MiB"] * 2**20
    assert 3 * logits <= dense < 3.5 * logits  # logits, their logarithms, the gradient
    assert rows["dense"]["chunks of logits"] == pytest.approx((dense - gradients) / chunk)
    assert rows["chunks"]["peak MiB"] * 2**20 < dense / 2
    # One chunk's logits, and what is as large as its rows.
    assert 1 <= rows["ours"]["chunks of logits"] < 1.1
    assert rows["dense"]["time ratio"] == 1
