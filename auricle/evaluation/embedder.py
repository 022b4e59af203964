"""An encoder's embeddings in memory, by layer: clips are encoded once for all tasks, frames chunk by chunk."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auricle.data.manifest import Manifest
from auricle.embedding.extract import encode_clips, encode_frames, encode_streams
from auricle.encoders.base import Encoder, Pooling
from auricle.errors import EvaluationError

log = logging.getLogger("auricle")

ByLayer = dict[int, Tensor]


class Embedder:
    """One encoder, with the clips it has embedded so far, by all its layers or some."""

    def __init__(
        self, encoder: Encoder, pool: Pooling, batch_seconds: float, layers: Sequence[int] | None = None
    ) -> None:
        self.encoder, self.pool, self.batch_seconds = encoder, pool, batch_seconds
        self.layers = list(range(len(encoder.dims)) if layers is None else layers)
        self.name = encoder.name or encoder.family
        self.seconds = 0.0
        """Spent encoding."""
        self._vectors: dict[tuple[str, float, float], list[NDArray[np.float32]] | None] = {}
        self._streams: dict[tuple[str, float, float], NDArray[np.float32] | None] = {}

    def clips(self, manifest: Manifest) -> tuple[NDArray[np.bool_], ByLayer]:
        """Which clips (N,) could be embedded, and their vectors by layer, (n, D) each."""
        columns = (manifest.column("path"), manifest.column("start_s"), manifest.durations.tolist())
        keys = list(zip(*columns, strict=True))
        new = [row for row, key in enumerate(keys) if key not in self._vectors]
        if new:
            started = time.monotonic()
            found = encode_clips(
                self.encoder, manifest.select(new), layers=self.layers, pool=self.pool, batch_seconds=self.batch_seconds
            )
            self.seconds += time.monotonic() - started
            self._vectors.update((keys[row], None) for row in new)
            values = _by_layer(found.values)
            for place, row in enumerate(found.rows):
                self._vectors[keys[new[row]]] = [layer[place] for layer in values]
            self._tell(found.skipped)
        vectors = [self._vectors[key] for key in keys]
        present = [vector for vector in vectors if vector is not None]
        layers = {
            layer: torch.from_numpy(np.stack([vector[place] for vector in present]))
            for place, layer in enumerate(self.layers if present else ())
        }
        return np.array([vector is not None for vector in vectors]), layers

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
            self._tell(skipped)
        streams = [self._streams[key] for key in keys]
        present = [stream for stream in streams if stream is not None]
        if not present:
            raise EvaluationError(f"{self.name} could separate none of the recordings; the log says why")
        return np.array([stream is not None for stream in streams]), np.stack(present)

    def frames(
        self, manifest: Manifest, times: Sequence[NDArray[np.float64]], layers: Sequence[int] | None = None
    ) -> tuple[NDArray[np.int64], ByLayer]:
        """Frames at `times` (seconds, an array a clip): the clip of each (n,), and frames by layer, (n, D) each.

        The frames of a clip that could not be embedded are left out; those of others stand in order.
        """
        started = time.monotonic()
        chosen = self.layers if layers is None else list(layers)
        found = encode_frames(self.encoder, manifest, layers=chosen, times=times, batch_seconds=self.batch_seconds)
        self.seconds += time.monotonic() - started
        self._tell(found.skipped)
        values = _by_layer(found.values)
        return found.clip, {layer: torch.from_numpy(value) for layer, value in zip(chosen, values, strict=True)}

    def _tell(self, skipped: Sequence[object]) -> None:
        if skipped:
            reason = getattr(skipped[0], "reason", "")
            log.warning("%s could not embed %d clips (the first: %s)", self.name, len(skipped), reason)


def _by_layer(values: NDArray[np.float32] | list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Arrays (n, D), one a layer, of values (n, L, D) or of such a list."""
    return values if isinstance(values, list) else [values[:, layer] for layer in range(values.shape[1])]
