"""What a verification run compares: clips, speakers, trials, and what is set apart to choose and to normalise on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from auricle.data.corpora import read_corpus
from auricle.data.manifest import Manifest, Sources
from auricle.data.splits import split
from auricle.errors import EvaluationError, ManifestError, unknown
from auricle.evaluation.verification.interference import draw_interferers
from auricle.evaluation.verification.trials import Rows, Trials, draw_trials, read_trials
from auricle.evaluation.verification.voxceleb import LISTS, read_voxceleb


@dataclass(frozen=True)
class Setup:
    """The same for every encoder."""

    manifest: Manifest
    """N clips whose speaker is known."""
    column: str
    """Names the speakers."""
    speakers: Rows
    """(N,) codes of speakers."""
    trials: Trials
    interferers: Rows | None
    """(N,) row of the clip that talks over each, -1 for those in no trial; None where no trial is of mixtures."""
    dev: Rows
    """Rows of other speakers' clips, to choose a layer on."""
    cohort: Rows
    """Rows of clips of speakers in no trial, to normalise scores and means on."""
    name: str
    """Of the data, or of the trial list."""
    rule: str
    hash: str
    seed: int


def prepare_trials(
    data: Sources | None,
    where: Mapping[str, str],
    *,
    target: str = "speaker",
    trials: Path | str | None = None,
    count: int | None = 10_000,
    seed: int = 0,
    mixtures: bool = False,
    name: str = "verification",
) -> Setup:
    """Trials of clips whose speaker the column `target` names: of `data`, or of bundled recordings with values `where`.

    The trials are those of a file or, named in `LISTS`, of VoxCeleb1, `data` then being its folder. Otherwise they are
    drawn, `count` of each kind (None: all pairs), from the speakers on test: by the manifest's column `split` where
    that keeps speakers apart, and else all but a fifth of them. With `mixtures`, every clip also gets an interferer.

    Raises `ManifestError` and `EvaluationError` where data, column or list do not allow it.
    """
    if trials in LISTS:
        if not isinstance(data, str | Path) and not (isinstance(data, list | tuple) and len(data) == 1):
            raise EvaluationError(f"{trials}: needs one folder as data, in which VoxCeleb1 and its lists lie")
        manifest, given = read_voxceleb(str(data if isinstance(data, str | Path) else data[0]), str(trials))
        target = "speaker"
    else:
        manifest, given = _labelled(data, where, target), None
    speakers = np.unique([str(value) for value in manifest.column(target)], return_inverse=True)[1]
    if trials is not None:
        if mixtures:
            raise EvaluationError(
                f"{trials}: trials of mixtures are drawn, not listed; ask for verification-clean alone"
            )
        given = read_trials(trials, manifest) if given is None else given
        wrong = (speakers[given.enrol] == speakers[given.test]) != given.target
        if wrong.any():
            raise EvaluationError(
                f"{trials}: {int(wrong.sum())} of {len(wrong)} labels contradict column '{target}' (the first: trial "
                f"{int(wrong.argmax()) + 1})"
            )
        others = np.flatnonzero(~np.isin(speakers, speakers[given.rows]))
        interferers, dev, cohort, rule = None, others, others, f"list {Path(trials).name}"
        name = Path(trials).stem if trials not in LISTS else str(trials)
    else:
        parts = split(manifest, group=target, seed=seed)
        dev, test, cohort = parts.rows("dev"), parts.rows("test"), np.flatnonzero(parts.assignment != "test")
        rule = parts.rule
        if rule.startswith("made"):
            test, cohort = np.flatnonzero(parts.assignment != "dev"), dev
            rule += ", train and test joined, since verification trains nothing"
        interferers = draw_interferers(test, speakers, seed) if mixtures else None
        voices = None if interferers is None else np.where(interferers < 0, -1, speakers[interferers])
        given = draw_trials(test, speakers, count, seed, voices)
    ids = manifest.column("clip_id")
    digest = given.hash(ids)
    if interferers is not None:
        mixed = "".join(f"{ids[row]} {ids[interferers[row]]}\n" for row in given.rows.tolist())
        digest = hashlib.sha256(f"{digest}{mixed}".encode()).hexdigest()[:16]
    drawn = f", seed {seed}" if trials is None else ""
    rule = f"{given} of {len(np.unique(speakers[given.rows]))} speakers{drawn}; {rule}"
    return Setup(manifest, target, speakers, given, interferers, dev, cohort, name, rule, digest, seed)


def _labelled(data: Sources | None, where: Mapping[str, str], target: str) -> Manifest:
    """The clips whose speaker is known."""
    manifest = read_corpus("bundled") if data is None else Manifest.open(data)
    manifest.warn_of_skipped()
    if target not in manifest.table.column_names:
        raise ManifestError(
            f"{unknown('column', target, manifest.labels)}; verification needs one of speakers (target)"
        )
    keep = np.array([value not in (None, "") for value in manifest.column(target)])
    for column, wanted in where.items() if data is None else ():
        keep &= np.array([value == wanted for value in manifest.column(column)])
    if not keep.any():
        raise ManifestError(f"column '{target}': no clip has a value in it")
    return manifest.select(keep)
