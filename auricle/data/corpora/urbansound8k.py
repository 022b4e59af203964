"""UrbanSound8K (Salamon et al. 2014): city sounds of at most four seconds, ten classes, ten official folds."""

from __future__ import annotations

from pathlib import Path

from auricle.data.corpora.layout import find_root, read_table, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "metadata/UrbanSound8K.csv and audio/fold1 ... audio/fold10, as in the archive's folder UrbanSound8K"
FOLDS = tuple(str(number) for number in range(1, 11))


def read(folder: Path) -> Manifest:
    """`category`, the official `fold` (1 to 10), `salience`, and `source`, the Freesound recording a clip was cut from.

    `salience` is "foreground" or "background". Scores are means over the ten folds, each held out once; other splits
    put clips of one source on both sides. Expects LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "UrbanSound8K", ["metadata/UrbanSound8K.csv"], LAYOUT)
    path = root / "metadata" / "UrbanSound8K.csv"
    rows = read_table(path, "slice_file_name", "fsID", "salience", "fold", "class")
    warn_count("UrbanSound8K", len(rows), 8732)
    for row in rows:
        if row["fold"] not in FOLDS or row["salience"] not in ("1", "2"):
            raise ManifestError(
                f"{path}: {row['slice_file_name']} has fold {row['fold']}, salience {row['salience']}; "
                "the official table has folds 1 to 10, saliences 1 and 2"
            )
    places = [f"audio/fold{row['fold']}/{row['slice_file_name']}" for row in rows]
    present = {f"audio/{found.parent.name}/{found.name}" for found in (root / "audio").glob("fold*/*")}
    refuse_missing("the clips", root, [place for place in places if place not in present], len(rows))
    columns = {
        "clip_id": [Path(row["slice_file_name"]).stem for row in rows],
        "path": places,
        "fold": [int(row["fold"]) for row in rows],
        "category": [row["class"] for row in rows],
        "salience": ["foreground" if row["salience"] == "1" else "background" for row in rows],
        "source": [row["fsID"] for row in rows],
    }
    return Manifest.from_columns(columns, root, str(root))
