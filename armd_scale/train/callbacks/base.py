"""What a run does every so many steps: log and evaluate here, save in `saving`."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist

from armd_scale.eval.likelihood import evaluate
from armd_scale.log import ProgressBar, get_logger
from armd_scale.metrics.writer import MetricsWriter
from armd_scale.optim.lr_schedule import learning_rate_at
from armd_scale.plan.compute import (
    can_run_one_stream,
    hardware_flops_per_target,
    model_flops_per_target,
)
from armd_scale.train.build import TrainerComponents, make_schedule_chunks
from armd_scale.train.data import EvalData
from armd_scale.train.device_metrics import peak_flops, peak_memory_gib
from armd_scale.train.pipeline_evaluator import PipelineEvaluator
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult


@runtime_checkable
class Callback(Protocol):
    """Something to do after steps."""

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Called after every step."""
        ...

    def on_train_end(self, state: TrainState) -> None:
        """Called once when the loop ends with sound weights."""
        ...


def is_due(step: int, every_steps: int) -> bool:
    """Whether a step is one of every `every_steps`; 0 means never."""
    return every_steps > 0 and step % every_steps == 0


class ProgressLogger:
    """A progress line for people, metrics for files."""

    def __init__(
        self, parts: TrainerComponents, writers: Sequence[MetricsWriter], *, track: ProgressBar
    ) -> None:
        self._parts, self._writers, self._track = parts, writers, track
        self._reset_window()
        recipe = parts.recipe
        self._model_flops, self._hardware_flops = (
            [count(recipe, one_stream=one) for one in (False, True)]
            for count in (model_flops_per_target, hardware_flops_per_target)
        )
        self._peak = peak_flops(parts.device, parts.dtype) * dist.get_world_size()

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Advances the progress; writes a line of metrics when one is due.

        Rates are of the steps since the last line alone: evaluations and saves in between are no
        part of them.
        """
        recipe = self._parts.recipe
        self._local_seconds += result.local_seconds
        self._seconds += result.seconds
        self._tokens += result.tokens
        self._steps += 1
        order = recipe.order.at_step(state.step - 1)
        one_stream = can_run_one_stream(recipe.model, order)
        self._model_flops_done += result.tokens * self._model_flops[one_stream]
        self._hardware_flops_done += result.tokens * self._hardware_flops[one_stream]
        rate = self._tokens / self._seconds
        if self._parts.is_main:
            self._track.advance(note=f"loss {result.loss:.4f}  {rate:,.0f} tokens/s")
        if result.skip_reason is not None:
            self._report_bad_batch(state, result.skip_reason)
            return
        if not is_due(state.step, recipe.log.every_steps):
            return
        line = {
            "step": state.step,
            "loss": result.loss,
            **({} if self._parts.parent is None else {"kl_nats": result.kl}),
            "grad_norm": result.grad_norm,
            "learning_rate": learning_rate_at(recipe.optim, recipe.train, state.step - 1),
            "tokens": state.consumed_tokens,
            "tokens_per_second": rate,
            "step_seconds": self._seconds / self._steps,
            "mfu": self._model_flops_done / self._seconds / self._peak,
            "hfu": self._hardware_flops_done / self._seconds / self._peak,
            "order": str(order),
            "memory_gib": peak_memory_gib(self._parts.device),
            **slowest_rank(self._local_seconds / self._steps, self._parts.device),
        }
        for writer in self._writers:
            writer.write(line)
        self._reset_window()

    def _report_bad_batch(self, state: TrainState, objection: str) -> None:
        last = state.consumed_samples - 1
        first = last + 1 - self._parts.recipe.train.global_batch
        get_logger(__name__).warning(
            "step %d left out: %s on samples %d to %d", state.step, objection, first, last
        )
        for writer in self._writers:
            writer.write({"step": state.step, "left_out": objection, "samples": [first, last]})

    def on_train_end(self, state: TrainState) -> None:
        """The progress line belongs to whoever opened it."""

    def _reset_window(self) -> None:
        self._seconds, self._local_seconds, self._tokens, self._steps = 0.0, 0.0, 0, 0
        self._model_flops_done, self._hardware_flops_done = 0.0, 0.0


def slowest_rank(own_seconds: float, device: torch.device) -> dict[str, float | int]:
    """Seconds a step that processes took for themselves, and who took the most (collective).

    Processes that share a model wait for one another within it, and show up as one.
    """
    mine = torch.tensor([own_seconds], device=device)
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, mine)
    seconds = torch.cat(all_of_them)
    return {
        "own_seconds_mean": float(seconds.mean()),
        "own_seconds_max": float(seconds.max()),
        "slowest_rank": int(seconds.argmax()),
    }


class Evaluator:
    """Likelihood of held-out text under every order that the recipe names."""

    def __init__(
        self, parts: TrainerComponents, writers: Sequence[MetricsWriter], held_out: EvalData | None
    ) -> None:
        self._parts, self._writers, self._held_out = parts, writers, held_out
        self._scorer = PipelineEvaluator(parts.network, make_schedule_chunks(parts.engine))

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Evaluates when it is due, and after the last step."""
        recipe = self._parts.recipe
        every = recipe.eval.every_steps
        last = every > 0 and state.step == recipe.train.steps
        is_bad = result.skip_reason is not None
        if self._held_out is None or is_bad or not (last or is_due(state.step, every)):
            return
        for order in self._held_out.orders:
            self._parts.watchdog.set_phase(f"evaluating {order}", state.step)
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

    def on_train_end(self, state: TrainState) -> None:
        """Nothing is left open."""
