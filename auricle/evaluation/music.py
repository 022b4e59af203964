"""Keys and several values: how music tasks are scored beyond what all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from auricle.errors import EvaluationError, unknown
from auricle.evaluation.metrics import Outcomes

Array = NDArray[np.float64]

TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SHARPS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
RELATIONS = MappingProxyType({"same": 1.0, "fifth": 0.5, "relative": 0.3, "parallel": 0.2, "other": 0.0})
"""Credit for a key in relation to the true one, as MIREX gives it: a fifth above in the same mode, the relative minor
or major, the parallel one. A fifth below gets nothing."""
KEY_METRIC = "weighted_key"


def pitch_class(key: str) -> tuple[int, bool]:
    """Semitones of a key's tonic above C, and whether it is major ("Eb minor": 3, False). Raises `EvaluationError`."""
    tonic, _, mode = key.partition(" ")
    tonic = tonic[:1].upper() + tonic[1:]
    tonic = SHARPS.get(tonic, tonic)
    if tonic not in TONICS or mode not in ("major", "minor"):
        raise EvaluationError(unknown("key", key, [f"{name} {mode}" for name in TONICS for mode in ("major", "minor")]))
    return TONICS.index(tonic), mode == "major"


def key_name(key: str) -> str:
    """The key in one spelling, sharps as flats, as in `circle_of_fifths`. Raises `EvaluationError`."""
    tonic, major = pitch_class(key)
    return f"{TONICS[tonic]} {'major' if major else 'minor'}"


def relation(reference: str, estimate: str) -> str:
    """A key of RELATIONS."""
    (here, major), (there, other) = pitch_class(reference), pitch_class(estimate)
    if major == other:
        return {0: "same", 7: "fifth"}.get((there - here) % 12, "other")
    return {0: "parallel", 9 if major else 3: "relative"}.get((there - here) % 12, "other")


def key_credit(keys: Sequence[str]) -> Array:
    """(K, K) credit for an estimated key (column) where another (row) is true."""
    return np.array([[RELATIONS[relation(true, told)] for told in keys] for true in keys])


def circle_of_fifths() -> list[str]:
    """The 24 keys, each major before its relative minor, in fifths upwards from C: near keys stand near."""
    steps = [7 * step % 12 for step in range(12)]
    return [key for step in steps for key in (f"{TONICS[step]} major", f"{TONICS[(step + 9) % 12]} minor")]


def key_confusion(reference: Sequence[str], estimate: Sequence[str]) -> NDArray[np.int64]:
    """(24, 24) counts of estimated keys (column) where another (row) is true, in the order of `circle_of_fifths`."""
    place = {pitch_class(key): number for number, key in enumerate(circle_of_fifths())}
    counts = np.zeros((24, 24), np.int64)
    codes = ([place[pitch_class(key)] for key in keys] for keys in (reference, estimate))
    np.add.at(counts, tuple(codes), 1)
    return counts


def relations(reference: Sequence[str], estimate: Sequence[str]) -> dict[str, float]:
    """Share of estimates in each relation to the true key."""
    found = [relation(*pair) for pair in zip(reference, estimate, strict=True)]
    return {name: found.count(name) / max(1, len(found)) for name in RELATIONS}


def key_chance(credit: Array, targets: NDArray[np.int64]) -> float:
    """Mean credit of the key that is best to tell always, of credit (K, K) and true codes (N,)."""
    return float(credit[targets].mean(0).max())


def each_value(outcomes: Outcomes, names: Sequence[str]) -> dict[str, Outcomes]:
    """Outcomes of several values, targets (N, K) and outputs (S, N, K), as those of each by its name."""
    assert outcomes.outputs is not None
    return {
        name: replace(outcomes, target=outcomes.target[:, number], outputs=outcomes.outputs[:, :, number])
        for number, name in enumerate(names)
    }
