"""Operators count once, in the group that they work for."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import record_function

from armd_scale.bench.profiler import (
    ATTENTION,
    GROUPS,
    MATMUL,
    OTHER,
    new_profiler,
    operators_of,
    profile_operators,
    total,
)

CPU = torch.device("cpu")


def heads(num_heads: int) -> torch.Tensor:
    return torch.randn(1, num_heads, 8, 4, requires_grad=True)


def test_matmuls_are_counted_per_repeat() -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8, requires_grad=True)
    operators = profile_operators(lambda: (a @ b).sum().backward(), repeats=3, device=CPU)
    assert {(o.name, o.calls) for o in operators if o.group == MATMUL} == {("aten::mm", 2.0)}
    assert {o.group for o in operators} == {MATMUL, OTHER}


def test_groups_add_up_to_the_total() -> None:
    q, k, v = heads(4), heads(2), heads(2)
    operators = profile_operators(
        lambda: (
            F.scaled_dot_product_attention(q @ q.mT @ q, k, v, enable_gqa=True).sum().backward()
        ),
        repeats=2,
        device=CPU,
    )
    assert total(operators) == pytest.approx(sum(total(operators, group) for group in GROUPS))
    assert all(total(operators, group) > 0 for group in GROUPS)


def test_nothing_counts_twice() -> None:
    a = torch.randn(64, 64, requires_grad=True)
    with new_profiler(CPU) as profiler:
        F.linear(a, a).softmax(dim=-1).sum().backward()
    outermost = [event for event in profiler.events() or [] if event.cpu_parent is None]
    wall = sum(event.cpu_time_total for event in outermost) / 1e3
    assert total(operators_of(profiler, repeats=1, device=CPU)) == pytest.approx(wall)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_operators_inside_attention_count_as_attention(backend: SDPBackend) -> None:
    q, k, v = heads(4), heads(2), heads(2)

    def attend() -> None:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out.sum().backward()

    operators = profile_operators(attend, repeats=1, device=CPU)
    assert total(operators, MATMUL) == 0
    assert {("aten::sum", OTHER), ("SumBackward0", OTHER)} <= {(o.name, o.group) for o in operators}
    assert "SumBackward0" not in {o.name for o in operators if o.group == ATTENTION}
    matmuls = sum(o.calls for o in operators if o.name == "aten::bmm")
    assert matmuls == (6 if backend == SDPBackend.MATH else 0)
    assert total(operators, ATTENTION) > 0


def test_a_mask_converted_by_the_call_is_attention_and_one_made_before_is_not() -> None:
    q, k, v = (heads(2).detach() for _ in range(3))

    def attend() -> None:
        mask = torch.ones(8, 8, dtype=torch.bool).tril()
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    groups = {o.name: o.group for o in profile_operators(attend, repeats=1, device=CPU)}
    assert groups["aten::where"] == ATTENTION
    assert groups["aten::tril"] == OTHER


def test_operators_outside_a_range_do_not_count() -> None:
    a = torch.randn(8, 8)
    with new_profiler(CPU) as profiler:
        with record_function("inside"):
            torch.mm(a, a)
        torch.sort(a)
    operators = operators_of(profiler, repeats=1, device=CPU, inside="inside")
    names = {o.name for o in operators}
    assert "aten::mm" in names
    assert not names & {"aten::sort", "inside"}
