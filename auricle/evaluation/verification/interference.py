"""Trials where others talk: each clip gets a second talker by seed, and is mixed with them at a ratio of powers.

A clip's interferer is the same at every ratio and in every trial, so that each mixture is made and embedded once, and
conditions differ in nothing but what they are named for.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import soundfile

from auricle.audio.io import read
from auricle.audio.mixing import mix
from auricle.data.dataset import samples
from auricle.data.manifest import Manifest
from auricle.errors import AudioError, EvaluationError
from auricle.evaluation.verification.trials import Rows

log = logging.getLogger("auricle")


def draw_interferers(rows: Rows, speakers: Rows, seed: int) -> Rows:
    """For each clip (N,) the row of the clip that talks over it: one of `rows` (n,), another speaker's; -1 elsewhere.

    `speakers` (N,) are codes. Every speaker interferes alike often, whatever their number of clips. Raises
    `EvaluationError` for fewer than four speakers: so many talk in a trial of two mixtures.
    """
    rng = np.random.default_rng([seed, 1])  # apart from what draws the trials
    people = np.unique(speakers[rows])
    if len(people) < 4:
        raise EvaluationError(
            f"verification: {len(people)} speakers are too few for trials of mixtures, in which four different ones "
            "talk; ask for the task verification-clean alone"
        )
    clips = {int(person): rows[speakers[rows] == person] for person in people}
    chosen = np.full(len(speakers), -1)
    for row in rows.tolist():
        person = int(rng.choice(people[people != speakers[row]]))
        chosen[row] = rng.choice(clips[person])
    return chosen


def write_mixtures(
    manifest: Manifest, rows: Rows, interferers: Rows, sir_db: float, sample_rate: int, folder: Path
) -> tuple[Manifest, Rows]:
    """Mix the clips of `rows` with their `interferers` (N,) at `sample_rate` Hz, as 32-bit au files in `folder`, alike
    byte for byte whenever they are made (wav files of floats hold the time).

    Returns their manifest and, for each of its clips, the row of the clip it was made of. A clip that cannot be mixed,
    being unreadable or silent, has no mixture, which is warned of. Raises `EvaluationError` where none can.
    """
    lengths = samples(manifest.durations, sample_rate)
    paths, starts = manifest.column("path"), [round(start * sample_rate) for start in manifest.column("start_s")]
    made, places, failed = [], [], []
    for row in rows.tolist():
        try:
            one, other = (
                read(paths[clip], sample_rate, starts[clip], int(lengths[clip]))
                for clip in (row, int(interferers[row]))
            )
            mixture = mix(one.astype(np.float64), other.astype(np.float64), sir_db, sample_rate).mixture
        except AudioError as error:
            failed.append(f"{paths[row]} with {paths[int(interferers[row])]}: {error}")
            continue
        places.append(str(folder / f"{row}.au"))
        soundfile.write(places[-1], mixture, sample_rate, subtype="FLOAT")
        made.append(row)
    if failed:
        log.warning("%d of %d mixtures could not be made (the first: %s)", len(failed), len(rows), failed[0])
    if not made:
        raise EvaluationError(f"verification: no mixture could be made ({failed[0]})")
    return Manifest.from_columns({"path": places}, folder), np.array(made, np.int64)
