"""The replay page is self-contained, and no text can act as markup in it."""

import json
import re

import numpy as np

from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.generation import GenerationOutput, Sample
from armd_scale.generation.replay import write_replay
from armd_scale.generation.text import encode_prompt

TEXT = 'a </script><script>alert(1)</script> <!-- \u2028 \\ " b'


def test_page_contains_the_data_and_nothing_executable_from_it(tmp_path):
    tokenizer = train_sentencepiece(["def main():\n    return 0\n" * 20], 280)
    tokens = encode_prompt(TEXT, tokenizer).tokens
    position = np.arange(len(tokens))
    generated = position > 2
    sample = Sample(
        tokens, position, generated, np.zeros(len(tokens)), np.where(generated, position, 0)
    )
    write_replay(tmp_path / "a.html", GenerationOutput([sample], 9, 1.0), tokenizer)
    page = (tmp_path / "a.html").read_text()
    data = re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert data is not None
    content = json.loads(data.group(1))
    assert "".join(content["samples"][0]["pieces"]) == TEXT
    assert content["samples"][0]["round"] == sample.round.tolist()
    assert content["rounds"] == 9
    assert page.count("<script") == page.count("</script>") == 2
    # The page loads nothing from elsewhere, and never parses text as markup.
    assert not re.search(r"https?:|src=|@import|innerHTML|insertAdjacent|document\.write", page)
