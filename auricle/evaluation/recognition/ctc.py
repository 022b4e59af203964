"""SUPERB's head for phones (Yang et al. 2021, arXiv:2105.01051), trained by connectionist temporal classification.

Connectionist temporal classification: Graves et al. 2006. All heads of the grid learn from the same minibatches, so
that an encoder's frames are read, or computed, once for all of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from auricle.config import Config
from auricle.errors import EvaluationError
from auricle.evaluation.probes.heads import Trial
from auricle.evaluation.recognition.edits import Codes, edit_distances
from auricle.evaluation.recognition.frames import Utterances

log = logging.getLogger("auricle")

BLANK = 0
"""Label of no phone; phone k has label k + 1."""


class CtcConfig(Config):
    """How heads are trained; the learning rate is chosen on dev. Defaults are SUPERB's, but for the grid of rates."""

    lrs: tuple[float, ...] = Field((1e-3, 1e-2, 1e-1), min_length=1)
    """Adam's learning rates to try; constant. SUPERB's is 1e-2, and others may be tried there, too."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of the initial weights; scores are means over seeds."""
    hidden: int = Field(256, ge=1)
    batch: int = Field(32, ge=1)
    """Utterances a minibatch."""
    clip: float = Field(1.0, gt=0)
    """Greatest norm of a head's gradient."""
    max_steps: int = Field(100_000, ge=1)
    eval_every: int | Literal["epoch"] = "epoch"
    """Steps between measurements on dev; an epoch is taken as 25 at least and 1000 at most."""
    patience: int = Field(10, ge=1)
    """Measurements in a row without a better one after which a head stops (ours: SUPERB's train to the end)."""


class Recogniser(nn.Module):
    """Softmax-weighted sum of layers, Linear(D, hidden), Linear(hidden, labels): frames to log-probabilities."""

    def __init__(self, layers: int, dim: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))
        self.project, self.classify = nn.Linear(dim, hidden), nn.Linear(hidden, labels)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, T, L, D) to (B, T, V)."""
        summed = torch.einsum("btld,l->btd", frames, self.weights.softmax(0))
        weight = self.classify.weight @ self.project.weight  # phones are fewer than units: a fourth of the work
        bias = self.classify.weight @ self.project.bias + self.classify.bias
        return functional.linear(summed, weight, bias).log_softmax(-1)


@dataclass(frozen=True)
class Fitted:
    """The heads of the chosen learning rate, one a seed, and the dev phone error rates of all."""

    choice: Trial
    trials: list[Trial]
    heads: list[Recogniser]


def ctc_loss(log_probs: Tensor, lengths: Tensor, targets: Sequence[Codes]) -> Tensor:
    """(B,) losses a phone, 0 where there are too few frames; log-probabilities (B, T, V) of `lengths` (B,) frames."""
    counts = torch.tensor([len(target) for target in targets], device=log_probs.device)
    labels = torch.from_numpy(np.concatenate(targets) + 1).to(log_probs.device)
    losses = functional.ctc_loss(
        log_probs.transpose(0, 1), labels, lengths, counts, blank=BLANK, reduction="none", zero_infinity=True
    )
    return losses / counts


def greedy(log_probs: Tensor, lengths: Tensor) -> list[Codes]:
    """The likeliest label of each frame, runs of one label taken once, without blanks: codes of phones a clip."""
    labels = log_probs.argmax(2)
    first = torch.ones_like(labels, dtype=torch.bool)
    first[:, 1:] = labels[:, 1:] != labels[:, :-1]
    inside = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
    said = first & inside & (labels != BLANK)
    ends = said.sum(1).cumsum(0).cpu().numpy()
    return np.split(labels[said].cpu().numpy() - 1, ends[:-1])


@torch.no_grad()
def transcribe(heads: Sequence[Recogniser], source: Utterances, rows: NDArray[np.int64]) -> list[dict[int, Codes]]:
    """What each head hears in the clips that can be embedded, by row."""
    heard: list[dict[int, Codes]] = [{} for _ in heads]
    for some, frames, lengths in source.batches(rows):
        for head, clips in zip(heads, heard, strict=True):
            clips.update(zip(some.tolist(), greedy(head(frames), lengths), strict=True))
    return heard


@dataclass
class _Learner:
    """A head in training, and at its best on dev."""

    lr: float
    head: Recogniser
    optimizer: torch.optim.Adam
    kept: dict[str, Tensor] = field(default_factory=dict)
    best: tuple[float, float] = (math.inf, math.inf)
    """Phone error rate, and loss."""
    lowest: float = math.inf
    """Loss of any measurement."""
    stale: int = 0

    def measured(self, errors: float, loss: float) -> None:
        """Keep the weights if they are better; while only blanks are heard, a falling loss counts as progress."""
        progress = errors < self.best[0] or (errors >= 1 and loss < self.lowest)
        self.stale = 0 if progress else self.stale + 1
        self.lowest = min(self.lowest, loss) if loss == loss else self.lowest
        if loss == loss and (errors, loss) < self.best:
            self.best = errors, loss
            self.kept = {name: value.clone() for name, value in self.head.state_dict().items()}


def fit(
    source: Utterances,
    targets: NDArray[np.object_],
    train: NDArray[np.int64],
    dev: NDArray[np.int64],
    labels: int,
    config: CtcConfig,
) -> Fitted:
    """Train a head for each learning rate and seed on rows `train`; choose the rate by phone error rate on rows `dev`.

    `targets` (N,) are arrays of codes of phones, `labels` counts the phones and the blank. A tie goes to the lower
    loss. Raises `EvaluationError` where nothing is finite, or no clip of a part can be embedded.
    """
    learners = [_learner(source, labels, lr, seed, config) for lr in config.lrs for seed in config.seeds]
    _warn_too_short(source, targets, train)
    every = min(max(math.ceil(len(train) / config.batch), 25), 1000)
    every = every if config.eval_every == "epoch" else config.eval_every
    order = _minibatches(train, config.batch)
    for step in range(1, config.max_steps + 1):
        active = [learner for learner in learners if learner.stale < config.patience]
        _step(active, source, targets, next(order), config.clip)
        if step % every == 0 or step == config.max_steps:
            _measure(active, source, targets, dev)
            best = min(learner.best[0] for learner in learners)
            log.info("step %d: phone error rate %.4f at best on dev, heads in training: %d", step, best, len(active))
            if all(learner.stale >= config.patience for learner in learners):
                break
    return _chosen(learners, len(source.layers), source.layers[0], config)


def _learner(source: Utterances, labels: int, lr: float, seed: int, config: CtcConfig) -> _Learner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Recogniser(len(source.layers), source.dim, config.hidden, labels)
    head.to(source.encoder.device)
    return _Learner(lr, head, torch.optim.Adam(head.parameters(), lr))


def _step(
    learners: Sequence[_Learner],
    source: Utterances,
    targets: NDArray[np.object_],
    rows: NDArray[np.int64],
    clip: float,
) -> None:
    """A step of every learner on the mean loss of a minibatch, whose gradient is summed over its parts."""
    for learner in learners:
        learner.optimizer.zero_grad()
    for some, frames, lengths in source.batches(rows):
        for learner in learners:
            loss = ctc_loss(learner.head(frames), lengths, list(targets[some])).sum() / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
    for learner in learners:
        nn.utils.clip_grad_norm_(learner.head.parameters(), clip)
        learner.optimizer.step()


@torch.no_grad()
def _measure(
    learners: Sequence[_Learner], source: Utterances, targets: NDArray[np.object_], dev: NDArray[np.int64]
) -> None:
    references, losses = list[Codes](), [0.0 for _ in learners]
    heard: list[list[Codes]] = [[] for _ in learners]
    for some, frames, lengths in source.batches(dev):
        said = list(targets[some])
        references += said
        for place, learner in enumerate(learners):
            log_probs = learner.head(frames)
            heard[place] += greedy(log_probs, lengths)
            losses[place] += ctc_loss(log_probs, lengths, said).sum().item()
    if not references:
        name, reason = source.encoder.name or source.encoder.family, source.skipped[int(dev[0])]
        raise EvaluationError(f"{name} could embed none of the utterances in dev (the first: {reason})")
    phones = sum(map(len, references))
    for learner, hypotheses, loss in zip(learners, heard, losses, strict=True):
        learner.measured(float(edit_distances(hypotheses, references).sum() / phones), loss / len(references))


def _chosen(learners: Sequence[_Learner], layers: int, layer: int, config: CtcConfig) -> Fitted:
    """The learning rate with the best heads, seeds averaged."""
    trials, best, heads = list[Trial](), (math.inf, math.inf), list[Recogniser]()
    choice = None
    for lr in config.lrs:
        group = [learner for learner in learners if learner.lr == lr]
        trials.append(Trial("ctc", "sum" if layers > 1 else layer, lr, tuple(one.best[0] for one in group)))
        score = float(np.mean([one.best[0] for one in group])), float(np.mean([one.best[1] for one in group]))
        if score < best:
            best, choice = score, trials[-1]
            for one in group:
                one.head.load_state_dict(one.kept)
            heads = [one.head for one in group]
    if choice is None:
        raise EvaluationError("no head had a finite loss on dev; try smaller learning rates")
    return Fitted(choice, trials, heads)


def _minibatches(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Endless minibatches, near `size` each, reshuffled every epoch."""
    rng = np.random.default_rng(0)
    while True:
        yield from np.array_split(rng.permutation(rows), math.ceil(len(rows) / size))


def _warn_too_short(source: Utterances, targets: NDArray[np.object_], train: NDArray[np.int64]) -> None:
    """Tell of clips with fewer frames than CTC needs: one a phone, and one between two that are alike."""
    needed = np.array([len(target) + (target[1:] == target[:-1]).sum() for target in targets[train]])
    frames = source.manifest.durations[train] * source.encoder.sample_rate / source.encoder.hop
    if short := int((needed > np.ceil(frames)).sum()):
        name = source.encoder.name or source.encoder.family
        log.warning("%s: %d of %d utterances of train have more phones than frames", name, short, len(train))
