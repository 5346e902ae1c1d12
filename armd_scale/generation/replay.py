"""An HTML page that replays in which order tokens were generated."""

import json
from pathlib import Path

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.files import atomic_write_text
from armd_scale.generation.result import GenerationOutput
from armd_scale.generation.text_decoder import decode_incrementally

TEMPLATE = Path(__file__).with_name("replay.html")


def write_replay(path: Path, output: GenerationOutput, tokenizer: Tokenizer | None) -> None:
    """Write a self-contained HTML page that replays all samples.

    Raises:
        GenerationError: the file cannot be written.
    """
    samples = [
        {"pieces": decode_incrementally(sample.tokens, tokenizer), "round": sample.round.tolist()}
        for sample in output.samples
    ]
    data = json.dumps({"rounds": output.rounds, "samples": samples})
    # The page inserts text by textContent, so the only thing in it that could act as markup is a
    # closing script tag. In a JSON string \u003c is the same character.
    data = data.replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("DATA", data, 1)
    atomic_write_text(path, page, error_class=GenerationError)
