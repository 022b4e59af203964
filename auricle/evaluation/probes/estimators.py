"""NOSS's grid of estimators: five classifiers × L2 normalisation × normalisation by speaker, chosen on dev.

The benchmark (Shor et al. 2020, and the classifiers of its public code) fits logistic regression (C = 1e5, with and
without balanced classes), linear discriminants with Ledoit-Wolf shrinkage and two forests of 100 trees. Its paper's
scores are those of the best on test; here the choice is made on dev, and the best on test is an oracle.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.probes.heads import Examples, Kind, ProbeConfig, Trial
from auricle.evaluation.probes.lda import Matrix, fit_lda
from auricle.evaluation.probes.logistic import balanced_weights, fit_logistic

C = 1e5
"""Inverse strength of the penalty."""
TREES = 100


class Estimator(Protocol):
    """What can say how probable classes are; scikit-learn's do."""

    def predict_proba(self, x: Matrix) -> Matrix:
        """(N, K) of x (N, D)."""


@dataclass(frozen=True)
class Normalisation:
    """What is done to embeddings before they are classified."""

    l2: bool
    speakers: bool

    def __call__(self, x: Tensor, groups: Tensor | None) -> Matrix:
        """x (N, D) with speakers `groups` (N,), each to length 1 first and normalised by speaker then."""
        values = x.detach().cpu().double().numpy()
        if self.l2:
            length = np.linalg.norm(values, axis=1, keepdims=True)
            values = values / np.where(length > 0, length, 1.0)
        if not self.speakers:
            return values
        if groups is None:
            raise EvaluationError("the embeddings are normalised by speaker: tell the speaker of each clip")
        return normalise_speakers(values, groups.cpu().numpy())

    def __str__(self) -> str:
        return ", ".join(["l2"] * self.l2 + ["speaker-normalised (transductive)"] * self.speakers)


def normalise_speakers(x: Matrix, groups: NDArray[np.int64]) -> Matrix:
    """x (N, D), each speaker's rows less their mean and over their standard deviation, or over 1 where that is 0.

    The statistics are those of these very rows, also of test: a transductive method.
    """
    _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    starts = np.cumsum(counts) - counts

    def means(values: Matrix) -> Matrix:
        return np.asarray((np.add.reduceat(values[order], starts, axis=0) / counts[:, None])[codes])

    centred = x - means(x)
    spread = np.sqrt(means(centred**2))
    constant = spread <= 1e-12 * np.abs(x).max(initial=0.0)  # but for rounding
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, spread))


@dataclass(frozen=True)
class Row:
    """A row of the grid, fitted with each seed (with one, where nothing is drawn)."""

    trial: Trial
    normalisation: Normalisation
    estimators: list[Estimator]
    seen: NDArray[np.int64]
    """Codes of the classes that train has."""
    classes: int

    def predict(self, x: Matrix) -> Tensor:
        """Probabilities (S, N, K) of normalised x (N, D); 0 for classes that train lacks."""
        found = torch.zeros(len(self.estimators), len(x), self.classes, dtype=torch.float64)
        for output, estimator in zip(found, self.estimators, strict=True):
            output[:, self.seen] = torch.from_numpy(estimator.predict_proba(x))
        return found


@dataclass(frozen=True)
class Estimators:
    """The row chosen on dev, all of the grid, and those of the chosen layer, fitted."""

    choice: Trial
    trials: list[Trial]
    rows: list[Row]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer `predict` reads."""
        return (int(self.choice.layer),)

    def predict(self, layers: Mapping[int, Tensor], groups: Tensor | None = None) -> Tensor:
        """Probabilities (S, N, K) by the chosen row, of embeddings (N, D) by layer and speakers (N,).

        Raises `EvaluationError` where it normalises by speaker and there are none.
        """
        (row,) = (row for row in self.rows if row.trial is self.choice)
        return row.predict(row.normalisation(layers[self.layers[0]], groups))

    def tests(self, layers: Mapping[int, Tensor], groups: Tensor | None = None) -> Iterator[tuple[Trial, Tensor]]:
        """As `predict`, by each row of the grid on the chosen layer."""
        for normalisation, rows in itertools.groupby(self.rows, key=lambda row: row.normalisation):
            x = normalisation(layers[self.layers[0]], groups)
            for row in rows:
                yield row.trial, row.predict(x)

    def view(self, layers: Mapping[int, Tensor]) -> Tensor:
        """The chosen layer (N, D)."""
        return layers[self.layers[0]].cpu()


@dataclass(frozen=True)
class Noss:
    """NOSS's protocol, a `Prober`."""

    config: ProbeConfig
    converged: bool
    """Our solvers, to convergence; otherwise scikit-learn's, whose logistic regression stops after 100 iterations."""

    def fit(
        self, kind: Kind, train: Examples, dev: Examples, *, balanced: bool = False, device: str = "cpu"
    ) -> Estimators:
        """Fit every row on train, and choose by the mean dev accuracy over seeds (of classes, if `balanced`).

        Ties go to the lower dev loss, then to the earlier row. `device` is not used. Raises `EvaluationError` for other
        kinds than classes, and where train holds fewer than two classes or no more clips than classes.
        """
        if kind != "classes":
            raise EvaluationError(
                f"NOSS's estimators predict one class of several, not {kind}; choose another protocol"
            )
        seen, targets = np.unique(train.targets.cpu().numpy(), return_inverse=True)
        if not 2 <= len(seen) < len(targets):
            raise EvaluationError(f"NOSS's estimators need more clips than classes, not {len(targets)} of {len(seen)}")
        goals = dev.targets.cpu().numpy()
        classes = int(max(seen.max(), goals.max())) + 1
        both = train.groups is not None and dev.groups is not None
        trials: list[Trial] = []
        best, choice, kept = (-math.inf, -math.inf), None, []
        for layer in plain_layers(train.layers, self.config):
            rows: list[Row] = []
            if not bool(train.layers[layer].isfinite().all()):
                raise EvaluationError(f"layer {layer}: the embeddings are not finite")
            for speakers, l2 in itertools.product((False, True)[: 1 + both], (False, True)):
                normalisation = Normalisation(l2, speakers)
                x, x_dev = (normalisation(part.layers[layer], part.groups) for part in (train, dev))
                if not np.ptp(x, 0).any():  # as by speaker, where each has but one clip
                    continue
                for name, estimators in self._fitted(x, targets):
                    blank = Trial(name, layer, None, (), str(normalisation))
                    row = Row(blank, normalisation, estimators, seen, classes)
                    scores, loss = judge(row.predict(x_dev).numpy(), goals, balanced)
                    trial = replace(blank, dev=scores)
                    rows.append(replace(row, trial=trial))
                    trials.append(trial)
                    if (key := (float(np.mean(scores)), -loss)) > best:
                        best, choice, kept = key, trial, rows
        if choice is None:
            raise EvaluationError("no estimator of the grid reached a finite dev score: are all embeddings alike?")
        return Estimators(choice, trials, kept)

    def _fitted(self, x: Matrix, targets: NDArray[np.int64]) -> Iterator[tuple[str, list[Estimator]]]:
        if self.converged:
            plain, balanced = fit_logistic(x, targets, np.ones(len(x)), balanced_weights(targets), c=C)
            yield "logistic regression", [plain]
            yield "balanced logistic regression", [balanced]
            yield "LDA", [fit_lda(x, targets)]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # it is what the paper's code did
                yield "logistic regression", [LogisticRegression(C=C).fit(x, targets)]
                yield "balanced logistic regression", [LogisticRegression(C=C, class_weight="balanced").fit(x, targets)]
            yield "LDA", [LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, targets)]
        for weight, name in ((None, "forest"), ("balanced", "balanced forest")):
            forests = [
                RandomForestClassifier(TREES, class_weight=weight, random_state=seed, n_jobs=-1)
                for seed in self.config.seeds
            ]
            yield name, [forest.fit(x, targets) for forest in forests]


def noss(config: ProbeConfig) -> Noss:
    """NOSS's grid, converged; of `config`, the layers and the seeds (of the forests) count."""
    return Noss(config, converged=True)


def noss_paper(config: ProbeConfig) -> Noss:
    """NOSS's grid by scikit-learn, whose logistic regression does not converge."""
    return Noss(config, converged=False)


def plain_layers(layers: Mapping[int, Tensor], config: ProbeConfig) -> list[int]:
    """The layers to try, without their learned sum, which needs a trained head. Raises `ConfigError`."""
    last = max(layers)
    if isinstance(config.layers, str):
        return sorted(layers) if config.layers == "all" else [last]
    chosen = []
    for layer in config.layers:
        if layer == "sum":
            raise ConfigError(
                "layers: sum is learned by gradient descent; choose single layers, or the protocol auricle"
            )
        index = layer + last + 1 if layer < 0 else layer
        if index not in layers:
            raise ConfigError(f"layers: {layer} is not among this encoder's layers 0 to {last}")
        chosen.append(index)
    return chosen


def judge(found: Matrix, goals: NDArray[np.int64], balanced: bool) -> tuple[tuple[float, ...], float]:
    """Accuracy of each seed and the mean cross-entropy of probabilities (S, N, K), given goals (N,).

    Accuracy is the mean of the classes' own if `balanced`.
    """
    rows = np.arange(len(goals))
    loss = -float(np.log(np.maximum(found[:, rows, goals], 1e-12)).mean())
    hits = found.argmax(2) == goals
    if not balanced:
        return tuple(hits.mean(1).tolist()), loss
    counts = np.bincount(goals)
    return tuple((hits / counts[goals]).sum(1) / np.count_nonzero(counts)), loss
