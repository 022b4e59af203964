"""Anybody's module of the HEAR API as an encoder: `hear:MODULE` or `hear:MODULE:FILE`.

The API (Turian et al. 2022, HEAR: Holistic Evaluation of Audio Representations, NeurIPS 2021 competitions) is a Python
module with `load_model(FILE)`, `get_scene_embeddings(audio, model)` and `get_timestamp_embeddings(audio, model)`, for
audio (B, S) in [-1, 1] at the model's own rate; timestamps are the centres of frames in milliseconds.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, hash_tensors
from auricle.encoders.check import FAULTS
from auricle.encoders.external import import_named
from auricle.errors import AuricleError, ConfigError

FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
RATES = (16_000, 22_050, 32_000, 44_100, 48_000)
"""Those the API allows, Hz: the ones in which its tasks are kept."""
LONGEST_HOP_MS = 50.0
"""The API's advice."""
SCENE, TIMESTAMP = 0, 1
"""Layers."""


def load_hear(place: str, name: str) -> Encoder:
    """The encoder behind `MODULE` or `MODULE:FILE`; modules in the working directory are found too.

    Raises `ConfigError`, one line, for a module that cannot be imported, lacks a function or an attribute, or whose
    embeddings are not what the API promises.
    """
    module_name, _, file = place.partition(":")
    module = import_named(module_name, name)
    for function in FUNCTIONS:
        if not callable(getattr(module, function, None)):
            raise ConfigError(f"{name}: module {module_name} has no function {function}, which the HEAR API asks for")
    try:
        model = module.load_model(file) if file else module.load_model()
    except AuricleError:
        raise
    except (OSError, *FAULTS) as error:
        raise ConfigError(f"{name}: load_model failed ({_line(error)})") from None
    return HearEncoder(module, model, file, name)


class HearEncoder(Encoder):
    """A module of the HEAR API behind the encoder's contract.

    Layer `scene` is a clip's scene embedding, the same at every frame, so that its mean is the embedding itself; asked
    for alone it comes as one frame, and no timestamps are computed. The last layer, `timestamp`, is what the module
    gives by frame. Hop and offset are read from the timestamps of four seconds of faint noise. A clip whose own
    timestamps lie elsewhere (some modules stretch them over the clip) has its frames taken from the nearest ones.
    Clips are fed at equal lengths, because the API knows no other.
    """

    family: ClassVar[str] = "hear"
    pads_safely = False

    def __init__(self, module: ModuleType, model: Any, file: str, name: str) -> None:
        super().__init__()
        self.name, self.config = name, Config()  # the module's own options say it all
        self.module, self.model, self.file = module, model, file
        self.sample_rate = self._size("sample_rate")
        self.sizes = (self._size("scene_embedding_size"), self._size("timestamp_embedding_size"))
        self.outputs = MappingProxyType({"scene": SCENE, "timestamp": TIMESTAMP})
        self.eval()
        with torch.inference_mode():
            noise = self._noise(4.0)
            try:
                states, times = self.timestamps(noise)
                scenes = self.scenes(noise)
            except AuricleError:
                raise
            except FAULTS as error:
                raise ConfigError(f"{name}: embedding 4 s of noise failed ({_line(error)})") from None
            self._place(times[0], noise.shape[1])
            self.dims = (scenes.shape[1], states.shape[2])
            self.shortest = self._shortest()

    def forward(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Frames:
        """Frames of waveforms (B, S), all of one length S; none for clips shorter than the module takes."""
        order = range(2) if layers is None else list(layers)
        if waveforms.shape[1] < self.shortest:
            return Frames([waveforms.new_zeros(len(waveforms), 0, self.dims[i]) for i in order], 0 * lengths)
        found: dict[int, Tensor] = {}
        frames = 1
        if TIMESTAMP in order:
            states, times = self.timestamps(waveforms)
            found[TIMESTAMP] = self._aligned(states, times[0])
            frames = found[TIMESTAMP].shape[1]
        if SCENE in order:
            found[SCENE] = self.scenes(waveforms)[:, None].expand(-1, frames, -1)
        return Frames([found[layer] for layer in order], torch.full_like(lengths, frames))

    def scenes(self, waveforms: Tensor) -> Tensor:
        """Scene embeddings (B, D) of waveforms (B, S). Raises `ConfigError` for anything else."""
        scenes = self.module.get_scene_embeddings(waveforms, self.model)
        return self._expected(scenes, "get_scene_embeddings", (len(waveforms), "D")).float()

    def timestamps(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Timestamp embeddings (B, T, D) and their centres (B, T) in ms. Raises `ConfigError` for anything else."""
        out = self.module.get_timestamp_embeddings(waveforms, self.model)
        if not isinstance(out, tuple | list) or len(out) != 2:
            raise ConfigError(f"{self.name}: get_timestamp_embeddings must return embeddings and timestamps")
        states = self._expected(out[0], "get_timestamp_embeddings", (len(waveforms), "T", "D"))
        times = self._expected(out[1], "get_timestamp_embeddings", tuple(states.shape[:2]), "timestamps")
        return states.float(), times.double()

    def fingerprint(self) -> str:
        """The model's own `fingerprint`, or sixteen hex digits over the module's source, the file and the weights.

        Raises `ConfigError` when there is no source to read.
        """
        if isinstance(own := getattr(self.model, "fingerprint", None), str):
            return own
        try:
            digest = hashlib.sha256(inspect.getsource(self.module).encode())
        except (OSError, TypeError):
            raise ConfigError(
                f"{self.name}: its source cannot be read; give the model a string attribute `fingerprint`"
            ) from None
        if Path(self.file).is_file():
            with Path(self.file).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        hash_tensors(digest, self.model.state_dict() if isinstance(self.model, nn.Module) else {})
        return digest.hexdigest()[:16]

    def _size(self, attribute: str) -> int:
        value = getattr(self.model, attribute, None)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.name}: its model needs a positive integer `{attribute}`, found {value!r}")
        return value

    def _expected(self, value: Any, function: str, shape: tuple[int | str, ...], what: str = "embeddings") -> Tensor:
        """`value`, if it is a tensor of that shape, whose letters stand for any number."""
        fits = isinstance(value, Tensor) and value.dim() == len(shape)
        if not fits or any(n != m for n, m in zip(value.shape, shape, strict=True) if isinstance(m, int)):
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            wanted = ", ".join(map(str, shape))
            raise ConfigError(f"{self.name}: {function} must give {what} as a torch tensor ({wanted}), found {found}")
        return torch.as_tensor(value)

    def _place(self, times: Tensor, samples: int) -> None:
        """Hop and offset, from the timestamps (T,) of a clip of so many samples."""
        if len(times) < 2:
            raise ConfigError(f"{self.name}: {len(times)} timestamps for 4 s of audio; a hop of 50 ms or less is asked")
        self._refuse_irregular(times)
        per_ms = self.sample_rate / 1000
        if float(times[-1]) < 0.01 * samples / per_ms:
            raise ConfigError(f"{self.name}: the last timestamp of 4 s is {float(times[-1]):g}; give milliseconds")
        self.hop = max(1, round(float(times[-1] - times[0]) / (len(times) - 1) * per_ms))
        self.offset = round(float(times[0]) * per_ms, 3)  # the API's float32 has no more digits

    def _refuse_irregular(self, times: Tensor) -> None:
        """Raise `ConfigError` unless timestamps (T,) ascend by equal steps, to a tenth of one."""
        steps = times.diff()
        usual = float(steps.median()) if len(steps) else 1.0
        odd = ((steps - usual).abs() > max(0.1 * usual, 0.2)).nonzero()
        if usual <= 0 or len(odd):
            where = int(odd[0, 0]) if len(odd) else 0
            raise ConfigError(
                f"{self.name}: timestamps must ascend by a regular hop; number {where + 1} follows the one before it "
                f"by {float(steps[where]):g} ms, others by {usual:g} ms"
            )

    def _aligned(self, states: Tensor, times: Tensor) -> Tensor:
        """The frames of states (B, T, D) at `offset`, `offset + hop` and so on, each the nearest in time (T,), ms."""
        self._refuse_irregular(times)
        centres = (times * self.sample_rate / 1000 - self.offset) / self.hop  # in frames of ours
        count = max(1, round(float(centres[-1])) + 1) if len(times) else 0
        if count == len(times) and float((centres - torch.arange(count, device=times.device)).abs().max()) < 0.5:
            return states
        wanted = torch.arange(count, dtype=times.dtype, device=times.device)
        right = torch.searchsorted(centres.contiguous(), wanted).clamp(1, max(1, len(centres) - 1))
        left = right - 1
        right = right.clamp_max(len(centres) - 1)
        nearest = torch.where(wanted - centres[left] <= (centres[right] - wanted).abs(), left, right)
        return states[:, nearest]

    def _shortest(self) -> int:
        """Samples of the shortest clip it takes, of at most four seconds; found by halving."""
        low, high = 0, 4 * self.sample_rate
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._takes(middle) else (middle, high)
        return high

    def _takes(self, samples: int) -> bool:
        noise = self._noise(samples / self.sample_rate)
        try:
            return bool(self.timestamps(noise)[0].shape[1]) and bool(self.scenes(noise).isfinite().all())
        except FAULTS:  # each says in its own way that a clip is too short
            return False

    def _noise(self, seconds: float) -> Tensor:
        noise = torch.randn(1, round(seconds * self.sample_rate), generator=torch.Generator().manual_seed(0))
        return 0.01 * noise.clamp(-10, 10).to(self.device)


def check_api(encoder: HearEncoder) -> str:
    """What the HEAR API asks beyond an encoder's promises. Raises `ConfigError` with what to mend."""
    if encoder.sample_rate not in RATES:
        raise ConfigError(f"sample_rate is {encoder.sample_rate}; HEAR keeps its tasks at {', '.join(map(str, RATES))}")
    for what, said, found in zip(("scene", "timestamp"), encoder.sizes, encoder.dims, strict=True):
        if said != found:
            raise ConfigError(
                f"{what}_embedding_size says {said}, the embeddings have {found} channels; make it {found}"
            )
    with torch.inference_mode():
        noise = encoder._noise(2.0).repeat(3, 1)
        raw = encoder.module.get_timestamp_embeddings(noise, encoder.model)
        scene = encoder.module.get_scene_embeddings(noise, encoder.model)
        times = encoder.timestamps(noise)[1]
    for what, value in (("get_timestamp_embeddings", raw[0]), ("get_scene_embeddings", scene)):
        if value.dtype != torch.float32:
            raise ConfigError(f"{what} gives {value.dtype}; HEAR asks for torch.float32")
    if not torch.equal(times, times[:1].expand_as(times)):
        raise ConfigError("timestamps differ between clips of one length in a batch; make the rows equal")
    if float(times.min()) < 0 or float(times.max()) > 2000:
        raise ConfigError(
            f"timestamps of 2 s reach from {float(times.min()):g} to {float(times.max()):g} ms; give centres"
        )
    hop = 1000 * encoder.hop / encoder.sample_rate
    advice = "" if hop <= LONGEST_HOP_MS else f" (HEAR advises {LONGEST_HOP_MS:g} ms or less)"
    return f"scene and timestamp embeddings as asked, a timestamp every {hop:g} ms{advice}"


def _line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"
