"""Logits of a Hugging Face folder by transformers itself: the reference that parity is held to."""

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

_LAYER = re.compile(r"(.*?\.\d+)\.")


@torch.no_grad()
def whole_logits(
    folder: Path, tokens: Int[Tensor, "batch positions"]
) -> Float[Tensor, "batch positions vocabulary"]:
    """Logits in float32, the whole model in memory."""
    from transformers import AutoModelForCausalLM

    _silence_transformers()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def layerwise_logits(
    folder: Path, tokens: Int[Tensor, "batch positions"]
) -> Float[Tensor, "batch positions vocabulary"]:
    """The same with one layer's weights in memory at a time.

    transformers runs its own forward pass over a model without numbers; hooks fill each layer
    before it runs and empty it after.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _silence_transformers()
    raw = {key: value for key, value in read_config(folder).items() if key != ARMD}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**raw), dtype=torch.float32
        ).eval()
    _restore_buffers(model)
    files, family = HfTensors(folder), FAMILIES[raw["model_type"]]
    units: dict[str, list[str]] = defaultdict(list)
    for name, _ in model.named_parameters(remove_duplicate=False):
        layer = _LAYER.match(name)
        units[layer[1] if layer else name.rpartition(".")[0]].append(name)
    for unit, names in units.items():
        module = model.get_submodule(unit)
        module.register_forward_pre_hook(partial(_load_hook, unit, names, files, family))
        module.register_forward_hook(_unload_hook)
    return model(input_ids=tokens, use_cache=False).logits


def _load_hook(
    unit: str, names: list[str], files: HfTensors, family: Family, module: nn.Module, _: Any
) -> None:
    state = {
        name.removeprefix(f"{unit}."): files.read(_stored(name, files, family)).float()
        for name in names
    }
    module.load_state_dict(state, assign=True, strict=False)  # strict would ask for buffers too


def _stored(name: str, files: HfTensors, family: Family) -> str:
    """The name in the folder of a parameter, whatever class saved it and however it is tied."""
    embedding = next(module for module, ours in family.modules.items() if ours == "embedding")
    within = (name, name.removeprefix(family.base))
    head = (f"{family.head}.weight", f"{family.base}{embedding}.weight", f"{embedding}.weight")
    names = within if name.startswith(family.base) else head
    return next(stored for stored in names if stored in files.tensors)


def _unload_hook(module: nn.Module, *_: Any) -> None:
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(parameter.to("meta"), requires_grad=False))


def _restore_buffers(model: Any) -> None:
    """Computes what is no weight: modules that hold it are made anew, with numbers."""
    for name, module in list(model.named_modules()):
        if next(module.buffers(recurse=False), None) is not None:
            assert next(module.parameters(), None) is None, name
            model.set_submodule(name, type(module)(model.config))


def _silence_transformers() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
