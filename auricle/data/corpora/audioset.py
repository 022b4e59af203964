"""AudioSet (Gemmeke et al. 2017): ten-second clips of YouTube videos with labels out of 527 classes of sound."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from auricle.data.corpora.layout import find_root, logger, read_table, warn_count
from auricle.data.manifest import Manifest
from auricle.data.sources import find_audio
from auricle.errors import ManifestError, unknown

LAYOUT = (
    "{balanced_train,unbalanced_train,eval}_segments.csv (one or more of them), class_labels_indices.csv or "
    "ontology.json, and audio files named by YouTube's id (YTID.wav, YYTID.wav, YTID_30.000.wav, ...) in any folders"
)
SEGMENTS = {"balanced_train": 22160, "unbalanced_train": 2041789, "eval": 20371}
"""Subset to the number of segments in its official list."""
CLASSES = 527
LINE = r'^(?P<id>[\w-]{11}),\s*[\d.]+,\s*[\d.]+,\s*"?(?P<labels>[^"]+?)"?\s*$'
FILE = r"(?:^|/)Y?(?P<id>[\w-]{11})(?:_[\d.]+){0,2}\.\w+$"


def read(folder: Path, *, subsets: Sequence[str] | None = None) -> Manifest:
    """`labels`, a list of class names a clip, `subset`, and `split`: train, with the eval segments as test.

    `subsets`: of `SEGMENTS`, by default those whose lists there are; AS-20K is balanced_train and eval, AS-2M all
    three. Videos disappear from YouTube, so that nobody has all clips: those missing are left out, and their number and
    share are logged. Dev is to be cut out of train; the metric is macro mAP over 527 classes. Expects LAYOUT, files as
    the usual downloaders leave them, each cut to its segment; of a clip that is there twice, the first path is taken.
    Raises `ManifestError`.
    """
    root = find_root(folder, "AudioSet", [f"{name}_segments.csv" for name in SEGMENTS], LAYOUT)
    chosen = list(subsets or (name for name in SEGMENTS if (root / f"{name}_segments.csv").is_file()))
    for subset in chosen:
        if subset not in SEGMENTS:
            raise ManifestError(unknown("subset of AudioSet", subset, SEGMENTS))
    mids, names = _classes(root)
    paths = pa.array(sorted(find_audio(folder)), pa.string())  # the lists often lie in a folder of their own
    files = pc.struct_field(pc.extract_regex(paths, FILE), "id")
    parts = [_present(root, subset, paths, files, mids, names) for subset in chosen]
    return Manifest.from_columns(pa.concat_tables(parts), folder, str(folder))


def _present(root: Path, subset: str, paths: pa.Array, files: pa.Array, mids: pa.Array, names: pa.Array) -> pa.Table:
    """The columns of a subset's clips that are there."""
    path = root / f"{subset}_segments.csv"
    ids, labels = _segments(path, mids, names)
    total = len(ids)
    warn_count(f"AudioSet's list {path.name}", total, SEGMENTS[subset])
    places = pc.index_in(ids, value_set=files)
    there = pc.is_valid(places)
    ids, labels, places = (column.filter(there) for column in (ids, labels, places))
    if not len(ids):
        raise ManifestError(f"{root}: none of the {total} clips of {path.name} are there; expected {LAYOUT}")
    if len(ids) < total:
        share = (total - len(ids)) / total
        logger.warning(
            "AudioSet %s: %d of %d clips are missing (%.1f %%); scores compare only on the same clips",
            *(subset, total - len(ids), total, 100 * share),
        )
    split = "test" if subset == "eval" else "train"
    columns = {"clip_id": ids, "path": paths.take(places), "labels": labels}
    return pa.table(columns | {"split": pa.repeat(split, len(ids)), "subset": pa.repeat(subset, len(ids))})


def _segments(path: Path, mids: pa.Array, names: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(N,) ids and (N,) lists of class names, as Arrow columns: there are two million segments."""
    try:
        lines = pa.array(path.read_text(encoding="utf-8").splitlines(), pa.string())
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    lines = lines.filter(pc.invert(pc.or_(pc.starts_with(lines, "#"), pc.equal(lines, ""))))
    cells = pc.extract_regex(lines, LINE)
    for row in lines.filter(pc.is_null(cells)).slice(0, 1):
        raise ManifestError(f"{path}: '{row}' is not 'YTID, start, end, \"labels\"'; get the list again")
    lists = pc.split_pattern(pc.struct_field(cells, "labels"), ",")
    codes = pc.index_in(lists.flatten(), value_set=mids)
    for label in lists.flatten().filter(pc.is_null(codes)).slice(0, 1):
        raise ManifestError(f"{path}: label '{label}' is not among the classes; get list and classes of one version")
    return pc.struct_field(cells, "id"), pa.ListArray.from_arrays(lists.offsets, names.take(codes))


def _classes(root: Path) -> tuple[pa.Array, pa.Array]:
    """Machine ids and names of the classes."""
    path = root / "class_labels_indices.csv"
    if path.is_file():
        classes = {row["mid"]: row["display_name"] for row in read_table(path, "mid", "display_name")}
        if len(classes) != CLASSES:
            raise ManifestError(f"{path}: {len(classes)} classes; AudioSet has {CLASSES}")
    else:
        path = root / "ontology.json"
        try:
            classes = {entry["id"]: entry["name"] for entry in json.loads(path.read_text(encoding="utf-8"))}
        except OSError:
            raise ManifestError(f"{root}: class_labels_indices.csv is missing, as is ontology.json") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ManifestError(f"{path}: is not AudioSet's ontology ({error!r})") from None
    return pa.array(list(classes), pa.string()), pa.array(list(classes.values()), pa.string())
