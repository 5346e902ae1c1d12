"""Parameter groups by weight decay."""

from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from armd_scale.config.schema import OptimConfig
from armd_scale.optim.param_groups import parameter_groups
from tests.support.networks import GPT2, LLAMA, build

OPTIM = OptimConfig(warmup_steps=1, schedule="constant", weight_decay=0.3)


def names_by_decay(network: nn.Module) -> dict[float, set[str]]:
    name_of = {id(p): name for name, p in network.named_parameters()}
    groups = parameter_groups(network, OPTIM)
    return {g["weight_decay"]: {name_of[id(p)] for p in g["params"]} for g in groups}


def test_matrices_and_embeddings_decay_and_vectors_do_not(
    groups: ProcessGroupCollection,
) -> None:
    names = names_by_decay(build(GPT2, groups))
    assert {"embedding.weight", "position_embedding"} <= names[0.3]
    assert "layers.0.mlp.linear_fc1.weight" in names[0.3]
    assert {"final_norm.weight", "final_norm.bias"} <= names[0.0]
    assert "layers.0.attention.linear_q.bias" in names[0.0]


def test_every_parameter_is_in_exactly_one_group(groups: ProcessGroupCollection) -> None:
    network = build(LLAMA, groups)
    names = names_by_decay(network)
    assert names[0.3] | names[0.0] == {name for name, _ in network.named_parameters()}
    assert not names[0.3] & names[0.0]


def test_frozen_parameters_and_empty_groups_are_omitted() -> None:
    network = nn.Linear(2, 2)
    network.weight.requires_grad_(False)
    assert names_by_decay(network) == {0.0: {"bias"}}
