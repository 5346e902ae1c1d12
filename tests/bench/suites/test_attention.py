"""All cases of the attention benchmark compute the same attention."""

import torch

from armd_scale.bench.suites.attention import attention_functions, compare_attention


def test_all_cases_compute_the_same_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 16, 1, 4, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(1, 2, 16, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    outputs = {name: forward() for name, forward in attention_functions(q, k, v).items()}
    folded = outputs["folded"].flatten(0, 1)  # content rows, then query rows
    for name in ("two_masks", "doubled"):
        torch.testing.assert_close(outputs[name].permute(2, 0, 1, 3), folded)
    torch.testing.assert_close(outputs["ar"][0], outputs["folded"][0])


def test_every_case_has_a_row() -> None:
    rows = compare_attention(seq_lengths=(16,), heads=2, kv_heads=1, head_dim=8, repeats=1)
    assert [row["case"] for row in rows] == ["ar", "folded", "two_masks", "doubled"]
    assert rows[1]["ratio"] == 1
