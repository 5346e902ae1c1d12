"""What a run does every so many steps: log, evaluate, save."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch.distributed as dist

from armd_scale.checkpoint.save import save_checkpoint
from armd_scale.eval.likelihood import evaluate
from armd_scale.log import Track, get_logger
from armd_scale.optim.average import WeightAverage
from armd_scale.optim.schedule import learning_rate
from armd_scale.order.curriculum import order_at
from armd_scale.plan.compute import (
    can_run_one_stream,
    hardware_flops_per_target,
    model_flops_per_target,
)
from armd_scale.train.hardware import memory_gib, peak_flops
from armd_scale.train.inputs import HeldOut
from armd_scale.train.metrics import MetricsWriter
from armd_scale.train.parts import Parts
from armd_scale.train.score import Scorer
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult


@runtime_checkable
class Periodic(Protocol):
    """Something to do after steps."""

    def after_step(self, state: TrainState, result: StepResult) -> None:
        """Called after every step."""
        ...

    def finish(self, state: TrainState) -> None:
        """Called once when the loop ends with sound weights."""
        ...


def is_due(step: int, every_steps: int) -> bool:
    """Whether a step is one of every `every_steps`; 0 means never."""
    return every_steps > 0 and step % every_steps == 0


class LogProgress:
    """A progress line for people, metrics for files."""

    def __init__(self, parts: Parts, writers: Sequence[MetricsWriter], *, track: Track) -> None:
        self._parts, self._writers, self._track = parts, writers, track
        self._forget()
        recipe = parts.recipe
        self._model_flops, self._hardware_flops = (
            [count(recipe, one_stream=one) for one in (False, True)]
            for count in (model_flops_per_target, hardware_flops_per_target)
        )
        self._peak = peak_flops(parts.device, parts.dtype) * dist.get_world_size()

    def after_step(self, state: TrainState, result: StepResult) -> None:
        """Advances the progress; writes a line of metrics when one is due.

        Rates are of the steps since the last line alone: evaluations and saves in between are no
        part of them.
        """
        recipe = self._parts.recipe
        self._seconds += result.seconds
        self._tokens += result.tokens
        self._steps += 1
        order = order_at(recipe.order, state.step - 1)
        one_stream = can_run_one_stream(recipe.model, order)
        self._needed += result.tokens * self._model_flops[one_stream]
        self._computed += result.tokens * self._hardware_flops[one_stream]
        rate = self._tokens / self._seconds
        if self._parts.is_main:
            self._track.advance(note=f"loss {result.loss:.4f}  {rate:,.0f} tokens/s")
        if not is_due(state.step, recipe.log.every_steps):
            return
        line = {
            "step": state.step,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": learning_rate(recipe.optim, recipe.train, state.step - 1),
            "tokens": state.consumed_tokens,
            "tokens_per_second": rate,
            "step_seconds": self._seconds / self._steps,
            "mfu": self._needed / self._seconds / self._peak,
            "hfu": self._computed / self._seconds / self._peak,
            "order": str(order),
            "memory_gib": memory_gib(self._parts.device),
        }
        for writer in self._writers:
            writer.write(line)
        self._forget()

    def finish(self, state: TrainState) -> None:
        """The progress line belongs to whoever opened it."""

    def _forget(self) -> None:
        self._seconds, self._tokens, self._steps = 0.0, 0, 0
        self._needed, self._computed = 0.0, 0.0


class Evaluate:
    """Likelihood of held-out text under every order that the recipe names."""

    def __init__(
        self, parts: Parts, writers: Sequence[MetricsWriter], held_out: HeldOut | None
    ) -> None:
        self._parts, self._writers, self._held_out = parts, writers, held_out
        self._scorer = Scorer(parts.network, parts.stages)

    def after_step(self, state: TrainState, result: StepResult) -> None:
        """Evaluates when it is due, and after the last step."""
        recipe = self._parts.recipe
        every = recipe.eval.every_steps
        last = every > 0 and state.step == recipe.train.steps
        if self._held_out is None or not (last or is_due(state.step, every)):
            return
        for order in self._held_out.orders:
            found = evaluate(
                self._scorer,
                self._held_out.windows,
                order,
                samples=recipe.eval.samples,
                seed=recipe.run.seed,
                micro_batch=recipe.train.micro_batch,
                groups=self._parts.groups,
            )
            get_logger(__name__).info(
                "step %d  %s  %.4f nats/token  perplexity %.2f",
                state.step,
                found.order,
                found.nll_nats_per_token,
                found.perplexity,
            )
            for writer in self._writers:
                writer.write(
                    {
                        "step": state.step,
                        "eval_order": found.order,
                        "nll_nats_per_token": found.nll_nats_per_token,
                        "perplexity": found.perplexity,
                    }
                )

    def finish(self, state: TrainState) -> None:
        """Nothing is left open."""


class SaveCheckpoints:
    """Checkpoints at their interval, and one wherever the loop ends."""

    def __init__(
        self,
        parts: Parts,
        start: TrainState,
        *,
        average: WeightAverage | None,
        tokenizer: Path | None,
    ) -> None:
        self._parts, self._average, self._tokenizer = parts, average, tokenizer
        self._saved_step = start.step

    def after_step(self, state: TrainState, result: StepResult) -> None:
        """Saves when it is due."""
        if self._average is not None:
            self._average.update()
        if is_due(state.step, self._parts.recipe.checkpoint.every_steps):
            self._save(state)

    def finish(self, state: TrainState) -> None:
        """Saves what the last checkpoint does not have yet."""
        if self._parts.recipe.checkpoint.every_steps > 0 and state.step != self._saved_step:
            self._save(state)

    def _save(self, state: TrainState) -> None:
        parts = self._parts
        optimizer = parts.engine.export_state()
        sections = {"master": optimizer.master, **optimizer.moments}
        if self._average is not None:
            sections["average"] = self._average.average
        folder = save_checkpoint(
            Path(parts.recipe.run.folder) / "checkpoints",
            step=state.step,
            network=parts.network,
            recipe=parts.recipe,
            state=state.to_json(),
            weights=optimizer.weights(parts.network),
            optimizer=sections,
            tokenizer=self._tokenizer,
            groups=parts.groups,
        )
        self._saved_step = state.step
        get_logger(__name__).info("saved %s", folder)
