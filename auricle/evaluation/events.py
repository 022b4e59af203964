"""Events from frames, and how well they are found: onsets within a collar, and errors by segment.

Every metric is Σ correct / Σ total over clips, so that clips (or other units) can be resampled. They agree with
sed_eval's overall (micro-averaged) ones (Mesaros, Heittola and Virtanen 2016, Metrics for polyphonic sound event
detection, Applied Sciences 6:162).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Event(NamedTuple):
    """One label heard from `start_s` to `end_s`, seconds from the clip's start."""

    label: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class PostProcessing:
    """How probabilities by frame become events; the values are HEAR's."""

    threshold: float = 0.5
    """Probabilities above it are a label's presence."""
    median_s: float = 0.25
    """Width of the median filter over the probabilities; 0 for none."""
    shortest_s: float = 0.125
    """Events of less time between the centres of their first and last frame are dropped."""


def find_events(probabilities: NDArray[np.floating], times: Array, how: PostProcessing) -> list[Event]:
    """Events, by start, in probabilities (T, K) of frames at regular `times` (T,), seconds.

    Probabilities are median filtered, then compared with the threshold; consecutive frames of a label are one event,
    from the centre of the first to the centre of the last.
    """
    from scipy.ndimage import median_filter  # imported here, because tables of metrics need none of it

    if len(times) > 1 and (width := round(how.median_s / float(np.diff(times).mean()))):
        probabilities = np.stack([median_filter(label, width) for label in probabilities.T.copy()], 1)
    present = np.zeros((len(times) + 2, probabilities.shape[1]), np.int8)
    present[1:-1] = probabilities > how.threshold
    changes = np.diff(present, axis=0)
    found = []
    for label in np.flatnonzero(present.any(0)).tolist():
        firsts, lasts = np.flatnonzero(changes[:, label] == 1), np.flatnonzero(changes[:, label] == -1) - 1
        for start, end in zip(times[firsts].tolist(), times[lasts].tolist(), strict=True):
            if end - start >= how.shortest_s - 1e-9:  # of rounding
                found.append(Event(label, start, end))
    return sorted(found, key=lambda event: event.start_s)


class Counts(NamedTuple):
    """A clip's share in a score, which is Σ correct / Σ total."""

    correct: float
    total: float


@dataclass(frozen=True)
class OnsetF1:
    """F1 of events of the right label whose onset lies within a collar; each event is matched to one at most.

    F1 = 2 tp / (reference + estimated). The matching is the largest there is. With `length_share`, ends must agree too:
    within the collar, or that share of the reference event's length, whichever is more.
    """

    collar_s: float
    length_share: float | None = None

    def __call__(self, reference: Sequence[Event], estimated: Sequence[Event]) -> Counts:
        """Counts of one clip: 2 tp, and the events of both."""
        return Counts(2.0 * self._matched(reference, estimated), float(len(reference) + len(estimated)))

    def _matched(self, reference: Sequence[Event], estimated: Sequence[Event]) -> int:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching

        if not reference or not estimated:
            return 0
        ours, theirs = (np.array(events, np.float64).T[:, :, None] for events in (reference, estimated))
        fits = ours[0] == theirs[0].T
        fits &= np.abs(ours[1] - theirs[1].T) <= self.collar_s
        if self.length_share is not None:
            slack = np.maximum(self.collar_s, self.length_share * (ours[2] - ours[1]))
            fits &= np.abs(ours[2] - theirs[2].T) <= slack
        return int((maximum_bipartite_matching(csr_array(fits)) >= 0).sum())


@dataclass(frozen=True)
class SegmentErrors:
    """Error rate of labels in segments of equal length: Σ max(reference, estimated) − right, over Σ reference.

    That is substitutions, deletions and insertions; a label is in a segment that it touches. 1 is what silence scores,
    and more is possible.
    """

    segment_s: float = 1.0

    def __call__(self, reference: Sequence[Event], estimated: Sequence[Event]) -> Counts:
        """Counts of one clip: errors, and the labels of the reference's segments."""
        ours, theirs = self._cells(reference), self._cells(estimated)
        errors = 0
        for segment in {segment for segment, _ in ours | theirs}:
            one, other = ({label for at, label in cells if at == segment} for cells in (ours, theirs))
            errors += max(len(one), len(other)) - len(one & other)
        return Counts(float(errors), float(len(ours)))

    def _cells(self, events: Sequence[Event]) -> set[tuple[int, int]]:
        """Segments and labels."""
        return {
            (segment, event.label)
            for event in events
            for segment in range(math.floor(event.start_s / self.segment_s), math.ceil(event.end_s / self.segment_s))
        }


EventMetric = OnsetF1 | SegmentErrors

EVENT_METRICS: dict[str, EventMetric] = {
    "onset_f1_200ms": OnsetF1(0.2),
    "onset_f1_50ms": OnsetF1(0.05),
    "onset_offset_f1_50ms": OnsetF1(0.05, 0.2),
    "segment_error_rate": SegmentErrors(1.0),
}
"""Metrics of events by name."""

EVENT_ERRORS = frozenset({"segment_error_rate"})
"""Those of which less is better."""


def event_score(metric: str, reference: Sequence[Sequence[Event]], estimated: Sequence[Sequence[Event]]) -> float:
    """A metric over clips; 0 where there is nothing to count."""
    counts = [EVENT_METRICS[metric](one, other) for one, other in zip(reference, estimated, strict=True)]
    total = sum(count.total for count in counts)
    return sum(count.correct for count in counts) / total if total else 0.0
