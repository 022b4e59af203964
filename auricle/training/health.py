"""Alarms over cheap statistics, fed at every measurement of the held-out loss: a falling loss alone proves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from auricle.data.batching import Batch, Skip
from auricle.encoders.base import pool_frames
from auricle.methods.base import Method

WATCHED_CLIPS = 256
"""Held-out clips whose embeddings the collapse alarm looks at."""


@dataclass(frozen=True)
class Vitals:
    """What is measured, on held-out clips and since the last measurement."""

    done: float
    """Fraction of the steps taken."""
    loss: float
    """Held-out loss."""
    trivial: float | None = None
    """Loss of the best predictor that has learned nothing."""
    ranks: Sequence[float] = ()
    """Effective rank of the clip embeddings of each layer."""
    spreads: Sequence[float] = ()
    """Share of each layer's clip embeddings (of their mean square) that differs between clips."""
    waiting: float = 0.0
    """Share of the time spent waiting for data."""
    speed: float | None = None
    """Seconds of audio a second; None before training."""
    probe: Mapping[str, float] = field(default_factory=dict)
    """Scores of an online probe, higher being better."""


@dataclass(frozen=True)
class Measurement:
    """One pass over the held-out clips."""

    values: dict[str, float]
    """`loss`, `trivial` and the method's other metrics, weighed by its counts; empty without held-out clips."""
    ranks: list[float]
    """Effective rank of the clip embeddings of each layer."""
    spreads: list[float]
    """`spread` of the clip embeddings of each layer."""
    pictures: dict[str, Tensor]
    """Of the first clip, each (T, F)."""
    skipped: list[Skip]


@dataclass
class Monitor:
    """Compares each measurement with the first and the best; `check` returns the alarms that were silent before.

    Its fields are plain values, which a checkpoint keeps: `Monitor(**vars(monitor))` goes on.
    """

    first_loss: float | None = None
    best_loss: float = math.inf
    first_ranks: list[float] = field(default_factory=list)
    best_speed: float = 0.0
    best_probe: dict[str, float] = field(default_factory=dict)
    ringing: list[str] = field(default_factory=list)

    def check(self, vitals: Vitals) -> dict[str, str]:
        """New alarms by name, each with one line of advice; one that goes on is not repeated until it has ceased."""
        if self.first_loss is None:
            self.first_loss, self.first_ranks = vitals.loss, list(vitals.ranks)
        alarms = dict(self._alarms(vitals))
        new = {name: line for name, line in alarms.items() if name not in self.ringing}
        self.ringing = sorted(alarms)
        if math.isfinite(vitals.loss):
            self.best_loss = min(self.best_loss, vitals.loss)
        self.best_speed = max(self.best_speed, vitals.speed or 0.0)
        for name, score in vitals.probe.items():
            self.best_probe[name] = max(self.best_probe.get(name, score), score)
        return new

    def _alarms(self, now: Vitals) -> Iterator[tuple[str, str]]:
        assert self.first_loss is not None
        gained = self.first_loss - self.best_loss
        if not math.isfinite(now.loss):
            yield "divergence", f"the held-out loss is {now.loss}: lower train.lr, or train in fp32"
        elif gained > 0.05 * abs(self.first_loss) and now.loss - self.best_loss > gained / 2:
            yield (
                "divergence",
                (
                    f"the held-out loss rose to {now.loss:.4g}, losing over half of its way from {self.first_loss:.4g} "
                    f"down to {self.best_loss:.4g}: lower train.lr or lengthen train.warmup"
                ),
            )
        if now.trivial is not None and now.done >= 0.5 and now.loss >= now.trivial:
            yield (
                "trivial",
                (
                    f"past half of the steps the held-out loss {now.loss:.4g} is no better than a predictor that has "
                    f"learned nothing ({now.trivial:.4g}): train longer or change train.lr"
                ),
            )
        for layer, (rank, spread) in enumerate(zip(now.ranks, now.spreads, strict=True)):
            before = self.first_ranks[layer]
            if rank < before / 3 or spread < 1e-4:
                yield (
                    f"collapse of layer {layer}",
                    (
                        f"clip embeddings of layer {layer} shrink from {before:.1f} to {rank:.1f} "
                        f"effective dimensions, {spread:.1e} of their power differing between clips: lower train.lr"
                    ),
                )
        for name, score in now.probe.items():
            best = self.best_probe.get(name, score)
            if score < 0.8 * best:
                yield f"probe {name}", f"the probe's {name} fell to {score:.3g} from {best:.3g}: lower train.lr"
        if now.waiting > 0.5:
            yield (
                "stalled data",
                (f"{now.waiting:.0%} of the time goes into waiting for audio: raise data.workers"),
            )
        if now.speed is not None and now.speed < self.best_speed / 2:
            yield (
                "throughput",
                (
                    f"{now.speed:.3g} s of audio a second, less than half of this run's best {self.best_speed:.3g}: "
                    "is the machine shared, or too hot?"
                ),
            )


@torch.no_grad()
def measure(
    method: Method, batches: Iterable[Batch], seed: int, precision: Callable[[], AbstractContextManager[Any]]
) -> Measurement:
    """Held-out losses of `method` in evaluation mode: the same draws for the same batches, whenever it is called."""
    totals: dict[str, float] = {}
    embeddings: list[list[Tensor]] = []  # a batch, a layer
    pictures: dict[str, Tensor] = {}
    skipped: list[Skip] = []
    device, watched, items = method.encoder.device, 0, 0.0
    method.eval()
    for i, batch in enumerate(batches):
        skipped += batch.skipped
        if not batch.clip_ids:
            continue
        batch = batch.to(device)
        with precision():
            torch.manual_seed(seed + i)
            step = method(batch)
            if not pictures:
                torch.manual_seed(seed)
                pictures = method.visualize(batch)
            if watched < WATCHED_CLIPS:
                frames = method.encoder(batch.waveforms, batch.lengths)
                embeddings.append([pool_frames(hidden, frames.lengths).cpu() for hidden in frames.hidden_states])
                watched += len(batch.clip_ids)
        items += float(step.count)
        for name, value in {"loss": step.loss, **step.metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(value) * float(step.count)
    method.train()
    values = {name: value / items if items else math.nan for name, value in totals.items()}
    layers = [torch.cat(layer) for layer in zip(*embeddings, strict=True)]
    return Measurement(values, list(map(effective_rank, layers)), list(map(spread, layers)), pictures, skipped)


def effective_rank(embeddings: Tensor) -> float:
    """Dimensions that embeddings (N, D) use: exp of the entropy of their centred, normalised singular values.

    From 0 (all equal) to min(N - 1, D). Roy & Vetterli 2007, "The effective rank"; RankMe (Garrido et al. 2023).
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    values = torch.linalg.svdvals(centred)
    if not values.numel() or not values.max() > 1e-12 * embeddings.double().norm():
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def spread(embeddings: Tensor) -> float:
    """Share of the power of embeddings (N, D) that differs between clips: variance over mean square, 0 to 1."""
    embeddings = embeddings.double()
    return float(embeddings.var(0, correction=0).sum() / embeddings.square().mean(0).sum().clamp_min(1e-30))
