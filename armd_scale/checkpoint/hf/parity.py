"""Is a checkpoint, run left to right, the model that transformers runs from the folder?

Both sides compute in float32 whatever the type of the weights, so that one tolerance holds for all:
upcasting is exact, and what is compared is the function, not the rounding of bf16.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.hf.reference import layerwise_logits, whole_logits
from armd_scale.checkpoint.hf.source import build_empty_model
from armd_scale.checkpoint.load import Checkpoint
from armd_scale.checkpoint.save import WEIGHTS
from armd_scale.checkpoint.streaming_io import StreamedWeights
from armd_scale.config.resolve import ResolvedModel
from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.pipeline.partition import PipelineStage, single_stage
from armd_scale.parallel.tensor.partition import tensor_partition

TOLERANCE = 1e-4
MAX_PARITY_TOKENS = 256
PARITY_TEXT = """\
The keeper of the lighthouse counted ships. On clear nights she wrote down forty or fifty of them,
with the hour and the course; in fog she wrote only what she heard. "A bell, far off, at 3:15," says
one line from 1887, and under it, in another hand: "no ship reported." When the lamp was replaced by
an electric one, the ledgers were taken to the mainland, where a student found them in 1962.
def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
"""


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """How far one way of running the network is from the reference."""

    path: Literal["two streams", "one stream"]
    """Both streams, or the one that they share under left-to-right order."""
    max_logit_difference: float
    mean_logit_difference: float
    nll_difference: float
    """Of nats per token."""
    top1_agreement: float
    """Share of positions with the same most likely token."""

    @property
    def is_close(self) -> bool:
        """Whether the two are one function up to rounding."""
        return max(self.max_logit_difference, self.nll_difference) <= TOLERANCE


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The comparison of a checkpoint with the folder that it was made from."""

    num_tokens: int
    reference_nll: float
    """Nats per token of the reference."""
    agreements: tuple[ParityResult, ...]
    is_exact_by_construction: bool
    """Whether the query start makes the two-stream network an AR model; if not, its one-stream
    content path is compared alone."""

    @property
    def passed(self) -> bool:
        """Whether every path that was compared agrees."""
        return all(agreement.is_close for agreement in self.agreements)


def check_parity(
    checkpoint: Checkpoint,
    hf: Path,
    *,
    groups: ProcessGroupCollection,
    text: str | None = None,
    by_layer: bool = False,
) -> ParityReport:
    """Runs both on the same tokens; takes part in no collective.

    Args:
        checkpoint: from a conversion of `hf`.
        hf: the folder.
        groups: of a layout without tensor parallelism.
        text: to compare on; None: a short one of our own.
        by_layer: hold one layer's weights at a time, on both sides.

    Raises:
        CheckpointError: the text has fewer than two tokens.
    """
    model = checkpoint.recipe.model
    weights = StreamedWeights(checkpoint.folder / WEIGHTS)
    tokens = _tokens(checkpoint, text)
    reference = (layerwise_logits if by_layer else whole_logits)(hf, tokens)[:, :-1]
    batch = _left_to_right(tokens)
    exact = is_ar_exact(model, weights.read)
    runs: list[tuple[Literal["two streams", "one stream"], ResolvedModel, ArmdBatch]]
    if exact and model.two_stream_layers != 0:
        both = dataclasses.replace(batch, is_left_to_right=False)
        runs = [("two streams", model, both), ("one stream", model, batch)]
    else:
        runs = [("one stream", content_path(model), batch)]
    agreements = []
    for path, run, rows in runs:
        logits = _logits(run, weights, rows, groups=groups, by_layer=by_layer)
        agreements.append(_agreement(path, logits, reference, batch.labels))
    return ParityReport(
        num_tokens=tokens.shape[1],
        reference_nll=_nll(reference, batch.labels),
        agreements=tuple(agreements),
        is_exact_by_construction=exact,
    )


def is_ar_exact(model: ResolvedModel, read: Callable[[str], Tensor]) -> bool:
    """Whether the network, run left to right, is an AR model of its own weights."""
    if model.query == "anchor+prefix":
        return not read("query_start.prefix.scale").any()
    return model.query == "anchor"


def content_path(model: ResolvedModel) -> ResolvedModel:
    """The plain AR stack of the same weights."""
    return dataclasses.replace(model, query="anchor", two_stream_layers=0)


def _tokens(checkpoint: Checkpoint, text: str | None) -> Tensor:
    """A window of the text in the checkpoint's tokens; random ones where it has no tokenizer."""
    model = checkpoint.recipe.model
    assert model.max_positions is not None
    length = min(MAX_PARITY_TOKENS, model.max_positions)
    folder = checkpoint.tokenizer_folder
    if folder is None:
        ids = np.random.default_rng(0).integers(0, model.vocab_size, size=length)
    else:
        ids = load_tokenizer(folder).encode_batch([PARITY_TEXT if text is None else text])[0][
            :length
        ]
    if len(ids) < 2:
        raise CheckpointError(
            "a text to compare on must have at least two tokens: give a longer one"
        )
    return torch.from_numpy(np.asarray(ids, np.int64)).unsqueeze(0)


def _left_to_right(tokens: Tensor) -> ArmdBatch:
    length = tokens.shape[1]
    return make_batch(
        tokens.numpy(),
        np.arange(length, dtype=np.int32)[None],
        lengths=[(length,)],
        sample_index=np.zeros(1, np.int64),
    )


@torch.no_grad()
def _logits(
    model: ResolvedModel,
    weights: StreamedWeights,
    batch: ArmdBatch,
    *,
    groups: ProcessGroupCollection,
    by_layer: bool,
) -> Float[Tensor, "batch queries vocabulary"]:
    """The network's logits, from all its layers at once or one after another."""
    last = model.layers - 1
    stages: Sequence[PipelineStage] = [single_stage(model)]
    if by_layer:
        stages = [
            PipelineStage(range(n, n + 1), is_first=n == 0, is_last=n == last)
            for n in range(model.layers)
        ]
    rows: Tensor | None = None
    for stage in stages:
        part = _part(model, weights, stage, groups=groups)
        part.set_input_tensor(rows)
        if stage.is_last:
            return part.logits(batch)
        rows = part.forward_layers(batch)
    raise AssertionError("the last stage has the head")


def _part(
    model: ResolvedModel,
    weights: StreamedWeights,
    stage: PipelineStage,
    *,
    groups: ProcessGroupCollection,
) -> ArmdModel:
    """A part of the network with its weights in float32."""
    part = build_empty_model(model, groups, dtype=torch.float32, stage=stage).eval()
    for name, parameter in part.parameters_by_name().items():
        stride = tensor_partition(parameter, groups.tp).stride
        names = [name] if stride == 1 else [f"{name}.{half}" for half in range(stride)]
        for half, stored in zip(parameter.chunk(stride), names, strict=True):
            half.copy_(weights.read(stored))
    return part


def _agreement(
    path: Literal["two streams", "one stream"], logits: Tensor, reference: Tensor, labels: Tensor
) -> ParityResult:
    difference = (logits - reference).abs()
    return ParityResult(
        path=path,
        max_logit_difference=difference.max().item(),
        mean_logit_difference=difference.mean().item(),
        nll_difference=abs(_nll(logits, labels) - _nll(reference, labels)),
        top1_agreement=(logits.argmax(-1) == reference.argmax(-1)).double().mean().item(),
    )


def _nll(logits: Tensor, labels: Tensor) -> float:
    return F.cross_entropy(logits.double().flatten(0, 1), labels.flatten()).item()


def describe(parity: ParityReport) -> str:
    """The figures as a small table for people."""
    lines = [
        f"left-to-right parity with transformers on {parity.num_tokens} tokens, in float32 "
        f"({parity.reference_nll:.4f} nats/token; tolerance {TOLERANCE:g})",
        f"{'':12} {'max |logit|':>12} {'mean |logit|':>12} {'|NLL|':>10} {'top-1':>8}",
    ]
    for one in parity.agreements:
        lines.append(
            f"{one.path:12} {one.max_logit_difference:12.2e} {one.mean_logit_difference:12.2e} "
            f"{one.nll_difference:10.2e} {one.top1_agreement:8.2%}  "
            + ("ok" if one.is_close else "TOO FAR")
        )
    if not parity.is_exact_by_construction:
        lines.append(
            "the query start is not AR-exact by construction: only the one-stream content path "
            "was compared"
        )
    return "\n".join(lines)


def to_json(parity: ParityReport) -> str:
    """The figures as one JSON object."""
    return json.dumps(
        {**dataclasses.asdict(parity), "tolerance": TOLERANCE, "holds": parity.passed}
    )
