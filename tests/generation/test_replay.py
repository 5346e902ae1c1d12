"""The page that replays an order: whole by itself, and no text can break out of it."""

import json
import re

import numpy as np

from armd_scale.data.tokenizer import train_sentencepiece
from armd_scale.generation import GenerationOutput, Sample
from armd_scale.generation.replay import write_replay
from armd_scale.generation.text import encode_prompt

TEXT = 'a </script><script>alert(1)</script> <!-- \u2028 \\ " b'


def test_the_data_come_back_from_the_page(tmp_path):
    tokenizer = train_sentencepiece(["def main():\n    return 0\n" * 20], 280)
    tokens = encode_prompt(TEXT, tokenizer)
    place = np.arange(len(tokens))
    sample = Sample(tokens, place, place > 2, np.zeros(len(tokens)), np.where(place > 2, place, 0))
    write_replay(tmp_path / "a.html", GenerationOutput([sample], 9, 1.0), tokenizer)
    page = (tmp_path / "a.html").read_text()
    data = re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    read = json.loads(data.group(1))
    assert "".join(read["samples"][0]["pieces"]) == TEXT
    assert read["samples"][0]["round"] == sample.round.tolist()
    assert read["rounds"] == 9
    assert page.count("<script") == page.count("</script>") == 2
    # Nothing is fetched from anywhere, and text is never read as markup.
    assert not re.search(r"https?:|src=|@import|innerHTML|insertAdjacent|document\.write", page)
