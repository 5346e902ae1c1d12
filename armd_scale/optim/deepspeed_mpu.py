"""The process groups of a layout under the names that DeepSpeed calls."""

# ruff: noqa: D102 - each method returns what its name says

from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection


class Mpu:
    """Adapter from a ProcessGroupCollection to DeepSpeed's `mpu` (model parallel unit) interface.

    megatron-core's own `parallel_state` lacks the model parallel group, which is tensor x pipeline:
    the ranks that hold one copy of the model, over which the gradient norm is summed.
    """

    def __init__(self, groups: ProcessGroupCollection) -> None:
        self._groups = groups

    def get_model_parallel_group(self) -> Any:
        return self._groups.mp

    def get_model_parallel_world_size(self) -> int:
        return self._groups.mp.size()

    def get_model_parallel_rank(self) -> int:
        return self._groups.mp.rank()

    def get_data_parallel_group(self) -> Any:
        return self._groups.dp

    def get_data_parallel_world_size(self) -> int:
        return self._groups.dp.size()

    def get_data_parallel_rank(self) -> int:
        return self._groups.dp.rank()

    def get_tensor_model_parallel_group(self) -> Any:
        return self._groups.tp

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._groups.tp.size()

    def get_tensor_model_parallel_rank(self) -> int:
        return self._groups.tp.rank()

    def get_pipeline_model_parallel_group(self) -> Any:
        return self._groups.pp

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self._groups.pp.size()

    def get_pipeline_model_parallel_rank(self) -> int:
        return self._groups.pp.rank()
