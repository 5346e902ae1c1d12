"""Compare a checkpoint, run left to right, with the model that transformers runs from its source.

Both sides compute in float32 whatever the type of the weights, so that one tolerance fits all:
upcasting is exact, and the comparison is about the function, not about the rounding of bf16.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.hf.families import PREFIX_SCALE
from armd_scale.checkpoint.hf.packing import load_into
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

# For the largest difference of a logit and for that of the mean NLL in nats. A converted
# SmolLM2-135M (30 layers) differs from transformers by 6e-5 in logits and 1.5e-7 in the NLL.
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
ForwardPath: TypeAlias = Literal["two streams", "one stream"]


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Distance of one forward path of the network from the reference."""

    path: ForwardPath
    """Content and query stream separately, or the single stream that left-to-right steps run."""
    max_logit_difference: float
    mean_logit_difference: float
    nll_difference: float
    """In nats per token."""
    top1_agreement: float
    """Fraction of positions at which both have the same most likely token."""

    @property
    def is_close(self) -> bool:
        """Whether the two agree up to rounding."""
        return max(self.max_logit_difference, self.nll_difference) <= TOLERANCE


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Comparison of a checkpoint with the folder from which it was converted."""

    num_tokens: int
    reference_nll: float
    """Of the reference, in nats per token."""
    agreements: tuple[ParityResult, ...]
    """One for each forward path that was compared."""
    is_exact_by_construction: bool
    """Whether the query initialization makes the two-stream network an AR model; if not, only its
    one-stream content path is compared."""

    @property
    def passed(self) -> bool:
        """Whether every compared path agrees with the reference."""
        return all(agreement.is_close for agreement in self.agreements)


def check_parity(
    checkpoint: Checkpoint,
    hf: Path,
    *,
    groups: ProcessGroupCollection,
    text: str | None = None,
    by_layer: bool = False,
) -> ParityReport:
    """Run both models on the same tokens and compare their logits; not collective.

    Args:
        checkpoint: converted from `hf`.
        hf: the Hugging Face folder.
        groups: process groups of a layout without tensor parallelism.
        text: text to compare on; None: a short built-in text.
        by_layer: hold the weights of one layer at a time, on both sides.

    Raises:
        CheckpointError: the text has fewer than two tokens.
    """
    model = checkpoint.recipe.model
    weights = StreamedWeights(checkpoint.folder / WEIGHTS)
    tokens = _tokens(checkpoint, text)
    # The last position predicts a token that is not in the text, so it has no target to compare.
    # Rounded as the checkpoint was, which may have narrower weights than the folder.
    dtypes = {tensor.dtype for tensor in weights.tensors.values()}
    stored = dtypes.pop() if len(dtypes) == 1 else torch.float32
    reference_logits = layerwise_logits if by_layer else whole_logits
    reference = reference_logits(hf, tokens, rounded_to=stored)[:, :-1]
    batch = _left_to_right_batch(tokens)
    is_exact = is_ar_exact(model, weights.read)
    runs: list[tuple[ForwardPath, ResolvedModel, ArmdBatch]]
    if is_exact and model.two_stream_layers != 0:
        # The flag lets the network run a single stream; without it both streams run.
        two_streams = dataclasses.replace(batch, is_left_to_right=False)
        runs = [("two streams", model, two_streams), ("one stream", model, batch)]
    else:
        runs = [("one stream", content_path(model), batch)]
    results = []
    for path, section, rows in runs:
        logits = _logits(section, weights, rows, groups=groups, by_layer=by_layer)
        results.append(_compare(path, logits, reference, batch.labels))
    return ParityReport(
        num_tokens=tokens.shape[1],
        reference_nll=_nll(reference, batch.labels),
        agreements=tuple(results),
        is_exact_by_construction=is_exact,
    )


def is_ar_exact(model: ResolvedModel, read: Callable[[str], Tensor]) -> bool:
    """Whether the network, run left to right, is an AR model with its own weights.

    Args:
        model: model section.
        read: reads a weight by name.
    """
    if model.query == "anchor+prefix":
        return not read(PREFIX_SCALE).any()  # a zero scale removes the prefix term
    return model.query == "anchor"


def content_path(model: ResolvedModel) -> ResolvedModel:
    """Return the model section of the plain AR stack with the same weights."""
    # Without two-stream layers a query row starts from its anchor's embedding and runs all layers:
    # left to right that is the AR model, whatever the trained query initialization was.
    return dataclasses.replace(model, query="anchor", two_stream_layers=0)


def _tokens(checkpoint: Checkpoint, text: str | None) -> Int[Tensor, "1 positions"]:
    """The start of the text as tokens; random tokens if the checkpoint has no tokenizer."""
    model = checkpoint.recipe.model
    assert model.max_positions is not None
    # Enough tokens to exercise positions and masks, in seconds on a CPU.
    length = min(MAX_PARITY_TOKENS, model.max_positions)
    folder = checkpoint.tokenizer_folder
    if folder is None:
        ids = np.random.default_rng(0).integers(0, model.vocab_size, size=length)
    else:
        tokenizer = load_tokenizer(folder)
        ids = tokenizer.encode_batch([PARITY_TEXT if text is None else text])[0][:length]
    if len(ids) < 2:
        raise CheckpointError(
            f"the text to compare on must have at least two tokens (got {len(ids)}): give a "
            "longer one"
        )
    return torch.from_numpy(np.asarray(ids, np.int64)).unsqueeze(0)


def _left_to_right_batch(tokens: Int[Tensor, "1 positions"]) -> ArmdBatch:
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
    """The network's logits, with all layers or one layer in memory at a time.

    One layer at a time is the same code as a pipeline with one layer in each stage, run in turn.
    """
    last = model.layers - 1
    stages: Sequence[PipelineStage] = [single_stage(model)]
    if by_layer:
        stages = [
            PipelineStage(range(n, n + 1), is_first=n == 0, is_last=n == last)
            for n in range(model.layers)
        ]
    hidden: Tensor | None = None
    for stage in stages:
        part = _load_stage(model, weights, stage, groups=groups)
        part.set_input_tensor(hidden)
        if stage.is_last:
            return part.logits(batch)
        hidden = part.forward_layers(batch)
    raise AssertionError("the last stage has the head")


def _load_stage(
    model: ResolvedModel,
    weights: StreamedWeights,
    stage: PipelineStage,
    *,
    groups: ProcessGroupCollection,
) -> ArmdModel:
    """A part of the network with its weights in float32."""
    part = build_empty_model(model, groups, dtype=torch.float32, stage=stage).eval()
    load_into(part, weights.read)
    return part


def _compare(path: ForwardPath, logits: Tensor, reference: Tensor, labels: Tensor) -> ParityResult:
    difference = (logits - reference).abs()
    return ParityResult(
        path=path,
        max_logit_difference=difference.max().item(),
        mean_logit_difference=difference.mean().item(),
        nll_difference=abs(_nll(logits, labels) - _nll(reference, labels)),
        top1_agreement=(logits.argmax(-1) == reference.argmax(-1)).double().mean().item(),
    )


def _nll(logits: Tensor, labels: Tensor) -> float:
    # In float64, so that summing over the vocabulary adds no difference of its own.
    return F.cross_entropy(logits.double().flatten(0, 1), labels.flatten()).item()


def describe(report: ParityReport) -> str:
    """Format the figures as a small table."""
    lines = [
        f"left-to-right parity with transformers on {report.num_tokens} tokens, in float32 "
        f"({report.reference_nll:.4f} nats/token; tolerance {TOLERANCE:g})",
        f"{'':12} {'max |logit|':>12} {'mean |logit|':>12} {'|NLL|':>10} {'top-1':>8}",
    ]
    for result in report.agreements:
        lines.append(
            f"{result.path:12} {result.max_logit_difference:12.2e} "
            f"{result.mean_logit_difference:12.2e} {result.nll_difference:10.2e} "
            f"{result.top1_agreement:8.2%}  " + ("ok" if result.is_close else "DIFFERS")
        )
    if not report.is_exact_by_construction:
        lines.append(
            "the query initialization does not keep the two-stream network equal to the AR model: "
            "only the one-stream content path was compared"
        )
    return "\n".join(lines)


def to_json(report: ParityReport) -> str:
    """Format the figures as one JSON object."""
    return json.dumps(
        {**dataclasses.asdict(report), "tolerance": TOLERANCE, "holds": report.passed}
    )
