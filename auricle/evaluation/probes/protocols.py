"""Protocols by name: how frozen embeddings are probed. Listing them imports no torch.

A protocol is made from a `ProbeConfig`, of which it takes what it knows (all take `layers` and `seeds`). It fits on
train, chooses on dev, and answers for embeddings of any clips; test is shown to it once, by whoever called it.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auricle.errors import EvaluationError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from auricle.evaluation.probes.heads import Examples, Kind, ProbeConfig, Trial


class Probe(typing.Protocol):
    """What was chosen on dev, for S seeds (1 where nothing is drawn). `heads.Fitted` is one.

    It may have `tests(layers, groups) -> list[tuple[Trial, Tensor]]`, arguments and predictions as of `predict`: what
    each row of the grid answers, from which the best on test is told as `oracle`.
    """

    @property
    def choice(self) -> Trial:
        """The row of the grid that was chosen."""

    @property
    def trials(self) -> list[Trial]:
        """All rows of the grid, with their dev scores."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers `predict` reads."""

    def predict(self, layers: Mapping[int, Tensor], groups: Tensor | None = None) -> Tensor:
        """Probabilities (S, N, K) or values (S, N), on the CPU, from embeddings (N, D) by layer and speakers (N,)."""

    def view(self, layers: Mapping[int, Tensor]) -> Tensor:
        """What the first seed's choice sees of embeddings, (N, D), for a map."""


class Prober(typing.Protocol):
    """A protocol at work."""

    def fit(self, kind: Kind, train: Examples, dev: Examples, *, balanced: bool, device: str) -> Probe:
        """Fit on train and choose on dev, by the mean of per-class accuracies if `balanced`.

        Raises `EvaluationError` where nothing could be fitted.
        """


@dataclass(frozen=True)
class Protocol:
    """Where a protocol is made, and what it is."""

    maker: str
    """`module:attribute`, called with a `ProbeConfig`; returns a `Prober`. Empty where tasks of its own need more."""
    about: str

    def __str__(self) -> str:
        return self.about


_PROBES = "auricle.evaluation.probes"

PROTOCOLS = {
    "auricle": Protocol(f"{_PROBES}.presets:auricle", "linear and MLP heads on standardised layers, chosen on dev"),
    "noss": Protocol(f"{_PROBES}.estimators:noss", "NOSS's grid of estimators, converged and chosen on dev"),
    "noss-paper": Protocol(
        f"{_PROBES}.estimators:noss_paper", "NOSS's grid as published: scikit-learn, 100 iterations"
    ),
    "knn": Protocol(f"{_PROBES}.knn:knn", "10 nearest neighbours by cosine, as X-ARES"),
    "hear": Protocol(f"{_PROBES}.hear:hear", "HEAR's grid of MLPs, minibatches drawn anew every epoch"),
    "hear-compat": Protocol(f"{_PROBES}.hear:hear_compat", "HEAR's grid of MLPs as its kit trains it"),
    "mockingjay-linear": Protocol(f"{_PROBES}.presets:mockingjay_linear", "one linear layer, Adam at 4e-3"),
    "mockingjay-1hidden": Protocol(f"{_PROBES}.presets:mockingjay_1hidden", "one hidden layer of 768, Adam at 4e-3"),
    "mockingjay-mlp": Protocol(
        f"{_PROBES}.presets:mockingjay_mlp", "two hidden layers of 768, dropout 0.2, as printed"
    ),
    "marble": Protocol(f"{_PROBES}.marble:marble", "MARBLE's grid of MLPs: layers or their sum, six learning rates"),
    "marble-linear": Protocol(f"{_PROBES}.marble:marble_linear", "MARBLE's grid without the hidden layer"),
    "superb": Protocol(f"{_PROBES}.presets:superb", "sum of layers, linear to 256, linear to the classes"),
    "superb-ctc": Protocol("", "of phone recognition alone: sum of layers, 256 units, phones by CTC"),
}
"""Name to record."""


def prober(name: str, config: ProbeConfig) -> Prober:
    """The protocol of that name, with the grid of `config`. Raises `EvaluationError` if there is none."""
    if not (maker := find_protocol(name).maker):
        raise EvaluationError(f"protocol {name} is {PROTOCOLS[name].about.partition(':')[0]}; choose another")
    module, attribute = maker.split(":")
    made: Prober = getattr(importlib.import_module(module), attribute)(config)
    return made


def find_protocol(name: str) -> Protocol:
    """The record of that name. Raises `EvaluationError` with the near miss."""
    if name not in PROTOCOLS:
        raise EvaluationError(unknown("protocol", name, PROTOCOLS))
    return PROTOCOLS[name]
