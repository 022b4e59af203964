"""What the columns of a source mean: places in files, clip ids, times and labels, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from auricle.audio.io import AudioInfo, probe
from auricle.data.sources import INTERVALS, read_intervals
from auricle.errors import AudioError, ManifestError

PATHS = ("path", "file", "filename", "audio", "wav", "filepath", "file_path", "file_name", "audio_filepath")
"""Names of a column of paths, the first one present being it."""
CORE = {"clip_id": pa.string(), "path": pa.string(), "start_s": pa.float64(), "duration_s": pa.float64()} | {
    "sample_rate": pa.int64()
}
TIMES = ("start_s", "end_s", "duration_s", "duration")
TOLERANCE_S = 0.05
"""Times that pass the end of the audio by no more than this are rounding, and are cut to it."""


@dataclass(frozen=True)
class Skip:
    """A clip that could not be used, and why."""

    clip_id: str
    path: str
    reason: str


def interpret(table: pa.Table, folder: Path, where: str) -> tuple[pa.Table, list[Skip]]:
    """A manifest's table and skips from the columns of a source. Raises `ManifestError`, naming `where`."""
    table = pa.table({name: _plain(table.column(name)) for name in table.column_names})
    if not table.num_rows:
        return pa.schema(CORE).empty_table(), []
    path_column = next((name for name in PATHS if name in table.column_names), None)
    if path_column is None:
        found = ", ".join(table.column_names)
        raise ManifestError(f"{where}: no column of paths ({', '.join(PATHS[:4])}, ...) among its columns: {found}")
    given = _texts(table.column(path_column), where, path_column)
    folder = folder.absolute()
    paths = [os.path.normpath(os.path.join(folder, path)) for path in given]
    id_column = next((name for name in ("clip_id", "id") if name in table.column_names), None)
    times = {name: _numbers(table.column(name), where, name) for name in TIMES if name in table.column_names}
    if id_column is None:
        ids = _derived_ids(paths, folder, times.get("start_s"))
    else:
        ids = _texts(_as_text(table.column(id_column)), where, id_column)
        _refuse_duplicates(ids, where)

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        unique = list(dict.fromkeys(paths))
        headers = dict(zip(unique, pool.map(_probe, unique), strict=True))
    skipped, kept = [], []
    for row, path in enumerate(paths):
        header = headers[path]
        if isinstance(header, str):
            skipped.append(Skip(ids[row], path, header))
        else:
            kept.append(row)
    infos = [info for row in kept if isinstance(info := headers[paths[row]], AudioInfo)]
    lengths = np.array([info.duration_s for info in infos])
    chosen = np.array(kept, np.int64)
    starts, ends = _segments({name: values[chosen] for name, values in times.items()}, lengths, kept, where)
    durations = np.minimum(ends, lengths) - starts
    beyond = {}  # by place among the kept: files cut short are bad input, and no mistake of the manifest
    for place in np.flatnonzero((ends > lengths + TOLERANCE_S) | (starts >= lengths)).tolist():
        told = f"begins at {starts[place]:g} s" if starts[place] >= lengths[place] else f"ends at {ends[place]:g} s"
        beyond[place] = f"the clip {told}, its file ends at {lengths[place]:g} s"

    columns: dict[str, Any] = {
        "clip_id": pa.array([ids[row] for row in kept], pa.string()),
        "path": pa.array([paths[row] for row in kept], pa.string()),
        "start_s": starts,
        "duration_s": durations,
        "sample_rate": pa.array([info.sample_rate for info in infos], pa.int64()),
    }
    used = {path_column, id_column, "sample_rate", "__index_level_0__", *TIMES}
    for name in (name for name in table.column_names if name not in used):
        column = table.column(name).take(pa.array(kept, pa.int64()))
        if _names_tsv(column):
            name, files = name.removesuffix("_tsv"), column.to_pylist()
            column = pa.array([None if file is None else read_intervals(folder / file) for file in files], INTERVALS)
        if name in columns:
            raise ManifestError(f"{where}: two columns are called '{name}'")
        if column.type == INTERVALS:
            column, late = _checked_intervals(column, durations, kept, f"{where}: column '{name}'")
            beyond = {place: f"column '{name}': {reason}" for place, reason in late.items()} | beyond
        columns[name] = column
    skipped += [Skip(ids[kept[place]], paths[kept[place]], beyond[place]) for place in sorted(beyond)]
    found = pa.table(columns)
    return found.take(np.delete(np.arange(len(kept)), list(beyond))) if beyond else found, skipped


def _probe(path: str) -> AudioInfo | str:
    try:
        return probe(path)
    except AudioError as error:
        return str(error).removeprefix(f"{path}: ")


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Pandas' categories, large strings and views, which Arrow's functions do not all take, as plain values."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    plain = {pa.large_string(): pa.string(), pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return column.cast(plain.get(column.type, column.type))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers as text; what has no text stays, to be refused."""
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return column


def _texts(column: pa.ChunkedArray, where: str, name: str) -> list[str]:
    if not pa.types.is_string(column.type):
        raise ManifestError(f"{where}: column '{name}' must hold text, not {column.type}")
    values: list[str] = column.to_pylist()
    for row, value in enumerate(values, start=1):
        if not value:
            raise ManifestError(f"{where}: row {row}: '{name}' is empty")
    return values


def _numbers(column: pa.ChunkedArray, where: str, name: str) -> NDArray[np.float64]:
    """Floats, NaN where missing."""
    try:
        values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy().astype(np.float64)
    except pa.ArrowException:
        raise ManifestError(f"{where}: {_not_seconds(column, name)}") from None
    for row in np.flatnonzero((values < 0) | np.isinf(values))[:1]:
        raise ManifestError(f"{where}: row {row + 1}: '{name}' is {values[row]:g}; times are seconds from 0 on")
    return values


def _not_seconds(column: pa.ChunkedArray, name: str) -> str:
    if pa.types.is_string(column.type):
        for row, value in enumerate(column, start=1):
            try:
                value.cast(pa.float64())
            except pa.ArrowException:
                return f"row {row}: '{name}' is '{value}', which is no number of seconds"
    return f"column '{name}' must hold seconds, not {column.type}"


def _segments(
    times: dict[str, NDArray[np.float64]], lengths: NDArray[np.float64], rows: list[int], where: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and end of each clip in seconds, as given; whole files where no times are."""
    missing = np.full(len(lengths), np.nan)
    starts = np.nan_to_num(times.get("start_s", missing))
    ends = times.get("end_s", missing)
    if "start_s" in times:  # a duration without a start describes the file, and there the header knows better
        given = times.get("duration_s", times.get("duration", missing))
        ends = np.where(np.isnan(ends), starts + given, ends)
    for row in np.flatnonzero(starts >= ends)[:1]:
        message = f"the clip is from {starts[row]:g} to {ends[row]:g} s; mend or drop the row"
        raise ManifestError(f"{where}: row {rows[row] + 1}: {message}")
    return starts, np.where(np.isnan(ends), lengths, ends)


def _derived_ids(paths: list[str], folder: Path, starts: NDArray[np.float64] | None) -> list[str]:
    """Paths relative to the source, or to their common folder; `@start` where several rows share a file."""
    base = str(folder)
    if not all(path.startswith(base + os.sep) for path in paths):
        base = os.path.commonpath([os.path.dirname(path) for path in paths])
    ids = [path[len(base.rstrip(os.sep)) + 1 :].replace(os.sep, "/") for path in paths]
    if starts is not None and len(set(ids)) < len(ids):
        counts, places = _counts(ids), np.nan_to_num(starts)
        ids = [f"{name}@{start:.3f}" if counts[name] > 1 else name for name, start in zip(ids, places, strict=True)]
    return made_unique(ids)


def made_unique(ids: Sequence[str]) -> list[str]:
    """Later copies of an id get `~2`, `~3`, ..."""
    seen = set(ids)
    if len(seen) == len(ids):
        return list(ids)
    met: dict[str, int] = {}
    unique = []
    for name in ids:
        met[name] = met.get(name, 0) + 1
        new = name
        while met[name] > 1 and (new := f"{name}~{met[name]}") in seen:
            met[name] += 1
        seen.add(new)
        unique.append(new)
    return unique


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _refuse_duplicates(ids: list[str], where: str) -> None:
    if len(set(ids)) < len(ids):
        name = next(name for name, count in _counts(ids).items() if count > 1)
        raise ManifestError(f"{where}: the id '{name}' stands in several rows; make ids unique, or drop the id column")


def _names_tsv(column: pa.ChunkedArray) -> bool:
    if not pa.types.is_string(column.type) or column.null_count == len(column):
        return False
    return bool(pc.all(pc.ends_with(column, ".tsv")).as_py())


def _checked_intervals(
    column: pa.Array, durations: NDArray[np.float64], rows: list[int], where: str
) -> tuple[pa.Array, dict[int, str]]:
    """Intervals sorted by start and cut to their clips; by place, the clips that they pass by more than rounding.

    Raises `ManifestError` for times that are missing, infinite, below 0 or in reverse.
    """
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    clips = pc.list_parent_indices(column).to_numpy()
    flat = column.flatten()
    starts, ends = (np.asarray(flat.field(name).to_numpy(zero_copy_only=False), float) for name in ("start_s", "end_s"))

    def told(index: int) -> str:
        return f"'{flat.field('label')[index]}' from {starts[index]:g} to {ends[index]:g} s"

    for index in np.flatnonzero(~((starts >= 0) & (ends >= starts) & np.isfinite(ends)))[:1]:
        raise ManifestError(f"{where}, row {rows[clips[index]] + 1}: {told(int(index))}")
    late = {
        int(clips[index]): f"{told(int(index))} in a clip of {durations[clips[index]]:g} s"
        for index in np.flatnonzero(ends > durations[clips] + TOLERANCE_S)
    }
    order = np.lexsort([ends, starts, clips])
    cut = [pa.array(np.minimum(times, durations[clips])[order]) for times in (starts, ends)]
    values = pa.StructArray.from_arrays([*cut, flat.field("label").take(pa.array(order))], fields=list(flat.type))
    lengths = column.value_lengths().fill_null(0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=column.is_null()).cast(INTERVALS), late
