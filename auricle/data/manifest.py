"""A manifest: one row a clip, with its place in a file, its labels and times, as an Arrow table."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

import auricle
from auricle.data.columns import CORE, Skip, interpret, made_unique
from auricle.data.sources import read_columns
from auricle.errors import ManifestError, unknown

log = logging.getLogger("auricle")

FORMAT = 1
"""Version of the Parquet files written here."""
LARGE = 64 << 20
"""Bytes past which a table is memory-mapped from a temporary file (in $TMPDIR) instead of held."""

Sources: TypeAlias = "str | Path | Manifest | Sequence[str | Path | Manifest]"


@dataclass(frozen=True, eq=False)
class Manifest:
    """Clips as an Arrow table, one a row.

    Columns: `clip_id` (unique), `path` (absolute), `start_s` in the file, `duration_s`, `sample_rate` of the file in
    Hz, perhaps `split` and `fold`, and labels of any name and type. Interval labels are
    `list<struct<start_s, end_s, label>>`, seconds from the clip's start, sorted by start; they may overlap.
    """

    table: pa.Table
    skipped: list[Skip] = field(default_factory=list)
    """Files that could not be read when the manifest was made."""

    @classmethod
    def open(cls, sources: Sources, columns: Sequence[str] | None = None) -> Manifest:
        """The clips of folders (searched for audio), audio files, and CSV, TSV, JSONL or Parquet manifests, in turn.

        A manifest has a column of paths (`path`, `file`, `filename`, `audio`, ...), relative ones from its own folder.
        Optional are `clip_id` or `id` (else the path, with `@start` where several rows share a file), `start_s` with
        `end_s` or `duration_s`, `split` and `fold`. What else there is is a label, of its own type; text columns naming
        `.tsv` files (`phones_tsv`) become interval labels (`phones`). Lengths and rates come from the files' headers,
        whatever the manifest says; only Parquet files written by `save` are believed, and memory-mapped when large.
        Ids that two sources share get `~2`. `columns` limits the labels.

        Raises `ManifestError`. An unreadable file is no error, unless all are: it goes to `skipped`.
        """
        if isinstance(sources, str | Path | Manifest):
            sources = [sources]
        parts = [part if isinstance(part, Manifest) else _open_one(Path(part)) for part in sources]
        skipped = [skip for part in parts for skip in part.skipped]
        if not sum(map(len, parts)):
            where = ", ".join(str(part) for part in sources if not isinstance(part, Manifest)) or "manifest"
            reason = f"no file can be read; {skipped[0].path}: {skipped[0].reason}" if skipped else "no audio found"
            raise ManifestError(f"{where}: {reason}")
        labels = dict.fromkeys(name for part in parts for name in part.labels)
        for name in columns or ():
            if name not in labels:
                raise ManifestError(unknown("column", name, labels))
        dropped = set() if columns is None else labels.keys() - set(columns)
        try:
            tables = [part.table.drop_columns(list(dropped & set(part.labels))) for part in parts]
            table = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise ManifestError(f"manifests differ in the type of a column ({str(error).splitlines()[0]})") from None
        if len(tables) > 1:
            ids = made_unique(table.column("clip_id").to_pylist())
            table = table.set_column(0, "clip_id", pa.array(ids, pa.string()))
        return cls(table, skipped)

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Any] | pa.Table, folder: str | Path, where: str = "manifest"
    ) -> Manifest:
        """The manifest that `open` would make of a file in `folder` with these columns.

        Raises `ManifestError`, naming `where`.
        """
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
        return cls(*interpret(table, Path(folder), where))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def durations(self) -> NDArray[np.float64]:
        """(N,) seconds."""
        return np.asarray(self.table.column("duration_s").to_numpy(), np.float64)

    @property
    def labels(self) -> list[str]:
        """Names of the label columns."""
        return [name for name in self.table.column_names if name not in (*CORE, "split", "fold")]

    def column(self, name: str) -> list[Any]:
        """A column's values. Raises `ManifestError` for an unknown name."""
        return list(self._column(name).to_pylist())

    def row(self, index: int) -> dict[str, Any]:
        """One clip's values by column."""
        return {name: self.table.column(name)[index].as_py() for name in self.table.column_names}

    def select(self, rows: ArrayLike) -> Manifest:
        """The clips of these row numbers (or of this boolean mask), in that order."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        chunks = (self.table.take(part) for part in np.array_split(index, len(index) // 65_536 + 1))
        return Manifest(_from_batches(self.table.schema, (batch for chunk in chunks for batch in chunk.to_batches())))

    def with_column(self, name: str, values: Any) -> Manifest:
        """The same clips with a label column added or replaced."""
        present = name in self.table.column_names
        table = self.table.drop_columns([name]) if present else self.table
        return Manifest(table.append_column(name, pa.array(values)), self.skipped)

    def warn_of_skipped(self) -> None:
        """Log how many files could not be used, and why the first."""
        if self.skipped:
            count, first = len(self.skipped), self.skipped[0]
            log.warning("unusable files that are left out: %d (%s: %s)", count, first.path, first.reason)

    def save(self, path: str | Path) -> None:
        """Write as Parquet, replacing `path` in one go; its folder is made if need be. Raises `ManifestError`."""
        described = {b"auricle_manifest": str(FORMAT).encode(), b"auricle": auricle.__version__.encode()}
        partial = f"{path}.partial"
        try:
            os.makedirs(os.path.dirname(partial) or ".", exist_ok=True)
            pq.write_table(self.table.replace_schema_metadata(described), partial, row_group_size=65_536)
            os.replace(partial, path)
        except (OSError, pa.ArrowException) as error:  # Parquet knows no records without fields, for one
            raise ManifestError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None

    def content_hash(self) -> str:
        """Sixteen hex digits over clips, times and labels, in order, wherever the files lie."""
        names = ["clip_id", "start_s", "duration_s", *sorted(set(self.table.column_names) - set(CORE))]
        digest = hashlib.sha256(json.dumps(names).encode())
        sink = pa.PythonFile(_Hashing(digest), mode="w")
        options = pacsv.WriteOptions(include_header=False)
        for batch in self.table.select(names).to_batches(max_chunksize=65_536):
            flat = [column if _is_flat(column.type) else _as_text(column) for column in batch.columns]
            pacsv.write_csv(pa.table(flat, names=names), sink, options)
        return digest.hexdigest()[:16]

    def files_hash(self) -> str:
        """Sixteen hex digits over sizes and times of change of the files, which tell that audio was replaced."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(self.column("path")):
            try:
                found = os.stat(path)
                digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(b"missing\n")
        return digest.hexdigest()[:16]

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self.table.column_names:
            raise ManifestError(unknown("column", name, self.table.column_names))
        return self.table.column(name)


class _Hashing:
    """A file that only hashes what is written to it."""

    closed = False

    def __init__(self, digest: Any):
        self.digest = digest

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _is_flat(kind: pa.DataType) -> bool:
    """Whether Arrow writes such values as cells of a CSV."""
    return bool(pa.types.is_integer(kind) or kind in (pa.bool_(), pa.string(), pa.float32(), pa.float64()))


def _as_text(column: pa.Array) -> pa.Array:
    return pa.array([json.dumps(value, sort_keys=True, default=str) for value in column.to_pylist()], pa.string())


def _open_one(source: Path) -> Manifest:
    if source.suffix.lower() == ".parquet" and source.is_file():
        try:
            with pq.ParquetFile(source) as file:
                described = file.schema_arrow.metadata or {}
                if b"auricle_manifest" in described:
                    return _open_saved(source, file, int(described[b"auricle_manifest"]))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ManifestError(f"{source}: cannot be read as parquet ({str(error).splitlines()[0]})") from None
    return Manifest(*interpret(*read_columns(source), str(source)))


def _open_saved(source: Path, file: pq.ParquetFile, version: int) -> Manifest:
    if version > FORMAT:
        raise ManifestError(f"{source}: written by a newer auricle (format {version}, known {FORMAT}); upgrade auricle")
    for name, kind in CORE.items():
        if name not in file.schema_arrow.names or file.schema_arrow.field(name).type != kind:
            raise ManifestError(f"{source}: its column '{name}' is missing or not {kind}; make the manifest anew")
    return Manifest(_from_batches(file.schema_arrow.remove_metadata(), file.iter_batches()))


def _from_batches(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """A table of the batches; past `LARGE` bytes, of a memory-mapped temporary file."""
    held, size, rest = [], 0, iter(batches)
    for batch in rest:
        held.append(batch)
        size += batch.nbytes
        if size > LARGE:
            break
    else:
        return pa.Table.from_batches(held, schema)
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for batch in held:
                writer.write_batch(batch)
            held.clear()
            for batch in rest:
                writer.write_batch(batch)
        file.flush()
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all()  # the mapping outlives the name
