"""What a training step of ARMD costs beside one of an AR model of the same size.

All networks read windows of the same length in one process and do forward and backward passes;
the optimizer, the same for all, is left out. The floor of the comparison is in matrix products:
an ARMD step may take as many times as long as an AR step as it has operations, and no longer.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from armd_scale.bench.operators import ATTENTION, PRODUCTS, profile_operators, total
from armd_scale.bench.suites.baselines import llama_step, megatron_step
from armd_scale.bench.table import Row
from armd_scale.bench.timing import ratio, time_interleaved
from armd_scale.config.flops import model_flops_per_token
from armd_scale.config.resolve import ResolvedModel, resolve_model
from armd_scale.config.schema import ModelConfig, ParallelConfig
from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.loss_spec import LossSpec
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_weights
from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups
from armd_scale.train.device_metrics import peak_flops

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and the micro-batch that it is timed on."""

    model: ResolvedModel
    seq_length: int
    micro_batch: int

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        return self.model.vocab_size

    def flops_per_token(self, model: ResolvedModel | None = None) -> int:
        """Operations of forward and backward pass for each target."""
        return model_flops_per_token(model or self.model, self.seq_length, self.vocab_size)


def _llama(
    layers: int, hidden: int, ffn_hidden: int, *, heads: int, kv_heads: int, vocab_size: int = 50304
) -> ResolvedModel:
    model = ModelConfig(
        layers=layers,
        hidden=hidden,
        ffn_hidden=ffn_hidden,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=vocab_size,
    )
    return resolve_model(model)


# Llama-like throughout, so that every rival can be built to the same sizes.
_SMALL = _llama(6, 384, 1536, heads=6, kv_heads=6, vocab_size=8192)
_125M = _llama(12, 768, 2048, heads=12, kv_heads=12)
_1B = _llama(20, 2048, 5632, heads=16, kv_heads=8)
_8B_LAYERS = _llama(4, 4096, 14336, heads=32, kv_heads=8)
SHAPES = {
    "small": Shape(model=_SMALL, seq_length=512, micro_batch=2),
    "125m": Shape(model=_125M, seq_length=1024, micro_batch=8),
    "1b": Shape(model=_1B, seq_length=2048, micro_batch=4),
    "8b-layers": Shape(model=_8B_LAYERS, seq_length=2048, micro_batch=2),
}


def compare_steps(*, shape: str = "small", runs: int = 7, profile: bool = False) -> list[Row]:
    """Times a step of an AR model, of ARMD in its ways to run, and of two other AR stacks.

    Args:
        shape: one of SHAPES.
        runs: how often each is timed.
        profile: add the shares of matrix products and of attention, from steps of their own.

    Returns:
        A row for each: times, targets a second, its ratio to the AR step (the median over turns),
        the floor of that ratio, in operations, and the share of the measured peak that these
        operations reach (`mfu`).
    """
    environment = read_environment()
    with process_groups(environment, ParallelConfig()) as groups:
        return time_steps(
            SHAPES[shape], groups, device=environment.device, runs=runs, profile=profile
        )


def time_steps(
    shape: Shape,
    groups: ProcessGroupCollection,
    *,
    device: torch.device,
    runs: int,
    profile: bool = False,
) -> list[Row]:
    """The rows of `compare_steps`."""
    peak = peak_flops(device, compute_dtype(device))
    steps = steps_of(shape, groups, device=device)
    times = time_interleaved(steps, runs=runs)
    shares = {name: shares_of(step, device) if profile else {} for name, step in steps.items()}
    plain = shape.flops_per_token(dataclasses.replace(shape.model, two_stream_layers=0))
    floors = {name: shape.flops_per_token() / plain for name in ("armd", "armd_dense")}
    targets = shape.micro_batch * shape.seq_length
    return [
        {
            **taken.row(name),
            "targets/s": round(targets / taken.median),
            "time ratio": ratio(times, name, "ar"),
            "operations ratio": floors.get(name, 1.0),
            "mfu": floors.get(name, 1.0) * plain * targets / taken.median / peak,
            **shares[name],
        }
        for name, taken in times.items()
    ]


def shares_of(step: Step, device: torch.device) -> Row:
    """Shares of matrix products and attention in the time of all operators."""
    operators = profile_operators(step, runs=1, device=device)
    parts = (PRODUCTS, ATTENTION)
    return {f"{part} share": total(operators, part) / total(operators) for part in parts}


def steps_of(
    shape: Shape, groups: ProcessGroupCollection, *, device: torch.device
) -> dict[str, Step]:
    """Every network's step: forward and backward over one micro-batch."""
    dtype = compute_dtype(device)
    plain = dataclasses.replace(shape.model, two_stream_layers=0)
    ar, armd = (
        network(model, shape, groups, dtype=dtype).to(device) for model in (plain, shape.model)
    )
    left_to_right, shuffled = (batch_under(order, shape).to(device) for order in ("l2r", "random"))
    # The same rows without the word that they are causal: masks then say it, element by element.
    masked = dataclasses.replace(shuffled, is_plain_causal=False, document_rows=None)
    return {
        "ar": step_of(ar, left_to_right),
        "armd": step_of(armd, shuffled),
        "armd_dense": step_of(armd, masked),
        "armd_l2r": step_of(armd, left_to_right),
        "megatron_gpt": megatron_step(plain, left_to_right, dtype=dtype, device=device),
        "hf_llama": llama_step(plain, left_to_right, dtype=dtype, device=device),
    }


def compute_dtype(device: torch.device) -> torch.dtype:
    """The type that a device is quick in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def network(
    model: ResolvedModel, shape: Shape, groups: ProcessGroupCollection, *, dtype: torch.dtype
) -> ArmdModel:
    """A network with drawn weights."""
    config = transformer_config(model, ParallelConfig(), dtype=dtype)
    made = ArmdModel(model, config, groups=groups)
    init_weights(made, seed=0)
    return made


def batch_under(order: str, shape: Shape) -> ArmdBatch:
    """One micro-batch of random tokens under an order of `tools/evaluate.py`."""
    length, number = shape.seq_length + 1, shape.micro_batch
    tokens = np.random.default_rng(0).integers(0, shape.vocab_size, size=(number, length))
    spec = parse_spec(order)
    drawn = [sample_blocks(spec, seed=0, sample_index=i, lengths=(length,)) for i in range(number)]
    return make_batch(
        tokens, np.stack(drawn), lengths=[(length,)] * number, sample_index=np.arange(number)
    )


def mean_of_targets(batch: ArmdBatch) -> LossSpec:
    """The mean loss over a batch's targets."""
    targets = batch.is_target.double()
    return LossSpec((targets / targets.sum()).unsqueeze(0))


def step_of(model: nn.Module, batch: ArmdBatch) -> Step:
    """Forward and backward pass of one of our networks."""
    objective = mean_of_targets(batch)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss, _ = model(batch, objective)
        loss.backward()

    return step
