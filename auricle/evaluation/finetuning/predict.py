"""`predict`: the answers of a fine-tuned encoder on new recordings, as a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import auricle
from auricle.data.batching import Skip
from auricle.data.manifest import Manifest, Sources
from auricle.embedding.extract import GRID_S, encode_clips, encode_frames
from auricle.embedding.store import write_atomic
from auricle.errors import ConfigError
from auricle.evaluation.finetuning import folder
from auricle.evaluation.finetuning.model import Tuned

logger = logging.getLogger("auricle")

FORMAT = 1
CLIPS_AT_ONCE, SECONDS_AT_ONCE = 4096, 3600.0
"""Most clips, and by frame seconds of audio, whose embeddings are held at once; a longer clip is held alone."""


def predict(
    run: Path | str,
    data: Sources,
    output: Path | str | None = None,
    *,
    batch_seconds: float = 120.0,
    workers: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> pa.Table:
    """What the fine-tuned run in folder `run` answers on recordings; returned, and written to `output` as CSV.

    A row a clip: `clip_id`, `path`, `start_s` in the file, `prediction` (a class; labels of probability above a half,
    joined by `;`; a number), and `p_CLASS`, the probability of each class or label, or `value`, the number. Of a run
    that answers by frame, a row for each stretch of equal answers on a 10 ms grid, with its `start_s` and `end_s` in
    the file and its mean probabilities.

    Unusable recordings do not stop it: they have no row, and stand with their reasons in a JSON file beside the CSV,
    of the same name. Raises `CheckpointError` for a folder without a fine-tuned run, `ManifestError` where no recording
    can be read, `ConfigError` for an output that is no CSV.
    """
    output = None if output is None else Path(output)
    if output is not None and output.suffix != ".csv":
        raise ConfigError(f"{output}: predictions are written as CSV; give a name that ends in .csv")
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    about, model = folder.best(Path(run), place)
    manifest = Manifest.open(data)
    skipped = list(manifest.skipped)
    options: dict[str, Any] = {"layers": model.layers, "batch_seconds": batch_seconds, "workers": workers}
    tables = [_table(about, [], np.empty((0, max(len(about.classes), 1))), *([[]] if about.level == "frame" else []))]
    with tqdm(total=len(manifest), unit="clip", desc="predict", disable=not progress) as bar:
        for rows in _parts(manifest, about.level):
            part = manifest.select(rows)
            tables.append((_by_frame if about.level == "frame" else _by_clip)(about, model, part, options, skipped))
            bar.update(len(rows))
    table = pa.concat_tables(tables).replace_schema_metadata({"format": str(FORMAT), "auricle": auricle.__version__})
    if skipped:
        where = "" if output is None else f"; {output.with_suffix('.json')} lists them"
        logger.warning("%d clips could not be used (%s: %s)%s", len(skipped), skipped[0].path, skipped[0].reason, where)
    if output is not None:
        _write(output, table, about, str(run), len(manifest), skipped)
    return table


def _parts(manifest: Manifest, level: str) -> Iterator[NDArray[np.int64]]:
    """Row numbers in turn, few enough at a time to hold their embeddings."""
    cost = np.maximum(manifest.durations / SECONDS_AT_ONCE if level == "frame" else 0.0, 1 / CLIPS_AT_ONCE)
    part = np.floor(np.cumsum(cost) - cost)
    yield from np.split(np.arange(len(manifest)), np.flatnonzero(np.diff(part)) + 1)


def _by_clip(
    about: folder.About, model: Tuned, manifest: Manifest, options: dict[str, Any], skipped: list[Skip]
) -> pa.Table:
    found = encode_clips(model.encoder, manifest, **options)
    skipped += found.skipped
    answers = model.predict({model.layers[0]: torch.from_numpy(np.asarray(found.values)[:, 0])})[0].numpy()
    clips = manifest.select(found.rows).table.select(["clip_id", "path", "start_s"]).to_pylist()
    return _table(about, clips, answers.reshape(len(clips), -1))


def _by_frame(
    about: folder.About, model: Tuned, manifest: Manifest, options: dict[str, Any], skipped: list[Skip]
) -> pa.Table:
    found = encode_frames(model.encoder, manifest, **options)
    skipped += found.skipped
    answers = model.predict({model.layers[0]: torch.from_numpy(np.asarray(found.values)[:, 0])})[0].numpy()  # (N, K)
    best = answers.argmax(1)
    fresh = np.flatnonzero((np.diff(found.clip, prepend=-1) != 0) | (np.diff(best, prepend=-1) != 0))
    ends = np.append(fresh[1:], len(best))
    clips, ends_s = [], []
    for first, last in zip(fresh.tolist(), (ends - 1).tolist(), strict=True):
        clip = manifest.row(int(found.clip[first]))
        start, end = (
            clip["start_s"] + found.time[at] + half for at, half in ((first, -GRID_S / 2), (last, GRID_S / 2))
        )
        at_end = last + 1 == len(best) or found.clip[last + 1] != found.clip[last]  # there the grid may fall short
        ends_s.append(round(clip["start_s"] + clip["duration_s"] if at_end else end, 6))
        clips.append({"clip_id": clip["clip_id"], "path": clip["path"], "start_s": round(start, 6)})
    means = np.add.reduceat(answers, fresh) / (ends - fresh)[:, None] if len(fresh) else answers
    return _table(about, clips, means, ends_s)


def _table(
    about: folder.About, clips: list[dict[str, Any]], answers: NDArray[np.float64], ends_s: list[float] | None = None
) -> pa.Table:
    """Rows of `clips` with their answers (n, K), or (n, 1) values."""
    columns = {
        name: pa.array([clip[name] for clip in clips], kind)
        for name, kind in (("clip_id", pa.string()), ("path", pa.string()), ("start_s", pa.float64()))
    }
    if ends_s is not None:
        columns["end_s"] = pa.array(ends_s, pa.float64())
    if about.kind == "values":
        told = [f"{value:.6g}" for value in answers[:, 0]]
    elif about.kind == "labels":
        told = [";".join(name for name, p in zip(about.classes, row, strict=True) if p > 0.5) for row in answers]
    else:
        told = [about.classes[code] for code in answers.argmax(1)]
    columns["prediction"] = pa.array(told, pa.string())
    names = [f"p_{name}" for name in about.classes] or ["value"]
    return pa.table(columns | {name: answers[:, place] for place, name in enumerate(names)})


def _write(output: Path, table: pa.Table, about: folder.About, run: str, clips: int, skipped: list[Skip]) -> None:
    """The CSV, and beside it what it is and which clips have no row."""
    write_atomic(output, lambda file: pacsv.write_csv(table, file))
    facts = {
        "format": FORMAT,
        "auricle": auricle.__version__,
        "run": run,
        "target": about.target,
        "kind": about.kind,
        "level": about.level,
        "classes": about.classes,
        "clips": clips,
        "skipped": [asdict(skip) for skip in skipped],
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    write_atomic(output.with_suffix(".json"), lambda file: file.write(text.encode()))
