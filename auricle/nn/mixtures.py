"""Recordings over one another, mixed on the device out of a batch of single talkers.

The batched twin of `auricle.audio.mixing`, which mixes for evaluation: the same rule of active power.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from auricle.audio.mixing import FLOOR_DB, WINDOW_S
from auricle.config import Config
from auricle.features.spectrum import as_float

EQ_POINTS = 8
"""Places in frequency at which an equaliser's gain is drawn, evenly spaced in mel; ours."""
EQ_TAIL_S = 0.1
"""Room for what an equaliser smears, so that the end of a crop does not wrap round to its beginning."""
LEAST_POWER = 1e-12
"""Mean square below which a source is not scaled up any more: -120 dB, silence in 16 bits."""


class MixConfig(Config):
    """How mixtures are drawn. Ranges are uniform; what is drawn for one mixture is independent of all others."""

    sources: int = Field(2, ge=2)
    """Recordings in a mixture: the target, and the others that interfere."""
    sir_db: tuple[float, float] = (0.0, 5.0)
    """Ratio of the target's active power to each interferer's, dB."""
    gain_db: tuple[float, float] = (-12.0, 0.0)
    """Level of a mixture's peak, dB relative to full scale. Ours."""
    eq_db: float = Field(6.0, ge=0, le=40)
    """Each source's equaliser raises and lowers by up to this many dB, smoothly over frequency; 0: none. Ours."""
    room_s: tuple[float, float] | None = None
    """Time in which a mixture's room decays by 60 dB, seconds; None: no room. Ours."""
    direct_db: tuple[float, float] = (0.0, 15.0)
    """Energy of the direct sound over that of the room's response, dB. Ours."""
    silence_db: float = Field(-50.0, ge=-90)
    """Less active power than this, dB re full scale, is silence; a mixture with such a source is not usable."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("sir_db", "gain_db", "room_s", "direct_db"):
            if (drawn := getattr(self, name)) and drawn[0] > drawn[1]:
                raise ValueError(f"{name}: {drawn[0]:g} is more than {drawn[1]:g}; give the lower end first")
        if self.gain_db[1] > 0:
            raise ValueError(f"gain_db: a peak {self.gain_db[1]:g} dB over full scale would clip; give 0 or less")
        if self.room_s and self.room_s[0] <= 0:
            raise ValueError("room_s: no room decays within 0 s; give more, or None for no room")
        return self


class Mixtures(NamedTuple):
    """M mixtures around each of I recordings, of C sources: the target first, then those that interfere."""

    mixture: Tensor
    """(I, M, S), as long as its target, zeros behind."""
    sources: Tensor
    """(I, M, C, S): what the mixture is the sum of."""
    sir_db: Tensor
    """(I, M, C - 1) ratio of the target's active power to that of each interferer."""
    interferer: Tensor
    """(I, M, C - 1) which of the I recordings each interferer is."""
    crop: Tensor
    """(I, M, C - 1) which of that recording's M crops it is."""
    usable: Tensor
    """(I, M) bool: no source is silent, and there were other recordings enough to interfere."""


@torch.no_grad()
def mix(
    waveforms: Tensor,
    lengths: Tensor,
    conditions: int,
    config: MixConfig,
    identity: Tensor | None = None,
    *,
    sample_rate: int,
) -> Mixtures:
    """Mixtures of crops (I M, S), of which the M = `conditions` of a recording stand side by side.

    `lengths` (I M,) are true samples: an interferer is cut, or repeated, to its target's. It is a crop of another
    recording; with `identity` (I,), of one that differs in it, where both are known (0 or more). All is drawn from
    torch's global generator and computed on the device, which the host does not wait for; in float64 where the
    waveforms are, else in float32.
    """
    x = as_float(waveforms)
    rows, samples = x.shape
    recordings, others = rows // conditions, config.sources - 1
    least = 10 ** (config.silence_db / 10)
    audible = active_power(x, lengths, sample_rate) >= least  # (I M,)
    chosen, found = _interferers(recordings, conditions, others, audible, identity)

    repeated = x.gather(1, torch.arange(samples, device=x.device) % lengths[:, None].clamp_min(1))
    sources = torch.cat([x.view(recordings, conditions, 1, samples), repeated[chosen]], dim=2)  # (I, M, C, S)
    sources = _coloured(sources, config, sample_rate)
    target_lengths = lengths.view(recordings, conditions, 1)
    sources = sources * (torch.arange(samples, device=x.device) < target_lengths[..., None])

    every = target_lengths.expand(-1, -1, config.sources)
    powers = active_power(sources, every, sample_rate)  # (I, M, C)
    usable = found & (powers >= least).all(-1)
    powers = powers.clamp_min(LEAST_POWER)
    sir_db = _uniform(config.sir_db, powers[..., 1:])
    gains = (powers[..., :1] / powers[..., 1:] * 10 ** (-sir_db / 10)).sqrt()
    sources = torch.cat([sources[..., :1, :], sources[..., 1:, :] * gains[..., None]], dim=2)
    peak = sources.sum(2).abs().amax(-1).clamp_min(math.sqrt(LEAST_POWER))  # (I, M)
    level = 10 ** (_uniform(config.gain_db, peak) / 20)
    sources = sources * (level / peak)[..., None, None]
    return Mixtures(sources.sum(2), sources, sir_db, chosen // conditions, chosen % conditions, usable)


def active_power(waveforms: Tensor, lengths: Tensor, sample_rate: int) -> Tensor:
    """(...) mean squares of waveforms (..., S), zeros behind `lengths` (...), over their active windows of 20 ms.

    A window is active where its power lies less than 40 dB below the loudest one's. Silence has power 0.
    """
    size = max(1, round(WINDOW_S * sample_rate))
    windows = -(-waveforms.shape[-1] // size)
    padded = F.pad(waveforms, (0, windows * size - waveforms.shape[-1]))
    sums = padded.view(*padded.shape[:-1], windows, size).square().sum(-1)  # (..., W)
    starts = size * torch.arange(windows, device=waveforms.device)
    sizes = (lengths[..., None] - starts).clamp(0, size)
    powers = sums / sizes.clamp_min(1)
    active = powers > powers.amax(-1, keepdim=True) * 10 ** (FLOOR_DB / 10)
    power: Tensor = (sums * active).sum(-1) / (sizes * active).sum(-1).clamp_min(1)
    return power


def _interferers(
    recordings: int, conditions: int, others: int, audible: Tensor, identity: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows (I, M, `others`) of crops to interfere, `audible` (I M,) ones, and whether there were such (I, M)."""
    number = torch.arange(recordings, device=audible.device)
    differs = number[:, None] != number  # (I, I)
    if identity is not None:
        differs &= (identity[:, None] != identity) | (identity < 0) | (identity[:, None] < 0)
    differs = differs.repeat_interleave(conditions, dim=1)  # (I, I M)
    free = (differs & audible)[:, None].repeat(1, conditions, 1)  # (I, M, I M)
    found = torch.ones_like(free[..., 0])
    chosen = []
    for _ in range(others):
        row = torch.rand(free.shape, device=free.device).masked_fill(~free, -1).argmax(-1)  # (I, M)
        found &= free.gather(-1, row[..., None])[..., 0]
        free &= differs[row // conditions]  # interferers differ from each other too
        chosen.append(row)
    return torch.stack(chosen, dim=-1), found


def _coloured(sources: Tensor, config: MixConfig, sample_rate: int) -> Tensor:
    """Sources (I, M, C, S), each through an equaliser of its own and from its own place in the mixture's room."""
    if not (config.eq_db or config.room_s):
        return sources
    samples = sources.shape[-1]
    decay = round(config.room_s[1] * sample_rate) if config.room_s else 0
    size = _fast_size(samples + decay + round(EQ_TAIL_S * sample_rate))
    spectrum = torch.fft.rfft(sources, size)  # (I, M, C, F)
    if config.eq_db:
        spectrum = spectrum * _equalisers(spectrum, config.eq_db, sample_rate)
    if config.room_s:
        reverberation = _reverberation(sources[..., :1], decay, config.room_s, config.direct_db, sample_rate)
        spectrum = spectrum * (1 + torch.fft.rfft(reverberation, size))
    coloured: Tensor = torch.fft.irfft(spectrum, size)
    return coloured[..., :samples]


def _equalisers(spectrum: Tensor, most_db: float, sample_rate: int) -> Tensor:
    """Zero-phase gains (..., F), a smooth curve for each spectrum (..., F), within `most_db` dB up or down."""
    hz = torch.linspace(0, sample_rate / 2, spectrum.shape[-1], dtype=torch.float64, device=spectrum.device)
    mel = (1 + hz / 700).log() / math.log(1 + sample_rate / 1400)  # 0 to 1
    place = mel * (EQ_POINTS - 1)
    left = place.long().clamp_max(EQ_POINTS - 2)
    along = (place - left).to(spectrum.real.dtype)
    points = _uniform((-most_db, most_db), spectrum.real[..., :1].expand(*spectrum.shape[:-1], EQ_POINTS))
    gains_db = points[..., left].lerp(points[..., left + 1], along.square() * (3 - 2 * along))  # no corners
    return 10 ** (gains_db / 20)


def _reverberation(
    like: Tensor, size: int, room_s: tuple[float, float], direct_db: tuple[float, float], sample_rate: int
) -> Tensor:
    """Responses (I, M, C, size) that follow a direct sound of 1: noise that decays alike for all sources of a mixture.

    `like` is (I, M, C, 1).
    """
    decay_s, ratio_db = _uniform(room_s, like[:, :, :1]), _uniform(direct_db, like[:, :, :1])  # (I, M, 1, 1)
    time_s = torch.arange(1, size + 1, dtype=like.dtype, device=like.device) / sample_rate
    noise = torch.randn(*like.shape[:-1], size, dtype=like.dtype, device=like.device)
    tail = F.normalize(noise * 10 ** (-3 * time_s / decay_s), dim=-1) * 10 ** (-ratio_db / 20)
    return F.pad(tail, (1, 0))


def _uniform(ends: tuple[float, float], like: Tensor) -> Tensor:
    """Draws between two ends, in the shape of `like`."""
    return ends[0] + (ends[1] - ends[0]) * torch.rand_like(like)


def _fast_size(least: int) -> int:
    """The next length of which every device's Fourier transform is fast: 1, 3 or 5 times a power of two."""
    power = 1 << (max(least, 8) - 1).bit_length()
    return min(size for size in (power, power * 5 // 8, power * 3 // 4) if size >= least)
