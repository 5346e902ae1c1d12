"""Former keys and values of recipes are refused with a sentence that names the present one."""

from pathlib import Path

import pytest

from armd_scale.config.load import load_recipe
from armd_scale.config.renamed_keys import RENAMED_KEYS, RENAMED_VALUES
from armd_scale.errors import RecipeError
from tests.support.recipes import SMALL_YAML

RENAMED = {
    "model": {
        "gap_rows": "max_anchor_gap",
        "positions": "position_embedding",
        "rope_base": "rope_theta",
        "rotary_fraction": "partial_rotary_factor",
        "norm_epsilon": "norm_eps",
    },
    "model.rope_scaling": {
        "kind": "rope_type",
        "low_frequency_factor": "low_freq_factor",
        "high_frequency_factor": "high_freq_factor",
        "original_max_positions": "original_max_position_embeddings",
    },
    "optim": {"epsilon": "eps"},
    "train": {
        "parent": "distillation",
        "hang_seconds": "hang_timeout_seconds",
        "guard": "loss_guard",
    },
    "train.loss_guard": {
        "window": "window_steps",
        "patience": "max_consecutive_bad_steps",
        "rollbacks": "max_rollbacks",
    },
}
RENAMED_IN_ORDERS = [
    ("order={policy: diffusion, times: 4}", "order.times is now called num_timesteps"),
    ("order={policy: mixture, parts: []}", "order.parts is now called components"),
    ("order={policy: stages, parts: []}", "order.parts is now called stages"),
    (
        "order={policy: stages, stages: [{until: 5, policy: l2r}]}",
        "order.stages.0.until is now called until_step",
    ),
]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        *(
            (f"{section}.{old}=1", f"{section}.{old} is now called {new}: rename it")
            for section, names in RENAMED.items()
            for old, new in names.items()
        ),
        *RENAMED_IN_ORDERS,
        (
            "model.position_embedding=rotary",
            "must be one of rope, learned_absolute (got 'rotary'); rotary is now called rope",
        ),
        (
            "model.position_embedding=learned",
            "(got 'learned'); learned is now called learned_absolute",
        ),
    ],
)
def test_a_former_name_is_refused_with_the_present_one(
    tmp_path: Path, override: str, sentence: str
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YAML)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_former_name_is_tested() -> None:
    tested = {old for names in RENAMED.values() for old in names} | {"times", "parts", "until"}
    assert tested == set(RENAMED_KEYS)
    assert {value for _, value in RENAMED_VALUES} == {"rotary", "learned"}
