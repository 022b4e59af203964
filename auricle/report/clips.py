"""Maps of clip embeddings, and the sounds behind their points."""

from __future__ import annotations

import tempfile
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from auricle.audio.io import probe, read, write
from auricle.errors import AudioError
from auricle.evaluation.metrics import Kind

Source: TypeAlias = tuple[str, float, float]
"""Path, start and duration in seconds."""

MOST_LABELS = 32
"""Colours times shapes that a reader can tell apart; rarer labels share one entry."""
OTHERS = "all other labels"
LONGEST_S = 8.0
"""Seconds of a clip that are transcoded; longer ones are cut."""
SMALL = 96 * 1024
"""Bytes up to which a compressed file is inlined as it is."""
HIGHEST_RATE = 24_000
"""Hz to which louder-than-needed sample rates are brought."""
PLAYS_IN_BROWSERS = {".ogg": "audio/ogg", ".flac": "audio/flac", ".mp3": "audio/mpeg"}


def clip_map(task: str, kind: Kind, tables: Mapping[str, pa.Table], most: int) -> dict[str, Any] | None:
    """The test clips of a task as each encoder lays them out: what the page draws, all lists running over clips.

    `tables` are the encoders' prediction tables; None when none of them holds a map, which need not have all clips. Of
    more than `most`, that many are taken evenly over the labels. `audio` is filled by `inline_audio`.
    """
    tests = {
        name: table.filter(pc.equal(table["split"], "test"))
        for name, table in tables.items()
        if "map_x" in table.column_names
    }
    mapped = {name: test.filter(pc.is_valid(test["map_x"])) for name, test in tests.items()}
    first = max(mapped.values(), key=len, default=None)
    if first is None or not len(first):
        return None
    columns = ["clip_id", "path", "start_s", "duration_s", "target"]
    clips = first.select(columns).sort_by("clip_id").to_pylist()
    clips.sort(key=lambda clip: _value(clip["target"]) if kind == "values" else clip["target"])
    clips = [clips[row] for row in np.linspace(0, len(clips) - 1, min(len(clips), most)).round().astype(int)]
    targets = [clip["target"] for clip in clips]
    names, codes = _ranges(targets) if kind == "values" else _classes(targets)
    views = []
    for name, table in mapped.items():
        rows = {row["clip_id"]: row for row in table.select(["clip_id", "prediction", "map_x", "map_y"]).to_pylist()}
        found = [rows.get(clip["clip_id"], {}) for clip in clips]
        views.append(
            {
                "encoder": name,
                "x": [_round(row.get("map_x")) for row in found],
                "y": [_round(row.get("map_y")) for row in found],
                "prediction": [_told(row.get("prediction") or "none", kind) for row in found],
            }
        )
    return {
        "task": task,
        "total": max(map(len, tests.values())),
        "labels": names,
        "ordered": kind == "values",
        "id": [clip["clip_id"] for clip in clips],
        "target": [_told(target, kind) for target in targets],
        "label": codes,
        "views": views,
        "source": [(clip["path"], clip["start_s"], clip["duration_s"]) for clip in clips],
        "audio": [None] * len(clips),
    }


def inline_audio(maps: Sequence[dict[str, Any]], budget: int, most: int = 150) -> tuple[list[str], int]:
    """Data URIs of at most `most` clips and `budget` bytes, taken in turn from every map and label.

    Fills each map's `audio` with indices into them (None: silent) and drops `source`. Also returns how many files
    could not be read.
    """
    uris: list[str] = []
    index: dict[Source, int | None] = {}
    turns = take_turns([[(place, row) for row in _by_label(place["label"])] for place in maps])
    with tempfile.TemporaryDirectory() as scratch:
        for place, row in turns:
            source = place["source"][row]
            if source not in index:
                if len(uris) == most:
                    break
                uri = data_uri(source, Path(scratch) / "clip.ogg")
                budget -= len(uri or "")
                if budget < 0:
                    break
                index[source] = len(uris) if uri else None
                uris += [uri] if uri else []
    for place in maps:
        place["audio"] = [index.get(source) for source in place.pop("source")]
    return uris, sum(value is None for value in index.values())


def data_uri(source: Source, scratch: Path, longest_s: float = LONGEST_S) -> str | None:
    """A clip as a data URI: small compressed files as they are, others as Ogg Vorbis; None if it cannot be read."""
    path, start_s, duration_s = source
    try:
        info = probe(path)
        kind = PLAYS_IN_BROWSERS.get(Path(path).suffix.lower())
        whole = start_s == 0 and abs(duration_s - info.duration_s) < 0.05
        if not (kind and whole and Path(path).stat().st_size <= SMALL):
            kind, rate = "audio/ogg", min(info.sample_rate, HIGHEST_RATE)
            length = round(min(duration_s, longest_s) * rate)
            write(scratch, read(path, rate, round(start_s * rate), length), rate)
            path = str(scratch)
        return f"data:{kind};base64," + b64encode(Path(path).read_bytes()).decode()
    except (AudioError, OSError):
        return None


def take_turns(queues: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """One of each queue, then another of each, until all are empty."""
    return (item for item in chain.from_iterable(zip_longest(*queues)) if item is not None)


def _by_label(codes: Sequence[int]) -> list[int]:
    """Rows in turns of their labels."""
    return list(take_turns([[row for row, code in enumerate(codes) if code == label] for label in sorted(set(codes))]))


def _ranges(targets: Sequence[str]) -> tuple[list[str], list[int]]:
    """Legend names of six ranges that hold equally many values, and each target's place among them."""
    values = np.array([_value(target) for target in targets])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 7)))
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)] or [f"{edges[0]:.3g}"]
    return names, np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(names) - 1).tolist()


def _value(target: str) -> float:
    """Of several values, the first."""
    return float(target.partition(";")[0])


def _told(answer: str, kind: str) -> str:
    """An answer for people: numbers with four digits."""
    if kind != "values" or answer == "none":
        return answer
    return "; ".join(f"{float(value):.4g}" for value in answer.split(";"))


def _classes(targets: Sequence[str]) -> tuple[list[str], list[int]]:
    """Legend names in order, the rarest under one name if there are many, and each target's place among them."""
    names = sorted(set(targets))
    if len(names) > MOST_LABELS:
        names = [*sorted(name for name, _ in Counter(targets).most_common(MOST_LABELS - 1)), OTHERS]
    place = {name: index for index, name in enumerate(names)}
    return names, [place.get(target, len(names) - 1) for target in targets]


def _round(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")
