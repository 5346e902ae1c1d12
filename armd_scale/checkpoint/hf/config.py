"""config.json of a Hugging Face folder to our model section, and back."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armd_scale.checkpoint.hf.families import FAMILIES, UNSUPPORTED, Family
from armd_scale.config.resolve import ResolvedModel, resolve_head_dim, resolve_kv_heads
from armd_scale.config.schema import ModelConfig, RopeScaling
from armd_scale.errors import CheckpointError

CONFIG = "config.json"
ARMD = "armd"
ARMD_FIELDS = {
    "two_stream_layers": "two_stream_layers",
    "query": "query",
    "upper_visibility": "upper_visibility",
    "gap_rows": "max_anchor_gap",
    "prefix_width": "prefix_width",
}
"""Keys of the `armd` section of config.json, with the field of `ModelConfig` that each one is."""
"""What the folder of an ARMD says beyond a plain AR model of its family."""
_KEPT_BY_YARN = {"attention_factor": None, "mscale": None, "mscale_all_dim": None, "truncate": True}


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder, of a family that is known.

    Raises:
        CheckpointError: there is none, it cannot be read, or it is of a model that is none of ours.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"a Hugging Face folder must hold a {CONFIG}, and {path} cannot be read ({error}): "
            "give the folder that save_pretrained wrote"
        ) from None
    if kind in UNSUPPORTED:
        raise CheckpointError(_unsupported(path, f"model_type {kind}, and {UNSUPPORTED[kind]}"))
    if kind not in FAMILIES:
        raise CheckpointError(_unsupported(path, f"model_type {kind}"))
    if "quantization_config" in config:
        raise CheckpointError(
            f"{path} must describe weights of 16 or 32 bits, and names a quantization_config: "
            "convert the folder that the weights were quantised from"
        )
    return config


def model_config_from_hf(
    config: Mapping[str, Any], *, source: Path, max_positions: int | None = None
) -> ModelConfig:
    """The model section under which our network is the model of a config.json.

    Args:
        config: from `read_config`.
        source: the folder, for messages.
        max_positions: longest text to serve; None: what the config says.

    Raises:
        CheckpointError: the model is none of ours, with the reason.
    """
    family = FAMILIES[config["model_type"]]
    hf_config = _with_hf_defaults(config, source)
    path = source / CONFIG
    for key, value in family.required.items():
        if getattr(hf_config, key) != value:
            raise CheckpointError(
                _unsupported(path, f"{key} {getattr(hf_config, key)} instead of {value}")
            )
    activation = getattr(hf_config, family.activation_key)
    if activation not in family.activations:
        names = ", ".join(family.activations)
        got = f"{family.activation_key} {activation} where {names} are known"
        raise CheckpointError(_unsupported(path, got))
    fields: dict[str, Any] = {
        key: getattr(hf_config, name, None) for key, name in family.config_keys.items()
    }
    if fields["ffn_hidden"] is None:
        fields["ffn_hidden"] = 4 * fields["hidden"]  # GPT-2's default
    positions = _positions(hf_config, family, path, max_positions)
    rope = (
        {}
        if family.defaults.get("position_embedding") == "learned_absolute"
        else _rotary(hf_config, family, path)
    )
    named = {"activation": family.activations[activation], "max_positions": positions}
    armd = {ARMD_FIELDS[key]: value for key, value in config.get(ARMD, {}).items()}
    return ModelConfig(**{**fields, **family.defaults, **named, **rope, **armd})


def _with_hf_defaults(config: Mapping[str, Any], source: Path) -> Any:
    """The config as transformers understands it: defaults filled in, rotary keys of any version."""
    from transformers import AutoConfig

    # What is unusual in a config is decided, and said, here.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    plain = {key: value for key, value in config.items() if key != ARMD}
    try:
        return AutoConfig.for_model(**json.loads(json.dumps(plain)))
    except Exception as error:  # its validators raise errors of many kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{source / CONFIG} must be a configuration that transformers accepts, and is not "
            f"({reason}): mend the key that it names"
        ) from None


def _positions(known: Any, family: Family, path: Path, asked: int | None) -> int:
    """The longest text: as asked for, else as configured; it must not reach beyond a window."""
    table = known.max_position_embeddings
    positions = table if asked is None else asked
    if family.defaults.get("position_embedding") == "learned_absolute" and positions != table:
        raise CheckpointError(
            f"--max-positions must be {table}, the rows of the position table of {path}, got "
            f"{positions}: leave it out"
        )
    kinds = set(getattr(known, "layer_types", None) or ("sliding_attention",))
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise CheckpointError(_unsupported(path, f"layers of kind {', '.join(sorted(unknown))}"))
    window = getattr(known, "sliding_window", None) if "sliding_attention" in kinds else None
    if window is not None and positions > window:
        raise CheckpointError(
            f"{path} lets a token see {window} tokens (sliding_window), and ours see all "
            f"{positions}: convert with --max-positions {window}, up to which both are equal"
        )
    return positions


def _rotary(known: Any, family: Family, path: Path) -> dict[str, Any]:
    """The keys of the rotary embedding."""
    rope = dict(known.rope_parameters)
    fraction = rope.get("partial_rotary_factor") or 1.0
    if fraction != 1.0 and not family.has_partial_rotation:
        raise CheckpointError(_unsupported(path, f"partial_rotary_factor {fraction}"))
    keys = {"rope_theta": float(rope["rope_theta"]), "partial_rotary_factor": fraction}
    kind, scaling = rope.get("rope_type", "default"), None
    original = rope.get("original_max_position_embeddings")
    if kind == "linear":
        scaling = RopeScaling(rope_type="linear", factor=rope["factor"])
    elif kind == "llama3":
        scaling = RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_position_embeddings=original,
        )
    elif kind == "yarn" and all(rope.get(k, v) == v for k, v in _KEPT_BY_YARN.items()):
        scaling = RopeScaling(
            rope_type="yarn",
            factor=rope["factor"],
            beta_slow=rope.get("beta_slow") or 1.0,
            beta_fast=rope.get("beta_fast") or 32.0,
            original_max_position_embeddings=original,
        )
    elif kind == "yarn":
        unusual = [key for key, value in _KEPT_BY_YARN.items() if rope.get(key, value) != value]
        raise CheckpointError(_unsupported(path, f"YaRN with {', '.join(unusual)}"))
    elif kind != "default":
        raise CheckpointError(_unsupported(path, f"rotary embedding of type {kind}"))
    return {**keys, "rope_scaling": scaling}


def hf_config_from_model(model: ResolvedModel, *, max_positions: int) -> dict[str, Any]:
    """A config.json of the first family that is this network's left-to-right function.

    Raises:
        CheckpointError: there is none, with what the nearest one lacks.
    """
    nearest, missing = "", list[str]()
    for kind, family in FAMILIES.items():
        config = _to_hf_config(kind, family, model, max_positions=max_positions)
        try:
            read = model_config_from_hf(config, source=Path(kind), max_positions=max_positions)
        except CheckpointError:
            continue
        differing = differences(read, model)
        if not differing:
            return config
        if not nearest or len(differing) < len(missing):
            nearest, missing = kind, differing
    lacks = ", ".join(f"model.{key}={getattr(model, key)}" for key in missing)
    raise CheckpointError(
        f"a folder must be of a Hugging Face family, and the nearest of those that are known, "
        f"{nearest}, does not have {lacks}: export a model without"
    )


def differences(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Keys on which the left-to-right functions of two model sections may differ."""
    ours, theirs = (
        dataclasses.asdict(model)
        | {"head_dim": resolve_head_dim(model), "kv_heads": resolve_kv_heads(model)}
        for model in (one, other)
    )
    kept = {*ARMD_FIELDS.values(), "max_positions", "init_std", "init_from"}
    if one.position_embedding == other.position_embedding == "learned_absolute":
        kept |= {"rope_theta", "rope_scaling", "partial_rotary_factor"}
    return [key for key in ours if key not in kept and ours[key] != theirs[key]]


def _to_hf_config(
    kind: str, family: Family, model: ResolvedModel, *, max_positions: int
) -> dict[str, Any]:
    """The family's config.json with what it can say of a model section."""
    config = {name: getattr(model, key) for key, name in family.config_keys.items()}
    names = [name for name, ours in family.activations.items() if ours == model.activation]
    config[family.activation_key] = (names or [next(iter(family.activations))])[0]
    rows = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    rope: dict[str, Any] = {"rope_theta": model.rope_theta, "rope_type": "default"}
    if family.has_partial_rotation:
        rope["partial_rotary_factor"] = model.partial_rotary_factor
    if scaling := model.rope_scaling:
        # Our names are those of config.json; a key that a type does not have is null.
        values = dataclasses.asdict(scaling)
        rope |= {key: value for key, value in values.items() if value is not None}
    named = {"architectures": [family.architecture], "model_type": kind, rows: max_positions}
    turned = (
        {}
        if family.defaults.get("position_embedding") == "learned_absolute"
        else {"rope_parameters": rope}
    )
    windows = {"sliding_window": None} if kind == "mistral" else {}
    return {**named, **config, **turned, **windows}


def _unsupported(path: Path, got: str) -> str:
    return (
        f"{path} must describe a model that our network can be ({', '.join(FAMILIES)}), and has "
        f"{got}: convert a model of one of these families"
    )
