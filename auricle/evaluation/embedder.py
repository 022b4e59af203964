"""An encoder's embeddings in memory, by layer: clips are encoded once for all tasks, frames chunk by chunk.

With a cache, what was encoded before is read, and what is encoded is kept, chunk by chunk.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auricle.data.batching import Skip
from auricle.data.manifest import Manifest
from auricle.embedding.extract import GRID_S, encode_clips, encode_frames, encode_streams, grid_times
from auricle.encoders.base import Encoder, Pooling
from auricle.errors import EvaluationError
from auricle.evaluation.cache import FRAMES, Cache, Embedding

log = logging.getLogger("auricle")

ByLayer = dict[int, Tensor]

CHUNK_S = 1800.0
"""Seconds of audio after which what was encoded is kept."""
CHUNK_BYTES = 2**28
"""Bytes of frames after which it is."""
HELD = 2**31
"""Bytes of clips' vectors that may be held between tasks; those of larger corpora are read again from the cache."""


class Embedder:
    """One encoder, with the clips it has embedded so far, by all its layers or some."""

    def __init__(
        self,
        encoder: Encoder,
        pool: Pooling,
        batch_seconds: float,
        layers: Sequence[int] | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.encoder, self.pool, self.batch_seconds, self.cache = encoder, pool, batch_seconds, cache
        self.layers = list(range(len(encoder.dims)) if layers is None else layers)
        self.name = encoder.name or encoder.family
        self.seconds = 0.0
        """Spent encoding."""
        self._vectors: dict[tuple[str, float, float], list[NDArray[np.float32]] | None] = {}
        self._streams: dict[tuple[str, float, float], NDArray[np.float32] | None] = {}

    def clips(self, manifest: Manifest) -> tuple[NDArray[np.bool_], ByLayer]:
        """Which clips (N,) could be embedded, and their vectors by layer, (n, D) each."""
        dims = [self.encoder.dims[layer] * (2 if self.pool == "meanstd" else 1) for layer in self.layers]
        if self.cache is not None and 4 * sum(dims) * len(manifest) > HELD:
            return self._kept_clips(self.cache, manifest)
        columns = (manifest.column("path"), manifest.column("start_s"), manifest.durations.tolist())
        keys = list(zip(*columns, strict=True))
        new = [row for row, key in enumerate(keys) if key not in self._vectors]
        if new:
            for row, clip in zip(new, self._clips(manifest.select(new)), strict=True):
                self._vectors[keys[row]] = None if isinstance(clip, str) else clip
        vectors = [self._vectors[key] for key in keys]
        present = [vector for vector in vectors if vector is not None]
        layers = {
            layer: torch.from_numpy(np.stack([vector[place] for vector in present]))
            for place, layer in enumerate(self.layers if present else ())
        }
        return np.array([vector is not None for vector in vectors]), layers

    def _kept_clips(self, cache: Cache, manifest: Manifest) -> tuple[NDArray[np.bool_], ByLayer]:
        """As `clips`, read from the cache a layer at a time, so that nothing is held twice."""
        keys, late = self._keep_clips(cache, manifest)
        layers: ByLayer = {}
        for layer in self.layers:
            found = cache.read(self._what, keys, [layer])
            known = [late[row] if row in late else found[str(key)] for row, key in enumerate(keys)]
            vectors = [clip[0] for clip in known if not isinstance(clip, str)]
            if vectors:
                layers[layer] = torch.from_numpy(np.stack(vectors))
        self._tell([clip for clip in known if isinstance(clip, str)])
        return np.array([not isinstance(clip, str) for clip in known]), layers

    def streams(self, manifest: Manifest) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which clips (N,) could be embedded, and their streams (n, C, E), of an encoder that separates talkers."""
        columns = (manifest.column("path"), manifest.column("start_s"), manifest.durations.tolist())
        keys = list(zip(*columns, strict=True))
        new = [row for row, key in enumerate(keys) if key not in self._streams]
        if new:
            started = time.monotonic()
            found, skipped = encode_streams(self.encoder, manifest.select(new), batch_seconds=self.batch_seconds)
            self.seconds += time.monotonic() - started
            self._streams.update((keys[row], found.get(place)) for place, row in enumerate(new))
            self._tell([skip.reason for skip in skipped])
        streams = [self._streams[key] for key in keys]
        present = [stream for stream in streams if stream is not None]
        if not present:
            raise EvaluationError(f"{self.name} could separate none of the recordings; the log says why")
        return np.array([stream is not None for stream in streams]), np.stack(present)

    def frames(
        self, manifest: Manifest, times: Sequence[NDArray[np.float64]], layers: Sequence[int] | None = None
    ) -> tuple[NDArray[np.int64], ByLayer]:
        """Frames at `times` of the 10 ms grid (s, an array a clip): the clip of each (n,), and by layer, (n, D) each.

        The frames of a clip that could not be embedded are left out; those of others stand in order.
        """
        chosen = self.layers if layers is None else list(layers)
        if self.cache is not None:
            return self._kept_frames(self.cache, manifest, times, chosen)
        started = time.monotonic()
        found = encode_frames(self.encoder, manifest, layers=chosen, times=times, batch_seconds=self.batch_seconds)
        self.seconds += time.monotonic() - started
        self._tell([skip.reason for skip in found.skipped])
        values = _by_layer(found.values)
        return found.clip, {layer: torch.from_numpy(value) for layer, value in zip(chosen, values, strict=True)}

    @property
    def _what(self) -> str:
        """What the cache calls vectors of clips."""
        return f"clip-{self.pool}"

    def _clips(self, manifest: Manifest) -> list[Embedding]:
        """Vectors (D,) by layer, or why there are none, clip by clip."""
        if self.cache is None:
            found = self._encode_clips(manifest)
        else:
            keys, late = self._keep_clips(self.cache, manifest)
            known = self.cache.read(self._what, keys, self.layers)
            found = [late[row] if row in late else known[str(key)] for row, key in enumerate(keys)]
        self._tell([reason for reason in found if isinstance(reason, str)])
        return found

    def _keep_clips(self, cache: Cache, manifest: Manifest) -> tuple[list[str | None], dict[int, str]]:
        """See to it that the cache has all clips; their keys, and of rows whose file has none, why."""
        keys, late = cache.keys(manifest), dict[int, str]()
        known = cache.places(self._what, keys, self.layers)
        missing = np.array([row for row, key in enumerate(keys) if key not in known], np.int64)
        for part in _chunks(manifest.durations[missing] / CHUNK_S):
            rows = missing[part]
            clips = dict(zip(rows.tolist(), self._encode_clips(manifest.select(rows)), strict=True))
            cache.write(self._what, self.layers, {key: clip for row, clip in clips.items() if (key := keys[row])})
            late |= {row: str(clip) for row, clip in clips.items() if keys[row] is None}
        return keys, late

    def _encode_clips(self, manifest: Manifest) -> list[Embedding]:
        started = time.monotonic()
        found = encode_clips(
            self.encoder, manifest, layers=self.layers, pool=self.pool, batch_seconds=self.batch_seconds
        )
        self.seconds += time.monotonic() - started
        values = _by_layer(found.values)
        present = {row: [value[place] for value in values] for place, row in enumerate(found.rows.tolist())}
        return _or_reasons(manifest, present, found.skipped)

    def _kept_frames(
        self, cache: Cache, manifest: Manifest, times: Sequence[NDArray[np.float64]], chosen: Sequence[int]
    ) -> tuple[NDArray[np.int64], ByLayer]:
        """As `frames`. Clips are kept whole, for other points; where that is too much, the points asked for."""
        points: Sequence[NDArray[np.float64]] = [grid_times(duration) for duration in manifest.durations]
        keys, size = cache.keys(manifest), 4 * sum(self.encoder.dims[layer] for layer in self.layers)
        whole = size * sum(map(len, points)) <= FRAMES
        if not whole:
            digests = [hashlib.sha256(point.tobytes()).hexdigest() for point in times]
            points, keys = times, [key and f"{key}#{digest}" for key, digest in zip(keys, digests, strict=True)]
        present: list[int] = []
        frames: dict[int, list[NDArray[np.float32]]] = {
            layer: [np.empty((0, self.encoder.dims[layer]), np.float32)] for layer in chosen
        }
        held = np.array([size * len(point) for point in points]) / CHUNK_BYTES
        reasons = []
        for rows in _chunks(np.maximum(held, manifest.durations / CHUNK_S)):
            some = [points[row] for row in rows]
            clips = self._read_or_encode(cache, manifest.select(rows), [keys[row] for row in rows], some, chosen, size)
            for row, clip in zip(rows.tolist(), clips, strict=True):
                if isinstance(clip, str):
                    reasons.append(clip)
                    continue
                present.append(row)
                taken = np.rint(times[row] / GRID_S - 0.5).astype(int) if whole else slice(None)
                for layer, values in zip(chosen, clip, strict=True):
                    frames[layer].append(values.reshape(-1, self.encoder.dims[layer])[taken])
        self._tell(reasons)
        clip_of = np.repeat(np.array(present, np.int64), [len(times[row]) for row in present])
        return clip_of, {layer: torch.from_numpy(np.concatenate(parts)) for layer, parts in frames.items()}

    def _read_or_encode(
        self,
        cache: Cache,
        manifest: Manifest,
        keys: list[str | None],
        points: list[NDArray[np.float64]],
        chosen: Sequence[int],
        size: int,
    ) -> list[Embedding]:
        """Frames (T, D) by chosen layer, or why there are none, clip by clip; all layers are kept if there is room."""
        known = cache.read("frames", keys, chosen)
        missing = [row for row, key in enumerate(keys) if key not in known]
        if not missing:
            return [known[key] for key in keys if key]
        kept = size * sum(len(points[row]) for row in missing) <= cache.room()
        layers = self.layers if kept and set(chosen) <= set(self.layers) else list(chosen)
        some, times = manifest.select(missing), [points[row] for row in missing]
        started = time.monotonic()
        found = encode_frames(self.encoder, some, layers=layers, times=times, batch_seconds=self.batch_seconds)
        self.seconds += time.monotonic() - started
        ends = np.searchsorted(found.clip, np.arange(len(missing) + 1))
        values, skipped = _by_layer(found.values), {skip.clip_id for skip in found.skipped}
        present: dict[int, list[NDArray[np.float32]]] = {
            row: [value[ends[row] : ends[row + 1]] for value in values]
            for row, clip_id in enumerate(some.column("clip_id"))
            if clip_id not in skipped
        }
        clips = _or_reasons(some, present, found.skipped)
        if kept:
            cache.write(
                "frames", layers, {key: clip for row, clip in zip(missing, clips, strict=True) if (key := keys[row])}
            )
        wanted = [layers.index(layer) for layer in chosen]
        late = {
            row: clip if isinstance(clip, str) else [clip[place] for place in wanted]
            for row, clip in zip(missing, clips, strict=True)
        }
        return [late[row] if row in late else known[str(key)] for row, key in enumerate(keys)]

    def _tell(self, reasons: Sequence[str]) -> None:
        if reasons:
            log.warning("%s could not embed %d clips (the first: %s)", self.name, len(reasons), reasons[0])


def _or_reasons(
    manifest: Manifest, present: Mapping[int, list[NDArray[np.float32]]], skipped: Sequence[Skip]
) -> list[Embedding]:
    """Clips in order, those that are not present as the reason why."""
    reasons = {skip.clip_id: skip.reason for skip in skipped}
    return [
        present[row] if row in present else reasons[clip_id] for row, clip_id in enumerate(manifest.column("clip_id"))
    ]


def _chunks(costs: NDArray[np.float64]) -> Iterator[NDArray[np.int64]]:
    """Runs of rows whose costs add up to about 1."""
    number = np.floor(np.cumsum(costs))
    yield from (rows for rows in np.split(np.arange(len(costs)), np.flatnonzero(np.diff(number)) + 1) if len(rows))


def _by_layer(values: NDArray[np.float32] | list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Arrays (n, D), one a layer, of values (n, L, D) or of such a list."""
    return values if isinstance(values, list) else [values[:, layer] for layer in range(values.shape[1])]
