"""The decoding benchmark reports every case."""

import json

from armd_scale.bench.suites.decode import compare_decoding
from tests.support.networks import LLAMA, build


def test_every_case_is_measured(groups):
    result = compare_decoding(
        build(LLAMA, groups), streams=(1, 2), speculative=(2,), num_tokens=8, repeats=1
    )
    assert json.loads(json.dumps(result)) == result
    assert list(result) == ["streams 1", "streams 2", "speculative 2, streams 2"]
    assert [result[name]["rounds"] for name in list(result)[:2]] == [8, 5]
    assert all(case["tokens_per_second"] > 0 for case in result.values())
    assert 0 <= result["speculative 2, streams 2"]["acceptance_rate"] <= 1
