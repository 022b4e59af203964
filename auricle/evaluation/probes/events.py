"""Tasks of events: a multi-label probe of frames, whose answers become events, scored against those annotated.

HEAR's protocol (Turian et al. 2022; the facts are of its kit): every frame of the encoder is an example, labelled with
the events that hold its centre. Networks are HEAR's, trained by binary cross-entropy, and stopped and chosen by the
task's metric on dev after the best of a few ways of post-processing, which then serves test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from auricle.config import Config, edit
from auricle.encoders.base import Encoder, choose_layers
from auricle.errors import EvaluationError
from auricle.evaluation.answers import Answers, Fold
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.events import EVENT_ERRORS, EVENT_METRICS, Event, PostProcessing, event_score, find_events
from auricle.evaluation.prepare import Prepared
from auricle.evaluation.probes.hear import HearProber
from auricle.evaluation.probes.protocols import Prober

EDGE_S = 1e-7
"""An event holds its own end, and what lies no more than this beyond either."""


class EventOptions(Config):
    """How a task of events is learned and post-processed: what its `options` may say under `events`."""

    threshold: float = Field(0.5, ge=0, le=1)
    median_s: tuple[float, ...] = Field((0.25,), min_length=1)
    """Widths of the median filter to try on dev, seconds."""
    shortest_s: tuple[float, ...] = Field((0.125, 0.25), min_length=1)
    """Shortest events to try, seconds."""
    by_loss: bool = False
    """Stop and choose networks by their loss on dev, many times faster where there are many events."""
    max_epochs: int | None = None
    """As in `HearConfig`, where it is another."""
    check_every: int | None = None
    also: tuple[str, ...] = ()
    """Further metrics of events to tell, of the answers that the task's own metric chose."""

    def ways(self) -> list[PostProcessing]:
        """All that is tried."""
        return [PostProcessing(self.threshold, *values) for values in product(self.median_s, self.shortest_s)]


def answer_events(embedder: Embedder, ready: Prepared, prober: Prober) -> list[Fold]:
    """Fit, choose and answer every assignment of a task whose metric is one of events; the first seed alone counts.

    Of an encoder's layers the one called `timestamp` is read, else the last, unless some are asked for by number.
    Raises `EvaluationError` for a protocol without HEAR's networks, and where no clip of a part can be embedded.
    """
    if ready.task.level != "frame":
        raise EvaluationError(
            f"task {ready.task.name}: {ready.task.scored_by} scores intervals (start, end, label), and column "
            f"'{ready.task.target}' holds none"
        )
    if not isinstance(prober, HearProber):
        raise EvaluationError(
            f"task {ready.task.name}: protocol {ready.task.protocol} knows no events; choose hear or hear-compat"
        )
    options = EventOptions.parse(ready.task.options.get("events", {}), f"task {ready.task.name}, events")
    trained = {key: value for key in ("max_epochs", "check_every") if (value := getattr(options, key)) is not None}
    encoder, wanted = embedder.encoder, prober.probe.layers
    numbers = [encoder.outputs.get("timestamp", -1)] if isinstance(wanted, str) else [int(layer) for layer in wanted]
    layers = choose_layers(numbers, encoder.dims)
    probe = edit(prober.probe, layers=tuple(layers), seeds=prober.probe.seeds[:1])
    detector = _Detector(embedder, ready, HearProber(edit(prober.config, **trained), probe), layers, options)
    return [detector.fold(assignment) for assignment in ready.assignments]


@dataclass(frozen=True)
class _Part:
    """A part's clips (n), with the frames of those that could be embedded, clip after clip."""

    rows: NDArray[np.int64]
    """(n,) in the manifest."""
    times: list[NDArray[np.float64]]
    """(n,) arrays of frames' centres, seconds; empty where a clip could not be embedded."""
    events: list[list[Event]]
    layers: dict[int, Tensor]
    """(N, D) by layer, of all frames."""

    @property
    def absent(self) -> int:
        """Clips that could not be embedded."""
        return sum(not len(times) for times in self.times)

    def goals(self, labels: int) -> Tensor:
        """(N, labels) of 0 and 1: which events hold a frame's centre."""
        clips = zip(self.times, self.events, strict=True)
        return torch.from_numpy(np.concatenate([present(times, events, labels) for times, events in clips]))

    def found(self, probabilities: Tensor, how: PostProcessing) -> list[list[Event]]:
        """Events in probabilities (N, labels) of all frames, a list a clip."""
        clips = np.split(probabilities.numpy(), np.cumsum([len(times) for times in self.times])[:-1])
        return [find_events(clip, times, how) for clip, times in zip(clips, self.times, strict=True)]


@dataclass(frozen=True)
class _Detector:
    """One encoder at work on a task of events."""

    embedder: Embedder
    ready: Prepared
    prober: HearProber
    layers: list[int]
    options: EventOptions

    def fold(self, assignment: NDArray[np.str_]) -> Fold:
        """Fit, choose and answer one assignment."""
        train, dev = (self._part(assignment, name) for name in ("train", "dev"))
        metric, labels, ways = self.ready.task.scored_by, len(self.ready.classes), self.options.ways()
        sign, truth = -1.0 if metric in EVENT_ERRORS else 1.0, dev.goals(labels)

        def score(probabilities: Tensor, how: PostProcessing) -> float:
            return sign * event_score(metric, dev.events, dev.found(probabilities, how))

        def measure(probabilities: Tensor) -> float:
            if self.options.by_loss:
                return -float(functional.binary_cross_entropy(probabilities, truth))
            return max(score(probabilities, how) for how in ways)

        device = str(self.embedder.encoder.device)
        fitted = self.prober.search(train.layers, train.goals(labels), dev.layers, labels, False, measure, device)
        skipped = train.absent
        del train  # the largest part of all that is held
        answered = fitted.predict(dev.layers)[0]
        how = max(ways, key=lambda way: score(answered, way))
        test = self._part(assignment, "test")
        found = test.found(fitted.predict(test.layers)[0], how)
        return Fold(
            fitted,
            dev=self._answers(dev, dev.found(answered, how), metric),
            test=self._answers(test, found, metric),
            skipped=skipped + dev.absent + test.absent,
            others=[],
            beside={name: self._answers(test, found, name) for name in self.options.also},
        )

    def _part(self, assignment: NDArray[np.str_], name: str) -> _Part:
        ready, encoder = self.ready, self.embedder.encoder
        rows = np.flatnonzero(assignment == name)
        some = ready.manifest.select(rows)
        times = [frame_times(encoder, float(duration)) for duration in some.durations]
        clip, layers = self.embedder.frames(some, times, self.layers)
        if not len(clip):
            raise EvaluationError(
                f"task {ready.task.name}: {self.embedder.name} could embed none of the clips in {name}; see the log"
            )
        heard = set(np.unique(clip).tolist())
        times = [time if place in heard else time[:0] for place, time in enumerate(times)]
        return _Part(rows, times, references(some.column(ready.task.target), ready.classes), layers)

    def _answers(self, part: _Part, found: Sequence[Sequence[Event]], metric: str) -> Answers:
        count = EVENT_METRICS[metric]
        counts = np.array([count(true, guess) for true, guess in zip(part.events, found, strict=True)], np.float64)
        return Answers(part.rows, counts[None, :, 0], counts[:, 1])


def frame_times(encoder: Encoder, duration_s: float) -> NDArray[np.float64]:
    """Centres (T,) of an encoder's frames in a clip, seconds: those before its end, and one at least."""
    count = int(np.ceil((duration_s * encoder.sample_rate - encoder.offset) / encoder.hop))
    return (encoder.offset + encoder.hop * np.arange(max(1, count))) / encoder.sample_rate


def references(clips: Sequence[Sequence[dict[str, Any]]], classes: Sequence[str]) -> list[list[Event]]:
    """Annotated intervals, a list a clip, as events."""
    code = {name: number for number, name in enumerate(classes)}
    return [[Event(code[str(event["label"])], event["start_s"], event["end_s"]) for event in clip] for clip in clips]


def present(times: NDArray[np.float64], events: Sequence[Event], labels: int) -> NDArray[np.float32]:
    """(T, labels) of 0 and 1: start ≤ t ≤ end of some event of the label."""
    goals = np.zeros((len(times), labels), np.float32)
    for event in events:
        first, last = np.searchsorted(times, (event.start_s - EDGE_S, event.end_s + EDGE_S), side="left")
        goals[first:last, event.label] = 1.0
    return goals
