"""An encoder with a head on top, that answers by clip or by frame."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.base import Encoder, pool_frames
from auricle.errors import ConfigError
from auricle.evaluation.finetuning.augment import add_noise, mask_features, roll_frames
from auricle.evaluation.finetuning.config import FinetuneConfig
from auricle.evaluation.finetuning.drop_path import add_drop_path
from auricle.evaluation.metrics import Kind
from auricle.evaluation.prepare import UNLABELLED
from auricle.evaluation.probes.heads import ROWS
from auricle.methods.base import Method, Step
from auricle.nn.patches import Tokens, random_tokens, select, visible_bound

TARGET = "target"
"""Key of what is learned among a batch's labels."""


class Head(nn.Module):
    """LayerNorm, then one linear map (or, `hidden` units wide, two with a GELU between) to K answers.

    The last map starts near zero, from N(0, 2e-5) cut at two deviations, as Audio-MAE's does: all answers alike.
    """

    def __init__(self, dim: int, answers: int, hidden: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.hidden = nn.Identity() if hidden is None else nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.out = nn.Linear(hidden or dim, answers)
        nn.init.trunc_normal_(self.out.weight, std=2e-5, a=-4e-5, b=4e-5)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to logits (..., K)."""
        return self.out(self.hidden(self.norm(x)))  # type: ignore[no-any-return]


class Tuned(Method):
    """An encoder's last layer under a head: the whole of what is fine-tuned, and one set of `Heads` for scoring.

    Values are learned standardised, by the train clips' mean `centre` and deviation `spread`. Raises `ConfigError`
    where the encoder has not what `config` asks for.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        encoder: Encoder,
        config: FinetuneConfig,
        kind: Kind,
        level: str,
        answers: int,
        standard: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.encoder, self.config, self.kind, self.level = encoder, config, kind, level
        encoder.supervision = ""  # whatever told its pre-training, now labels do
        self.head = Head(encoder.dims[-1], answers, config.hidden if config.head == "mlp" else None)
        for name, value in zip(("centre", "spread"), standard, strict=True):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.needs = DataNeeds(encoder.sample_rate, config.crop_s)
        depths = encoder.depths()
        self.blocks = max(depths.values(), default=0)
        if not depths:
            raise ConfigError(f"{encoder.name}: has no weights to train; auricle evaluate puts a head on it as it is")
        if config.blocks is not None and config.blocks > self.blocks:
            told = f"has {self.blocks} blocks" if self.blocks else "tells no blocks apart"
            raise ConfigError(
                f"blocks: {encoder.name} {told}; give 0 (the head alone) to {self.blocks}, or none at all"
            )
        if config.drop_time or config.drop_frequency:
            takes_tokens = "visible" in inspect.signature(encoder.encode).parameters
            if level == "frame" or not takes_tokens or encoder.dims[-1] != getattr(encoder.config, "dim", None):
                raise ConfigError(
                    f"drop_time, drop_frequency: {encoder.name} has no patches to drop here; set both to 0"
                )
        if config.drop_path:
            add_drop_path(encoder, config.drop_path)
        for name, weight in encoder.named_parameters():
            weight.requires_grad_(
                config.blocks is None or (config.blocks > 0 and depths[name] > self.blocks - config.blocks)
            )

    def scales(self) -> dict[str, float]:
        """Factors on the learning rate: the head has 1, the last block `layer_decay`, the one below its square, ..."""
        decay = self.config.layer_decay
        return {f"encoder.{name}": decay ** (self.blocks + 1 - at) for name, at in self.encoder.depths().items()}

    def train(self, mode: bool = True) -> Tuned:
        """Training mode, but for the parts that are not trained: these have no dropout and keep their statistics."""
        super().train(mode)
        for module in self.encoder.modules() if mode else ():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()
        return self

    def forward(self, batch: Batch) -> Step:
        """The training loss, a mean over clips, or over labelled frames.

        `labels[TARGET]` is (B, K) probabilities of classes or labels, (B, 1) standardised values, or codes (B, T).
        """
        targets = batch.labels[TARGET]
        x, counts = self.encoder.features(batch.waveforms, batch.lengths)
        x = self._vary(x, counts)
        if self.config.drop_time or self.config.drop_frequency:
            visible = self._visible(x, counts)
            frames = self.encoder.encode(x, counts, layers=self.layers, visible=visible)  # type: ignore[call-arg]
        else:
            frames = self.encoder.encode(x, counts, layers=self.layers)
        state = frames.hidden_states[0]
        if self.level == "frame":
            logits = self.head(state[:, : targets.shape[1]]).float()  # (B, T, K)
            codes = targets[:, : logits.shape[1]]
            inside = torch.arange(codes.shape[1], device=codes.device) < frames.lengths[:, None]
            codes = codes.masked_fill(~inside, UNLABELLED)
            total = F.cross_entropy(logits.mT, codes, ignore_index=UNLABELLED, reduction="sum")
            count = (codes != UNLABELLED).sum()
        else:
            logits, heard = self.head(pool_frames(state, frames.lengths)).float(), frames.lengths > 0  # (B, K)
            total = (self._errors(logits, targets) * heard).sum()  # a crop shorter than one frame says nothing
            count = heard.sum()
        return Step(total / count.clamp_min(1), count)

    def _errors(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B,) cross-entropy; its mean over labels, or over classes each by itself; or squared error."""
        if self.kind == "classes" and self.config.loss == "softmax":
            return F.cross_entropy(logits, targets, reduction="none")
        if self.kind != "values":
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        return (logits - targets).square().mean(1)

    def _vary(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Features (B, T, F) as training hears them."""
        x = mask_features(x, lengths, self.config.time_mask, self.config.frequency_mask)
        if self.config.noise:
            x = add_noise(x, self.config.noise)
        return roll_frames(x, lengths, self.config.roll) if self.config.roll else x

    def _visible(self, x: Tensor, lengths: Tensor) -> Tokens:
        """The tokens a clip keeps: all crossings of the steps and bands it keeps, at random (Audio-MAE's 2-D masks)."""
        config, encoder = self.config, self.encoder
        hop: int = encoder.front_end.hop  # type: ignore[union-attr, assignment]  # samples between feature frames
        bands: int = encoder.config.bands  # type: ignore[attr-defined]
        steps, most = -(-lengths * hop // encoder.hop), -(-x.shape[1] * hop // encoder.hop)
        in_time = random_tokens(steps, most, config.drop_time)
        in_frequency = random_tokens(torch.full_like(steps, bands), bands, config.drop_frequency)
        bound = visible_bound(most, config.drop_time) * visible_bound(bands, config.drop_frequency)
        return select((in_time[:, :, None] & in_frequency[:, None, :]).flatten(1), bound)

    # ---------------------------------------------------------------------------------------------- `Heads`

    @property
    def layers(self) -> tuple[int, ...]:
        """The encoder's last layer."""
        return (len(self.encoder.dims) - 1,)

    @torch.inference_mode()
    def predict(self, layers: Mapping[int, Tensor], groups: Tensor | None = None) -> Tensor:
        """Probabilities (1, N, K) of classes or labels, or values (1, N), on the CPU, from the last layer's (N, D)."""
        x = layers[self.layers[0]]
        logits = torch.cat([self.head(part.to(self.encoder.device)).double() for part in torch.split(x, ROWS)])[None]
        if self.kind == "values":
            return (logits[..., 0] * self.spread + self.centre).cpu()
        if self.kind == "labels":
            return logits.sigmoid().cpu()
        if self.config.loss == "sigmoid":
            return F.normalize(logits.sigmoid(), 1, -1).cpu()  # one class is right: they add up to 1
        return logits.softmax(-1).cpu()

    @torch.inference_mode()
    def view(self, layers: Mapping[int, Tensor]) -> Tensor:
        """What the head's maps see, (N, D)."""
        return self.head.norm(layers[self.layers[0]].to(self.encoder.device)).float().cpu()  # type: ignore[no-any-return]
