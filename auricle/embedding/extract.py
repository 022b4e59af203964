"""Recordings to embeddings: into a folder of Parquet, resumable (`embed`), or into memory, for probes (`encode_*`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

import auricle
from auricle.data.batching import Skip
from auricle.data.dataset import clip_batches
from auricle.data.manifest import Manifest
from auricle.embedding import store
from auricle.encoders.base import (
    Encoder,
    Layers,
    Pooling,
    Stretch,
    choose_layers,
    is_single,
    join_stretches,
    pool_stretches,
)
from auricle.errors import ConfigError, TooManySkipsError
from auricle.methods.base import TrainConfig
from auricle.training.optim import autocast_dtype

Level = Literal["clip", "frames"]
Stored = Literal["float32", "float16"]
Precision = Literal["auto", "bf16", "fp32"]
Clips: TypeAlias = Tensor | Sequence[np.ndarray]
"""An array for each clip."""
Values: TypeAlias = "np.ndarray | list[np.ndarray]"
Take: TypeAlias = Callable[[Iterator[Stretch], int], tuple[Sequence[Clips], Tensor]]
"""What to take of the stretches of B clips: for each layer a tensor a clip, on the CPU, and frame counts (B,)."""

GRID_S = 0.01
"""Step of the grid on which frame tasks are trained and scored, seconds."""

SHARD_BYTES = 2**27
"""A shard ends before its embeddings outgrow this, however many clips it may hold: it is built in memory."""


@dataclass(frozen=True)
class Summary:
    """What a folder of embeddings holds, and what this start did."""

    output: str
    clips: int
    """Clips embedded, now or before."""
    skipped: int
    """Clips that could not be used; `_auricle/skipped.jsonl` has their reasons."""
    audio_s: float
    """Seconds of audio embedded, now or before."""
    shards: int
    reused: int
    """Shards found done."""
    wall_s: float
    """Seconds this start took."""

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped (reasons in {store.SKIPPED})" if self.skipped else ""
        reused = f", {self.reused} of {self.shards} shards were there" if self.reused else ""
        audio = f"{self.clips} clips, {self.audio_s / 3600:.3f} h of audio"
        return f"{self.output}: {audio} in {self.wall_s:.1f} s{skipped}{reused}"


@dataclass(frozen=True)
class ClipEmbeddings:
    """Vectors of clips: `rows` (n,), ascending, are their row numbers in the manifest, `values` (n, L, D) float32.

    Where layers differ in width, `values` is a list of L arrays (n, D).
    """

    rows: np.ndarray
    values: Values
    skipped: list[Skip] = field(default_factory=list)


@dataclass(frozen=True)
class FrameEmbeddings:
    """Frames at points in time, clip after clip: `values` (N, L, D), or a list of L arrays (N, D) of several widths.

    `clip` (N,) is each point's row number in the manifest, `time` (N,) its seconds from the clip's start.
    """

    values: Values
    clip: np.ndarray
    time: np.ndarray
    skipped: list[Skip] = field(default_factory=list)


def embed(
    encoder: Encoder,
    sources: Manifest | Sequence[Path | str] | Path | str,
    output: Path | str,
    *,
    level: Level = "clip",
    layers: Layers = "last",
    pool: Pooling = "mean",
    dtype: Stored = "float32",
    precision: Precision = "fp32",
    batch_seconds: float = 120.0,
    max_skipped: float = 1.0,
    workers: int = 0,
    shard_clips: int = 1024,
    device: torch.device | str | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Summary:
    """Embed recordings (a manifest, or folders and manifest files) into Parquet shards under `output`: see `store`.

    Shards are fixed by the manifest and the options; a second start computes those that are missing, and ends with
    the bytes an uninterrupted one would have written (same machine, versions and thread count). `pool` counts at clip
    level only. `precision` is the network's (`bf16`: under autocast; `auto`: bf16 where the hardware multiplies it
    natively), `dtype` that of what is stored; layers are pooled in float32. `batch_seconds` is the padded audio in a
    batch, `shard_clips` the most clips in a shard; `device` defaults to where the encoder is. With `overwrite`,
    embeddings found in `output` are deleted first.

    Raises `ConfigError` when `output` holds other things, is being written by another process or cannot be written;
    `TooManySkipsError`, after finishing, when more than the share `max_skipped` of all clips could not be used.
    """
    started, output = time.monotonic(), Path(output)
    choose_layers(layers, encoder.dims, encoder.outputs)  # a mistake here is told before a large corpus is opened
    if not isinstance(sources, Manifest):
        sources = Manifest.open([sources] if isinstance(sources, str | Path) else list(sources))
    job = _Job(encoder if device is None else encoder.to(device), sources, layers, batch_seconds, precision, workers)
    take = partial(pool_stretches, how=pool) if level == "clip" else join_stretches
    columns = _columns(job, level, pool)
    frames = sources.durations * encoder.sample_rate / encoder.hop if level == "frames" else np.ones(len(sources))
    shards = _shards(frames * sum(columns.values()) * np.dtype(dtype).itemsize, shard_clips)
    plan = {
        "format": store.FORMAT,
        "auricle": auricle.__version__,
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint(),
        "manifest": sources.content_hash(),
        "level": level,
        "layers": layers if isinstance(layers, str) else list(layers),
        "pool": pool if level == "clip" else None,
        "dtype": dtype,
        "precision": "fp32" if job.autocast is None else "bf16",
        "batch_seconds": batch_seconds,
        "shard_clips": shard_clips,
        "shards": len(shards),
        "hop_s": encoder.hop / encoder.sample_rate,
        "offset_s": encoder.offset / encoder.sample_rate,
    }
    kinds = {name: store.embedding_type(dim, dtype, level) for name, dim in columns.items()}
    with store.exclusive(output):
        schema = store.schema(sources.table.schema, kinds, store.begin(output, plan, overwrite))
        records = [store.read_record(output, index) for index in range(len(shards))]
        todo = [index for index, record in enumerate(records) if record is None]
        clips_todo = sum(len(shards[index]) for index in todo)
        with tqdm(
            total=len(sources), initial=len(sources) - clips_todo, unit="clip", desc="embed", disable=not progress
        ) as bar:
            for index in todo:
                table, audio_s, skipped = _embed_shard(job, take, dtype, shards[index], schema, bar)
                records[index] = store.write_shard(output, index, table, audio_s, skipped)
        done = [record for record in records if record is not None]
        skips = [asdict(skip) for skip in sources.skipped] + [skip for record in done for skip in record["skipped"]]
        store.write_lines(output / store.SKIPPED, skips)
    clips = sum(record["rows"] for record in done)
    audio_s = sum(record["audio_s"] for record in done)
    reused = len(shards) - len(todo)
    if len(skips) > max_skipped * (clips + len(skips)):
        raise TooManySkipsError(
            f"{output / store.SKIPPED}: {len(skips)} of {clips + len(skips)} clips could not be used, "
            f"max_skipped = {max_skipped:g} allows fewer; the others are embedded"
        )
    return Summary(str(output), clips, len(skips), audio_s, len(shards), reused, time.monotonic() - started)


def encode_clips(
    encoder: Encoder,
    manifest: Manifest,
    *,
    layers: Layers = "all",
    pool: Pooling = "mean",
    batch_seconds: float = 120.0,
    precision: Precision = "fp32",
    workers: int = 0,
    device: torch.device | str | None = None,
) -> ClipEmbeddings:
    """Every clip's vector (D, or 2 D for `meanstd`) of each layer, in memory; arguments as in `embed`."""
    job = _Job(encoder if device is None else encoder.to(device), manifest, layers, batch_seconds, precision, workers)
    values, views = _allocate(len(manifest), [dim * (2 if pool == "meanstd" else 1) for dim in job.dims], "float32")
    found = np.zeros(len(manifest), dtype=bool)
    skipped: list[Skip] = []
    for row, vectors in job.clips(partial(pool_stretches, how=pool), "float32", skipped):
        for view, vector in zip(views, vectors, strict=True):
            view[row] = vector
        found[row] = True
    return ClipEmbeddings(np.flatnonzero(found), _keep(values, found), skipped)


def encode_frames(
    encoder: Encoder,
    manifest: Manifest,
    *,
    layers: Layers = "all",
    times: Sequence[np.ndarray] | None = None,
    dtype: Stored = "float32",
    batch_seconds: float = 120.0,
    precision: Precision = "fp32",
    workers: int = 0,
    device: torch.device | str | None = None,
) -> FrameEmbeddings:
    """Each clip's frames at `times` (an array of seconds a clip; `grid_times` of its duration), in memory.

    A time takes the frame whose centre is nearest, whatever the encoder's hop. Other arguments as in `embed`.
    """
    job = _Job(encoder if device is None else encoder.to(device), manifest, layers, batch_seconds, precision, workers)
    points = [grid_times(duration) for duration in manifest.durations] if times is None else times
    ends = np.cumsum([0, *(len(point) for point in points)])
    values, views = _allocate(int(ends[-1]), job.dims, dtype)
    found = np.zeros(int(ends[-1]), dtype=bool)
    skipped: list[Skip] = []
    for row, vectors in job.clips(join_stretches, dtype, skipped):
        place = slice(ends[row], ends[row + 1])
        for view, vector in zip(views, vectors, strict=True):
            view[place] = vector[nearest_frames(points[row], encoder, len(vector))]
        found[place] = True
    clip = np.repeat(np.arange(len(manifest)), np.diff(ends))
    time_s = np.concatenate([np.empty(0), *points])
    return FrameEmbeddings(_keep(values, found), clip[found], time_s[found], skipped)


def encode_streams(
    encoder: Encoder, manifest: Manifest, *, batch_seconds: float = 120.0
) -> tuple[dict[int, np.ndarray], list[Skip]]:
    """The streams (C, E) of each clip by row number, of an encoder that has them; and the clips that have none."""
    job, skipped = _Job(encoder, manifest, "last", batch_seconds, "fp32", 0), list[Skip]()
    found: dict[int, np.ndarray] = {}
    rate, equal, training = encoder.sample_rate, not encoder.pads_safely, encoder.training
    encoder.eval()
    try:
        for rows, batch in clip_batches(manifest, rate, batch_seconds, equal_lengths=equal):
            skipped += batch.skipped
            if len(rows):
                batch = batch.to(encoder.device)
                with torch.inference_mode():
                    streams = encoder.streams(batch.waveforms, batch.lengths).float().cpu().numpy()
                found.update(zip(rows.tolist(), streams, strict=True))
    finally:
        encoder.train(training)
    sick = [row for row, stream in found.items() if not np.isfinite(stream).all()]
    skipped += [job._skip(row, "its streams have NaN or infinity") for row in sick]
    return {row: stream for row, stream in found.items() if row not in sick}, skipped


def grid_times(duration_s: float) -> np.ndarray:
    """The 10 ms grid of a clip, seconds: the middles (i + ½) · 10 ms of its whole and begun cells before its end."""
    count = int(np.ceil(np.round(duration_s / GRID_S - 0.5, 6)))  # rounded: 0.105 / 0.01 exceeds 10.5
    return (np.arange(max(count, 0)) + 0.5) * GRID_S


def nearest_frames(times: np.ndarray, encoder: Encoder, count: int) -> np.ndarray:
    """Index of the frame, of `count`, whose centre `(offset + k hop) / sample_rate` is nearest to each time (s)."""
    nearest = np.floor((times * encoder.sample_rate - encoder.offset) / encoder.hop + 0.5)
    return nearest.astype(np.int64).clip(0, count - 1)


class _Job:
    """An encoder at work on a manifest's clips."""

    def __init__(
        self,
        encoder: Encoder,
        manifest: Manifest,
        layers: Layers,
        batch_seconds: float,
        precision: Precision,
        workers: int,
    ) -> None:
        self.encoder, self.manifest, self.layers = encoder, manifest, layers
        self.batch_seconds, self.workers = batch_seconds, workers
        self.autocast = autocast_dtype(TrainConfig(precision=precision), encoder.device)
        self.chosen = choose_layers(layers, encoder.dims, encoder.outputs)
        self.dims = [encoder.dims[layer] for layer in self.chosen]
        """Widths of what comes out."""
        if layers == "mean":
            self.dims = self.dims[:1]

    def clips(
        self, take: Take, dtype: Stored, skipped: list[Skip], rows: np.ndarray | None = None
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Row number and what `take` takes of each layer, clip by clip in any order; the unusable go to `skipped`."""
        for numbers, layers, counts in self._batches(take, skipped, rows):
            for place, row in enumerate(numbers.tolist()):
                if not counts[place]:
                    skipped.append(self._skip(row, "shorter than one frame"))
                    continue
                with np.errstate(over="ignore"):
                    vectors = [np.asarray(layer[place]).astype(dtype, copy=False) for layer in layers]
                if all(np.isfinite(vector).all() for vector in vectors):
                    yield row, vectors
                else:
                    skipped.append(self._skip(row, f"its embedding has NaN, infinity or values beyond {dtype}"))

    def _batches(
        self, take: Take, skipped: list[Skip], rows: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, Sequence[Clips], Tensor]]:
        """Row numbers (B,), what `take` takes of each layer, and frame counts (B,)."""
        encoder, device = self.encoder, self.encoder.device
        rate, equal, workers = encoder.sample_rate, not encoder.pads_safely, self.workers
        batches = clip_batches(self.manifest, rate, self.batch_seconds, rows=rows, equal_lengths=equal, workers=workers)
        training = encoder.training
        encoder.eval()
        try:
            for numbers, batch in batches:
                skipped += batch.skipped
                if len(numbers) == 0:
                    continue
                batch = batch.to(device)
                autocast = torch.autocast(device.type, self.autocast, enabled=self.autocast is not None)
                with torch.inference_mode(), autocast:
                    taken = take(encoder.chosen(batch.waveforms, batch.lengths, self.layers), len(numbers))
                yield numbers, *taken
        finally:
            encoder.train(training)

    def _skip(self, row: int, reason: str) -> Skip:
        clip = self.manifest.row(int(row))
        return Skip(clip["clip_id"], clip["path"], reason)


def _columns(job: _Job, level: Level, pool: Pooling) -> dict[str, int]:
    """Names and widths of the embedding columns. Raises `ConfigError` when a name would be there twice."""
    if is_single(job.layers):
        names = ["embedding" if level == "clip" else "frames"]
    else:
        names = [f"layer_{layer}" for layer in job.chosen]
    columns = [*job.manifest.table.column_names, *names]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ConfigError(f"column '{twice[0]}' would be written twice; rename the manifest's, name each layer once")
    width = 2 if level == "clip" and pool == "meanstd" else 1
    return {name: width * dim for name, dim in zip(names, job.dims, strict=True)}


def _shards(row_bytes: np.ndarray, shard_clips: int) -> list[range]:
    """Runs of rows, each of at most `shard_clips` clips and, but for a single larger clip, `SHARD_BYTES`."""
    if shard_clips < 1:
        raise ConfigError(f"shard_clips: must be at least 1, got {shard_clips}")
    starts: list[int] = []
    size = 0.0
    for row, more in enumerate(row_bytes.tolist()):
        if not starts or row - starts[-1] == shard_clips or size + more > SHARD_BYTES:
            starts.append(row)
            size = 0.0
        size += more
    return [range(start, end) for start, end in pairwise([*starts, len(row_bytes)])]


def _embed_shard(
    job: _Job, take: Take, dtype: Stored, shard: range, schema: pa.Schema, bar: tqdm[Any]
) -> tuple[pa.Table, float, list[Skip]]:
    """The shard's table, in the manifest's order, with its seconds of audio and its skips."""
    clips: dict[int, list[np.ndarray]] = {}
    skipped: list[Skip] = []
    for row, vectors in job.clips(take, dtype, skipped, np.arange(shard.start, shard.stop)):
        clips[row] = vectors
        bar.update()
    bar.update(len(shard) - len(clips))
    rows = sorted(clips)
    kept = job.manifest.table.slice(shard.start, len(shard)).take(pa.array(np.array(rows, np.int64) - shard.start))
    names = [name for name in schema.names if name not in kept.column_names]
    embeddings = [
        store.embedding_column([clips[row][place] for row in rows], schema.field(name).type)
        for place, name in enumerate(names)
    ]
    table = pa.table([*kept.columns, *embeddings], schema=schema)
    return table, float(job.manifest.durations[rows].sum()), skipped


def _allocate(count: int, dims: list[int], dtype: Stored) -> tuple[Values, list[np.ndarray]]:
    """Room for `count` vectors of each layer, and each layer's view (count, D) of it."""
    if len(set(dims)) > 1:
        several = [np.empty((count, dim), dtype) for dim in dims]
        return several, several
    values = np.empty((count, len(dims), dims[0]), dtype)
    return values, [values[:, layer] for layer in range(len(dims))]


def _keep(values: Values, found: np.ndarray) -> Values:
    if found.all():
        return values
    return [layer[found] for layer in values] if isinstance(values, list) else values[found]
