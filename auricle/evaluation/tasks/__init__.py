"""Tasks and suites by name. Listing them imports neither torch nor any audio."""

from __future__ import annotations

from auricle.errors import ConfigError, unknown
from auricle.evaluation.tasks.quick import QUICK
from auricle.evaluation.tasks.task import Task
from auricle.evaluation.tasks.verification import VERIFICATION

__all__ = ["SUITES", "TASKS", "Task", "suite_tasks", "task"]

TASKS: dict[str, Task] = {record.name: record for record in (*QUICK, *VERIFICATION)}

SUITES: dict[str, tuple[str, ...]] = {
    "quick": tuple(record.name for record in QUICK),
    "verification": tuple(record.name for record in VERIFICATION),
}
"""A suite is only a list of tasks."""


def task(name: str) -> Task:
    """A task by name. Raises `ConfigError` with the near miss."""
    if name not in TASKS:
        raise ConfigError(unknown("task", name, TASKS))
    return TASKS[name]


def suite_tasks(name: str) -> list[Task]:
    """The tasks of a suite. Raises `ConfigError` with the near miss."""
    if name not in SUITES:
        raise ConfigError(unknown("suite", name, SUITES))
    return [TASKS[member] for member in SUITES[name]]
