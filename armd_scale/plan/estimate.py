"""A recipe on a number of GPUs: does it run, in how much memory, how fast, and how long."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from armd_scale.config import derived as derive
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.rules import check as rules
from armd_scale.plan.activations import bytes_per_value
from armd_scale.plan.communication import CommunicationVolume, messages_of
from armd_scale.plan.compute import (
    embedding_and_head_flops,
    hardware_flops_per_target,
    layer_hardware_flops,
    model_flops_per_target,
    one_stream_share,
)
from armd_scale.plan.gpus import EFFICIENCY, LAUNCH_SECONDS, Gpu
from armd_scale.plan.memory import (
    RankMemory,
    chunks_by_rank,
    gib,
    memory_by_stage,
)
from armd_scale.plan.recompute import resolve_recompute

UPDATE_BYTES = 40
"""Memory traffic of AdamW per weight of a rank's share: state and temporaries, read and written."""
SECONDS_PER_DAY = 86400


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step on the rank that sets the pace, and where they go."""

    compute: float
    """Kernels, at the assumed share of the peak."""
    tensor: float
    """Messages among tensor-parallel ranks; nothing overlaps them."""
    pipeline: float
    """Messages between stages."""
    bubble: float
    """Waiting for the pipeline to fill and drain, and for costlier stages."""
    data: float
    """Gradients and weights among data-parallel ranks, after the last micro-batch."""
    update: float
    """AdamW."""

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Estimate:
    """What a recipe costs on `world_size` GPUs."""

    recipe: ResolvedRecipe
    world_size: int
    gpu: Gpu
    gpu_memory_gib: float
    efficiency: float
    one_stream_share: float
    """Share of the run's steps that run the query stream alone."""

    @property
    def replicas(self) -> int:
        """Size of data parallelism."""
        return derive.data_parallel_size(self.recipe.parallel, self.world_size)

    @property
    def micro_batches(self) -> int:
        """Of one rank in a step."""
        return derive.accumulation_steps(self.recipe.train, self.replicas)

    @cached_property
    def memory(self) -> list[RankMemory]:
        """Of a rank of every pipeline stage."""
        return memory_by_stage(self.recipe, self.world_size)

    @property
    def peak_stage(self) -> int:
        """The pipeline stage whose ranks hold the most."""
        return max(range(len(self.memory)), key=lambda rank: self.memory[rank].total)

    @property
    def fits(self) -> bool:
        """Whether every rank's memory suffices."""
        return gib(self.memory[self.peak_stage].total) <= self.gpu_memory_gib

    def messages(self, *, one_stream: bool) -> list[CommunicationVolume]:
        """Of a rank of every pipeline stage."""
        return [
            messages_of(self.recipe, chunks, replicas=self.replicas, one_stream=one_stream)
            for chunks in chunks_by_rank(self.recipe)
        ]

    def step_time(self, *, one_stream: bool) -> StepTime:
        """Where a step's time goes."""
        parallel = self.recipe.parallel
        sent = self.messages(one_stream=one_stream)
        compute = self._compute_seconds(one_stream)
        among = self.gpu.link(parallel.tensor)
        between = self.gpu.link(self.world_size)
        passes = [
            seconds + one.tensor / among + one.pipeline / between
            for seconds, one in zip(compute, sent, strict=True)
        ]
        slow = max(range(len(passes)), key=passes.__getitem__)
        fill = (sum(passes) - passes[slow]) / parallel.virtual_pipeline
        share = self._parameters() / (self.replicas if self.recipe.optim.zero_stage else 1)
        return StepTime(
            compute=self.micro_batches * compute[slow],
            tensor=self.micro_batches * sent[slow].tensor / among,
            pipeline=self.micro_batches * sent[slow].pipeline / between,
            bubble=fill,
            data=max(one.data for one in sent) / self.gpu.link(parallel.tensor * self.replicas),
            update=share * UPDATE_BYTES / self.gpu.memory_bytes_per_second,
        )

    @cached_property
    def step_seconds(self) -> float:
        """A step of the run, on average over its orders."""
        both = self.step_time(one_stream=False).total
        if self.one_stream_share == 0:
            return both
        one = self.step_time(one_stream=True).total
        return both + self.one_stream_share * (one - both)

    @property
    def tokens_per_second(self) -> float:
        """Targets per second of all GPUs together."""
        return derive.tokens_per_step(self.recipe) / self.step_seconds

    @property
    def days(self) -> float:
        """The whole run, without evaluations, checkpoints and restarts."""
        return self.recipe.train.steps * self.step_seconds / SECONDS_PER_DAY

    def model_flops(self) -> float:
        """Model FLOPs of a step, on average over the run's orders."""
        return derive.tokens_per_step(self.recipe) * self._average(model_flops_per_target)

    def hardware_flops(self) -> float:
        """Hardware FLOPs of a step, on average over the run's orders."""
        return derive.tokens_per_step(self.recipe) * self._average(hardware_flops_per_target)

    @property
    def recomputed_share(self) -> float:
        """Share of a two-stream step's operations that `train.recompute` adds."""
        plain = replace(self.recipe, train=replace(self.recipe.train, recompute="none"))
        least, all_of_it = (
            hardware_flops_per_target(recipe, one_stream=False) for recipe in (plain, self.recipe)
        )
        return 1 - least / all_of_it

    def utilization(self, flops: float) -> float:
        """Utilisation: operations of a step as a share of what all GPUs could do meanwhile."""
        return flops / (self.step_seconds * self.gpu.peak(self.recipe) * self.world_size)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        recipe, step = self.recipe, self.step_time(one_stream=False)
        sent = max(self.messages(one_stream=False), key=lambda one: one.tensor + one.pipeline)
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
            "parameters": derive.num_parameters(recipe.model, recipe.model.vocab_size),
            "memory_gib_by_stage": [
                {key: gib(value) for key, value in asdict(one).items()} | {"total": gib(one.total)}
                for one in self.memory
            ],
            "model_flops_per_step": self.model_flops(),
            "hardware_flops_per_step": self.hardware_flops(),
            "bytes_sent_per_step": {
                "tensor": sent.tensor * self.micro_batches,
                "pipeline": sent.pipeline * self.micro_batches,
                "data": sent.data,
            },
            "step_seconds_two_streams": asdict(step) | {"total": step.total},
            "bubble_fraction": step.bubble / step.total,
            "one_stream_share_of_steps": self.one_stream_share,
            "step_seconds": self.step_seconds,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.utilization(self.model_flops()),
            "hfu": self.utilization(self.hardware_flops()),
            "days": self.days,
        }

    def _parameters(self) -> float:
        """Of the rank that holds the most."""
        split = self.replicas if self.recipe.optim.zero_stage == 3 else 1
        return max(one.weights for one in self.memory) * split / bytes_per_value(self.recipe)

    def _compute_seconds(self, one_stream: bool) -> list[float]:
        """Forward and backward of one micro-batch on a rank of every pipeline stage."""
        recipe = self.recipe
        layers = layer_hardware_flops(recipe, one_stream=one_stream)
        targets = recipe.data.seq_length * recipe.train.micro_batch
        rate = self.gpu.peak(recipe) * self.efficiency * recipe.parallel.tensor
        by_layer = [max(flops * targets / rate, LAUNCH_SECONDS) for flops in layers]
        seconds = [
            sum(by_layer[layer] for chunk in chunks for layer in chunk.layers)
            for chunks in chunks_by_rank(recipe)
        ]
        seconds[-1] += embedding_and_head_flops(recipe) * targets / rate
        return seconds

    def _average(self, per_target) -> float:
        one, both = (per_target(self.recipe, one_stream=kind) for kind in (True, False))
        return both + self.one_stream_share * (one - both)


def plan_for(
    recipe: ResolvedRecipe,
    world_size: int,
    *,
    gpu: Gpu,
    gpu_memory_gib: float | None = None,
    efficiency: float = EFFICIENCY,
) -> Estimate:
    """The plan of a recipe that passed `rules.check`.

    Raises:
        RecipeError: the recipe cannot run on so many processes; whether it fits is `Plan.fits`.
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
