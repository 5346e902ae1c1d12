"""AdamW under DeepSpeed's ZeRO, fed by megatron-core's schedules.

megatron-core's schedules call autograd themselves, while DeepSpeed expects `engine.backward`. Two
ways lead from one to the other:

* once per step (ZeRO 1, and 2 with a pipeline): inside DeepSpeed's `coalesce_grad_reduction` every
  backward pass leaves its gradient on the parameter; the exit reduces the sum once.
* once per micro-batch (ZeRO 2 and 3 without a pipeline): each backward pass reduces its gradients
  and every rank keeps its partition only, so that no rank ever holds all of them. That saves the
  memory that these stages promise, at the price of one reduction per micro-batch.

`config.derived.reduces_every_micro_batch` decides. Without ZeRO (stage 0) DeepSpeed all-reduces
whole gradients once per step.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.utils import clip_grad_norm_
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from armd_scale.config.derived import reduces_every_micro_batch
from armd_scale.config.schema import OptimConfig
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.optim.deepspeed_config import configure_deepspeed, deepspeed_config
from armd_scale.optim.deepspeed_mpu import Mpu
from armd_scale.optim.param_groups import parameter_groups
from armd_scale.parallel.tensor.grad_reduce import (
    all_reduce_partial_grads,
    register_partial_grad_hooks,
)

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of AdamW's moments in its state."""


@dataclass(frozen=True)
class OptimizerState:
    """AdamW's state, gathered over data parallel ranks: float32 tensors by parameter name.

    Independent of ZeRO stage and data parallel size, so that any layout continues from any other.
    Tensor and pipeline parallel ranks hold their own parts.
    """

    num_updates: int
    """Updates made so far; AdamW's bias correction depends on it."""
    master: dict[str, Tensor]
    """The weights that the optimizer updates."""
    moments: dict[str, dict[str, Tensor]]
    """First and second moment: by moment name, then parameter name."""

    def weights(self, network: ModelChunks) -> dict[str, Tensor]:
        """Return full weights in the network's own dtype, also if ZeRO 3 has partitioned it."""
        return {
            name: self.master[name].to(p.dtype) for name, p in network.parameters_by_name().items()
        }


class ZeroEngine:
    """A network with its optimizer, partitioned over data parallel ranks by a ZeRO stage.

    Args:
        network: this rank's model chunks, on their device.
        optim: the recipe's optim section.
        precision: "fp32" or "bf16": dtype of the weights in forward and backward. In bf16 the
            optimizer keeps a float32 master copy.
        groups: the process groups of the layout.
    """

    def __init__(
        self,
        network: ModelChunks,
        optim: OptimConfig,
        *,
        precision: str,
        groups: ProcessGroupCollection,
    ) -> None:
        configure_deepspeed()
        adam = torch.optim.AdamW(
            parameter_groups(network, optim), lr=optim.lr, betas=optim.betas, eps=optim.eps
        )
        self._stage = optim.zero_stage
        self._clip_grad = optim.clip_grad or math.inf
        engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=adam,
            mpu=Mpu(groups),
            dist_init_required=False,
            config=deepspeed_config(
                optim,
                precision=precision,
                groups=groups,
                num_parameters=sum(p.numel() for p in network.parameters()),
            ),
        )
        self._engine: Any = engine  # DeepSpeed's annotations lack most of its attributes
        self.network = network
        self._parameters = network.parameters_by_name()
        self._groups = groups
        self._reduces_every_micro_batch = reduces_every_micro_batch(
            optim, pipeline_size=groups.pp.size()
        )
        if self._reduces_every_micro_batch:
            # After a backward pass no whole gradient is left that could be completed.
            register_partial_grad_hooks(self._parameters, groups)
            if self._stage == 2:
                # By default DeepSpeed keeps whole gradients of all parameters that overlap this
                # rank's partition, unless their dtype differs from that of accumulation. Compact
                # buffers are exactly as large as the partition.
                self._engine.optimizer._use_compact_grad_partition_buffer = lambda group: True
        self._skip = False
        self._init_optimizer_state(num_updates=0)

    def __call__(self, *inputs: Any) -> Any:
        """Run the network's forward pass.

        Through the engine, whose hooks gather and partition parameters. At stage 0 the engine is
        bypassed, because there it rejects backward passes that it did not start itself.
        """
        return self.network(*inputs) if self._stage == 0 else self._engine(*inputs)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Accumulate the gradients of all backward passes inside; the exit completes them.

        Completing means: sums over ranks that hold parts of one gradient (`grad_reduce`), and the
        mean over data parallel ranks.
        """
        if self._reduces_every_micro_batch:
            # With the boundary off, backward passes add to this rank's partition of the gradients;
            # setting it tells DeepSpeed that the sum is complete.
            self._engine.set_gradient_accumulation_boundary(False)
            yield
            self._engine.set_gradient_accumulation_boundary(True)
            self._engine.optimizer.finalize_gradient_accumulation_boundary()
            self._poison_reduced_grads()
            return
        coalesce = self._engine.coalesce_grad_reduction if self._stage > 0 else nullcontext
        with coalesce():
            yield
            # Before the exit, while whole gradients are on the parameters: it reduces them.
            self._poison_grads()
            all_reduce_partial_grads(
                self._parameters, tied=self.network.tied_across_stages, groups=self._groups
            )
        if self._stage == 0:
            self._engine.allreduce_gradients()

    def skip_next_step(self) -> None:
        """Make the next `step` a no-op. Call inside `accumulate`, after the backward passes.

        DeepSpeed has no call for this that works on all stages. But every stage checks the global
        gradient norm and, if it is not finite, clears the gradients and leaves weights and moments
        alone. So one gradient is set to NaN. All ranks must call it, but a single rank would do:
        the norm is reduced over all of them.
        """
        self._skip = True

    def _poison_grads(self) -> None:
        """Set a gradient to NaN while whole gradients are on the parameters."""
        if self._skip:
            grad = next(iter(self._parameters.values())).grad
            assert grad is not None, "every parameter takes part in every step"
            grad.fill_(math.nan)
        self._skip = False

    def _poison_reduced_grads(self) -> None:
        """Set this rank's partition of gradients to NaN, after backward passes have reduced it."""
        optimizer = self._engine.optimizer
        if self._skip and self._stage == 3:
            optimizer.grad_partitions_flat_buffer.fill_(math.nan)
        elif self._skip:
            grads_by_group = optimizer.averaged_gradients.values()
            next(grad for grads in grads_by_group for grad in grads).fill_(math.nan)
        self._skip = False

    def step(self, learning_rate: float) -> float:
        """Clip the gradients, update the weights, and clear the gradients.

        Args:
            learning_rate: of this step.

        Returns:
            The global gradient norm before clipping. If it is not finite, weights and moments are
            unchanged.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._stage > 0:
            self._engine.step()
            has_overflow = self._engine.optimizer.overflow
            if has_overflow and self._stage == 3:
                # The next backward passes overwrite this buffer except its padding, where NaN
                # would remain and count in every later norm.
                self._engine.optimizer.grad_partitions_flat_buffer.zero_()
            return math.inf if has_overflow else float(self._engine.get_global_grad_norm())
        # Stage 0: the engine would clip as well (disabled in its config), but not return the norm.
        norm = clip_grad_norm_(self.network.parameters(), self._clip_grad, mpu=self._engine.mpu)
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.optimizer.zero_grad()
        return float(norm)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and full values of all parameters.

        ZeRO 3 gathers them one by one, so all ranks must iterate to the end (collective).
        """
        for name, parameter in self._parameters.items():
            yield name, self._get(parameter, None) if self._stage == 3 else parameter.detach()

    def export_state(
        self, to_host: Callable[[str, str, Tensor], Tensor] = lambda _, __, tensor: tensor
    ) -> OptimizerState:
        """Return the optimizer's state as full tensors (collective over data parallel ranks).

        Args:
            to_host: maps section ("master" or a moment), name and full tensor to what is kept of
                it. Called before the next tensor is gathered, so that a copy to host memory, or a
                slice, bounds the device memory that the export needs.
        """
        named = self._parameters.items()

        def section(key: str | None) -> dict[str, Tensor]:
            return {name: to_host(key or "master", name, self._get(p, key)) for name, p in named}

        moments = {key: section(key) for key in MOMENTS}
        return OptimizerState(
            num_updates=self._num_updates(), master=section(None), moments=moments
        )

    def weight_tensors(self) -> Iterator[Tensor]:
        """Yield this rank's weights: the parameters, and under ZeRO 3 their local partitions."""
        for parameter in self._parameters.values():
            yield parameter
            if self._stage == 3:
                yield getattr(parameter, "ds_tensor")  # noqa: B009 - set by DeepSpeed

    def optimizer_tensors(self) -> Iterator[Tensor]:
        """Yield AdamW's tensors on this rank: the weights that it updates, and their moments."""
        for tensor in self._updated_tensors():
            yield tensor
            yield from (self._adam.state[tensor][key] for key in MOMENTS)

    def reduction_buffers(self) -> Iterator[Tensor]:
        """Yield the buffers in which gradients are collected to be reduced together."""
        for bucket in getattr(self._engine.optimizer, "ipg_buckets", {}).values():
            yield from bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]

    def import_state(self, state: OptimizerState) -> None:
        """Continue from a state that any ZeRO stage or data parallel size has exported."""
        self._init_optimizer_state(state.num_updates)
        for name, parameter in self._parameters.items():
            self._set(parameter, state.master[name], None)
            for key in MOMENTS:
                self._set(parameter, state.moments[key][name], key)

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """The AdamW that DeepSpeed calls; from stage 1 on, DeepSpeed's optimizer wraps it."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _updated_tensors(self) -> list[Tensor]:
        """Return what AdamW updates: the parameters, or this rank's flat float32 partitions."""
        zero_optimizer = self._engine.optimizer
        if self._stage == 0:
            return [p for group in self._adam.param_groups for p in group["params"]]
        if self._stage == 3:
            return zero_optimizer.fp32_partitioned_groups_flat
        return zero_optimizer.single_partition_of_fp32_groups

    def _num_updates(self) -> int:
        return int(self._adam.state[self._updated_tensors()[0]]["step"])

    def _init_optimizer_state(self, num_updates: int) -> None:
        """Create AdamW's state, with moments of zero, before the first update.

        torch creates it lazily in the first update. But DeepSpeed links parameters to slices of
        their moments (which `safe_get_full_optimizer_state` follows) once, right after the first
        update of the first parameter group, when the other groups have no moments yet. Their
        export would fail. So all moments exist beforehand, and the link is made here.
        """
        for tensor in self._updated_tensors():
            self._adam.state[tensor] = {
                "step": torch.tensor(float(num_updates)),
                **{key: torch.zeros_like(tensor) for key in MOMENTS},
            }
        link_states = getattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link_states is not None:
            # The moments may have been linked before (import after export): link the new ones.
            self._engine.optimizer._hp_optimizer_states_linked = False
            link_states()

    def _get(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """Return a full tensor: the master weight if `key` is None, else a moment (collective)."""
        if self._stage == 0:
            return parameter.detach() if key is None else self._adam.state[parameter][key]
        if key is None:
            value = safe_get_full_fp32_param(parameter)
        else:
            value = safe_get_full_optimizer_state(parameter, key)
        assert value is not None, "every parameter belongs to the optimizer"
        return value

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Store a full tensor: each rank copies its partition of it."""
        if self._stage == 0:
            self._get(parameter, key).copy_(value)
        elif key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
