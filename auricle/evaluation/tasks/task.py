"""What a task is: a short record that says which column of which recordings is predicted, and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from auricle.evaluation.metrics import DEFAULTS, Kind


@dataclass(frozen=True)
class Task:
    """A labelled set of recordings with a target, a split and a metric; scores of one name and version compare."""

    name: str
    target: str
    """Column predicted; clips without a value in it are no part of the task."""
    kind: Kind
    corpus: str = ""
    """Key in the table of corpora; empty for a person's own data."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Only clips with these values in these columns."""
    level: Literal["clip", "frame"] = "clip"
    metric: str = ""
    """Key in the table of metrics; empty for the usual one of the kind."""
    split: Literal["auto", "split", "folds"] = "auto"
    """One split (column `split`, else made), or folds (column `fold`, else made); `auto` takes the column there is."""
    group: str | None = None
    """Column whose values never straddle a split made by rule."""
    unit: str | None = None
    """Column the interval resamples; None for clips (or the group, if there is one)."""
    seed: int = 0
    """Of a split made by rule."""
    protocol: str = "auricle"
    version: int = 1
    measures: str = ""
    """One sentence for people."""
    licence: str = ""
    citation: str = ""
    leaks: str = ""
    """Known ways in which the score flatters."""

    @property
    def scored_by(self) -> str:
        """The metric's name."""
        return self.metric or DEFAULTS[self.kind]

    @property
    def label(self) -> str:
        """`name@protocol-vN`: results of one label compare."""
        return f"{self.name}@{self.protocol}-v{self.version}"

    def __str__(self) -> str:
        return f"{self.measures} ({self.level}, {self.scored_by}; {self.licence})"
