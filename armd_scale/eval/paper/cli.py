"""The command of the paper's tables: from its options to a measured table on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from armd_scale.errors import ArmdError
from armd_scale.eval.paper import rows
from armd_scale.eval.paper.tables import (
    Table,
    ablation_table,
    generative_table,
    require_image_suffix,
    zero_shot_table,
)
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.files import atomic_write_text, require_parent_dir
from armd_scale.parallel.environment import DistributedEnv

TableName = Literal["zero-shot", "generative", "ablation-two-stream", "ablation-rho"]

_DEFAULT_NUM_TEXTS = 16


@dataclass(frozen=True, kw_only=True)
class PaperTableRequest:
    """Options of the command, of which each table uses some."""

    table: TableName
    checkpoint: Sequence[str] = ()
    """Checkpoints, run folders or Hugging Face folders: one group of rows each."""
    text: Sequence[str] = ()
    """Benchmark texts of the zero-shot table as NAME=FILE."""
    texts: Sequence[Path] = ()
    """Files of generated texts, for rows of the generative table without a checkpoint."""
    eval_model: Path | None = None
    """Hugging Face folder of the AR model that scores generated texts."""
    samples: int | None = None
    """Number of generated texts (None: 16) or of held-out windows (None: all)."""
    tokens: int = 256
    """Length of generated texts."""
    data: str = ""
    """Path of the held-out shards of an ablation, without its ending."""
    markdown: Path | None = None
    plot: Path | None = None


def run_paper_table(request: PaperTableRequest, environment: DistributedEnv) -> None:
    """Measure the table, write the requested files, and print it.

    Raises:
        ArmdError: an option is invalid, a checkpoint cannot be measured, or a file not written.
    """
    # Measuring takes minutes to hours, so the output files are checked before it starts.
    require_parent_dir(request.markdown, "--markdown")
    require_parent_dir(request.plot, "--plot")
    require_image_suffix(request.plot, "--plot")
    table = _measure(request, environment)
    # Both files before the terminal, where a closed pipe would end the process.
    if request.markdown is not None:
        atomic_write_text(request.markdown, table.markdown())
    if request.plot is not None:
        table.plot(request.plot)
    print(table.markdown(), end="")


def _measure(request: PaperTableRequest, environment: DistributedEnv) -> Table:
    match request.table:
        case "zero-shot":
            texts = rows.parse_benchmark_texts(request.text)
            return zero_shot_table(
                [rows.zero_shot_row(path, texts, environment) for path in request.checkpoint]
            )
        case "generative":
            return _measure_generative(request, environment)
        case "ablation-two-stream" | "ablation-rho":
            options = {"samples": request.samples, "ablation": request.table}
            measured = [
                rows.ablation_row(path, request.data, environment, **options)
                for path in request.checkpoint
            ]
            # One table type for both: each checkpoint's recipe says what was varied.
            return ablation_table(f"Held-out perplexity, {request.table}", measured)
        case _:
            assert_never(request.table)


def _measure_generative(request: PaperTableRequest, environment: DistributedEnv) -> Table:
    if not request.checkpoint and not request.texts:
        raise ArmdError("the generative table needs --checkpoint or --texts: give at least one")
    # The command line requires --eval-model for this table; the assert tells type checkers so.
    assert request.eval_model is not None
    # One reference model scores all rows: perplexities under different models do not compare.
    reference_lm = ReferenceLM(request.eval_model, device=environment.device)
    measured = [rows.texts_row(path, reference_lm) for path in request.texts]
    for checkpoint in request.checkpoint:
        measured += rows.generative_rows(
            checkpoint,
            reference_lm,
            environment,
            num_samples=request.samples or _DEFAULT_NUM_TEXTS,
            num_tokens=request.tokens,
        )
    return generative_table(measured)
