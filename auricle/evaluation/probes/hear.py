"""HEAR's probe: a grid of MLPs (Turian et al. 2022, section 4; the facts are of its kit, `task_predictions.py`).

One or two hidden layers of 1024, each linear → batch norm → dropout → ReLU, then a linear layer; Xavier weights; Adam;
minibatches of 1024; dev is scored every three epochs, and a network stops after twenty scores in a row without a better
one. Sixteen points make the grid; the first eight of a fixed shuffle are trained. Embeddings are not normalised.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from torch import Tensor, nn
from torch.nn import functional

from auricle.config import Config
from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.probes.heads import ROWS, Examples, Kind, ProbeConfig, Trial

Initial = Literal["uniform", "normal"]
Measure = Callable[[Tensor], float]
"""From probabilities (N, K) of all dev examples, in order, to a score: higher is better."""


@dataclass(frozen=True)
class Point:
    """A point of the grid."""

    hidden_layers: int
    init: Initial
    lr: float

    def __str__(self) -> str:
        return f"{self.hidden_layers} hidden, Xavier {self.init}, lr {self.lr:g}"


class HearConfig(Config):
    """The grid, and how each point is trained; the values are HEAR's."""

    hidden_layers: tuple[int, ...] = Field((1, 2), min_length=1)
    inits: tuple[Initial, ...] = Field(("uniform", "normal"), min_length=1)
    lrs: tuple[float, ...] = Field((3.2e-3, 1e-3, 3.2e-4, 1e-4), min_length=1)
    points: int = Field(8, ge=1)
    """Of the shuffled grid, the first so many are trained."""
    hidden: int = Field(1024, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    batch: int = Field(1024, ge=2)
    max_epochs: int = Field(500, ge=1)
    check_every: int = Field(3, ge=1)
    """Epochs between scores on dev."""
    patience: int = Field(20, ge=1)
    """Scores in a row without a better one after which a network stops."""
    hear_compat: bool = False
    """Minibatches keep the order of one shuffle through all epochs, as in HEAR's kit; else each epoch has its own."""

    def grid(self) -> list[Point]:
        """The points that are trained: Python's shuffle under seed 42 of the grid in scikit-learn's order."""
        points = [Point(*values) for values in itertools.product(self.hidden_layers, self.inits, self.lrs)]
        random.Random(42).shuffle(points)
        return points[: self.points]


def hear(config: ProbeConfig) -> HearProber:
    """HEAR's grid on every layer asked for, with minibatches drawn anew every epoch."""
    return HearProber(HearConfig(), config)


def hear_compat(config: ProbeConfig) -> HearProber:
    """HEAR's grid as its kit trains it, with one seed. The kit knows one embedding: ask for layer `scene` or `last`."""
    return HearProber(HearConfig(hear_compat=True), config.model_copy(update={"seeds": config.seeds[:1]}))


@dataclass
class HearProber:
    """A `Prober` of one encoder on one task. The first `fit` searches the grid; later ones, of further folds, train
    what it chose, as HEAR does: make a new one for another task.
    """

    config: HearConfig
    probe: ProbeConfig
    """Its `layers` and `seeds` count."""
    chosen: tuple[int, Point] | None = field(default=None, init=False)
    """Layer and point that the first fold chose."""

    def fit(self, kind: Kind, train: Examples, dev: Examples, *, balanced: bool, device: str) -> HearFitted:
        """Train the grid on every layer; choose by accuracy (of classes alike if `balanced`) or mean average precision.

        Where each example has exactly one of the labels they exclude each other, and a softmax is trained as for
        classes. Raises `EvaluationError` for values, and where no network reached a finite score.
        """
        if kind == "values":
            raise EvaluationError("HEAR's probe knows classes and labels, no values; choose another protocol")
        goals, truth = train.targets, dev.targets.numpy()
        exclusive = kind == "classes" or bool((goals.sum(1) == 1).all() and (dev.targets.sum(1) == 1).all())
        if kind == "labels" and exclusive:
            goals = goals.argmax(1)
        outputs = int(goals.max()) + 1 if kind == "classes" else train.targets.shape[1]

        def measure(probabilities: Tensor) -> float:
            values = probabilities.numpy()
            if kind == "classes":
                answers = values.argmax(1)
                return float(balanced_accuracy_score(truth, answers) if balanced else (answers == truth).mean())
            present = truth.sum(0) > 0
            return float(average_precision_score(truth[:, present], values[:, present], average="macro"))

        return self.search(train.layers, goals, dev.layers, outputs, exclusive, measure, device)

    def search(
        self,
        train: Mapping[int, Tensor],
        goals: Tensor,
        dev: Mapping[int, Tensor],
        outputs: int,
        exclusive: bool,
        measure: Measure,
        device: str,
    ) -> HearFitted:
        """`fit` by any measure, of embeddings by layer: goals (N,) are classes if `exclusive`, else (N, outputs)."""
        grid = [self.chosen] if self.chosen else list(itertools.product(self._layers(train), self.config.grid()))
        best, fitted, trials = -math.inf, None, []
        for layer, point in grid:
            x, x_dev = (part[layer].to(device).float() for part in (train, dev))
            made = [
                train_network(point, x, goals.to(device), x_dev, outputs, exclusive, measure, self.config, seed)
                for seed in self.probe.seeds
            ]
            head, scores = f"mlp-{point.hidden_layers}x{self.config.hidden}", tuple(score for _, score in made)
            trials.append(Trial(head, layer, point.lr, scores, f"Xavier {point.init}"))
            if sum(scores) > best:
                best, self.chosen = sum(scores), (layer, point)
                fitted = HearFitted(trials[-1], trials, [network for network, _ in made], exclusive)
        if fitted is None:
            raise EvaluationError("no network of HEAR's grid reached a finite dev score; look for extreme embeddings")
        return fitted

    def _layers(self, found: Mapping[int, Tensor]) -> list[int]:
        """Indices of the layers asked for."""
        wanted, last = self.probe.layers, max(found)
        if isinstance(wanted, str):
            return [last] if wanted == "last" else sorted(found)
        numbers = [layer + last + 1 if isinstance(layer, int) and layer < 0 else layer for layer in wanted]
        for layer, number in zip(wanted, numbers, strict=True):
            if number not in found:
                raise ConfigError(f"layers: {layer} is not among the layers 0 to {last}, which HEAR's probe knows")
        return [number for number in numbers if isinstance(number, int)]


@dataclass(frozen=True)
class HearFitted:
    """What was chosen on dev: a network a seed."""

    choice: Trial
    """The row of the grid that was chosen."""
    trials: list[Trial]
    """All rows of the grid, with their dev scores."""
    networks: list[nn.Sequential]
    exclusive: bool
    """Whether classes exclude each other."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Index of the layer `predict` reads."""
        assert isinstance(self.choice.layer, int)
        return (self.choice.layer,)

    def predict(self, layers: Mapping[int, Tensor], groups: Tensor | None = None) -> Tensor:
        """Probabilities (S, N, K), on the CPU, from embeddings (N, D) by layer index."""
        x = layers[self.layers[0]]
        return torch.stack([probabilities_of(network, x, self.exclusive) for network in self.networks])

    def view(self, layers: Mapping[int, Tensor]) -> Tensor:
        """The embeddings (N, D) themselves: they are not normalised."""
        return layers[self.layers[0]].float().cpu()


def train_network(
    point: Point,
    x: Tensor,
    goals: Tensor,
    x_dev: Tensor,
    outputs: int,
    exclusive: bool,
    measure: Measure,
    config: HearConfig,
    seed: int,
) -> tuple[nn.Sequential, float]:
    """One network, trained on x (N, D), at its best on dev, with that score (−inf if it never was finite)."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        network = build(point, x.shape[1], outputs, config).to(x.device)
        optimizer = torch.optim.Adam(network.parameters(), point.lr, fused=True)
        loss = functional.cross_entropy if exclusive else functional.binary_cross_entropy_with_logits
        goals = goals.long() if exclusive else goals.float()
        best, kept, stale = -math.inf, deepcopy(network.state_dict()), 0
        batches = minibatches(len(x), config, seed)
        for epoch in range(1, config.max_epochs + 1):
            network.train()
            for rows in next(batches):
                rows = rows.to(x.device)
                optimizer.zero_grad()
                torch.autograd.backward(loss(network(x[rows]), goals[rows]))
                optimizer.step()
            if epoch % config.check_every and epoch < config.max_epochs:
                continue
            answers = probabilities_of(network, x_dev, exclusive)
            score = measure(answers) if bool(answers.isfinite().all()) else -math.inf
            stale = 0 if score > best else stale + 1
            if score > best:
                best, kept = score, deepcopy(network.state_dict())
            if stale >= config.patience:
                break
    network.load_state_dict(kept)
    return network.eval(), best


def build(point: Point, dim: int, outputs: int, config: HearConfig) -> nn.Sequential:
    """A fresh network from (N, dim) to logits (N, outputs)."""
    draw = nn.init.xavier_uniform_ if point.init == "uniform" else nn.init.xavier_normal_
    parts: list[nn.Module] = []
    for number in range(point.hidden_layers + 1):
        width = config.hidden if number < point.hidden_layers else outputs
        linear = nn.Linear(dim, width)
        draw(linear.weight, gain=nn.init.calculate_gain("relu" if number else "linear"))  # of what comes before it
        parts.append(linear)
        if number < point.hidden_layers:
            parts += [nn.BatchNorm1d(width), nn.Dropout(config.dropout), nn.ReLU()]
        dim = width
    return nn.Sequential(*parts)


def minibatches(count: int, config: HearConfig, seed: int) -> Iterator[list[Tensor]]:
    """Rows of each minibatch, epoch after epoch; a last one of a single row, which has no variance, joins another."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    while True:
        parts = list(torch.split(order, config.batch))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        yield parts
        if not config.hear_compat:
            order = torch.randperm(count, generator=generator)


@torch.no_grad()
def probabilities_of(network: nn.Sequential, x: Tensor, exclusive: bool) -> Tensor:
    """Softmax if `exclusive`, else sigmoid, (N, K) on the CPU, in evaluation mode, of x (N, D)."""
    network.eval()
    device = next(network.parameters()).device
    logits = torch.cat([network(part.to(device).float()).cpu() for part in torch.split(x, ROWS)])
    return logits.softmax(1) if exclusive else logits.sigmoid()
