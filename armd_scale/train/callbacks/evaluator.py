"""Likelihood of held-out text during training, under the orders of `eval.orders`."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from armd_scale.data.batch import ArmdBatch
from armd_scale.eval.likelihood import Likelihood, evaluate
from armd_scale.log import get_logger
from armd_scale.metrics.writer import MetricsWriter
from armd_scale.model.loss_spec import TrainMicroBatch
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.order.policies import OrderPolicy
from armd_scale.parallel.pipeline.schedule import ScheduledChunk, run_micro_batches
from armd_scale.train.callbacks.base import is_due
from armd_scale.train.context import TrainingContext
from armd_scale.train.data import EvalData
from armd_scale.train.schedule_chunks import make_schedule_chunks
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult


class Evaluator:
    """Callback that evaluates every `eval.every_steps` steps and after the last step.

    Args:
        context: of the run.
        engine: the network in training.
        writers: receive a line for each order.
        eval_data: windows and orders; None: evaluate nothing.
    """

    def __init__(
        self,
        context: TrainingContext,
        engine: ZeroEngine,
        writers: Sequence[MetricsWriter],
        eval_data: EvalData | None,
    ) -> None:
        self._context, self._writers, self._eval_data = context, writers, eval_data
        # Without the teacher, and through the engine: under ZeRO 3 its hooks gather the weights.
        chunks = make_schedule_chunks(engine.network, engine)
        self._network = PipelineEvaluator(engine.network, chunks)

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        """Evaluate when it is due. Not after a skipped step: its weights may be the bad ones."""
        recipe = self._context.recipe
        every = recipe.eval.every_steps
        is_last = every > 0 and state.step == recipe.train.steps
        if result.skip_reason is None and (is_last or is_due(state.step, every)):
            self.evaluate(state)

    def on_train_end(self, state: TrainState) -> None:
        """Do nothing: the last step has been evaluated."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def evaluate(self, state: TrainState) -> list[Likelihood]:
        """Evaluate the present weights under every order and write the results (collective)."""
        if self._eval_data is None:
            return []
        return [self._evaluate(state, order) for order in self._eval_data.orders]

    def _evaluate(self, state: TrainState, order: OrderPolicy) -> Likelihood:
        assert self._eval_data is not None
        context, recipe = self._context, self._context.recipe
        context.watchdog.set_phase(f"evaluation {order}", state.step)
        start = time.perf_counter()
        result = evaluate(
            self._network,
            self._eval_data.windows,
            order,
            samples=recipe.eval.samples,
            seed=recipe.run.seed,
            micro_batch=recipe.train.micro_batch,
            groups=context.groups,
        )
        seconds = time.perf_counter() - start
        context.events.write("evaluation", state.step, order=result.order, seconds=seconds)
        self._report(state, result)
        return result

    def _report(self, state: TrainState, result: Likelihood) -> None:
        get_logger(__name__).info(
            "step %d  %s  %.4f nats/token  perplexity %.2f",
            state.step,
            result.order,
            result.nll_nats_per_token,
            result.perplexity,
        )
        line = {
            "step": state.step,
            "eval_order": result.order,
            "nll_nats_per_token": result.nll_nats_per_token,
            "perplexity": result.perplexity,
        }
        for writer in self._writers:
            writer.write(line)


class PipelineEvaluator(nn.Module):
    """The network in training as a module that returns the nats per target of a batch.

    Every rank of a pipeline gets the output, so that `eval.likelihood.evaluate` needs to know
    nothing of the layout.

    Args:
        network: the model chunks of this rank.
        chunks: the same chunks as the schedule sees them.
    """

    def __init__(self, network: ModelChunks, chunks: Sequence[ScheduledChunk]) -> None:
        super().__init__()
        self.network = network
        self._chunks = chunks

    @torch.no_grad()
    def forward(self, batch: ArmdBatch) -> Float[Tensor, "batch queries"]:
        """Run the pipeline forward and broadcast the output of its last stage."""
        groups = self.network.groups
        num_stages = groups.pp.size()
        # The interleaved schedule requires a multiple of the number of stages; only the first
        # output is used.
        num_micro_batches = num_stages if len(self._chunks) > 1 else 1
        outputs = run_micro_batches(
            self._chunks,
            [TrainMicroBatch(batch)] * num_micro_batches,
            loss_fn=lambda nll, _: (nll.sum(), nll),
            groups=groups,
            forward_only=True,
        )
        if outputs:
            nll = outputs[0]
        else:  # not the last stage
            # The shape and type that the last stage has: the loss is float32 in both precisions.
            nll = batch.labels.new_empty(batch.labels.shape, dtype=torch.float32)
        nll = nll.contiguous()  # gloo and NCCL read the buffer as it lies in memory
        dist.broadcast(nll, group=groups.pp, group_src=num_stages - 1)
        return nll
