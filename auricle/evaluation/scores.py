"""From answers on test to a `Result`: the score with its interval, chance, what is told beside it, and leaks."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml

from auricle.encoders import BASELINES
from auricle.evaluation.answers import Answers, Fold, of_seed, outcomes
from auricle.evaluation.beats import BEAT_METRICS, chance_score
from auricle.evaluation.metrics import LOWER_IS_BETTER, Score, bootstrap, chance, scorer
from auricle.evaluation.music import KEY_METRIC, each_value, key_chance, key_credit
from auricle.evaluation.prepare import UNLABELLED, Prepared
from auricle.evaluation.probes.heads import Trial
from auricle.evaluation.results import Choice, Leaks, Measure, Result
from auricle.evaluation.tasks.mir13 import MusicTask


def oracle(ready: Prepared, folds: list[Fold]) -> dict[str, Measure]:
    """The best test score of any one row of the grid, where the protocol tells them: selection on test, for papers."""
    answers: dict[Trial, list[Answers]] = {}
    for fold in folds:
        for trial, found in fold.others:
            answers.setdefault(replace(trial, dev=()), []).append(found)
    metric, best = ready.task.scored_by, None
    for tests in answers.values():
        told = outcomes(ready, tests)
        score, one = scorer(metric, told), np.ones((1, told.units))
        value = float(score(one)[0])
        if len(tests) == len(folds) and (best is None or (value < best[0]) == (metric in LOWER_IS_BETTER)):
            best = value, *bootstrap(score, told.units)
    return {} if best is None else {"oracle": Measure.of(*best)}


def beside(ready: Prepared, folds: list[Fold]) -> dict[str, Measure]:
    """Mean average precision beside areas under ROC curves, R² of each of several values, other metrics of beats and of
    events, and of several folds the mean of their scores.
    """
    told, found = outcomes(ready, [fold.test for fold in folds]), dict[str, Score]()
    if isinstance(ready.task, MusicTask) and ready.task.scored_by == "roc_auc":
        found["map"] = scorer("map", told)
    if isinstance(ready.task, MusicTask) and ready.task.also:
        found = {f"r2 {name}": scorer("r2", one) for name, one in each_value(told, ready.classes).items()}
    if len(folds) > 1 and not ready.task.personal:
        found["mean over folds"] = _mean_over_folds(ready, folds)
    for name in folds[0].beside:
        if all(name in fold.beside for fold in folds):  # of some folds alone it is no score of all clips
            found[name] = scorer(ready.task.scored_by, outcomes(ready, [fold.beside[name] for fold in folds]))
    one = np.ones((1, told.units))
    return {name: Measure.of(float(score(one)[0]), *bootstrap(score, told.units)) for name, score in found.items()}


def _mean_over_folds(ready: Prepared, folds: list[Fold]) -> Score:
    """The mean of the folds' own scores, which is what HEAR tells, instead of one score over the clips of all."""
    units = [np.unique([ready.units[row] for row in fold.test.rows]) for fold in folds]
    every, metric = np.unique(np.concatenate(units)), ready.task.scored_by
    scores = [
        (scorer(metric, outcomes(ready, [fold.test])), np.searchsorted(every, one))
        for fold, one in zip(folds, units, strict=True)
    ]
    return lambda weights: np.nanmean([score(weights[:, columns]) for score, columns in scores], axis=0)


def scored(ready: Prepared, tests: list[Answers], **others: Any) -> Result:
    """The result of answers on test, one a fold, with its interval and what else is told by the task.

    `others` are the fields that depend on the encoder and on how it was probed.
    """
    record, units = ready.task, len({ready.units[row] for test in tests for row in test.rows})
    score, one = scorer(record.scored_by, outcomes(ready, tests)), np.ones((1, units))
    low, high = bootstrap(score, units)
    most = max(len(test.correct) for test in tests)
    seeds = [outcomes(ready, [of_seed(test, seed) for test in tests]) for seed in range(most)]
    first, paths = ready.assignments[0], ready.manifest.column("path")
    leaked = leaks(others["encoder"], (paths[row] for test in tests for row in test.rows), ready.home)
    return Result(
        task=record.name,
        protocol=record.protocol,
        version=record.version,
        kind=record.kind,
        level=record.level,
        target=record.target,
        classes=ready.classes,
        metric=record.scored_by,
        score=float(score(one)[0]),
        low=low,
        high=high,
        seeds=[float(scorer(record.scored_by, seed)(one)[0]) for seed in seeds],
        chance=_chance(ready, tests),
        split=ready.rule,
        split_hash=ready.split_hash,
        unit=ready.unit,
        units=units,
        n_train=int((first == "train").sum()),
        n_dev=int((first == "dev").sum()),
        n_test=sum(len(test.rows) for test in tests),
        transductive=leaked == "test",
        leaks=leaked,
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        **others,
    )


def choice_of(trial: Trial) -> Choice:
    """A row of the grid as results hold it."""
    dev = float(np.mean(trial.dev))
    dev_score = dev if math.isfinite(dev) else None
    return Choice(head=trial.head, layer=trial.layer, lr=trial.lr, dev=dev_score, detail=trial.detail)


def _chance(ready: Prepared, tests: list[Answers]) -> float:
    targets = ready.targets[np.concatenate([test.rows for test in tests])]
    if ready.task.scored_by in BEAT_METRICS:
        return chance_score(ready.task.scored_by, targets.tolist())
    if ready.task.level == "frame":
        targets = np.concatenate(list(targets))
        targets = targets[targets != UNLABELLED]
    if ready.task.scored_by == KEY_METRIC:
        return key_chance(key_credit(ready.classes), targets)
    return chance(ready.task.scored_by, targets)


def leaks(encoder: str, paths: Iterable[str], home: str = "") -> Leaks:
    """What of these recordings, or of others in the folder `home`, the encoder of that name was trained on.

    Runs of ours tell by the manifest in their folder, and by the encoder that they began with; plain features and
    untrained twins have heard nothing.
    """
    known, whole = _heard_by(encoder)
    if not known.isdisjoint(paths):
        return "test"
    if home and any(path.startswith(os.path.join(home, "")) for path in known):
        return "corpus"
    return "" if whole else "unknown"


def _heard_by(encoder: str) -> tuple[set[str], bool]:
    """Paths that the encoder of that name was trained on, and whether they are all."""
    if encoder in BASELINES or encoder.startswith("untrained:"):
        return set(), True
    folders = [Path(encoder), *Path(encoder).parents[:2]] if encoder and Path(encoder).exists() else []
    for folder in folders:
        if (folder / "manifest.parquet").is_file():
            known = set(pq.read_table(folder / "manifest.parquet", columns=["path"])["path"].to_pylist())
            begun = _begun_with(folder)
            before, whole = _heard_by(begun) if begun else (set(), True)
            return known | before, whole
    return set(), False


def _begun_with(run: Path) -> str:
    """The encoder whose weights a run took over at its start; empty if none."""
    config = run / "config.yaml"
    values = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return str(values.get("train", {}).get("init") or "")
