"""Keys of exported files in the spellings of transformers 4 and 5.

Version 5 moved what describes the rotary embedding under one key, and renamed others. Each version
ignores the keys of the other one, so a folder that has both reads the same in both.
"""

from typing import Any

_NEOX = "gpt_neox"
# Of version 4, in which GPT-NeoX has names of its own.
_THETA_KEYS = {_NEOX: "rotary_emb_base"}
_FRACTION_KEYS = {_NEOX: "rotary_pct"}


def with_both_spellings(config: dict[str, Any], *, dtype: str) -> dict[str, Any]:
    """Return a config.json that transformers 4 and 5 read alike.

    Args:
        config: in the spelling of either version.
        dtype: name of the type of the weights.
    """
    # `dtype` was called `torch_dtype` before 4.56.
    config = {**config, "dtype": dtype, "torch_dtype": dtype}
    model_type = str(config.get("model_type"))
    theta_key = _THETA_KEYS.get(model_type, "rope_theta")
    fraction_key = _FRACTION_KEYS.get(model_type, "partial_rotary_factor")
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        parameters: dict[str, Any] = dict(rope)  # pyright: ignore[reportUnknownArgumentType]
        config[theta_key] = parameters.pop("rope_theta", None)
        if "partial_rotary_factor" in parameters:
            config[fraction_key] = parameters.pop("partial_rotary_factor")
        is_scaled = parameters.get("rope_type", "default") != "default"
        config["rope_scaling"] = parameters if is_scaled else None
    elif theta_key in config:
        scaling = config.get("rope_scaling") or {}
        parameters = {"rope_type": "default", "rope_theta": config[theta_key], **scaling}
        # Early versions of 4 called it `type`.
        parameters["rope_type"] = parameters.pop("type", parameters["rope_type"])
        if fraction_key in config:
            parameters["partial_rotary_factor"] = config[fraction_key]
        config["rope_parameters"] = parameters
    return config


def for_both_versions(tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer_config.json that transformers 4 reads too.

    Version 5 reads both forms of these keys.
    """
    config = dict(tokenizer_config)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
