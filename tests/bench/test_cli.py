"""The registry of benchmarks agrees with the suites."""

from pkgutil import resolve_name

import pytest

from armd_scale.bench.cli import BENCHMARKS, MODEL_SIZES, VARIABLES
from armd_scale.bench.suites.scaling import VALUES
from armd_scale.bench.suites.step import WORKLOADS


def test_options_list_every_model_size_and_variable() -> None:
    assert tuple(WORKLOADS) == MODEL_SIZES
    assert tuple(VALUES) == VARIABLES


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_names_a_function(name: str) -> None:
    assert callable(resolve_name(BENCHMARKS[name].function))
