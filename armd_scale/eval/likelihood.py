"""Likelihood of held-out text under an order, computed on all data parallel ranks.

The sum is the block-wise chain rule (Karami & Ghodsi, arXiv 2601.16971, Eq. 2):

    NLL = sum over targets p of  -log P( x_p | tokens of earlier blocks )

It is the exact negative log-likelihood of the distribution that generation in the same order
samples from. For a random order, the mean over draws is an upper bound on the negative
log-likelihood of the mixture over orders (NELBO).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64, Int32, Int64
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from armd_scale.data.manifest import load_manifest
from armd_scale.data.sample_stream import collate, draw_sample
from armd_scale.data.windows import TokenWindows, Windows
from armd_scale.order.policies import OrderPolicy


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Likelihood of held-out text under an order."""

    order: str
    """SPEC of the order."""
    nll_nats_per_token: float
    """Mean negative log-likelihood per target."""
    perplexity: float
    """exp(nll_nats_per_token)."""
    standard_error: float | None
    """Standard error of nll_nats_per_token over windows (including the order draws); None for a
    single window."""
    num_tokens: int
    """Number of targets scored."""
    bits_per_byte: float | None
    """Negative log-likelihood in bits per UTF-8 byte, using the mean bytes per token of the whole
    data (end-of-document tokens included); None if no manifest records the bytes."""
    orders_per_sample: int = 1
    """Order draws per window; all figures are means over them."""
    standard_error_over_orders: float | None = None
    """Standard error of nll_nats_per_token over order draws for fixed windows; None for a single
    draw."""
    perplexity_per_word: float | None = None
    """exp(nats / words) of a text file, with words separated by whitespace."""

    def format_line(self) -> str:
        """The figures as one line of text."""
        errors = []
        if self.standard_error is not None:
            errors.append(f"standard error {self.standard_error:.4f}")
        if self.standard_error_over_orders is not None:
            errors.append(f"over orders {self.standard_error_over_orders:.4f}")
        parts = [
            self.order,
            f"{self.nll_nats_per_token:.4f} nats/token"
            + (f" ({', '.join(errors)})" if errors else ""),
            f"perplexity {self.perplexity:.2f}",
        ]
        if self.perplexity_per_word is not None:
            parts.append(f"{self.perplexity_per_word:.2f} per word")
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.4f} bits/byte")
        return "  ".join([*parts, f"{self.num_tokens} tokens"])


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities of consecutive windows, in text order."""

    first: int
    """Index of the first window."""
    tokens: Int64[Tensor, "n P"]
    block: Int32[Tensor, "n P"]
    """Generation blocks; 0 is given."""
    logprob: Float[Tensor, "n N"]
    """log P(token p | earlier blocks) in nats, in column p - 1; NaN where the token is given or
    an earlier window has scored it."""


def evaluate(
    network: nn.Module,
    windows: TokenWindows,
    order: OrderPolicy,
    *,
    samples: int,
    seed: int,
    micro_batch: int,
    groups: ProcessGroupCollection,
    on_scores: Callable[[Scores], None] | None = None,
) -> Likelihood:
    """Score the first windows of the data, each under an order drawn from (seed, window index).

    The result does not depend on the number of ranks. All ranks must call this together.

    Args:
        network: returns the negative log-likelihood in nats of each target of an ArmdBatch, [b, Q].
        windows: the data; windows are taken from its start, unshuffled.
        order: the order to draw from.
        samples: number of windows; all of them if the data has fewer.
        seed: seed of the order draws.
        micro_batch: windows per forward pass.
        groups: the process groups; data parallel ranks share the windows.
        on_scores: called with the scores of every forward pass of this rank.

    Returns:
        The likelihood, on every rank.
    """
    totals = score_all_windows(
        network, windows, order, samples=samples, seed=seed, micro_batch=micro_batch,
        groups=groups, on_scores=on_scores,
    )  # fmt: skip
    return summarize(order, totals[None], bytes_per_token=bytes_per_token(windows.prefix))


def score_all_windows(
    network: nn.Module,
    windows: Windows,
    order: OrderPolicy,
    *,
    samples: int,
    seed: int,
    micro_batch: int,
    groups: ProcessGroupCollection,
    on_scores: Callable[[Scores], None] | None = None,
) -> Float64[Tensor, "windows 2"]:
    """Return the nats and the number of targets of each window; arguments as of `evaluate`."""
    num_windows = min(samples, windows.num_windows)
    assert num_windows > 0, samples
    # Each row is written by one rank and zero on all others, so the all-reduce adds nothing but
    # zeros to it: the result is bit-equal for any number of ranks. Per-rank sums would not be.
    totals = torch.zeros(num_windows, 2, dtype=torch.float64, device=_device_of(network))
    for indices, is_padding in _rank_batches(num_windows, micro_batch, groups.dp):
        scores = score_windows(network, windows, order, indices=indices, seed=seed)
        if is_padding:
            continue
        nats = -scores.logprob.double().nansum(dim=1)
        num_targets = (~scores.logprob.isnan()).sum(dim=1).double()
        rows = slice(indices.start, indices.stop)
        totals[rows] = torch.stack((nats, num_targets), dim=1).to(totals.device)
        if on_scores is not None:
            on_scores(scores)
    dist.all_reduce(totals, group=groups.dp)
    return totals.cpu()


@torch.no_grad()
def score_windows(
    network: nn.Module, windows: Windows, order: OrderPolicy, *, indices: range, seed: int
) -> Scores:
    """Score consecutive windows in one forward pass.

    Args:
        network: returns the negative log-likelihood in nats of each target of an ArmdBatch, [b, Q].
        windows: the data.
        order: the order to draw from.
        indices: the windows to score.
        seed: seed of the order draws.
    """
    # A window's index serves as its sample index: its order does not depend on batching or ranks.
    samples = [draw_sample(windows, w, order=order, seed=seed, index=w) for w in indices]
    batch = collate(samples)
    nll = network(batch.to(_device_of(network))).to(batch.order.device)
    # NaN marks what is no target: the loss of a broken model is infinite instead.
    nll = nll.nan_to_num(nan=torch.inf, posinf=torch.inf)
    # Query row r of the network belongs to slot r + 1. `order` maps slots to positions, so the
    # scatter brings the rows back into text order; slot 0 is position 0, which is never a target.
    logprob = torch.full(batch.order.shape, torch.nan, dtype=nll.dtype)
    logprob.scatter_(1, batch.order[:, 1:], (-nll).where(batch.is_target, torch.nan))
    for row, index in enumerate(indices):
        logprob[row, 1 : windows.first_target(index)] = torch.nan
    tokens = torch.stack([torch.from_numpy(sample.tokens) for sample in samples])
    return Scores(indices.start, tokens, batch.block, logprob[:, 1:])


def _rank_batches(
    num_windows: int, micro_batch: int, data_parallel: dist.ProcessGroup
) -> Iterator[tuple[range, bool]]:
    """Yield the windows of each forward pass of this rank, and whether the pass is padding.

    All ranks run the same number of passes, the last one as padding if necessary: under ZeRO 3 the
    ranks gather weights together in every forward pass, so a rank that stopped early would leave
    the others waiting forever.
    """
    batches = [
        range(start, min(start + micro_batch, num_windows))
        for start in range(0, num_windows, micro_batch)
    ]
    size, rank = data_parallel.size(), data_parallel.rank()
    for first in range(0, len(batches), size):
        is_padding = first + rank >= len(batches)
        yield batches[0 if is_padding else first + rank], is_padding


def summarize(
    order: OrderPolicy,
    totals: Float64[Tensor, "draws windows 2"],
    *,
    bytes_per_token: float | None,
    num_words: int | None = None,
) -> Likelihood:
    """Compute the likelihood from the results of `score_all_windows` for one or several draws.

    Args:
        order: the order.
        totals: nats and number of targets per window; the latter must be equal in all draws.
        bytes_per_token: UTF-8 bytes of text per target; None if unknown.
        num_words: words of the text; None if unknown.
    """
    nats, targets = totals[..., 0], totals[0, :, 1]
    mean_nats = nats.mean(dim=0)
    nll = (mean_nats.sum() / targets.sum()).item()
    over_orders = None
    if len(nats) > 1:
        # Draws are independent between windows, so the variances of their means add up.
        over_orders = ((nats.var(dim=0) / len(nats)).sum().sqrt() / targets.sum()).item()
    return Likelihood(
        order=str(order),
        nll_nats_per_token=nll,
        perplexity=_exp(nll),
        standard_error=_standard_error(mean_nats, targets),
        num_tokens=int(targets.sum()),
        bits_per_byte=bytes_per_token and nll / math.log(2) / bytes_per_token,
        orders_per_sample=len(nats),
        standard_error_over_orders=over_orders,
        perplexity_per_word=num_words and _exp(nll * targets.sum().item() / num_words),
    )


def bytes_per_token(prefix: str) -> float | None:
    """Return UTF-8 bytes of text per token of a .bin/.idx pair; None if no manifest records it."""
    manifest = load_manifest(prefix)
    if manifest is None or manifest.text_bytes == 0:
        return None
    return manifest.text_bytes / manifest.tokens


def _exp(nats: float) -> float:
    # math.exp raises OverflowError above 709 nats; a diverged network should get inf instead.
    return torch.tensor(nats, dtype=torch.float64).exp().item()


def _standard_error(
    nats: Float64[Tensor, " windows"], targets: Float64[Tensor, " windows"]
) -> float | None:
    """Estimate the standard error of the ratio sum(nats) / sum(targets) over windows.

    Linearized ratio estimator (delta method). If all windows have the same number of targets, it
    equals the usual s / sqrt(n) of the window means.
    """
    count = len(nats)
    if count < 2:
        return None
    deviations = nats - targets * (nats.sum() / targets.sum())
    variance = deviations.square().sum() * count / (count - 1)
    return (variance.sqrt() / targets.sum()).item()


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
