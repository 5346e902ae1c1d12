"""AdamW under DeepSpeed's ZeRO: the only module that knows DeepSpeed.

megatron-core's schedules call autograd themselves. DeepSpeed's `coalesce_grad_reduction` lets them:
inside it every backward leaves its gradient on the parameter, and its exit reduces once. From stage
2 on, without a pipeline, each backward shares its gradients out at once instead, so that a process
never holds more than its part: that is what stages 2 and 3 are for, at one reduction a micro-batch.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.utils import clip_grad_norm_
from deepspeed.utils import (
    logger,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from armd_scale.config.derived import REDUCE_BUCKET_SIZE
from armd_scale.config.schema import OptimConfig
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.optim.deepspeed_mpu import Mpu
from armd_scale.optim.param_groups import parameter_groups
from armd_scale.parallel.tensor.grad_reduce import (
    all_reduce_partial_grads,
    register_partial_grad_hooks,
)

MOMENTS = ("exp_avg", "exp_avg_sq")
logger.setLevel(logging.WARNING)
# DeepSpeed would compile a shared-memory reduction for CPU ranks at first use, under a lock that a
# killed build leaves behind, for which every later run waits. gloo does without it.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class OptimizerState:
    """What AdamW remembers, whole along data parallelism: float32 tensors by parameter name."""

    steps: int
    """Updates made so far."""
    master: dict[str, Tensor]
    """The weights as the optimizer keeps them."""
    moments: dict[str, dict[str, Tensor]]
    """First and second moment, by moment name, then parameter name."""

    def weights(self, network: ModelChunks) -> dict[str, Tensor]:
        """Whole weights in the network's own type, also where ZeRO 3 has split its parameters."""
        return {
            name: self.master[name].to(p.dtype) for name, p in network.parameters_by_name().items()
        }


class ZeroEngine:
    """A network with its optimizer, split over the data-parallel group as the ZeRO stage says.

    Args:
        network: this process's parts of the network, on their device.
        optim: the recipe's optim section.
        precision: "fp32" or "bf16": the type of the weights in forward and backward.
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
            config=_deepspeed_config(
                optim,
                precision=precision,
                groups=groups,
                num_parameters=sum(p.numel() for p in network.parameters()),
            ),
        )
        self._engine: Any = engine  # DeepSpeed's own annotations name neither half of what it is
        self.network = network
        self._parameters = network.parameters_by_name()
        self._groups = groups
        # Stages of a pipeline reach their gradients at different times, so there they wait.
        self._reduces_at_once = (
            self._stage >= 2 and groups.pp.size() == 1 and optim.offload == "none"
        )
        if self._reduces_at_once:
            register_partial_grad_hooks(self._parameters, groups)
        if self._reduces_at_once and self._stage == 2:
            # Else DeepSpeed keeps all of every gradient that its partition has a part of.
            self._engine.optimizer._use_compact_grad_partition_buffer = lambda group: True
        self._skip = False
        self._init_optimizer_state(num_updates=0)

    def __call__(self, *inputs: Any) -> Any:
        """The network's forward.

        Through the engine, whose hooks ZeRO needs; at stage 0 around it, because there the engine
        refuses any backward pass that it does not start itself.
        """
        return self.network(*inputs) if self._stage == 0 else self._engine(*inputs)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Backward passes inside add up; the exit completes and averages the gradients."""
        if self._reduces_at_once:
            self._engine.set_gradient_accumulation_boundary(False)
            yield
            self._engine.set_gradient_accumulation_boundary(True)
            self._engine.optimizer.finalize_gradient_accumulation_boundary()
            self._poison_reduced_grads()
            return
        coalesce = self._engine.coalesce_grad_reduction if self._stage > 0 else nullcontext
        with coalesce():
            yield
            self._poison_grads()
            all_reduce_partial_grads(
                self._parameters, tied=self.network.tied_across_stages, groups=self._groups
            )
        if self._stage == 0:
            self._engine.allreduce_gradients()

    def skip_next_step(self) -> None:
        """Has the next `step` change nothing; called inside `accumulate`, after backward passes.

        A gradient that is not finite is what every ZeRO stage turns down, gradients cleared.
        """
        self._skip = True

    def _poison_grads(self) -> None:
        """Makes a gradient NaN where parameters have theirs until the block's exit."""
        if self._skip:
            gradient = next(iter(self._parameters.values())).grad
            assert gradient is not None, "every parameter takes part in every step"
            gradient.fill_(math.nan)
        self._skip = False

    def _poison_reduced_grads(self) -> None:
        """The same where each backward pass has shared them out."""
        optimizer = self._engine.optimizer
        if self._skip and self._stage == 3:
            optimizer.grad_partitions_flat_buffer.fill_(math.nan)
        elif self._skip:
            groups = optimizer.averaged_gradients.values()
            next(gradient for group in groups for gradient in group).fill_(math.nan)
        self._skip = False

    def step(self, learning_rate: float) -> float:
        """Clips, updates and clears; returns the global gradient norm before clipping.

        Where that is not finite, weights and moments stay as they are.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._stage > 0:
            self._engine.step()
            skipped = self._engine.optimizer.overflow
            if skipped and self._stage == 3:
                # The next step writes over all of it but padding, which counts in the norm.
                self._engine.optimizer.grad_partitions_flat_buffer.zero_()
            return math.inf if skipped else float(self._engine.get_global_grad_norm())
        # The engine's own clipping at stage 0 keeps the norm to itself.
        norm = clip_grad_norm_(self.network.parameters(), self._clip_grad, mpu=self._engine.mpu)
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.optimizer.zero_grad()
        return float(norm)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values of all parameters; ZeRO 3 gathers them one by one (collective)."""
        for name, parameter in self._parameters.items():
            yield name, self._get(parameter, None) if self._stage == 3 else parameter.detach()

    def export_state(
        self, to_host: Callable[[str, str, Tensor], Tensor] = lambda _, __, tensor: tensor
    ) -> OptimizerState:
        """The optimizer's state as full tensors (a collective over data parallelism).

        Args:
            take: makes of section ("master" or a moment), name and full tensor what is kept of it,
                before the next one is gathered.
        """
        named = self._parameters.items()

        def section(key: str | None) -> dict[str, Tensor]:
            return {name: to_host(key or "master", name, self._get(p, key)) for name, p in named}

        moments = {key: section(key) for key in MOMENTS}
        return OptimizerState(steps=self._num_updates(), master=section(None), moments=moments)

    def weight_tensors(self) -> Iterator[Tensor]:
        """The weights on this process: the parameters, and under ZeRO 3 its shards of them."""
        for parameter in self._parameters.values():
            yield parameter
            if self._stage == 3:
                yield getattr(parameter, "ds_tensor")  # noqa: B009 - set by DeepSpeed

    def optimizer_tensors(self) -> Iterator[Tensor]:
        """What AdamW holds on this process: the weights that it updates, and their moments."""
        for tensor in self._updated_tensors():
            yield tensor
            yield from (self._adam.state[tensor][key] for key in MOMENTS)

    def reduction_buffers(self) -> Iterator[Tensor]:
        """What gradients are gathered in to be reduced together, LARGEST_BUCKET at most."""
        for bucket in getattr(self._engine.optimizer, "ipg_buckets", {}).values():
            yield from bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]

    def import_state(self, state: OptimizerState) -> None:
        """Continues from a state that any layout exported."""
        self._init_optimizer_state(state.steps)
        for name, parameter in self._parameters.items():
            self._set(parameter, state.master[name], None)
            for key in MOMENTS:
                self._set(parameter, state.moments[key][name], key)

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """The AdamW that DeepSpeed drives; from stage 1 on, DeepSpeed's optimizer wraps it."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _updated_tensors(self) -> list[Tensor]:
        """What AdamW updates: parameters, or this rank's flat partitions of them."""
        wrapper = self._engine.optimizer
        if self._stage == 0:
            return [p for group in self._adam.param_groups for p in group["params"]]
        if self._stage == 3:
            return wrapper.fp32_partitioned_groups_flat
        return wrapper.single_partition_of_fp32_groups

    def _num_updates(self) -> int:
        return int(self._adam.state[self._updated_tensors()[0]]["step"])

    def _init_optimizer_state(self, num_updates: int) -> None:
        """Creates AdamW's state before the first update.

        DeepSpeed links parameters to their moments right after the first group's first update, when
        the other groups have none yet, and never again; so all of them must exist before it.
        """
        for tensor in self._updated_tensors():
            self._adam.state[tensor] = {
                "step": torch.tensor(float(num_updates)),
                **{key: torch.zeros_like(tensor) for key in MOMENTS},
            }
        link_states = getattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link_states is not None:
            self._engine.optimizer._hp_optimizer_states_linked = False
            link_states()

    def _get(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        if self._stage == 0:
            return parameter.detach() if key is None else self._adam.state[parameter][key]
        if key is None:
            value = safe_get_full_fp32_param(parameter)
        else:
            value = safe_get_full_optimizer_state(parameter, key)
        assert value is not None, "every parameter belongs to the optimizer"
        return value

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        if self._stage == 0:
            self._get(parameter, key).copy_(value)
        elif key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def _deepspeed_config(
    optim: OptimConfig, *, precision: str, groups: ProcessGroupCollection, num_parameters: int
) -> dict[str, Any]:
    """DeepSpeed's configuration; batch sizes are nominal, as the schedule feeds micro-batches."""
    config: dict[str, Any] = {
        "train_batch_size": groups.dp.size(),
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.clip_grad if optim.zero_stage > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": optim.zero_stage,
            "reduce_bucket_size": min(REDUCE_BUCKET_SIZE, num_parameters),
        },
        "bf16": {"enabled": precision == "bf16"},
    }
    if optim.offload == "optimizer":
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    return config
