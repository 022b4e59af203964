"""Clips of one to six voices, rendered by `auricle.audio.polyphony` when first asked for: pitches of chords, keys."""

from __future__ import annotations

import csv
import hashlib
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from auricle.audio import polyphony, rendering
from auricle.audio.io import write
from auricle.audio.polyphony import LOWEST, VOICES, Voice, canon, chord
from auricle.audio.rendering import KEYS, render
from auricle.data.corpora.layout import logger
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

SAMPLE_RATE = 16_000
CHORD_S, CANON_S = 0.8, 2.1
LEVEL = 0.08
"""Root mean square of every clip, so that loudness tells neither the voices nor the label."""

Rounds = Mapping[str, int]
CHORDS: Rounds = {"train": 24, "dev": 4, "test": 8}
CANONS: Rounds = {"train": 8, "dev": 2, "test": 4}
"""Pieces of each label in each part: of chords enough to learn from which note is the lowest, were all notes known."""
CACHE = "AURICLE_CACHE"
"""Environment variable that names the folder of what is rendered once."""


@dataclass(frozen=True)
class Piece:
    """A score of six voices with its label."""

    name: str
    split: str
    label: str
    """MIDI number of the lowest note of a chord, key of a canon."""
    voices: tuple[Voice, ...]
    duration_s: float
    seed: int

    def render(self) -> NDArray[np.float32]:
        """(V, S) samples: the first voice alone, the first two, and so on, all of one loudness."""
        alone = [
            render(voice, self.duration_s, SAMPLE_RATE, seed=VOICES * self.seed + number)
            for number, voice in enumerate(self.voices)
        ]
        mixed = np.cumsum(alone, axis=0, dtype=np.float64)
        level: NDArray[np.float64] = np.sqrt(np.square(mixed).mean(1, keepdims=True))
        return (LEVEL / level * mixed).astype(np.float32)


def pieces(kind: Literal["pitch", "key"], rounds: Rounds) -> Iterator[Piece]:
    """As many pieces of every label in each part as `rounds` says; no two share a seed, hence notes and timbres."""
    labels, seed = [str(pitch) for pitch in LOWEST] if kind == "pitch" else list(KEYS), 0
    for part, count in rounds.items():
        for label in labels * count:
            if kind == "pitch":
                voices, duration = chord(seed, int(label), CHORD_S), CHORD_S
            else:
                voices, duration = canon(seed, label, CANON_S), CANON_S
            yield Piece(f"{kind}-{seed:04}", part, label, voices, duration, seed)
            seed += 1


def write_clips(folder: Path, chords: Rounds, canons: Rounds) -> None:
    """Audio of all pieces with one to six voices, and `manifest.csv`. Raises `AudioError`, or `OSError`."""
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "clip_id", "split", "piece", "voices", "pitch", "key"])
        for piece in [*pieces("pitch", chords), *pieces("key", canons)]:
            labels = [piece.label, ""] if piece.name.startswith("pitch") else ["", piece.label]
            for voices, samples in enumerate(piece.render(), start=1):
                clip = f"{piece.name}-{voices}"
                write(folder / f"{clip}.flac", samples, SAMPLE_RATE)
                rows.writerow([f"{clip}.flac", clip, piece.split, piece.name, voices, *labels])


def cache_folder() -> Path:
    """$AURICLE_CACHE, or else `auricle` in $XDG_CACHE_HOME or `~/.cache`."""
    named, base = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "auricle"


def read() -> Manifest:
    """`pitch` of chords or `key` of canons, how many `voices`, the `piece`, and `split`, which keeps pieces whole.

    The clips lie in `cache_folder()`, in a folder that appears when it is complete. Another version of the code that
    makes them has another folder, and another `rendering` in the manifest, so that results of old clips are none of new
    ones. Raises `ManifestError` where it cannot be written.
    """
    code = code_digest()
    folder = cache_folder() / f"polyphony-{code}"
    if not folder.is_dir():
        logger.info("%s: rendering the clips of polyphony, once (half a minute)", folder)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(folder)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ManifestError(f"{folder}: cannot be written ({reason}); set {CACHE} to another folder") from None
    manifest = Manifest.open(folder / "manifest.csv")
    return manifest.with_column("rendering", [code] * len(manifest))


def code_digest() -> str:
    """Twelve hex digits over the code that decides scores and samples."""
    code = "".join(map(inspect.getsource, (polyphony, rendering, sys.modules[__name__])))
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def _write_whole(folder: Path) -> None:
    """The clips, or nothing; where another process was faster, its clips, which are the same."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
        complete = Path(unfinished) / folder.name
        complete.mkdir()
        write_clips(complete, CHORDS, CANONS)
        try:
            complete.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
