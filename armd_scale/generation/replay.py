"""A page of its own that replays in which order tokens were generated."""

import json
from pathlib import Path

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.files import atomic_write_text
from armd_scale.generation.result import GenerationOutput
from armd_scale.generation.text import decode_incrementally

TEMPLATE = Path(__file__).with_name("replay.html")


def write_replay(path: Path, generation: GenerationOutput, tokenizer: Tokenizer | None) -> None:
    """Writes an HTML page that needs nothing but itself.

    Raises:
        GenerationError: the file cannot be written.
    """
    samples = [
        {"pieces": decode_incrementally(sample.tokens, tokenizer), "round": sample.round.tolist()}
        for sample in generation.samples
    ]
    data = json.dumps({"rounds": generation.rounds, "samples": samples})
    # The page sets text by textContent, so all that could end the script is its closing tag.
    data = data.replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("DATA", data, 1)
    atomic_write_text(path, page, error_class=GenerationError)
