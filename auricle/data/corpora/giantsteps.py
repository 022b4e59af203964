"""GiantSteps (Knees et al. 2015; Faraldo 2017): two minutes each of electronic dance music, and their keys."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import TypeAlias

from auricle.data.corpora.layout import read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = (
    "giantsteps-key-dataset/ with annotations/key/*.key, giantsteps-mtg-key-dataset/ with annotations/annotations.txt "
    "and beatport_metadata.txt, both with audio/*.LOFI.mp3"
)
FLATS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)
"""The 24 keys, as mir_eval reads them."""
TEST, TRAIN = 604, 1077
"""Tracks of the key dataset, and those of the MTG set that are sure of one key."""
SURE = "2"
"""The annotators' highest confidence."""
Track: TypeAlias = tuple[str, str, str | None, str]
"""Number, key, artists and part."""


def read(folder: Path) -> Manifest:
    """`key`, one of KEYS, `artist` (unknown in test), and `split`: the key dataset is test, the MTG set train and dev.

    Of the MTG set those tracks are kept whose annotation is sure and of one key (Korzeniowski and Widmer 2018). Train
    and dev are MARBLE's, after Castellon et al. (2021): artists go 100:16 by the SHA-1 of their names, and who worked
    with one of dev is in dev too, over two rounds. The clips are whole tracks, to be scored as one each. Expects
    LAYOUT, the folders under their repositories' names or with what an archive appends to them. Raises `ManifestError`.
    """
    tested = _find(folder, "key", "annotations/key")
    trained = _find(folder, "mtg-key", "annotations/annotations.txt")
    keys = {path.name.split(".")[0]: path for path in sorted((tested / "annotations" / "key").glob("*.key"))}
    rows: list[Track] = [
        (number, _key(path, " ".join(read_lines(path))), None, "test") for number, path in keys.items()
    ]
    warn_count("GiantSteps, test", len(rows), TEST)
    rows += _mtg(trained / "annotations")
    audio = {place: _audio(place / "audio") for place in (tested, trained)}
    places = [tested if part == "test" else trained for *_, part in rows]
    paths = [audio[place].get(number) for (number, *_), place in zip(rows, places, strict=True)]
    missing = [f"{place.name}/audio/{row[0]}" for row, place, path in zip(rows, places, paths, strict=True) if not path]
    refuse_missing("the tracks", folder, missing, len(rows))
    columns = {
        "clip_id": [f"{'key' if part == 'test' else 'mtg'}-{number}" for number, *_, part in rows],
        "path": paths,
        "split": [part for *_, part in rows],
        "key": [key for _, key, *_ in rows],
        "artist": [artist for *_, artist, _ in rows],
    }
    return Manifest.from_columns(columns, folder, str(folder))


def _find(folder: Path, name: str, mark: str) -> Path:
    """The folder of one of the two repositories. Raises `ManifestError`."""
    for root in sorted(folder.glob(f"giantsteps-{name}-dataset*")):
        if (root / mark).exists():
            return root
    reason = f"not GiantSteps, no giantsteps-{name}-dataset" if folder.is_dir() else "no such folder"
    raise ManifestError(f"{folder}: {reason}; expected {LAYOUT}")


def _audio(folder: Path) -> dict[str, str]:
    """Files by number of the track, converted ones rather than others."""
    return {path.name.split(".")[0]: str(path.absolute()) for path in sorted(folder.glob("*.LOFI.*"))}


def _key(where: Path, text: str) -> str:
    """A key among KEYS, sharps as flats. Raises `ManifestError`."""
    tonic, *mode = text.split() or [""]
    tonic = tonic[:1].upper() + tonic[1:]
    key = " ".join([FLATS.get(tonic, tonic), *mode])
    if key not in KEYS:
        raise ManifestError(f"{where}: '{text}' is no major or minor key; get the annotations again")
    return key


def _mtg(folder: Path) -> list[Track]:
    """The sure tracks."""
    people = {row["ID"]: row["ARTIST"] for row in _table(folder / "beatport_metadata.txt", "ID", "ARTIST")}
    table = folder / "annotations.txt"
    sure = [row for row in _table(table, "ID", "MANUAL KEY", "C") if row["C"] == SURE and "/" not in row["MANUAL KEY"]]
    refuse_missing("the tracks' artists", folder, [row["ID"] for row in sure if row["ID"] not in people], len(sure))
    warn_count("GiantSteps, train and dev", len(sure), TRAIN)
    dev = _dev_artists([_artists(names) for names in people.values()])
    return [
        (
            row["ID"],
            _key(table, row["MANUAL KEY"]),
            people[row["ID"]],
            "train" if dev.isdisjoint(_artists(people[row["ID"]])) else "dev",
        )
        for row in sure
    ]


def _artists(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def _dev_artists(tracks: list[list[str]]) -> set[str]:
    """Those whose name falls to dev, and who is on a track with them, over two rounds."""
    names = {name for track in tracks for name in track}
    dev = {name for name in names if int(hashlib.sha1(name.lower().encode()).hexdigest(), 16) % 116 >= 100}
    for _ in range(2):
        for track in tracks:
            if not dev.isdisjoint(track):
                dev.update(track)
    return dev


def _table(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a table with tabs. Raises `ManifestError` where it lacks any of `columns`."""
    rows = list(csv.DictReader(read_lines(path), delimiter="\t"))
    for number, row in enumerate(rows, start=2):
        if any(not isinstance(row.get(name), str) for name in columns):
            raise ManifestError(f"{path}: line {number} lacks one of {', '.join(columns)}; get the corpus again")
    return [{name: row[name].strip() for name in columns} for row in rows]
