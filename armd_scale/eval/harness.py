"""A network as a model of lm-evaluation-harness, registered as `armd_scale`.

    lm_eval.simple_evaluate(ArmdHarness(network, tokenizer, max_tokens=1025), tasks=[...])

Needs the extra `eval`. It is made from Python, of a network that lives in process groups, not by
the harness's own command line. Likelihoods are of left-to-right order; texts are generated in one
stream or several.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]

from armd_scale.data.tokenize import Tokenizer
from armd_scale.eval.continuations import Pair, encode_pair, score_continuations
from armd_scale.eval.likelihood import score_windows
from armd_scale.eval.stream import TextStream
from armd_scale.model.armd import ArmdModel
from armd_scale.order.policies import LeftToRight
from armd_scale.sample import Sampling, Strategy, generate
from armd_scale.sample.text import opening_tokens


@register_model("armd_scale")
class ArmdHarness(LM):
    """A network with its tokenizer.

    Args:
        network: the model.
        tokenizer: of the model.
        max_tokens: longest text, in tokens; longer ones lose their beginning.
        micro_batch: texts of one forward pass.
        streams: segments generated side by side.
    """

    def __init__(
        self,
        network: ArmdModel,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        micro_batch: int = 8,
        streams: int = 1,
    ) -> None:
        super().__init__()
        self._network, self._tokenizer = network, tokenizer
        self._max_tokens, self._micro_batch = max_tokens, micro_batch
        self._strategy = Strategy(streams=streams)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Nats of each continuation (negative), and whether greedy decoding gives it."""
        pairs = [
            encode_pair(context, continuation, self._tokenizer)
            for context, continuation in (request.args for request in requests)
        ]
        verdicts = self._score(pairs)
        return [(verdict.logprob, verdict.is_greedy) for verdict in verdicts]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Nats of whole texts (negative), in windows that share one token."""
        return [self._rolling(*request.args) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts up to the first of their stop words."""
        return [self._generate(*request.args) for request in requests]

    def _score(self, pairs: Sequence[Pair]) -> list[Any]:
        return score_continuations(
            self._network, pairs, micro_batch=self._micro_batch, max_tokens=self._max_tokens
        )

    def _rolling(self, text: str) -> float:
        tokens = opening_tokens(text, self._tokenizer)
        if len(tokens) < 2:
            return 0.0
        length = self._max_tokens - 1
        windows = TextStream(
            lambda start, count: tokens[start : start + count],
            len(tokens),
            seq_length=length,
            stride=length,
        )
        return sum(
            score_windows(
                self._network, windows, LeftToRight(), numbers=range(w, w + 1), seed=0
            ).logprob.nansum().item()
            for w in range(windows.num_windows)
        )  # fmt: skip

    def _generate(self, context: str, how: dict[str, Any]) -> str:
        stops = how.get("until", [])
        stops = [stops] if isinstance(stops, str) else stops
        count = min(int(how.get("max_gen_toks", 256)), self._max_tokens - 1)
        prompt = opening_tokens(context, self._tokenizer)[-(self._max_tokens - count) :]
        is_drawn = how.get("do_sample", False)
        sampling = Sampling(
            temperature=float(how.get("temperature", 1.0)) if is_drawn else 0.0,
            top_p=float(how.get("top_p", 1.0)),
        )
        (sample,) = generate(
            self._network,
            [prompt],
            num_tokens=count,
            strategy=self._strategy,
            sampling=sampling,
            end=self._tokenizer.eod,
        ).samples
        # Decoded with its prompt, so that the first word keeps the blank before it.
        before = self._tokenizer.decode(prompt[1:].tolist())
        text = self._tokenizer.decode(np.asarray(sample.tokens)[1:].tolist())[len(before) :]
        return text[: min((text.find(stop) for stop in stops if stop in text), default=None)]
