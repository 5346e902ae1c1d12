"""Every shipped recipe loads, passes the rules, fits its machines and is what its name says."""

import dataclasses
from pathlib import Path

import pytest

from armd_scale.checkpoint.hf.config import model_config_from_hf
from armd_scale.config import derived as derive
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import resolve, resolve_decay_steps, resolve_two_stream_layers
from armd_scale.config.rules import check as rules
from armd_scale.config.schema import Recipe
from armd_scale.order.policies import Progressive, Stages, Strided
from armd_scale.train.resume import KEYS_FREE_WITH_INIT_FROM

FOLDER = Path(__file__).parents[2] / "recipes"
SECTIONS = [
    "run",
    "data",
    "order",
    "model",
    "parallel",
    "optim",
    "train",
    "checkpoint",
    "eval",
    "log",
]
MILLION = 1e6

# Weights in millions with a vocabulary, and numbers of processes the recipe is written for.
EXPECTED: dict[str, tuple[float, int, tuple[int, ...]]] = {
    "a3_stages": (8030, 128256, (4, 8, 16)),
    "adapt_cpu": (1.24, 257, (1,)),
    "armd_125m_lm1b": (124, 50257, (1, 8)),
    "armd_125m_owt": (124, 50257, (1, 8, 32)),
    "armd_125m_owt_strided": (124, 50257, (1, 8, 32)),
    "armd_345m_owt": (354, 50257, (1, 8, 64)),
    "demo_cpu": (5.3, 2048, (1,)),
    "finetune_llama_1b": (1236, 128256, (8, 16, 64)),
    "finetune_qwen3_8b": (8191, 151936, (4, 8, 64)),
    "pretrain_1b": (1047, 50257, (1, 8, 64)),
    "pretrain_70b": (70554, 128256, (64, 512, 1024)),
    "pretrain_7b": (7392, 50257, (64, 512)),
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, *overrides: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.yaml", overrides)


def test_every_recipe_is_expected_here() -> None:
    assert sorted(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_size_is_what_the_name_says(name: str) -> None:
    millions, vocab_size, _ = EXPECTED[name]
    recipe = load(name)
    padded = derive.padded_vocab_size(vocab_size, recipe.parallel.tensor)
    count = derive.num_parameters(resolve(recipe, vocab_size=vocab_size).model, padded)
    assert count / MILLION == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_fits_its_machines(name: str) -> None:
    for world_size in EXPECTED[name][2]:
        rules.check_world(load(name), world_size)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_short_and_in_the_order_of_the_data(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100
    keys = [line.split(":")[0] for line in lines if line[:1].isalpha()]
    sections = [key for key in keys if key != "extends"]
    assert sections == [section for section in SECTIONS if section in sections]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_has_a_name_and_a_folder_of_its_own(name: str) -> None:
    run = load(name).run
    assert run.name == name
    assert [load(other).run.folder for other in NAMES].count(run.folder) == 1


def test_openwebtext_follows_the_paper() -> None:
    for name in ("armd_125m_owt", "armd_345m_owt"):
        recipe = load(name)
        assert recipe.order == Progressive(ar_steps=9_000, ramp_end=48_000, rho=32)
        assert derive.tokens_per_step(recipe) == 512 * 1024
        assert resolve_two_stream_layers(recipe.model) * 2 == recipe.model.layers
        assert recipe.model.query == "prefix"
    assert (load("armd_125m_owt").train.steps, recipe.train.steps) == (180_000, 300_000)


def test_one_billion_words_follows_the_paper() -> None:
    recipe = load("armd_125m_lm1b")
    assert recipe.order == Progressive(ar_steps=100_000, ramp_end=300_000, rho=8)
    assert (recipe.data.seq_length, recipe.train.steps) == (128, 300_000)


def test_strided_fine_tuning_changes_the_order_and_starts_from_the_first_run() -> None:
    first, second = load("armd_125m_owt"), load("armd_125m_owt_strided")
    assert second.order == Strided(streams=(1, 2, 4), joint=True)
    assert second.data == first.data
    assert second.model.init_from is not None
    assert second.model.init_from.startswith(first.run.folder)
    assert 10_000 <= second.train.steps <= 80_000


def test_a3_goes_from_text_order_to_permuted_groups() -> None:
    recipe = load("a3_stages")
    assert isinstance(recipe.order, Stages)
    policies = [part.order.policy for part in recipe.order.stages]
    assert policies == ["l2r", "groups", "permuted_groups"]
    assert (recipe.model.query, recipe.model.two_stream_layers) == ("learned", recipe.model.layers)
    tokens = derive.tokens_per_step(recipe) * recipe.train.steps
    assert 2e9 <= tokens <= 8e9


@pytest.mark.parametrize(
    ("name", "published"),
    [("finetune_llama_1b", 1_235_814_400), ("finetune_qwen3_8b", 8_190_735_360)],
)
def test_fine_tuning_is_of_the_published_model_beside_itself(name: str, published: int) -> None:
    recipe = resolve(load(name))
    model, parent = recipe.model, recipe.train.distillation
    count = derive.num_parameters(model, model.vocab_size)
    assert count - derive.num_query_start_parameters(model) == published
    assert model.query == "anchor"
    assert parent is not None
    assert parent.checkpoint == model.init_from
    assert parent.weight > 0
    assert derive.tokens_per_step(recipe) * recipe.train.steps == pytest.approx(2.1e9, rel=0.01)
    assert recipe.optim.lr <= 2e-5


# What config.json of the two models says on the hub.
PUBLISHED = {
    "finetune_llama_1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "tie_word_embeddings": True, "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "finetune_qwen3_8b": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096,
        "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960, "tie_word_embeddings": False, "rope_theta": 1000000,
        "use_sliding_window": False, "attention_bias": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_fine_tuning_accepts_what_the_converter_makes(name: str) -> None:
    """Both read one model, but for the keys that a run may change at its start."""
    model = load(name).model
    section = model_config_from_hf(PUBLISHED[name], source=Path(name))
    free = {key: getattr(model, key) for key in (*KEYS_FREE_WITH_INIT_FROM, "max_positions")}
    assert dataclasses.replace(section, **free) == model


def test_large_recipes_read_the_tokens_they_say() -> None:
    read = {"pretrain_1b": 52.4, "pretrain_7b": 146.8, "pretrain_70b": 1409.3}
    for name, billions in read.items():
        recipe = load(name)
        tokens = derive.tokens_per_step(recipe) * recipe.train.steps
        assert tokens / 1e9 == pytest.approx(billions, abs=0.1)
        assert isinstance(recipe.order, Stages)
        decay_start = recipe.train.steps - resolve_decay_steps(recipe.optim, recipe.train)
        assert recipe.order.stages[0].until_step == decay_start


def test_the_7b_recipe_fits_one_node_with_the_overrides_it_names() -> None:
    text = (FOLDER / "pretrain_7b.yaml").read_text()
    line = "parallel.pipeline=1 parallel.virtual_pipeline=1 optim.zero_stage=2"
    assert line in text
    rules.check_world(load("pretrain_7b", *line.split()), 8)


def test_the_page_of_recipes_names_every_recipe() -> None:
    page = (FOLDER / "README.md").read_text()
    assert all(f"`{name}`" in page for name in NAMES)
