"""Masks over time and frequency, drawn for a whole batch on its device, and what is put in their place.

Nothing here synchronises with the host: how many spans a clip gets follows from its own length, on the device, and is
padded to a bound that follows from the batch's shape alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from auricle.config import Config


class MaskConfig(Config):
    """Which frames and channels are hidden from the network, what takes their place, and which have to be predicted.

    The sources named are Mockingjay's: the paper (as recalled), its authors' code of October 2019, and S3PRL.
    """

    mask_fraction: float = Field(0.15, gt=0, le=1)
    """Share of the frames to select."""
    span_min: int = Field(7, ge=1)
    """Shortest span, steps; each clip draws one length. 7 in S3PRL and the first code's BASE, 1 in its LARGE."""
    span_max: int = Field(7, ge=1)
    """Longest span, steps."""
    overlap: bool = False
    """Spans may overlap, and then hide less than `mask_fraction`: 13.8 % of 1000 frames. True in both codes."""
    rounding: Literal["round", "floor"] = "round"
    """How frames * mask_fraction / span becomes a number of spans: `round` in S3PRL, `floor` in the first code."""
    unused_starts: int = Field(0, ge=0)
    """Last possible starts that are never drawn: 1 in S3PRL (the last frame is never hidden), 2 in the first code."""
    zero: float = Field(0.8, ge=0, le=1)
    """Probability that selected spans become zero, the mean of normalised features."""
    replace: float = Field(0.1, ge=0, le=1)
    """Probability that they are replaced from elsewhere in the utterance; else they stay as they are."""
    scope: Literal["utterance", "span"] = "utterance"
    """What one dice of zero, replace or keep decides: `utterance` in the paper and both codes."""
    loss_positions: Literal["spans", "starts"] = "spans"
    """Frames to predict: all that were selected (paper, S3PRL), or the first of each span (the first code)."""
    frequency_mask: float = Field(0.0, ge=0, le=1)
    """Widest band hidden in all frames of a clip, share of the channels; its values are predicted too. 0.2 in TERA."""
    noise_probability: float = Field(0.0, ge=0, le=1)
    """Probability that a batch's input gets noise. 0.15 in TERA's released model."""
    noise_std: float = Field(0.2, gt=0)
    """Standard deviation of that noise, in units of the features. 0.2 in TERA."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.span_min > self.span_max:
            raise ValueError(f"span_min: {self.span_min} is more than span_max, {self.span_max}")
        if self.zero + self.replace > 1:
            raise ValueError(f"zero, replace: {self.zero:g} and {self.replace:g} sum to more than 1")
        return self


@dataclass(frozen=True)
class Masked:
    """A batch as the network sees it, and what it has to predict."""

    x: Tensor
    """(B, T, F) features with parts hidden."""
    selected: Tensor
    """(B, T) frames inside a span."""
    bands: Tensor | None
    """(B, F) hidden channels."""
    index: Tensor
    """(B, N) frames to predict; rows with fewer are filled up with frames of which nothing is `scored`."""
    scored: Tensor
    """(B, N, 1), or with bands (B, N, F): values that enter the loss."""


def mask_frames(x: Tensor, lengths: Tensor, config: MaskConfig) -> Masked:
    """Hide parts of features x (B, T, F) of true `lengths` (B,), drawn anew at every call."""
    batch, frames, dim = x.shape
    spans = draw_spans(
        lengths,
        frames,
        fraction=config.mask_fraction,
        span=(config.span_min, config.span_max),
        overlap=config.overlap,
        rounding=config.rounding,
        unused_starts=config.unused_starts,
    )
    selected = spans.mask(frames)
    positions, bound = selected, masked_bound(frames, config.mask_fraction, config.span_max)
    if config.loss_positions == "starts":
        positions, bound = spans.first(frames), spans.starts.shape[1]
    bands = None
    if config.frequency_mask:  # a band is hidden in every frame, so every frame holds something to predict
        bands = draw_bands(batch, dim, config.frequency_mask, x.device)
        index = torch.arange(frames, device=x.device).expand(batch, frames)
        scored = (positions[:, :, None] | bands[:, None]) & (index < lengths[:, None])[:, :, None]
    else:
        index, valid = masked_positions(positions, bound)
        scored = valid[:, :, None]
    x = corrupt(x, spans, lengths, zero=config.zero, replace=config.replace, scope=config.scope)
    if bands is not None:
        x = x.masked_fill(bands[:, None], 0.0)
    if config.noise_probability:
        x = add_noise(x, config.noise_probability, config.noise_std)
    return Masked(x, selected, bands, index, scored)


@dataclass(frozen=True)
class Spans:
    """Up to K spans a clip, ascending: `starts` (B, K) in frames, which of them are `valid` (B, K), `length` (B, 1)."""

    starts: Tensor
    valid: Tensor
    length: Tensor

    def mask(self, frames: int) -> Tensor:
        """(B, T) boolean: frames inside a span."""
        step = self.valid.int()
        change = torch.zeros(len(step), frames + 1, dtype=torch.int32, device=step.device)
        change.scatter_add_(1, self.starts.clamp(max=frames), step)
        change.scatter_add_(1, (self.starts + self.length).clamp(max=frames), -step)
        return change[:, :frames].cumsum(1) > 0

    def first(self, frames: int) -> Tensor:
        """(B, T) boolean: the first frame of each span."""
        first = torch.zeros(len(self.valid), frames + 1, dtype=torch.bool, device=self.valid.device)
        return first.scatter_(1, self.starts.clamp(max=frames), self.valid)[:, :frames]

    def owner(self, frames: int) -> Tensor:
        """(B, T) number of the last span that starts at or before each frame (0 before the first)."""
        number = torch.arange(self.starts.shape[1], device=self.starts.device).expand_as(self.starts)
        owner = torch.zeros(len(self.starts), frames + 1, dtype=torch.long, device=self.starts.device)
        return owner.scatter_(1, self.starts.clamp(max=frames), number)[:, :frames].cummax(1).values


def draw_spans(
    lengths: Tensor,
    frames: int,
    *,
    fraction: float = 0.15,
    span: tuple[int, int] = (7, 7),
    overlap: bool = False,
    rounding: Literal["round", "floor"] = "round",
    unused_starts: int = 0,
) -> Spans:
    """Spans at random places inside clips of true `lengths` (B,) padded to `frames` T.

    Each clip draws one span length C uniformly from `span` (inclusive) and gets T_b * fraction / C spans, rounded,
    at least one; none if it is shorter than C. Without `overlap` all placements of disjoint spans are equally likely;
    with it, starts are drawn without replacement. The last `unused_starts` places where a span fits are never used.
    """
    batch, device = len(lengths), lengths.device
    lengths = lengths[:, None].long()
    length = torch.randint(span[0], span[1] + 1, (batch, 1), device=device)
    fits = lengths >= length
    usable = torch.maximum(lengths - unused_starts, length) * fits
    wanted = lengths.double() * fraction / length
    count = (wanted.round() if rounding == "round" else wanted.floor()).long().clamp_min(1)
    # Disjoint spans of length C are distinct single slots once every span is shrunk to one frame.
    count = torch.minimum(count, (usable - length + 1 if overlap else usable // length).clamp_min(0))
    slots = usable - (length - 1) * (fits if overlap else count)

    bound = min(frames, max(1, math.ceil(frames * fraction / span[0])))
    score = torch.rand(batch, frames, device=device)
    score = score.masked_fill(torch.arange(frames, device=device) >= slots, -1.0)
    chosen = score.topk(bound, dim=1).indices
    order = torch.arange(bound, device=device)
    valid = order < count
    starts = chosen.masked_fill(~valid, frames).sort(dim=1).values
    return Spans(starts if overlap else starts + order * (length - 1), valid, length)


def masked_bound(frames: int, fraction: float, longest: int) -> int:
    """The most frames that `draw_spans` can mask in one clip of `frames` frames, spans being `longest` at most."""
    return min(frames, math.ceil(frames * fraction) + longest)


def masked_positions(mask: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Where each row of mask (B, T) is true: `index` (B, N), ascending, and which are `valid` (B, N); N = `bound`.

    No row may hold more than `bound`; a valid entry's index is a true position, any other's is 0.
    """
    batch, frames = mask.shape
    rank = mask.cumsum(1)
    slot = torch.where(mask, rank - 1, bound).clamp(max=bound)
    index = torch.zeros(batch, bound + 1, dtype=torch.long, device=mask.device)
    index.scatter_(1, slot, torch.arange(frames, device=mask.device).expand(batch, frames))
    valid = torch.arange(bound, device=mask.device) < rank[:, -1:]
    return index[:, :bound] * valid, valid


def corrupt(
    x: Tensor,
    spans: Spans,
    lengths: Tensor,
    *,
    zero: float = 0.8,
    replace: float = 0.1,
    scope: Literal["utterance", "span"] = "utterance",
) -> Tensor:
    """x (B, T, F) with its spans set to zero, replaced by a stretch from elsewhere in the same clip, or kept.

    One dice per `scope` decides: zeroed with probability `zero`, replaced with `replace`, else kept. Stretches start
    anywhere they fit, each drawn on its own, so one may be its own replacement.
    """
    batch, frames, _ = x.shape
    count = spans.starts.shape[1]
    owner = spans.owner(frames)
    dice = torch.rand(batch, count if scope == "span" else 1, device=x.device).expand(batch, count).gather(1, owner)
    mask = spans.mask(frames)
    zeroed = mask & (dice < zero)
    replaced = mask & (dice >= zero) & (dice < zero + replace)
    room = (lengths[:, None] - spans.length + 1).clamp_min(1)
    shift = (torch.rand(batch, count, device=x.device) * room).long() - spans.starts
    source = (torch.arange(frames, device=x.device) + shift.gather(1, owner)).clamp(0, frames - 1)
    elsewhere = x.gather(1, source[:, :, None].expand_as(x))
    return torch.where(replaced[:, :, None], elsewhere, x).masked_fill(zeroed[:, :, None], 0.0)


def draw_bands(batch: int, dim: int, widest: float, device: torch.device) -> Tensor:
    """(B, F) boolean: one band a clip, its width uniform in 0..floor(widest · F), its start uniform where it fits."""
    width = torch.randint(int(widest * dim) + 1, (batch, 1), device=device)
    start = (torch.rand(batch, 1, device=device) * (dim - width + 1)).long()
    channel = torch.arange(dim, device=device)
    return (channel >= start) & (channel < start + width)


def add_noise(x: Tensor, probability: float, std: float) -> Tensor:
    """x plus N(0, std²) on the whole batch, with this probability; else x."""
    chosen = torch.rand((), device=x.device) < probability
    return x + torch.randn_like(x) * (std * chosen)


def interpolate(x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """x (B, T, F) with masked frames (B, T) on the line between their nearest unmasked neighbours inside the clip.

    Before the first or after the last unmasked frame that frame is repeated; a clip with none becomes 0.
    """
    frames = x.shape[1]
    time = torch.arange(frames, device=x.device)
    known = ~mask & (time < lengths[:, None])
    before = torch.where(known, time, -1).cummax(1).values
    after = torch.where(known, time, frames).flip(1).cummin(1).values.flip(1)
    left = torch.where(before < 0, after, before).clamp(max=frames - 1)
    right = torch.where(after == frames, before, after).clamp(min=0)
    weight = ((time - left) / (right - left).clamp_min(1))[:, :, None].to(x.dtype)
    ends = [x.gather(1, end[:, :, None].expand_as(x)) for end in (left, right)]
    line = torch.lerp(ends[0], ends[1], weight)
    return torch.where(known[:, :, None], x, line) * known.any(1)[:, None, None]


class SpanMaskConfig(Config):
    """Spans of frames hidden behind a learned vector, as wav2vec 2.0, HuBERT and data2vec draw them.

    Spans overlap, so that fewer frames are hidden than `probability` says: 49 % at .65 with spans of 10.
    """

    probability: float = Field(0.65, gt=0, le=1)
    """Frames in spans, as a share of the clip's, if no two overlapped."""
    span: int = Field(10, ge=1)
    """Length of a span, frames."""
    min_spans: int = Field(1, ge=1)
    """Least number of spans in a clip."""
    equalize: Literal["none", "fairseq"] = "none"
    """`fairseq` leaves every clip of a batch as few hidden frames as the one with the fewest, chosen at random, so that
    spans get holes and larger batches hide less (43 % of 249 frames in batches of 8); `none` leaves them be."""


def span_mask(lengths: Tensor, frames: int, config: SpanMaskConfig) -> Tensor:
    """(B, T) boolean: the frames to hide in clips of true `lengths` (B,), padded to `frames` T; anew at every call.

    A clip of T_b frames gets max(min_spans, floor(probability · T_b / span + u)) spans, u uniform in [0, 1); they start
    at different places in 0 .. T_b - span - 1, so that the last frame is never hidden. (Where that leaves fewer places
    than spans, in range(spans + 1), and what lies past the clip's end is cut off.) fairseq's `compute_mask_indices`.
    """
    batch, device = len(lengths), lengths.device
    sizes = lengths[:, None].long()
    wanted = sizes * (config.probability / config.span) + torch.rand(batch, 1, device=device)
    count = torch.minimum(wanted.long().clamp_min(config.min_spans), sizes)
    places = torch.minimum(torch.maximum(sizes - config.span, count + 1), sizes)
    most = min(frames, most_spans(frames, config))
    place = torch.arange(frames, device=device)
    score = torch.rand(batch, frames, device=device).masked_fill(place >= places, -1.0)
    starts = score.topk(most, dim=1).indices
    valid = torch.arange(most, device=device) < count
    mask = Spans(starts, valid, torch.full_like(sizes, config.span)).mask(frames) & (place < sizes)
    return mask if config.equalize == "none" else thinned(mask)


def thinned(mask: Tensor) -> Tensor:
    """mask (B, T) with as many frames in each row as in the row with the fewest (but any), chosen at random."""
    chosen = mask.sum(1)
    fewest = torch.where(chosen > 0, chosen, mask.shape[1]).amin()
    order = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1.0).argsort(dim=1, descending=True)
    first = torch.arange(mask.shape[1], device=mask.device) < fewest
    return mask & torch.zeros_like(mask).scatter_(1, order, first.expand_as(mask))


def most_masked(frames: int, config: SpanMaskConfig) -> int:
    """The most frames that `span_mask` can hide in one clip of `frames` frames."""
    return min(frames, most_spans(frames, config) * config.span)


def most_spans(frames: int, config: SpanMaskConfig) -> int:
    """The most spans that `span_mask` can draw in one clip of `frames` frames."""
    return max(config.min_spans, math.floor(frames * config.probability / config.span) + 1)


def kept_layers(
    layers: int, probability: float, seed: int, step: Tensor | int, device: torch.device | str = "cpu"
) -> Tensor:
    """(L,) boolean, false where a layer is dropped in this `step`, which it is with this `probability`.

    A hash of its arguments, not a draw: all processes and micro-batches of a step drop the same layers, a resumed run
    drops what it would have, and `step` may lie on the device. The mixing is MurmurHash3's 32-bit finaliser.
    """
    bits = torch.zeros(1, dtype=torch.long, device=device)
    for word in (seed, step, torch.arange(1, layers + 1, device=device)):
        bits = (bits + word) & 0xFFFFFFFF
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
    return bits.double() * 2**-32 >= probability
