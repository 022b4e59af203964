"""MARBLE's probe (Yuan et al. 2023, section 3; the facts are of its first version's code): a grid of small networks.

A point of the grid is one of the encoder's layers, or the learned sum of all but layer 0, with a learning rate. Each
trains linear → ReLU → dropout → linear by Adam in minibatches of 64; where the score on dev stands still the rate is
halved, and after more such epochs the network stops; its best epoch on dev counts. Embeddings are not normalised.
Ours is single precision, where MARBLE has half.

The points are trained together (`grouped`): 84 of them for a BASE encoder, from embeddings that were computed once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auricle.errors import EvaluationError
from auricle.evaluation.probes.grouped import Lesson, MarbleConfig, Measure, Network, Point, train_grid, train_group
from auricle.evaluation.probes.heads import Examples, Kind, ProbeConfig, Trial

__all__ = ["MarbleConfig", "MarbleFitted", "MarbleProber", "Measure", "dev_measure", "marble", "marble_linear"]

NOTHING = "no head of MARBLE's grid reached a finite dev score; look for extreme embeddings"


def marble(config: ProbeConfig) -> MarbleProber:
    """MARBLE's grid."""
    return MarbleProber(MarbleConfig(), config)


def marble_linear(config: ProbeConfig) -> MarbleProber:
    """MARBLE's grid without the hidden layer."""
    return MarbleProber(MarbleConfig(head="linear"), config)


@dataclass(frozen=True)
class MarbleProber:
    """A `Prober` by MARBLE's grid, which is searched with the first seed; the others repeat what it chose."""

    config: MarbleConfig
    probe: ProbeConfig
    """Its `layers` and `seeds` count."""

    def fit(self, kind: Kind, train: Examples, dev: Examples, *, balanced: bool, device: str) -> MarbleFitted:
        """Choose by accuracy (of classes alike if `balanced`), mean area under ROC curves, or mean R²."""
        return self.search(kind, train, dev.layers, dev_measure(kind, dev.targets.to(device), balanced), device)

    def search(
        self, kind: Kind, train: Examples, dev: Mapping[int, Tensor], measure: Measure, device: str
    ) -> MarbleFitted:
        """`fit` by any measure, of dev embeddings by layer; an example may have several values, (N, K).

        Raises `EvaluationError` where no head reached a finite score.
        """
        goals, centre, spread = _goals(kind, train.targets.to(device))
        outputs = int(goals.max()) + 1 if kind == "classes" else goals.shape[1]
        x, x_dev = ({index: part[index].to(device).float() for index in train.layers} for part in (train.layers, dev))

        def scaled(logits: Tensor) -> Tensor:
            return measure(logits * spread[:, None] + centre[:, None] if kind == "values" else logits)

        lesson = Lesson(kind, x, goals, outputs, x_dev, scaled)
        head = self.config.name
        first, *more = self.probe.seeds
        trials: list[Trial] = []
        best: tuple[Trial, Point] | None = None
        for point in train_grid(lesson, self.probe, self.config, first):
            trials.append(Trial(head, point.layer, point.lr, (point.score,)))
            if point.score > (best[1].score if best else -math.inf):
                best = trials[-1], point
        if best is None:
            raise EvaluationError(NOTHING)
        trial, chosen = best
        again = [train_group(chosen.group, lesson, self.config, seed) for seed in more]
        choice = Trial(head, trial.layer, trial.lr, (*trial.dev, *(float(one.scores[0, 0]) for one in again)))
        trials[trials.index(trial)] = choice
        networks = [chosen.network, *(one.network(0, 0) for one in again)]
        scale = (centre.cpu(), spread.cpu())
        return MarbleFitted(kind, choice, trials, chosen.group.layers, networks, *scale, train.targets.dim() > 1)


@dataclass(frozen=True)
class MarbleFitted:
    """What was chosen on dev: a network a seed."""

    kind: Kind
    choice: Trial
    """The row of the grid that was chosen, with the dev scores of all seeds."""
    trials: list[Trial]
    """All rows of the grid."""
    layers: tuple[int, ...]
    """Indices of the layers `predict` reads: one, or those that are summed."""
    networks: list[Network]
    centre: Tensor
    """(K,) means and deviations of the values in train, which networks predict standardised."""
    spread: Tensor
    several: bool
    """Whether an example has several values."""

    @torch.no_grad()
    def logits(self, layers: Mapping[int, Tensor]) -> Tensor:
        """(S, K, N), before softmax, sigmoid or scaling, on the CPU, from embeddings (N, D) by layer index."""
        return torch.stack([network([layers[index] for index in self.layers]) for network in self.networks])

    def scaled(self, logits: Tensor) -> Tensor:
        """Logits (S, K, N), or the values that they stand for."""
        return logits * self.spread[:, None] + self.centre[:, None] if self.kind == "values" else logits

    def answers(self, logits: Tensor) -> Tensor:
        """Probabilities (S, N, K), or values (S, N), or (S, N, K) of several, that logits (S, K, N) stand for."""
        if self.kind == "values":
            values = self.scaled(logits).mT
            return values if self.several else values[..., 0]
        return logits.mT.softmax(-1) if self.kind == "classes" else logits.mT.sigmoid()

    def predict(self, layers: Mapping[int, Tensor], groups: Tensor | None = None) -> Tensor:
        """`answers` from embeddings (N, D) by layer index, whoever speaks."""
        return self.answers(self.logits(layers))

    @torch.no_grad()
    def view(self, layers: Mapping[int, Tensor]) -> Tensor:
        """What the first seed's network sees of embeddings, the layer or the sum, (N, D)."""
        return self.networks[0].mixed([layers[index] for index in self.layers]).cpu()


def dev_measure(kind: Kind, targets: Tensor, balanced: bool = False) -> Measure:
    """Accuracy (of classes alike if `balanced`), mean area under ROC curves, or mean R², against dev targets."""
    if kind == "values":
        return lambda values: _r2(values, targets.float().view(len(targets), -1).T)
    if kind == "labels":
        return lambda logits: roc_auc(logits, targets.T > 0)
    weight = torch.ones_like(targets, dtype=torch.float)
    if balanced:
        weight = 1 / torch.bincount(targets).float()[targets]
    return lambda logits: ((logits.max(1).indices == targets) * weight).sum(1) / weight.sum()


def roc_auc(logits: Tensor, hits: Tensor) -> Tensor:
    """Area under the ROC curve (H,), the mean over labels that some have and some lack; (H, K, N) and hits (K, N)."""
    known = hits.any(1) & ~hits.all(1)
    logits, hits = logits[:, known], hits[known]
    positives, negatives = hits.sum(1), (~hits).sum(1)
    most = int(positives.max()) if len(hits) else 0
    at = hits.byte().sort(1, descending=True).indices[:, :most]  # (K, P): those that have it, then others
    real = torch.arange(most, device=hits.device) < positives[:, None]
    ordered, chosen = logits.sort(2).values, logits.gather(2, at.expand(len(logits), -1, -1))
    below, upto = (torch.searchsorted(ordered, chosen, right=right) for right in (False, True))
    twice = ((below + upto) * real).sum(2) - positives.square()  # pairs in right order, equal ones as halves, times two
    return (twice / (2.0 * positives * negatives)).mean(1)


def _r2(values: Tensor, targets: Tensor) -> Tensor:
    """R² (H,), the mean over K, of values (H, K, N) and targets (K, N)."""
    return 1 - ((values - targets).square().mean(2) / targets.var(1, correction=0).clamp_min(1e-12)).mean(1)


def _goals(kind: Kind, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What networks learn, (N,) classes, (N, K) labels or standardised values; centre and spread (K,) of values."""
    if kind != "values":
        return (targets.long() if kind == "classes" else targets.float()), torch.zeros(1), torch.ones(1)
    values = targets.double().view(len(targets), -1)
    centre, spread = values.mean(0), values.std(0, correction=0).clamp_min(1e-8)
    return ((values - centre) / spread).float(), centre.float(), spread.float()
