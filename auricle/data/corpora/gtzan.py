"""GTZAN (Tzanetakis and Cook 2002): excerpts of 30 s in ten genres, and their beats (Marchand et al. 2015)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from auricle.data.corpora.layout import (
    Interval,
    IntervalColumn,
    find_root,
    logger,
    read_lines,
    refuse_missing,
    warn_count,
)
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "genres/blues/blues.00000.wav and so on (or genres_original, or .au), and annotations of beats anywhere beside"
SPLITS = {
    "blues": "29-49 73-97 | 0-11 50-60 | 12-28 61-72 98-99",
    "classical": "30-33 43-48 50-67 80-99 | 0-10 68-76 | 11-29 34-41 49 77-79",
    "country": "19-26 28-29 65-99 | 0-7 9-18 27 41-42 45 49 | 30-40 43-44 46-48 50-51 53-64",
    "disco": "5 15-20 22-37 39-45 47 49 53-54 56-57 59 61 70 73-74 89"
    " | 0 2-4 6-14 46 48 52 67-68 72 75 90 95 | 1 21 58 62-66 69 76-88 91-94 96-97 99",
    "hiphop": "2-25 28-29 31-38 41-42 55-61 77-80 | 81-98 | 0 26-27 30 40 43-45 51-54 62-75 99",
    "jazz": "0-1 11-24 41 47-72 | 2-10 25-32 | 73-99",
    "metal": "2-3 5 21 24 35 46-57 59-66 69 71-72 79-80 84 86 89-99"
    " | 0-1 6-11 16-20 36-37 68 76-77 81-82 | 12-15 22-23 25-33 38-39 67 70 73-75 78 83 85 87-88",
    "pop": "2-9 11-12 16-20 23-29 31-36 38-42 44 46 49-50 80 97-99"
    " | 10 53 55 58-62 81 83-86 | 0-1 13-14 43 63-66 69-79 82 88-96",
    "reggae": "0-2 4 6 9 11-12 14-32 42-45 49-51 54-60 63 69"
    " | 61-62 70 72 74 76-78 85 92-99 | 34-40 46-48 52-53 64-68 71 79 82-84 87-90",
    "rock": "0-9 16-26 57-70 91-99 | 38 49-56 71-85 | 10-15 27-37 39-48 86-90",
}
"""Numbers of the excerpts of train, dev and test in Kereliuk, Sturm and Larsen's fault-filtered split (2015): repeated
and distorted excerpts are left out, and artists kept apart."""
DAMAGED = "jazz.00054"
"""Cannot be decoded in some copies of the corpus, so that MARBLE leaves it out."""
EXCERPTS = 930
BEATS = re.compile(rf"(?:gtzan_)?({'|'.join(SPLITS)})[._](\d{{5}})(?:\.wav)?\.(jams|beats)")


def read(folder: Path) -> Manifest:
    """`genre`, the fault-filtered `split` (443, 197 and 290 excerpts), and `beats` where annotations are found.

    `beats` are points, intervals that end where they start: every beat is a "beat", and a downbeat a "downbeat" besides
    at the same time. They come from the files of GTZAN-Rhythm (`blues.00000.wav.jams`) or else of gtzan_tempo_beat
    (`gtzan_blues_00000.beats`: time and place in the bar), wherever these lie in the folder. Beats after an excerpt's
    end (reggae.00002 has such) are left out; an excerpt without a file has unknown beats, some have no downbeats.
    DAMAGED may be missing or unreadable. Expects LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "GTZAN", ["genres/blues", "genres_original/blues"], LAYOUT)
    audio = root / "genres" if (root / "genres").is_dir() else root / "genres_original"
    splits = {name: part for genre in SPLITS for name, part in _splits(genre)}
    found = {path.stem: path for kind in ("au", "wav") for path in sorted(audio.glob(f"*/*.{kind}"))}
    absent = [name for name in splits if name not in found]
    refuse_missing("the excerpts", audio, [name for name in absent if name != DAMAGED], EXCERPTS)
    names = [name for name in splits if name in found]
    columns = {
        "clip_id": names,
        "path": [str(found[name].absolute()) for name in names],
        "split": [splits[name] for name in names],
        "genre": [name.split(".")[0] for name in names],
    }
    manifest = Manifest.from_columns(columns, root, str(root))
    warn_count("GTZAN", len(manifest), EXCERPTS)
    files = _annotations(folder)
    if not files:
        return manifest
    beats, clips = IntervalColumn(), manifest.column("clip_id")
    for name, length in zip(clips, manifest.durations, strict=True):
        clip = _beats(files[name]) if name in files else None
        beats.add(clip and [beat for beat in clip if beat[1] <= length])
    unknown = sum(name not in files for name in clips)
    if unknown:
        logger.warning("%s: %d of %d excerpts have no annotation of beats", root, unknown, len(clips))
    return manifest.with_column("beats", beats.to_arrow())


def _splits(genre: str) -> Iterable[tuple[str, str]]:
    """Names of a genre's excerpts and their part."""
    for part, ranges in zip(("train", "dev", "test"), SPLITS[genre].split("|"), strict=True):
        for first, _, last in (span.partition("-") for span in ranges.split()):
            for number in range(int(first), int(last or first) + 1):
                yield f"{genre}.{number:05}", part


def _annotations(folder: Path) -> dict[str, Path]:
    """Files of beats by excerpt, all of one kind."""
    kinds: dict[str, dict[str, Path]] = {"jams": {}, "beats": {}}
    for path in sorted(folder.rglob("*")):
        if match := BEATS.fullmatch(path.name):
            genre, number, kind = match.groups()
            kinds[kind][f"{genre}.{number}"] = path
    return kinds["jams"] or kinds["beats"]


def _beats(path: Path) -> list[Interval]:
    """Beats and downbeats in seconds, in order. Raises `ManifestError` for another content."""
    try:
        events = _read_jams(path) if path.suffix == ".jams" else _read_beats(path)
        points = sorted((float(time), label) for time, label in events)
        if not all(math.isfinite(time) and time >= 0 for time, _ in points):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ManifestError(f"{path}: is no annotation of beats; get the annotations again") from None
    return [(time, time, label) for time, label in points]


def _read_jams(path: Path) -> Iterable[tuple[float, str]]:
    for annotation in json.loads("\n".join(read_lines(path)))["annotations"]:
        kind = annotation["sandbox"].get("annotation_type")
        if annotation["namespace"] == "beat" and kind in ("beat", "downbeat"):
            yield from ((event["time"], kind) for event in annotation["data"])


def _read_beats(path: Path) -> Iterable[tuple[float, str]]:
    for line in read_lines(path):
        time, *place = line.split()
        yield float(time), "beat"
        if place and int(float(place[0])) == 1:
            yield float(time), "downbeat"
