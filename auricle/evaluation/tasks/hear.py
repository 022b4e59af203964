"""HEAR's tasks as they lie on disk, as tasks and manifests of ours.

A task's folder, such as `esc50-v2.0.0-full`, holds `task_metadata.json`, `labelvocabulary.csv` (`idx,label`), a file
of labels for each split (`train.json` or `fold00.json`: of scenes `{"clip.wav": ["label"]}`, of events
`{"clip.wav": [{"label", "start", "end"}]}` in milliseconds) and the audio as `<sample rate>/<split>/clip.wav`.
"""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from auricle.data.corpora.layout import read_lines, refuse_missing
from auricle.data.manifest import Manifest
from auricle.data.sources import INTERVALS
from auricle.errors import ManifestError, unknown
from auricle.evaluation.events import EVENT_METRICS
from auricle.evaluation.tasks.task import Task

log = logging.getLogger("auricle")

METADATA, VOCABULARY = "task_metadata.json", "labelvocabulary.csv"
METRICS = {
    "top1_acc": "accuracy",
    "pitch_acc": "accuracy",
    "mAP": "map",
    "aucroc": "roc_auc",
    "event_onset_200ms_fms": "onset_f1_200ms",
    "event_onset_50ms_fms": "onset_f1_50ms",
    "event_onset_offset_50ms_20perc_fms": "onset_offset_f1_50ms",
    "segment_1s_er": "segment_error_rate",
}
"""HEAR's names of metrics, and ours."""
SPLITS = {"trainvaltest": "split", "presplit_kfold": "fold", "new_split_kfold": "fold"}
"""HEAR's ways of splitting, and our column."""
CHECK_EVERY = {"dcase2016_task2": 10}
"""Epochs between scores on dev, where the kit itself has others than usual."""


def hear_tasks(folder: Path | str) -> list[tuple[Task, Manifest]]:
    """The task in a folder of HEAR's layout, or all in folders of it (such as `tasks`), by name, with their clips.

    Scenes have the column `label` (a list, for tasks of several), events the column `events`; splits are HEAR's own:
    fold i is tested on, the next one is dev, the others train. Of several sample rates the highest is taken. A task is
    scored by its first metric; for events the others are told beside it. Raises `ManifestError` for what is missing,
    damaged or not known.
    """
    folder = Path(folder)
    places = [folder] if (folder / METADATA).is_file() else sorted(path.parent for path in folder.glob(f"*/{METADATA}"))
    if not places:
        raise ManifestError(f"{folder}: holds no task of HEAR; expected {METADATA} in it, or in folders of it")
    return [_read(place) for place in places]


def _read(folder: Path) -> tuple[Task, Manifest]:
    about = _read_json(folder / METADATA)
    if not isinstance(about, dict):
        raise ManifestError(f"{folder / METADATA}: is no record of a task")
    level = _known(folder, about, "embedding_type", ("scene", "event"))
    answers = _known(folder, about, "prediction_type", ("multiclass", "multilabel"))
    column = SPLITS[_known(folder, about, "split_mode", SPLITS)]
    first = (about.get("evaluation") or [None])[0]
    if first not in METRICS:
        raise ManifestError(f"{folder / METADATA}: {unknown('metric', str(first), METRICS)}")
    metric = METRICS[first]
    if (metric in EVENT_METRICS) != (level == "event"):
        raise ManifestError(f"{folder / METADATA}: {first} is no metric of a task of type {level}")
    several = level == "scene" and (answers == "multilabel" or metric in ("map", "roc_auc"))
    task = Task(
        name=f"hear-{folder.name}",
        target="events" if level == "event" else "label",
        kind="labels" if several else "classes",
        level="frame" if level == "event" else "clip",
        metric=metric,
        split="folds" if column == "fold" else "split",
        protocol="hear",
        options={"events": _event_options(folder, about)} if level == "event" else {},
        measures=f"HEAR's task {about.get('task_name', folder.name)}: {level}, {answers}",
        citation="Turian et al. 2022, HEAR: Holistic Evaluation of Audio Representations, PMLR 176",
    )
    return task, _manifest(folder, about, level, column, several)


def _manifest(folder: Path, about: dict[str, Any], level: str, column: str, several: bool) -> Manifest:
    """All clips of a task, with their labels and splits."""
    splits = about.get("splits") or ["train", "valid", "test"]
    rates = sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()), key=lambda p: int(p.name)
    )
    if not rates:
        raise ManifestError(f"{folder}: holds no audio; expected a folder named by its sample rate, such as 48000")
    names, labels, parts = [], [], []
    vocabulary = _vocabulary(folder)
    for split in splits:
        place = folder / f"{split}.json"
        clips = _read_json(place)
        if not isinstance(clips, dict):
            raise ManifestError(f"{place}: is no record of clips and labels")
        for name, found in clips.items():
            names.append(f"{split}/{name}")
            labels.append(_labels(place, name, found, level, vocabulary, several))
            parts.append(str(split))
    missing = [name for name in names if not (rates[-1] / name).is_file()]
    refuse_missing("the clips", rates[-1], missing, len(names))
    columns = {"clip_id": names, "path": [f"{rates[-1].name}/{name}" for name in names], column: parts}
    manifest = Manifest.from_columns(columns, folder, str(folder))
    manifest.warn_of_skipped()
    kept = dict(zip(names, labels, strict=True))  # unreadable files are left out of it
    values = [kept[clip_id] for clip_id in manifest.column("clip_id")]
    kind = INTERVALS if level == "event" else pa.list_(pa.string()) if several else pa.string()
    return manifest.with_column("events" if level == "event" else "label", pa.array(values, kind))


def _labels(place: Path, name: str, found: Any, level: str, vocabulary: set[str], several: bool) -> Any:
    """A clip's labels, as our column holds them."""
    try:
        if level == "event":
            values: list[Any] = [
                {"start_s": event["start"] / 1000, "end_s": event["end"] / 1000, "label": str(event["label"])}
                for event in found
            ]
            used = {event["label"] for event in values}
        else:
            values = [str(label) for label in (found if isinstance(found, list) else [found])]
            used = set(values)
    except (KeyError, TypeError):
        raise ManifestError(f"{place}, {name}: expected events with label, start and end, found {found!r}") from None
    if strange := used - vocabulary:
        raise ManifestError(f"{place}, {name}: label '{min(strange)}' is not in {VOCABULARY}")
    if level == "event":
        return sorted(values, key=lambda event: event["start_s"])
    if several:
        return values
    if len(values) != 1:
        raise ManifestError(f"{place}, {name}: a multiclass task needs one label a clip, found {len(values)}")
    return values[0]


def _vocabulary(folder: Path) -> set[str]:
    """Labels, as text whatever they look like. Raises `ManifestError` unless they are numbered from 0 on."""
    rows = list(csv.DictReader(read_lines(folder / VOCABULARY)))
    if not rows or not {"idx", "label"} <= rows[0].keys():
        raise ManifestError(f"{folder / VOCABULARY}: expected the columns idx and label")
    if sorted(row["idx"] for row in rows) != sorted(str(number) for number in range(len(rows))):
        raise ManifestError(f"{folder / VOCABULARY}: idx does not count from 0 to {len(rows) - 1}")
    return {row["label"] for row in rows}


def _event_options(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What the task says of training and post-processing, as `EventOptions` takes it."""
    further = about.get("evaluation_params") or {}
    ways, training = (further.get(key) or {} for key in ("event_postprocessing_grid", "task_specific_param_grid"))
    options: dict[str, Any] = {"by_loss": not about.get("use_scoring_for_early_stopping", True)}
    further_metrics = [METRICS.get(name, "") for name in about["evaluation"][1:]]
    if also := tuple(name for name in further_metrics if name in EVENT_METRICS):
        options["also"] = also
    for name, ours in (("median_filter_ms", "median_s"), ("min_duration", "shortest_s")):
        if ways.get(name):
            options[ours] = tuple(value / 1000 for value in ways[name])
    known = {"max_epochs": "max_epochs", "check_val_every_n_epoch": "check_every"}
    options |= {ours: training[name][0] for name, ours in known.items() if training.get(name)}
    if about.get("task_name") in CHECK_EVERY:
        options.setdefault("check_every", CHECK_EVERY[about["task_name"]])
    if ignored := training.keys() - known.keys():
        log.warning("%s: its own values of %s are not used", folder / METADATA, ", ".join(sorted(ignored)))
    return options


def _known(folder: Path, about: dict[str, Any], key: str, known: Any) -> str:
    value = about.get(key)
    if value not in known:
        raise ManifestError(f"{folder / METADATA}: {unknown(key, str(value), known)}")
    return str(value)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
