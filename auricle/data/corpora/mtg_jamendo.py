"""MTG-Jamendo (Bogdanov et al. 2019): 55,000 whole tracks with tags of genre, instrument, and mood or theme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from auricle.data.corpora.layout import find_root, read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError, unknown

LAYOUT = "data/splits/split-0/autotagging_*.tsv of the repository, and audio/*/*.low.mp3 (or *.mp3)"
SUBSETS = {"genre": 87, "instrument": 40, "moodtheme": 56, "top50tags": 50}
"""Subset to its number of tags in the splits."""
PARTS = {"train": "train", "validation": "dev", "test": "test"}
HEADER = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
TRACKS = 55_525
"""In all splits' parts together."""


def read(folder: Path, *, subsets: Sequence[str] = tuple(SUBSETS)) -> Manifest:
    """`genre`, `instrument`, `moodtheme` and `top50tags`, lists a track or unknown; `artist`, `album`, and `split`.

    The split is number 0 of the official five; no artist is on two sides. Tags stand without their category
    ("piano", not "instrument---piano"). A track that a subset does not have has an unknown column there: all tasks are
    scored from one manifest, and one encoding. `subsets` reads some of them, where not all audio is there. The clips
    are whole tracks; low-bitrate files, which MARBLE uses, are preferred. Expects LAYOUT. Raises `ManifestError`.
    """
    for subset in subsets:
        if subset not in SUBSETS:
            raise ManifestError(unknown("subset of MTG-Jamendo", subset, SUBSETS))
    root = find_root(folder, "MTG-Jamendo", ["data/splits/split-0"], LAYOUT)
    tracks: dict[str, dict[str, Any]] = {}
    for subset in subsets:
        tags: set[str] = set()
        for name, part in PARTS.items():
            path = root / "data" / "splits" / "split-0" / f"autotagging_{subset}-{name}.tsv"
            for track, row in _rows(path, part):
                labels = row.pop("tags")
                if tracks.setdefault(track, row)["split"] != part:
                    raise ManifestError(f"{path}: {track} is in another part of another subset; get the splits again")
                tracks[track][subset] = [label.rpartition("---")[2] for label in labels]
                tags.update(labels)
        if len(tags) != SUBSETS[subset]:
            raise ManifestError(
                f"{root}: {len(tags)} tags in subset {subset}, the splits of MTG-Jamendo have {SUBSETS[subset]}"
            )
    if set(subsets) == set(SUBSETS):
        warn_count("MTG-Jamendo", len(tracks), TRACKS)
    audio = next((place / "audio" for place in (root, folder) if (place / "audio").is_dir()), root / "audio")
    found: dict[str, str] = {}
    for path in sorted(audio.glob("*/*.*")):
        found.setdefault(f"{path.parent.name}/{path.name.split('.')[0]}", str(path.absolute()))
    wanted = [row["path"] for row in tracks.values()]
    refuse_missing("the tracks", audio, [name for name in wanted if name not in found], len(wanted))
    columns = {
        "clip_id": list(tracks),
        "path": [found[name] for name in wanted],
        **{
            name: [row.get(name) for row in tracks.values()]
            for name in ("split", *(name for name in SUBSETS if name in subsets), "artist", "album")
        },
    }
    return Manifest.from_columns(columns, root, str(root))


def _rows(path: Path, part: str) -> list[tuple[str, dict[str, Any]]]:
    """Tracks of a list and what is known of them. Raises `ManifestError`."""
    header, *lines = [line.rstrip("\r\n").split("\t") for line in read_lines(path)] or [[]]
    rows = []
    for number, cells in enumerate(lines, start=2):
        if header != HEADER or len(cells) < len(HEADER) or not all("---" in tag for tag in cells[5:]):
            raise ManifestError(f"{path}: line {number} is not '{' '.join(HEADER)}' by tabs; get the splits again")
        track, artist, album, place, _, *tags = cells
        known = {"path": place.rpartition(".")[0], "artist": artist, "album": album, "split": part, "tags": tags}
        rows.append((track, known))
    return rows
