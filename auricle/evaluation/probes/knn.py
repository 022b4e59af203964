"""Nearest neighbours by cosine: a probe without training, which only chooses a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from auricle.errors import EvaluationError
from auricle.evaluation.probes.estimators import plain_layers
from auricle.evaluation.probes.heads import Examples, Kind, ProbeConfig, Trial, dev_scores

NEIGHBOURS, TEMPERATURE = 10, 0.07
"""As Wu et al. (2018) weight them."""
ROWS = 1024
"""Examples compared at once."""


@dataclass(frozen=True)
class Neighbours:
    """Train examples of the chosen layer, to answer from."""

    choice: Trial
    trials: list[Trial]
    kind: Kind
    train: Tensor
    """(N, D), of length 1."""
    goals: Tensor
    """(N, K): one-hot classes, labels, or (N, 1) values."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer `predict` reads."""
        return (int(self.choice.layer),)

    @torch.no_grad()
    def predict(self, layers: Mapping[int, Tensor], groups: Tensor | None = None) -> Tensor:
        """Probabilities (1, N, K) or values (1, N) of embeddings (N, D) by layer; speakers are not used."""
        found = _answers(self.train, self.goals, layers[self.layers[0]].to(self.train.device))
        return (found[:, 0] if self.kind == "values" else found).cpu()[None]

    def view(self, layers: Mapping[int, Tensor]) -> Tensor:
        """What is compared of embeddings, (N, D)."""
        return functional.normalize(layers[self.layers[0]].float()).cpu()


@dataclass(frozen=True)
class KNN:
    """The protocol, a `Prober`."""

    config: ProbeConfig

    @torch.no_grad()
    def fit(
        self, kind: Kind, train: Examples, dev: Examples, *, balanced: bool = False, device: str = "cpu"
    ) -> Neighbours:
        """Choose the layer on dev; scores and ties are as of `heads.fit_heads`."""
        classes = int(torch.cat([train.targets, dev.targets]).max()) + 1 if kind == "classes" else 0
        goals, dev_goals = (_goals(kind, part.targets.to(device), classes) for part in (train, dev))
        trials: list[Trial] = []
        best, chosen = (-math.inf, -math.inf), None
        for layer in plain_layers(train.layers, self.config):
            x = functional.normalize(train.layers[layer].to(device).float())
            found = _answers(x, goals, dev.layers[layer].to(device))
            if kind != "values":
                found = found.clamp(1e-6, 1 - 1e-6)
            logits = found.logit() if kind == "labels" else found.log() if kind == "classes" else found
            targets = dev.targets.to(device) if kind == "classes" else dev_goals
            score, loss = (float(value) for value in dev_scores(kind, logits.T[None], targets, balanced))
            trials.append(Trial("knn", layer, None, (score,)))
            if (score, -loss) > best:
                best, chosen = (score, -loss), (trials[-1], x)
        if chosen is None:
            raise EvaluationError("no layer reached a finite dev score")
        return Neighbours(chosen[0], trials, kind, chosen[1], goals)


def knn(config: ProbeConfig) -> KNN:
    """The 10 nearest neighbours; of `config`, the layers count."""
    return KNN(config)


def _goals(kind: Kind, targets: Tensor, classes: int) -> Tensor:
    if kind == "classes":
        return functional.one_hot(targets, classes).float()
    return targets.float() if kind == "labels" else targets.float()[:, None]


def _answers(train: Tensor, goals: Tensor, x: Tensor) -> Tensor:
    """Means (n, K) of the goals (N, K) of the nearest rows of train (N, D) to each of x (n, D).

    The weights are exp(cosine / temperature). Of rows equally near, the earlier ones are nearest.
    """
    count = min(NEIGHBOURS, len(train))
    parts = []
    for rows in torch.split(functional.normalize(x.float()), ROWS):
        cosine = rows @ train.T
        edge = cosine.topk(count).values[:, -1:]
        level = cosine == edge
        nearest = (cosine > edge) | (level & (level.cumsum(1) <= count - (cosine > edge).sum(1, keepdim=True)))
        weights = (cosine / TEMPERATURE).masked_fill(~nearest, -math.inf).softmax(1)
        parts.append(weights @ goals)
    return torch.cat(parts) if parts else goals.new_zeros(0, goals.shape[1])
