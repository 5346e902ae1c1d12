"""Recognize models in forms that are not read here, to say how to bring them into one that is."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MEGATRON_STEP = re.compile(r"iter_\d{7}|release")
_CONVERT = "python tools/convert_ar_to_armd.py --hf"


def explain_foreign(path: Path, *, wants_hf: bool) -> str | None:
    """Return what is at a path where a model was expected, and what to do; None if not known.

    Args:
        path: as the user wrote it.
        wants_hf: whether a Hugging Face folder was expected, and not a checkpoint.

    Returns:
        A text that fits after a comma: `which is ...: do ...`.
    """
    if not path.exists():
        if not _HUB_ID.fullmatch(str(path)):
            return None
        folder = f"models/{path.name}"
        use = f"give {folder}" if wants_hf else _conversion(folder)
        return (
            f"which is no folder: check the path, or if it is the id of a model on the Hugging "
            f"Face hub, run `hf download {path} --local-dir {folder}` and {use}"
        )
    if _is_megatron(path):
        then = "that folder" if wants_hf else f"it with {_CONVERT} FOLDER --output CHECKPOINT"
        return (
            "which is a checkpoint of Megatron-LM: export it to a Hugging Face folder, for example "
            f"with Megatron Bridge, and {'give' if wants_hf else 'convert'} {then}"
        )
    if _is_meta(path):
        use = "give it" if wants_hf else _conversion("FOLDER")
        return (
            "which has weights in Meta's own format: download the model in the format of "
            "transformers, or convert it with convert_llama_weights_to_hf.py from the repository "
            f"of transformers, and {use}"
        )
    if not wants_hf and (path / "config.json").is_file():
        return f"which is a Hugging Face folder: {_conversion(str(path))}"
    return None


def _conversion(folder: str) -> str:
    return f"convert it with {_CONVERT} {folder} --output CHECKPOINT and give CHECKPOINT"


def _is_megatron(path: Path) -> bool:
    """Whether a folder is one of Megatron-LM's checkpoints, or the folder of one of its steps."""
    if (path / "latest_checkpointed_iteration.txt").is_file():
        return True
    if not path.is_dir():
        return False
    # torch_dist checkpoints have common.pt and metadata.json, older ones a folder per rank.
    is_step = _MEGATRON_STEP.fullmatch(path.resolve().name) is not None
    try:
        names = {child.name for child in path.iterdir()}
    except OSError:
        return False
    has_ranks = any(name.startswith("mp_rank_") for name in names) or "common.pt" in names
    in_rank = path.resolve().name.startswith("mp_rank_") and "model_optim_rng.pt" in names
    return has_ranks or in_rank or (is_step and bool(names & {"metadata.json", ".metadata"}))


def _is_meta(path: Path) -> bool:
    is_params = (path / "params.json").is_file()
    return is_params and not (path / "config.json").is_file() and any(path.glob("consolidated*"))
