"""MagnaTagATune (Law et al. 2009): clips of 29 s out of songs by 230 artists, tagged by the players of a game."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from auricle.data.corpora.layout import find_root, read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "annotations_final.csv, and {0...f}/*.mp3 beside it or in mp3/"
TAGS = (
    *("guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano", "ambient"),
    *("beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing", "vocals", "no vocals"),
    *("harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop", "soft", "sitar", "solo"),
    *("man", "classic", "choir", "voice", "new age", "dance", "male voice", "female vocal", "beats", "harp", "cello"),
    *("no voice", "weird", "country", "metal", "female voice", "choral"),
)
"""The fifty of 188 that the most clips have, in that order: what taggers are compared on."""
CORRUPT = {
    "6/norine_braun-now_and_zen-08-gently-117-146.mp3",
    "8/jacob_heringman-josquin_des_prez_lute_settings-19-gintzler__pater_noster-204-233.mp3",
    "9/american_baroque-dances_and_suites_of_rameau_and_couperin-25-le_petit_rien_xiveme_ordre_couperin-88-117.mp3",
}
"""Empty files in the official archive."""
PARTS = {**dict.fromkeys("0123456789ab", "train"), "c": "dev", **dict.fromkeys("def", "test")}
"""Folder to part: the usual 12:1:3."""
CLIPS = 25_860
TIMES = re.compile(r"-\d+-\d+$")


def read(folder: Path) -> Manifest:
    """`tags`, a list a clip of the fifty most frequent, perhaps empty; `song`, what a clip was cut from; `split`.

    The split is the usual one by folder, untagged clips are kept as MARBLE does (others drop them), and the three empty
    files are left out. No song is on two sides of the split. Expects LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "MagnaTagATune", ["annotations_final.csv"], LAYOUT)
    table = root / "annotations_final.csv"
    header, *rows = list(csv.reader(read_lines(table), delimiter="\t")) or [[]]
    lacking = [name for name in ("clip_id", *TAGS, "mp3_path") if name not in header]
    if lacking:
        raise ManifestError(f"{table}: no column '{lacking[0]}'; get the annotations again")
    place = {name: header.index(name) for name in ("clip_id", *TAGS, "mp3_path")}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header) or row[place["mp3_path"]][:1] not in PARTS:
            raise ManifestError(
                f"{table}: line {number} is cut short or not MagnaTagATune's; get the annotations again"
            )
    rows = [row for row in rows if row[place["mp3_path"]] not in CORRUPT]
    warn_count("MagnaTagATune", len(rows), CLIPS)
    names = [row[place["mp3_path"]] for row in rows]
    audio = root / "mp3" if (root / "mp3").is_dir() else root
    present = {f"{path.parent.name}/{path.name}" for path in audio.glob("?/*.mp3")}
    refuse_missing("the clips", audio, [name for name in names if name not in present], len(names))
    columns = {
        "clip_id": [row[place["clip_id"]] for row in rows],
        "path": names,
        "split": [PARTS[name[0]] for name in names],
        "tags": [[tag for tag in TAGS if row[place[tag]] == "1"] for row in rows],
        "song": [TIMES.sub("", name.removesuffix(".mp3")) for name in names],
    }
    return Manifest.from_columns(columns, audio, str(root))
