"""From manifest rows to batches of waveforms: endless to train on, fixed for the held-out loss, whole to embed."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset

from auricle.audio.io import Waveform, read
from auricle.data.batching import (
    Batch,
    DataConfig,
    DataNeeds,
    Skip,
    crop_positions,
    plan_buckets,
    plan_epoch,
    plan_groups,
)
from auricle.data.manifest import Manifest
from auricle.errors import AudioError, ManifestError, unknown

MAX_HELD_OUT = 200
"""Clips; more would cost time at every measurement and tell little more."""
AHEAD = 2
"""Batches read while the one before them is used."""


@dataclass(frozen=True)
class Crop:
    """What a worker needs to read a part of a clip; positions in samples at the model's rate."""

    row: int
    clip_id: str
    path: str
    clip_start: int
    """The clip's first sample in its file."""
    clip_length: int
    start: int
    """The crop's first sample in its clip."""
    length: int
    labels: tuple[int, ...]
    """Codes of the columns that the method needs."""


@dataclass(frozen=True)
class Plan:
    """A batch to be read."""

    crops: list[Crop]
    epoch: int = 0
    seed: int = 0


def training_batches(
    manifest: Manifest,
    needs: DataNeeds,
    config: DataConfig,
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Random crops without end; of the batches of all epochs, one after another, each rank gets every `world`-th.

    `start` is the number of batches this rank has already taken. Clips shorter than `needs.min_s` are left out.
    Order and crops depend on (seed, epoch, clip) alone, not on the number of workers.
    Raises `ManifestError` when no clip is long enough, or one has no value in a column that the method needs.
    """
    durations = manifest.durations
    usable = long_enough(manifest, needs)
    if not len(usable):
        remedy = "ask for fewer or shorter crops" if needs.disjoint else "lower objective.min_s"
        raise ManifestError(
            f"none of the {len(manifest)} clips is as long as the {needs.min_s:g} s that this method needs; "
            f"{remedy}, or give it longer recordings"
        )
    lengths = samples(durations, needs.sample_rate)
    codes = label_codes(manifest, needs)
    groups = None if needs.group_by is None else codes[usable, needs.columns.index(needs.group_by)]

    def plans() -> Iterator[Plan]:
        next_batch, taken = start * world + rank, 0  # counted over all epochs
        for epoch in count():
            batches = plan_epoch(durations[usable], needs, config.batch_seconds, seed, epoch, groups)
            positions = crop_positions(len(manifest), needs.crops, seed, epoch)
            for index in range(next_batch - taken, len(batches), world):
                yield Plan(_crops(manifest, usable[batches[index]], lengths, needs, positions, codes), epoch, seed)
                next_batch += world
            taken += len(batches)

    return (batch for _, batch in _load(plans(), needs, config.workers))


def fixed_batches(manifest: Manifest, needs: DataNeeds, config: DataConfig) -> Iterator[Batch]:
    """One pass over the central crops of all clips long enough, longest first: the same batches every time.

    Several crops of a clip are spread evenly over it.
    """
    lengths = samples(manifest.durations, needs.sample_rate)
    usable = long_enough(manifest, needs)
    spread = np.broadcast_to((np.arange(needs.crops) + 0.5) / needs.crops, (len(manifest), needs.crops))
    codes = label_codes(manifest, needs)
    groups = None if needs.group_by is None else codes[usable, needs.columns.index(needs.group_by)]
    seconds = needs.crops * np.minimum(manifest.durations[usable], needs.crop_s)
    buckets = plan_groups(seconds, config.batch_seconds, groups, least=needs.min_clips)
    plans = (Plan(_crops(manifest, usable[rows], lengths, needs, spread, codes)) for rows in buckets)
    return (batch for _, batch in _load(plans, needs, config.workers))


def clip_batches(
    manifest: Manifest,
    sample_rate: int,
    batch_seconds: float,
    *,
    rows: ArrayLike | None = None,
    equal_lengths: bool = False,
    workers: int = 0,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """One pass over whole clips (all, or these `rows`), longest first, with the row number of each row of the batch.

    Clips that cannot be read have no row; they stand in `Batch.skipped`. With `equal_lengths`, a batch holds clips of
    one length in samples, for encoders that padding would disturb.
    """
    chosen = np.arange(len(manifest)) if rows is None else np.asarray(rows, np.int64)
    needs = DataNeeds(sample_rate, crop_s=np.inf)
    lengths = samples(manifest.durations, sample_rate)
    groups = [chosen]
    if equal_lengths:
        chosen = chosen[np.argsort(-lengths[chosen], kind="stable")]
        groups = np.split(chosen, np.flatnonzero(np.diff(lengths[chosen])) + 1)
    buckets = (
        group[bucket] for group in groups for bucket in plan_buckets(lengths[group] / sample_rate, batch_seconds)
    )
    plans = (Plan(_crops(manifest, bucket, lengths, needs)) for bucket in buckets)
    for numbers, batch in _load(plans, needs, workers):
        yield from _by_length(numbers, batch) if equal_lengths else [(numbers, batch)]


def row_batches(
    manifest: Manifest,
    needs: DataNeeds,
    batches: Iterable[tuple[NDArray[np.int64], NDArray[np.float64]]],
    *,
    workers: int = 0,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """A batch of each of the given row numbers (B,), cropped at positions (B,) from 0 (a clip's start) to 1 (its end).

    Beside each batch the row numbers of its rows; clips that cannot be read have none.
    """
    lengths = samples(manifest.durations, needs.sample_rate)

    def plans() -> Iterator[Plan]:
        for rows, places in batches:
            positions = np.empty((len(manifest), 1))
            positions[rows, 0] = places
            yield Plan(_crops(manifest, rows, lengths, needs, positions))

    return _load(plans(), needs, workers)


def hold_out(manifest: Manifest, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers to train on, and at least one and at most 200 to measure the held-out loss on, in order.

    Whole recordings are held out, never parts of one that is trained on; of a recording with more clips than are
    wanted, the rest goes unused. With a fraction of 0, or a single recording, nothing is held out.
    """
    recordings = manifest.table.column("path").combine_chunks().dictionary_encode().indices.to_numpy()
    sizes = np.bincount(recordings)
    if fraction == 0 or len(sizes) == 1:
        return np.arange(len(manifest)), np.arange(0)
    wanted = min(MAX_HELD_OUT, max(1, round(fraction * len(manifest))))
    order = np.random.default_rng(seed).permutation(len(sizes))
    chosen = order[: np.searchsorted(np.cumsum(sizes[order]), wanted) + 1][: len(sizes) - 1]
    held_out = np.isin(recordings, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)[:wanted]


def long_enough(manifest: Manifest, needs: DataNeeds) -> NDArray[np.int64]:
    """Row numbers of the clips that a method can use, by the manifest's durations."""
    return np.flatnonzero(manifest.durations >= needs.min_s)


def label_codes(manifest: Manifest, needs: DataNeeds) -> NDArray[np.int64]:
    """(N, C) codes of the C columns needed, numbered as their values appear in the manifest; -1 where unknown.

    Raises `ManifestError` for a column of intervals, and, unless columns are optional, for one that is missing or has
    gaps.
    """
    codes = np.full((len(manifest), len(needs.columns)), -1)
    for i, name in enumerate(needs.columns):
        if name in (*manifest.labels, "path"):
            column = manifest.table.column(name).combine_chunks()
            if pa.types.is_nested(column.type):
                raise ManifestError(f"column '{name}': holds {column.type}, where one value a clip is needed")
            codes[:, i] = column.dictionary_encode().indices.fill_null(-1).to_numpy()
        elif not needs.columns_optional:
            raise ManifestError(f"{unknown('column', name, manifest.labels)} (this run's objective asks for it)")
        gaps = int((codes[:, i] < 0).sum())
        if gaps and not needs.columns_optional:
            raise ManifestError(
                f"column '{name}': {gaps} of {len(manifest)} clips have no value in it; "
                "give each one, or change this run's objective, which asks for it"
            )
    return codes


def samples(seconds: NDArray[np.float64], sample_rate: int) -> NDArray[np.int64]:
    """Lengths in samples of clips (N,) in seconds: the nearest integer, half up, as resampling gives; at least 1."""
    return np.maximum(1, np.floor(seconds * sample_rate + 0.5 + 1e-6)).astype(np.int64)


def _crops(
    manifest: Manifest,
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    needs: DataNeeds,
    positions: NDArray[np.float64] | None = None,
    codes: NDArray[np.int64] | None = None,
) -> list[Crop]:
    """Crops of these rows at `positions` (N, `needs.crops`) between 0 and 1; `lengths` (N,) are the clips' samples.

    Disjoint crops lie in order; the gaps before, between and behind them share what the clip has over. `codes` (N, C)
    are the clips' labels.
    """
    crops = []
    for row in rows.tolist():
        clip_id, path, start_s = (manifest.table.column(name)[row].as_py() for name in ("clip_id", "path", "start_s"))
        clip_length = int(lengths[row])
        length = int(min(clip_length, max(1.0, needs.crop_s * needs.sample_rate)))
        spacing = needs.spacing if needs.disjoint else 0
        slack = clip_length - length - (needs.crops - 1) * spacing
        places = np.zeros(1) if positions is None else np.sort(positions[row]) if needs.disjoint else positions[row]
        clip_start = round(start_s * needs.sample_rate)
        labels = () if codes is None else tuple(codes[row].tolist())
        for i, place in enumerate(places.tolist()):
            start = min(slack, int(place * (slack + 1))) // needs.align * needs.align + i * spacing
            crops.append(Crop(row, clip_id, path, clip_start, clip_length, start, length, labels))
    return crops


class _Reader(Dataset[tuple[NDArray[np.int64], Batch]]):
    """Reads planned batches; holds nothing, so that it costs a worker nothing."""

    def __init__(self, needs: DataNeeds):
        self.needs = needs

    def __getitem__(self, plan: Plan) -> tuple[NDArray[np.int64], Batch]:
        """Row numbers (B,) of the clips that could be read, and their batch."""
        crops, waveforms, skipped = [], [], []
        for first in range(0, len(plan.crops), self.needs.crops):
            clip = plan.crops[first : first + self.needs.crops]
            try:
                waveforms += [self._read(crop) for crop in clip]
                crops += clip
            except AudioError as error:
                path = clip[0].path
                skipped.append(Skip(clip[0].clip_id, path, str(error).removeprefix(f"{path}: ")))
        lengths = np.array([len(waveform) for waveform in waveforms], np.int64)
        if len(waveforms) == 1:  # as a long clip is: it is not copied
            padded = waveforms.pop()[None]
        else:
            padded = np.zeros((len(waveforms), max(lengths, default=0)), np.float32)
            for row, waveform in zip(padded, waveforms, strict=True):
                row[: len(waveform)] = waveform
        batch = Batch(
            waveforms=torch.from_numpy(padded),
            lengths=torch.from_numpy(lengths),
            clip_ids=[crop.clip_id for crop in crops],
            starts=torch.tensor([crop.start for crop in crops], dtype=torch.int64),
            labels={
                name: torch.tensor([crop.labels[i] for crop in crops], dtype=torch.int64)
                for i, name in enumerate(self.needs.columns)
            },
            epoch=plan.epoch,
            seed=plan.seed,
            skipped=skipped,
        )
        return np.array([crop.row for crop in crops], np.int64), batch

    def _read(self, crop: Crop) -> Waveform:
        """The crop, unless its file ends too early or its clip is digital silence throughout. Raises `AudioError`."""
        rate = self.needs.sample_rate
        waveform = read(crop.path, rate, crop.clip_start + crop.start, crop.length)
        if len(waveform) < min(crop.length, self.needs.min_s * rate):
            raise AudioError(f"ends after {len(waveform) / rate:.3g} of {crop.length / rate:.3g} s")
        if _silent(waveform) and (
            crop.length == crop.clip_length or _silent(read(crop.path, rate, crop.clip_start, crop.clip_length))
        ):
            raise AudioError("is silent")
        return waveform


def _silent(waveform: Waveform) -> bool:
    """Whether no sample reaches half a step of 16 bits."""
    return bool(max(-waveform.min(), waveform.max()) < 2.0**-16)


def _load(plans: Iterable[Plan], needs: DataNeeds, workers: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """The planned batches in order, read ahead of time by `workers` processes, or by a thread of this one.

    Decoding leaves Python's lock to others, so a thread is enough while the reading is faster than the model.
    """
    source = iter(
        DataLoader(
            _Reader(needs),
            sampler=plans,  # any iterable will do: the plans themselves travel, not row numbers
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # its own, so that the global one, which seeds training, is not drawn from
        )
    )

    def read_next() -> tuple[NDArray[np.int64], Batch] | None:
        item = next(source, None)
        if item is None or not torch.cuda.is_available():
            return item
        numbers, batch = item
        return numbers, replace(batch, waveforms=batch.waveforms.pin_memory(), lengths=batch.lengths.pin_memory())

    pool = ThreadPoolExecutor(1, "auricle-reader")
    try:
        coming = deque(pool.submit(read_next) for _ in range(AHEAD))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(read_next))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def _as_it_is(item: Any) -> Any:
    return item


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _by_length(numbers: NDArray[np.int64], batch: Batch) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """The batch in parts of one true length each: a file may end before its header says. Skips go with the first."""
    lengths = sorted(set(batch.lengths.tolist()), reverse=True)
    if len(lengths) <= 1:
        yield numbers, batch
        return
    skipped = batch.skipped
    for length in lengths:
        rows = torch.nonzero(batch.lengths == length)[:, 0]
        part = replace(
            batch,
            waveforms=batch.waveforms[rows, :length],
            lengths=batch.lengths[rows],
            clip_ids=[batch.clip_ids[row] for row in rows],
            starts=batch.starts[rows],
            labels={name: codes[rows] for name, codes in batch.labels.items()},
            skipped=skipped,
        )
        yield numbers[rows.numpy()], part
        skipped = []
