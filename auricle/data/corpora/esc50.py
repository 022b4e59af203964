"""ESC-50 and its subsets, ESC-10 and the human sounds: environmental sounds of five seconds in five official folds."""

from __future__ import annotations

from pathlib import Path

from auricle.data.corpora.layout import find_root, read_table, refuse_missing, warn_count
from auricle.data.manifest import Manifest

LAYOUT = "meta/esc50.csv and audio/*.wav, as in ESC-50-master"
HUMAN = (
    *("crying_baby", "sneezing", "clapping", "breathing", "coughing"),
    *("footsteps", "laughing", "brushing_teeth", "snoring", "drinking_sipping"),
)
"""The group "human, non-speech sounds" (Piczak 2015, table 1; targets 20 to 29), which FRILL calls ESC-50 HS."""


def read(folder: Path, *, esc10: bool = False, human: bool = False) -> Manifest:
    """`category`, the official `fold` (1 to 5), `esc10`, and `source`, the Freesound recording a clip was cut from.

    Scores are means over the five folds, each held out once; clips of one source share a fold. `esc10` keeps the ten
    classes of ESC-10, `human` those of `HUMAN`. Expects LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "ESC-50", ["meta/esc50.csv"], LAYOUT)
    rows = read_table(root / "meta" / "esc50.csv", "filename", "fold", "category", "esc10", "src_file")
    warn_count("ESC-50", len(rows), 2000)
    rows = [row for row in rows if row["esc10"] == "True" or not esc10]
    rows = [row for row in rows if row["category"] in HUMAN or not human]
    present = {path.name for path in (root / "audio").glob("*")}
    refuse_missing("the clips", root, [row["filename"] for row in rows if row["filename"] not in present], len(rows))
    columns = {
        "clip_id": [Path(row["filename"]).stem for row in rows],
        "path": [f"audio/{row['filename']}" for row in rows],
        "fold": [int(row["fold"]) for row in rows],
        "category": [row["category"] for row in rows],
        "esc10": [row["esc10"] == "True" for row in rows],
        "source": [row["src_file"] for row in rows],
    }
    return Manifest.from_columns(columns, root, str(root))


def read_esc10(folder: Path) -> Manifest:
    """`read` of the ten classes of ESC-10 alone."""
    return read(folder, esc10=True)


def read_human(folder: Path) -> Manifest:
    """`read` of the ten classes of human sounds alone: 400 clips."""
    return read(folder, human=True)
