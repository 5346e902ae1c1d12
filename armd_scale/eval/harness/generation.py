"""Requests of the harness to generate text: settings, batches, and stop strings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from armd_scale.errors import ArmdError
from armd_scale.generation import Sampling

_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How to continue a prompt."""

    num_tokens: int
    """Tokens to generate."""
    stops: tuple[str, ...]
    """The text ends before the first of these strings."""
    sampling: Sampling


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A prompt to continue."""

    index: int
    """Of the request; its random numbers depend on it."""
    tokens: np.ndarray
    settings: GenerationSettings


def parse_settings(kwargs: Mapping[str, Any], *, max_length: int) -> GenerationSettings:
    """Convert the harness's `generation_kwargs`.

    Args:
        kwargs: normalized by the harness, so that `until`, `max_gen_toks` and `do_sample` exist.
        max_length: longest text, in tokens.

    Raises:
        ArmdError: an unknown key, or a length that leaves no room for a prompt.
    """
    settings = dict(kwargs)
    stops, num_tokens = settings.pop("until"), settings.pop("max_gen_toks")
    # do_sample without a temperature means 1, and no sampling means greedy, which is temperature 0.
    settings.setdefault("temperature", float(settings.pop("do_sample")))
    if unknown := settings.keys() - set(_SAMPLING_KEYS):
        raise ArmdError(
            "generation_kwargs must be among until, max_gen_toks, do_sample, "
            f"{', '.join(_SAMPLING_KEYS)} (got {', '.join(sorted(unknown))}): leave it out"
        )
    if num_tokens >= max_length:
        raise ArmdError(
            f"max_gen_toks must leave room for a prompt in a text of {max_length} tokens (got "
            f"{num_tokens}): lower it (--gen_kwargs max_gen_toks=N), or raise max_length"
        )
    return GenerationSettings(
        num_tokens=num_tokens,
        stops=tuple(stop for stop in stops if stop),
        sampling=Sampling(**settings),
    )


def make_batches(
    requests: Sequence[GenerationRequest], size: int
) -> Iterator[list[GenerationRequest]]:
    """Yield batches of requests with equal settings and similar prompt lengths."""

    def settings_key(request: GenerationRequest) -> tuple[int, str, tuple[str, ...]]:
        # `Sampling` has no order, and sorting is only needed to bring equal settings together.
        settings = request.settings
        return settings.num_tokens, repr(settings.sampling), settings.stops

    for _, group in groupby(sorted(requests, key=settings_key), key=settings_key):
        by_length = sorted(group, key=lambda request: len(request.tokens))
        for start in range(0, len(by_length), size):
            yield by_length[start : start + size]
