"""Audio files: probe a header, read a crop at any rate, write.

Everything libsndfile decodes is read (wav, flac, ogg, opus, mp3, aiff, ...), seeking to what is asked for. Positions
are integer samples of the whole recording at the rate asked for: a crop equals that slice of the whole.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from auricle.errors import AudioError

if TYPE_CHECKING:
    from torch import Tensor

Waveform: TypeAlias = NDArray[np.float32]
Audio: TypeAlias = "str | Path | NDArray[Any] | Tensor | Mapping[str, Any]"
"""A path, samples (S,) or (channels, S), or a row `{"array", "sampling_rate"}` of a Hugging Face dataset."""

UNSUPPORTED = frozenset({".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".mka", ".raw"})
"""Extensions of audio that libsndfile does not decode (or, for .raw, cannot know how to)."""
EXTENSIONS = UNSUPPORTED | {
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".nist", ".voc"),
}
"""Extensions by which a folder's audio files are found; those unsupported are refused one by one, not overlooked."""

LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000  # Hz; anything else is a damaged header
LOUDEST = 10.0  # 20 dB over full scale: floats beyond were never scaled to [-1, 1]
MARGIN = 256  # samples at the lower rate; soxr's HQ filter has died away (below 1e-6) after 128
BLOCK = (
    1 << 18
)  # samples of all channels decoded at a time, so that memory grows with the crop and not with rate or channels


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says."""

    num_samples: int
    """Samples of each channel, at `sample_rate`."""
    sample_rate: int
    """Hz."""
    channels: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate


def resampled_length(num_samples: int, rate: int, new_rate: int) -> int:
    """Samples that `num_samples` at `rate` Hz become at `new_rate` Hz: the nearest integer, half up (soxr's rule)."""
    return (2 * num_samples * new_rate + rate) // (2 * rate)


def probe(path: str | Path) -> AudioInfo:
    """Length, rate and channels from the header alone.

    Raises `AudioError` if it is missing, no regular file, empty, not audio, or in a format that is not supported.
    """
    with _open(path) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def read(path: str | Path, sample_rate: int | None = None, start: int = 0, length: int | None = None) -> Waveform:
    """Samples `[start, start + length)` of a recording, mixed to mono by the mean, at `sample_rate` Hz: (S,) float32.

    `start` and `length` count samples at `sample_rate` (default: the file's own); without `length`, to the end. The
    result is shorter than `length` where the recording ends first, as it may before its header says: headers lie.
    Raises `AudioError` as `probe` does, and if the decoder reports damage, if samples are NaN, infinite or far
    outside [-1, 1], or if nothing lies at `start` (an empty waveform would fail later, far from its cause).
    """
    if start < 0 or (length is not None and length < 1):
        raise AudioError(f"{path}: cannot read {length} samples from sample {start}")
    with _open(path) as file:
        rate, new_rate = file.samplerate, sample_rate or file.samplerate
        # Instant k * step of the file is instant k * new_step of the result: begin and end there, a margin outside.
        common = math.gcd(rate, new_rate)
        step, new_step = rate // common, new_rate // common
        margin = 0 if rate == new_rate else math.ceil(MARGIN * max(1.0, new_rate / rate))
        first = max(0, start - margin) // new_step
        end = file.frames
        if length is not None:
            end = min(end, math.ceil((start + length + margin) / new_step) * step)
        waveform = _joined(_resample(_decode(file, path, first * step, end), rate, new_rate))
    waveform = waveform[start - first * new_step :]
    return _checked(waveform if length is None else waveform[:length], f"{path}: from sample {start}")


def as_waveform(audio: Audio, sample_rate: int | None, target_rate: int) -> Waveform:
    """Any kind of audio as (S,) float32 mono at `target_rate` Hz.

    Samples (S,) or (channels, S), from NumPy or torch, need their `sample_rate` in Hz; integers up to 32 bit are scaled
    to [-1, 1]. Paths and dataset rows carry their own rate. Raises `AudioError`.
    """
    if isinstance(audio, str | Path):
        return read(audio, target_rate)
    if isinstance(audio, Mapping):
        if not {"array", "sampling_rate"} <= audio.keys():
            raise AudioError(f"audio: a row needs 'array' and 'sampling_rate'; it has {', '.join(map(str, audio))}")
        return as_waveform(np.asarray(audio["array"]), int(audio["sampling_rate"]), target_rate)
    if sample_rate is None:
        raise AudioError("audio: samples need their sample_rate in Hz")
    for rate in (sample_rate, target_rate):
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise AudioError(f"audio: a sample rate of {rate} Hz is outside {LOWEST_RATE} to {HIGHEST_RATE}")
    samples = _mono(_as_array(audio))
    return _checked(_joined(_resample(iter([samples]), sample_rate, target_rate)), "audio")


def write(path: str | Path, waveform: NDArray[Any] | Tensor, sample_rate: int) -> None:
    """Write samples (S,) or (channels, S) in [-1, 1], in the format the extension names (wav and flac at 16 bit).

    Raises `AudioError` if the place or the format will not do.
    """
    samples = _scaled(_as_array(waveform))
    try:
        soundfile.write(path, samples.T, sample_rate)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        raise AudioError(f"{path}: cannot be written ({error})") from None


@contextmanager
def _open(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """A file open for reading whose header makes sense."""
    suffix = Path(path).suffix.lower()
    if suffix in UNSUPPORTED:
        raise AudioError(f"{path}: {suffix} audio is not supported; convert it to wav or flac (ffmpeg -i IN OUT.flac)")
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise AudioError(f"{path}: is a {'folder' if stat.S_ISDIR(status.st_mode) else 'special file'}, not audio")
    if status.st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes)")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, UnicodeError) as error:
        if not os.access(path, os.R_OK):
            raise AudioError(f"{path}: cannot be opened (Permission denied)") from None
        raise AudioError(f"{path}: is not audio, or damaged from the start ({_reason(error)})") from None
    with file:
        if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
            raise AudioError(f"{path}: its header gives a sample rate of {file.samplerate} Hz")
        if file.frames < 1:
            raise AudioError(f"{path}: holds no samples")
        yield file


def _decode(file: soundfile.SoundFile, path: str | Path, begin: int, end: int) -> Iterator[Waveform]:
    """Mono blocks of the file's samples [begin, end), fewer where the file ends early."""
    if begin >= file.frames:
        return
    # libsndfile's seeks in Ogg land beside the place asked for (Vorbis) or find another decoder state (Opus), so Ogg
    # is decoded from its start, and what comes before `begin` thrown away.
    place = 0 if file.format == "OGG" else begin
    try:
        at = file.seek(place)
        while place < end:
            if at != place:  # damaged mp3 can throw the decoder back, to give the same audio twice
                raise AudioError(f"{path}: is damaged near {place / file.samplerate:.1f} s (decoder lost its place)")
            block = file.read(min(max(1, BLOCK // file.channels), end - place), dtype="float32", always_2d=True)
            if not len(block):
                return
            if place + len(block) > begin:
                yield _mean(block[max(0, begin - place) :], axis=1)
            place, at = place + len(block), file.tell()
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: is damaged near {place / file.samplerate:.1f} s ({_reason(error)})") from None


def _resample(blocks: Iterator[Waveform], rate: int, new_rate: int) -> Iterator[Waveform]:
    """The blocks of a signal at another rate; at least one (empty) block."""
    if rate == new_rate:
        yield np.zeros(0, np.float32)
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, new_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _joined(blocks: Iterator[Waveform]) -> Waveform:
    """The blocks one after another. The array grows in place: hours of audio are never held twice."""
    waveform = np.zeros(0, np.float32)
    for block in blocks:
        waveform.resize(len(waveform) + len(block), refcheck=False)
        waveform[len(waveform) - len(block) :] = block
    return waveform


def _checked(waveform: Waveform, where: str) -> Waveform:
    if not len(waveform):
        raise AudioError(f"{where}: there are no samples")
    low, high = float(waveform.min()), float(waveform.max())
    if not math.isfinite(high - low):  # a NaN anywhere is both
        raise AudioError(f"{where}: there are NaN or infinite samples")
    if (peak := max(-low, high)) > LOUDEST:
        raise AudioError(f"{where}: samples reach {peak:.4g}; floating-point audio is expected in [-1, 1]")
    return waveform


def _as_array(audio: NDArray[Any] | Tensor) -> NDArray[Any]:
    """A NumPy view of samples (S,) or (channels, S)."""
    if not isinstance(audio, np.ndarray):
        if not hasattr(audio, "detach"):  # a tensor, told without importing torch
            raise AudioError(f"audio: expected a path, an array, a tensor or a row, found {type(audio).__name__}")
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    if audio.ndim not in (1, 2) or (audio.ndim == 2 and audio.shape[0] > audio.shape[1]):
        raise AudioError(f"audio: expected samples of shape (S,) or (channels, S), found {audio.shape}")
    return audio


def _scaled(samples: NDArray[Any]) -> Waveform:
    """Floats as they are, integers over their full scale: float32."""
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore"):  # becomes inf, which is refused
            return samples.astype(np.float32)
    if kind not in "iu" or bits > 32:  # 64-bit integers have no usual full scale
        raise AudioError(f"audio: samples of type {samples.dtype} are not supported; use float32 or int16")
    full_scale = 2.0 ** (bits - 1)
    return ((samples - (full_scale if kind == "u" else 0.0)) / full_scale).astype(np.float32)


def _mono(samples: NDArray[Any]) -> Waveform:
    scaled = _scaled(samples)
    return scaled if scaled.ndim == 1 else _mean(scaled, axis=0)


def _mean(channels: Waveform, axis: int) -> Waveform:
    with np.errstate(all="ignore"):  # infinite ones are refused later, in one line
        mixed: Waveform = channels.mean(axis=axis)
        return mixed


def _reason(error: Exception) -> str:
    """libsndfile's word on a failure, without the path; its words on unknown data in an .mp3 would mislead."""
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return "Format not recognised" if text.startswith("File does not exist") else text.rstrip(".")
