"""TRILL: windows of one clip nearer to each other than to other clips' (Shor et al. 2020, arXiv:2002.12764).

The triplet loss over temporal proximity is that of Jansen et al. 2018 (arXiv:1711.02209). Google published no training
code: the margin is recalled of Jansen et al.; how windows are drawn, the fallback of the mining, optimiser, rates,
batches and steps are ours. Its distilled form is in `trill_distilled`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.trill import Trill, TrillConfig
from auricle.methods.base import Method, RunConfig, Step
from auricle.nn.gather import gather_rows
from auricle.nn.triplets import Triplets, mine, squared_distances


class TrillObjective(Config):
    """Which windows belong together, and by how much."""

    tau_s: float = Field(10.0, gt=0)
    """Windows this near in time are positives, seconds: the longest crop, out of which both are cut. The paper: 10."""
    min_s: float = Field(1.5, gt=0)
    """Shorter clips are left out, seconds: too short for two windows that differ. Ours."""
    margin: float = Field(0.1, gt=0)
    """By how much the negative's squared distance should exceed the positive's. Jansen et al.: 0.1, as recalled."""


class TrillTriplets(Method):
    """The encoder alone: the loss is on its embeddings, brought to unit length."""

    encoder: Trill

    def __init__(self, encoder: TrillConfig, objective: TrillObjective) -> None:
        super().__init__()
        self.encoder = Trill(encoder)
        self.config = objective
        self.needs = DataNeeds(self.encoder.sample_rate, crop_s=objective.tau_s, min_s=objective.min_s)

    def forward(self, batch: Batch) -> Step:
        """Mean triplet loss, both windows of every clip being anchors; `count` is their number (0 for a clip alone).

        Negatives are sought in all processes' windows (in evaluation, where all hold the same clips, in this one's).
        Metrics: `fallback`, share of anchors without a negative farther than the positive; `active`, share of triplets
        with a loss; mean `d_positive` and `d_negative`; `embedding_std`, over the windows, mean over channels: 0 is
        collapse. In evaluation also `accuracy`, how often a random negative is farther than the positive, and
        `accuracy_log_mel`, of the same triplets by the windows' mean log-mel spectra. `trivial` is the margin, which
        is lost where all embeddings are one.
        """
        x, z = self._embed(batch)
        triplets = self._mine(z)
        losses = F.relu(triplets.positive - triplets.negative + self.config.margin)
        averaged = {
            "loss": losses,
            "fallback": triplets.is_fallback,
            "active": losses.detach() > 0,
            "d_positive": triplets.positive.detach(),
            "d_negative": triplets.negative.detach(),
        }
        if not self.training:
            spectra = x.mean(1)
            distances = torch.cdist(spectra, spectra, compute_mode="donot_use_mm_for_euclid_dist")
            plain = mine(distances, _clip_numbers([len(z)], z.device))
            averaged |= {"accuracy": triplets.accuracy, "accuracy_log_mel": plain.accuracy}
            averaged["trivial"] = torch.full_like(losses, self.config.margin)
        count = triplets.usable.sum()
        metrics = {name: (values * triplets.usable).sum() / count.clamp_min(1) for name, values in averaged.items()}
        loss = metrics.pop("loss")
        metrics["embedding_std"] = z.detach().std(0, correction=0).mean()
        return Step(loss, count, metrics)

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """Log-mel windows (T, F) of a triplet: the first clip's two, and the negative that is mined for the first."""
        x, z = self._embed(batch)
        rows = {"anchor": 0, "positive": len(x) // 2, "negative": int(self._mine(z).mined[0])}
        return {name: x[row].float().cpu() for name, row in rows.items()}

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-mel (2 B, T, F) of one window of every clip, then of another; and their embeddings of unit length."""
        size = self.encoder.config.patch_samples
        windows = cut_windows(batch.waveforms, batch.lengths, size)
        x, lengths = self.encoder.front_end(windows, torch.full((len(windows),), size, device=windows.device))
        layer = self.encoder.outputs["embedding"]
        embeddings = self.encoder.encode(x, lengths, layers=[layer]).hidden_states[0][:, 0]  # (2 B, D): a patch each
        return x, F.normalize(embeddings.float())

    def _mine(self, z: Tensor) -> Triplets:
        parts, rank = gather_rows(z) if self.training else ([z], 0)
        sizes = [len(part) for part in parts]
        return mine(squared_distances(z, torch.cat(parts)), _clip_numbers(sizes, z.device), sum(sizes[:rank]))


def cut_windows(waveforms: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Two random windows of `size` samples a clip: (B, S) to (2 B, size), the earlier ones first.

    They do not overlap where the clip is long enough for that; a shorter one's are its two ends.
    """
    slack = (lengths - size).clamp_min(0)  # (B,)
    apart = slack.clamp_max(size)
    room = slack - apart
    starts = (torch.rand(2, len(slack), device=slack.device) * (room + 1)).long().minimum(room)
    starts = torch.stack([starts.amin(0), starts.amax(0) + apart])
    index = starts[..., None] + torch.arange(size, device=slack.device)  # (2, B, size)
    waveforms = F.pad(waveforms, (0, max(0, size - waveforms.shape[1])))
    return waveforms.expand(2, -1, -1).gather(2, index).flatten(0, 1)


def _clip_numbers(sizes: list[int], device: torch.device) -> Tensor:
    """The clip of each window, of processes with so many windows (2 B) each: 0..B-1 twice, B..B+B'-1 twice, ..."""
    first, parts = 0, []
    for size in sizes:
        parts.append(first + torch.arange(size, device=device) % max(size // 2, 1))
        first += size
    return torch.cat(parts)


class TrillRun(RunConfig):
    """A TRILL run."""

    method: ClassVar[str] = "trill"
    preset: str = "trill_base"
    encoder: TrillConfig = TrillConfig()
    objective: TrillObjective = TrillObjective()

    def build(self) -> TrillTriplets:
        """The method with fresh weights."""
        return TrillTriplets(self.encoder, self.objective)


ADAM = {"lr": 1e-4, "weight_decay": 0.0, "clip_norm": 1.0}


def trill_base() -> TrillRun:
    """TRILL: Resnetish-50, 24.6 M weights, 128 crops of 10 s a step. Optimisation and batches are ours."""
    train = {**ADAM, "steps": 200_000, "checkpoint_every": 5000}
    return edit(TrillRun(preset="trill_base"), data={"batch_seconds": 1280.0}, train=train)


def trill_tiny() -> TrillRun:
    """A quarter as wide with one block a stage, for two CPU cores: minutes of training on an hour of recordings.

    Windows out of 3 s, since many recordings are short; patches every 0.48 s. At 1e-3 it learns as fast, but loses more
    of what serves sounds that it has never heard.
    """
    return edit(
        trill_base(),
        preset="trill_tiny",
        encoder={"width": 16, "blocks": (1, 1, 1, 1), "patch_hop": 48},
        objective={"tau_s": 3.0, "min_s": 1.25},
        data={"batch_seconds": 96.0},
        train={"steps": 300, "lr": 3e-4, "valid_every": 100, "checkpoint_every": 100},
    )
