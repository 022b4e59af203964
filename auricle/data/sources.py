"""What a person has (folders, CSV, TSV, JSONL, Parquet) as columns; what the columns mean is `manifest`'s business."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from auricle.audio.io import EXTENSIONS
from auricle.errors import ManifestError

INTERVALS = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("label", pa.string())]))
"""Interval labels (phones, words, beats, chords): seconds from the clip's start."""

INTEGER = r"^-?(0|[1-9]\d{0,17})$"  # leading zeros mark names, not numbers; more digits do not fit in 64 bits
FLOAT = r"^-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"
BOOLEAN = r"^(true|false|True|False|TRUE|FALSE)$"

KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
"""What JSON's types are called in errors; numbers of both kinds go together."""


def read_columns(source: Path) -> tuple[pa.Table, Path]:
    """The columns of a source as written, and the folder its relative paths are resolved against.

    Raises `ManifestError` when the source is missing, of unknown kind, or cannot be read as what it says it is.
    """
    suffix = source.suffix.lower()
    if not source.exists():
        raise ManifestError(f"{source}: no such file or folder")
    if source.is_dir():
        return pa.table({"path": pa.array(sorted(find_audio(source)), pa.string())}), source
    if suffix in EXTENSIONS:
        return pa.table({"path": [source.name]}), source.parent
    if suffix not in READERS:
        raise ManifestError(f"{source}: expected a folder, an audio file, or a .csv, .tsv, .jsonl or .parquet manifest")
    try:
        table = READERS[suffix](source)
    except (pa.ArrowException, UnicodeError, OSError) as error:
        raise ManifestError(f"{source}: cannot be read as {suffix[1:]} ({_line(error)})") from None
    twice = {name for name in table.column_names if table.column_names.count(name) > 1}
    if twice:
        raise ManifestError(f"{source}: two columns are called '{min(twice)}'")
    return table, source.parent


def find_audio(folder: Path) -> Iterable[str]:
    """Audio files by extension, relative to `folder`; links are followed once, hidden names are left out."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link back, or a second way in
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                # a name that is not UTF-8 cannot stand in a table: shown escaped, it is then found missing, and counted
                path = Path(place, name).relative_to(folder).as_posix()
                yield path.encode(errors="backslashreplace").decode()


def read_intervals(path: Path) -> list[dict[str, Any]]:
    """Rows of a headless TSV: start, end, label in seconds; or time, label, where start and end are the same.

    Raises `ManifestError` naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:  # no UTF-8, or a name that no file can have
        raise ManifestError(f"{path}: cannot be read ({_line(error)})") from None
    intervals = []
    for number, line in enumerate(lines, start=1):
        *times, label = line.split("\t")
        if not line.strip():
            continue
        try:
            start, end = float(times[0]), float(times[-1])
        except (IndexError, ValueError):
            raise ManifestError(f"{path}: line {number} is not 'start, end, label' or 'time, label' by tabs") from None
        intervals.append({"start_s": start, "end_s": end, "label": label})
    return intervals


def _read_csv(source: Path, delimiter: str = ",") -> pa.Table:
    parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pacsv.open_csv(source, parse_options=parse) as reader:
        names = reader.schema.names
    text = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    table = pacsv.read_csv(source, parse_options=parse, convert_options=text)
    return pa.table([_typed(column) for column in table.columns], names=[name.strip() for name in names])


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text as integers, floats or booleans if every value is one."""
    if column.null_count == len(column):
        return column
    for pattern, kind in ((INTEGER, pa.int64()), (FLOAT, pa.float64()), (BOOLEAN, pa.bool_())):
        if pc.all(pc.match_substring_regex(column, pattern)).as_py():
            return pc.utf8_lower(column).cast(kind)
    return column


def _read_jsonl(source: Path) -> pa.Table:
    rows = []
    with source.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ManifestError(f"{source}: line {number} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ManifestError(f"{source}: line {number} is not a JSON object")
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _json_column(source, name, [row.get(name) for row in rows]) for name in names})


def _json_column(source: Path, name: str, values: list[Any]) -> pa.Array:
    found = [value for value in values if value is not None]
    try:
        if any(found) and all(isinstance(value, list) and all(map(_is_interval, value)) for value in found):
            return _intervals(values)
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        kinds = [None if value is None else KINDS.get(type(value), "a record") for value in values]
        common = next(kind for kind in kinds if kind)
        for row, kind in enumerate(kinds, start=1):
            if kind not in (None, common):
                message = f"column '{name}' mixes types: {common} at first, {kind} in row {row}"
                raise ManifestError(f"{source}: {message}") from None
        raise ManifestError(f"{source}: column '{name}' holds values that do not go together") from None


def _read_parquet(source: Path) -> pa.Table:
    table = pq.read_table(source)
    table.validate(full=True)  # else text that is no UTF-8 is found out when it is used
    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            names = {child.name.removesuffix("_s") for child in field.type.value_type}
            if {"start", "end", "label"} <= names:
                try:
                    intervals = _intervals(table.column(index).to_pylist())
                except (pa.ArrowInvalid, TypeError):
                    raise ManifestError(f"{source}: column '{field.name}' holds intervals that are none") from None
                table = table.set_column(index, field.name, intervals)
    return table


def _intervals(values: list[list[Any] | None]) -> pa.Array:
    return pa.array([None if value is None else [_interval(item) for item in value] for value in values], INTERVALS)


def _is_interval(item: Any) -> bool:
    """[start, end, label], [time, label], or an object with start(_s), end(_s) and label."""
    if isinstance(item, dict):
        return {"start", "end", "label"} <= {key.removesuffix("_s") for key in item}
    return (
        isinstance(item, list)
        and len(item) in (2, 3)
        and isinstance(item[-1], str)
        and all(isinstance(time, int | float) for time in item[:-1])
    )


def _interval(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        start, end = item.get("start_s", item.get("start")), item.get("end_s", item.get("end"))
        return {"start_s": start, "end_s": end, "label": str(item["label"])}
    return {"start_s": float(item[0]), "end_s": float(item[-2]), "label": item[-1]}


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS = {
    ".csv": _read_csv,
    ".tsv": lambda source: _read_csv(source, "\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}
"""Extension to reader of a manifest."""
