"""Live view in a terminal: the text fills up while it is generated, in whatever order."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Bool, Int
from rich.console import Console
from rich.live import Live
from rich.text import Text

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.generation.result import RoundResult
from armd_scale.generation.strategy import TO_GENERATE, GenerationSpec
from armd_scale.log import ProgressBar

TOKEN_WIDTH = 4
"""Characters of a typical token, to estimate how many tokens fill a screen."""


@contextmanager
def live_progress(
    specs: Sequence[GenerationSpec], tokenizer: Tokenizer | None, *, is_rank0: bool = True
) -> Generator[Callable[[RoundResult], None], None, None]:
    """Yield an `on_round` that shows the first text in a terminal, and log lines elsewhere.

    Args:
        specs: the texts.
        tokenizer: the model's; without one, tokens are shown as ids.
        is_rank0: whether this process is the one that prints.
    """
    console = Console(stderr=True)
    if is_rank0 and console.is_terminal and specs:
        first = specs[0]
        text = LiveText(np.where(first.known, first.tokens, TO_GENERATE), tokenizer, console.size)
        # No refresh thread: the text changes only when a round ends.
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda result: live.update(text.render(result), refresh=True)
        return
    num_tokens = max((int((~spec.known).sum()) for spec in specs), default=0)
    with ProgressBar("generating", num_tokens, unit="tokens") as bar:
        yield lambda result: bar.advance(result.max_committed)


class LiveText:
    """A text as far as it is known.

    Args:
        tokens: tokens by position; `TO_GENERATE` where they are still to be generated.
        tokenizer: the model's; None shows token ids.
        size: width and height of the screen in characters.
    """

    def __init__(
        self, tokens: Int[np.ndarray, " P"], tokenizer: Tokenizer | None, size: tuple[int, int]
    ) -> None:
        self._tokens = tokens.copy()
        self._is_generated = tokens == TO_GENERATE
        self._tokenizer = tokenizer
        width, height = size
        self._max_tokens = max(width * (height - 1) // TOKEN_WIDTH, 1)

    def render(self, result: RoundResult) -> Text:
        """Add the tokens of a round and return the text: new tokens highlighted, given ones dim.

        Each missing token is a dot. Of a text that does not fit on the screen, the part around the
        first missing token is returned.
        """
        positions, tokens = result.positions[0], result.tokens[0]
        is_real = positions > 0
        self._tokens[positions[is_real]] = tokens[is_real]
        is_new = np.zeros(len(self._tokens), dtype=np.bool_)
        is_new[positions[is_real]] = True
        shown = self._visible_range()
        styles = self._styles(is_new)[shown]
        text = Text(overflow="fold")
        # Runs of one style are decoded together, because a tokenizer may drop the space at the
        # start of what it decodes.
        cuts = np.flatnonzero(styles[1:] != styles[:-1]) + 1
        runs = np.split(self._tokens[shown], cuts)
        for run, start in zip(runs, [0, *cuts.tolist()], strict=True):
            text.append(self._decode(run), style=str(styles[start]))
        return text

    def _visible_range(self) -> slice:
        missing = np.flatnonzero(self._tokens == TO_GENERATE)
        center = int(missing[0]) if len(missing) else len(self._tokens)
        # Without a tokenizer, position 0 only starts the text and is not shown.
        first = int(self._tokenizer is None)
        start = min(center - self._max_tokens // 2, len(self._tokens) - self._max_tokens)
        start = max(first, start)
        return slice(start, start + self._max_tokens)

    def _styles(self, is_new: Bool[np.ndarray, " P"]) -> np.ndarray:
        return np.select(
            [self._tokens == TO_GENERATE, is_new, ~self._is_generated],
            ["yellow", "black on green", "dim"],
            default="default",
        )

    def _decode(self, tokens: Int[np.ndarray, " n"]) -> str:
        if tokens[0] == TO_GENERATE:
            return "·" * len(tokens)
        if self._tokenizer is None:
            return "".join(f"{token} " for token in tokens)
        return self._tokenizer.decode(tokens.tolist())
