"""Grids of probe heads trained at once: layers × learning rates × seeds × kinds of head, on embeddings in memory.

All learning rates and seeds of a layer share their input, so a minibatch meets the G heads in one matrix product
(G·K, D) @ (D, n) instead of G thin ones. Activations lie as (G, K, n): the softmax over K classes then runs along the
contiguous minibatch, many times faster on a CPU than along a short last axis.

Seeds differ in initial weights; the order of minibatches is the same for all heads of a grid, so that the input can be
shared. No head's result depends on which others stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from auricle.config import Config
from auricle.errors import ConfigError, EvaluationError
from auricle.nn.linear import linear

Kind = Literal["classes", "labels", "values"]
"""What a probe predicts: one class of several, any number of labels, or a number."""
Head = Literal["linear", "mlp", "bottleneck"]
Layer = int | Literal["sum"]
"""A hidden layer's index, or the softmax-weighted sum of all (standardised) layers with learned weights."""

BETAS, EPS = (0.9, 0.999), 1e-8
"""Adam's, as in its paper."""

ROWS = 8192
"""Examples predicted at once."""


class ProbeConfig(Config):
    """The grid of heads and how each is trained; the choice among them is made on dev."""

    heads: tuple[Head, ...] = Field(("linear",), min_length=1)
    """`linear` is softmax, logistic or least-squares regression; `mlp` has hidden ReLU layers; `bottleneck` is two
    linear layers with nothing between them."""
    layers: Literal["all", "last"] | tuple[Layer, ...] = "all"
    """Layers to try; `all` includes the learned `sum` where at least two layers have the same width."""
    lrs: tuple[float, ...] = Field((1e-3, 3e-3, 1e-2), min_length=1)
    """Adam's learning rates to try; constant."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of the initial weights; scores are means over seeds."""
    hidden: int = Field(256, ge=1)
    """Units in the MLP's hidden layers, or in the bottleneck."""
    hidden_layers: int = Field(1, ge=1)
    """Of the MLP."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the MLP's hidden units, the same ones for all heads."""
    batch: int = Field(256, ge=1)
    """Examples a minibatch (clips or frames)."""
    max_steps: int = Field(1000, ge=1)
    """Most optimizer steps."""
    eval_every: int = Field(25, ge=1)
    """Steps between measurements on dev; the best weights on dev are kept."""
    patience: int = Field(10, ge=1)
    """Measurements in a row without a better one after which a head stops."""


@dataclass(frozen=True)
class Examples:
    """Embeddings of N examples, a tensor (N, D) by layer index, and their targets.

    `targets` is (N,) int64 for classes, (N, K) of 0 and 1 for labels, (N,) float for values.
    """

    layers: Mapping[int, Tensor]
    targets: Tensor
    groups: Tensor | None = None
    """(N,) int64 codes of the speakers, where the task names them."""


@dataclass(frozen=True)
class Trial:
    """One row of the grid, with the dev score of each seed (accuracy, mean average precision, or R²)."""

    head: str
    layer: Layer
    lr: float | None
    """Learning rate; None where nothing is trained by steps."""
    dev: tuple[float, ...]
    detail: str = ""
    """What else tells it from other rows, in words."""


@dataclass(frozen=True)
class _Heads:
    """G heads on one layer or on the sum of several: their weights, and the statistics that standardise the input."""

    head: Head
    layers: tuple[int, ...]
    mean: list[Tensor]
    scale: list[Tensor]
    weights: list[Tensor]
    """(G, out, in) and (G, out, 1) in turn; with several layers the last is (G, L, 1), logits of the layer weights."""

    def inputs(self, layers: Mapping[int, Tensor]) -> list[Tensor]:
        """The layers these heads read, standardised with train statistics, each (N, D)."""
        pairs = zip(self.layers, self.mean, self.scale, strict=True)
        return [(layers[index].to(mean.device).float() - mean).div_(scale) for index, mean, scale in pairs]

    def mixed(self, inputs: Sequence[Tensor]) -> Tensor:
        """The heads' input: (N, D), shared, for one layer; (G, N, D) for the learned sum of several."""
        if len(inputs) == 1:
            return inputs[0]
        return torch.einsum("gl,lnd->gnd", self.weights[-1].squeeze(2).softmax(1), torch.stack(list(inputs)))

    def __call__(self, inputs: Sequence[Tensor], masks: Sequence[Tensor] = ()) -> Tensor:
        """Logits (G, K, n) of standardised inputs, each (n, D); `masks` (H, n) scale the units of hidden layers."""
        x, (w, b) = self.mixed(inputs), self.weights[:2]
        shared = x.dim() == 2  # then one product serves all heads
        out = linear(w.flatten(0, 1), x).view(*w.shape[:2], -1) + b if shared else torch.baddbmm(b, w, x.mT)
        for place in range(2, len(self.weights) - (len(self.layers) > 1), 2):
            hidden = out.relu() if self.head == "mlp" else out
            hidden = hidden * masks[place // 2 - 1] if masks else hidden
            out = torch.baddbmm(self.weights[place + 1], self.weights[place], hidden)
        return out


@dataclass(frozen=True)
class Fitted:
    """The head chosen on dev (one per seed), and the whole grid's dev scores."""

    kind: Kind
    choice: Trial
    trials: list[Trial]
    heads: _Heads
    centre: float
    """Train mean of the values, which heads predict standardised."""
    spread: float

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers `predict` reads."""
        return self.heads.layers

    @torch.no_grad()
    def predict(self, layers: Mapping[int, Tensor], groups: Tensor | None = None) -> Tensor:
        """Predictions of the chosen head, on the CPU, from embeddings (N, D) by layer index, whoever speaks.

        Probabilities (S, N, K) for classes and labels, numbers (S, N) for values; S seeds.
        """
        inputs = self.heads.inputs(layers)
        starts = range(0, max(len(inputs[0]), 1), ROWS)
        logits = torch.cat([self.heads([x[start : start + ROWS] for x in inputs]) for start in starts], 2).mT
        if self.kind == "values":
            return (logits[..., 0] * self.spread + self.centre).cpu()
        return (logits.softmax(-1) if self.kind == "classes" else logits.sigmoid()).cpu()

    @torch.no_grad()
    def view(self, layers: Mapping[int, Tensor]) -> Tensor:
        """What the first seed's head sees of embeddings: the chosen layer (or sum), standardised, (N, D)."""
        x = self.heads.mixed(self.heads.inputs(layers))
        return (x if x.dim() == 2 else x[0]).cpu()


def fit_heads(
    kind: Kind, train: Examples, dev: Examples, config: ProbeConfig, *, balanced: bool = False, device: str = "cpu"
) -> Fitted:
    """Train every head of the grid on `train`; choose head, layer and learning rate by the mean dev score over seeds.

    Dev scores are accuracy (the mean of per-class accuracies if `balanced`), mean average precision, or R²; ties go to
    the lower dev loss, then to the earlier row. Deterministic on a given machine. Raises `EvaluationError` where no
    head has a finite dev score, `ConfigError` for layers the embeddings lack.
    """
    centre, spread = 0.0, 1.0
    if kind == "values":
        centre, spread = float(train.targets.double().mean()), max(float(train.targets.double().std()), 1e-8)
    goals = [_goals(kind, examples.targets, centre, spread).to(device) for examples in (train, dev)]
    classes = int(train.targets.max()) + 1 if kind == "classes" else goals[0].shape[-1]
    trials: list[Trial] = []
    best, chosen = (-math.inf, -math.inf), None
    for layer, indices in candidates(train.layers, config):
        mean, scale = zip(*(_statistics(train.layers[index].to(device).float()) for index in indices), strict=True)
        for head in config.heads:
            weights = _initial(head, len(indices), len(mean[0]), classes, config)
            fresh = _Heads(head, indices, list(mean), list(scale), weights)
            heads, score, loss = _train(kind, fresh, train.layers, dev.layers, goals, config, balanced)
            for row, lr in enumerate(config.lrs):
                of = slice(row * len(config.seeds), (row + 1) * len(config.seeds))
                trials.append(Trial(head, layer, lr, tuple(score[of].tolist())))
                key = (float(score[of].mean()), -float(loss[of].mean()))
                if key > best:
                    best = key
                    chosen = trials[-1], replace(heads, weights=[weight[of].clone() for weight in heads.weights])
    if chosen is None:
        raise EvaluationError("no head of the grid reached a finite dev score; try smaller learning rates")
    return Fitted(kind, chosen[0], trials, chosen[1], centre, spread)


def candidates(layers: Mapping[int, Tensor], config: ProbeConfig) -> list[tuple[Layer, tuple[int, ...]]]:
    """Each layer to try with the indices it reads; the sum reads the layers whose width is the last one's."""
    last = max(layers)
    summed = tuple(index for index in sorted(layers) if layers[index].shape[1] == layers[last].shape[1])
    if config.layers == "last":
        return [(last, (last,))]
    if config.layers == "all":
        single: list[tuple[Layer, tuple[int, ...]]] = [(index, (index,)) for index in sorted(layers)]
        return [*single, ("sum", summed)] if len(summed) > 1 else single
    tried: list[tuple[Layer, tuple[int, ...]]] = []
    for layer in config.layers:
        if layer == "sum":
            tried.append(("sum", summed))
            continue
        index = layer + last + 1 if layer < 0 else layer
        if index not in layers:
            raise ConfigError(f"layers: {layer} is not among this encoder's layers 0 to {last}")
        tried.append((index, (index,)))
    return tried


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of x (N, D); constant channels get 1, so that they become 0."""
    mean = x.mean(0)
    std = (x - mean).square_().mean(0).sqrt_()  # several times faster than `torch.std_mean` along this dimension
    return mean, torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, 1.0)


def _goals(kind: Kind, targets: Tensor, centre: float, spread: float) -> Tensor:
    """What heads are compared with: (N,) classes, (N, K) labels, (N, 1) standardised values."""
    if kind == "values":
        return ((targets.double() - centre) / spread).float()[:, None]
    return targets.long() if kind == "classes" else targets.float()


def _initial(head: Head, layers: int, dim: int, classes: int, config: ProbeConfig) -> list[Tensor]:
    """Weights of G = learning rates × seeds heads, as `torch.nn.Linear` draws them; equal for equal seeds."""
    widths = {"linear": 0, "bottleneck": 1, "mlp": config.hidden_layers}[head] * [config.hidden]
    sizes = list(pairwise([dim, *widths, classes]))
    drawn = []
    for seed in config.seeds:
        generator = torch.Generator().manual_seed(seed)
        weights = []
        for fan_in, fan_out in sizes:
            for columns in (fan_in, 1):
                weights.append((torch.rand(fan_out, columns, generator=generator) * 2 - 1) / math.sqrt(fan_in))
        drawn.append(weights + [torch.zeros(layers, 1)] * (layers > 1))
    return [torch.stack(seeds).repeat(len(config.lrs), 1, 1) for seeds in zip(*drawn, strict=True)]


def _train(
    kind: Kind,
    heads: _Heads,
    train: Mapping[int, Tensor],
    dev: Mapping[int, Tensor],
    goals: Sequence[Tensor],
    config: ProbeConfig,
    balanced: bool,
) -> tuple[_Heads, Tensor, Tensor]:
    """Adam on G heads at once. Returns them at their best on dev, with dev scores (G,) and losses (G,)."""
    device = goals[0].device
    weights = [weight.to(device).requires_grad_() for weight in heads.weights]
    heads = replace(heads, weights=weights)
    inputs, dev_inputs = heads.inputs(train), heads.inputs(dev)
    lrs = torch.tensor(config.lrs, device=device).repeat_interleave(len(config.seeds)).view(-1, 1, 1)
    moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
    best = [weight.detach().clone() for weight in weights]
    best_score = torch.full((len(lrs),), -math.inf, device=device)
    best_loss = torch.full_like(best_score, math.inf)
    stale = torch.zeros_like(best_score)
    order, generator = _minibatches(len(goals[0]), config.batch, device), torch.Generator().manual_seed(1)
    for step in range(1, config.max_steps + 1):
        rows = next(order)
        x = [layer if rows is None else layer.index_select(0, rows) for layer in inputs]
        logits = heads(x, _dropout(heads.head, config, len(x[0]), generator, device))
        slope = _slope(kind, logits.detach(), goals[0] if rows is None else goals[0].index_select(0, rows))
        gradients = torch.autograd.grad(logits, weights, slope)
        with torch.no_grad():
            for weight, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
                _adam(weight, gradient, first, second, lrs, step)
            if step % config.eval_every and step < config.max_steps:
                continue
            score, loss = dev_scores(kind, heads(dev_inputs), goals[1], balanced)
            better = (score > best_score) | ((score == best_score) & (loss < best_loss))
            better &= stale < config.patience  # a head that has stopped stays as it was
            best_score, best_loss = torch.where(better, score, best_score), torch.where(better, loss, best_loss)
            for kept, weight in zip(best, weights, strict=True):
                kept.copy_(torch.where(better.view(-1, 1, 1), weight, kept))
            stale = torch.where(better, 0.0, stale + 1)
            if bool((stale >= config.patience).all()):
                break
    return replace(heads, weights=best), best_score.cpu(), best_loss.cpu()


def _minibatches(count: int, size: int, device: torch.device) -> Iterator[Tensor | None]:
    """Endless minibatches of rows, near `size` each, reshuffled every epoch; None (all rows) where one holds all."""
    generator = torch.Generator().manual_seed(0)
    while True:
        if count <= size:
            yield None
        else:
            for rows in torch.randperm(count, generator=generator).tensor_split(math.ceil(count / size)):
                yield rows.to(device)


def _dropout(
    head: Head, config: ProbeConfig, count: int, generator: torch.Generator, device: torch.device
) -> list[Tensor]:
    """A mask (H, n) for each hidden layer of the MLP, of 0 and 1 / (1 - rate); none where nothing is dropped."""
    if head != "mlp" or not config.dropout:
        return []
    drawn = torch.rand(config.hidden_layers, config.hidden, count, generator=generator)
    return list((drawn >= config.dropout).float().div_(1 - config.dropout).to(device))


def _slope(kind: Kind, logits: Tensor, goals: Tensor) -> Tensor:
    """Gradient of the mean loss by the logits (G, K, n): prediction minus target, for all three losses.

    They are softmax cross-entropy, sigmoid cross-entropy summed over labels, and half the squared error.
    """
    if kind == "classes":
        slope = logits.softmax(1)
        slope.scatter_add_(1, goals.expand(len(slope), 1, -1), slope.new_full((len(slope), 1, len(goals)), -1.0))
    else:
        slope = (logits.sigmoid() if kind == "labels" else logits.clone()).sub_(goals.T)
    return slope.div_(len(goals))


def _adam(weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, lr: Tensor, step: int) -> None:
    """One step of Adam (Kingma & Ba 2015) in place, with a learning rate (G, 1, 1) for each head."""
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    root = (1 - BETAS[1] ** step) ** 0.5  # of the second moment's correction; here it scales the rate and EPS instead
    weight.addcdiv_(first * (lr * root / (1 - BETAS[0] ** step)), second.sqrt().add_(EPS * root), value=-1)


def dev_scores(kind: Kind, logits: Tensor, goals: Tensor, balanced: bool) -> tuple[Tensor, Tensor]:
    """Dev score and mean loss, (G,) each, of logits (G, K, N)."""
    if kind == "values":
        loss = (logits - goals.T).square().mean((1, 2))
        return 1 - loss / goals.var(correction=0).clamp_min(1e-12), loss / 2
    if kind == "labels":
        loss = functional.softplus(logits) - logits * goals.T
        return _average_precision(logits, goals.T.expand_as(logits)), loss.sum(1).mean(1)
    loss = functional.cross_entropy(logits, goals.expand(len(logits), -1), reduction="none").mean(1)
    correct = (logits.max(1).indices == goals).float()  # `argmax`, many times faster along this dimension
    if balanced:
        frequency = torch.bincount(goals)[goals].float()
        return (correct / frequency).sum(1) / torch.count_nonzero(torch.bincount(goals)), loss
    return correct.mean(1), loss


def _average_precision(logits: Tensor, goals: Tensor) -> Tensor:
    """Average precision (G,), the mean over the labels that occur, of logits and goals (G, K, N)."""
    hits = goals.gather(2, logits.sort(dim=2, descending=True, stable=True).indices)
    precision = hits.cumsum(2) / torch.arange(1, hits.shape[2] + 1, device=hits.device)
    positives = hits.sum(2)
    ap = (precision * hits).sum(2) / positives.clamp_min(1)
    return ap.sum(1) / (positives > 0).sum(1).clamp_min(1)
