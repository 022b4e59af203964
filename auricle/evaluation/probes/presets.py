"""Protocols that are grids of heads: ours, Mockingjay's and SUPERB's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from auricle.config import edit
from auricle.evaluation.probes.heads import Examples, Fitted, Kind, ProbeConfig, fit_heads


@dataclass(frozen=True)
class Grid:
    """A `Prober` by `fit_heads`."""

    config: ProbeConfig

    def fit(self, kind: Kind, train: Examples, dev: Examples, *, balanced: bool, device: str) -> Fitted:
        """As `fit_heads`."""
        return fit_heads(kind, train, dev, self.config, balanced=balanced, device=device)


def auricle(config: ProbeConfig) -> Grid:
    """Heads as configured."""
    return Grid(config)


def mockingjay_linear(config: ProbeConfig) -> Grid:
    """One linear layer (Liu et al. 2020, section 4)."""
    return _mockingjay(config, heads=("linear",))


def mockingjay_1hidden(config: ProbeConfig) -> Grid:
    """One hidden layer of 768 ReLU units, as in the authors' later code."""
    return _mockingjay(config, heads=("mlp",), hidden=768)


def mockingjay_mlp(config: ProbeConfig) -> Grid:
    """768-768-classes with ReLU and dropout 0.2: what the code of the paper trains where the paper says linear."""
    return _mockingjay(config, heads=("mlp",), hidden=768, hidden_layers=2, dropout=0.2)


def _mockingjay(config: ProbeConfig, **values: Any) -> Grid:
    """Adam at the authors' 4e-3; ours are the standardised inputs, the minibatches, and stopping by dev."""
    return Grid(edit(config, lrs=(4e-3,), max_steps=5000, **values))


def superb(config: ProbeConfig) -> Grid:
    """SUPERB's head for whole clips (Yang et al. 2021): weighted sum of layers, 256 units, mean over time, classes.

    Both layers are linear, so the mean may come first. The learning rate is chosen on dev, as SUPERB tunes it; ours are
    the standardised layers, and stopping by dev instead of 200,000 steps.
    """
    layers = ("sum",) if config.layers == "all" else config.layers
    lrs = (1e-4, 1e-3, 1e-2, 1e-1)
    return Grid(edit(config, heads=("bottleneck",), layers=layers, hidden=256, lrs=lrs, batch=32, max_steps=5000))
