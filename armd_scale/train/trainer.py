"""The trainer: builds a run from its recipe, trains it, rolls it back, saves and evaluates it."""

import gc
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.cluster.launch_log import record_launch
from armd_scale.config.derived import accumulation_steps
from armd_scale.config.load import dump_recipe
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.schema import Recipe
from armd_scale.errors import TrainingError
from armd_scale.eval.likelihood import Likelihood
from armd_scale.fault.peer_monitor import monitor_peers
from armd_scale.fault.stop_signal import StopRequest, defer_interrupts
from armd_scale.fault.watchdog import Watchdog
from armd_scale.log import get_logger
from armd_scale.metrics.writer import open_writers
from armd_scale.optim.lr_schedule import learning_rate_at
from armd_scale.parallel.determinism import enable_determinism
from armd_scale.parallel.environment import DistributedEnv, read_environment
from armd_scale.parallel.process_groups import process_groups
from armd_scale.train.build import (
    build_callbacks,
    build_data_loader,
    build_model,
    build_optimizer,
)
from armd_scale.train.callbacks.base import Callback
from armd_scale.train.changes import log_changes
from armd_scale.train.context import TrainingContext
from armd_scale.train.data import training_prefixes
from armd_scale.train.inputs import RunInputs, open_inputs, resolve_recipe
from armd_scale.train.loss_guard import (
    RollbackRequest,
    find_spike,
    record_step_outcome,
    state_after_rollback,
)
from armd_scale.train.model_files import read_model_files
from armd_scale.train.resume import (
    check_same_on_all_ranks,
    latest_checkpoint_before,
    load_progress,
    refuse_checkpoint_as_run_folder,
    set_aside_later_checkpoints,
)
from armd_scale.train.run_folder import locked_run_folder, log_setup, run_logs
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult, StepRunner
from armd_scale.train.teacher import Teacher, load_teacher


class Trainer:
    """A training run of this process, one rank of the job.

        with Trainer.from_recipe(load_recipe("recipes/demo_cpu.yaml")) as trainer:
            trainer.fit()

    Every rank of a job makes a trainer and calls the same methods in the same order: all of them
    are collective. `fit` closes the trainer if it raises an error; otherwise use it as a context
    manager, or call `close`, before the process makes another one.

    Attributes:
        recipe: the resolved recipe.
        state: how far the run is.
        callbacks: what `fit` calls after every step.
    """

    recipe: ResolvedRecipe
    state: TrainState
    callbacks: list[Callback]
    _stack: ExitStack

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        env: DistributedEnv | None = None,
        *,
        groups: ProcessGroupCollection | None = None,
        callbacks: Sequence[Callback] = (),
        stop: StopRequest | None = None,
    ) -> "Trainer":
        """Build a run: from its newest checkpoint, from other weights, or from nothing.

        Builds in order: the checkpoints to start from, the data, the process groups, the network,
        the optimizer and the callbacks. What is wrong with the recipe, the data or a checkpoint is
        found before anything is written to the run folder but its lock.

        Args:
            recipe: from `load_recipe`.
            env: this process's rank and device; None: read what torchrun or Slurm set, or be a job
                of one process.
            groups: process groups of the recipe's layout, if this process has already joined them;
                they are then left open.
            callbacks: called after the built-in ones. A rollback keeps them.
            stop: signals to obey while other ranks of the job have not started yet.

        Raises:
            ArmdError: the recipe, the data or a checkpoint cannot be used.
            SystemExit: another rank of the job was lost, or a signal came before all had started,
                which has been logged.
        """
        environment = env or read_environment()
        resolved = resolve_recipe(recipe, environment)
        # If anything below fails, the stack closes what is open, in reverse order.
        with ExitStack() as stack:
            refuse_checkpoint_as_run_folder(resolved)
            # Locked before a checkpoint is chosen: another job may be about to save a newer one.
            lock = stack.enter_context(locked_run_folder(resolved, environment))
            inputs = open_inputs(resolved)
            events = stack.enter_context(run_logs(resolved, environment))
            # The event before the log line: what lies between them and the sign of life before, in
            # either file, is downtime.
            events.write("start", 0, processes=environment.world_size)
            get_logger(__name__).info(
                "starting %s on %d processes", resolved.run.name, environment.world_size
            )
            if resolved.train.deterministic:
                # Before any CUDA work: cuBLAS reads its workspace setting when it is initialized.
                get_logger(__name__).info("%s", enable_determinism(environment.device))
            if groups is None:
                joined = process_groups(
                    environment,
                    resolved.parallel,
                    stop_signal=lambda: None if stop is None else stop.signal_number,
                )
                groups = stack.enter_context(joined)
            # Now all ranks have opened what they resume from: they met to make the groups.
            prefixes = training_prefixes(resolved)
            check_same_on_all_ranks(inputs.resumed, prefixes, environment.device)
            if environment.is_rank0 and inputs.resumed is not None:
                set_aside_later_checkpoints(resolved, inputs.resumed)
                log_changes(inputs.changes, inputs.resumed)
            watchdog = Watchdog(
                Path(resolved.run.folder),
                rank=environment.rank,
                hang_timeout_seconds=resolved.train.hang_timeout_seconds,
            )
            context = TrainingContext(resolved, environment, groups, watchdog, events, lock)
            with monitor_peers(environment, watchdog=watchdog):
                trainer = cls(context, inputs, callbacks, stack=stack)
            # Success: everything stays open until the trainer is closed or garbage-collected.
            trainer._stack = stack.pop_all()
            weakref.finalize(trainer, trainer._stack.close)
        return trainer

    def __init__(
        self,
        context: TrainingContext,
        inputs: RunInputs,
        callbacks: Sequence[Callback],
        *,
        stack: ExitStack,
    ) -> None:
        """Internal; use `from_recipe`."""
        self.recipe = context.recipe
        self._context, self._samples, self._eval_data = context, inputs.samples, inputs.eval_data
        self._extra_callbacks = callbacks
        # What a rollback closes and builds anew; the rest stays open until the trainer is closed.
        self._rebuilt = stack.enter_context(ExitStack())
        log_setup(context)
        self._teacher: Teacher | None = load_teacher(
            context.recipe, inputs.teacher, groups=context.groups, device=context.device
        )
        self._build(inputs.resumed, inputs.weights)

    def fit(self, stop: StopRequest | None = None) -> int | None:
        """Train until the last step of the recipe, or until a signal stops the run.

        Steps, evaluations and checkpoints go to the run folder. A signal lets the present step
        finish; its state is saved, so that the same recipe resumes from it.

        Args:
            stop: signals to obey, if the caller already listens for them. None: listen while
                training, which only the main thread of a process can.

        Returns:
            The number of the signal that stopped the run; None if it is complete.

        Raises:
            ArmdError: the loss diverged, or data or checkpoints failed. The trainer is closed.
            SystemExit: another rank of the job was lost, which has been logged.
        """
        context = self._context
        try:
            with ExitStack() as stack:
                stop = stop or stack.enter_context(StopRequest())
                stack.enter_context(monitor_peers(context.environment, watchdog=context.watchdog))
                record_launch(Path(self.recipe.run.folder), context.environment)
                stopped_by = self._train_with_rollbacks(stop)
        except BaseException as error:
            context.events.write("error", self.state.step, reason=str(error) or repr(error))
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        if stopped_by is None:
            context.events.write("end", self.state.step)
        else:
            context.events.write("stop", self.state.step, signal=stopped_by)
        return stopped_by

    @property
    def saved_step(self) -> int:
        """Step of the newest complete checkpoint; without one, the step that the run began at."""
        return self._checkpointer.saved_step

    def train_step(self) -> StepResult:
        """Take one optimizer step and advance `state`; callbacks are not called.

        Raises:
            RollbackRequest: too many steps in a row were bad; `fit` handles it.
        """
        recipe, context = self.recipe, self._context
        start_time = time.perf_counter()
        context.watchdog.set_phase("wait_for_data", self.state.step)
        num_micro_batches = accumulation_steps(recipe.train, context.groups.dp.size())
        batches = [next(self._batches).to(context.device) for _ in range(num_micro_batches)]
        result = self._step_runner.run(
            batches,
            learning_rate=learning_rate_at(recipe.optim, recipe.train, self.state.step),
            start_time=start_time,
            check_loss=partial(find_spike, self.state, guard=recipe.train.loss_guard),
        )
        if self._average is not None and result.skip_reason is None:
            self._average.update()
        # The state advances after a skipped step too, so that the next step takes other samples.
        state = self.state.advance(samples=recipe.train.global_batch, tokens=result.tokens)
        self.state = record_step_outcome(
            state, result.loss, result.skip_reason, recipe.train.loss_guard
        )
        return result

    def evaluate(self) -> list[Likelihood]:
        """Evaluate the present weights on `data.valid` under every order of `eval.orders`.

        Raises:
            TrainingError: the recipe evaluates nothing.
        """
        if self._eval_data is None:
            raise TrainingError(
                "evaluation requires data.valid and eval.every_steps > 0 (got data.valid="
                f"{self.recipe.data.valid}, eval.every_steps={self.recipe.eval.every_steps}): set "
                "both in the recipe"
            )
        return self._evaluator.evaluate(self.state)

    def save(self) -> Path:
        """Save a checkpoint of the present state and return its folder when it is complete.

        Raises:
            CheckpointError: it cannot be written.
        """
        return self._checkpointer.save(self.state, wait=True)

    def close(self) -> None:
        """Close files and data workers and leave the process groups; the trainer is then unusable.

        A background save is abandoned: call `save` before, or end with `fit`, which waits for it.
        """
        self._stack.close()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _train_with_rollbacks(self, stop: StopRequest) -> int | None:
        while True:
            try:
                return self._train(stop)
            except RollbackRequest as error:
                # The frames in its traceback refer to the network and the optimizer, of which there
                # would be two in memory while the new ones are built.
                request = error.with_traceback(None)
            self._roll_back(request)

    def _train(self, stop: StopRequest) -> int | None:
        """The training loop."""
        watchdog, stopped_by = self._context.watchdog, None
        while self.state.step < self.recipe.train.steps and stopped_by is None:
            result = self.train_step()
            if self._context.lock is not None:
                self._context.lock.check()
            # All ranks pass the same phases in the same order: the rank with the lowest phase index
            # is the one that hangs.
            watchdog.set_phase("callbacks")
            for callback in self.callbacks:
                callback.on_step_end(self.state, result)
            watchdog.set_phase("stop_check")
            # A collective: a signal may have reached one rank only, and all must stop at one step.
            stopped_by = stop.any_rank(self._context.device)
        # From here on all ranks are on their way to the last save, some perhaps not in it yet.
        with defer_interrupts():
            for callback in self.callbacks:
                callback.on_train_end(self.state)
        return stopped_by

    def _roll_back(self, request: RollbackRequest) -> None:
        """Go back to the weights of an earlier checkpoint, with the counters of the request.

        A rollback is a resume: everything is built anew by the same code.

        Raises:
            TrainingError: there is no such checkpoint, or the run has rolled back too often.
        """
        self.state = request.state
        self._release()
        checkpoint = latest_checkpoint_before(self.recipe, request.last_good_step)
        saved = None if checkpoint is None else load_progress(checkpoint)
        state = state_after_rollback(request, saved, self.recipe.train.loss_guard)
        assert checkpoint is not None
        assert saved is not None
        get_logger(__name__).warning(
            "step %d: %s; rolling back to the weights of step %d",
            state.step,
            request.skip_reason,
            saved.step,
        )
        self._context.events.write(
            "rollback",
            state.step,
            reason=request.skip_reason,
            checkpoint=checkpoint.folder.name,
            checkpoint_step=saved.step,
        )
        self._build(checkpoint, checkpoint, state=state)

    def _release(self) -> None:
        """Close and free what `_build` builds, before it builds it again."""
        self._rebuilt.close()
        del self._step_runner, self._average, self._batches, self.callbacks
        del self._evaluator, self._checkpointer
        # DeepSpeed's engine is in reference cycles, and its memory is needed for the next one.
        gc.collect()
        torch.cuda.empty_cache()

    def _build(
        self,
        resumed: Checkpoint | None,
        weights: Checkpoint | None,
        *,
        state: TrainState | None = None,
    ) -> None:
        """Build network, optimizer, data loader and callbacks.

        Args:
            resumed: the checkpoint to resume from.
            weights: the checkpoint whose weights to start from.
            state: counters to continue with instead of those of `resumed`, after a rollback.
        """
        recipe, context, groups = self.recipe, self._context, self._context.groups
        network = build_model(recipe, weights, groups=groups, device=context.device)
        engine, self._average, saved_state = build_optimizer(recipe, network, resumed)
        self.state = state or saved_state
        if resumed is not None:
            context.events.write("resume", saved_state.step, checkpoint=str(resumed.folder))
        self._step_runner = StepRunner(engine, teacher=self._teacher, watchdog=context.watchdog)
        # Closed in reverse order: callbacks first, which may still write metrics.
        keep_open = self._rebuilt.enter_context
        writers = []
        if context.environment.is_rank0:
            (Path(recipe.run.folder) / "recipe.yaml").write_text(dump_recipe(recipe))
            writers = open_writers(recipe, last_step=self.state.step)
        for writer in writers:
            keep_open(closing(writer))
        loader = build_data_loader(recipe, self._samples, self.state, groups=groups)
        self._batches = keep_open(closing(iter(loader)))
        built_in = build_callbacks(
            context,
            engine,
            self._average,
            state=self.state,
            writers=writers,
            eval_data=self._eval_data,
            files=read_model_files(recipe, weights),
        )
        for callback in built_in:
            keep_open(closing(callback))
        self._evaluator, self._checkpointer = built_in.evaluator, built_in.checkpointer
        self.callbacks = [*built_in, *self._extra_callbacks]
