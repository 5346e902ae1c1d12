"""What a terminal shows of a generation: the text as it fills up, wherever tokens land."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.live import Live
from rich.text import Text

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.generation.decoder import RoundResult
from armd_scale.generation.strategy import TO_GENERATE, GenerationSpec
from armd_scale.log import ProgressBar

TOKEN_WIDTH = 4
"""Letters of a usual token, to know how many fill a screen."""


@contextmanager
def live_progress(
    outlines: Sequence[GenerationSpec], tokenizer: Tokenizer | None, *, is_main: bool = True
) -> Iterator[Callable[[RoundResult], None]]:
    """An `on_round` that shows the first text where a terminal watches, else how far it is.

    Args:
        outlines: of the texts.
        tokenizer: the model's; without one, tokens show as their ids.
        is_main: whether this process speaks for the job.
    """
    console = Console(stderr=True)
    if is_main and console.is_terminal and outlines:
        first = outlines[0]
        text = LiveText(np.where(first.known, first.tokens, TO_GENERATE), tokenizer, console.size)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda landed: live.update(text.render(landed), refresh=True)
        return
    num_tokens = max((int((~outline.known).sum()) for outline in outlines), default=0)
    with ProgressBar("generating", num_tokens, unit="tokens") as bar:
        yield lambda landed: bar.advance(landed.max_committed)


class LiveText:
    """A text as far as it is known.

    Args:
        tokens: HOLE where they are to be generated.
        tokenizer: the model's.
        size: width and height of the screen.
    """

    def __init__(
        self, tokens: Int[np.ndarray, " P"], tokenizer: Tokenizer | None, size: tuple[int, int]
    ) -> None:
        self._tokens = tokens.copy()
        self._is_generated = tokens == TO_GENERATE
        self._tokenizer = tokenizer
        self._room = max(size[0] * (size[1] - 1) // TOKEN_WIDTH, 1)

    def render(self, landed: RoundResult) -> Text:
        """The text with a round's tokens: those stand out, given ones are dim, dots are missing.

        Of a text that is longer than the screen, what surrounds the first missing token.
        """
        is_fresh = np.zeros(len(self._tokens), dtype=np.bool_)
        places = landed.positions[0]
        self._tokens[places[places > 0]] = landed.tokens[0][places > 0]
        is_fresh[places[places > 0]] = True
        missing = np.flatnonzero(self._tokens == TO_GENERATE)
        middle = int(missing[0]) if len(missing) else len(self._tokens)
        begin = max(1, min(middle - self._room // 2, len(self._tokens) - self._room))
        shown = slice(begin, begin + self._room)
        kind = np.select(
            [self._tokens == TO_GENERATE, is_fresh, ~self._is_generated],
            ["yellow", "black on green", "dim"],
            default="default",
        )[shown]
        drawn = Text(overflow="fold")
        # Neighbours of one kind are decoded together, as blanks belong to what follows them.
        cuts = np.flatnonzero(kind[1:] != kind[:-1]) + 1
        for run, style in zip(np.split(self._tokens[shown], cuts), kind[[0, *cuts]], strict=True):
            drawn.append(self._decoded(run), style=str(style))
        return drawn

    def _decoded(self, tokens: Int[np.ndarray, " n"]) -> str:
        if tokens[0] == TO_GENERATE:
            return "·" * len(tokens)
        if self._tokenizer is None:
            return "".join(f"{token} " for token in tokens)
        return self._tokenizer.decode(tokens.tolist())
