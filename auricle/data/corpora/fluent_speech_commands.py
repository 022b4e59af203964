"""Fluent Speech Commands (Lugosch et al. 2019): spoken commands to a smart home, 97 speakers."""

from __future__ import annotations

from pathlib import Path

from auricle.data.corpora.layout import find_root, read_table, refuse_missing, warn_count
from auricle.data.manifest import Manifest

LAYOUT = "data/{train,valid,test}_data.csv and wavs/speakers/SPEAKER/*.wav, as in fluent_speech_commands_dataset"
PARTS = {"train": ("train", 23132), "valid": ("dev", 3118), "test": ("test", 3793)}
"""Name of a table to the split it lists and its official number of clips."""


def read(folder: Path) -> Manifest:
    """`action` (6), `object` (14), `location` (4), `intent`, the three joined by "|" (31); `speaker`, `text`, `split`.

    The official split: no speaker is in two parts. An answer is right when all three slots are, which is what the
    accuracy of `intent` counts. Expects LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "Fluent Speech Commands", ["data/train_data.csv"], LAYOUT)
    rows, splits = [], []
    for name, (part, official) in PARTS.items():
        path = root / "data" / f"{name}_data.csv"
        found = read_table(path, "path", "speakerId", "transcription", "action", "object", "location")
        warn_count(f"Fluent Speech Commands {part}", len(found), official)
        rows += found
        splits += [part] * len(found)
    missing = [row["path"] for row in rows if not (root / row["path"]).is_file()]
    refuse_missing("the recordings", root, missing, len(rows))
    columns = {
        "clip_id": [Path(row["path"]).stem for row in rows],
        "path": [row["path"] for row in rows],
        "split": splits,
        "speaker": [row["speakerId"] for row in rows],
        "text": [row["transcription"] for row in rows],
        "action": [row["action"] for row in rows],
        "object": [row["object"] for row in rows],
        "location": [row["location"] for row in rows],
        "intent": ["|".join((row["action"], row["object"], row["location"])) for row in rows],
    }
    return Manifest.from_columns(columns, root, str(root))
