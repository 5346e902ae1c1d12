"""A model for lm-evaluation-harness, registered under the name `armd_scale`.

    python tools/harness.py --model armd_scale --model_args checkpoint=runs/demo,streams=4 --tasks T
    lm_eval.simple_evaluate("armd_scale", "checkpoint=runs/demo,streams=4", tasks=[...])

Needs the optional dependency group `eval`. The harness only knows the models in its own source and
does not look for others, so this module must be imported before the name can be used. `run_harness`
then runs the command line of the harness. Log-likelihoods are in left-to-right order; texts are
generated in one or several streams. `data.text_encoder` says how texts start.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.checkpoint.pretrained import open_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.text_encoder import TextEncoder, TokenPair
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import ArmdError
from armd_scale.eval.data import check_max_positions, require_tokenizer
from armd_scale.eval.harness.arguments import HarnessArguments, read_arguments, with_device
from armd_scale.eval.harness.generation import (
    GenerationRequest,
    make_batches,
    parse_settings,
)
from armd_scale.eval.loglikelihood import ContinuationScore, score_continuations
from armd_scale.generation import Strategy, generate_tokens
from armd_scale.generation.output_rules import rules_of, truncate_at_stop
from armd_scale.generation.text_decoder import decode_rest
from armd_scale.log import ProgressBar, get_logger
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

_logger = get_logger(__name__)


def run_harness() -> None:
    """Run the harness's command line on the arguments of this process."""
    cli_evaluate()


class ArmdHarness(LM):
    """A network with its tokenizer; the ranks of its data parallel group share the requests.

    The harness itself gives each rank its requests; this class only tells it rank and size.

    Args:
        network: the model.
        tokenizer: the model's tokenizer.
        encoder: how texts start; None: as the tokenizer says.
        max_length: longest context to predict from, in tokens; longer ones are truncated on the
            left.
        micro_batch: texts per forward pass.
        streams: segments generated in parallel.
    """

    def __init__(
        self,
        network: ArmdModel,
        tokenizer: Tokenizer,
        *,
        encoder: TextEncoder | None = None,
        max_length: int,
        micro_batch: int = 8,
        streams: int = 1,
    ) -> None:
        super().__init__()
        self._network, self._tokenizer = network, tokenizer
        self._encoder = encoder or TextEncoder(tokenizer)
        self._max_length, self._micro_batch = max_length, micro_batch
        self._strategy = Strategy(streams=streams)
        self._has_warned = False
        self._group = network.groups.dp
        # Read by the base class, which has properties of these names without underscore.
        self._rank, self._world_size = self._group.rank(), self._group.size()
        self._device = next(network.parameters()).device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "ArmdHarness":
        """Create the model from parsed arguments; called by the harness."""
        return open_harness(read_arguments({**arg_dict, **(additional_config or {})}))

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "ArmdHarness":
        """Create the model from a string such as `checkpoint=runs/demo,streams=4`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation, and whether it is the greedy one."""
        pairs = [self._encoder.encode_pair(*request.args) for request in requests]
        return [(score.logprob, score.is_greedy) for score in self._score(pairs)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability in nats of whole texts, in the harness's windows."""
        windows = [self._rolling_windows(*request.args) for request in requests]
        # All windows of all texts are scored at once and then dealt back to their texts in order.
        scores = iter(self._score([pair for pairs in windows for pair in pairs]))
        return [sum((next(scores).logprob for _ in pairs), 0.0) for pairs in windows]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continuations, each up to the first of its stop strings."""
        parsed = [self._parse_request(index, *r.args) for index, r in enumerate(requests)]
        texts: dict[int, str] = {}
        with self._progress("generating", len(parsed)) as advance:
            for batch in make_batches(parsed, self._micro_batch):
                texts |= self._generate(batch)
                advance(len(batch))
        return [texts[index] for index in range(len(parsed))]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack the tensors of all ranks, in rank order."""
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor, group=self._group)
        return torch.stack(gathered)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:
        """Collect the objects of all ranks on rank `dst`; an empty list on other ranks."""
        gathered = [None] * self.world_size if self.rank == dst else None
        dist.gather_object(obj, gathered, group=self._group, group_dst=dst)
        return gathered or []

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self._group)

    @contextmanager
    def _progress(self, title: str, count: int) -> Iterator[Callable[[int], None]]:
        """Yield a function that advances the progress bar, which only the first rank shows."""
        if self.rank:
            yield lambda amount: None
            return
        with ProgressBar(title, count, unit="texts") as progress:
            yield progress.advance

    def _score(self, pairs: list[TokenPair]) -> list[ContinuationScore]:
        # `max_length` limits the context: the last token of a text is only predicted.
        self._warn_if_cut([len(p.context) + len(p.continuation) - 1 for p in pairs])
        with self._progress("scoring", len(pairs)) as advance:
            return score_continuations(
                self._network,
                pairs,
                micro_batch=self._micro_batch,
                max_tokens=self._max_length + 1,
                on_batch=advance,
            )

    def _rolling_windows(self, text: str) -> list[TokenPair]:
        """Split a text as the harness does: full windows in which each token is scored once."""
        prefix, *tokens = self._encoder.encode_document(text).tolist()
        windows = get_rolling_token_windows(tokens, prefix, self._max_length, context_len=1)
        return [
            TokenPair(*(np.array(part, dtype=np.int64) for part in make_disjoint_window(window)))
            for window in windows
        ]

    def _parse_request(
        self, index: int, context: str, generation_kwargs: dict[str, Any]
    ) -> GenerationRequest:
        kwargs = normalize_gen_kwargs(generation_kwargs)
        settings = parse_settings(dict(kwargs), max_length=self._max_length)
        max_prompt_tokens = self._max_length - settings.num_tokens
        prompt = self._encoder.encode_prompt(context)
        self._warn_if_cut([len(prompt) + settings.num_tokens])
        return GenerationRequest(index, prompt[-max_prompt_tokens:], settings)

    def _warn_if_cut(self, lengths: list[int]) -> None:
        """Say once that texts are longer than the model takes."""
        num_cut = sum(length > self._max_length for length in lengths)
        if num_cut and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "a text of %d tokens is cut on the left to the max_length of %d tokens, and others "
                "may be: figures depend on it",
                max(lengths),
                self._max_length,
            )

    def _generate(self, batch: list[GenerationRequest]) -> dict[int, str]:
        """Generate texts with equal settings; returns them by request index."""
        settings = batch[0].settings
        samples = generate_tokens(
            self._network,
            [request.tokens for request in batch],
            num_tokens=settings.num_tokens,
            strategy=self._strategy,
            sampling=settings.sampling,
            # Each rank counts its own requests from 0; these ids are unique over all ranks, so that
            # equal prompts on two ranks get different random numbers.
            sample_ids=[r.index * self.world_size + self.rank for r in batch],
            rules=rules_of(self._tokenizer, stop_at_eos=True, stops=settings.stops),
        ).samples
        texts = {}
        for request, sample in zip(batch, samples, strict=True):
            text = decode_rest(self._tokenizer, request.tokens, sample.tokens[sample.generated])
            texts[request.index] = truncate_at_stop(text, request.settings.stops)
        return texts


# Not written as a decorator, because the decorator's return type would hide the class's own.
register_model("armd_scale")(ArmdHarness)


def _max_length(arguments: HarnessArguments, checkpoint: Checkpoint) -> int:
    """Return the longest context to predict from, in tokens.

    Raises:
        CheckpointError: `max_length` exceeds the positions of the model.
    """
    if arguments.max_length is not None:
        check_max_positions(arguments.max_length, checkpoint, flag="max_length=")
        return arguments.max_length
    # A converted model has the length of its source, whatever the recipe trains on.
    model = checkpoint.recipe.model
    if model.max_positions is None:
        return checkpoint.recipe.data.seq_length
    # Rows of a table are needed for the last token too, which is only predicted.
    return model.max_positions - int(model.has_position_table)


def open_harness(arguments: HarnessArguments) -> ArmdHarness:
    """Load a model, with process groups that live as long as the model does.

    Raises:
        ArmdError: the checkpoint cannot be used or has no tokenizer, `max_length` exceeds its
            positions, or this process already has such a model.
    """
    if dist.is_initialized():
        raise ArmdError(
            "a process can have only one armd_scale model at a time, and it already has one: "
            "delete that first, or pass its network to ArmdHarness"
        )
    path = arguments.hf or arguments.checkpoint
    assert path is not None
    folder = open_model(path)
    recipe = folder.checkpoint.recipe
    tokenizer = require_tokenizer(folder.checkpoint)
    max_length = _max_length(arguments, folder.checkpoint)
    environment = with_device(read_environment(), arguments.device)
    # The harness never closes its models. If loading fails, leaving the `with` block destroys the
    # process groups; otherwise the finalizer does when the model is garbage collected.
    with ExitStack() as stack:
        groups = stack.enter_context(process_groups(environment, ParallelConfig()))
        model = ArmdHarness(
            folder.load_network(groups=groups, device=environment.device),
            tokenizer,
            encoder=TextEncoder(
                tokenizer,
                add_bos_token=arguments.add_bos_token,
                prefix_token_id=arguments.prefix_token_id,
            ),
            max_length=max_length,
            micro_batch=arguments.micro_batch or recipe.train.micro_batch,
            streams=arguments.streams,
        )
        weakref.finalize(model, stack.pop_all().close)
    return model
