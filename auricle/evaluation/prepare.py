"""From a task and its recordings to clips, targets, units and splits: once a task, the same for every encoder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auricle.data.corpora import find_corpus
from auricle.data.manifest import Manifest
from auricle.data.splits import Splits, folds, is_split, personal, split
from auricle.embedding.extract import grid_times
from auricle.errors import EvaluationError, ManifestError, unknown
from auricle.evaluation.beats import BEAT_METRICS, annotated
from auricle.evaluation.events import EVENT_METRICS
from auricle.evaluation.metrics import METRICS
from auricle.evaluation.music import KEY_METRIC, key_name
from auricle.evaluation.tasks.custom import is_intervals
from auricle.evaluation.tasks.task import Task

UNLABELLED = -1
"""Code of frames outside every interval (ignored) and of classes that train has not (always wrong)."""


@dataclass(frozen=True)
class Prepared:
    """A task's clips (N), ready for any encoder."""

    task: Task
    manifest: Manifest
    classes: list[str]
    """Names of classes or labels; empty for values."""
    targets: NDArray[Any]
    """(N,) class codes, (N, K) labels or (N,) values; for frame tasks (N,) objects, each codes on its grid, or for
    beats their times and those of downbeats."""
    texts: list[str]
    """(N,) targets for people; empty for frame tasks."""
    units: list[str]
    """(N,) names of what the interval resamples."""
    unit: str
    assignments: list[NDArray[Any]]
    """(N,) of train, dev, test (or anything else: unused), one a fold."""
    rule: str
    split_hash: str
    groups: NDArray[np.int64] | None = None
    """(N,) codes of the speakers, where the task names their column."""
    home: str = ""
    """Folder that holds all of the task's corpus; empty for a person's own data."""


def read_task(task: Task, corpora: Path | str | None = None) -> Manifest:
    """All clips of a task's corpus, which lies in the folder `corpora`. Raises `ManifestError`."""
    if not task.corpus:
        raise EvaluationError(f"task {task.name}: names no corpus; give its recordings as data")
    manifest = find_corpus(task.corpus, corpora, **task.options)
    manifest.warn_of_skipped()
    return manifest


def prepare(
    task: Task, manifest: Manifest | None = None, fold: int | None = None, corpora: Path | str | None = None
) -> Prepared:
    """Read a task's recordings (or take `manifest`), and check that its target can be learned and scored.

    Of a task of folds only number `fold` is tested on, if given; a task of one split has no other than 0.
    Raises `ManifestError` for columns that are not there, `EvaluationError` where there is nothing to learn: one class,
    a class of dev or test that train lacks, an empty split.
    """
    manifest = read_task(task, corpora) if manifest is None else manifest
    for column in (task.target, *task.where, task.unit, task.group, task.column, task.speaker):
        if column is not None and column not in manifest.table.column_names:
            raise ManifestError(f"task {task.name}: {unknown('column', column, manifest.labels)}")
    for column, wanted in task.where.items():
        manifest = manifest.select(np.array([str(value) == wanted for value in manifest.column(column)], bool))
    home = os.path.commonpath(map(os.path.dirname, manifest.column("path"))) if task.corpus and len(manifest) else ""
    keep = np.ones(len(manifest), bool)
    for needed in (task.target, task.column, task.speaker if task.personal else None):
        if needed is not None:
            keep &= np.array([_known(value) for value in manifest.column(needed)], bool)
    manifest = manifest.select(keep)
    if not len(manifest):
        raise EvaluationError(f"task {task.name}: no clip has a value in column '{task.target}'")
    if task.scored_by in BEAT_METRICS and not is_intervals(manifest.table.schema.field(task.target).type):
        raise EvaluationError(f"task {task.name}: {task.scored_by} scores intervals, not column '{task.target}'")
    if METRICS[task.scored_by] != task.kind:
        raise EvaluationError(f"task {task.name}: metric {task.scored_by} cannot score {task.kind}")
    if task.kind == "labels":
        manifest = manifest.with_column(task.target, [sorted(_labels(value)) for value in manifest.column(task.target)])
    if task.scored_by == KEY_METRIC:
        manifest = manifest.with_column(task.target, _keys(task, manifest))
    try:
        made = [_fewer(task, manifest, part) for part in _splits(task, manifest)]
    except ManifestError as error:
        raise ManifestError(f"task {task.name}: {error}") from None
    if fold is not None and fold >= len(made):
        raise EvaluationError(f"task {task.name}: has folds 0 to {len(made) - 1}, and no fold {fold}")
    made = made if fold is None else made[fold : fold + 1]
    used = np.any([np.isin(part.assignment, ("train", "dev", "test")) for part in made], axis=0)
    manifest, assignments = manifest.select(used), [part.assignment[used] for part in made]
    rule = made[0].rule if len(made) == 1 else f"{len(made)} folds, each tested on once: {made[0].rule}, and so on"
    split_hash = made[0].hash if len(made) == 1 else _hash(part.hash for part in made)
    classes, targets, texts = _targets(task, manifest, assignments)
    unit = task.speaker if task.personal else task.unit or task.group
    units = [str(value) for value in manifest.column(unit or "clip_id")]
    groups = None
    if task.speaker is not None:
        speakers = [str(value) for value in manifest.column(task.speaker)]
        groups = np.asarray(np.unique(speakers, return_inverse=True)[1], np.int64)
    for assignment in assignments:
        _check(task, assignment, classes, targets)
    return Prepared(
        task, manifest, classes, targets, texts, units, unit or "clip", assignments, rule, split_hash, groups, home
    )


def _splits(task: Task, manifest: Manifest) -> list[Splits]:
    if task.personal:
        if task.speaker is None or task.kind != "classes" or task.level == "frame":
            raise EvaluationError(
                f"task {task.name}: one speaker at a time needs the speakers' column, and classes of clips"
            )
        return personal(manifest, task.target, task.speaker, task.seed)
    columns, column = manifest.table.column_names, task.column
    target = None if task.level == "frame" else task.target
    in_folds = "fold" in columns and "split" not in columns if column is None else not is_split(manifest, column)
    if task.split == "folds" or (task.split == "auto" and in_folds):
        return folds(manifest, target, task.group, column, seed=task.seed, kind=task.kind)
    return [split(manifest, target, task.group, task.seed, column=column or "split", kind=task.kind)]


def _fewer(task: Task, manifest: Manifest, splits: Splits) -> Splits:
    """With the task's share of train, every class in it; the clips of a smaller share are among those of a larger."""
    if task.labels == 1:
        return splits
    rows = np.random.default_rng(task.seed).permutation(splits.rows("train"))
    values, first = manifest.column(task.target), dict[str, int]()
    if task.kind != "values" and not is_intervals(manifest.table.schema.field(task.target).type):
        for row in rows.tolist():
            for label in _labels(values[row]) if task.kind == "labels" else (str(values[row]),):
                first.setdefault(label, row)
    needed = dict.fromkeys(first.values())
    count = max(1, len(needed), round(task.labels * len(rows)))
    drawn, clip_ids = list(dict.fromkeys([*needed, *rows.tolist()])), manifest.column("clip_id")
    assignment = splits.assignment.astype(object)
    assignment[drawn[count:]] = "unused"
    rule = f"{splits.rule}; {count} of the {len(rows)} train clips ({100 * task.labels:g} %), seed {task.seed}"
    return replace(
        splits,
        assignment=assignment.astype(str),
        rule=rule,
        hash=_hash([splits.hash, *sorted(clip_ids[row] for row in drawn[:count])]),
    )


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def _known(value: Any) -> bool:
    return value is not None and value != "" and value == value


def _targets(
    task: Task, manifest: Manifest, assignments: list[NDArray[Any]]
) -> tuple[list[str], NDArray[Any], list[str]]:
    """Names of the classes, targets as in `Prepared`, and texts."""
    values = manifest.column(task.target)
    if task.scored_by in BEAT_METRICS:
        return ["beat", "downbeat"], _beats(task, manifest), []
    if task.level == "frame":
        frames = np.empty(len(values), object)
        if not is_intervals(manifest.table.schema.field(task.target).type):  # the clip's class, at every point
            classes = sorted({str(value) for value in values})
            for row, (value, duration) in enumerate(zip(values, manifest.durations, strict=True)):
                frames[row] = np.full(len(grid_times(float(duration))), classes.index(str(value)))
            return classes, frames, []
        classes = sorted({str(interval["label"]) for clip in values for interval in clip})
        code = {name: index for index, name in enumerate(classes)}
        for row, (clip, duration) in enumerate(zip(values, manifest.durations, strict=True)):
            frames[row] = frame_labels(clip, float(duration), code)
        return classes, frames, []
    if task.kind == "values":
        try:
            numbers = np.array([float(value) for value in values])
        except (TypeError, ValueError):
            wrong = next(value for value in values if not isinstance(value, int | float))
            raise EvaluationError(
                f"column '{task.target}': metric {task.scored_by} needs numbers, found '{wrong}'"
            ) from None
        return [], numbers, [repr(float(value)) for value in numbers]
    if task.kind == "labels":
        sets = [set(value) for value in values]
        classes = sorted(set().union(*sets))
        hits = np.zeros((len(sets), len(classes)), np.uint8)  # of AudioSet's two million clips a gigabyte
        code = {name: index for index, name in enumerate(classes)}
        for clip_hits, labels in zip(hits, sets, strict=True):
            clip_hits[[code[label] for label in labels]] = 1
        return classes, hits, [";".join(sorted(labels)) for labels in sets]
    texts = [str(value) for value in values]
    classes = sorted(set(texts))
    code = {name: index for index, name in enumerate(classes)}
    return classes, np.array([code[text] for text in texts]), texts


def _keys(task: Task, manifest: Manifest) -> list[str]:
    """(N,) names of keys, one a key however annotators spell it."""
    keys = []
    for clip_id, key in zip(manifest.column("clip_id"), manifest.column(task.target), strict=True):
        try:
            keys.append(key_name(str(key)))
        except EvaluationError as error:
            raise EvaluationError(f"task {task.name}, column '{task.target}', clip {clip_id}: {error}") from None
    return keys


def _beats(task: Task, manifest: Manifest) -> NDArray[np.object_]:
    """(N,) pairs: times of beats and of downbeats."""
    beats = np.empty(len(manifest), object)
    for row, (clip_id, clip) in enumerate(zip(manifest.column("clip_id"), manifest.column(task.target), strict=True)):
        try:
            beats[row] = annotated(clip)
        except EvaluationError as error:
            raise EvaluationError(f"task {task.name}, column '{task.target}', clip {clip_id}: {error}") from None
    return beats


def _labels(value: Any) -> set[str]:
    parts = value.split(";") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return {str(part).strip() for part in parts if _known(part)}


def frame_labels(intervals: list[dict[str, Any]], duration_s: float, code: dict[str, int]) -> NDArray[np.int64]:
    """Codes on the 10 ms grid (see `grid_times`): time t has the label of the interval with start ≤ t < end.

    Where intervals overlap, the one that starts last counts; outside all of them the code is -1.
    """
    times = np.round(grid_times(duration_s), 6)
    labels = np.full(len(times), UNLABELLED)
    for interval in sorted(intervals, key=lambda interval: interval["start_s"]):
        start, end = np.searchsorted(times, np.round([interval["start_s"], interval["end_s"]], 6))
        labels[start:end] = code[str(interval["label"])]
    return labels


def _check(task: Task, assignment: NDArray[Any], classes: list[str], targets: NDArray[Any]) -> None:
    """Refuse what cannot be learned or scored."""
    where = f"task {task.name}, column '{task.target}'"
    for part in ("train", "dev", "test"):
        if not (assignment == part).any():
            raise EvaluationError(f"{where}: no clip is in {part}; splits are named train, dev and test")
    if task.kind == "values":
        if np.ptp(targets[assignment == "train"]) == 0:
            raise EvaluationError(f"{where}: all values in train are equal")
        return
    if task.scored_by in BEAT_METRICS:
        kind, skip_s = task.scored_by.partition("_")[0], BEAT_METRICS[task.scored_by].skip_s
        for part in ("train", "dev", "test"):
            times = np.concatenate([clip[kind == "downbeat"] for clip in targets[assignment == part]])
            if not len(times):
                raise EvaluationError(f"{where}: no clip of {part} has a {kind}")
            if part != "train" and times.max() < skip_s:
                raise EvaluationError(
                    f"{where}: no clip of {part} has a {kind} after its first {skip_s:g} s, which {task.scored_by} "
                    f"leaves out; metric {kind}_f1_marble counts them"
                )
        return
    if task.level == "frame":
        present = {part: _frames_of(targets[assignment == part]) for part in ("train", "test")}
        least, what = (1, "an event") if task.scored_by in EVENT_METRICS else (2, "two classes")
        if len(present["train"]) < least or not len(present["test"]):
            raise EvaluationError(f"{where}: needs frames of {what} in train, and frames in test")
        return  # a rare phone that train lacks is counted as an error
    if task.kind == "labels":
        silent = [name for name, count in zip(classes, targets[assignment == "train"].sum(0), strict=True) if not count]
        if silent:
            raise EvaluationError(f"{where}: label '{silent[0]}' does not occur in train")
        return
    counts = {part: Counter(targets[assignment == part].tolist()) for part in ("train", "dev", "test")}
    if len(counts["train"]) < 2:
        raise EvaluationError(f"{where}: there is only one class in train, '{classes[next(iter(counts['train']))]}'")
    for part in ("dev", "test"):
        for absent in counts[part].keys() - counts["train"].keys():
            raise EvaluationError(
                f"{where}: class '{classes[absent]}' is in {part} ({counts[part][absent]} clips) but not in train; "
                f"give it clips in train, or leave it out"
            )


def _frames_of(clips: NDArray[Any]) -> NDArray[np.int64]:
    codes: NDArray[np.int64] = np.unique(np.concatenate([np.empty(0, np.int64), *clips]))
    return np.asarray(codes[codes != UNLABELLED])
