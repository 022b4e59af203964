"""What a report shows of music: keys on the circle of fifths, and beats over clips that play."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from auricle.audio.io import read
from auricle.errors import AudioError, EvaluationError
from auricle.evaluation.beats import BEAT_METRICS, SAME_S, matched
from auricle.evaluation.music import KEY_METRIC, key_confusion
from auricle.report.clips import data_uri, take_turns
from auricle.report.scores import Board, Column

Array = NDArray[np.float64]

CLIPS = 4
"""Clips a task whose beats are drawn: from the worst found to the best."""
LONGEST_S = 20.0
"""Seconds of a clip whose beats are drawn and heard."""
BINS, WAVE_RATE = 800, 8000
"""Points of a drawn waveform, and the rate it is read at."""
BEAT_COLUMNS = ("reference_s", "estimated_s", "reference_downbeats_s", "estimated_downbeats_s")


# ---------------------------------------------------------------------------------------------------------------- keys


def key_wheels(board: Board) -> list[dict[str, Any]]:
    """For tasks of keys, how far from the true key the told ones lie.

    `counts` (2, 2, 12) of an encoder: whether the true key is minor, whether the told one is, and how many fifths the
    told one is above the true one, a minor key being where its relative major is. Raises `EvaluationError`.
    """
    wheels = []
    for column in board.columns:
        if column.first.metric == KEY_METRIC:
            views = [{"encoder": name, "counts": _fifths(column, name).tolist()} for name in column.rows]
            wheels.append({"task": column.title, "views": views})
    return wheels


def _fifths(column: Column, name: str) -> NDArray[np.int64]:
    test = _test_rows(column.predictions[name])
    try:
        confusion = key_confusion(test["target"].to_pylist(), test["prediction"].to_pylist())
    except EvaluationError as error:
        raise EvaluationError(f"{column.rows[name].file}: {error}; evaluate again") from None
    true, told = np.indices(confusion.shape)
    counts = np.zeros((2, 2, 12), np.int64)
    np.add.at(counts, (true % 2, told % 2, (told // 2 - true // 2) % 12), confusion)
    return counts


# --------------------------------------------------------------------------------------------------------------- beats


def beat_clips(board: Board, sounds: list[str], budget: int) -> list[dict[str, Any]]:
    """For tasks of beats, a few test clips with what was annotated, what encoders found, a waveform and a sound.

    Sounds are appended to the page's, at most `budget` bytes of them; clips without one, or that cannot be read, have
    None for the index of theirs.
    """
    tasks = [task for task in map(_task, filter(_has_beats, board.columns)) if task["clips"]]
    with tempfile.TemporaryDirectory() as scratch:
        index: dict[tuple[str, float, float], int | None] = {}
        for clip in take_turns([task["clips"] for task in tasks]):
            source = clip.pop("source")
            clip["wave"] = _waveform(*source)
            if source not in index:
                uri = data_uri(source, Path(scratch) / "clip.ogg", LONGEST_S)
                budget -= len(uri or "")
                index[source] = len(sounds) if uri and budget >= 0 else None
                sounds += [uri] if uri and budget >= 0 else []
            clip["audio"] = index[source]
    return tasks


def _has_beats(column: Column) -> bool:
    return column.first.metric in BEAT_METRICS and all(
        name in table.column_names for table in column.predictions.values() for name in BEAT_COLUMNS
    )


def _task(column: Column) -> dict[str, Any]:
    """A task's clips as the page draws them, `source` still in place of waveform and sound."""
    metric = column.first.metric
    tests = {name: _by_clip(table) for name, table in column.predictions.items()}
    first = next(iter(tests.values()))
    counted = [clip for clip, row in first.items() if row["total"]]  # some have no downbeats, say
    score = {clip: np.mean([_share(test[clip]) for test in tests.values() if clip in test]) for clip in counted}
    ranked = sorted(counted, key=lambda clip: (score[clip], clip))
    places = np.linspace(0, max(0, len(ranked) - 1), min(CLIPS, len(ranked))).round().astype(int)
    chosen = [ranked[place] for place in places]
    return {
        "task": column.title,
        "what": "downbeat" if metric.startswith("downbeat") else "beat",
        "skip": BEAT_METRICS[metric].skip_s,
        "clips": [
            _clip(clip, {name: test[clip] for name, test in tests.items() if clip in test}, metric) for clip in chosen
        ],
    }


def _clip(clip_id: str, rows: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, Any]:
    row = next(iter(rows.values()))
    length = min(float(row["duration_s"]), LONGEST_S)
    reference, tall = _events(row, "reference", metric)
    views = []
    for name, own in rows.items():
        estimated, high = _events(own, "estimated", metric)
        found, right = matched(reference, estimated)
        views.append(
            {
                "encoder": name,
                "found": found[reference < length].tolist(),
                "marks": _marks(estimated, high, length),
                "right": right[estimated < length].tolist(),
            }
        )
    source = (row["path"], row["start_s"], float(row["duration_s"]))
    return {"id": clip_id, "length": length, "marks": _marks(reference, tall, length), "views": views, "source": source}


def _events(row: Mapping[str, Any], side: str, metric: str) -> tuple[Array, NDArray[np.bool_]]:
    """What the metric scores on a side, ascending times (N,), and which of them are downbeats (N,)."""
    beats, downbeats = (np.sort(np.array(row[f"{side}{kind}_s"] or [], np.float64)) for kind in ("", "_downbeats"))
    if metric.startswith("downbeat"):
        return downbeats, np.ones(len(downbeats), bool)
    near = np.abs(beats[:, None] - downbeats).min(1, initial=np.inf) <= SAME_S
    return beats, near


def _marks(times: Array, tall: NDArray[np.bool_], length: float) -> list[tuple[float, int]]:
    """(seconds, 1 for a downbeat) of what is drawn."""
    return [(round(float(time), 3), int(high)) for time, high in zip(times, tall, strict=True) if time < length]


def _waveform(path: str, start_s: float, duration_s: float) -> list[int]:
    """Peaks of a clip, 0 to 100 of the loudest; none if it cannot be read."""
    length = round(min(duration_s, LONGEST_S) * WAVE_RATE)
    try:
        samples = np.abs(read(path, WAVE_RATE, round(start_s * WAVE_RATE), length))
    except AudioError:
        return []
    if not len(samples):
        return []
    peaks = np.maximum.reduceat(
        samples, np.linspace(0, len(samples), min(BINS, len(samples)), endpoint=False).astype(int)
    )
    scaled: list[int] = np.rint(100 * peaks / max(float(peaks.max()), 1e-6)).astype(int).tolist()
    return scaled


def _by_clip(table: pa.Table) -> dict[str, dict[str, Any]]:
    columns = ["clip_id", "path", "start_s", "duration_s", "correct", "total", *BEAT_COLUMNS]
    return {row["clip_id"]: row for row in _test_rows(table).select(columns).to_pylist()}


def _share(row: Mapping[str, Any]) -> float:
    return float(row["correct"] / row["total"]) if row["total"] else 0.0


def _test_rows(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["split"], "test"))
