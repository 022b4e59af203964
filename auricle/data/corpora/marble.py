"""MARBLE's own annotations (its version 2): a line of JSON a clip, in a file a task and part."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from auricle.data.corpora.layout import Interval, IntervalColumn, read_lines, refuse_missing
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError, unknown

LAYOUT = "data/GTZAN/GTZANGenre.{train,val,test}.jsonl and so on, with the audio that they name below data/GTZAN"
PARTS = {"train": "train", "val": "dev", "test": "test"}
POINTS = ("beat", "downbeat")
"""Fields of a record that are lists of times."""


def read(folder: Path, *, task: str | None = None) -> Manifest:
    """`label` of a task (GTZANGenre, MTT, GS...; may be left out where there is one only) as annotated, and `split`.

    A label is a text or a list of texts. Of a list of numbers (EMO's arousal and valence), each is a column `label_0`,
    `label_1`...; of a record (GTZANBeatTracking's beat, downbeat, tempo and meter), each is a column `label_tempo`...,
    where times go into the points `beats`, intervals that end where they start; timed chords become the intervals
    `chords`. What is past a clip's `duration` is cut. `ori_uid`, the song of a clip, is kept.

    `folder` is MARBLE's, its data/, or a corpus's folder in that; paths, which are written from MARBLE's folder, are
    looked for below the folder of the annotations. Written after what MARBLE's tasks read; its file for EMO was not
    seen. Expects LAYOUT. Raises `ManifestError`.
    """
    found = {
        path.name.removesuffix(".train.jsonl"): path.parent
        for pattern in ("*", "*/*", "*/*/*")
        for path in sorted(folder.glob(f"{pattern}.train.jsonl"))
    }
    if not found:
        reason = "not MARBLE's annotations" if folder.is_dir() else "no such folder"
        raise ManifestError(f"{folder}: {reason}; expected {LAYOUT}")
    if task is None and len(found) > 1:
        raise ManifestError(f"{folder}: holds several tasks ({', '.join(sorted(found))}); name one as 'task'")
    name = next(iter(found)) if task is None else task
    if name not in found:
        raise ManifestError(f"{folder}: {unknown('task', name, found)}")
    root, rows, splits = found[name], list[dict[str, Any]](), list[str]()
    for part, split in PARTS.items():
        rows += (clips := _rows(root / f"{name}.{part}.jsonl"))
        splits += [split] * len(clips)
    paths = [_below(row["audio_path"]) for row in rows]
    refuse_missing("the clips", root, [path for path in paths if not (root / path).is_file()], len(paths))
    columns = {"path": paths, "split": splits, **_columns(root / f"{name}.*.jsonl", rows)}
    if any("ori_uid" in row for row in rows):
        columns["ori_uid"] = [row.get("ori_uid") for row in rows]
    return Manifest.from_columns(columns, root, str(root))


def _rows(path: Path) -> list[dict[str, Any]]:
    """A part's clips. Raises `ManifestError` naming the line."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ManifestError(f"{path}: line {number} is not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("audio_path"), str) or "label" not in row:
            raise ManifestError(f"{path}: line {number} is no record with 'audio_path' and 'label'")
        rows.append(row)
    return rows


def _below(path: str) -> str:
    """A path below the annotations' folder: without data/GTZAN/."""
    parts = Path(path).parts
    return str(Path(*parts[2:])) if parts[0] == "data" else path


def _columns(where: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the labels say, by column. Raises `ManifestError` if they are of no kind that is known, or of several."""
    labels = [row["label"] for row in rows]
    lengths = [row.get("duration", math.inf) for row in rows]
    lists = all(isinstance(label, list) for label in labels)
    items = [item for label in labels for item in label] if lists else []
    try:
        if all(isinstance(label, str) for label in labels) or (lists and all(isinstance(item, str) for item in items)):
            return {"label": labels}
        if lists and all(isinstance(item, int | float) for item in items):
            numbers = np.array(labels, float)  # (N, K)
            return {f"label_{index}": values for index, values in enumerate(numbers.T)}
        if lists:
            return {"chords": _intervals(map(_chords, labels, lengths))}
        if all(isinstance(label, dict) for label in labels):
            names = dict.fromkeys(name for label in labels for name in label if name not in POINTS)
            columns = {f"label_{name}": pa.array([label.get(name) for label in labels]) for name in names}
            return {"beats": _intervals(map(_points, labels, lengths)), **columns}
    except (KeyError, TypeError, ValueError):  # of Arrow too
        pass
    raise ManifestError(f"{where}: labels are of several kinds, or of none that MARBLE has; get the annotations again")


def _chords(label: list[dict[str, Any]], length: float) -> list[Interval]:
    times = ((float(item["start_time"]), float(item["end_time"]), str(item["chord_str"])) for item in label)
    return [(start, min(end, length), name) for start, end, name in times if not start >= length]


def _points(label: dict[str, list[float]], length: float) -> list[Interval]:
    points = sorted((float(time), name) for name in POINTS for time in label.get(name, []))
    return [(time, time, name) for time, name in points if not time > length]


def _intervals(clips: Iterable[list[Interval]]) -> pa.Array:
    column = IntervalColumn()
    for clip in clips:
        column.add(clip)
    return column.to_arrow()
