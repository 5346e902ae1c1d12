"""Logits of a Hugging Face folder computed by transformers: the reference for parity checks."""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from armd_scale.checkpoint.hf.config import ARMD, read_config
from armd_scale.checkpoint.hf.families import FAMILIES, Family
from armd_scale.checkpoint.hf.tensors import HfTensors

# The shortest prefix that ends in a number: `model.layers.3` of
# `model.layers.3.mlp.up_proj.weight`.
_LAYER = re.compile(r"(.*?\.\d+)\.")


@torch.no_grad()
def whole_logits(
    folder: Path,
    tokens: Int[Tensor, "batch positions"],
    *,
    rounded_to: torch.dtype = torch.float32,
) -> Float[Tensor, "batch positions vocabulary"]:
    """Compute logits in float32 with the whole model in memory.

    Args:
        folder: the Hugging Face folder.
        tokens: what to compute them for.
        rounded_to: type that the weights are rounded to before.
    """
    from transformers import AutoModelForCausalLM

    _silence_transformers()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.copy_(_rounded(parameter, rounded_to))
    return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def layerwise_logits(
    folder: Path,
    tokens: Int[Tensor, "batch positions"],
    *,
    rounded_to: torch.dtype = torch.float32,
) -> Float[Tensor, "batch positions vocabulary"]:
    """Compute the same logits with the weights of one layer in memory at a time.

    transformers runs its own forward pass over a model on the meta device; hooks load the weights
    of each layer before it runs and drop them afterwards.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _silence_transformers()
    config = {key: value for key, value in read_config(folder).items() if key != ARMD}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=torch.float32
        ).eval()
    _restore_buffers(model)
    files, family = HfTensors(folder), FAMILIES[config["model_type"]]
    # A unit is loaded and dropped as a whole: a layer, or a module outside of the layers.
    units: dict[str, list[str]] = defaultdict(list)
    # With duplicates: a tied head shares its parameter with the embedding, but it is a unit of its
    # own, whose weight must be loaded when it runs.
    for name, _ in model.named_parameters(remove_duplicate=False):
        layer = _LAYER.match(name)
        units[layer[1] if layer else name.rpartition(".")[0]].append(name)
    for unit, names in units.items():
        module = model.get_submodule(unit)
        module.register_forward_pre_hook(
            partial(_load_hook, unit, names, files, family, rounded_to)
        )
        module.register_forward_hook(_unload_hook)
    return model(input_ids=tokens, use_cache=False).logits


def _load_hook(
    unit: str,
    names: list[str],
    files: HfTensors,
    family: Family,
    rounded_to: torch.dtype,
    module: nn.Module,
    _: Any,
) -> None:
    state = {
        name.removeprefix(f"{unit}."): _rounded(
            files.read(_stored_name(name, files, family)), rounded_to
        )
        for name in names
    }
    module.load_state_dict(state, assign=True, strict=False)  # strict would require buffers too


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Never to a wider type than the folder's, which changes nothing.
    return tensor.to(dtype).float()


def _stored_name(name: str, files: HfTensors, family: Family) -> str:
    """The name in the folder of a parameter of the transformers model.

    Folders saved from the base class have no prefix, and a tied head may be stored as the
    embedding alone.
    """
    candidates = (name, name.removeprefix(family.base))
    if not name.startswith(family.base):
        embedding = f"{family.embedding}.weight"
        candidates = (f"{family.head}.weight", embedding, embedding.removeprefix(family.base))
    return next(candidate for candidate in candidates if candidate in files.tensors)


def _unload_hook(module: nn.Module, *_: Any) -> None:
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            setattr(submodule, name, nn.Parameter(parameter.to("meta"), requires_grad=False))


def _restore_buffers(model: Any) -> None:
    """Compute the buffers, such as rotary frequencies, that the meta device left without values.

    No folder stores them: transformers computes them in the constructor of a small module without
    parameters, so building that module again on the CPU restores them.
    """
    for name, module in list(model.named_modules()):
        if next(module.buffers(recurse=False), None) is not None:
            assert next(module.parameters(), None) is None, name
            model.set_submodule(name, type(module)(model.config))


def _silence_transformers() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
