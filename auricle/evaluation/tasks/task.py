"""What a task is: a short record that says which column of which recordings is predicted, and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the corpus's reader; `{root}` in a text stands for the folder of all corpora."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Only clips with these values in these columns."""
    level: Literal["clip", "frame"] = "clip"
    metric: str = ""
    """Key in the table of metrics; empty for the usual one of the kind."""
    split: Literal["auto", "split", "folds"] = "auto"
    """One split (column `split`, else made), or folds (column `fold`, else made); `auto` takes the column there is."""
    column: str | None = None
    """Column of the split or the folds, where it is another than these; clips without a value in it are left out."""
    group: str | None = None
    """Column whose values never straddle a split made by rule."""
    unit: str | None = None
    """Column the interval resamples; None for clips (or the group, if there is one)."""
    speaker: str | None = None
    """Column of the speakers, for protocols that normalise by speaker and for `personal`."""
    personal: bool = False
    """Learn and test one speaker at a time; the score is the mean over speakers."""
    labels: float = 1.0
    """Share of the train clips that is used, drawn by `seed`: at least one of each class, more include fewer."""
    frames: int = 30_000
    """Of frame tasks: most labelled frames of train that heads learn from, drawn at random."""
    seed: int = 0
    """Of a split made by rule, and of what is drawn."""
    protocol: str = "auricle"
    """Key in `auricle.evaluation.probes.protocols.PROTOCOLS`."""
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
