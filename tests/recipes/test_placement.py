"""The large recipes place themselves on their GPUs: every stage is built, and rows pass through it.

Nothing is computed: tensors have shapes and no memory (FakeTensorMode, torch's meta tensors with a
device), and the process group is torch's fake one, in which a process is any rank it says it is. So
what is checked is shapes and names, at true size; values are checked where layouts are small enough
to run.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from armd_scale.config import derived as derive
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.rules.check import check_world
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.model.param_names import EMBEDDING
from armd_scale.model.spec import transformer_config
from armd_scale.parallel.cuda_shim import patch_cuda_for_cpu
from armd_scale.parallel.pipeline.partition import PipelineStage, stages_of_rank
from armd_scale.parallel.process_groups import model_parallel_groups
from armd_scale.parallel.tensor.partition import TensorPartition, tensor_partition
from tests.support.networks import batch_of
from tests.support.processes import FORKSERVER

pytestmark = pytest.mark.slow(minutes=2)

FOLDER = Path(__file__).parents[2] / "recipes"
# Number of GPUs and a vocabulary.
PLACES = {
    "pretrain_1b": (8, 50257),
    "pretrain_7b": (64, 50257),
    "pretrain_70b": (512, 128256),
    "finetune_llama_1b": (8, 128256),
    "finetune_qwen3_8b": (8, 151936),
}
BATCH = 2


@dataclasses.dataclass(frozen=True)
class Part:
    """What one rank built of one stage, and what went through it."""

    stage: PipelineStage
    data_parallel_size: int
    shapes: dict[str, tuple[int, ...]]
    splits: dict[str, TensorPartition]
    outputs: dict[str, tuple[tuple[int, ...], torch.dtype]]
    """Shape and type of the output under each order."""


Network = list[list[Part]]
"""By stage in the order of data flow, by tensor-parallel rank (the first and the last)."""


def placed(name: str) -> tuple[Network, dict[str, tuple[int, ...]]]:
    """Builds all stages of a recipe in this process; also the shapes of the unsplit network."""
    world_size, vocab_size = PLACES[name]
    recipe = resolve(load_recipe(FOLDER / f"{name}.yaml"), vocab_size=vocab_size)
    with rank_of(0, 1, ParallelConfig()) as groups:
        (stage,) = stages_of_rank(recipe.model, ParallelConfig(), seq_length=1, rank=0)
        unsplit = built(recipe, ParallelConfig(), stage, groups)
        whole = {key: tuple(p.shape) for key, p in unsplit.parameters_by_name().items()}
    parallel, orders = recipe.parallel, batches(recipe.data.seq_length)
    tensor_ranks = sorted({0, parallel.tensor - 1})
    network: Network = []
    for number in range(parallel.pipeline * parallel.virtual_pipeline):
        before = network[-1] if network else [None] * len(tensor_ranks)
        network.append(
            [
                place(recipe, world_size, number, tensor_rank=rank, before=part, orders=orders)
                for rank, part in zip(tensor_ranks, before, strict=True)
            ]
        )
    return network, whole


def place(
    recipe: ResolvedRecipe,
    world_size: int,
    number: int,
    *,
    tensor_rank: int,
    before: Part | None,
    orders: Mapping[str, ArmdBatch],
) -> Part:
    """Stage `number` on one tensor-parallel rank; its inputs are what `before` put out."""
    parallel = recipe.parallel
    pipeline_rank, chunk = number % parallel.pipeline, number // parallel.pipeline
    rank = pipeline_rank * (world_size // parallel.pipeline) + tensor_rank
    with rank_of(rank, world_size, parallel) as groups:
        assert (groups.pp.rank(), groups.tp.rank()) == (pipeline_rank, tensor_rank)
        stage = stages_of_rank(
            recipe.model, parallel, seq_length=recipe.data.seq_length, rank=groups.pp.rank()
        )[chunk]
        chunks = built(recipe, parallel, stage, groups)
        named = chunks.parameters_by_name()
        outputs = {}
        for order, batch in orders.items():
            if before is not None:
                shape, dtype = before.outputs[order]
                chunks.models[0].set_input_tensor(torch.empty(shape, dtype=dtype))
            output = chunks(without_values(batch))
            outputs[order] = (tuple(output.shape), output.dtype)
        return Part(
            stage=stage,
            data_parallel_size=groups.dp.size(),
            shapes={name: tuple(p.shape) for name, p in named.items()},
            splits={name: tensor_partition(p, groups.tp) for name, p in named.items()},
            outputs=outputs,
        )


@contextmanager
def rank_of(rank: int, world_size: int, parallel: ParallelConfig) -> Iterator:
    """The groups of one rank of a large job, in which messages are neither sent nor awaited."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        with model_parallel_groups(parallel) as groups, patch_cuda_for_cpu(), FakeTensorMode():
            yield groups
    finally:
        dist.destroy_process_group()


def built(
    recipe: ResolvedRecipe, parallel: ParallelConfig, stage: PipelineStage, groups
) -> ModelChunks:
    assert recipe.train.recompute != "auto"
    part = ArmdModel(
        recipe.model,
        transformer_config(recipe.model, parallel, dtype=torch.bfloat16),
        groups=groups,
        recompute=recipe.train.recompute,
        stage=stage,
    )
    return ModelChunks([part])


def batches(seq_length: int) -> dict[str, ArmdBatch]:
    """A batch under orders that take every way through the network."""
    place, half = np.arange(seq_length), seq_length // 2
    made = {
        "l2r": windows_under(place),
        "strided-ar": windows_under(place % half * 2 + place // half),
        "strided": windows_under(place % half),
    }
    # One stream; two under one causal mask; two under masks of their own.
    ways = {name: (batch.is_left_to_right, batch.is_plain_causal) for name, batch in made.items()}
    assert ways == {"l2r": (True, True), "strided-ar": (False, True), "strided": (False, False)}
    return made


def windows_under(targets: np.ndarray) -> ArmdBatch:
    block = np.stack([np.concatenate(([0], 1 + targets))] * BATCH)
    return batch_of(np.zeros_like(block), block)


def without_values(batch):
    """The same batch of tensors without memory."""
    return dataclasses.replace(
        batch,
        **{
            field.name: torch.empty(value.shape, dtype=value.dtype)
            if isinstance(value, torch.Tensor)
            else without_values(value)
            for field in dataclasses.fields(batch)
            if not isinstance(value := getattr(batch, field.name), bool | tuple | None)
        },
    )


@pytest.fixture(scope="module")
def other_process() -> Iterator[ProcessPoolExecutor]:
    """A process of its own, since this one belongs to a job already."""
    with ProcessPoolExecutor(1, mp_context=FORKSERVER) as pool:
        yield pool


@pytest.fixture(scope="module", params=PLACES)
def case(request, other_process):
    name = request.param
    recipe = resolve(load_recipe(FOLDER / f"{name}.yaml"), vocab_size=PLACES[name][1])
    network, whole = other_process.submit(placed, name).result(timeout=120)
    return name, recipe, network, whole


def test_the_world_is_used_up(case):
    name, recipe, network, _ = case
    world_size, _ = PLACES[name]
    check_world(recipe, world_size)
    parallel = recipe.parallel
    assert len(network) == parallel.pipeline * parallel.virtual_pipeline
    for stage in network:
        for part in stage:
            used = part.data_parallel_size * parallel.tensor * parallel.pipeline
            assert used == world_size


def test_parameter_counts_add_up(case):
    name, recipe, network, _ = case
    padded = derive.padded_vocab_size(PLACES[name][1], recipe.parallel.tensor)
    count = derive.num_parameters(recipe.model, padded)
    tied = recipe.model.tie_embeddings
    found = sum(
        math.prod(part.splits[key].full_shape(torch.Size(shape)))
        for part in (stage[0] for stage in network)
        for key, shape in part.shapes.items()
        # The tied copy in the last stage is the embedding in the first.
        if not (tied and key == EMBEDDING and not part.stage.is_first)
    )
    assert found == count


def test_every_parameter_is_a_consistent_shard_of_the_unsplit_one(case):
    _, recipe, network, whole = case
    for stage in network:
        assert len(stage) == min(2, recipe.parallel.tensor)
        for part, tensor_rank in zip(stage, (0, recipe.parallel.tensor - 1), strict=False):
            assert part.shapes == stage[0].shapes
            for key, shape in part.shapes.items():
                split = part.splits[key]
                assert split.full_shape(torch.Size(shape)) == whole[key], key
                assert (split.rank, split.dim) == (tensor_rank, stage[0].splits[key].dim), key
                parts = split.stride * split.size
                assert split.dim is None or whole[key][split.dim] % parts == 0, key


def test_what_is_large_is_split(case):
    _, recipe, network, _ = case
    for part in (stage[0] for stage in network):
        whole = {key for key, split in part.splits.items() if split.dim is None}
        assert all(math.prod(part.shapes[key]) <= 65 * recipe.model.hidden for key in whole)


def test_every_layer_lives_on_one_stage_and_every_name_too(case):
    _, recipe, network, whole = case
    layers = [layer for stage in network for layer in stage[0].stage.layers]
    assert layers == list(range(recipe.model.layers))
    held = Counter(key for stage in network for key in stage[0].shapes)
    assert held.keys() == whole.keys()
    twice = {key for key, count in held.items() if count > 1}
    assert twice == ({EMBEDDING} if recipe.model.tie_embeddings and len(network) > 1 else set())
    for stage in network:
        numbers = {int(key.split(".")[1]) for key in stage[0].shapes if key.startswith("layers.")}
        assert numbers == set(stage[0].stage.layers)


@pytest.mark.parametrize("order", ["l2r", "strided-ar", "strided"])
def test_rows_pass_from_stage_to_stage_and_end_as_likelihoods(case, order):
    _, recipe, network, _ = case
    seq_length, hidden = recipe.data.seq_length, recipe.model.hidden
    shared = recipe.parallel.tensor if recipe.parallel.sequence else 1
    last_two_stream = recipe.model.two_stream_layers - 1
    for stage in network[:-1]:
        both = order != "l2r" and stage[0].stage.layers[-1] < last_two_stream
        rows = (2 if both else 1) * seq_length // shared
        for part in stage:
            assert part.outputs[order] == ((rows, BATCH, hidden), torch.bfloat16)
    for part in network[-1]:
        assert part.outputs[order] == ((BATCH, seq_length), torch.float32)


def test_pipelines_send_both_numbers_of_rows(case):
    _, recipe, network, _ = case
    sent = {stage[0].outputs["strided-ar"][0][0] for stage in network[:-1]}
    assert len(sent) == (2 if recipe.parallel.pipeline > 1 else 0)
