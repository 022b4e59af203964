"""What readers of corpora share: finding the folder, refusing what is incomplete, columns of intervals."""

from __future__ import annotations

import csv
import logging
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from auricle.data.sources import INTERVALS
from auricle.errors import ManifestError

logger = logging.getLogger("auricle")

Interval = tuple[float, float, str]


def find_root(folder: Path, title: str, marks: Sequence[str], layout: str) -> Path:
    """`folder`, or the one folder in it, that holds any of the names in `marks`: archives bring a folder of their own.

    Raises `ManifestError` saying what `layout` is expected.
    """
    for root in [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]:
        if any((root / mark).exists() for mark in marks):
            return root
    found = "no such folder" if not folder.is_dir() else f"not {title}"
    raise ManifestError(f"{folder}: {found}; expected {layout}")


def read_lines(path: Path) -> list[str]:
    """Lines that are not empty. Raises `ManifestError` when the file is missing or is not text."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a CSV file with a header.

    Raises `ManifestError` when it cannot be read, lacks any of `columns`, or has a row of another length.
    """
    rows = list(csv.DictReader(read_lines(path)))
    lacking = set(columns) - set(rows[0] if rows else ())
    if lacking:
        raise ManifestError(f"{path}: no column '{min(lacking)}'; get the corpus again")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ManifestError(f"{path}: line {number} is cut short or too long; get the corpus again")
    return rows


def refuse_missing(title: str, root: Path, missing: Sequence[str], total: int) -> None:
    """Raise `ManifestError` if anything of `total` is missing, naming the first ones."""
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ManifestError(f"{root}: {len(missing)} of {total} of {title} are missing ({first}); get the corpus again")


def warn_count(title: str, found: int, official: int) -> None:
    """Warn when there are not as many clips as the corpus officially has: scores would not compare."""
    if found != official:
        logger.warning("%s: found %d clips, the corpus has %d; scores will not compare", title, found, official)


class IntervalColumn:
    """Interval labels, one list a clip, without a Python object an interval: there may be millions."""

    def __init__(self) -> None:
        self.starts, self.ends = array("d"), array("d")
        self.codes, self.offsets = array("i"), array("i", [0])
        self.labels: dict[str, int] = {}
        self.unknown: list[bool] = []

    def add(self, clip: Sequence[Interval] | None) -> None:
        """The next clip's intervals, None where they are unknown."""
        for start, end, label in clip or ():
            self.starts.append(start)
            self.ends.append(end)
            self.codes.append(self.labels.setdefault(label, len(self.labels)))
        self.offsets.append(len(self.starts))
        self.unknown.append(clip is None)

    def to_arrow(self) -> pa.Array:
        """(N,) lists of structs."""
        starts, ends, codes, offsets = (
            pa.array(np.asarray(x)) for x in (self.starts, self.ends, self.codes, self.offsets)
        )
        labels = pa.array(list(self.labels), pa.string()).take(codes)
        values = pa.StructArray.from_arrays([starts, ends, labels], fields=list(INTERVALS.value_type))
        return pa.ListArray.from_arrays(offsets, values, type=INTERVALS, mask=pa.array(self.unknown, pa.bool_()))
