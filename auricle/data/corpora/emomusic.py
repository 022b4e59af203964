"""Emomusic (Soleymani et al. 2013): clips of 45 s of songs, rated by crowds for valence and arousal."""

from __future__ import annotations

import hashlib
from pathlib import Path

from auricle.data.corpora.layout import find_root, read_table, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "clips_45seconds/*.mp3, and songs_info.csv and static_annotations.csv beside it or in annotations/"
SONGS = 744


def read(folder: Path) -> Manifest:
    """`arousal` and `valence`, mean ratings from 1 to 9 of a clip as a whole; `artist`, `genre`, and `split`.

    Test is MediaEval 2013's evaluation set. Its development set is train and dev, 8:2 by the SHA-1 of the artist's name
    in small letters without accents and signs, as in MARBLE after Castellon et al. (2021); one clip a song. Expects
    LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "Emomusic", ["clips_45seconds"], LAYOUT)
    tables = root / "annotations" if (root / "annotations").is_dir() else root
    info = ("song_id", "Artist", "Genre", "Mediaeval 2013 set")
    ratings = ("song_id", "mean_arousal", "mean_valence")
    songs = [_plain(row) for row in read_table(tables / "songs_info.csv", *info)]
    rated = {row["song_id"]: _plain(row) for row in read_table(tables / "static_annotations.csv", *ratings)}
    warn_count("Emomusic", len(songs), SONGS)
    names = [row["song_id"] for row in songs]
    paths = [f"clips_45seconds/{name}.mp3" for name in names]
    missing = [name for name in names if name not in rated]
    missing += [path for path in paths if not (root / path).is_file()]
    refuse_missing("the clips and their ratings", root, missing, 2 * len(names))
    columns = {
        "clip_id": names,
        "path": paths,
        "split": [_part(row) for row in songs],
        **{name: [_rating(tables, rated[song][f"mean_{name}"]) for song in names] for name in ("arousal", "valence")},
        "artist": [row["Artist"] for row in songs],
        "genre": [row["Genre"] for row in songs],
    }
    return Manifest.from_columns(columns, root, str(root))


def _plain(row: dict[str, str]) -> dict[str, str]:
    return {name: value.strip() for name, value in row.items()}


def _part(song: dict[str, str]) -> str:
    if song["Mediaeval 2013 set"] == "evaluation":
        return "test"
    letters = (sign for sign in song["Artist"].lower() if sign.isascii() and (sign.isalpha() or sign.isspace()))
    name = " ".join("".join(letters).split())
    return "train" if int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 < 8 else "dev"


def _rating(tables: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ManifestError(
            f"{tables / 'static_annotations.csv'}: '{text}' is no rating; get the tables again"
        ) from None
