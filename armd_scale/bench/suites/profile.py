"""Operators of a training step, network by network."""

from collections.abc import Sequence

from armd_scale.bench.profiler import GROUPS, Operator, profile_operators, total
from armd_scale.bench.suites.step import WORKLOADS, step_functions
from armd_scale.bench.table import Row
from armd_scale.bench.timing import time_interleaved
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups


def profile_steps(*, model_size: str = "small", steps: int = 3, top: int = 8) -> list[Row]:
    """Profile a step of every network of `compare_steps`, one network after another.

    Args:
        model_size: a key of WORKLOADS.
        steps: profiled steps of each network, and as many unprofiled ones for the wall clock.
        top: number of operators of each group to list.

    Returns:
        The rows of `table` for every network. They show where a step that is slower than its FLOPs
        suggest spends its time.
    """
    environment = read_environment()
    device = environment.device
    with process_groups(environment, ParallelConfig()) as groups:
        cases = step_functions(WORKLOADS[model_size], groups, device=device)
        # First without the profiler, which adds time to every operator.
        timings = time_interleaved(cases, repeats=steps)
        return [
            row
            for name, step in cases.items()
            for row in table(
                name,
                profile_operators(step, repeats=steps, device=device),
                wall_milliseconds=1000 * timings[name].median,
                top=top,
            )
        ]


def table(
    case: str, operators: Sequence[Operator], *, wall_milliseconds: float, top: int
) -> list[Row]:
    """Build the rows of one network: wall clock, all operators, each group and its top operators.

    Args:
        case: name of the network.
        operators: operators of one step, longest first.
        wall_milliseconds: wall-clock time of a step without the profiler. It is longer than the
            operators together if Python is the bottleneck, and shorter if profiling costs time.
        top: number of operators of a group to list; the remaining ones share one row.
    """
    all_milliseconds = total(operators)

    def row(group: str, operator: str, calls: float, milliseconds: float) -> Row:
        share = milliseconds / all_milliseconds
        figures = {"calls": calls, "ms": milliseconds, "share": share}
        return {"case": case, "group": group, "operator": operator, **figures}

    rows = [
        row("step", "wall clock, not profiled", 1.0, wall_milliseconds),
        row("step", "all operators", _num_calls(operators), all_milliseconds),
    ]
    for group in GROUPS:
        members = [operator for operator in operators if operator.group == group]
        rows.append(row(group, "all", _num_calls(members), total(members)))
        rows += [row(group, item.name, item.calls, item.milliseconds) for item in members[:top]]
        if others := members[top:]:
            rows.append(row(group, f"{len(others)} more", _num_calls(others), total(others)))
    return rows


def _num_calls(operators: Sequence[Operator]) -> float:
    return sum(operator.calls for operator in operators)
