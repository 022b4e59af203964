"""MASC as the Mask Sub-Challenge of ComParE 2020 (Schuller et al. 2020): speech with or without a surgical mask."""

from __future__ import annotations

import csv
from pathlib import Path

from auricle.data.corpora.layout import find_root, logger, read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "lab/labels.csv (file_name,label) and wav/{train,devel,test}_*.wav"
PARTS = {"train": "train", "devel": "dev", "test": "test"}
LABELS = {"clear": "clear", "mask": "mask", "?": None}
"""Label in the file to value; participants got the test part as "?"."""


def read(folder: Path) -> Manifest:
    """`mask` ("mask" or "clear") of seconds of speech, and the challenge's `split`, no speaker in two parts.

    The speakers are not named. Where the labels of the test part are withheld, `mask` is None there, which is warned
    of. Expects LAYOUT. Raises `ManifestError`, also for another challenge's labels.
    """
    root = find_root(folder, "ComParE 2020 MASK", ["lab/labels.csv"], LAYOUT)
    table = root / "lab" / "labels.csv"
    rows = list(csv.DictReader(read_lines(table)))
    for row in rows or [{}]:
        label, part = row.get("label"), str(row.get("file_name")).split("_")[0]
        if label not in LABELS or part not in PARTS:
            raise ManifestError(f"{table}: '{','.join(map(str, row.values()))}' is no row of MASK; expected {LAYOUT}")
    names = [row["file_name"] for row in rows]
    present = {path.name for path in (root / "wav").glob("*")}
    refuse_missing("the recordings", root, [name for name in names if name not in present], len(names))
    warn_count("ComParE 2020 MASK", len(rows), 36_554)
    withheld = sum(row["label"] == "?" for row in rows)
    if withheld:
        logger.warning("%s: the labels of %d clips are withheld ('?'); they are not scored", table, withheld)
    columns = {
        "clip_id": [Path(name).stem for name in names],
        "path": [f"wav/{name}" for name in names],
        "split": [PARTS[name.split("_")[0]] for name in names],
        "mask": [LABELS[row["label"]] for row in rows],
    }
    return Manifest.from_columns(columns, root, str(root))
