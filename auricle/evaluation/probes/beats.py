"""Beats and downbeats: heads on an encoder's own frames, at its own hop, and a bar pointer over what they answer.

Targets are those of MARBLE's second version (Yuan et al. 2023; its code): 1 at the frame nearest to a beat, 0.5 beside
it and 0.25 beside that, as far as this is within the window of 70 ms. Heads are MARBLE's grid, and learn by binary
cross-entropy from frames drawn at random (`Task.frames` of train and a fifth as many of dev, which bounds the memory);
MARBLE draws ten seconds of every clip in each epoch. Unlike there, frames are standardised.

All is chosen on dev. A head stops at the epoch of its least loss. Of each layer, and of the learned sum, the learning
rate with the least loss goes on; among these the one wins whose beats, decoded from whole clips, have the best score.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from auricle.config import edit
from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.answers import Answers, Fold, refuse_none
from auricle.evaluation.beats import (
    BEAT_METRICS,
    WINDOW_S,
    BarPointer,
    Beats,
    frame_targets,
    pick_peaks,
)
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.events import Counts
from auricle.evaluation.prepare import Prepared
from auricle.evaluation.probes.grouped import Lesson, Measure, Network, Point, train_grid, train_group
from auricle.evaluation.probes.heads import Layer, Trial
from auricle.evaluation.probes.marble import NOTHING, MarbleFitted, MarbleProber
from auricle.evaluation.probes.protocols import Prober
from auricle.evaluation.recognition.frames import Utterances
from auricle.evaluation.tasks.mir13 import MusicTask
from auricle.evaluation.tasks.task import Task

Array = NDArray[np.float64]
BESIDE = (0.5, 0.25)
"""Targets of the frames next to a beat's, and of those after the next."""
TRAINING: Mapping[str, Any] = {"batch": 512, "plateau": 6, "patience": 20}
"""What is other than usual in `MarbleConfig`; a minibatch is of frames."""
DEV_SHARE = 5
"""Train learns from this many times as many frames as dev tells the loss by."""
SAMPLE = 50
"""Train clips whose frames tell mean and standard deviation."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Least probabilities of a peak to choose from, on dev."""
FASTEST_BPM = (215.0, 72.0)
"""Of peaks of beats, and of downbeats."""
MEANS = ("beat_f1_mean", "downbeat_f1_mean")
NO_TIMES: Array = np.zeros(0)


def beat_prober(task: Task, prober: Prober) -> MarbleProber:
    """The protocol as beats are learned by it. Raises `EvaluationError` for another than MARBLE's."""
    if not isinstance(prober, MarbleProber):
        raise EvaluationError(
            f"task {task.name}: protocol {task.protocol} knows no beats; choose marble or marble-linear"
        )
    training = task.training if isinstance(task, MusicTask) else {}
    return replace(prober, config=edit(prober.config, **{**TRAINING, **training}))


def answer_beats(embedder: Embedder, ready: Prepared, prober: Prober) -> list[Fold]:
    """Fit, choose and answer every assignment of a task whose metric is one of beats.

    Clips are encoded once, into a file (see `Utterances`); layers are those asked for, or of all those as wide as the
    last; mean and deviation are of the first assignment's train. Raises `EvaluationError` for another protocol than
    MARBLE's, and where no clip of a part can be embedded.
    """
    marble, encoder = beat_prober(ready.task, prober), embedder.encoder
    layers = [layer for layer in embedder.layers if encoder.dims[layer] == encoder.dims[embedder.layers[-1]]]
    if len(layers) < len(embedder.layers) and not isinstance(marble.probe.layers, str):
        raise ConfigError("layers: those asked for differ in width; beats are heard by layers of one width")
    train = np.flatnonzero(ready.assignments[0] == "train")
    sample = np.random.default_rng(0).permutation(train)[:SAMPLE]
    place = Path(tempfile.gettempdir()) if embedder.cache is None else embedder.cache.folder
    source = Utterances(
        encoder, ready.manifest, layers, sample, output=place, cache=embedder.cache,
        batch_seconds=embedder.batch_seconds,
    )  # fmt: skip
    tracker = _Tracker(embedder, ready, marble, source)
    folds = [tracker.fold(assignment) for assignment in ready.assignments]
    embedder.seconds += source.seconds
    source.release()
    return folds


@dataclass(frozen=True)
class _Tracker:
    """One encoder at work on a task of beats."""

    embedder: Embedder
    ready: Prepared
    prober: MarbleProber
    source: Utterances

    def fold(self, assignment: NDArray[np.str_]) -> Fold:
        """Fit, choose and answer one assignment."""
        train, dev, test = (np.flatnonzero(assignment == part) for part in ("train", "dev", "test"))
        labels = 1 + any(self._barred(train))  # without any downbeats there is nothing to learn of them
        fitted = self._fit(train, dev, labels)
        networks = [(fitted.layers, network) for network in fitted.networks]
        heard = [self._hear(rows, networks) for rows in (dev, test)]
        for part, clips in zip(("dev", "test"), heard, strict=True):
            refuse_none(np.array(list(clips), np.int64), part, self.embedder, self.ready)
        found = [
            [self._tracked(rows, clips, seed) for seed in range(len(networks))]
            for rows, clips in zip((dev, test), heard, strict=True)
        ]
        others = [name for name in BEAT_METRICS if labels == 2 or name.startswith("beat")]
        beside = {name: self._count(name, test, found[1]) for name in others if name != self.ready.task.scored_by}
        for column, metric in enumerate(MEANS[:labels]):
            threshold = self._threshold(dev, heard[0], column)
            peaks = [self._peaks(test, heard[1], column, threshold, seed) for seed in range(len(networks))]
            beside[f"{metric} by peaks"] = self._count(metric, test, peaks)
        beside = {name: counted for name, counted in beside.items() if counted.total.any()}
        dev_answers, test_answers = self._answers(dev, found[0]), self._answers(test, found[1])
        return Fold(fitted, dev_answers, test_answers, len(self.source.skipped), [], beside)

    # ------------------------------------------------------------------------------------------ learning

    def _fit(self, train: NDArray[np.int64], dev: NDArray[np.int64], labels: int) -> MarbleFitted:
        """Train the grid, and choose."""
        most, config, (first, *more) = self.ready.task.frames, self.prober.config, self.prober.probe.seeds
        x, goals = self._examples(train, most, labels, "train")
        x_dev, truth = self._examples(dev, max(1, most // DEV_SHARE), labels, "dev")
        lesson = Lesson("labels", x, goals, labels, x_dev, closeness(truth))
        points = list(train_grid(lesson, self.prober.probe, config, first))
        finals: dict[Layer, Point] = {}
        for point in points:
            if point.score > (finals[point.layer].score if point.layer in finals else 0.0):
                finals[point.layer] = point
        if not finals:
            raise EvaluationError(NOTHING)
        found = self._scores(dev, [(point.group.layers, point.network) for point in finals.values()])
        scores: dict[Layer, tuple[float, ...]] = {layer: (one,) for layer, one in zip(finals, found, strict=True)}
        chosen = max(finals.values(), key=lambda point: (scores[point.layer], point.score))
        layers = chosen.group.layers
        again = [train_group(chosen.group, lesson, config, seed).network(0, 0) for seed in more]
        scores[chosen.layer] += tuple(self._scores(dev, [(layers, network) for network in again]))
        trials = {
            (point.layer, point.lr): Trial(
                config.name,
                point.layer,
                point.lr,
                scores[point.layer] if finals.get(point.layer) is point else (math.nan,),
                f"dev loss {-math.log(point.score):.4f}" if point.score > 0 else "diverged",
            )
            for point in points
        }
        choice, networks = trials[chosen.layer, chosen.lr], [chosen.network, *again]
        centre, spread = torch.zeros(labels), torch.ones(labels)  # of values, which these are not
        return MarbleFitted("labels", choice, list(trials.values()), layers, networks, centre, spread, False)

    def _scores(self, rows: NDArray[np.int64], networks: Sequence[tuple[tuple[int, ...], Network]]) -> list[float]:
        """The task's metric of the beats that each network finds."""
        heard, metric = self._hear(rows, networks), self.ready.task.scored_by
        found = [self._count(metric, rows, [self._tracked(rows, heard, place)]) for place in range(len(networks))]
        return [float(one.correct.sum() / max(one.total.sum(), 1.0)) for one in found]

    def _examples(self, rows: NDArray[np.int64], most: int, labels: int, part: str) -> tuple[dict[int, Tensor], Tensor]:
        """At most about `most` frames of clips, (N, D) by layer, and targets (N, labels), drawn at random.

        Clips without downbeats, where these are learned, are left out if others have them.
        """
        source, encoder = self.source, self.embedder.encoder
        if labels == 2 and any(barred := self._barred(rows)):
            rows = rows[barred]
        expected = source.manifest.durations * encoder.sample_rate / encoder.hop
        share = min(1.0, most / expected[rows].sum())
        quota = np.ceil(share * expected).astype(int)
        x = torch.empty(len(source.layers), int(quota[rows].sum()), source.dim, device=encoder.device)
        goals, end = torch.zeros(x.shape[1], labels), 0
        for some, frames, lengths in source.batches(rows):
            for row, clip, count in zip(some.tolist(), frames, lengths.tolist(), strict=True):
                drawn = np.sort(np.random.default_rng(row).permutation(count)[: quota[row]])
                taken, here = torch.from_numpy(drawn), slice(end, end + len(drawn))
                x[:, here] = clip[taken.to(clip.device)].transpose(0, 1)
                goals[here] = torch.from_numpy(self._goals(row, count, labels)[drawn])
                end += len(drawn)
        refuse_none(np.arange(end), part, self.embedder, self.ready)
        return {layer: x[place, :end] for place, layer in enumerate(source.layers)}, goals[:end].to(x.device)

    def _barred(self, rows: NDArray[np.int64]) -> list[bool]:
        """Whether downbeats of clips are annotated."""
        return [len(self.ready.targets[row][1]) > 0 for row in rows]

    def _goals(self, row: int, count: int, labels: int) -> NDArray[np.float32]:
        """(T, labels) of a clip."""
        hop_s = self.embedder.encoder.hop / self.embedder.encoder.sample_rate
        beside = [value for step, value in enumerate(BESIDE, 1) if step * hop_s <= WINDOW_S]
        times = self._times(count)
        return np.stack([frame_targets(times_s, times, beside) for times_s in self.ready.targets[row][:labels]], 1)

    # ----------------------------------------------------------------------------------------- answering

    def _times(self, count: int) -> Array:
        """Centres (T,) of the frames of a clip, seconds."""
        encoder = self.embedder.encoder
        times: Array = (encoder.offset + encoder.hop * np.arange(count)) / encoder.sample_rate
        return times

    def _hear(
        self, rows: NDArray[np.int64], networks: Sequence[tuple[tuple[int, ...], Network]]
    ) -> dict[int, list[Array]]:
        """By clip that could be embedded, probabilities (T, labels) of each network, given with the layers it reads."""
        heard: dict[int, list[Array]] = {}
        for some, frames, lengths in self.source.batches(rows) if networks else ():
            flat = frames[torch.arange(frames.shape[1], device=lengths.device) < lengths[:, None]]  # (N, L, D)
            layers = dict(zip(self.source.layers, flat.unbind(1), strict=True))
            ends = np.cumsum(lengths.cpu().numpy())[:-1]
            for read, network in networks:
                answered = network([layers[layer] for layer in read]).sigmoid().T.double().numpy()
                for row, clip in zip(some.tolist(), np.split(answered, ends), strict=True):
                    heard.setdefault(row, []).append(clip)
        return heard

    def _tracked(self, rows: NDArray[np.int64], heard: Mapping[int, list[Array]], place: int) -> list[Beats]:
        """Beats of clips by the network in that place; none in a clip that could not be embedded."""
        nothing, pointer = Beats(NO_TIMES, np.zeros(0, np.int64)), BarPointer()
        return [
            pointer.track(heard[row][place], self._times(len(heard[row][place]))) if row in heard else nothing
            for row in rows.tolist()
        ]

    def _peaks(
        self, rows: NDArray[np.int64], heard: Mapping[int, list[Array]], column: int, threshold: float, place: int
    ) -> list[Beats]:
        """Peaks of one column's probabilities, as beats or downbeats."""
        found = []
        for row in rows.tolist():
            clip = heard[row][place] if row in heard else np.zeros((1, 2))
            times = pick_peaks(clip[:, column], self._times(len(clip)), threshold, FASTEST_BPM[column])
            found.append(Beats(times, np.ones(len(times), np.int64)))
        return found

    def _threshold(self, rows: NDArray[np.int64], heard: Mapping[int, list[Array]], column: int) -> float:
        """That of the best peaks of the first seed."""

        def score(threshold: float) -> float:
            counted = self._count(MEANS[column], rows, [self._peaks(rows, heard, column, threshold, 0)])
            return float(counted.correct.sum())

        return max(THRESHOLDS, key=score)

    def _count(self, metric: str, rows: NDArray[np.int64], found: Sequence[Sequence[Beats]]) -> Answers:
        """What a metric counts in clips by the beats that S seeds found.

        Clips without annotated downbeats say nothing of these, and count for nothing.
        """
        counts = np.zeros((len(found), len(rows), 2))
        for seed, clips in enumerate(found):
            for place, (row, beats) in enumerate(zip(rows.tolist(), clips, strict=True)):
                counts[seed, place] = count_beats(metric, self.ready.targets[row], beats)
        return Answers(rows, counts[..., 0], counts[..., 1])

    def _answers(self, rows: NDArray[np.int64], found: Sequence[Sequence[Beats]]) -> Answers:
        """As the task's metric counts them, with the times of the annotation and of the first seed."""
        times = {
            "reference_s": [self.ready.targets[row][0] for row in rows.tolist()],
            "estimated_s": [clip.times for clip in found[0]],
            "reference_downbeats_s": [self.ready.targets[row][1] for row in rows.tolist()],
            "estimated_downbeats_s": [clip.downbeats for clip in found[0]],
        }
        return replace(self._count(self.ready.task.scored_by, rows, found), times=times)


def count_beats(metric: str, reference: tuple[Array, Array], found: Beats) -> Counts:
    """A clip's share in a metric, given its beats and downbeats; nothing where it has no downbeats to be found."""
    if metric.startswith("beat"):
        return BEAT_METRICS[metric](reference[0], found.times)
    return BEAT_METRICS[metric](reference[1], found.downbeats) if len(reference[1]) else Counts(0.0, 0.0)


def closeness(truth: Tensor) -> Measure:
    """How near logits (H, K, N) are to targets (N, K): exp(−binary cross-entropy), (H,), above 0 and at most 1."""

    def measure(logits: Tensor) -> Tensor:
        return (functional.softplus(logits) - logits * truth.T).mean((1, 2)).neg().exp()

    return measure
