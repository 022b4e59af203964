"""An encoder's frames of whole utterances, a minibatch at a time: those of 100 hours are too many for memory.

They are encoded once into a file of float16 in the cache, which is memory-mapped, so that training that was interrupted
finds them again. Many go once the result is there, few stay. Without a cache they lie beside the results, for as long
as they are needed. Where they would fill more than half of the disk's room, every minibatch is encoded anew, which
takes no room at all and an encoder's pass each epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import auricle
from auricle.data.batching import Batch, plan_buckets
from auricle.data.dataset import clip_batches
from auricle.data.manifest import Manifest
from auricle.embedding.store import write_atomic
from auricle.encoders.base import Encoder
from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.cache import FRAMES, Cache

log = logging.getLogger("auricle")

FORMAT = 1
KEPT = FRAMES
"""Most bytes of frames that stay in the cache."""
DISK = 0.5
"""Share of the disk's room that other frames may take while they are needed."""
SAMPLE = 500
"""Train utterances whose frames tell mean and standard deviation."""
LARGEST = torch.finfo(torch.float16).max


class Utterances:
    """Frames (T, L, D) of a manifest's clips, of L layers alike in width, standardised with train statistics.

    `train` are the rows of train; `output` the results' folder. Raises `EvaluationError` where no clip of a sample of
    train can be embedded.
    """

    def __init__(
        self,
        encoder: Encoder,
        manifest: Manifest,
        layers: Sequence[int],
        train: NDArray[np.int64],
        *,
        output: Path,
        cache: Cache | None = None,
        batch_seconds: float = 120.0,
    ) -> None:
        self.encoder, self.manifest, self.layers = encoder, manifest, list(layers)
        self.dim, self.batch_seconds = encoder.dims[self.layers[0]], batch_seconds
        self.skipped: dict[int, str] = {}
        """Rows that were asked for and could not be embedded, and why."""
        self.seconds = 0.0
        """Spent encoding."""
        self._mean = torch.zeros(len(self.layers), self.dim, device=encoder.device)
        self._scale = torch.ones_like(self._mean)
        self._rows = {clip_id: row for row, clip_id in enumerate(manifest.column("clip_id"))}
        self._places = np.zeros((len(manifest), 2), np.int64)  # first frame and number of frames in the file
        self._file: NDArray[np.float16] | None = None
        sample = np.sort(np.random.default_rng(0).permutation(train)[:SAMPLE])
        bytes_ = 2 * len(self.layers) * self.dim * manifest.durations.sum() * encoder.sample_rate / encoder.hop
        path = None if cache is None else self._path(cache, sample)
        self._passing = path if bytes_ > KEPT else None
        if path is None or not self._find(path):
            self._standardise(sample)
            self._store(path, output, bytes_)

    def batches(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """Rows (b,), frames (b, T, L, D) on the encoder's device and their counts (b,): `rows`, a part at a time.

        A part is at most about `batch_seconds` of padded audio; clips that cannot be embedded are in none.
        """
        for some, clips in self._encoded(rows) if self._file is None else self._mapped(self._file, rows):
            if clips:
                lengths = torch.tensor([len(clip) for clip in clips], device=clips[0].device)
                yield some, pad_sequence(clips, batch_first=True), lengths

    def release(self) -> None:
        """Remove frames that are too many to stay. To be called once all that they are needed for is written."""
        if self._passing is not None:
            for path in (self._passing.with_suffix(".json"), self._passing):
                path.unlink(missing_ok=True)

    def _mapped(
        self, file: NDArray[np.float16], rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], list[Tensor]]]:
        there = rows[self._places[rows, 1] > 0]
        for bucket in plan_buckets(self.manifest.durations[there], self.batch_seconds):
            some = there[bucket]
            frames = [np.asarray(file[start : start + count], np.float32) for start, count in self._places[some]]
            yield some, [torch.from_numpy(clip).to(self.encoder.device) for clip in frames]

    def _encoded(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], list[Tensor]]]:
        """Standardised frames of clips, those that have any; the others go to `skipped`."""
        encoder, known = self.encoder, rows[~np.isin(rows, list(self.skipped))]
        rate, equal = encoder.sample_rate, not encoder.pads_safely
        for numbers, batch in clip_batches(self.manifest, rate, self.batch_seconds, rows=known, equal_lengths=equal):
            self.skipped |= {self._rows[skip.clip_id]: skip.reason for skip in batch.skipped}
            clips = self._states(batch) if len(numbers) else []
            for row, clip in zip(numbers.tolist(), clips, strict=True):
                if not len(clip):
                    self.skipped[row] = "shorter than one frame"
                elif not clip.isfinite().all():
                    self.skipped[row] = "its frames have NaN or infinity"
            sound = [place for place, row in enumerate(numbers.tolist()) if row not in self.skipped]
            yield numbers[sound], [clips[place] for place in sound]

    @torch.no_grad()
    def _states(self, batch: Batch) -> list[Tensor]:
        """Standardised frames (T, L, D) of each clip of a batch."""
        started, encoder, training = time.monotonic(), self.encoder, self.encoder.training
        encoder.eval()
        batch = batch.to(encoder.device)
        empty = self._mean.new_zeros(0, *self._mean.shape)
        parts: list[list[Tensor]] = [[empty] for _ in range(len(batch.lengths))]
        for places, frames in encoder.chosen(batch.waveforms, batch.lengths, self.layers):
            states = (torch.stack(frames.hidden_states, 2) - self._mean) / self._scale  # (b, T, L, D)
            for place, state, count in zip(places.tolist(), states, frames.lengths.tolist(), strict=True):
                parts[place].append(state[: max(count, 0)])
        encoder.train(training)
        clips = [torch.cat(part) for part in parts]
        self.seconds += time.monotonic() - started
        return clips

    def _standardise(self, sample: NDArray[np.int64]) -> None:
        """Take mean and standard deviation of the sample's frames; constant channels get 1, so that they become 0."""
        count, first, second = 0, self._mean.double().cpu(), self._mean.double().cpu()
        for _, clips in self._encoded(sample):
            for clip in clips:
                frames = clip.double().cpu()
                count, first, second = count + len(clip), first + frames.sum(0), second + frames.square().sum(0)
        if not count:
            raise EvaluationError(
                f"{self.encoder.name or self.encoder.family} could embed none of {len(sample)} utterances of train "
                f"(the first: {next(iter(self.skipped.values()))})"
            )
        mean = first / count
        std = (second / count - mean.square()).clamp_min(0).sqrt()
        scale = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, 1.0)
        self._mean, self._scale = (x.float().to(self._mean.device) for x in (mean, scale))

    def _path(self, cache: Cache, sample: NDArray[np.int64]) -> Path:
        """Where the cache keeps these frames: by the content of the clips, the layers, and what standardises them."""
        parts = [FORMAT, cache.keys(self.manifest), self.layers, sample.tolist()]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return cache.folder / "utterances" / f"{name}.f16"

    def _store(self, path: Path | None, output: Path, bytes_: float) -> None:
        """Encode everything, into the file of the cache, or one beside the results; or nothing where neither has room.

        Raises `ConfigError` where that cannot be written.
        """
        place = output if path is None else path.parent
        try:
            place.mkdir(parents=True, exist_ok=True)
            room = bytes_ <= DISK * shutil.disk_usage(place).free
            if path is not None and (room or bytes_ <= KEPT):
                self._keep(path)
            elif room:
                with tempfile.TemporaryFile(dir=output) as file:  # has no name, and goes with the mapping
                    self._write(file)
                    file.flush()
                    self._map(file)
        except OSError as error:
            raise ConfigError(f"{place}: cannot be written ({error.strerror or error})") from None
        if self._file is None:
            name = self.encoder.name or self.encoder.family
            log.info("%s: %.0f GB of frames find no room; every minibatch is encoded", name, bytes_ / 1e9)

    def _find(self, path: Path) -> bool:
        """Take the frames that are there, if they are. Raises `EvaluationError` where they are damaged."""
        index = path.with_suffix(".json")
        if not index.exists():
            return False
        try:
            record = json.loads(index.read_text(encoding="utf-8"))
            self._places = np.array(record["places"], np.int64)
            self.skipped = {int(row): reason for row, reason in record["skipped"].items()}
            self._map(path)
        except (OSError, ValueError, KeyError) as error:
            raise EvaluationError(f"{index}: cannot be read ({error}); delete it") from None
        return True

    def _keep(self, path: Path) -> None:
        """Write the frames of all clips into the cache, and an index beside them once they are whole."""
        write_atomic(path, self._write)
        places = {"places": self._places.tolist(), "skipped": self.skipped}
        record = {"format": FORMAT, "auricle": auricle.__version__} | places
        write_atomic(path.with_suffix(".json"), lambda file: file.write(json.dumps(record).encode()))
        self._map(path)

    def _write(self, file: IO[bytes]) -> None:
        """Write the frames of all clips, one after another."""
        end = 0
        for rows, clips in self._encoded(np.arange(len(self.manifest))):
            for row, clip in zip(rows, clips, strict=True):
                file.write(clip.clamp(-LARGEST, LARGEST).half().cpu().numpy().tobytes())
                self._places[row] = end, len(clip)
                end += len(clip)

    def _map(self, file: Path | IO[bytes]) -> None:
        frames: NDArray[np.float16] = np.memmap(file, np.float16, "r").reshape(-1, len(self.layers), self.dim)
        if len(frames) != self._places[:, 1].sum():
            raise ValueError("another number of frames than its index says")
        self._file = frames
