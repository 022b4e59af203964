"""The exception tree: one line each, saying what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AuricleError(Exception):
    """Something the user can mend. The command line prints its one line, no traceback, and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, line: str) -> None:
        super().__init__(" ".join(line.splitlines()))  # names of files and columns may hold line breaks


class ConfigError(AuricleError):
    """An unknown option, a wrong type, a value out of range, an unknown name."""


class AudioError(AuricleError):
    """An audio file that cannot be used; over a whole run such files are skipped and counted."""


class ManifestError(AuricleError):
    """A manifest or folder that cannot be read as one, or labels that do not fit the request."""


class CheckpointError(AuricleError):
    """A run folder or checkpoint that is missing, damaged, foreign, or newer than this package."""


class EvaluationError(AuricleError):
    """A task that cannot be scored as asked."""


class MissingDependencyError(AuricleError):
    """An optional package is not installed; the message holds the command that installs it."""


class TooManySkipsError(AuricleError):
    """More unusable files than `max_skipped` allows."""

    exit_code = 3


class TrainingError(AuricleError):
    """Training cannot go on, for example after ten non-finite updates in a row."""

    exit_code = 1


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for an unknown name: the near miss if there is one, else all the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
    return f"unknown {kind} '{name}'; {hint}"
