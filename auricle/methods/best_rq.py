"""BEST-RQ: hide spans of the spectrogram, tell the labels that a frozen random projection gives to what was there.

Chiu et al. 2022, arXiv:2202.01855. No clusters to fit, no teacher. What is said of the paper is recalled; what is said
of SpeechBrain and NeMo was read in their recipes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.features.normalize import frame_mask
from auricle.methods.base import Method, RunConfig, Step
from auricle.nn.linear import Linear
from auricle.nn.masking import draw_spans, masked_bound, masked_positions
from auricle.nn.patches import gather_tokens
from auricle.nn.quantizer import RandomProjectionQuantizer
from auricle.nn.transformer import init_weights

_PICTURED = 64
"""Codes in a picture: the most frequent."""


class BestRqConfig(Config):
    """Which steps are hidden, and among which labels theirs has to be found."""

    codes: int = Field(8192, ge=2)
    """Codes of a codebook. 8192 in the paper, SpeechBrain and NeMo."""
    code_dim: int = Field(16, ge=1)
    """Channels of a code. 16 in all three."""
    codebooks: int = Field(1, ge=1)
    """Codebooks, each with its own projection and head; the loss is the mean over them. 1 in all three."""
    mask_fraction: float = Field(0.33, gt=0, le=1)
    """Share of a clip's steps that is hidden. In the paper each frame of 10 ms starts a span with probability 0.01,
    which hides 33 % on average; here every clip has its share."""
    span: int = Field(20, ge=1)
    """Steps of a span; spans lie apart. 400 ms in the paper and NeMo."""
    noise_std: float = Field(0.1, ge=0)
    """Standard deviation of the noise that takes the place of hidden steps, in units of the features."""
    crop_s: float = Field(15.0, gt=0)
    """Longest crop, seconds."""
    min_s: float = Field(2.0, ge=0)
    """Shorter clips are left out, seconds. 2 in SpeechBrain."""
    count_batches: int = Field(100, ge=1)
    """Batches whose labels are counted before the first step: the trivial level knows how frequent each is. Where the
    encoder is to `standardize`, as many before them give it its statistics."""


class _Guess(NamedTuple):
    """A batch's hidden steps."""

    features: Tensor  # (B, T, F)
    masked: Tensor  # (B, T, F): with noise in the hidden steps
    lengths: Tensor  # (B,)
    hidden: Tensor  # (B, N): their numbers
    valid: Tensor  # (B, N)
    labels: Tensor  # (B, N, G)
    logits: Tensor  # (B, N, G, V), float32


class BestRq(Method):
    """Encoder, quantizer and a linear head for each codebook. The head runs on hidden steps only."""

    encoder: MelTransformer
    label_counts: Tensor

    def __init__(self, encoder: MelTransformerConfig, objective: BestRqConfig) -> None:
        super().__init__()
        self.encoder = MelTransformer(encoder)
        self.config = objective
        self.needs = DataNeeds(self.encoder.sample_rate, crop_s=objective.crop_s, min_s=objective.min_s)
        codes, codebooks = objective.codes, objective.codebooks
        self.quantizer = RandomProjectionQuantizer(self.encoder.front_end.dim, codes, objective.code_dim, codebooks)
        self.head = Linear(encoder.dim, codebooks * codes).apply(init_weights)
        self.register_buffer("label_counts", torch.zeros(codebooks, codes, dtype=torch.int64))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Give the encoder its statistics; count how often each label occurs in training data."""
        batches = iter(batches)
        if self.encoder.config.standardize:
            heard = islice(batches, self.config.count_batches)
            self.encoder.fit((batch.waveforms, batch.lengths) for batch in heard)
        codebooks, codes = self.label_counts.shape
        first = torch.arange(codebooks, device=self.label_counts.device) * codes
        for batch in islice(batches, self.config.count_batches):
            x, lengths = self.encoder.features(batch.waveforms, batch.lengths)
            labels = self.quantizer(x[frame_mask(x, lengths)[..., 0]]) + first  # (N, G)
            self.label_counts += labels.flatten().bincount(minlength=codebooks * codes).view(codebooks, codes)

    def forward(self, batch: Batch) -> Step:
        """Mean cross-entropy of hidden steps' labels; `count` is their number.

        `trivial` foretells each label by its frequency in training data (one added to every count), and
        `trivial_accuracy` always names the most frequent; `label_perplexity` is what the frequencies leave open.
        """
        guess = self._guess(batch)
        weight = guess.valid.float()[:, :, None] / len(self.label_counts)  # (B, N, 1)
        count = guess.valid.sum().float()

        def mean(values: Tensor) -> Tensor:  # (B, N, G)
            return (values * weight).sum() / count.clamp_min(1)

        loss = mean(F.cross_entropy(guess.logits.movedim(3, 1), guess.labels, reduction="none"))
        metrics = {"masked_accuracy": mean((guess.logits.argmax(3) == guess.labels).float())}
        if not self.training:
            frequency = (self.label_counts + 1).float()
            frequency = frequency / frequency.sum(1, keepdim=True)  # (G, V)
            surprise = -frequency.log()
            metrics["trivial"] = mean(surprise[torch.arange(len(surprise), device=surprise.device), guess.labels])
            metrics["trivial_accuracy"] = mean((guess.labels == frequency.argmax(1)).float())
            metrics["label_perplexity"] = (frequency * surprise).sum(1).exp().mean()
        return Step(loss, count, metrics)

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """Of the first clip `features` and `masked`, each (T, F), stacked frames unstacked; beside them, for the first
        codebook's most frequent codes, the true `labels` of hidden steps and their `probability`, (N, 64) or fewer."""
        guess = self._guess(Batch(batch.waveforms[:1], batch.lengths[:1], batch.clip_ids[:1], batch.starts[:1]))
        steps, stack = int(guess.lengths[0]), self.encoder.config.front_end.stack
        pictures = {"features": guess.features, "masked": guess.masked}
        pictures = {name: x[0, :steps].float().reshape(steps * stack, -1) for name, x in pictures.items()}
        order = self.label_counts[0].argsort(descending=True, stable=True)[:_PICTURED]
        hidden = guess.valid[0]
        pictures["labels"] = (guess.labels[0, hidden, :1] == order).float()
        pictures["probability"] = guess.logits[0, hidden, 0].softmax(1)[:, order]
        return {name: picture.cpu() for name, picture in pictures.items()}

    def _guess(self, batch: Batch) -> _Guess:
        config = self.config
        x, lengths = self.encoder.features(batch.waveforms, batch.lengths)  # (B, T, F)
        steps, span = x.shape[1], (config.span, config.span)
        hidden = draw_spans(lengths, steps, fraction=config.mask_fraction, span=span).mask(steps)
        index, valid = masked_positions(hidden, masked_bound(steps, config.mask_fraction, config.span))
        masked = torch.where(hidden[:, :, None], torch.randn_like(x) * config.noise_std, x)
        states = self.encoder.encode(masked, lengths, layers=[self.encoder.config.layers]).hidden_states[0]
        logits = self.head(gather_tokens(states, index)).float().unflatten(2, self.label_counts.shape)
        return _Guess(x, masked, lengths, index, valid, self.quantizer(gather_tokens(x, index)), logits)


class BestRqRun(RunConfig):
    """A BEST-RQ run."""

    method: ClassVar[str] = "best_rq"
    preset: str = "best_rq_base"
    encoder: MelTransformerConfig = MelTransformerConfig()
    objective: BestRqConfig = BestRqConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.encoder.front_end.normalize == "none" and not self.encoder.standardize:
            raise ValueError("encoder.standardize: without it, or front_end.normalize, a few codes get all the frames")
        return self

    def build(self) -> BestRq:
        """The method with fresh weights."""
        return BestRq(self.encoder, self.objective)


def best_rq_base() -> BestRqRun:
    """12 pre-norm layers of 768, a step every 20 ms: 48 minutes of audio an update, as HuBERT has.

    The paper's network, a Conformer of 600 million weights, is none of ours; rate and moments are near SpeechBrain's.
    """
    return edit(
        BestRqRun(preset="best_rq_base"),
        encoder={
            "front_end": {"stack": 2},
            "layers": 12,
            "norm": "pre",
            "norm_eps": 1e-5,
            "chunk_frames": 750,
        },
        data={"batch_seconds": 360.0},
        train={
            "steps": 300_000,
            "lr": 5e-4,
            "warmup": 25 / 300,
            "betas": (0.9, 0.98),
            "clip_norm": 10.0,
            "accumulate": 8,
            "checkpoint_every": 5000,
        },
    )


def best_rq_tiny() -> BestRqRun:
    """3 pre-norm layers of 256, a step every 20 ms, for two CPU cores: minutes of training on an hour of recordings.

    Fewer codes, because an hour holds few frames, and several codebooks, whose labels together tell more of each;
    spans of 200 ms, because short clips have to hold some.
    """
    return edit(
        best_rq_base(),
        preset="best_rq_tiny",
        encoder={
            "dim": 256,
            "layers": 3,
            "heads": 4,
            "ffn": 1024,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "position_jitter": 20,
            "chunk_frames": 250,
        },
        objective={
            "codes": 256,
            "codebooks": 8,
            "mask_fraction": 0.4,
            "span": 10,
            "crop_s": 5.0,
            "min_s": 0.25,
            "count_batches": 50,
        },
        data={"batch_seconds": 16.0},
        train={
            "steps": 4000,
            "lr": 1e-3,
            "warmup": 0.07,
            "clip_norm": 1.0,
            "accumulate": 1,
            "valid_every": 500,
            "checkpoint_every": 1000,
        },
    )


def best_rq_music_tiny() -> BestRqRun:
    """`best_rq_tiny` on features whose mean and variance are those of the data, not of the clip: a note's pitch lasts
    as long as the clip."""
    encoder = {"front_end": {"normalize": "none"}, "standardize": True}
    return edit(best_rq_tiny(), preset="best_rq_music_tiny", encoder=encoder)
