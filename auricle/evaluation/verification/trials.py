"""Which pairs of recordings are compared: drawn from a manifest by seed, all of them, or read from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from auricle.data.corpora.layout import read_lines
from auricle.data.manifest import Manifest
from auricle.errors import EvaluationError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Trials:
    """N comparisons of two clips: is it the same speaker?"""

    enrol: Rows
    """(N,) rows in the manifest."""
    test: Rows
    """(N,)."""
    target: NDArray[np.bool_]
    """(N,) True where the speaker is the same."""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def rows(self) -> Rows:
        """Rows of all clips that are compared, ascending."""
        return np.unique(np.concatenate([self.enrol, self.test]))

    def hash(self, clip_ids: Sequence[str]) -> str:
        """Sixteen hex digits over the trials, in order, by the ids of their clips."""
        digest = hashlib.sha256()
        for enrol, test, target in zip(self.enrol.tolist(), self.test.tolist(), self.target.tolist(), strict=True):
            digest.update(f"{int(target)} {clip_ids[enrol]} {clip_ids[test]}\n".encode())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        return f"{int(self.target.sum()):,} target and {int((~self.target).sum()):,} non-target trials"


def draw_trials(rows: Rows, speakers: Rows, count: int | None, seed: int, interferers: Rows | None = None) -> Trials:
    """`count` target and as many non-target trials among `rows` (n,), fewer where there are not as many; None: all.

    `speakers` (N,) are codes of all clips. `interferers` (N,), if given, are the speakers who talk over each clip:
    no two of a trial's talkers are then the same, but for the target. A pair of clips is compared at most once.
    Raises `EvaluationError` where there is no trial of a kind.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(rows)
    same, other = (_collect(_pairs(rows, speakers, interferers, target), count, rng) for target in (True, False))
    if not len(same) or not len(other):
        people = len(np.unique(speakers[rows]))
        kind, need = ("target", "two clips of a speaker") if not len(same) else ("non-target", "another speaker")
        who = f"{len(rows)} clips of {people} speakers"
        apart = " whose interferers differ" if interferers is not None else ""
        raise EvaluationError(f"verification: {who} make no {kind} trial; each needs {need}{apart}")
    if count is not None:
        fewest = min(len(same), len(other))
        same, other = same[:fewest], other[:fewest]
    pairs = np.concatenate([same, other])
    return Trials(pairs[:, 0], pairs[:, 1], np.arange(len(pairs)) < len(same))


def _pairs(rows: Rows, speakers: Rows, interferers: Rows | None, target: bool) -> Iterator[Rows]:
    """All valid pairs (k, 2) of a kind, in blocks: each clip with the s-th after it in a circle, for s = 1, 2, ...

    The clips stand in random order, so that the first pairs are a random choice in which clips take part alike often.
    Target pairs are found in a circle of each speaker's own clips.
    """
    by_speaker = rows[np.argsort(speakers[rows], kind="stable")]
    changes = np.flatnonzero(np.diff(speakers[by_speaker])) + 1
    circles = np.split(by_speaker, changes) if target else [rows]
    for shift in range(1, max(len(circle) for circle in circles) // 2 + 1):
        pairs = np.concatenate([_shifted(circle, shift) for circle in circles if shift <= len(circle) // 2])
        talkers = [speakers[pairs]] + ([] if interferers is None else [interferers[pairs]])
        valid = (talkers[0][:, 0] == talkers[0][:, 1]) == target
        if interferers is not None:
            valid &= talkers[1][:, 0] != talkers[1][:, 1]
            valid &= (talkers[0] != talkers[1][:, ::-1]).all(1)
        yield pairs[valid]


def _shifted(circle: Rows, shift: int) -> Rows:
    pairs = np.stack([circle, np.roll(circle, -shift)], 1)
    return pairs[: len(pairs) // 2] if 2 * shift == len(circle) else pairs  # half a turn meets every pair twice


def _collect(blocks: Iterator[Rows], count: int | None, rng: np.random.Generator) -> Rows:
    found, size = [np.zeros((0, 2), np.int64)], 0
    for block in blocks:
        found.append(rng.permutation(block))
        size += len(block)
        if count is not None and size >= count:
            break
    return np.concatenate(found)[:count]


def read_trials(path: Path | str, manifest: Manifest) -> Trials:
    """The trials of a text file, a line each: `label enrol test`, label 1 (or `target`) for the same speaker.

    Clips are named by their `clip_id`, or by a path: in full, or from any folder on down to it. Raises
    `EvaluationError` for a line that is none, a clip that the manifest has not (the first are named), or has twice.
    """
    labels, names = parse_trials(path)
    known: dict[str, int] = {}
    wanted = {name for pair in names for name in pair}
    for row, (clip_id, place) in enumerate(zip(manifest.column("clip_id"), manifest.column("path"), strict=True)):
        parts = Path(place).parts
        for name in {clip_id, place, *("/".join(parts[-k:]) for k in range(1, len(parts)))} & wanted:
            if name in known:
                raise EvaluationError(f"{path}: '{name}' may be several clips of the manifest; name them by clip_id")
            known[name] = row
    if missing := sorted(wanted - known.keys()):
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise EvaluationError(f"{path}: {len(missing)} of {len(wanted)} clips are not in the manifest ({first})")
    rows = np.array([[known[name] for name in pair] for pair in names], np.int64)
    return Trials(rows[:, 0], rows[:, 1], labels)


LABELS = {"1": True, "target": True, "0": False, "nontarget": False}


def parse_trials(path: Path | str) -> tuple[NDArray[np.bool_], list[tuple[str, str]]]:
    """Labels (N,) and the names (enrol, test) of a trial file. Raises `EvaluationError` for a line that is none."""
    labels, names = [], []
    for number, line in enumerate(read_lines(Path(path)), start=1):
        label, *pair = line.split()
        if label not in LABELS or len(pair) != 2:
            raise EvaluationError(f"{path}, line {number}: expected 'label enrol test' with label 1 or 0: {line[:80]}")
        labels.append(LABELS[label])
        names.append((pair[0], pair[1]))
    if all(labels) or not any(labels):
        raise EvaluationError(f"{path}: holds no trials of both kinds, same speaker (1) and different (0)")
    return np.array(labels), names
