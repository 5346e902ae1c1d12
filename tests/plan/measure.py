"""Measure what training holds and sends: live bytes, bytes kept by autograd, collective traffic."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from armd_scale.bench.suites.step import mean_loss_spec
from armd_scale.config.derived import accumulation_steps
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.loss_spec import TrainMicroBatch
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.parallel.cuda_shim import patch_cuda_for_cpu
from armd_scale.parallel.pipeline.schedule import run_micro_batches
from armd_scale.train.build import build_model
from armd_scale.train.schedule_chunks import make_schedule_chunks
from tests.support.windows import draw_windows

MAX_LOOKS = 5


def state_bytes(groups: ProcessGroupCollection, recipes: Sequence[ResolvedRecipe]) -> list[int]:
    """Return, for each recipe, the bytes on this rank when all gradients of a step are summed.

    DeepSpeed's bucket of ZeRO 3 is left out: it would hide everything that a small model holds.
    """
    return [_state_bytes(groups, recipe) for recipe in recipes]


def _state_bytes(groups: ProcessGroupCollection, recipe: ResolvedRecipe) -> int:
    before = _live_storages()
    engine = _build_engine(groups, recipe)
    micro_batches = _micro_batches(groups, recipe)
    with engine.accumulate():
        _run(groups, engine, micro_batches)
        # Threads of gloo may hold what they have sent for a moment after the sender was told, so
        # look again until nothing more is freed.
        smallest = _bytes_since(before)
        for _ in range(MAX_LOOKS):
            current = _bytes_since(before)
            if current >= smallest:
                break
            smallest = current
        return smallest


def _build_engine(groups: ProcessGroupCollection, recipe: ResolvedRecipe) -> ZeroEngine:
    network = build_model(recipe, None, groups=groups, device=torch.device("cpu"))
    return ZeroEngine(network, recipe.optim, precision=recipe.train.precision, groups=groups)


def _micro_batches(groups: ProcessGroupCollection, recipe: ResolvedRecipe) -> list[TrainMicroBatch]:
    count = accumulation_steps(recipe.train, groups.dp.size())
    batches = [batch_of(recipe) for _ in range(count)]
    return [TrainMicroBatch(batch, mean_loss_spec(batch).weights) for batch in batches]


def _run(
    groups: ProcessGroupCollection, engine: ZeroEngine, micro_batches: list[TrainMicroBatch]
) -> None:
    run_micro_batches(
        make_schedule_chunks(engine.network, engine),
        micro_batches,
        loss_fn=lambda outputs, _: (outputs[0], None),
        groups=groups,
    )


def _bytes_since(before: Mapping[int, int]) -> int:
    """Bytes of storages that exist now and did not exist before."""
    time.sleep(0.02)
    return sum(
        size
        for address, size in _live_storages().items()
        if before.get(address) != size and size < 1_000_000_000
    )


def batch_of(recipe: ResolvedRecipe, order: str = "strided-ar:2") -> ArmdBatch:
    """Return a micro-batch of random tokens."""
    length = recipe.data.seq_length + 1
    return draw_windows(order, (length,), count=recipe.train.micro_batch).batch()


def kept_bytes(
    groups: ProcessGroupCollection, recipe: ResolvedRecipe, order: str = "random"
) -> int:
    """Return the bytes that autograd keeps of one micro-batch, without weights and the batch."""
    network = build_model(recipe, None, groups=groups, device=torch.device("cpu"))
    if recipe.train.precision == "bf16":
        network = network.bfloat16()
    batch = batch_of(recipe, order)
    with patch_cuda_for_cpu(), kept_storages(network) as kept:
        loss, _ = network(batch, loss_spec=mean_loss_spec(batch))
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@contextmanager
def kept_storages(network: nn.Module) -> Iterator[dict[int, tuple[int, object]]]:
    """Yield a dict that fills with the storages that autograd keeps, each once.

    It also holds the storages themselves, so that no address is reused.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, tuple[int, object]] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        yield kept


def _live_storages() -> dict[int, int]:
    """Bytes of every storage of a tensor or of its gradient, by address."""
    gc.collect()
    storages = {}
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]
    for tensor in tensors:
        for owner in (tensor, tensor.grad if tensor.is_leaf else None):
            if owner is not None:
                storages[owner.untyped_storage().data_ptr()] = owner.untyped_storage().nbytes()
    return storages


RING_PASSES = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1}


class SentBytes(TorchDispatchMode):
    """Count the bytes that this rank sends in collectives, each as a ring over `num_ranks`."""

    def __init__(self, num_ranks: int) -> None:
        super().__init__()
        self.total = 0.0
        self._share = (num_ranks - 1) / num_ranks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            # The whole tensor: input and output of an all-reduce, the larger side of the others.
            tensors = [item for item in args if isinstance(item, Tensor)] or args[0]
            whole = max(tensor.nbytes for tensor in tensors)
            self.total += RING_PASSES[name] * whole * self._share
        return func(*args, **(kwargs or {}))


def data_parallel_bytes_sent(
    groups: ProcessGroupCollection, recipes: Sequence[ResolvedRecipe]
) -> list[float]:
    """Return, for each recipe, the bytes that this rank sends in a training step."""
    sent = []
    for recipe in recipes:
        engine = _build_engine(groups, recipe)
        micro_batches = _micro_batches(groups, recipe)
        # The first step also broadcasts initial weights and, under ZeRO 3, records the trace of
        # modules that later gathers follow.
        _train_step(groups, engine, micro_batches)
        with SentBytes(groups.dp.size()) as counter:
            _train_step(groups, engine, micro_batches)
        sent.append(counter.total)
    return sent


def _train_step(
    groups: ProcessGroupCollection, engine: ZeroEngine, micro_batches: list[TrainMicroBatch]
) -> None:
    with engine.accumulate():
        _run(groups, engine, micro_batches)
    engine.step(1e-3)


def with_zero(recipe: ResolvedRecipe, zero_stage: int, precision: str) -> ResolvedRecipe:
    """Return the recipe with another ZeRO stage and precision."""
    return replace(
        recipe,
        optim=replace(recipe.optim, zero_stage=zero_stage),
        train=replace(recipe.train, precision=precision),
    )
