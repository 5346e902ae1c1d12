"""Likelihood of held-out text under an order, spread over the data parallel ranks.

What is summed is the block-wise chain rule (Karami & Ghodsi, arXiv 2601.16971, Eq. 2): the exact
negative log-likelihood of what generation in that order draws from. Where the order is drawn, the
mean over draws is a bound from above on the negative log-likelihood of their mixture.
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
from armd_scale.eval.sliding_window import SlidingWindows
from armd_scale.order.policies import OrderPolicy


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What held-out text costs under an order."""

    order: str
    """SPEC of the order."""
    nll_nats_per_token: float
    """Mean negative log-likelihood of the targets."""
    perplexity: float
    """exp(nll_nats_per_token)."""
    standard_error: float | None
    """Of nll_nats_per_token, were the windows drawn anew, and their orders with them; None for a
    single window, which tells nothing of that."""
    num_tokens: int
    """Targets scored."""
    bits_per_byte: float | None
    """The same in bits per UTF-8 byte, at the tokens per byte of the whole of the data (tokens that
    end documents included); None where no manifest counts the bytes."""
    orders_per_sample: int = 1
    """Draws of each window's order, which all figures are means over."""
    standard_error_over_orders: float | None = None
    """Of nll_nats_per_token, were the orders alone drawn anew; None for a single draw."""
    perplexity_per_word: float | None = None
    """exp(nats / words) of a text file, words being what stands between its blanks."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Some consecutive windows with what the network says of their targets, in text order."""

    first: int
    """Number of the first window."""
    tokens: Int64[Tensor, "n P"]
    block: Int32[Tensor, "n P"]
    """Generation blocks; 0 is given."""
    logprob: Float[Tensor, "n N"]
    """log P(token p | earlier blocks) in nats, in column p - 1; NaN where the token is given."""


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
    """Scores the first windows of the data, each under an order drawn by (seed, window).

    The result depends neither on the number of ranks nor on who scores which window. All ranks must
    call this together.

    Args:
        network: gives nats per target of a batch, [b, Q].
        windows: the data, taken from its beginning and in its own order.
        order: the order to draw from.
        samples: number of windows; fewer where the data ends.
        seed: seed of the draws.
        micro_batch: windows of one forward pass.
        groups: the process groups; data parallel ranks share the windows.
        watch: called with every few windows that this rank has scored.
    """
    count = min(samples, windows.num_windows)
    assert count > 0, samples
    totals = score_all_windows(
        network, windows, order, samples=samples, seed=seed, micro_batch=micro_batch,
        groups=groups, watch=on_scores,
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
    watch: Callable[[Scores], None] | None = None,
) -> Float64[Tensor, "windows 2"]:
    """Nats and number of targets of each of the first windows; arguments as of `evaluate`."""
    count = min(samples, windows.num_windows)
    assert count > 0, samples
    # One row a window, each filled by one rank: the sum over ranks is exact, whatever their number.
    totals = torch.zeros(count, 2, dtype=torch.float64, device=_device_of(network))
    for numbers, is_padding in _rank_batches(count, micro_batch, groups.dp):
        scores = score_windows(network, windows, order, numbers=numbers, seed=seed)
        if is_padding:
            continue
        known = ~scores.logprob.isnan()
        nats = -scores.logprob.double().nansum(dim=1)
        here = slice(numbers.start, numbers.stop)
        totals[here] = torch.stack((nats, known.sum(dim=1).double()), dim=1).to(totals.device)
        if watch is not None:
            watch(scores)
    dist.all_reduce(totals, group=groups.dp)
    return totals.cpu()


@torch.no_grad()
def score_windows(
    network: nn.Module, windows: Windows, order: OrderPolicy, *, numbers: range, seed: int
) -> Scores:
    """One forward pass over consecutive windows.

    Args:
        network: gives nats per target of a batch, [b, Q].
        windows: the data.
        order: the order to draw from.
        numbers: which windows.
        seed: seed of the draws.
    """
    samples = [draw_sample(windows, w, order=order, seed=seed, index=w) for w in numbers]
    batch = collate(samples)
    nll = network(batch.to(_device_of(network))).to(batch.order.device)
    logprob = torch.full(batch.order.shape, torch.nan, dtype=nll.dtype)
    logprob.scatter_(1, batch.order[:, 1:], (-nll).where(batch.is_target, torch.nan))
    if isinstance(windows, SlidingWindows):
        for row, number in enumerate(numbers):
            logprob[row, 1 : windows.first_target(number)] = torch.nan
    tokens = torch.stack([torch.from_numpy(sample.tokens) for sample in samples])
    return Scores(numbers.start, tokens, batch.block, logprob[:, 1:])


def _rank_batches(
    count: int, micro_batch: int, data_parallel: dist.ProcessGroup
) -> Iterator[tuple[range, bool]]:
    """Windows of each of this rank's forward passes, and whether the pass is a spare one.

    Every rank runs equally many, if need be one for nothing: under ZeRO 3 the ranks gather weights
    together in each forward pass, and one that has finished would leave the others waiting.
    """
    batches = [range(i, min(i + micro_batch, count)) for i in range(0, count, micro_batch)]
    size, rank = data_parallel.size(), data_parallel.rank()
    for first in range(0, len(batches), size):
        number = first + rank
        is_spare = number >= len(batches)
        yield batches[0 if is_spare else number], is_spare


def summarize(
    order: OrderPolicy,
    totals: Float64[Tensor, "draws windows 2"],
    *,
    bytes_per_token: float | None,
    words: int | None = None,
) -> Likelihood:
    """The likelihood from what `window_totals` gave for one or several draws of every order.

    Args:
        order: the order.
        totals: nats and number of targets; the latter are the same in all draws.
        bytes_per_token: UTF-8 bytes of text for each target, where known.
        words: words of the text, where known.
    """
    nats, targets = totals[..., 0], totals[0, :, 1]
    mean = nats.mean(dim=0)
    nll = (mean.sum() / targets.sum()).item()
    over_orders = None
    if len(nats) > 1:
        over_orders = ((nats.var(dim=0) / len(nats)).sum().sqrt() / targets.sum()).item()
    return Likelihood(
        order=str(order),
        nll_nats_per_token=nll,
        perplexity=_exp(nll),
        standard_error=_standard_error(mean, targets),
        num_tokens=int(targets.sum()),
        bits_per_byte=bytes_per_token and nll / math.log(2) / bytes_per_token,
        orders_per_sample=len(nats),
        standard_error_over_orders=over_orders,
        perplexity_per_word=words and _exp(nll * targets.sum().item() / words),
    )


def bytes_per_token(prefix: str) -> float | None:
    """Bytes of text for each token of a .bin/.idx pair; None where no manifest counts them."""
    manifest = load_manifest(prefix)
    if manifest is None or manifest.text_bytes == 0:
        return None
    return manifest.text_bytes / manifest.tokens


def _exp(nats: float) -> float:
    # Infinity, not an exception, for a network that has learned nothing.
    return torch.tensor(nats, dtype=torch.float64).exp().item()


def _standard_error(
    nats: Float64[Tensor, " windows"], targets: Float64[Tensor, " windows"]
) -> float | None:
    """Of sum(nats) / sum(targets), to first order in the windows' deviations from that ratio.

    Where all windows have equally many targets it is the usual s / sqrt(n) of their means.
    """
    count = len(nats)
    if count < 2:
        return None
    deviations = nats - targets * (nats.sum() / targets.sum())
    variance = deviations.square().sum() * count / (count - 1)
    return (variance.sqrt() / targets.sum()).item()


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
