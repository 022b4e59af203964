"""Tasks and suites by name. Listing them imports neither torch nor any audio."""

from __future__ import annotations

from auricle.errors import ConfigError, unknown
from auricle.evaluation.tasks.audio_mae import AUDIO_MAE
from auricle.evaluation.tasks.mir13 import MIR13
from auricle.evaluation.tasks.mockingjay import MOCKINGJAY
from auricle.evaluation.tasks.noss import NOSS, NOSS_PERSONAL
from auricle.evaluation.tasks.polyphony import POLYPHONY
from auricle.evaluation.tasks.quick import QUICK
from auricle.evaluation.tasks.superb import SUPERB
from auricle.evaluation.tasks.task import Task
from auricle.evaluation.tasks.verification import VERIFICATION

__all__ = ["SUITES", "TASKS", "Task", "suite_tasks", "task"]

_SUITES = {
    "quick": QUICK,
    "noss": NOSS,
    "noss-personal": NOSS_PERSONAL,
    "mockingjay": MOCKINGJAY,
    "audio-mae": AUDIO_MAE,
    "superb-linear": SUPERB,
    "mir13": MIR13,
    "polyphony": POLYPHONY,
    "verification": VERIFICATION,
}

TASKS: dict[str, Task] = {record.name: record for records in _SUITES.values() for record in records}

SUITES: dict[str, tuple[str, ...]] = {
    name: tuple(record.name for record in records) for name, records in _SUITES.items()
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
