"""What training really holds and computes: bytes of live tensors, bytes that autograd keeps."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from armd_scale.bench.suites.step import mean_of_targets
from armd_scale.config.derived import accumulation_steps
from armd_scale.config.schema import Recipe
from armd_scale.model.loss_spec import TrainMicroBatch
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.parallel.cuda_shim import patch_cuda_for_cpu
from armd_scale.parallel.pipeline.schedule import run_micro_batches
from armd_scale.train.build import build_model
from armd_scale.train.schedule_chunks import make_schedule_chunks
from tests.support.windows import draw_windows

LOOKS = 5


def state_bytes(groups: ProcessGroupCollection, recipes: Sequence[Recipe]) -> list[int]:
    """Of each recipe, what this rank holds when the gradients of two micro-batches have added up.

    DeepSpeed's bucket of ZeRO 3 is left out: next to it, nothing of a small model would be seen.
    """
    return [_state_bytes(groups, recipe) for recipe in recipes]


def _state_bytes(groups: ProcessGroupCollection, recipe: Recipe) -> int:
    before = _live_storages()
    network = build_model(recipe, None, groups=groups, device=torch.device("cpu"))
    precision = recipe.train.precision
    engine = ZeroEngine(network, recipe.optim, precision=precision, groups=groups)
    count = accumulation_steps(recipe.train, groups.dp.size())
    batches = [batch_of(recipe) for _ in range(count)]
    lessons = [TrainMicroBatch(batch, mean_of_targets(batch).weights) for batch in batches]
    with engine.accumulate():
        run_micro_batches(
            make_schedule_chunks(network, engine),
            lessons,
            loss_fn=lambda made, _: (made[0], None),
            groups=groups,
        )
        return min(_bytes_since(before) for _ in range(LOOKS))


def _bytes_since(before: Mapping[int, int]) -> int:
    """Bytes that are held now and were not before."""
    # Threads of gloo may hold what they have sent for a moment after the sender was told.
    time.sleep(0.02)
    return sum(
        size
        for key, size in _live_storages().items()
        if before.get(key) != size and size < 1_000_000_000
    )


def batch_of(recipe: Recipe, order: str = "strided-ar:2"):
    """A micro-batch of random tokens."""
    length = recipe.data.seq_length + 1
    return draw_windows(order, (length,), count=recipe.train.micro_batch).batch()


def kept_bytes(groups: ProcessGroupCollection, recipe: Recipe, order: str = "random") -> int:
    """What autograd keeps of one micro-batch, weights and the batch itself left out."""
    network = build_model(recipe, None, groups=groups, device=torch.device("cpu"))
    if recipe.train.precision == "bf16":
        network = network.bfloat16()
    batch = batch_of(recipe, order)
    with patch_cuda_for_cpu(), kept_storages(network) as kept:
        loss, _ = network(batch, loss_spec=mean_of_targets(batch))
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@contextmanager
def kept_storages(network: nn.Module) -> Iterator[dict[int, tuple[int, object]]]:
    """Fills with the storages that autograd keeps, each once; holds them, so none is reused."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, tuple[int, object]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def _live_storages() -> dict[int, int]:
    """Bytes of every storage that a tensor or its gradient lies in."""
    gc.collect()
    found = {}
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    for tensor in tensors:
        for one in (tensor, tensor.grad if tensor.is_leaf else None):
            if one is not None:
                found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return found


def on(recipe: Recipe, zero_stage: int, precision: str) -> Recipe:
    """The recipe under another ZeRO stage and precision."""
    return replace(
        recipe,
        optim=replace(recipe.optim, zero_stage=zero_stage),
        train=replace(recipe.train, precision=precision),
    )
