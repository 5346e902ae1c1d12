"""The operators that a training step spends its time in, network by network."""

from collections.abc import Sequence

from armd_scale.bench.operators import GROUPS, Operator, profile_operators, total
from armd_scale.bench.suites.step import SHAPES, steps_of
from armd_scale.bench.table import Row
from armd_scale.bench.timing import time_interleaved
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups


def profile_steps(*, shape: str = "small", steps: int = 3, top: int = 8) -> list[Row]:
    """Profiles a step of every network of `compare_steps`, one network after another.

    Args:
        shape: one of SHAPES.
        steps: how many of each; profiled ones are not those that the wall clock times.
        top: how many of the longest operators of each group to name.

    Returns:
        The rows of `table` for every network, from which it can be seen what a step that is slower
        than its operations say spends the time on.
    """
    here = read_environment()
    with process_groups(here, ParallelConfig()) as groups:
        ways = steps_of(SHAPES[shape], groups, device=here.device)
        wall = time_interleaved(ways, runs=steps)
        return [
            row
            for name, step in ways.items()
            for row in table(
                name,
                profile_operators(step, runs=steps, device=here.device),
                wall_milliseconds=1000 * wall[name].median,
                top=top,
            )
        ]


def table(
    way: str, operators: Sequence[Operator], *, wall_milliseconds: float, top: int
) -> list[Row]:
    """Wall clock, all operators, each group, and in it the operators, longest first.

    Args:
        way: the network.
        operators: of a step.
        wall_milliseconds: of a step that nobody watched: more than its operators where Python
            does not keep up, less where watching costs time.
        top: how many operators of a group to name; the remaining ones are one row.
    """
    whole = total(operators)

    def row(group: str, operator: str, calls: float, milliseconds: float) -> Row:
        share = milliseconds / whole
        found = {"calls": calls, "ms": milliseconds, "share": share}
        return {"way": way, "group": group, "operator": operator, **found}

    rows = [
        row("step", "wall clock, not profiled", 1.0, wall_milliseconds),
        row("step", "all operators", sum(one.calls for one in operators), whole),
    ]
    for group in GROUPS:
        mine = [one for one in operators if one.group == group]
        rows.append(row(group, "all", sum(one.calls for one in mine), total(mine)))
        rows += [row(group, one.name, one.calls, one.milliseconds) for one in mine[:top]]
        if left := mine[top:]:
            calls = sum(one.calls for one in left)
            rows.append(row(group, f"{len(left)} more", calls, total(left)))
    return rows
