"""What GPUs can do, and what of it training gets: every assumption of a plan, in one place.

Peaks are NVIDIA's data sheets (A100 80GB SXM, H100 SXM, H200 SXM, HGX B200, L40S): dense, without
sparsity, one direction of the links that they give for both. Memory is what the driver leaves free.
"""

from dataclasses import dataclass

from armd_scale.config.resolve import ResolvedRecipe

GPUS_PER_NODE = 8

EFFICIENCY = 0.5
"""Share of the peak at which a GPU computes, elementwise work and launches between matrix products
included, waiting for messages and pipeline stages not. End to end, Megatron-LM reports 41 to 48 %
on H100 (its README) and 44 to 57 % on A100 (arXiv 2205.05198, table 5), Llama 3 38 to 43 % on H100
(arXiv 2407.21783, table 4)."""
LINK_EFFICIENCY = 0.7
"""Share of a link's bandwidth that collective messages reach."""

LAUNCH_SECONDS = 1e-3
"""The least time of a layer's forward and backward pass: the host launches some hundred kernels, at
about 10 microseconds each under PyTorch's eager mode. Small micro-batches wait for it."""

CONTEXT_BYTES = 2 << 30
"""CUDA context, libraries' workspaces and NCCL's buffers."""
FRAGMENTATION = 0.05
"""Memory that the allocator holds and cannot use, as a share of what it hands out."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU and how it is connected."""

    name: str
    memory_gib: float
    bf16_flops: float
    """Per second."""
    fp32_flops: float
    """Per second, without TF32."""
    memory_bytes_per_second: float
    node_bytes_per_second: float
    """To GPUs of the same node."""
    network_bytes_per_second: float
    """To GPUs of other nodes, a network card for each GPU assumed."""

    def peak(self, recipe: ResolvedRecipe) -> float:
        """Operations per second in the recipe's precision."""
        return self.bf16_flops if recipe.train.precision == "bf16" else self.fp32_flops

    def link(self, num_ranks: int) -> float:
        """Bytes per second that a rank sends to others of a block of `num_ranks` neighbours."""
        inside = num_ranks <= GPUS_PER_NODE
        return LINK_EFFICIENCY * (
            self.node_bytes_per_second if inside else self.network_bytes_per_second
        )


_COLUMNS = (
    "name",
    "memory_gib",
    "bf16_flops",
    "fp32_flops",
    "memory_bytes_per_second",
    "node_bytes_per_second",
    "network_bytes_per_second",
)
GPUS = {
    str(row[0]): Gpu(**dict(zip(_COLUMNS, row, strict=True)))  # pyright: ignore[reportArgumentType]
    for row in (
        ("a100", 79.0, 312e12, 19.5e12, 2.0e12, 300e9, 25e9),
        ("h100", 79.0, 989e12, 67e12, 3.35e12, 450e9, 50e9),
        ("h200", 139.0, 989e12, 67e12, 4.8e12, 450e9, 50e9),
        ("b200", 178.0, 2250e12, 75e12, 8.0e12, 900e9, 50e9),
        ("l40s", 44.0, 362e12, 91.6e12, 0.864e12, 32e9, 25e9),
    )
}
