"""Embeddings on disk: a folder of Parquet shards that opens as one table.

    part-00000.parquet ...   one row a clip, in the manifest's order
    _auricle/plan.json       what is computed, of what, and in how many shards
    _auricle/part-00000.json written after its shard: rows, seconds of audio, checksum, clips skipped
    _auricle/skipped.jsonl   all clips skipped, with reasons; written last

pandas and pyarrow take the folder; polars, DuckDB and datasets `folder/*.parquet`. Columns are the manifest's, and

- `embedding`, fixed_size_list[D], at clip level; `frames`, list<fixed_size_list[D]> (T, D), at frame level;
- for several layers `layer_0`, `layer_1`, ... of the same types instead.

The schema's metadata holds, under the key `auricle`, JSON with the encoder, its fingerprint, the options, and `hop_s`
and `offset_s`: frame k is centred on `offset_s + k * hop_s` seconds from the clip's start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from auricle.data.batching import Skip
from auricle.errors import ConfigError

FORMAT = 1
RECORDS = "_auricle"  # pyarrow, and with it pandas, passes over names that begin so
PLAN, SKIPPED, LOCK = f"{RECORDS}/plan.json", f"{RECORDS}/skipped.jsonl", f"{RECORDS}/lock"


def read(folder: Path | str) -> ds.Dataset:
    """A finished folder as a pyarrow dataset: `.to_table()`, or in batches; `metadata(dataset.schema)` tells the rest.

    Raises `ConfigError` when it is no folder of embeddings, unfinished, or of a newer format.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    if plan is None:
        raise ConfigError(f"{folder}: holds no embeddings ({PLAN} is missing)")
    missing = plan["shards"] - len(list((folder / RECORDS).glob("part-*.json")))
    if missing:
        raise ConfigError(
            f"{folder}: {missing} of {plan['shards']} shards are missing; run auricle embed again to finish"
        )
    return ds.dataset([str(folder / shard_name(index)) for index in range(plan["shards"])], format="parquet")


def metadata(schema: pa.Schema) -> dict[str, Any]:
    """Encoder, fingerprint, options, `hop_s` and `offset_s` from a shard's schema."""
    values: dict[str, Any] = json.loads(schema.metadata[b"auricle"])
    return values


def read_plan(folder: Path) -> dict[str, Any] | None:
    """`plan.json`, or None where there is none. Raises `ConfigError` for a newer format or a damaged file."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        newer = plan["format"] > FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged or unreadable ({type(error).__name__}: {error})") from None
    if newer:
        raise ConfigError(f"{path}: written by a newer auricle ({plan.get('auricle')}); upgrade auricle to read it")
    return plan


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"part-{index:05d}.parquet"


def write_shard(folder: Path, index: int, table: pa.Table, audio_s: float, skipped: Sequence[Skip]) -> dict[str, Any]:
    """Write a shard, then its record, which is returned; killed in between, the shard counts as missing."""
    path = folder / shard_name(index)
    # No dictionaries: they cost time and space on floats, which hardly ever repeat.
    write_atomic(path, lambda file: pq.write_table(table, file, compression="zstd", use_dictionary=False))
    record = {
        "rows": table.num_rows,
        "audio_s": audio_s,
        "sha256": _checksum(path),
        "skipped": [asdict(skip) for skip in skipped],
    }
    write_json(_record_path(folder, index), record)
    return record


def read_record(folder: Path, index: int) -> dict[str, Any] | None:
    """A shard's record, or None when the shard is missing, unfinished or damaged (it is then to be written anew)."""
    try:
        record: dict[str, Any] = json.loads(_record_path(folder, index).read_text(encoding="utf-8"))
        return record if record["sha256"] == _checksum(folder / shard_name(index)) else None
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes out of it; the system lifts the lock of a process that dies.

    Raises `ConfigError` when another process is writing it, when it holds anything but embeddings, or cannot be made.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [path.name for path in folder.iterdir() if path.name != RECORDS]
        if foreign and not (folder / PLAN).exists():
            raise ConfigError(f"{folder}: holds other files ({min(foreign)}); choose a new or empty output folder")
        (folder / RECORDS).mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(
            f"{folder}: is being written by another process; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error})") from None
    try:
        yield
    finally:
        lock.release()


def begin(folder: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The plan to follow in `folder`: `plan`, written down, or the equal one that an earlier start wrote.

    With `overwrite`, all embeddings there are deleted first. Raises `ConfigError` when the earlier one differs.
    """
    earlier = read_plan(folder)
    if earlier is not None and overwrite:
        # The plan goes last: killed in between, the folder is still known for one of ours.
        for path in [
            *folder.glob("part-*.parquet"),
            *folder.glob(f"{RECORDS}/part-*.json"),
            folder / SKIPPED,
            folder / PLAN,
        ]:
            path.unlink(missing_ok=True)
        earlier = None
    if earlier is None:
        write_json(folder / PLAN, plan)
        return plan
    for key, value in plan.items():
        if key != "encoder" and earlier.get(key) != value:  # its name may be another path to the same fingerprint
            found = f"{key} = {earlier.get(key)}, now {value}"
            raise ConfigError(f"{folder}: holds embeddings with {found}; choose another folder, or overwrite")
    return earlier


def schema(manifest: pa.Schema, columns: Mapping[str, pa.DataType], plan: Mapping[str, Any]) -> pa.Schema:
    """The manifest's columns and the embedding `columns`, with `plan` as metadata."""
    fields = [*manifest, *(pa.field(name, kind) for name, kind in columns.items())]
    return pa.schema(fields, metadata={"auricle": json.dumps(plan)})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_atomic(path, lambda file: file.write(json.dumps(values, indent=2).encode() + b"\n"))


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSONL file whole or not at all."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, lambda file: file.write(text.encode()))


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a temporary file beside `path`, have it on the disk, and rename it into place.

    Raises `ConfigError` when the disk is full or writing is not permitted; what was at `path` is then still there.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        handle = os.open(path.parent, os.O_RDONLY)  # the folder's entry, too
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        with contextlib.suppress(OSError):  # a full disk needs the room
            unfinished.unlink()
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None


def embedding_type(dim: int, dtype: str, level: str) -> pa.DataType:
    """Arrow type of an embedding column: a vector (D,), or at frame level a list of them (T, D)."""
    vector = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dim)
    return pa.list_(vector) if level == "frames" else vector


def embedding_column(values: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    """Vectors (D,), or frames (T, D), one array a clip, as a column of type `kind`."""
    vector = kind if pa.types.is_fixed_size_list(kind) else kind.value_type
    pieces = [value.reshape(-1) for value in values] or [np.empty(0, vector.value_type.to_pandas_dtype())]
    flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)  # a single clip, as hours of frames are, unmoved
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=vector)
    if vector is kind:
        return vectors
    offsets = np.cumsum([0, *(len(value) for value in values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors, type=kind)


def _record_path(folder: Path, index: int) -> Path:
    return folder / RECORDS / f"part-{index:05d}.json"


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
