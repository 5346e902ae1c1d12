"""Convert the config.json of a Hugging Face folder to our model section, and back."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armd_scale.checkpoint.foreign_folder import explain_foreign
from armd_scale.checkpoint.hf.families import FAMILIES, UNSUPPORTED, Family
from armd_scale.config.codec import decode_dataclass, to_dict
from armd_scale.config.resolve import ResolvedModel, resolve_head_dim, resolve_kv_heads
from armd_scale.config.schema import ModelConfig, RopeScaling
from armd_scale.errors import CheckpointError
from armd_scale.json_files import read_json_object

CONFIG = "config.json"
ARMD = "armd"
ARMD_FIELDS = {
    "two_stream_layers": "two_stream_layers",
    "query": "query",
    "upper_visibility": "upper_visibility",
    "gap_rows": "max_anchor_gap",
    "prefix_width": "prefix_width",
}
"""Field of `ModelConfig` by key of the `armd` section, which makes a folder an ARMD.

The keys are the interchange format's and stay as they are when our own fields are renamed.
"""
# YaRN settings that we do not implement, with the value that means "not used".
_YARN_NEUTRAL = {"attention_factor": None, "mscale": None, "mscale_all_dim": None, "truncate": True}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a folder, and check that its family is supported.

    Raises:
        CheckpointError: the file is missing or cannot be read, or the architecture is not
            supported; the message says why.
    """
    path = folder / CONFIG
    advice = "give the folder that save_pretrained wrote"
    if not path.is_file():
        foreign = explain_foreign(folder, wants_hf=True)
        if foreign:
            raise CheckpointError(f"there is no Hugging Face folder at {folder}, {foreign}")
        raise CheckpointError(
            f"a Hugging Face folder must contain a {CONFIG} ({path} does not exist): {advice}"
        )
    config = read_json_object(path, error_class=CheckpointError, advice=advice)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(_unsupported(path, "no model_type that is a text"))
    if model_type in UNSUPPORTED:
        reason = f"model_type {model_type}: {UNSUPPORTED[model_type]}"
        raise CheckpointError(_unsupported(path, reason))
    if model_type not in FAMILIES:
        raise CheckpointError(_unsupported(path, f"model_type {model_type}"))
    if not isinstance(config.get(ARMD, {}), dict):
        raise CheckpointError(
            f"{path} must have a mapping under {ARMD}, and has something else: export the folder "
            "again"
        )
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{path} must describe weights of 16 or 32 bits (got a quantization_config): "
            "convert the folder from which the weights were quantized"
        )
    return config


def model_config_from_hf(
    config: Mapping[str, Any], *, source: Path, max_positions: int | None = None
) -> ModelConfig:
    """Return the model section that describes the same model as a config.json.

    Args:
        config: from `read_config`.
        source: the folder, for error messages.
        max_positions: maximum text length in tokens; None: what the config says.

    Raises:
        CheckpointError: the architecture is not supported; the message says why.
    """
    family = FAMILIES[config["model_type"]]
    hf_config = _with_hf_defaults(config, source)
    path = source / CONFIG
    for key, value in family.required.items():
        if getattr(hf_config, key) != value:
            raise CheckpointError(
                _unsupported(path, f"{key} {getattr(hf_config, key)} instead of {value}")
            )
    fields: dict[str, Any] = {
        key: getattr(hf_config, name, None) for key, name in family.config_keys.items()
    }
    if fields["ffn_hidden"] is None:
        fields["ffn_hidden"] = 4 * fields["hidden"]  # n_inner of GPT-2 defaults to 4 * n_embd
    fields |= family.defaults
    fields["activation"] = _activation(hf_config, family, path)
    fields["max_positions"] = _max_positions(hf_config, family, path, max_positions)
    if family.has_rotary:
        fields |= _rotary_fields(hf_config, family, path)
    fields |= {ARMD_FIELDS[key]: value for key, value in config.get(ARMD, {}).items()}
    advice = "fix the key of this value in it"
    return decode_dataclass(
        # The part that is decoded already goes back to plain values.
        {key: to_dict(value) for key, value in fields.items()},
        ModelConfig,
        source=path,
        error_class=CheckpointError,
        advice=advice,
    )


def _with_hf_defaults(config: Mapping[str, Any], source: Path) -> Any:
    """The config as a transformers object: defaults filled in, rotary keys of all versions read."""
    from transformers import AutoConfig

    # transformers warns about unusual values; what is not supported is refused here instead.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    plain = {key: value for key, value in config.items() if key != ARMD}
    try:
        return AutoConfig.for_model(**json.loads(json.dumps(plain)))  # a copy: it edits its input
    except Exception as error:  # its validators raise errors of many kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{source / CONFIG} must be a configuration that transformers accepts ({reason}): fix "
            "the key that it names"
        ) from None


def _activation(hf_config: Any, family: Family, path: Path) -> str:
    """Our name of the activation function."""
    activation = getattr(hf_config, family.activation_key)
    if activation not in family.activations:
        names = ", ".join(family.activations)
        reason = f"{family.activation_key} {activation}, where only {names} are supported"
        raise CheckpointError(_unsupported(path, reason))
    return family.activations[activation]


def _max_positions(hf_config: Any, family: Family, path: Path, requested: int | None) -> int:
    """The maximum text length, as requested or configured; not longer than an attention window.

    Within its window a model with sliding-window attention computes the same as one without.
    """
    configured = hf_config.max_position_embeddings
    positions = configured if requested is None else requested
    if not family.has_rotary and positions != configured:
        raise CheckpointError(
            f"--max-positions must be {configured}, the rows of the position table of {path} (got "
            f"{positions}): leave it out"
        )
    # Without layer_types (Mistral) the window, if there is one, is that of all layers.
    kinds = set(getattr(hf_config, "layer_types", None) or ("sliding_attention",))
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise CheckpointError(_unsupported(path, f"layers of type {', '.join(sorted(unknown))}"))
    window = getattr(hf_config, "sliding_window", None) if "sliding_attention" in kinds else None
    if not hasattr(type(hf_config)(), "sliding_window"):
        window = None  # the family has no such windows, and transformers ignores the key
    if window is not None and positions > window:
        raise CheckpointError(
            f"{path} has a sliding window of {window} tokens, and our attention sees all "
            f"{positions}: convert with --max-positions {window}, up to which both are equal"
        )
    return positions


def _rotary_fields(hf_config: Any, family: Family, path: Path) -> dict[str, Any]:
    """The keys of the rotary embedding in the model section."""
    rope = dict(hf_config.rope_parameters)
    fraction = _number(rope, "partial_rotary_factor", path, default=1.0)
    if fraction != 1.0 and not family.has_partial_rotation:
        raise CheckpointError(_unsupported(path, f"partial_rotary_factor {fraction}"))
    return {
        "rope_theta": _number(rope, "rope_theta", path),
        "partial_rotary_factor": fraction,
        "rope_scaling": _rope_scaling(rope, path),
    }


def _rope_scaling(rope: Mapping[str, Any], path: Path) -> RopeScaling | None:
    rope_type = rope.get("rope_type", "default")
    original = rope.get("original_max_position_embeddings")
    if original is not None:
        original = int(_number(rope, "original_max_position_embeddings", path))
    match rope_type:
        case "default":
            return None
        case "linear":
            return RopeScaling(rope_type="linear", factor=_number(rope, "factor", path))
        case "llama3":
            return RopeScaling(
                factor=_number(rope, "factor", path),
                low_freq_factor=_number(rope, "low_freq_factor", path),
                high_freq_factor=_number(rope, "high_freq_factor", path),
                original_max_position_embeddings=original,
            )
        case "yarn":
            unusual = [key for key, value in _YARN_NEUTRAL.items() if rope.get(key, value) != value]
            if unusual:
                raise CheckpointError(_unsupported(path, f"YaRN with {', '.join(unusual)}"))
            return RopeScaling(
                rope_type="yarn",
                factor=_number(rope, "factor", path),
                beta_slow=_number(rope, "beta_slow", path, default=1.0),
                beta_fast=_number(rope, "beta_fast", path, default=32.0),
                original_max_position_embeddings=original,
            )
    raise CheckpointError(_unsupported(path, f"rotary embedding of type {rope_type}"))


def _number(
    rope: Mapping[str, Any], key: str, path: Path, *, default: float | None = None
) -> float:
    """Return a positive number of the rotary embedding; null and a missing key mean the default."""
    value = default if rope.get(key) is None else rope[key]
    # transformers lets any value through here.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        raise CheckpointError(_unsupported(path, f"rope_parameters with {key}={value!r:.100}"))
    return float(value)


def hf_config_from_model(model: ResolvedModel, *, max_positions: int) -> dict[str, Any]:
    """Return a config.json of the first family that computes the same left to right.

    Args:
        model: model section.
        max_positions: maximum text length in tokens.

    Raises:
        CheckpointError: no family can; the message names what the nearest one lacks.
    """
    nearest, missing = "", list[str]()
    for model_type, family in FAMILIES.items():
        config = _to_hf_config(model_type, family, model, max_positions=max_positions)
        # Reading the config back tells what the family cannot express, without rules per family.
        try:
            read = model_config_from_hf(
                config, source=Path(model_type), max_positions=max_positions
            )
        except CheckpointError:
            continue
        differing = differences(read, model)
        if not differing:
            return config
        if not nearest or len(differing) < len(missing):
            nearest, missing = model_type, differing
    lacks = ", ".join(f"model.{key}={getattr(model, key)}" for key in missing)
    raise CheckpointError(
        "only a model of a supported Hugging Face family can be exported; the nearest one, "
        f"{nearest}, does not have {lacks}: export a model without it"
    )


def differences(first: ModelConfig, second: ModelConfig) -> list[str]:
    """Return the keys on which the left-to-right functions of two model sections may differ."""
    values, other_values = (
        dataclasses.asdict(model)
        | {"head_dim": resolve_head_dim(model), "kv_heads": resolve_kv_heads(model)}
        for model in (first, second)
    )
    # Only what changes the logits of left-to-right text counts: not the query stream, how far
    # positions reach, or how the weights were first set.
    irrelevant = {*ARMD_FIELDS.values(), "max_positions", "init_std", "init_from"}
    if first.position_embedding == second.position_embedding == "learned_absolute":
        irrelevant |= {"rope_theta", "rope_scaling", "partial_rotary_factor"}
    return [key for key in values if key not in irrelevant and values[key] != other_values[key]]


def _to_hf_config(
    model_type: str, family: Family, model: ResolvedModel, *, max_positions: int
) -> dict[str, Any]:
    """A config.json of a family, with as much of a model section as the family can express."""
    positions_key = "n_positions" if model_type == "gpt2" else "max_position_embeddings"
    config = {
        "architectures": [family.architecture],
        "model_type": model_type,
        positions_key: max_positions,
        **{name: getattr(model, key) for key, name in family.config_keys.items()},
    }
    # An activation that the family lacks is replaced by its usual one. `hf_config_from_model` reads
    # the config back and then finds the difference.
    names = [name for name, own in family.activations.items() if own == model.activation]
    config[family.activation_key] = (names or [next(iter(family.activations))])[0]
    if family.has_rotary:
        config["rope_parameters"] = _rope_parameters(family, model)
    if model_type == "mistral":
        config["sliding_window"] = None  # its default is a window of 4096 tokens
    return config


def _rope_parameters(family: Family, model: ResolvedModel) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": model.rope_theta, "rope_type": "default"}
    if family.has_partial_rotation:
        rope["partial_rotary_factor"] = model.partial_rotary_factor
    if scaling := model.rope_scaling:
        # Our names are those of config.json; a key that a type does not have is None.
        values = dataclasses.asdict(scaling)
        rope |= {key: value for key, value in values.items() if value is not None}
    return rope


def _unsupported(path: Path, reason: str) -> str:
    return (
        f"{path} must describe a supported model ({', '.join(FAMILIES)}), and has {reason}: "
        "convert a model of one of these families"
    )
