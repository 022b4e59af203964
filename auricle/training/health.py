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
LEAST_CLIPS = 8
"""Clips below which embeddings raise no alarm: their rank can be no more than the clips' number less one."""


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
    clips: int = 0
    """Clips behind ranks, spreads and probe."""
    attention_entropy: float | None = None
    """From 0 (attention looks at one frame) to 1 (at all alike); None without attention."""
    waiting: float = 0.0
    """Share of the time spent waiting for data."""
    speed: float | None = None
    """Seconds of audio a second; None before training."""
    probe: Mapping[str, float] = field(default_factory=dict)
    """Scores of an online probe, higher being better."""
    own: Mapping[str, str] = field(default_factory=dict)
    """The method's own alarms."""


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
    sounds: dict[str, Tensor]
    """Of the first clip, each (T, F)."""
    skipped: list[Skip]
    clip_ids: list[str]
    """Of the clips whose embeddings were looked at."""
    embeddings: list[Tensor]
    """Of those clips, (N, D) for each layer."""
    attention_entropy: float | None
    alarms: Mapping[str, str]
    """The method's own."""

    def facts(self) -> dict[str, float]:
        """What goes into the logs."""
        facts = self.values | {f"rank_{i}": rank for i, rank in enumerate(self.ranks)} | {"spread": self.spreads[-1]}
        return facts if self.attention_entropy is None else facts | {"attention_entropy": self.attention_entropy}

    def vitals(
        self, done: float, probe: Mapping[str, float], audio_s: float, seconds: float, waited_s: float
    ) -> Vitals:
        """With the share of steps `done`, the `probe`'s scores, and what `seconds` of training were spent on."""
        return Vitals(
            done=done,
            loss=self.values["loss"],
            trivial=self.values.get("trivial"),
            ranks=self.ranks,
            spreads=self.spreads,
            clips=len(self.clip_ids),
            attention_entropy=self.attention_entropy,
            waiting=waited_s / seconds if seconds else 0.0,
            speed=audio_s / seconds if seconds else None,
            probe=probe,
            own=self.alarms,
        )


@dataclass
class Monitor:
    """Compares each measurement with the first and the best; `check` returns the alarms that were silent before.

    Its fields are plain values, which a checkpoint keeps: `Monitor(**vars(monitor))` goes on.
    """

    first_loss: float | None = None
    best_loss: float = math.inf
    first_ranks: list[float] = field(default_factory=list)
    first_spreads: list[float] = field(default_factory=list)
    least_entropy: float = 1.0
    best_speed: float = 0.0
    best_probe: dict[str, float] = field(default_factory=dict)
    ringing: list[str] = field(default_factory=list)

    def check(self, vitals: Vitals) -> dict[str, str]:
        """New alarms by name, each with one line of advice; one that goes on is not repeated until it has ceased.

        The first measurement, before any training, raises none.
        """
        first = self.first_loss is None
        if first:
            self.first_loss, self.first_ranks, self.first_spreads = vitals.loss, [*vitals.ranks], [*vitals.spreads]
        alarms = {} if first else dict(self._alarms(vitals))
        new = {name: line for name, line in alarms.items() if name not in self.ringing}
        self.ringing = sorted(alarms)
        if math.isfinite(vitals.loss):
            self.best_loss = min(self.best_loss, vitals.loss)
        if vitals.attention_entropy is not None:
            self.least_entropy = min(self.least_entropy, vitals.attention_entropy)
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
        yield from now.own.items()
        if now.clips >= LEAST_CLIPS:
            yield from self._collapse(now)
        if (entropy := now.attention_entropy) is not None:
            if entropy < 0.05:
                yield (
                    "attention",
                    (f"attention has shrunk to single frames (entropy {entropy:.3f}, from 0 to 1): lower train.lr"),
                )
            elif entropy > 0.995 and self.least_entropy < 0.9:
                yield (
                    "attention",
                    (
                        f"attention looks at all frames alike (entropy {entropy:.4f}, from 0 to 1; it was down to "
                        f"{self.least_entropy:.2f}): lower train.lr"
                    ),
                )
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

    def _collapse(self, now: Vitals) -> Iterator[tuple[str, str]]:
        for layer, (rank, spread) in enumerate(zip(now.ranks, now.spreads, strict=True)):
            first_rank, first_spread = self.first_ranks[layer], self.first_spreads[layer]
            # A network that learns may lose dimensions too at first, many of its random ones, while clips move apart;
            # one that collapses does not move them apart, or only along a line.
            narrow = rank < first_rank / 5 and (spread < 2 * first_spread or rank < 2)
            if narrow or spread < first_spread / 100:
                yield (
                    f"collapse of layer {layer}",
                    (
                        f"clip embeddings of layer {layer} shrink from {first_rank:.1f} to {rank:.1f} effective "
                        f"dimensions; the share of their power that differs between clips, from {first_spread:.1e} "
                        f"to {spread:.1e}: lower train.lr"
                    ),
                )
        for name, score in now.probe.items():
            best = self.best_probe.get(name, score)
            noise = 3 * math.sqrt(best * (1 - best) / now.clips) if 0 < best < 1 else 0.0  # binomial
            if best - score > max(0.2 * best, noise):
                yield f"probe {name}", f"the probe's {name} fell to {score:.3g} from {best:.3g}: lower train.lr"


@torch.no_grad()
def measure(
    method: Method, batches: Iterable[Batch], seed: int, precision: Callable[[], AbstractContextManager[Any]]
) -> Measurement:
    """Held-out losses of `method` in evaluation mode: the same draws for the same batches, whenever it is called."""
    totals: dict[str, float] = {}
    embeddings: list[list[Tensor]] = []  # a batch, a layer
    clip_ids: list[str] = []
    entropy: Tensor | None = None
    pictures: dict[str, Tensor] = {}
    sounds: dict[str, Tensor] = {}
    skipped: list[Skip] = []
    device, items = method.encoder.device, 0.0
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
                torch.manual_seed(seed)
                sounds = method.listen(batch)
            if len(clip_ids) < WATCHED_CLIPS:
                frames = method.encoder(batch.waveforms, batch.lengths)
                if not embeddings:
                    entropy = method.encoder.attention_entropy(frames)
                embeddings.append([pool_frames(hidden, frames.lengths).cpu() for hidden in frames.hidden_states])
                clip_ids += batch.clip_ids
        items += float(step.count)
        for name, value in {"loss": step.loss, **step.metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(value) * float(step.count)
    method.train()
    values = {name: value / items if items else math.nan for name, value in totals.items()}
    layers = [torch.cat(layer) for layer in zip(*embeddings, strict=True)]
    return Measurement(
        values=values,
        ranks=[effective_rank(layer) for layer in layers],
        spreads=[spread(layer) for layer in layers],
        pictures=pictures,
        sounds=sounds,
        skipped=skipped,
        clip_ids=clip_ids,
        embeddings=layers,
        attention_entropy=None if entropy is None else float(entropy),
        alarms=method.alarms(values),
    )


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
