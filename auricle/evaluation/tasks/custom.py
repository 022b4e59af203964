"""A task from a person's own column of labels: level, kind and metric by what is in it."""

from __future__ import annotations

import logging
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from auricle.data.manifest import Manifest
from auricle.errors import EvaluationError, ManifestError, unknown
from auricle.evaluation.beats import BEAT_METRICS
from auricle.evaluation.metrics import METRICS, Kind
from auricle.evaluation.tasks.task import Task

log = logging.getLogger("auricle")

MANY = 20
"""A column of whole numbers with more distinct values than this is taken for a quantity, not for classes."""


def custom_task(
    manifest: Manifest,
    target: str,
    *,
    name: str,
    level: Literal["clip", "frame"] | None = None,
    metric: str | None = None,
    split: Literal["auto", "split", "folds"] = "auto",
    group: str | None = None,
    unit: str | None = None,
    speaker: str | None = None,
    seed: int = 0,
) -> Task:
    """The task of predicting column `target`.

    An interval column is probed by frame (for a metric of beats its labels are beat and downbeat, and the protocol
    MARBLE's), any other by clip. Lists, and text with `;`, are several labels a clip; fractions, and whole numbers of
    more than 20 values, are quantities; the rest are classes. A given metric decides between these. Raises
    `ManifestError` for an unknown column, `EvaluationError` where the column does not fit.
    """
    for column in (target, group, unit, speaker):
        if column is not None and column not in manifest.table.column_names:
            raise ManifestError(unknown("column", column, manifest.labels))
    manifest.warn_of_skipped()
    if metric is not None and metric not in METRICS:
        raise EvaluationError(unknown("metric", metric, METRICS))
    intervals = is_intervals(manifest.table.schema.field(target).type)
    if level is not None and (level == "frame") != intervals:
        expected = "interval labels (start, end, label)" if level == "frame" else "one label a clip"
        raise EvaluationError(f"column '{target}': level '{level}' needs {expected}")
    if manifest.table.column(target).null_count == len(manifest):
        raise EvaluationError(f"column '{target}': no clip has a value in it")
    kind, why = _kind(manifest.table.column(target))
    if metric is not None and METRICS[metric] != kind:
        kind, why = METRICS[metric], f"set by the metric {metric}"
    task = Task(
        name=name, target=target, kind=kind, level="frame" if intervals else "clip", metric=metric or "",
        split=split, group=group, unit=unit, speaker=speaker, seed=seed, measures=f"column {target}",
        protocol="marble" if metric in BEAT_METRICS else "auricle",
    )  # fmt: skip
    log.info("column '%s': %s (%s), by %s, scored by %s", target, kind, why, task.level, task.scored_by)
    return task


def is_intervals(kind: pa.DataType) -> bool:
    """Whether a column holds interval labels."""
    return bool(pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))


def _kind(column: pa.ChunkedArray) -> tuple[Kind, str]:
    kind = column.type
    if is_intervals(kind):
        return "classes", "intervals"
    if pa.types.is_list(kind):
        return "labels", "lists"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if pc.any(pc.match_substring(column, ";")).as_py():
            return "labels", "text with ';'"
        return "classes", "text"
    distinct = pc.count_distinct(column).as_py()
    if pa.types.is_floating(kind) and not pc.all(pc.equal(column, pc.floor(column))).as_py():
        return "values", "fractions"
    if (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and distinct > MANY:
        return "values", f"{distinct} whole numbers; metric accuracy would make them classes"
    return "classes", f"{distinct} values"
