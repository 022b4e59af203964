"""The separative encoder of contrastive separative coding (Wang, Lam, Su and Yu 2021, arXiv 2103.00816).

A trunk shared by two heads: one separates the talkers of a mixture, one tells who each of them is. The paper's own
sizes are not known to us; the trunk's are those of the authors' released GALR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, Stretch
from auricle.features.frontend import FrontEnd, FrontEndConfig
from auricle.features.normalize import frame_mask, level_gain
from auricle.features.spectrum import exporting
from auricle.nn.galr import GalrStack, count_segments, overlap_add, segment
from auricle.nn.linear import Linear
from auricle.nn.positions import SinusoidalPositions
from auricle.nn.separation import best_permutation
from auricle.nn.transformer import Dropout, Transformer, init_weights
from auricle.nn.windows import Cut, encode_long, pieces, windows

_MARGIN = 2
"""Hops of a long clip's waveform before a window, so that its frames are those of the whole clip."""


class CscConfig(Config):
    """Trunk and heads. The defaults are a GALR of 8 kHz speech with a published block."""

    sample_rate: int = Field(8000, ge=1000)
    """Hz."""
    trunk: Literal["galr", "mel"] = "galr"
    """`galr`: convolutions over the waveform, and blocks that are recurrent inside segments and attend across them;
    masks act on the convolutions' frames. `mel`: a Transformer over log-mel frames, much cheaper; masks act on an STFT
    with the same frames."""
    sources: int = Field(2, ge=1, le=8)
    """C, streams that come out: the talkers of a mixture."""
    embedding: int = Field(128, ge=1)
    """E, numbers that tell who a talker is."""
    dim: int = Field(64, ge=2)
    """D, channels of every hidden state; a multiple of `heads`."""
    heads: int = Field(8, ge=1)
    """Attention heads."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On what attention adds and on its weights; with `mel` also on what the feed-forward parts add."""
    shared_blocks: int = Field(4, ge=1)
    """Blocks of the trunk."""
    separation_blocks: int = Field(2, ge=0)
    """Blocks of the separation head alone."""
    speaker_blocks: int = Field(2, ge=0)
    """Blocks of the speaker head alone."""
    window: int = Field(16, ge=2)
    """`galr`: W, samples under the convolution, which moves by half of it; even, and at most `dim`."""
    segment: int = Field(100, ge=2)
    """`galr`: K, the convolution's frames in a segment; even. Segments overlap by half."""
    hidden: int = Field(128, ge=1)
    """`galr`: H, width of the LSTM, each way."""
    low: int = Field(32, ge=1)
    """`galr`: Q, rows that attend over segments, mixed from a segment's K frames."""
    n_mels: int = Field(80, ge=1)
    """`mel`: bands."""
    hop_ms: float = Field(16.0, gt=0)
    """`mel`: from frame to frame, of the bands and of the STFT; windows are twice as long."""
    ffn: int = Field(256, ge=1)
    """`mel`: width inside the feed-forward parts."""
    chunk_s: float = Field(16.0, ge=1)
    """Longest stretch that is encoded at once at inference; longer clips go in windows that overlap by half, of which
    the middles are kept."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim: {self.dim} is not a multiple of heads, {self.heads}")
        if self.window % 2 or self.segment % 2:
            raise ValueError(f"window, segment: {self.window} and {self.segment} overlap by half, so both must be even")
        if self.trunk == "galr" and (self.dim < self.window or self.dim % 2):
            raise ValueError(
                f"dim: {self.dim} filters, of which half are the negatives of the others, cannot hold "
                f"windows of {self.window} samples; make it even and at least that"
            )
        return self


class Separated(NamedTuple):
    """What becomes of mixtures (B, S)."""

    estimates: Tensor
    """Each talker's part (B, C, S), fp32, as loud as in the mixture."""
    tokens: Tensor
    """u (B, C, T, E): who talks, a token a frame of the encoder; zeros past each clip."""


class CscEncoder(Encoder):
    """Waveforms at one level through a trunk; layer 0 is what enters its first block, layers 1 to L are its blocks.

    Frames of the `galr` trunk are means over its segments, one every half segment; those of `mel` are mel frames.
    Clips are brought to one level first, so that nothing but the estimates depends on loudness.
    """

    family: ClassVar[str] = "csc"
    config: CscConfig

    def __init__(self, config: CscConfig) -> None:
        super().__init__()
        self.config = config
        self.front: _Waves | _Mels = _Waves(config) if config.trunk == "galr" else _Mels(config)
        self.sample_rate, self.hop, self.offset = config.sample_rate, self.front.hop, self.front.offset
        self.dims = (config.dim,) * (config.shared_blocks + 1)
        self.shared = self._stack(config.shared_blocks)
        self.separation = self._stack(config.separation_blocks)
        self.separation_act = nn.PReLU()
        self.masks = Linear(config.dim, config.sources * self.front.bins)
        nn.init.normal_(self.masks.weight, std=1e-3)  # masks of 1 / C, but for as much as tells the streams apart
        nn.init.zeros_(self.masks.bias)
        self.speaker = self._stack(config.speaker_blocks)
        self.speaker_act = nn.PReLU()
        self.who = Linear(config.dim, config.sources * config.embedding)
        self.chunk = max(4, round(config.chunk_s * config.sample_rate / self.hop))

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel frames (B, T, M), or the convolution's frames in segments (B, T, K D); lengths in frames."""
        leveled = waveforms * level_gain(waveforms, lengths, 0.0)
        return self.front.features(leveled, lengths)

    def encode(self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None) -> Frames:
        """Hidden states of features; in evaluation mode clips past `chunk_s` are encoded in windows."""
        layers = range(len(self.dims)) if layers is None else layers
        if self.training or exporting() or x.shape[1] <= self.chunk:
            return Frames(self._encode(x, lengths, layers), lengths)
        dims = [self.dims[layer] for layer in layers]
        return Frames(encode_long(partial(self._encode, layers=layers), x, lengths, self.chunk, dims), lengths)

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns: all at once, or of clips past `chunk_s` some windows at a time."""
        counts = self.front.count(lengths)
        if self.training or int(counts.max()) <= self.chunk:
            yield torch.arange(len(waveforms)), self(waveforms, lengths, layers)
            return
        layers = range(len(self.dims)) if layers is None else layers
        cut = self._cutter(waveforms, lengths)
        for clip, states in pieces(partial(self._encode, layers=layers), cut, counts, self.chunk):
            yield torch.tensor([clip]), Frames([state[None] for state in states], torch.tensor([len(states[0])]))

    def separate(self, waveforms: Tensor, lengths: Tensor | None = None) -> Separated:
        """Estimates (B, C, S) and tokens (B, C, T, E) of mixtures (B, S) of `lengths` (B,) samples, None: all S.

        In one pass, however long. Masks sum to 1, so the estimates sum to what the analysis keeps of the mixture:
        before training, to the mixture.
        """
        full = waveforms.new_full((len(waveforms),), waveforms.shape[1], dtype=torch.int64)
        gain = level_gain(waveforms, full if lengths is None else lengths, 0.0)
        coefficients = self.front.analyse(waveforms * gain)
        x, counts = self.front.features(waveforms * gain, full if lengths is None else lengths, coefficients)
        true = None if lengths is None else counts
        shared = self.shared(self.front.open(x), true, [self.config.shared_blocks])[0]
        hidden = self.separation(shared, true, [self.config.separation_blocks])[0]
        logits = self.masks(self.front.frames(self.separation_act(hidden), coefficients.shape[1]))
        masks = logits.float().unflatten(2, (self.config.sources, -1)).softmax(2)  # (B, L, C, bins)
        estimates = self.front.synthesise(coefficients[:, :, None] * masks, waveforms.shape[1]) / gain[:, None]
        if lengths is not None:
            estimates = estimates * frame_mask(waveforms[..., None], lengths).mT
        return Separated(estimates, self._tokens(shared, counts, lengths is None))

    def embed(self, tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """The bottom-up embeddings z (B, C, E), unit vectors, of tokens (B, C, T, E); true frames (B,), None: all."""
        number = tokens.shape[2] if counts is None else counts.clamp_min(1)[:, None, None]
        return F.normalize(tokens.float().sum(2) / number, dim=-1)  # past each clip tokens are zeros

    def streams(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The embeddings z (B, C, E) of the talkers in mixtures (B, S) of `lengths` (B,), unit vectors.

        Clips past `chunk_s` in windows: a talker goes on in the stream that is nearest to what it was so far.
        """
        counts = self.front.count(lengths)
        cut = self._cutter(waveforms, lengths)
        if int(counts.max()) <= self.chunk:
            x, counts = self.features(waveforms, lengths)
            return self.embed(self._tokens(self._shared(x, counts), counts), counts)
        talkers = []
        for clip, count in enumerate(counts.tolist()):
            sums = waveforms.new_zeros(self.config.sources, self.config.embedding, dtype=torch.float32)
            for start, stop, keep, until in windows(count, self.chunk):
                x = cut(clip, start, stop)[None]
                size = torch.tensor([stop - start], device=x.device)
                part = self._tokens(self._shared(x, size), size)[0, :, keep - start : until - start].float().sum(1)
                if start:
                    alike = F.normalize(part, dim=-1) @ F.normalize(sums, dim=-1).T
                    part = part[best_permutation(alike[None])[0]]
                sums = sums + part
            talkers.append(F.normalize(sums, dim=-1))
        return torch.stack(talkers)

    def depths(self) -> dict[str, int]:
        """The blocks are the trunk's; the heads, which nothing but `separate` and `streams` read, go with the last."""
        last = self.config.shared_blocks
        return {
            name: 0 if name.startswith("front.") else depth if name.startswith("shared.") else last
            for name, depth in super().depths().items()
        }

    def _stack(self, blocks: int) -> GalrStack | Transformer:
        config = self.config
        if config.trunk == "galr":
            return GalrStack(
                blocks, config.dim, config.hidden, config.segment, config.low, config.heads, config.dropout
            )
        return Transformer(
            config.dim,
            blocks,
            config.heads,
            config.ffn,
            dropout=config.dropout,
            attention_dropout=config.dropout,
            norm="pre",
            norm_eps=1e-5,
        )

    def _encode(self, x: Tensor, counts: Tensor, layers: Sequence[int]) -> list[Tensor]:
        return [self.front.pool(state) for state in self.shared(self.front.open(x), counts, layers)]

    def _shared(self, x: Tensor, counts: Tensor) -> Tensor:
        return self.shared(self.front.open(x), counts, [self.config.shared_blocks])[0]  # type: ignore[no-any-return]

    def _tokens(self, shared: Tensor, counts: Tensor, all_true: bool = False) -> Tensor:
        hidden = self.speaker(shared, None if all_true else counts, [self.config.speaker_blocks])[0]
        tokens = self.who(self.front.pool(self.speaker_act(hidden)))
        if not all_true:
            tokens = torch.where(frame_mask(tokens, counts), tokens, 0)
        return tokens.view(*tokens.shape[:2], self.config.sources, -1).transpose(1, 2)  # type: ignore[no-any-return]

    def _cutter(self, waveforms: Tensor, lengths: Tensor) -> Cut:
        """What gives a clip's features from frame to frame, computed when they are asked for."""
        gain = level_gain(waveforms, lengths, 0.0)
        ends = lengths.tolist()

        def cut(clip: int, start: int, stop: int) -> Tensor:
            before = min(start, _MARGIN)
            first, last = (start - before) * self.hop, min((stop + _MARGIN) * self.hop, ends[clip])
            piece = waveforms[clip : clip + 1, first:last] * gain[clip]
            x, _ = self.front.features(piece, torch.tensor([last - first], device=piece.device))
            return x[0, before : before + stop - start]

        return cut


class _Waves(nn.Module):
    """A trained filter bank: W samples under D filters and ReLU, every W/2 samples, and back."""

    def __init__(self, config: CscConfig) -> None:
        super().__init__()
        self.size, self.window, self.bins = config.segment, config.window, config.dim
        self.hop = config.window * config.segment // 4
        self.offset = -config.window / 4  # half a frame before the segment's middle, which lies at sample 0
        filters = _waves(config.dim // 2, config.window)
        self.analysis = Linear(config.window, config.dim, bias=False)
        self.bottleneck = Linear(config.dim, config.dim, bias=False)  # zero stays zero, so that padding does
        self.synthesis = Linear(config.dim, config.window, bias=False)
        with torch.no_grad():
            self.analysis.weight.copy_(torch.cat([filters, -filters]))
            back = _inverse(filters)
            self.synthesis.weight.copy_(torch.cat([back, -back], 1))

    def count(self, lengths: Tensor) -> Tensor:
        """Segments of clips of `lengths` (B,) samples."""
        return count_segments(count_segments(lengths, self.window), self.size)

    def analyse(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, S) to frames (B, L, D), L = ceil(2 S / W) + 1: one centred on every half window. In fp32."""
        with torch.autocast(waveforms.device.type, enabled=False):
            return F.relu(self.analysis(_cut(waveforms, self.window)))

    def synthesise(self, frames: Tensor, samples: int) -> Tensor:
        """Frames (B, L, C, D) to waveforms (B, C, S), in fp32."""
        with torch.autocast(frames.device.type, enabled=False):
            return _join(self.synthesis(frames), samples)

    def features(self, waveforms: Tensor, lengths: Tensor, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Waveforms of `lengths` samples, or their frames if at hand, in segments (B, T, K D); numbers of segments."""
        frames = self.analyse(waveforms) if frames is None else frames
        segments = segment(self.bottleneck(frames), self.size)
        return segments.permute(1, 2, 0, 3).flatten(2), self.count(lengths)

    def open(self, x: Tensor) -> Tensor:
        """Segments (B, T, K D) as the blocks take them: (K, B, T, D)."""
        return x.view(*x.shape[:2], self.size, -1).permute(2, 0, 1, 3)

    def pool(self, hidden: Tensor) -> Tensor:
        """(K, B, T, D) to a vector a segment: (B, T, D)."""
        return hidden.mean(0)

    def frames(self, hidden: Tensor, count: int) -> Tensor:
        """(K, B, T, D) to the frames (B, L, D) that masks act on."""
        return overlap_add(hidden, count)


class _Mels(nn.Module):
    """Log-mel frames for the trunk; for masks an STFT with the same frames, sine windows of two hops."""

    sine: Tensor

    def __init__(self, config: CscConfig) -> None:
        super().__init__()
        self.mels = FrontEnd(
            FrontEndConfig(
                kind="stft",
                sample_rate=config.sample_rate,
                n_mels=config.n_mels,
                hop_ms=config.hop_ms,
                window_ms=2 * config.hop_ms,
                log_floor=1e-3,
                normalize="none",
            )
        )
        self.hop, self.offset = self.mels.hop, self.mels.offset
        self.bins = self.hop + 1
        self.project = Linear(self.mels.dim, config.dim)
        self.project.apply(init_weights)
        self.positions = SinusoidalPositions(config.dim, 512)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        sine = (torch.pi * (torch.arange(2 * self.hop, dtype=torch.float64) + 0.5) / (2 * self.hop)).sin()
        self.register_buffer("sine", (sine * math.sqrt(2)).float(), persistent=False)  # of mean square 1 where two meet

    def count(self, lengths: Tensor) -> Tensor:
        """Frames of clips of `lengths` (B,) samples."""
        return count_segments(lengths, 2 * self.hop)

    def analyse(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, S) to spectra (B, T, F), complex, T = ceil(S / hop) + 1."""
        return torch.fft.rfft(_cut(waveforms, 2 * self.hop) * self.sine)  # type: ignore[no-any-return]

    def synthesise(self, spectra: Tensor, samples: int) -> Tensor:
        """Spectra (B, T, C, F) to waveforms (B, C, S)."""
        return _join(torch.fft.irfft(spectra, 2 * self.hop) * self.sine, samples)

    def features(self, waveforms: Tensor, lengths: Tensor, spectra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-mel frames (B, T, M) of waveforms of `lengths` samples, and their numbers (B,); spectra do not matter."""
        whole = -(-lengths // self.hop) * self.hop
        return self.mels(F.pad(waveforms, (0, -waveforms.shape[1] % self.hop)), whole)  # type: ignore[no-any-return]

    def open(self, x: Tensor) -> Tensor:
        """Log-mel frames (B, T, M) as the blocks take them: (B, T, D)."""
        return self.dropout(self.norm(self.positions(self.project(x))))  # type: ignore[no-any-return]

    def pool(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, T, D) are frames."""
        return hidden

    def frames(self, hidden: Tensor, count: int) -> Tensor:
        """Hidden states (B, T, D) are what masks act on."""
        return hidden


def _cut(waveforms: Tensor, size: int) -> Tensor:
    """Waveforms (B, S) in pieces (B, L, size) that overlap by half, L = ceil(2 S / size) + 1."""
    return segment(waveforms[..., None], size)[..., 0].permute(1, 2, 0)


def _join(pieces: Tensor, samples: int) -> Tensor:
    """Pieces (B, L, C, size) that overlap by half, and of which two are averaged everywhere, to waveforms (B, C, S)."""
    batch, _, streams, _ = pieces.shape
    flat = pieces.permute(3, 0, 2, 1).flatten(1, 2)[..., None]  # (size, B C, L, 1)
    return overlap_add(flat, samples).view(batch, streams, samples)


def _waves(count: int, window: int) -> Tensor:
    """`count` filters (N, W), at least W/2: cosines, and sines of the lowest frequencies, under a sine window.

    W/2 of them are the MDCT's, and 2 F the cosine and sine of F frequencies.
    """
    frequencies = max(window // 2, -(-count // 2))
    angle = torch.pi / frequencies * (torch.arange(frequencies, dtype=torch.float64)[:, None] + 0.5)
    time = torch.arange(window, dtype=torch.float64) + 0.5
    turns = angle * (time + window / 4)
    waves = torch.cat([turns.cos(), turns.sin()])[:count]
    return waves * (torch.pi * time / window).sin() / math.sqrt(count / 2)


def _inverse(filters: Tensor) -> Tensor:
    """The synthesis (W, N) for which overlapped halves of windows analysed by `filters` (N, W) add up to the signal.

    With windows that overlap by half, a block of W/2 samples is seen by two frames, and these see the block before and
    the block after, which must cancel: three linear equations, solved with the smallest synthesis.
    """
    first, second = filters.chunk(2, 1)  # (N, W / 2) each, of a frame's two blocks
    count, half = first.shape
    zero = torch.zeros_like(first)
    seen = torch.cat([torch.cat([first, second, zero], 1), torch.cat([second, zero, first], 1)])  # (2 N, 3 W / 2)
    wanted = torch.cat([torch.eye(half, dtype=filters.dtype), torch.zeros(half, 2 * half, dtype=filters.dtype)], 1)
    back = wanted @ torch.linalg.pinv(seen)  # (W / 2, 2 N)
    return 2 * torch.cat([back[:, :count], back[:, count:]])  # overlap_add takes means
