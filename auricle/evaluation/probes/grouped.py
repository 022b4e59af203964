"""Grids of small networks trained together, as MARBLE's probe needs them (`marble` says what and why).

Heads on one layer share their input and meet it in one matrix product, and Adam passes over all of them at once. No
head's result depends on which others stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from auricle.config import Config
from auricle.evaluation.probes.heads import ROWS, Kind, Layer, ProbeConfig, candidates
from auricle.nn.linear import linear

Measure = Callable[[Tensor], Tensor]
"""From logits (H, K, N), or values, of all dev examples in order to a score a head (H,): higher is better."""

THRESHOLD = 1e-4
"""Share by which a score must rise for the learning rate to stand."""
GROUP_BYTES = {"cpu": 2**22, "cuda": 2**30}
"""Weights trained together, about: what a processor's cache holds, and what keeps a GPU busy."""
LARGE = 512
"""Rows from which on products one after another are faster than a batch of them, as `linear` has the faster library."""


class MarbleConfig(Config):
    """The grid of learning rates, and how each point is trained; the values are MARBLE's."""

    head: Literal["mlp", "linear"] = "mlp"
    """`linear` is the cheap view: no hidden layer, all else alike."""
    lrs: tuple[float, ...] = Field((5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2), min_length=1)
    hidden: int = Field(512, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    """Of the hidden units, the same ones for all heads."""
    batch: int = Field(64, ge=1)
    max_epochs: int = Field(100, ge=1)
    plateau: int = Field(3, ge=0)
    """Epochs without a better dev score that are borne; with one more the learning rate is halved."""
    patience: int = Field(10, ge=1)
    """Epochs in a row without a better dev score after which a head stops."""

    @property
    def name(self) -> str:
        """Of the head."""
        return "linear" if self.head == "linear" else f"mlp-{self.hidden}"


@dataclass(frozen=True)
class Lesson:
    """What all heads learn, and how they are judged."""

    kind: Kind
    train: Mapping[int, Tensor]
    goals: Tensor
    outputs: int
    dev: Mapping[int, Tensor]
    measure: Measure


@dataclass(frozen=True)
class Network:
    """One head, with what it reads."""

    weights: list[Tensor]
    """(out, in) and (out, 1) in turn."""
    mix: Tensor | None
    """(L,) logits of the layers in their sum."""

    def mixed(self, inputs: Sequence[Tensor]) -> Tensor:
        """Its input (N, D), of layers (N, D)."""
        x = _stacked([layer.to(self.weights[0].device).float() for layer in inputs])
        return x[0] if self.mix is None else _mixed(self.mix[None], x)[0]

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (K, N), on the CPU, of layers (N, D)."""
        parts = zip(*(torch.split(layer, ROWS) for layer in inputs), strict=True)
        weights = [weight[None, None] for weight in self.weights]
        return torch.cat([_logits(weights, self.mixed(part)[None])[0].cpu() for part in parts], 1)


@dataclass(frozen=True)
class Group:
    """Points of the grid that are trained together: layers at all learning rates, or their sum."""

    layers: tuple[int, ...]
    """Those that are read: one a row, or all that are summed."""
    lrs: tuple[float, ...]
    summed: bool = False

    @property
    def points(self) -> list[list[tuple[Layer, float]]]:
        """R rows of C points; a row's heads have one input."""
        if self.summed:
            return [[("sum", lr)] for lr in self.lrs]
        return [[(layer, lr) for lr in self.lrs] for layer in self.layers]

    def alone(self, row: int, column: int) -> Group:
        """One point by itself."""
        if self.summed:
            return Group(self.layers, self.lrs[row : row + 1], True)
        return Group(self.layers[row : row + 1], self.lrs[column : column + 1])


def groups(x: Mapping[int, Tensor], probe: ProbeConfig, config: MarbleConfig, outputs: int) -> Iterator[Group]:
    """The grid in groups of layers of one width, whose weights are about as large as they may be."""
    tried = candidates(x, probe)
    units = config.hidden if config.head == "mlp" else outputs
    for dim, some in groupby((layer for layer, _ in tried if layer != "sum"), lambda layer: x[layer].shape[1]):
        layers = tuple(some)
        heads = GROUP_BYTES[x[layers[0]].device.type] // (4 * dim * units)
        for lrs in _parts(config.lrs, heads):
            yield from (Group(part, lrs) for part in _parts(layers, heads // len(lrs)))
    for layer, indices in tried:
        summed = tuple(index for index in indices if index)
        if layer == "sum" and len(summed) > 1:
            heads = GROUP_BYTES[x[summed[0]].device.type] // (4 * x[summed[0]].shape[1] * units)
            yield from (Group(summed, lrs, summed=True) for lrs in _parts(config.lrs, heads))


def _parts(whole: tuple[Any, ...], most: int) -> Iterator[tuple[Any, ...]]:
    """Runs of at most `most` items, and of one at least."""
    yield from (whole[start : start + max(1, most)] for start in range(0, len(whole), max(1, most)))


def _initial(group: Group, dim: int, outputs: int, config: MarbleConfig, seed: int) -> list[Tensor]:
    """Weights (R, C, ...), equal for all heads: as `torch.nn.Linear` draws them, then normal logits of the layers."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [dim, config.hidden, outputs] if config.head == "mlp" else [dim, outputs]
    drawn = [
        (torch.rand(fan_out, columns, generator=generator) * 2 - 1) / math.sqrt(fan_in)
        for fan_in, fan_out in pairwise(sizes)
        for columns in (fan_in, 1)
    ]
    if group.summed:
        drawn.append(torch.randn(len(group.layers), 1, generator=generator))
    return [weight.repeat(len(group.points), len(group.points[0]), 1, 1) for weight in drawn]


@dataclass(frozen=True)
class Trained:
    """A group of heads at their best on dev."""

    group: Group
    weights: list[Tensor]
    """(R, C, out, in) and (R, C, out, 1) in turn; of sums the last is (R, 1, L, 1), logits of the layers."""
    scores: Tensor
    """(R, C)."""

    def network(self, row: int, column: int) -> Network:
        """One of them."""
        weights = [weight[row, column].clone() for weight in self.weights]
        return Network(weights[:-1], weights[-1][:, 0]) if self.group.summed else Network(weights, None)


def train_group(group: Group, lesson: Lesson, config: MarbleConfig, seed: int) -> Trained:
    """Adam on a group of heads; the seed decides initial weights, minibatches and dropout.

    A row or column all of whose heads have stopped is computed no further.
    """
    device, dim = lesson.goals.device, lesson.train[group.layers[0]].shape[1]
    adam = _Adam([weight.to(device) for weight in _initial(group, dim, lesson.outputs, config, seed)])
    best = [weight.detach().clone() for weight in adam.weights]
    rates = torch.tensor([[lr for _, lr in row] for row in group.points], device=device)
    scores, top = torch.full_like(rates, -math.inf), torch.full_like(rates, -math.inf)
    stale, dull = torch.zeros_like(rates), torch.zeros_like(rates)
    rows, columns = (torch.arange(size, device=device) for size in rates.shape)
    order, drops = torch.Generator().manual_seed(seed), torch.Generator(device).manual_seed(seed)
    for _ in range(config.max_epochs):
        layers = _read(group, rows)
        for batch in torch.split(torch.randperm(len(lesson.goals), generator=order).to(device), config.batch):
            x = _gathered([lesson.train[index] for index in layers], batch)
            logits = _heads(group, adam.weights, x, _kept(config, len(batch), drops))
            slope = _slope(lesson.kind, logits.detach(), lesson.goals.index_select(0, batch))
            adam.step(torch.autograd.grad(logits, adam.weights, slope), rates[rows][:, columns])
        place = torch.meshgrid(rows, columns, indexing="ij")
        found = _dev_scores(group, adam.weights, layers, lesson)
        better = (found > scores[place]) & (stale[place] < config.patience)
        improved = [part[better] for part in place]
        for kept, weight in zip(best, adam.weights, strict=True):
            kept[*improved] = weight.detach()[better]
        scores[*improved] = found[better]
        stale[place] = torch.where(better, 0, stale[place] + 1)
        risen = found > top[place] * (1 + THRESHOLD)  # as torch's ReduceLROnPlateau
        top[place], dull[place] = torch.where(risen, found, top[place]), torch.where(risen, 0, dull[place] + 1)
        rates, dull = torch.where(dull > config.plateau, rates / 2, rates), dull.where(dull <= config.plateau, 0)
        active = (stale < config.patience)[place]
        if not bool(active.any()):
            break
        going = [active.any(1).nonzero()[:, 0], active.any(0).nonzero()[:, 0]]
        if [len(part) for part in going] != list(active.shape):
            rows, columns = rows[going[0]], columns[going[1]]
            adam.keep(*going)
    return Trained(group, best, scores)


@dataclass(frozen=True)
class Point:
    """A point of the grid, trained."""

    layer: Layer
    lr: float
    score: float
    """On dev; minus infinity where its logits never were finite."""
    group: Group
    """It alone, to train it again with another seed."""
    network: Network


def train_grid(lesson: Lesson, probe: ProbeConfig, config: MarbleConfig, seed: int) -> Iterator[Point]:
    """All points of the grid, in turn."""
    for group in groups(lesson.train, probe, config, lesson.outputs):
        found = train_group(group, lesson, config, seed)
        for row, points in enumerate(group.points):
            for column, (layer, lr) in enumerate(points):
                score, network = float(found.scores[row, column]), found.network(row, column)
                yield Point(layer, lr, score, group.alone(row, column), network)


def _read(group: Group, rows: Tensor) -> tuple[int, ...]:
    """Layers that these rows of a group read."""
    return group.layers if group.summed else tuple(group.layers[row] for row in rows.tolist())


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """(L, n, D) of L layers (n, D); one is not copied."""
    return layers[0][None] if len(layers) == 1 else torch.stack(list(layers))


def _gathered(layers: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Rows (L, n, D) of L layers (N, D)."""
    gathered = layers[0].new_empty(len(layers), len(rows), layers[0].shape[1])
    for place, layer in enumerate(layers):
        torch.index_select(layer, 0, rows, out=gathered[place])
    return gathered


def _heads(group: Group, weights: Sequence[Tensor], x: Tensor, kept: Tensor | None = None) -> Tensor:
    """Logits (R C, K, n) of a group's heads on the layers that they read, (L, n, D)."""
    if group.summed:
        return _logits(weights[:-1], _mixed(weights[-1][:, 0, :, 0], x), kept)
    return _logits(weights, x, kept)


def _mixed(mix: Tensor, x: Tensor) -> Tensor:
    """Sums (R, n, D) of layers (L, n, D), weighted by the softmax of mix (R, L)."""
    sums: Tensor = torch.tensordot(mix.softmax(1), x, 1)
    return sums


def _logits(weights: Sequence[Tensor], x: Tensor, kept: Tensor | None = None) -> Tensor:
    """Logits (R C, K, n) of R rows of C heads on x (R, n, D); `kept` (U, n) scales hidden units."""
    w, b, *others = weights
    out = _products(w.flatten(1, 2), x).view(*w.shape[:3], -1) + b
    if not others:
        return out.flatten(0, 1)
    hidden = out.relu() if kept is None else out.relu() * kept
    v, c = (weight.flatten(0, 1) for weight in others)
    return torch.baddbmm(c, v, hidden.flatten(0, 1))


def _products(w: Tensor, x: Tensor) -> Tensor:
    """(R, M, n), the products of w (R, M, D) and x (R, n, D): one by one where each is large enough."""
    if len(w) == 1 or w.shape[1] >= LARGE:
        return torch.stack([linear(one, other) for one, other in zip(w, x, strict=True)])
    return torch.bmm(w, x.mT)


def _kept(config: MarbleConfig, count: int, generator: torch.Generator) -> Tensor | None:
    """A mask (U, n) of 0 and 1 / (1 - rate) for the hidden units of `count` examples, where any are dropped."""
    if config.head == "linear" or not config.dropout:
        return None
    drawn = torch.rand(config.hidden, count, generator=generator, device=generator.device)
    return (drawn >= config.dropout).float().div_(1 - config.dropout)


def _slope(kind: Kind, logits: Tensor, goals: Tensor) -> Tensor:
    """Gradient of the mean loss by the logits (H, K, n): softmax or sigmoid cross-entropy, or squared error."""
    if kind == "classes":
        slope = logits.softmax(1)
        slope.scatter_add_(1, goals.expand(len(slope), 1, -1), slope.new_full((len(slope), 1, len(goals)), -1.0))
        return slope.div_(len(goals))
    slope = logits.sigmoid() - goals.T if kind == "labels" else 2 * (logits - goals.T)
    return slope.div_(goals.numel())


@torch.no_grad()
def _dev_scores(group: Group, weights: Sequence[Tensor], layers: Sequence[int], lesson: Lesson) -> Tensor:
    """(R, C), row by row, which bounds the memory; minus infinity where logits are not finite."""
    scores = []
    for row in range(len(weights[0])):
        some = [weight[row : row + 1] for weight in weights]
        read = [torch.split(lesson.dev[index], ROWS) for index in (layers if group.summed else layers[row : row + 1])]
        logits = torch.cat([_heads(group, some, _stacked(x)) for x in zip(*read, strict=True)], 2)
        scores.append(torch.where(logits.sum((1, 2)).isfinite(), lesson.measure(logits), -math.inf))
    return torch.stack(scores)


class _Adam:
    """Adam (Kingma & Ba 2015) for heads (R, C, ...) with a learning rate each.

    PyTorch's fused step at rate 1 writes directions, which are then scaled: all else takes several more passes over
    the memory, or a step a head. Full weight decay wipes the last directions in the same pass.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = [weight.requires_grad_() for weight in weights]
        self._moves = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
        self._adam = _directions(self._moves)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Tensor) -> None:
        """One step in place, at rates (R, C)."""
        for move, gradient in zip(self._moves, gradients, strict=True):
            move.grad = gradient
        self._adam.step()
        for weight, move in zip(self.weights, self._moves, strict=True):
            weight.addcmul_(move, rates[:, :, None, None])

    @torch.no_grad()
    def keep(self, rows: Tensor, columns: Tensor) -> None:
        """Only these rows and columns go on."""

        def chosen(x: Tensor) -> Tensor:
            return x.index_select(0, rows).index_select(1, columns)

        self.weights = [chosen(weight).requires_grad_() for weight in self.weights]
        moves = [torch.zeros_like(weight, requires_grad=False) for weight in self.weights]
        adam = _directions(moves)
        for old, new in zip(self._moves, moves, strict=True):
            state = self._adam.state[old]
            moments = {name: chosen(state[name]) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[new] = {"step": state["step"], **moments}
        self._moves, self._adam = moves, adam


def _directions(moves: list[Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(moves, lr=1.0, weight_decay=1.0, fused=True)
