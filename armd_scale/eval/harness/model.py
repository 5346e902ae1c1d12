"""A network as a model of lm-evaluation-harness, registered as `armd_scale`.

    python tools/harness.py --model armd_scale --model_args checkpoint=runs/demo,streams=4 --tasks T
    lm_eval.simple_evaluate("armd_scale", "checkpoint=runs/demo,streams=4", tasks=[...])

Needs the extra `eval`. The harness knows its own models by a table in its source and looks for no
others, so this module must be imported before the name means something; `run_harness` is its
command line after that. Likelihoods are of left-to-right order; texts are generated in one stream
or several. How texts begin is in `beginning`.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)

from armd_scale.checkpoint.pretrained import open_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import ArmdError
from armd_scale.eval.data import require_tokenizer
from armd_scale.eval.harness.arguments import HarnessArguments, read_arguments, with_device
from armd_scale.eval.harness.prompts import PromptEncoder
from armd_scale.eval.held_out import check_max_positions
from armd_scale.eval.loglikelihood import (
    ContextContinuation,
    ContinuationScore,
    score_continuations,
)
from armd_scale.generation import Sampling, Strategy, generate_tokens
from armd_scale.log import ProgressBar
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def run_harness() -> None:
    """The harness's own command line, on this process's arguments, with `armd_scale` known."""
    cli_evaluate()


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A text to continue."""

    number: int
    """Of the request, which its random numbers depend on."""
    tokens: np.ndarray
    num_tokens: int
    """To generate."""
    stops: tuple[str, ...]
    sampling: Sampling


class ArmdHarness(LM):
    """A network with its tokenizer; the ranks of its data-parallel group share the requests.

    Args:
        network: the model, which lives in process groups.
        tokenizer: of the model.
        beginning: how texts begin; by default as the tokenizer says.
        max_length: longest text to predict from, in tokens; longer ones lose their beginning.
        micro_batch: texts of one forward pass.
        streams: segments generated side by side.
    """

    def __init__(
        self,
        network: ArmdModel,
        tokenizer: Tokenizer,
        *,
        beginning: PromptEncoder | None = None,
        max_length: int,
        micro_batch: int = 8,
        streams: int = 1,
    ) -> None:
        super().__init__()
        self._network, self._tokenizer = network, tokenizer
        self._beginning = beginning or PromptEncoder(tokenizer)
        self._max_length, self._micro_batch = max_length, micro_batch
        self._strategy = Strategy(streams=streams)
        self._peers = network.groups.dp
        self._rank, self._world_size = self._peers.rank(), self._peers.size()
        self._device = next(network.parameters()).device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "ArmdHarness":
        """What the harness makes a model by; see `HarnessArguments` and `open_harness`."""
        return open_harness(read_arguments({**arg_dict, **(additional_config or {})}))

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "ArmdHarness":
        """The same from `checkpoint=runs/demo,streams=4`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Nats of each continuation (negative), and whether greedy decoding gives it."""
        verdicts = self._score([self._beginning.encode_pair(*request.args) for request in requests])
        return [(verdict.logprob, verdict.is_greedy) for verdict in verdicts]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Nats of whole texts (negative), in the harness's windows: each token is scored once."""
        windows = [self._windows(*request.args) for request in requests]
        verdicts = iter(self._score([pair for pairs in windows for pair in pairs]))
        return [sum((next(verdicts).logprob for _ in pairs), 0.0) for pairs in windows]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts up to the first of their stop words; equal settings are generated together."""
        asked = [self._prompt(number, *request.args) for number, request in enumerate(requests)]
        texts: dict[int, str] = {}
        with self._progress("generating", len(asked)) as advance:
            for batch in _batches(asked, self._micro_batch):
                texts |= self._generate(batch)
                advance(len(batch))
        return [texts[prompt.number] for prompt in asked]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """One number of each rank, in their order."""
        found = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(found, tensor, group=self._peers)
        return torch.stack(found)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:
        """Every rank's object on rank `dst`, nothing on others."""
        found = [None] * self.world_size if self.rank == dst else None
        dist.gather_object(obj, found, group=self._peers, group_dst=dst)
        return found or []

    def barrier(self) -> None:
        """Waits for all ranks."""
        dist.barrier(group=self._peers)

    @contextmanager
    def _progress(self, title: str, count: int) -> Iterator[Callable[[int], None]]:
        """What counts texts as done; the first rank shows it."""
        if self.rank:
            yield lambda amount: None
            return
        with ProgressBar(title, count, unit="texts") as track:
            yield track.advance

    def _score(self, pairs: list[ContextContinuation]) -> list[ContinuationScore]:
        with self._progress("scoring", len(pairs)) as advance:
            return score_continuations(
                self._network,
                pairs,
                micro_batch=self._micro_batch,
                max_tokens=self._max_length + 1,
                on_batch=advance,
            )

    def _windows(self, text: str) -> list[ContextContinuation]:
        prefix, *tokens = self._beginning.encode_rolling(text).tolist()
        windows = get_rolling_token_windows(tokens, prefix, self._max_length, context_len=1)
        return [
            ContextContinuation(
                *(np.array(part, dtype=np.int64) for part in make_disjoint_window(window))
            )
            for window in windows
        ]

    def _prompt(self, number: int, context: str, how: Mapping[str, Any]) -> _Prompt:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(how)))
        stops, count = settings.pop("until"), settings.pop("max_gen_toks")
        is_drawn = settings.pop("do_sample")
        settings.setdefault("temperature", float(is_drawn))
        if unknown := settings.keys() - set(_SAMPLING):
            raise ArmdError(
                f"generation_kwargs must be among until, max_gen_toks, do_sample, "
                f"{', '.join(_SAMPLING)}, got {', '.join(sorted(unknown))}: leave it out"
            )
        if count >= self._max_length:
            raise ArmdError(
                f"max_gen_toks must leave room for a prompt in texts of {self._max_length} tokens, "
                f"got {count}: lower it (--gen_kwargs max_gen_toks=N), or raise max_length"
            )
        return _Prompt(
            number=number,
            tokens=self._beginning.encode_prompt(context)[-(self._max_length - count) :],
            num_tokens=count,
            stops=tuple(stop for stop in stops if stop),
            sampling=Sampling(**settings),
        )

    def _generate(self, batch: list[_Prompt]) -> dict[int, str]:
        """Texts by the numbers of their requests."""
        samples = generate_tokens(
            self._network,
            [prompt.tokens for prompt in batch],
            num_tokens=batch[0].num_tokens,
            strategy=self._strategy,
            sampling=batch[0].sampling,
            # Ranks hold different requests under the same numbers.
            sample_ids=[p.number * self.world_size + self.rank for p in batch],
            eos_id=self._tokenizer.eod,
        ).samples
        texts = {}
        for prompt, sample in zip(batch, samples, strict=True):
            # Decoded with its prompt, so that the first word keeps the blank before it.
            before = self._tokenizer.decode(prompt.tokens.tolist())
            text = self._tokenizer.decode(sample.tokens.tolist())[len(before) :]
            found = [text.find(stop) for stop in prompt.stops if stop in text]
            texts[prompt.number] = text[: min(found, default=None)]
        return texts


# As a decorator it would hide the class's own type.
register_model("armd_scale")(ArmdHarness)


def open_harness(given: HarnessArguments) -> ArmdHarness:
    """A model with process groups that live as long as it does.

    Raises:
        ArmdError: a checkpoint that cannot be used, one without tokenizer, a text longer than its
            positions, or another such model in this process.
    """
    if dist.is_initialized():
        raise ArmdError(
            "one armd_scale model may live in a process at a time, and another one does: delete it "
            "first, or hand the network that is there to ArmdHarness"
        )
    path = given.hf or given.checkpoint
    assert path is not None
    opened = open_model(path)
    recipe = opened.checkpoint.recipe
    tokenizer = require_tokenizer(opened.checkpoint)
    max_length = given.max_length or recipe.data.seq_length
    check_max_positions(max_length, opened.checkpoint, flag="max_length=")
    environment = with_device(read_environment(), given.device)
    with ExitStack() as stack:
        groups = stack.enter_context(process_groups(environment, ParallelConfig()))
        model = ArmdHarness(
            opened.load_network(groups=groups, device=environment.device),
            tokenizer,
            beginning=PromptEncoder(
                tokenizer,
                add_bos_token=given.add_bos_token,
                prefix_token_id=given.prefix_token_id,
            ),
            max_length=max_length,
            micro_batch=given.micro_batch or recipe.train.micro_batch,
            streams=given.streams,
        )
        weakref.finalize(model, stack.pop_all().close)
    return model


def _batches(prompts: list[_Prompt], size: int) -> Iterator[list[_Prompt]]:
    """Prompts that are generated together: equal settings, similar lengths."""

    def settings(prompt: _Prompt) -> tuple[int, str]:
        return prompt.num_tokens, repr(prompt.sampling)

    for _, group in groupby(sorted(prompts, key=settings), key=settings):
        by_length = sorted(group, key=lambda prompt: len(prompt.tokens))
        for begin in range(0, len(by_length), size):
            yield by_length[begin : begin + size]
