"""CMU-MOSEI (Zadeh et al. 2018): sentiment of sentences in YouTube monologues, the audio alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from auricle.data.corpora.layout import find_root, read_table, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.data.splits import group_shuffle
from auricle.errors import ManifestError

AUDIO = "Audio/Full/WAV_16000"
TABLE = "CMU_MOSEI_Labels.csv"
LAYOUT = (
    f"Raw/{AUDIO}/VIDEO.wav of the raw release CMU_MOSEI.zip, and {TABLE} in that folder or in Raw "
    "(the official CMU_MOSEI_Labels.csd as a table: github.com/s3prl/s3prl, s3prl/downstream/mosei/utility)"
)
SEGMENTS = 23259
SHORTEST_S, LONGEST_S = 1.0, 20.0
SENTIMENTS = {"-1": "negative", "0": None, "1": "positive"}
"""The table's `label2b`."""
FOLDS = {"0": "train", "1": "dev", "2": "test", "3": None}
"""The table's `split`: the standard folds of CMU's SDK; videos numbered 3 are in none of them."""


def read(folder: Path, *, standard: bool = True) -> Manifest:
    """Segments of 1 to 20 s that are not neutral: `sentiment`, `sentiment7`, `video`, `split`, `mockingjay_split`.

    `sentiment` is "negative" or "positive", `sentiment7` the mean rating rounded away from 0, from -3 to 3. `split`
    is that of the standard folds; other videos are left out unless `standard` is false, their `split` then being None.
    `mockingjay_split` is Mockingjay's (Liu et al. 2020): of the videos with such segments, standard or not, shuffled
    with seed 29, 90 % are train and the others test; dev is to be cut out of train. Speakers are not published; each
    video has one. Expects LAYOUT. Raises `ManifestError`.

    Inferred: Mockingjay keeps ratings of at least 0.1 in size, and the table tells only their signs; but ratings are
    means of a few whole numbers, so that none but 0 is smaller. Mockingjay's own list of segments is not published, and
    may differ.
    """
    root = find_root(folder, "CMU-MOSEI", [AUDIO], LAYOUT)
    table = next((place / TABLE for place in (root, folder) if (place / TABLE).is_file()), None)
    if table is None:
        raise ManifestError(f"{folder}: {TABLE} is missing; expected {LAYOUT}")
    rows = read_table(table, "file", "index", "start", "end", "label2b", "label7", "split")
    warn_count("CMU-MOSEI", len(rows), SEGMENTS)
    try:
        kept = [
            row
            for row in rows
            if SENTIMENTS[row["label2b"]] and SHORTEST_S <= float(row["end"]) - float(row["start"]) <= LONGEST_S
        ]
        mockingjay = group_shuffle([row["file"] for row in kept], (0.9, 0.0, 0.1), seed=29)
        columns: dict[str, list[Any]] = {
            "clip_id": [f"{row['file']}_{row['index']}" for row in kept],
            "path": [f"{AUDIO}/{row['file']}.wav" for row in kept],
            "start_s": [max(0.0, float(row["start"])) for row in kept],  # some begin half a second before their audio
            "end_s": [float(row["end"]) for row in kept],
            "split": [FOLDS[row["split"]] for row in kept],
            "mockingjay_split": mockingjay,
            "video": [row["file"] for row in kept],
            "sentiment": [SENTIMENTS[row["label2b"]] for row in kept],
            "sentiment7": [int(row["label7"]) for row in kept],
        }
    except (ValueError, KeyError) as error:
        raise ManifestError(f"{table}: is not S3PRL's table of CMU-MOSEI ({error!r}); get it again") from None
    if standard:
        inside = [index for index, part in enumerate(columns["split"]) if part]
        columns = {name: [values[index] for index in inside] for name, values in columns.items()}
    paths = list(dict.fromkeys(columns["path"]))
    refuse_missing("the videos' audio", root, [path for path in paths if not (root / path).is_file()], len(paths))
    return Manifest.from_columns(columns, root, str(root))
