"""Tasks whose recordings are cut into chunks: learned chunk by chunk, answered and scored by recording.

As MARBLE (Yuan et al. 2023): a chunk of train is an example with the target of its recording; on dev and test the
logits of a recording's chunks are averaged. For keys there are three other ways to join chunks, chosen among on dev.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from auricle.config import edit
from auricle.data.manifest import Manifest
from auricle.errors import EvaluationError
from auricle.evaluation.answers import Answers, Fold, complete, refuse_none
from auricle.evaluation.embedder import ByLayer, Embedder
from auricle.evaluation.music import KEY_METRIC, key_credit
from auricle.evaluation.prepare import Prepared, prepare
from auricle.evaluation.probes.heads import Examples, ProbeConfig
from auricle.evaluation.probes.marble import MarbleProber, Measure, dev_measure
from auricle.evaluation.probes.protocols import Probe, Prober
from auricle.evaluation.probes.protocols import prober as named_prober
from auricle.evaluation.tasks.mir13 import Chunks, MusicTask

TRACK = "track"
"""Column of a chunk's recording, by its `clip_id`."""
CLOSE = 1e-3
"""Seconds by which a chunk may fall short."""
Join = Callable[[Tensor, Tensor, int], Tensor]
"""From logits (H, K, N) of chunks and the recording (N,) of each, of T, to scores (H, K, T) for ranking."""


def chunked(manifest: Manifest, chunks: Chunks | None) -> Manifest:
    """Chunks of all recordings in order, with the column `track`; a recording too short for any is one chunk."""
    starts, lengths, rows = [], [], []
    places = zip(manifest.column("start_s"), manifest.durations.tolist(), strict=True)
    for row, (start, duration) in enumerate(places):
        for offset, length in _spans(duration, chunks):
            starts.append(start + offset)
            lengths.append(length)
            rows.append(row)
    clip_ids = manifest.column("clip_id")
    numbers = np.arange(len(rows)) - np.searchsorted(rows, rows)
    table = manifest.select(np.array(rows, np.int64)).table
    for name, values in {
        "clip_id": [f"{clip_ids[row]}#{number}" for row, number in zip(rows, numbers, strict=True)],
        "start_s": starts,
        "duration_s": lengths,
    }.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    return Manifest(table, manifest.skipped).with_column(TRACK, [clip_ids[row] for row in rows])


def _spans(duration: float, chunks: Chunks | None) -> list[tuple[float, float]]:
    """Start and length of the chunks of a recording, seconds."""
    if chunks is None:
        return [(0.0, duration)]
    used = min(duration, chunks.most_s)
    spans = [(start, min(chunks.length_s, used - start)) for start in np.arange(0.0, used, chunks.length_s).tolist()]
    shortest = min(chunks.tail_s, chunks.length_s) - CLOSE
    return [span for span in spans if span[1] >= shortest] or [(0.0, used)]


# ------------------------------------------------------------------------------------------- joining chunks


def mean_of_chunks(logits: Tensor, track: Tensor, count: int) -> Tensor:
    """The mean of a recording's logits."""
    sizes = torch.bincount(track, minlength=count)
    joined = logits.new_zeros(*logits.shape[:2], count)
    return joined.index_add_(2, track, logits) / sizes


def mean_probability(logits: Tensor, track: Tensor, count: int) -> Tensor:
    """The logarithm of the mean of its probabilities."""
    return mean_of_chunks(logits.softmax(1), track, count).clamp_min(1e-30).log()


def max_logit(logits: Tensor, track: Tensor, count: int) -> Tensor:
    """The highest of its logits, class by class."""
    joined = logits.new_full((*logits.shape[:2], count), -torch.inf)
    return joined.scatter_reduce_(2, track.expand_as(logits), logits, "amax")


def majority(logits: Tensor, track: Tensor, count: int) -> Tensor:
    """The logarithm of each class's share of the chunks' votes; probabilities are small votes that settle ties."""
    votes = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    return mean_of_chunks(votes + 1e-4 * logits.softmax(1), track, count).clamp_min(1e-30).log()


JOINS: Mapping[str, Join] = {
    "mean logit": mean_of_chunks,
    "mean probability": mean_probability,
    "max logit": max_logit,
    "majority": majority,
}


# ----------------------------------------------------------------------------------------------- answering


def prepare_music(task: MusicTask, manifest: Manifest) -> Prepared:
    """`prepare`, of chunks where each is scored by itself, and of several values where there are.

    Of several values `targets` are (N, K), and `classes` their names. Raises `EvaluationError` as `prepare` does, and
    for several values by another protocol than MARBLE's, which learn one.
    """
    if task.also and not isinstance(named_prober(task.protocol, ProbeConfig()), MarbleProber):
        raise EvaluationError(
            f"task {task.name}: protocol {task.protocol} learns one value; choose marble or marble-linear"
        )
    if task.chunks is not None and task.chunks.apart:
        manifest = chunked(manifest, task.chunks)
    ready = prepare(task, manifest)
    if not task.also:
        return ready
    names = [task.target, *task.also]
    targets = np.array([ready.manifest.column(name) for name in names], np.float64).T
    texts = [";".join(repr(float(value)) for value in row) for row in targets]
    return replace(ready, targets=targets, classes=names, texts=texts)


def answer_tracks(embedder: Embedder, ready: Prepared, prober: Prober) -> list[Fold]:
    """Fit, choose and answer every assignment of a `MusicTask`.

    MARBLE's protocol chooses by whole recordings of dev; any other by its chunks, and its answers to chunks are
    averaged. Raises `EvaluationError` where no recording of a part can be embedded.
    """
    task = ready.task
    assert isinstance(task, MusicTask)
    if isinstance(prober, MarbleProber):
        prober = replace(prober, config=edit(prober.config, **task.training))
    heard = hear_tracks(embedder, ready)
    return [_fold(embedder, ready, heard, assignment, prober) for assignment in ready.assignments]


@dataclass(frozen=True)
class Chunked:
    """Chunks of recordings that could be embedded."""

    rows: NDArray[np.int64]
    """(t,) recordings, in the manifest of the task, ascending (chunks are not)."""
    track: Tensor
    """(n,) place of a chunk's recording among them."""
    layers: ByLayer
    """(n, D) each."""

    def of(self, rows: NDArray[np.int64]) -> Chunked:
        """Of some recordings."""
        wanted = np.isin(self.rows, rows)
        taken = np.flatnonzero(wanted[self.track.numpy()])
        place = torch.from_numpy(np.cumsum(wanted) - 1)
        whole = len(taken) and taken[-1] - taken[0] == len(taken) - 1  # a run needs no copy
        some = slice(taken[0], taken[-1] + 1) if whole else torch.from_numpy(taken)
        return Chunked(self.rows[wanted], place[self.track[some]], {at: x[some] for at, x in self.layers.items()})

    def means(self) -> ByLayer:
        """(t, D) each: the means of the recordings' chunks."""
        return {at: mean_of_chunks(x.T[None], self.track, len(self.rows))[0].T for at, x in self.layers.items()}


def hear_tracks(embedder: Embedder, ready: Prepared) -> Chunked:
    """The chunks of a task's recordings, each encoded once, those of one part (of the first fold) after another."""
    assert isinstance(ready.task, MusicTask)
    chunks = ready.task.chunks
    by_part = ready.manifest.select(np.argsort(ready.assignments[0], kind="stable"))
    manifest = chunked(by_part, None if chunks is None or chunks.apart else chunks)
    number = {clip_id: row for row, clip_id in enumerate(ready.manifest.column("clip_id"))}
    present, layers = embedder.clips(manifest)
    row = np.array([number[clip_id] for clip_id in manifest.column(TRACK)], np.int64)[present]
    rows, track = np.unique(row, return_inverse=True)
    return Chunked(rows, torch.from_numpy(track), layers)


def _fold(embedder: Embedder, ready: Prepared, heard: Chunked, assignment: NDArray[np.str_], prober: Prober) -> Fold:
    parts = {part: heard.of(np.flatnonzero(assignment == part)) for part in ("train", "dev", "test")}
    for part, chunks in parts.items():
        refuse_none(chunks.rows, part, embedder, ready)
    goals = {part: torch.from_numpy(ready.targets[chunks.rows]) for part, chunks in parts.items() if part != "test"}
    train, dev = (Examples(parts[part].layers, goals[part][parts[part].track]) for part in goals)
    kind, device = ready.task.kind, str(embedder.encoder.device)
    balanced = ready.task.scored_by == "balanced_accuracy"
    fitted: Probe
    if isinstance(prober, MarbleProber):
        joins = JOINS if ready.task.scored_by == KEY_METRIC else {"": mean_of_chunks}
        judge, track = _judge(ready, goals["dev"].to(device), balanced), parts["dev"].track.to(device)

        def measure(logits: Tensor) -> Tensor:
            return torch.stack([judge(join(logits, track, len(goals["dev"]))) for join in joins.values()]).amax(0)

        marble = prober.search(kind, train, dev.layers, measure, device)
        logits = marble.scaled(marble.logits(dev.layers)).to(device)
        means = {name: judge(join(logits, track, len(goals["dev"]))).mean() for name, join in joins.items()}
        how = max(means, key=lambda name: float(means[name]))
        fitted = replace(marble, choice=replace(marble.choice, detail=how))

        def answered(chunks: Chunked) -> Tensor:
            return marble.answers(joins[how](marble.logits(chunks.layers), chunks.track, len(chunks.rows)))
    else:
        fitted = prober.fit(kind, train, dev, balanced=balanced, device=device)

        def answered(chunks: Chunked) -> Tensor:
            outputs = fitted.predict(chunks.layers)
            spread = outputs[:, None] if kind == "values" else outputs.mT
            joined = mean_of_chunks(spread, chunks.track, len(chunks.rows))
            return joined[:, 0] if kind == "values" else joined.mT

    def answers(part: str) -> Answers:
        rows = np.flatnonzero(assignment == part)
        present = np.isin(rows, parts[part].rows)
        return complete(ready, rows, present, answered(parts[part]), goals["train"].numpy())

    skipped = len(ready.manifest) - len(heard.rows)
    return Fold(fitted, answers("dev"), answers("test"), skipped, [])


def _judge(ready: Prepared, targets: Tensor, balanced: bool) -> Measure:
    """The dev score of recordings' logits."""
    if ready.task.scored_by != KEY_METRIC:
        return dev_measure(ready.task.kind, targets, balanced)
    credit = torch.from_numpy(key_credit(ready.classes)).float().to(targets.device)[targets]  # (T, K)
    return lambda logits: credit.gather(1, logits.argmax(1).T).mean(0)
