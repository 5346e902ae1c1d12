"""Estimate a recipe on a number of GPUs: memory per stage, step time by cause, days of the run."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from armd_scale.config import derived
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.rules import check as rules
from armd_scale.plan.activations import bytes_per_value
from armd_scale.plan.communication import CommunicationVolume, communication_volume
from armd_scale.plan.compute import (
    embedding_and_head_flops,
    hardware_flops_per_target,
    layer_hardware_flops,
    model_flops_per_target,
    one_stream_share,
)
from armd_scale.plan.gpus import EFFICIENCY, LAUNCH_SECONDS, Gpu
from armd_scale.plan.memory import RankMemory, chunks_by_rank, gib, memory_by_stage
from armd_scale.plan.recompute import resolve_recompute

UPDATE_BYTES = 40
"""Memory traffic of AdamW per weight of a rank's shard: state and temporaries, read and written."""
SECONDS_PER_DAY = 86400


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step on the slowest pipeline stage, by cause."""

    compute: float
    """Kernels, at the assumed fraction of the peak."""
    tensor: float
    """Tensor-parallel communication; nothing overlaps it."""
    pipeline: float
    """Communication between pipeline stages."""
    bubble: float
    """Idle time while the pipeline fills and drains, and while slower stages compute."""
    data: float
    """Data-parallel communication of gradients and weights; assumed not to overlap anything."""
    update: float
    """AdamW's update."""

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Estimate:
    """What a recipe costs on `world_size` GPUs; built by `estimate_cost`."""

    recipe: ResolvedRecipe
    world_size: int
    gpu: Gpu
    gpu_memory_gib: float
    efficiency: float
    one_stream_share: float
    """Fraction of the run's steps that run the query stream alone."""

    @property
    def replicas(self) -> int:
        """Data-parallel size."""
        return derived.data_parallel_size(self.recipe.parallel, self.world_size)

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of one rank in a step."""
        return derived.accumulation_steps(self.recipe.train, self.replicas)

    @cached_property
    def memory(self) -> list[RankMemory]:
        """Memory of one rank of each pipeline stage."""
        return memory_by_stage(self.recipe, self.world_size)

    @property
    def peak_stage(self) -> int:
        """Index of the pipeline stage whose ranks need the most memory."""
        return max(range(len(self.memory)), key=lambda stage: self.memory[stage].total)

    @property
    def peak_memory(self) -> RankMemory:
        """Memory of a rank of the fullest pipeline stage."""
        return self.memory[self.peak_stage]

    @property
    def fits(self) -> bool:
        """Whether every rank fits the memory of its GPU."""
        return gib(self.peak_memory.total) <= self.gpu_memory_gib

    def communication(self, *, one_stream: bool) -> list[CommunicationVolume]:
        """Return the bytes that one rank of each pipeline stage sends."""
        return [
            communication_volume(self.recipe, chunks, replicas=self.replicas, one_stream=one_stream)
            for chunks in chunks_by_rank(self.recipe)
        ]

    def step_time(self, *, one_stream: bool) -> StepTime:
        """Return the time of a step by cause, for steps on one stream or on two."""
        parallel = self.recipe.parallel
        volumes = self.communication(one_stream=one_stream)
        compute = self._compute_seconds(one_stream)
        # Tensor-parallel ranks are neighbors, so up to 8 of them share a node; pipeline stages are
        # the outermost dimension and talk over the network as soon as the job has two nodes.
        tensor_link = self.gpu.link(parallel.tensor)
        pipeline_link = self.gpu.link(self.world_size)
        stage_seconds = [
            seconds + volume.tensor / tensor_link + volume.pipeline / pipeline_link
            for seconds, volume in zip(compute, volumes, strict=True)
        ]
        slowest = max(range(len(stage_seconds)), key=stage_seconds.__getitem__)
        # 1F1B: the slowest stage is busy with every micro-batch; filling and draining add one pass
        # through all other stages, divided by the number of chunks when they are interleaved.
        bubble = (sum(stage_seconds) - stage_seconds[slowest]) / parallel.virtual_pipeline
        updated = self._parameters() / (self.replicas if self.recipe.optim.zero_stage else 1)
        data_link = self.gpu.link(parallel.tensor * self.replicas)
        return StepTime(
            compute=self.micro_batches * compute[slowest],
            tensor=self.micro_batches * volumes[slowest].tensor / tensor_link,
            pipeline=self.micro_batches * volumes[slowest].pipeline / pipeline_link,
            bubble=bubble,
            data=max(volume.data for volume in volumes) / data_link,
            update=updated * UPDATE_BYTES / self.gpu.memory_bytes_per_second,
        )

    @cached_property
    def step_seconds(self) -> float:
        """Seconds of a step, averaged over the orders of the run."""
        two_streams = self.step_time(one_stream=False).total
        if self.one_stream_share == 0:
            return two_streams
        one_stream = self.step_time(one_stream=True).total
        return two_streams + self.one_stream_share * (one_stream - two_streams)

    @property
    def tokens_per_second(self) -> float:
        """Targets per second, all GPUs together."""
        return derived.tokens_per_step(self.recipe) / self.step_seconds

    @property
    def days(self) -> float:
        """Days of the whole run, without evaluations, checkpoints and restarts."""
        return self.recipe.train.steps * self.step_seconds / SECONDS_PER_DAY

    def model_flops(self) -> float:
        """Return the model FLOPs of a step, averaged over the orders of the run."""
        return derived.tokens_per_step(self.recipe) * self._average(model_flops_per_target)

    def hardware_flops(self) -> float:
        """Return the hardware FLOPs of a step, averaged over the orders of the run."""
        return derived.tokens_per_step(self.recipe) * self._average(hardware_flops_per_target)

    @property
    def recomputed_share(self) -> float:
        """Fraction of a two-stream step's hardware FLOPs that `train.recompute` adds."""
        plain = replace(self.recipe, train=replace(self.recipe.train, recompute="none"))
        without, total = (
            hardware_flops_per_target(recipe, one_stream=False) for recipe in (plain, self.recipe)
        )
        return 1 - without / total

    def utilization(self, flops: float) -> float:
        """Return FLOPs of a step as a fraction of what all GPUs could compute in that time."""
        return flops / (self.step_seconds * self.gpu.peak(self.recipe) * self.world_size)

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return self._settings() | self._figures()

    def _settings(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "recipe": recipe.run.name,
            "gpus": self.world_size,
            "gpu_type": self.gpu.name,
            "gpu_memory_gib": self.gpu_memory_gib,
            "efficiency": self.efficiency,
            "parallel": asdict(recipe.parallel) | {"data": self.replicas},
            "zero_stage": recipe.optim.zero_stage,
            "micro_batch": recipe.train.micro_batch,
            "micro_batches": self.micro_batches,
            "recompute": recipe.train.recompute,
            "parameters": self.num_parameters,
        }

    def _figures(self) -> dict[str, Any]:
        step = self.step_time(one_stream=False)
        return {
            "memory_gib_by_stage": [
                {key: gib(value) for key, value in asdict(memory).items()}
                | {"total": gib(memory.total)}
                for memory in self.memory
            ],
            "model_flops_per_step": self.model_flops(),
            "hardware_flops_per_step": self.hardware_flops(),
            "bytes_sent_per_step": self.bytes_sent_per_step(),
            "step_seconds_two_streams": asdict(step) | {"total": step.total},
            "bubble_fraction": step.bubble / step.total,
            "one_stream_share_of_steps": self.one_stream_share,
            "step_seconds": self.step_seconds,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.utilization(self.model_flops()),
            "hfu": self.utilization(self.hardware_flops()),
            "days": self.days,
        }

    @property
    def num_parameters(self) -> int:
        """Number of weights of the whole model."""
        model = self.recipe.model
        return derived.num_parameters(model, model.vocab_size)

    def bytes_sent_per_step(self) -> dict[str, float]:
        """Return the bytes that the rank with the most communication sends in a two-stream step."""
        volumes = self.communication(one_stream=False)
        most = max(volumes, key=lambda volume: volume.tensor + volume.pipeline)
        return {
            "tensor": most.tensor * self.micro_batches,
            "pipeline": most.pipeline * self.micro_batches,
            "data": most.data,
        }

    def _parameters(self) -> float:
        """Weights of the rank that holds the most, before ZeRO splits them."""
        shards = self.replicas if self.recipe.optim.zero_stage == 3 else 1
        fullest = max(memory.weights for memory in self.memory)
        return fullest * shards / bytes_per_value(self.recipe)

    def _compute_seconds(self, one_stream: bool) -> list[float]:
        """Return the seconds of one micro-batch, forward and backward, on each pipeline stage."""
        recipe = self.recipe
        layers = layer_hardware_flops(recipe, one_stream=one_stream)
        targets = recipe.data.seq_length * recipe.train.micro_batch
        flops_per_second = self.gpu.peak(recipe) * self.efficiency * recipe.parallel.tensor
        # A small layer takes as long as the host needs to launch its kernels.
        by_layer = [max(flops * targets / flops_per_second, LAUNCH_SECONDS) for flops in layers]
        seconds = [
            sum(by_layer[layer] for chunk in chunks for layer in chunk.layers)
            for chunks in chunks_by_rank(recipe)
        ]
        seconds[-1] += embedding_and_head_flops(recipe) * targets / flops_per_second
        return seconds

    def _average(self, flops_per_target: Callable[..., float]) -> float:
        """Average over steps on one stream and on two."""
        one_stream, two_streams = (
            flops_per_target(self.recipe, one_stream=one_stream) for one_stream in (True, False)
        )
        return two_streams + self.one_stream_share * (one_stream - two_streams)


def estimate_cost(
    recipe: ResolvedRecipe,
    world_size: int,
    *,
    gpu: Gpu,
    gpu_memory_gib: float | None = None,
    efficiency: float = EFFICIENCY,
) -> Estimate:
    """Estimate a recipe on `world_size` GPUs; `Estimate.fits` tells whether it fits them.

    Args:
        recipe: passed `rules.check`, resolved.
        world_size: number of GPUs.
        gpu: kind of GPU.
        gpu_memory_gib: memory of each GPU; that of the kind if None.
        efficiency: fraction of the peak FLOPs that kernels reach.

    Raises:
        RecipeError: the recipe cannot run on this number of processes.
    """
    rules.check_world(recipe, world_size)
    memory_gib = gpu.memory_gib if gpu_memory_gib is None else gpu_memory_gib
    return Estimate(
        resolve_recompute(recipe, world_size, memory_gib=memory_gib),
        world_size,
        gpu,
        memory_gib,
        efficiency,
        one_stream_share(recipe),
    )
