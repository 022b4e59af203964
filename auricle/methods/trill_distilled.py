"""TRILL distilled: a small network learns what a trained TRILL says (Shor et al. 2020, arXiv:2002.12764).

As there, and in FRILL (Peplinski et al. 2021, arXiv:2011.04609), the student regresses the teacher's `layer19` through
a linear head that is thrown away. The student's network is of FRILL's kind, MobileNetV3-Small with 2048 channels behind
it, Adam at 1e-3 FRILL's default; batches, steps and the schedule are ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.checkpoint import load
from auricle.encoders.trill import Trill, TrillConfig
from auricle.errors import ConfigError
from auricle.methods.base import Method, RunConfig, Step
from auricle.methods.trill import ADAM, trill_tiny
from auricle.nn.linear import Linear
from auricle.nn.resnet import STRIDE


class DistilObjective(Config):
    """Whose layer is learned, and on what."""

    teacher: str = ""
    """Run or checkpoint folder of a trained TRILL. The run keeps its weights: it needs the folder once."""
    teacher_encoder: TrillConfig = TrillConfig()
    """The teacher's own config, which tells its size."""
    crop_s: float = Field(1.0, gt=0)
    """Longest crop, seconds. Ours: one patch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.teacher_encoder.network != "resnetish":
            raise ValueError("teacher_encoder.network: only 'resnetish' has a layer19 to learn")
        return self


class TrillDistilled(Method):
    """Student, teacher, and a linear head from student's embedding to teacher's `layer19`, both for training only."""

    encoder: Trill

    def __init__(self, encoder: TrillConfig, objective: DistilObjective) -> None:
        super().__init__()
        self.encoder = Trill(encoder)
        self.config = objective
        self.needs = DataNeeds(self.encoder.sample_rate, crop_s=objective.crop_s)
        self.teacher = Trill(objective.teacher_encoder).requires_grad_(False)
        self.head = Linear(encoder.embedding, self.teacher.dims[self.teacher.outputs["layer19"]])

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Take over the teacher's weights. Raises `CheckpointError` where there are none, `ConfigError` where the
        teacher is not the one that `teacher_encoder` describes."""
        teacher = load(self.config.teacher, self.encoder.device)
        if teacher.config != self.teacher.config:
            raise ConfigError(
                f"{self.config.teacher}: is not of the kind that objective.teacher_encoder describes; copy the "
                "'encoder' of its run's config.yaml there"
            )
        self.teacher.load_state_dict(teacher.state_dict())

    def forward(self, batch: Batch) -> Step:
        """Mean squared error to the teacher's `layer19`, over patches and channels; `count` is the patches.

        `trivial` predicts the batch's mean, channel by channel.
        """
        wanted, guess, true = self._compare(batch)
        count = true.sum()
        loss = ((guess - wanted).square().mean(2) * true).sum() / count.clamp_min(1)
        if self.training:
            return Step(loss, count)
        mean = (wanted * true[..., None]).sum((0, 1)) / count.clamp_min(1)
        trivial = ((wanted - mean).square().mean(2) * true).sum() / count.clamp_min(1)
        return Step(loss, count, {"trivial": trivial})

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """`teacher` and `student`: `layer19` of the first clip's first patch, six times by (frequency, channel)."""
        wanted, guess, _ = self._compare(batch)
        rows = -(-self.teacher.config.patch_frames // STRIDE)
        return {"teacher": wanted[0, 0].reshape(rows, -1).cpu(), "student": guess[0, 0].reshape(rows, -1).cpu()}

    def _compare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the teacher says (B, P, D), what the head says, and which patches are true (B, P); float32."""
        x, lengths = self.encoder.features(batch.waveforms, batch.lengths)
        with torch.no_grad():
            said = self.teacher.encode(x, lengths, layers=[self.teacher.outputs["layer19"]])
        wanted = said.hidden_states[0].float()
        guess = self.head(self.encoder.encode(x, lengths, layers=[self.encoder.outputs["embedding"]]).hidden_states[0])
        true = torch.arange(wanted.shape[1], device=x.device) < said.lengths[:, None]
        return wanted, guess.float(), true


class TrillDistilledRun(RunConfig):
    """A run that distils a trained TRILL into a smaller network."""

    method: ClassVar[str] = "trill_distilled"
    preset: str = "trill_distilled"
    encoder: TrillConfig = TrillConfig(network="mobilenet", embedding=2048)
    objective: DistilObjective = DistilObjective()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("front_end", "min_samples", "patch_frames", "patch_hop"):
            if getattr(self.encoder, name) != getattr(self.objective.teacher_encoder, name):
                raise ValueError(f"encoder.{name}: student and teacher see the same patches; make both equal")
        return self

    def check_ready(self) -> None:
        """Raise `ConfigError` where no teacher is named."""
        if not self.objective.teacher:
            raise ConfigError("objective.teacher: missing; name the run or checkpoint folder of a trained TRILL")

    def build(self) -> TrillDistilled:
        """The method with fresh weights; the teacher's come with `prepare`."""
        return TrillDistilled(self.encoder, self.objective)


def trill_distilled() -> TrillDistilledRun:
    """The distilled student: MobileNetV3-Small, an embedding of 2048, learning from Resnetish-50's `layer19`."""
    train = {**ADAM, "steps": 200_000, "lr": 1e-3, "checkpoint_every": 5000}
    return edit(TrillDistilledRun(preset="trill_distilled"), data={"batch_seconds": 256.0}, train=train)


def trill_distilled_tiny() -> TrillDistilledRun:
    """A student of half MobileNet's width and 256 channels, learning from `trill_tiny`; for two CPU cores."""
    return edit(
        trill_distilled(),
        preset="trill_distilled_tiny",
        encoder={"alpha": 0.5, "embedding": 256, "patch_hop": 48},
        objective={"teacher_encoder": trill_tiny().encoder.model_dump()},
        data={"batch_seconds": 32.0},
        train={"steps": 2000, "valid_every": 500, "checkpoint_every": 1000},
    )
