"""The contract of a method, and the run configuration that every method extends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import tyro
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import Config
from auricle.data.batching import Batch, DataConfig, DataNeeds
from auricle.encoders.base import Encoder


class Step(NamedTuple):
    """What a method returns for a batch.

    `loss` () is a mean over `count` () items (masked values, frames, clips): the loop weighs micro-batches and
    processes by `count`. `metrics` are scalars () to log; in evaluation mode they include `trivial`, the loss of the
    best predictor that has learned nothing, on the same batch. None of it may synchronise with the host.
    (A named tuple, because sharded training looks for the tensors in what a model returns.)
    """

    loss: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    metrics: Mapping[str, Tensor] = MappingProxyType({})


class Method(nn.Module):
    """An objective with its encoder, heads, teacher and clusters. It knows nothing of loops or files.

    Randomness comes from torch's global generator, which the loop seeds before every call. The encoder is built
    first in `__init__`, so that an untrained twin can be built from the encoder's config and the seed alone.
    """

    encoder: Encoder
    needs: DataNeeds
    skips_weights: bool = False
    """Some steps leave trainable weights without a gradient. Several processes then search for them at every step."""

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Fit what is fitted once, before step 0 (clusters, dataset statistics). Never called on resume."""

    @abstractmethod
    def forward(self, batch: Batch) -> Step:
        """The loss of a batch."""

    def on_optimizer_step(self, step: int) -> None:
        """Called after each optimizer step (teachers follow here); `step` counts from 1."""

    def rates(self) -> Mapping[str, float]:
        """Factors on the learning rate of the weights that they name; all others learn at `train.lr`."""
        return {}

    def alarms(self, held_out: Mapping[str, float]) -> dict[str, str]:
        """What the method's own metrics, measured on held-out clips, say is wrong: name → one line, with advice.

        Of these an alarm is written into the log and told; the first measurement, before any training, raises none.
        """
        return {}

    def compile_networks(self) -> None:
        """Put under `torch.compile` what takes the time: the encoder, unless a method says more."""
        self.encoder.compile_networks()

    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures of the batch's first clip, each (T, F) with low frequencies first, on the CPU; may be empty.

        Those of equal T are drawn on one scale.
        """
        return {}

    def listen(self, batch: Batch) -> dict[str, Tensor]:
        """Sounds of the batch's first clip, each (S,) at the encoder's rate, on the CPU; may be empty."""
        return {}


class TrainConfig(Config):
    """Optimisation and bookkeeping of a run."""

    steps: int = Field(20_000, ge=1)
    """Optimizer steps."""
    init: Annotated[str | None, tyro.conf.arg(aliases=["--init"])] = None
    """Begin with the weights of this encoder (a run folder, hf:DIR, s3prl:FILE or another form, see auricle list
    encoders) instead of random ones; built as `encoder` says but for dropouts."""
    seed: int = Field(0, ge=0)
    """Decides initial weights, order of clips, crops, masks and dropout."""
    lr: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    warmup: float = Field(0.07, ge=0, le=1)
    """Fraction of the steps over which the learning rate rises linearly, from 0 (`tri_stage`: from 1 % of the peak)."""
    schedule: Literal["linear", "cosine", "constant", "tri_stage"] = "linear"
    """How the learning rate goes on after warm-up: it falls to 0 in a line or half a cosine, stays as it is, or stays
    for `hold` of the steps and then falls exponentially to 1 % of the peak (fairseq's tri-stage)."""
    hold: float = Field(0.9, ge=0, le=1)
    """Fraction of the steps over which `tri_stage` stays at the peak; other schedules have no use for it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's denominator floor."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay; biases and norms are left out."""
    clip_norm: float | None = Field(5.0, gt=0)
    """Gradients are scaled down to this global norm; None leaves them as they are."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches an optimizer step, weighed by their counts."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` is bf16 where the hardware multiplies it natively, else fp32."""
    compile: bool = False
    """Run the network under `torch.compile`."""
    device: str = "auto"
    """`auto` (a GPU if there is one), or a torch device such as `cpu` or `cuda:0`."""
    sharding: Literal["none", "fsdp"] = "none"
    """With several processes: `none` gives each the whole model (DDP); `fsdp` gives each a shard of every weight, its
    gradient and its moments, for models that do not fit, and only for methods without a teacher. Checkpoints are whole
    either way."""
    log_every: int = Field(20, ge=1)
    """Steps between lines in metrics.jsonl and TensorBoard."""
    valid_every: int = Field(500, ge=1)
    """Steps between measurements of the held-out loss and pictures."""
    probe: str | None = None
    """Label column that a quick linear probe predicts from held-out clips at every measurement; labels never reach
    training."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept; older ones are deleted."""
    stop_after_s: float | None = Field(None, gt=0)
    """Stop early, with a checkpoint, after this many seconds of training; `--resume` goes on from there."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.sharding == "fsdp" and self.compile:
            raise ValueError("sharding: 'fsdp' and compile exclude each other")
        if self.schedule == "tri_stage" and self.warmup + self.hold > 1 + 1e-9:
            raise ValueError(f"hold: {self.hold:g} and warmup, {self.warmup:g}, are more than all steps")
        return self


class RunConfig(Config):
    """A whole pre-training run. A method's own class narrows `encoder` and `objective` to its configs."""

    method: ClassVar[str]
    """Key in the table of methods."""
    preset: Annotated[str, tyro.conf.Suppress]
    """The preset this began as."""
    encoder: Config
    objective: Config
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def check_ready(self) -> None:
        """Raise `ConfigError` for what a new run needs and this one lacks; asked before its folder is made."""

    @abstractmethod
    def build(self) -> Method:
        """The method with fresh weights from torch's global generator."""
