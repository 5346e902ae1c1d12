"""Models in other forms: each is named, with what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from armd_scale.checkpoint.hf.config import read_config
from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.checkpoint.pretrained import open_model
from armd_scale.errors import CheckpointError


def refusal(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_id_of_a_model_on_the_hub() -> None:
    name = Path("meta-llama/Llama-3.1-8B")
    download = "run `hf download meta-llama/Llama-3.1-8B --local-dir models/Llama-3.1-8B` and "
    assert f"{download}give models/Llama-3.1-8B" in refusal(read_config, name)
    for read in (open_checkpoint, open_model):
        message = refusal(read, name)
        assert message.startswith("no valid checkpoint in meta-llama/Llama-3.1-8B, which is no fol")
        assert (
            f"{download}convert it with python tools/convert_ar_to_armd.py --hf models/" in message
        )


@pytest.mark.parametrize("path", ["runs", "runs/a/b", "./runs/a", "../a", "/no/a", "a b/c"])
def test_other_paths_are_no_ids(path: str) -> None:
    message = refusal(open_checkpoint, Path(path))
    # Of `./runs/a` a Path keeps `runs/a`, which may be both.
    assert ("hf download" in message) == (path == "./runs/a")


@pytest.mark.parametrize(
    ("files", "inside"),
    [
        (["latest_checkpointed_iteration.txt", "iter_0000100/mp_rank_00/model_optim_rng.pt"], "."),
        (["iter_0000100/mp_rank_00/model_optim_rng.pt"], "iter_0000100"),
        (["mp_rank_00_001/model_optim_rng.pt"], "mp_rank_00_001"),
        (["iter_0000100/common.pt", "iter_0000100/metadata.json"], "iter_0000100"),
    ],
)
def test_a_checkpoint_of_megatron(tmp_path: Path, files: list[str], inside: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for read in (read_config, open_checkpoint):
        message = refusal(read, tmp_path / inside)
        assert "which is a checkpoint of Megatron-LM: export it to a Hugging Face fol" in message


def test_weights_of_meta(tmp_path: Path) -> None:
    for name in ("consolidated.00.pth", "params.json", "tokenizer.model"):
        (tmp_path / name).touch()
    for read in (read_config, open_checkpoint):
        assert "which has weights in Meta's own format: download" in refusal(read, tmp_path)


def test_a_hugging_face_folder_where_a_checkpoint_is_needed(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    message = refusal(open_checkpoint, tmp_path)
    assert "which is a Hugging Face folder: convert it with python tools/convert_ar" in message
    assert f"--hf {tmp_path} --output CHECKPOINT and give CHECKPOINT" in message


def test_an_empty_folder_is_none_of_them(tmp_path: Path) -> None:
    assert refusal(open_checkpoint, tmp_path).endswith("a run folder or its checkpoints folder")
    assert "must contain a config.json" in refusal(read_config, tmp_path)
