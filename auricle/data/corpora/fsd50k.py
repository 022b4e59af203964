"""FSD50K (Fonseca et al. 2022): Freesound clips of 0.3 to 30 s, labelled with 200 classes of AudioSet's ontology."""

from __future__ import annotations

import csv
from pathlib import Path

from auricle.data.corpora.layout import find_root, read_lines, read_table, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "FSD50K.ground_truth/{dev,eval,vocabulary}.csv, FSD50K.dev_audio/*.wav and FSD50K.eval_audio/*.wav"
CLIPS = {"train": 36796, "dev": 4170, "test": 10231}
CLASSES = 200


def read(folder: Path) -> Manifest:
    """`labels`, a list a clip with the classes' parents in it, as in the ground truth, and the official `split`.

    The development set's "train" and "val" are train and dev, the evaluation set is test; no uploader is in both
    sets. The metric is macro mAP over the 200 classes. Expects LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "FSD50K", ["FSD50K.ground_truth"], LAYOUT)
    truth = root / "FSD50K.ground_truth"
    vocabulary = {cells[1] for cells in csv.reader(read_lines(truth / "vocabulary.csv")) if len(cells) == 3}
    if len(vocabulary) != CLASSES:
        raise ManifestError(f"{truth / 'vocabulary.csv'}: {len(vocabulary)} classes; FSD50K 1.0 has {CLASSES}")
    dev = read_table(truth / "dev.csv", "fname", "labels", "split")
    rows = dev + [row | {"split": "test"} for row in read_table(truth / "eval.csv", "fname", "labels")]
    splits = ["dev" if row["split"] == "val" else row["split"] for row in rows]
    labels = [row["labels"].split(",") for row in rows]
    for row, part, names in zip(rows, splits, labels, strict=True):
        if part not in CLIPS or not vocabulary.issuperset(names):
            raise ManifestError(
                f"{truth}: clip {row['fname']} has split '{row['split']}' and labels '{row['labels']}', "
                "which are not FSD50K's; get the ground truth again"
            )
    for part, official in CLIPS.items():
        warn_count(f"FSD50K {part}", splits.count(part), official)
    folders = [f"FSD50K.{'eval' if part == 'test' else 'dev'}_audio" for part in splits]
    paths = [f"{place}/{row['fname']}.wav" for place, row in zip(folders, rows, strict=True)]
    present = {f"{found.parent.name}/{found.name}" for found in root.glob("FSD50K.*_audio/*.wav")}
    refuse_missing("the clips", root, [path for path in paths if path not in present], len(paths))
    columns = {"clip_id": [row["fname"] for row in rows], "path": paths, "split": splits, "labels": labels}
    return Manifest.from_columns(columns, root, str(root))
