"""Beats and downbeats from frames, and how well they are found: a bar pointer, peak picking, F within 70 ms.

The bar pointer is a hidden Markov model (Whiteley, Cemgil and Godsill 2006) in the state space of Krebs, Böck and
Widmer (2015, An efficient state-space model for joint tempo and meter tracking, ISMIR): a state is a place in a bar and
a tempo. A beat of τ frames is τ states, passed one a frame, so that the tempo changes at beats only: from τ to τ' with
a probability in proportion to exp(−λ |τ' / τ − 1|), λ = 100. All states are as likely at the start; bars of different
lengths never mix.

Observations are of Böck, Krebs and Widmer (2014, A multi-model approach to beat tracking, ISMIR): the first 1/16 of a
beat is heard with the frame's probability of a beat, all else with that of none, over 15.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from auricle.errors import EvaluationError
from auricle.evaluation.events import Counts

Array = NDArray[np.float64]
WINDOW_S = 0.07
"""A beat is found by one estimated no further away."""
SAME_S = 0.03
"""A downbeat is the beat that is annotated no further from it, if one is."""
LEAST = 1e-5
"""Probabilities are kept this far from 0."""
NONE, BEAT, DOWNBEAT = range(3)
PLACE = re.compile(r"[1-9][0-9]*")
"""A beat's place in its bar, as annotators write it; those who count from 0 mean something else by 1."""


@dataclass(frozen=True)
class Beats:
    """What was found in a clip."""

    times: Array
    """(N,) of beats, downbeats too, seconds in ascending order."""
    place: NDArray[np.int64]
    """(N,) place in the bar, 1 for a downbeat; 0 where there was no probability of downbeats."""
    log_probability: float = 0.0
    """Of the best path and the frames that it explains."""

    @property
    def downbeats(self) -> Array:
        """(M,) times of downbeats."""
        found: Array = self.times[self.place == 1]
        return found


@dataclass(frozen=True)
class BarPointer:
    """What the hidden Markov model expects of music."""

    slowest_bpm: float = 55.0
    fastest_bpm: float = 215.0
    """Beats a minute. (Downbeats alone, as MARBLE tracks them, are beats of 18 to 72 bpm.)"""
    tempo_inertia: float = 100.0
    """λ of the tempo's changes: more of it, steadier tempi."""
    beat_share: int = 16
    """The part of a beat that sounds like one is 1 / this."""
    bars: tuple[int, ...] = (3, 4)
    """Beats in a bar, the lengths to choose from."""
    threshold: float = 0.05
    """Frames before the first and after the last of at least this probability hold no music."""
    rate: float = 100.0
    """Frames per second of the model, to which probabilities of any rate are interpolated: a tempo is a whole number of
    frames a beat, and λ has its meaning, whatever the encoder's rate."""

    def track(self, probabilities: ArrayLike, times: ArrayLike) -> Beats:
        """The likeliest beats, given probabilities of frames at regular `times` (T,), seconds.

        `probabilities` are (T,) of beats, or (T, 2) of beats (downbeats too) and downbeats. A beat is put where, in its
        first 1/16, the probability is highest. Silence has no beats. Raises `EvaluationError`.
        """
        columns, clock = _frames(probabilities, times, 2)
        count = int((clock[-1] - clock[0]) * self.rate + 1e-6) + 1  # more than the error of rounding
        grid = clock[0] + np.arange(count) / self.rate
        columns = np.stack([np.interp(grid, clock, column) for column in columns])
        heard = np.flatnonzero(columns[0] >= self.threshold)
        if not len(heard):
            return Beats(np.zeros(0), np.zeros(0, np.int64))
        music = slice(heard[0], heard[-1] + 1)
        columns, grid = columns[:, music], grid[music]
        starts, periods, place, score = self.decode(log_observations(columns, self.beat_share))
        ends = starts + self.sounding(periods)
        starts, ends, place = starts[ends > 0].clip(0), ends[ends > 0], place[ends > 0]
        frames = [start + int(columns[0, start:end].argmax()) for start, end in zip(starts, ends, strict=True)]
        return Beats(grid[frames], place if len(columns) == 2 else np.zeros_like(place), score)

    def periods(self) -> NDArray[np.int64]:
        """(K,) frames that a beat may last, at least 1. Raises `EvaluationError` where there is no tempo."""
        shortest, longest = (round(60 * self.rate / bpm) for bpm in (self.fastest_bpm, self.slowest_bpm))
        if not 0 < shortest <= longest:
            raise EvaluationError(
                f"beats: no tempo of {self.slowest_bpm} to {self.fastest_bpm} bpm fits {self.rate} frames per second"
            )
        return np.arange(shortest, longest + 1)

    def sounding(self, periods: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many frames at the start of beats of some `periods` sound like one."""
        return -(-periods // self.beat_share)

    def log_transitions(self) -> Array:
        """(K, K) log-probabilities of one period after another."""
        periods = self.periods()
        logits = -self.tempo_inertia * np.abs(periods / periods[:, None] - 1)
        scores: Array = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return scores

    def decode(self, observations: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], float]:
        """Viterbi: (N,) first frames of the beats, periods, places in the bar, and the path's log-probability.

        The first beat may start before the first frame, and the last one ends after the last.

        `observations` (C, G) are log-probabilities of G frames where there is no beat, a beat and, where C = 3, a
        downbeat; without them a bar is one beat.

        Within a beat nothing is chosen, so that whole beats are scored instead of states: the best path to a beat that
        starts at frame t ends one of τ frames that started at t − τ. Frames no further apart than the shortest beat do
        not depend on each other, and are computed at once.
        """
        periods, inertia = self.periods(), self.log_transitions()
        bars = self.bars if len(observations) == 3 else (1,)
        place = np.concatenate([np.arange(bar) for bar in bars])  # of P beats in all kinds of bars
        before = np.arange(len(place)) - 1 + np.where(place == 0, np.repeat(bars, bars), 0)
        frames, shortest, lead = observations.shape[1], periods[0], periods[-1] - 1

        # scores (P, lead + G, K) of the best path through the beat that starts at frame t − lead, less what no beats
        # at all would have
        starts = np.arange(-lead, frames)[:, None]
        gain = np.cumsum(np.pad(observations[1:] - observations[NONE], [(0, 0), (1, 0)]), 1)
        ends = np.clip(starts + self.sounding(periods), 0, frames)
        kinds = gain[:, ends] - gain[:, np.clip(starts, 0, frames)]
        scores = kinds[np.where(place == 0, len(kinds) - 1, 0)]
        scores[:, : lead + 1] -= np.log(len(place) * periods.sum())

        columns = np.arange(len(periods))
        for first in range(1, frames, shortest):
            block = np.arange(first, min(first + shortest, frames)) + lead
            ended = scores[:, block[:, None] - periods, columns]  # (P, t, K)
            for beat, previous in enumerate(before):
                scores[beat, block] += (ended[previous][:, :, None] + inertia).max(1)

        # the last beat holds the last frame
        last = np.where((starts < frames) & (starts + periods >= frames), scores, -np.inf)
        best = float(last.max() + observations[NONE].sum())
        beat, row, column = (int(at) for at in np.unravel_index(last.argmax(), last.shape))
        path = [(row, column, beat)]
        while row > lead:
            beat = int(before[beat])
            ended = scores[beat, row - periods, columns] + inertia[:, column]
            column = int(ended.argmax())
            row -= int(periods[column])
            path.append((row, column, beat))
        rows, chosen, beats = np.array(path[::-1]).T
        return rows - lead, periods[chosen], place[beats] + 1, best


def log_observations(probabilities: Array, beat_share: int) -> Array:
    """Log-probabilities (C, G) of no beat, a beat and a downbeat in frames of `probabilities` (C − 1, G)."""
    none = (1 - probabilities.max(0)) / (beat_share - 1)
    kinds = [none, probabilities[0]] if len(probabilities) == 1 else [none, -np.diff(probabilities, axis=0)[0]]
    scores: Array = np.log(np.maximum(np.stack([*kinds, *probabilities[1:]]), LEAST))
    return scores


def pick_peaks(probabilities: ArrayLike, times: ArrayLike, threshold: float = 0.5, fastest_bpm: float = 215.0) -> Array:
    """Times (N,) of the peaks in probabilities (T,) that reach a threshold, the higher of two too close for the tempo.

    The plain way, without a model of tempo; for downbeats give theirs. Raises `EvaluationError`.
    """
    from scipy.signal import find_peaks  # imported here, because tables of metrics need none of it

    (column,), clock = _frames(probabilities, times, 1)
    hop = float(np.diff(clock).mean()) if len(clock) > 1 else 1.0
    padded = np.pad(column, 1, constant_values=-1.0)  # so that the first and last frame can be peaks
    peaks, _ = find_peaks(padded, height=threshold, distance=max(1.0, 60 / fastest_bpm / hop))
    return np.asarray(clock[peaks - 1])


def frame_targets(beats: ArrayLike, times: ArrayLike, beside: Sequence[float] = (0.5,)) -> NDArray[np.float32]:
    """(T,) what a frame head should answer at regular `times`: 1 nearest to a beat, `beside` next to it, else 0.

    `beside` falls, and holds the value of the next frames on both sides, of those after the next, and so on.
    """
    clock, reach = np.asarray(times, np.float64), len(beside)
    hop = (clock[-1] - clock[0]) / (len(clock) - 1) if len(clock) > 1 else np.inf
    nearest = np.rint((np.asarray(beats, np.float64) - clock[0]) / hop).astype(np.int64)
    nearest = nearest[(nearest >= -reach) & (nearest < len(clock) + reach)] + 2 * reach
    padded = np.zeros(len(clock) + 4 * reach, np.float32)  # for beats outside whose neighbours are inside
    for step in range(reach, 0, -1):  # nearer ones last, which are higher
        padded[nearest - step] = padded[nearest + step] = beside[step - 1]
    padded[nearest] = 1.0
    return padded[2 * reach : len(padded) - 2 * reach]


def applicable(hop_s: float) -> bool:
    """Whether frames so far apart, seconds, can tell beats within the window at all; else F says nothing."""
    return hop_s <= WINDOW_S


@dataclass(frozen=True)
class BeatF1:
    """F1 = 2 tp / (reference + estimated) of beats, each matched to one at most no further away than the window.

    That is mir_eval.beat.f_measure after trim_beats: beats before `skip_s` count on neither side, since annotators and
    trackers need time to settle, and a clip without beats on a side scores 0.
    """

    pooled: bool
    """Whether the counts of all clips are added up (long and fast clips weigh more), instead of a mean over clips."""
    skip_s: float = 5.0

    def __call__(self, reference: ArrayLike, estimated: ArrayLike) -> Counts:
        """A clip's share, given times in seconds: 2 tp and the beats of both, or its F1 and 1."""
        ours, theirs = (np.sort(np.asarray(times, np.float64)) for times in (reference, estimated))
        ours, theirs = ours[ours >= self.skip_s], theirs[theirs >= self.skip_s]
        right, beats = 2.0 * matched(ours, theirs)[0].sum(), float(len(ours) + len(theirs))
        return Counts(right, beats) if self.pooled else Counts(right / beats if beats else 0.0, 1.0)


BEAT_METRICS: dict[str, BeatF1] = {
    f"{kind}_f1_{how}": metric
    for kind in ("beat", "downbeat")
    for how, metric in {"mean": BeatF1(False), "pooled": BeatF1(True), "marble": BeatF1(True, 0.0)}.items()
}
"""Metrics by name: F1 per clip, then averaged; of all clips' counts; and the latter with the first 5 s, as MARBLE has
it."""


def annotated(intervals: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    """Ascending times of beats, downbeats too, and of downbeats (N,), (M,), from intervals labelled with these words.

    Labels may also be places in the bar, 1 for a downbeat. An interval's start counts. A downbeat is a beat, whether or
    not it is labelled as one besides. Raises `EvaluationError` for other labels.
    """
    times: dict[str, list[float]] = {"beat": [], "downbeat": []}
    for interval in intervals:
        label = interval["label"]
        kind = label if not PLACE.fullmatch(label) else "downbeat" if label == "1" else "beat"
        if kind not in times:
            raise EvaluationError(
                f"found '{label}', where labels are beat and downbeat, or places in the bar from 1 on"
            )
        times[kind].append(interval["start_s"])
    beats, downbeats = (np.unique(np.array(found, np.float64)) for found in times.values())
    alone = [time for time in downbeats if not len(beats) or np.abs(beats - time).min() > SAME_S]
    return np.sort(np.concatenate([beats, alone])), downbeats


def beat_score(metric: str, reference: Sequence[ArrayLike], estimated: Sequence[ArrayLike]) -> float:
    """A metric over clips; 0 where there is nothing to count."""
    counts = [BEAT_METRICS[metric](one, other) for one, other in zip(reference, estimated, strict=True)]
    total = sum(count.total for count in counts)
    return sum(count.correct for count in counts) / total if total else 0.0


def chance_score(metric: str, references: Sequence[tuple[Array, Array]]) -> float:
    """What scores who has not heard the clip: the beats annotated in another one, the next.

    `references` are beats and downbeats of clips; those without what the metric is about say nothing.
    """
    times = [times for clip in references if len(times := clip[metric.startswith("downbeat")])]
    return beat_score(metric, times, times[1:] + times[:1]) if len(times) > 1 else 0.0


def matched(reference: Array, estimated: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which ascending times of both sides are in the largest matching of those no further apart than the window.

    Taking the earliest that fits is never worse.
    """
    found, right, at = np.zeros(len(reference), bool), np.zeros(len(estimated), bool), 0
    for place, time in enumerate(estimated):
        while at < len(reference) and reference[at] < time - WINDOW_S:
            at += 1
        if at < len(reference) and reference[at] <= time + WINDOW_S:
            found[at] = right[place] = True
            at += 1
    return found, right


def _frames(probabilities: ArrayLike, times: ArrayLike, most: int) -> tuple[NDArray[Any], Array]:
    """Probabilities (C, T) of at most so many columns, and their times (T,). Raises `EvaluationError`."""
    values, clock = np.asarray(probabilities, np.float64), np.asarray(times, np.float64)
    columns = np.atleast_2d(values.T)
    if clock.shape != columns.shape[1:] or not len(clock) or len(columns) > most:
        raise EvaluationError(
            f"beats: probabilities of shape {values.shape} at times of shape {clock.shape}; "
            f"they need to be {' or '.join(['(T,)', '(T, 2)'][:most])} at (T,)"
        )
    if not ((columns >= 0) & (columns <= 1)).all():
        raise EvaluationError("beats: there are probabilities that are NaN, below 0 or above 1")
    return columns, clock
