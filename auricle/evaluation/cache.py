"""Embeddings on disk: an encoder hears no audio twice, whatever task, head or seed asks, in this run or a later one.

`<folder>/<fingerprint of the encoder>/<what>/` holds Parquet shards, a row a clip: its key, a digest of the file's
bytes and the clip's place in it; why it could not be embedded, if so; and a column of float32 bytes for each layer.
Shards are written whole or not at all, so that several processes may share a folder and an interrupted one goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import auricle
from auricle.data.manifest import Manifest
from auricle.embedding.store import write_atomic
from auricle.errors import EvaluationError

FORMAT = 1
FRAMES = 8 * 2**30
"""Bytes of frames kept for one encoder; vectors of clips are small, and all kept."""

Embedding: TypeAlias = "list[NDArray[np.float32]] | str"
"""A clip's array for each layer, flat; or why it has none."""


class Cache:
    """What is kept for one encoder."""

    def __init__(self, folder: Path | str, fingerprint: str) -> None:
        self.folder = Path(folder) / fingerprint
        self._digests: dict[str, str | None] = {}
        self._shards: dict[str, dict[str, list[tuple[Path, frozenset[str]]]]] = {}

    def keys(self, manifest: Manifest) -> list[str | None]:
        """A key for each clip, wherever its file lies; None where that cannot be read."""
        places = (manifest.column("path"), manifest.column("start_s"), manifest.durations.tolist())
        keys: list[str | None] = []
        for path, start, duration in zip(*places, strict=True):
            if path not in self._digests:
                self._digests[path] = _digest(path)
            digest = self._digests[path]
            keys.append(None if digest is None else f"{digest}@{start:.6f}+{duration:.6f}")
        return keys

    def places(self, what: str, keys: Iterable[str | None], layers: Sequence[int]) -> dict[str, Path]:
        """The shard of each of these clips that is there with all these layers."""
        columns, index = set(_columns(layers)), self._index(what)
        return {
            key: path for key in keys if key for path, names in index.get(key, ()) if columns <= names
        }  # fmt: skip

    def read(self, what: str, keys: Iterable[str | None], layers: Sequence[int]) -> dict[str, Embedding]:
        """What is there of these clips, with all these layers. Raises `EvaluationError` for a damaged shard."""
        columns, wanted = _columns(layers), dict[Path, list[str]]()
        for key, path in self.places(what, keys, layers).items():
            wanted.setdefault(path, []).append(key)
        found: dict[str, Embedding] = {}
        for path, here in wanted.items():
            table = _read(path, ["key", "reason", *columns])
            row = {key: number for number, key in enumerate(table["key"].to_pylist())}
            reasons, values = table["reason"].to_pylist(), [table[name].combine_chunks() for name in columns]
            for key in here:
                reason = reasons[row[key]]
                found[key] = reason or [np.frombuffer(value[row[key]].as_buffer(), "<f4") for value in values]
        return found

    def write(self, what: str, layers: Sequence[int], clips: Mapping[str, Embedding]) -> None:
        """Keep clips, in a shard of their own."""
        rows = [None if isinstance(clip, str) else clip for clip in clips.values()]
        columns: dict[str, pa.Array] = {
            "key": pa.array(list(clips), pa.string()),
            "reason": pa.array([clip if isinstance(clip, str) else None for clip in clips.values()], pa.string()),
        }
        for place, name in enumerate(_columns(layers)):
            values = [b"" if row is None else np.ascontiguousarray(row[place], "<f4").tobytes() for row in rows]
            columns[name] = pa.array(values, pa.large_binary())
        described = {"format": str(FORMAT), "auricle": auricle.__version__}
        table = pa.table(columns).replace_schema_metadata(described)
        name = hashlib.sha256(repr([list(clips), list(layers)]).encode()).hexdigest()[:16]
        path = self.folder / what / f"{name}.parquet"
        write_atomic(path, lambda file: pq.write_table(table, file, compression="none", use_dictionary=False))
        for key in clips:
            self._index(what).setdefault(key, []).append((path, frozenset(columns)))

    def room(self) -> int:
        """Bytes of frames that may still be kept."""
        return FRAMES - sum(path.stat().st_size for path in (self.folder / "frames").glob("*.parquet"))

    def _index(self, what: str) -> dict[str, list[tuple[Path, frozenset[str]]]]:
        """Key to the shards that have it, and their columns."""
        if what not in self._shards:
            index: dict[str, list[tuple[Path, frozenset[str]]]] = {}
            for path in sorted((self.folder / what).glob("*.parquet")):
                table = _read(path, ["key"])
                if int((table.schema.metadata or {}).get(b"format", 0)) > FORMAT:
                    raise EvaluationError(f"{path}: written by a newer auricle; upgrade it, or name another cache")
                entry = path, frozenset(pq.read_schema(path).names)
                for key in table["key"].to_pylist():
                    index.setdefault(key, []).append(entry)
            self._shards[what] = index
        return self._shards[what]


def _columns(layers: Sequence[int]) -> list[str]:
    return [f"layer_{layer}" for layer in layers]


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise EvaluationError(f"{path}: cannot be read ({str(error).splitlines()[0]}); delete it") from None


def _digest(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
