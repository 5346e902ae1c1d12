"""The tasks that the option --task can name."""

from armd_scale.eval.tasks.base import Task
from armd_scale.eval.tasks.infilling import InfillTask
from armd_scale.eval.tasks.lambada import LambadaTask

TASKS: dict[str, type[Task]] = {task.name: task for task in (LambadaTask, InfillTask)}
