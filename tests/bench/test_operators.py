"""Operators are counted once, in the group that they work for."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import record_function

from armd_scale.bench.operators import (
    ATTENTION,
    GROUPS,
    OTHER,
    PRODUCTS,
    new_profiler,
    operators_of,
    profile_operators,
    total,
)

CPU = torch.device("cpu")


def heads(number: int) -> torch.Tensor:
    return torch.randn(1, number, 8, 4, requires_grad=True)


def test_products_are_counted_by_run() -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8, requires_grad=True)
    found = profile_operators(lambda: (a @ b).sum().backward(), runs=3, device=CPU)
    assert {(o.name, o.calls) for o in found if o.group == PRODUCTS} == {("aten::mm", 2.0)}
    assert {o.group for o in found} == {PRODUCTS, OTHER}


def test_groups_add_up_to_all() -> None:
    q, k, v = heads(4), heads(2), heads(2)
    found = profile_operators(
        lambda: (
            F.scaled_dot_product_attention(q @ q.mT @ q, k, v, enable_gqa=True).sum().backward()
        ),
        runs=2,
        device=CPU,
    )
    assert total(found) == pytest.approx(sum(total(found, group) for group in GROUPS))
    assert all(total(found, group) > 0 for group in GROUPS)


def test_nothing_counts_twice() -> None:
    a = torch.randn(64, 64, requires_grad=True)
    with new_profiler(CPU) as profiler:
        F.linear(a, a).softmax(dim=-1).sum().backward()
    outermost = [event for event in profiler.events() or [] if event.cpu_parent is None]
    whole = sum(event.cpu_time_total for event in outermost) / 1e3
    assert total(operators_of(profiler, runs=1, device=CPU)) == pytest.approx(whole)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_whatever_attention_is_made_of_is_attention(backend: SDPBackend) -> None:
    q, k, v = heads(4), heads(2), heads(2)

    def attend() -> None:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out.sum().backward()

    found = profile_operators(attend, runs=1, device=CPU)
    assert total(found, PRODUCTS) == 0
    assert {("aten::sum", OTHER), ("SumBackward0", OTHER)} <= {(o.name, o.group) for o in found}
    assert "SumBackward0" not in {o.name for o in found if o.group == ATTENTION}
    products = sum(o.calls for o in found if o.name == "aten::bmm")
    assert products == (6 if backend == SDPBackend.MATH else 0)
    assert total(found, ATTENTION) > 0


def test_a_mask_made_in_the_call_is_attention_and_one_made_before_is_not() -> None:
    q, k, v = (one.detach() for one in (heads(2), heads(2), heads(2)))

    def attend() -> None:
        mask = torch.ones(8, 8, dtype=torch.bool).tril()
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    groups = {o.name: o.group for o in profile_operators(attend, runs=1, device=CPU)}
    assert groups["aten::where"] == ATTENTION
    assert groups["aten::tril"] == OTHER


def test_a_range_leaves_out_what_is_outside() -> None:
    a = torch.randn(8, 8)
    with new_profiler(CPU) as profiler:
        with record_function("here"):
            torch.mm(a, a)
        torch.sort(a)
    found = operators_of(profiler, runs=1, device=CPU, inside="here")
    names = {o.name for o in found}
    assert "aten::mm" in names
    assert not names & {"aten::sort", "here"}
