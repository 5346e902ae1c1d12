"""Time of an ARMD training step compared with an AR model of the same size.

All networks read windows of the same length in one process and run forward and backward passes;
the optimizer, the same for all, is left out. The ideal ratio is that of matmul FLOPs: an ARMD step
should take as many times as long as an AR step as it has FLOPs.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from armd_scale.bench.profiler import ATTENTION, MATMUL, profile_operators, total
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
from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups
from armd_scale.train.device_metrics import peak_flops

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and the micro-batch that it is timed on."""

    model: ResolvedModel
    seq_length: int
    micro_batch: int

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.model.vocab_size

    @property
    def num_targets(self) -> int:
        """Targets of a micro-batch."""
        return self.micro_batch * self.seq_length

    def flops_per_token(self, model: ResolvedModel | None = None) -> int:
        """Return the model FLOPs of forward and backward pass per target."""
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


# Llama-like in every respect, so that the other implementations can build the same sizes.
# Two-stream layers are the lower half in all of them, the default.
_SMALL = _llama(6, 384, 1536, heads=6, kv_heads=6, vocab_size=8192)
_125M = _llama(12, 768, 2048, heads=12, kv_heads=12)
_1B = _llama(20, 2048, 5632, heads=16, kv_heads=8)
_8B_LAYERS = _llama(4, 4096, 14336, heads=32, kv_heads=8)
WORKLOADS = {
    "small": Workload(model=_SMALL, seq_length=512, micro_batch=2),
    "125m": Workload(model=_125M, seq_length=1024, micro_batch=8),
    "1b": Workload(model=_1B, seq_length=2048, micro_batch=4),
    "8b-layers": Workload(model=_8B_LAYERS, seq_length=2048, micro_batch=2),
}
"""By the name that --model-size takes; `8b-layers` has 4 layers of the width of an 8B model."""


def compare_steps(
    *, model_size: str = "small", repeats: int = 7, profile: bool = False
) -> list[Row]:
    """Time a step of an AR model, of ARMD in several modes, and of two other AR implementations.

    Args:
        model_size: a key of WORKLOADS.
        repeats: timed repeats of each case.
        profile: add the time shares of matmul and attention, measured in steps of their own.

    Returns:
        A row for each case: times, targets per second, the ratio to the AR step (median over
        turns), the ratio of FLOPs that is ideal, and MFU relative to the measured peak.
    """
    environment = read_environment()
    with process_groups(environment, ParallelConfig()) as groups:
        return time_steps(
            WORKLOADS[model_size],
            groups,
            device=environment.device,
            repeats=repeats,
            profile=profile,
        )


def time_steps(
    workload: Workload,
    groups: ProcessGroupCollection,
    *,
    device: torch.device,
    repeats: int,
    profile: bool = False,
) -> list[Row]:
    """Return the rows of `compare_steps` for any workload."""
    peak = peak_flops(device, compute_dtype(device))
    steps = step_functions(workload, groups, device=device)
    timings = time_interleaved(steps, repeats=repeats)
    # After the timing, because the profiler slows steps down.
    shares = {name: time_shares(step, device) if profile else {} for name, step in steps.items()}
    ar_flops = workload.flops_per_token(dataclasses.replace(workload.model, two_stream_layers=0))
    # All other cases compute exactly one stream, as the AR model does.
    flops_ratios = {name: workload.flops_per_token() / ar_flops for name in ("armd", "armd_dense")}
    targets = workload.num_targets
    return [
        {
            **timing.row(name),
            "targets/s": round(targets / timing.median),
            "time ratio": ratio(timings, name, "ar"),
            "FLOPs ratio": flops_ratios.get(name, 1.0),
            # FLOPs that the model needs; a dense mask executes more, for scores that are hidden.
            "mfu": flops_ratios.get(name, 1.0) * ar_flops * targets / timing.median / peak,
            **shares[name],
        }
        for name, timing in timings.items()
    ]


def time_shares(step: Step, device: torch.device) -> Row:
    """Return the shares of matmul and attention in the time of all operators of a step."""
    operators = profile_operators(step, repeats=1, device=device)
    groups = (MATMUL, ATTENTION)
    # Of the time inside operators: Python between them is not counted.
    return {f"{group} share": total(operators, group) / total(operators) for group in groups}


def step_functions(
    workload: Workload, groups: ProcessGroupCollection, *, device: torch.device
) -> dict[str, Step]:
    """Return a function for each case that runs forward and backward over one micro-batch."""
    dtype = compute_dtype(device)
    # The same network without two-stream layers: the difference is the second stream alone.
    ar_model = dataclasses.replace(workload.model, two_stream_layers=0)
    ar, armd = (
        build_model(model, workload, groups, dtype=dtype, device=device)
        for model in (ar_model, workload.model)
    )
    left_to_right, shuffled = (
        random_batch(order, workload).to(device) for order in ("l2r", "random")
    )
    # The same rows without the flags that say they are causal: attention then uses a mask.
    masked = dataclasses.replace(shuffled, is_plain_causal=False, document_rows=None)
    return {
        "ar": training_step(ar, left_to_right),
        "armd": training_step(armd, shuffled),
        "armd_dense": training_step(armd, masked),
        # Left to right both streams are equal, and the network computes one of them.
        "armd_l2r": training_step(armd, left_to_right),
        "megatron_gpt": megatron_step(ar_model, left_to_right, dtype=dtype, device=device),
        "hf_llama": llama_step(ar_model, left_to_right, dtype=dtype, device=device),
    }


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the type that the device computes fast in: bfloat16 on CUDA, float32 on CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def build_model(
    model: ResolvedModel,
    workload: Workload,
    groups: ProcessGroupCollection,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> ArmdModel:
    """Build a network with random weights.

    They are drawn on the device, not on the CPU as those of a training run: no time depends on
    their values, and a billion numbers take the CPU longer than all the steps take the GPU.
    """
    config = transformer_config(model, ParallelConfig(), dtype=dtype)
    network = ArmdModel(model, config, groups=groups).to(device)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=model.init_std)
        else:
            nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
    return network


def random_batch(order: str, workload: Workload) -> ArmdBatch:
    """Return one micro-batch of random tokens under an order SPEC of `tools/evaluate.py`."""
    length, count = workload.seq_length + 1, workload.micro_batch
    # Random tokens: the time of a step does not depend on which tokens it reads.
    tokens = np.random.default_rng(0).integers(0, workload.vocab_size, size=(count, length))
    spec = parse_spec(order)
    blocks = [sample_blocks(spec, seed=0, sample_index=i, lengths=(length,)) for i in range(count)]
    return make_batch(
        tokens, np.stack(blocks), lengths=[(length,)] * count, sample_index=np.arange(count)
    )


def mean_loss_spec(batch: ArmdBatch) -> LossSpec:
    """Return weights that make the loss the mean over the batch's targets."""
    targets = batch.is_target.double()
    return LossSpec((targets / targets.sum()).unsqueeze(0))


def training_step(network: nn.Module, batch: ArmdBatch) -> Step:
    """Return a function that runs forward and backward of one of our networks."""
    loss_spec = mean_loss_spec(batch)

    def step() -> None:
        # To None, not to zero: the backward pass then writes gradients instead of adding to zeros.
        network.zero_grad(set_to_none=True)
        loss, _ = network(batch, loss_spec)
        loss.backward()

    return step
