"""CSC: one embedding a talker out of mixtures, whoever else talks (Wang et al. 2021, arXiv:2103.00816).

The network separates mixtures and embeds each talker; embeddings of a recording in several mixtures are told from those
of others. Of the paper, its abstract and half of its introduction were read; no code of it is public. METHODS.md says
what they state. Sizes of the separation network are those of its authors' released block; all else is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from auricle.config import edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.csc import CscConfig, CscEncoder
from auricle.methods.base import Method, RunConfig, Step
from auricle.methods.contrast import Contrast, ContrastConfig
from auricle.nn.mixtures import MixConfig, Mixtures, mix
from auricle.nn.separation import best_permutation, in_order, pairwise_si_snr, si_snr

LEAST_SPREAD = 0.01
"""Share of the power of embeddings that must differ between talkers, or they have collapsed."""


class CscObjective(ContrastConfig):
    """What is mixed, and how the parts of the loss weigh; who counts as the same talker stands in `ContrastConfig`."""

    crop_s: float = Field(4.0, gt=0)
    """Seconds of a crop."""
    crops: int = Field(2, ge=1)
    """Crops of a recording (M), none overlapping, each in a mixture of its own. Shorter recordings are left out."""
    mix: MixConfig = MixConfig()
    """How crops are mixed."""
    separation: float = Field(1.0, ge=0)
    """Weight of the separation loss, in dB. At 0 nothing is separated, and the first stream is the target's: as a rule
    the louder one's, by `mix.sir_db`."""
    contrastive: float = Field(5.0, ge=0)
    """Weight of the contrast of attended embeddings."""
    bottom_up: float = Field(5.0, ge=0)
    """Weight of the contrast of the embeddings themselves, which are what is used later."""
    separation_first: int = Field(0, ge=0)
    """Steps of separation alone, before the contrasts weigh anything."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.vectors == "inbatch" and self.crops < 2:
            raise ValueError("crops: 'inbatch' compares conditions of a recording, and so needs two or more")
        return self


class _Heard(NamedTuple):
    """What the network says of I recordings in M mixtures of C talkers each, in the order of the sources."""

    mixed: Mixtures
    z: Tensor  # (I, M, C, E), of unit length
    estimates: Tensor | None  # (I M, C, S); None where nothing is separated
    after: Tensor  # (I, M): SI-SNR of the estimates, mean over talkers, dB
    before: Tensor  # (I, M): that of the mixture itself


class Csc(Method):
    """Encoder, and the contrast of its embeddings."""

    encoder: CscEncoder
    step: Tensor

    def __init__(self, encoder: CscConfig, objective: CscObjective) -> None:
        super().__init__()
        self.encoder = CscEncoder(encoder)
        self.encoder.supervision = objective.supervision
        self.config = objective
        self.needs = DataNeeds(
            encoder.sample_rate,
            crop_s=objective.crop_s,
            columns=(objective.column,),
            crops=objective.crops,
            disjoint=True,
            min_clips=objective.mix.sources,
        )
        for name, weight in self.encoder.named_parameters():
            unused = name.startswith(("separation", "masks", "front.synthesis")) and not objective.separation
            weight.requires_grad_(not unused)
        self.contrast = Contrast(encoder.embedding, objective)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Make the first clusters, where they are the supervision."""
        with torch.no_grad():
            self.contrast.begin(self._hear(batch).z for batch in batches)

    def forward(self, batch: Batch) -> Step:
        """Separation and both contrasts, means over mixtures; `count` is their number.

        Recordings of which a mixture is not usable (silence, or nobody there to interfere) count for nothing.
        `information` is a lower bound of what an attended embedding tells of the talker, nats; a held-out one, and of
        the batch's talkers, in evaluation mode, whatever vectors training has.
        """
        config, heard = self.config, self._hear(batch)
        told = self.contrast(heard.z, heard.mixed, self._codes(batch))
        weight = heard.mixed.usable.all(1, keepdim=True).float().expand(heard.after.shape)  # (I, M)
        count = weight.sum()

        def mean(values: Tensor) -> Tensor:
            return (values * weight).sum() / count.clamp_min(1)

        attended, bottom_up, chance = mean(told.attended), mean(told.bottom_up), mean(told.chance)
        on = (self.step >= config.separation_first) | (not self.training)
        loss = on * (config.contrastive * attended + config.bottom_up * bottom_up)
        metrics = {
            "contrastive": attended,
            "bottom_up": bottom_up,
            "information": chance - attended,
            "information_share": (chance - attended) / chance.clamp_min(1e-9),
            "accuracy": mean(told.attended_right),
            "bottom_up_accuracy": mean(told.bottom_up_right),
            "embedding_spread": 1 - heard.z.flatten(0, 2).mean(0).square().sum(),
            "alpha": self.contrast.vectors.alpha,
        }
        trivial = (config.contrastive + config.bottom_up) * chance
        if config.separation:
            loss = loss - config.separation * mean(heard.after)
            trivial = trivial - config.separation * mean(heard.before)
            metrics["si_snr_improvement"] = mean(heard.after - heard.before)
        if not self.training:
            metrics |= {"contrastive_trivial": chance, "trivial": trivial}
        return Step(loss, count, {name: value.detach() for name, value in metrics.items()})

    def on_optimizer_step(self, step: int) -> None:
        """Averaged vectors follow, clusters are made anew. Raises `ConfigError` for more labels than `identities`."""
        self.step.fill_(step)
        self.contrast.follow(step)

    def alarms(self, held_out: Mapping[str, float]) -> dict[str, str]:
        """`collapse`: embeddings all point the same way; `no information`: they tell nobody apart."""
        spread, guessing = held_out["embedding_spread"], held_out["contrastive_trivial"]
        if spread < LEAST_SPREAD:
            return {"collapse": f"embeddings differ in {spread:.1e} of their power: lower train.lr"}
        if guessing > 0 and held_out["information"] <= 0:
            costs = f"costs {held_out['contrastive']:.3g} nats, guessing {guessing:.3g}"
            return {"no information": f"telling talkers by their embeddings {costs}: train longer, or on more of them"}
        return {}

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """Log spectra (T, F) of the first mixture, its target and the estimate of it; and how attention weighs the
        conditions (M, M) of that recording."""
        heard, attention = self._hear(self._few(batch)), self.contrast.attention
        sounds = {"mixture": heard.mixed.mixture[0, 0], "target": heard.mixed.sources[0, 0, 0]}
        if heard.estimates is not None:
            sounds["estimate"] = heard.estimates[0, 0]
        pictures = {name: _log_spectrum(sound, self.needs.sample_rate) for name, sound in sounds.items()}
        if attention is not None and attention.scope == "identity":
            pictures["attention"] = attention(heard.z[:1, :, 0])[1][0]
        return {name: picture.float().cpu() for name, picture in pictures.items()}

    @torch.no_grad()
    def listen(self, batch: Batch) -> dict[str, Tensor]:
        """The first mixture, its talkers, and what is separated of each, as loud as the talker (S,)."""
        heard = self._hear(self._few(batch))
        sounds = {"mixture": heard.mixed.mixture[0, 0]}
        for number, source in enumerate(heard.mixed.sources[0, 0]):
            sounds[f"talker-{number + 1}"] = source
            if heard.estimates is not None:
                estimate = heard.estimates[0, number]
                sounds[f"talker-{number + 1}-separated"] = estimate * source.abs().amax() / estimate.abs().amax()
        return {name: sound.float().nan_to_num().cpu() for name, sound in sounds.items()}

    def _few(self, batch: Batch) -> Batch:
        """The batch's first two recordings."""
        rows = 2 * self.config.crops
        labels = {name: codes[:rows] for name, codes in batch.labels.items()}
        return replace(batch, waveforms=batch.waveforms[:rows], lengths=batch.lengths[:rows], labels=labels)

    def _hear(self, batch: Batch) -> _Heard:
        """Mix, separate and embed; one permutation puts estimates and embeddings into the order of the sources."""
        conditions, rate = self.config.crops, self.needs.sample_rate
        mixed = mix(batch.waveforms, batch.lengths, conditions, self.config.mix, self._codes(batch), sample_rate=rate)
        mixture, sources = mixed.mixture.flatten(0, 1), mixed.sources.flatten(0, 1)  # (I M, S), (I M, C, S)
        before = si_snr(mixture[:, None], sources).mean(1).view(-1, conditions)
        if not self.config.separation:
            z = self.encoder.streams(mixture, batch.lengths)
            return _Heard(mixed, z.view(-1, conditions, *z.shape[1:]), None, before, before)
        separated = self.encoder.separate(mixture)
        pairs = pairwise_si_snr(separated.estimates, sources)  # (I M, C, C)
        order = best_permutation(pairs)
        after = in_order(pairs, order).diagonal(dim1=1, dim2=2).mean(1).view(-1, conditions)
        z = in_order(self.encoder.embed(separated.tokens), order)
        return _Heard(mixed, z.view(-1, conditions, *z.shape[1:]), in_order(separated.estimates, order), after, before)

    def _codes(self, batch: Batch) -> Tensor:
        """Of whom each recording is known to be (I,): of a speaker, say, or of nobody but itself."""
        return batch.labels[self.config.column][:: self.config.crops]


def _log_spectrum(waveform: Tensor, sample_rate: int) -> Tensor:
    """(T, F) of a waveform (S,): 32 ms every 16 ms, down to 60 dB below the loudest."""
    hop = sample_rate * 16 // 1000
    window = torch.hann_window(2 * hop, device=waveform.device)
    power = torch.stft(waveform.float(), 2 * hop, hop, window=window, return_complex=True).abs().square().T
    return (power + 1e-6 * power.amax() + 1e-12).log()


class CscRun(RunConfig):
    """A CSC run."""

    method: ClassVar[str] = "csc"
    preset: str = "csc_galr_base"
    encoder: CscConfig = CscConfig()
    objective: CscObjective = CscObjective()

    @model_validator(mode="after")
    def _check(self) -> Self:
        streams, talkers = self.encoder.sources, self.objective.mix.sources
        if streams != talkers:
            raise ValueError(f"encoder.sources: {streams} streams for objective.mix.sources, {talkers} talkers")
        return self

    def build(self) -> Csc:
        """The method with fresh weights."""
        return Csc(self.encoder, self.objective)


ADAM = {"lr": 1e-3, "weight_decay": 0.0, "clip_norm": 5.0}


def csc_galr_base() -> CscRun:
    """GALR of the published size at 8 kHz, 8 recordings a step in two mixtures of 4 s each."""
    train = {**ADAM, "steps": 200_000, "warmup": 0.02, "checkpoint_every": 5000}
    return edit(CscRun(preset="csc_galr_base"), data={"batch_seconds": 64.0}, train=train)


def csc_mel_base() -> CscRun:
    """A Transformer over log-mel frames at 16 kHz, much cheaper: 64 recordings a step in two mixtures of 4 s each."""
    network = {"trunk": "mel", "sample_rate": 16_000, "embedding": 256, "dim": 512, "ffn": 2048, "shared_blocks": 8}
    return edit(
        csc_galr_base(),
        preset="csc_mel_base",
        encoder=network,
        data={"batch_seconds": 512.0},
        train={"steps": 100_000, "lr": 3e-4, "warmup": 0.07},
    )


def csc_tiny() -> CscRun:
    """A small one at 8 kHz, for two CPU cores: minutes of training on an hour of speech.

    In trials 32 recordings a step told talkers apart better than 16 in more steps, and equalisers gained nothing.
    """
    network = {"sample_rate": 8000, "embedding": 64, "dim": 128, "heads": 4, "ffn": 256}
    return edit(
        csc_mel_base(),
        preset="csc_tiny",
        encoder={**network, "shared_blocks": 2, "separation_blocks": 1, "speaker_blocks": 1},
        objective={"crop_s": 1.0, "alpha": 3.0, "mix": {"eq_db": 0.0}},
        data={"batch_seconds": 64.0, "valid_fraction": 0.1},
        train={"steps": 800, "lr": 1e-3, "valid_every": 200, "checkpoint_every": 400},
    )
