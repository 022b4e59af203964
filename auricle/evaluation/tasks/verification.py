"""Speaker verification: of clean recordings, and of ones where another talks, at several ratios."""

from __future__ import annotations

from dataclasses import dataclass

from auricle.evaluation.tasks.task import Task

SIRS = (-5, 0, 5, 10)
"""Signal-to-interference ratios, dB."""


@dataclass(frozen=True)
class Condition:
    """Which sides of a trial are mixtures, and how loud the target is in them."""

    enrol_mixed: bool = False
    test_mixed: bool = False
    sir_db: float = 0.0
    """Without meaning where neither is."""

    def __str__(self) -> str:
        if not self.test_mixed:
            return "both recordings clean"
        return f"{'both recordings' if self.enrol_mixed else 'one of them'} under another talker at {self.sir_db:+g} dB"


CONDITIONS = {"verification-clean": Condition()} | {
    f"verification-{sides}{sir:+g}dB": Condition(enrol_mixed, True, sir)
    for sides, enrol_mixed in (("clean-mix", False), ("mix-mix", True))
    for sir in SIRS
}
"""Task name to condition. All are scored on the same trials."""

VERIFICATION = tuple(
    Task(
        name=name,
        corpus="bundled",
        where={"corpus": "speechocean762"},
        target="speaker",
        kind="classes",
        metric="eer",
        unit="speaker",
        measures=f"whether two recordings hold the same speaker, {condition}",
        licence="CC BY 4.0",
        citation="Zhang et al. 2021, speechocean762: an open-source non-native English speech corpus, Interspeech",
        leaks="a person's recordings share microphone and room",
    )
    for name, condition in CONDITIONS.items()
)
"""On the bundled recordings, or on a person's own that name their speakers."""
