"""Pitch and key as one to six voices sound at once: where models of music lose hold (Ma et al. 2023, ISMIR).

A line over the number of voices means something if only that number changes: pieces, splits and labels are the same for
all, labels are equally frequent, every clip is as loud, and more voices tell no more of the label (the voices of a
canon sing the same notes, those of a chord know nothing of its lowest note). What more voices do to a key is twofold:
its notes are harder to hear apart, but more of them are in one frame, so a line may rise where frames remember little.
"""

from __future__ import annotations

from typing import Any

from auricle.audio.polyphony import VOICES
from auricle.evaluation.tasks.mir13 import MusicTask
from auricle.evaluation.tasks.task import Task

_OURS: dict[str, Any] = {
    "corpus": "polyphony",
    "kind": "classes",
    "split": "split",
    "unit": "piece",
    "licence": "rendered by this package, Apache-2.0",
    "leaks": "notes are sums of steady harmonics, and sound like no recording: for curves, not for ranking models",
}


def _at_once(voices: int) -> str:
    return f"{voices} notes at once" if voices > 1 else "one note alone"


POLYPHONY: tuple[Task, ...] = (
    *(
        Task(
            **_OURS,
            name=f"polyphony-pitch-{voices}",
            target="pitch",
            where={"voices": str(voices)},
            measures=f"the lowest pitch of {_at_once(voices)}, of twelve",
        )
        for voices in range(1, VOICES + 1)
    ),
    *(
        MusicTask(
            **_OURS,
            name=f"polyphony-key-{voices}",
            target="key",
            metric="weighted_key",
            where={"voices": str(voices)},
            measures=f"the key of a tune, {_at_once(voices)} in a round, near misses credited in part",
        )
        for voices in range(1, VOICES + 1)
    ),
)
