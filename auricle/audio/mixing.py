"""Two talkers at once: a recording over another at an exact ratio of their powers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from auricle.errors import AudioError

WINDOW_S = 0.02
FLOOR_DB = -40.0
"""A window of 20 ms is active where its power lies less than this below that of the recording's loudest window."""

Samples = NDArray[np.floating[Any]]


class Mixed(NamedTuple):
    """A mixture and what it is the sum of, (S,) each, in the target's precision."""

    mixture: Samples
    target: Samples
    interferer: Samples


def active_power(waveform: Samples, sample_rate: int) -> float:
    """Mean square of a recording (S,) over its active windows, so that pauses do not count; 0 for silence."""
    _, sizes, sums = _active_windows(waveform, sample_rate)
    return float(sums.sum() / sizes.sum()) if len(sums) else 0.0


def onset(waveform: Samples, sample_rate: int) -> int:
    """Samples of a recording (S,) before its first active window; 0 for silence."""
    starts, _, _ = _active_windows(waveform, sample_rate)
    return int(starts[0]) if len(starts) else 0


def _active_windows(
    waveform: Samples, sample_rate: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """First sample, size and summed squares of each active window, (W,) each."""
    starts = np.arange(0, len(waveform), max(1, round(WINDOW_S * sample_rate)))
    sums = np.add.reduceat(np.square(waveform, dtype=np.float64), starts)
    sizes = np.diff(np.append(starts, len(waveform)))
    powers = sums / sizes
    active = powers > powers.max(initial=0.0) * 10 ** (FLOOR_DB / 10)
    return starts[active], sizes[active], sums[active]


def mix(target: Samples, interferer: Samples, sir_db: float, sample_rate: int) -> Mixed:
    """`target` (S,) with `interferer` (any length) over it, at a signal-to-interference ratio of `sir_db` dB.

    The ratio is that of active powers. The interferer is cut, or repeated, to the target's length; where the mixture
    would leave [-1, 1], all three are scaled down together. Raises `AudioError` where either is silent.
    """
    interferer = np.resize(interferer, len(target)).astype(target.dtype)
    powers = [active_power(waveform, sample_rate) for waveform in (target, interferer)]
    for who, power in zip(("target", "interferer"), powers, strict=True):
        if power == 0:
            raise AudioError(f"mixing: the {who} is silent, so no ratio to it exists")
    interferer = interferer * target.dtype.type(np.sqrt(powers[0] / powers[1] / 10 ** (sir_db / 10)))
    peak = max(1.0, float(np.abs(target + interferer).max()))
    target, interferer = target / target.dtype.type(peak), interferer / target.dtype.type(peak)
    return Mixed(target + interferer, target, interferer)
