"""Audio-MAE as its authors' code pre-trains it, with the local decoder of shifted windows or the global one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.data.batching import Batch
from auricle.methods.audio_mae import AudioMaeRun
from peers import Block, Peer, attend, block_operations, clips, frames_of, kaldi_fbank

PRESET = "audio_mae_base"
SECONDS = (10.0, 10.0)  # AudioSet's clips
ROWS = {"A": "MAE eager fp32, as its code", "B": "the same with SDPA, AdamW fused"}
PATCH, BANDS, WINDOW, KEPT = 16, 8, 4, 0.2


class WindowBlock(nn.Module):
    """Swin-V2 block on windows of 4 x 4 patches: post-norm, cosine attention, a bias computed from log offsets."""

    def __init__(self, dim: int, heads: int, shift: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.shift, self.fused = heads, shift, fused
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tau = nn.Parameter(torch.ones(heads, 1, 1))
        self.meta = nn.Sequential(nn.Linear(2, 384), nn.ReLU(), nn.Dropout(0.1), nn.Linear(384, heads))
        place = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW)).float()
        offsets = place[:, None] - place
        self.register_buffer("offsets", offsets.sign() * offsets.abs().log1p())  # (16, 16, 2)

    def forward(self, x: Tensor, rows: int) -> Tensor:
        """x (B, rows x 8, D) to the same shape."""
        x = x + self.norm1(self.attend(x, rows))
        return x + self.norm2(self.fc2(F.gelu(self.fc1(x))))

    def attend(self, x: Tensor, rows: int) -> Tensor:
        size, dim = len(x), x.shape[2]
        grid = x.view(size, rows, BANDS, dim)
        if self.shift:  # every other block, in time only
            grid = grid.roll(-self.shift, 1)
        windows = grid.view(size, rows // WINDOW, WINDOW, BANDS // WINDOW, WINDOW, dim)
        windows = windows.transpose(2, 3).reshape(-1, WINDOW**2, dim)  # partition: a copy
        q, k, v = self.qkv(windows).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.meta(self.offsets).permute(2, 0, 1)[None]  # anew at every step, though its input never changes
        if self.shift:
            bias = bias + self.wrapped(rows, x.device).repeat(size, 1, 1)[:, None]
        tau = self.tau.clamp_min(0.01)
        if self.fused:
            scale = q.shape[-1] ** 0.5 / tau  # attend divides by the root
            mixed = attend(F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v, bias, 0.0, True)
        else:
            norms = q.norm(dim=-1, keepdim=True) @ k.norm(dim=-1, keepdim=True).transpose(-1, -2)
            mixed = (q @ k.transpose(-1, -2) / norms.clamp_min(1e-6) / tau + bias).softmax(-1) @ v
        windows = self.out(mixed.transpose(1, 2).flatten(2))
        windows = windows.view(size, rows // WINDOW, BANDS // WINDOW, WINDOW, WINDOW, dim)
        grid = windows.transpose(2, 3).reshape(size, rows, BANDS, dim)  # and back
        return (grid.roll(self.shift, 1) if self.shift else grid).flatten(1, 2)

    def wrapped(self, rows: int, device: torch.device) -> Tensor:
        """-100 between patches (windows, 16, 16) that the roll has brought from one end of the clip to the other."""
        side = (torch.arange(rows, device=device) >= rows - self.shift).view(-1, 1, WINDOW, 1)
        side = side.expand(-1, BANDS // WINDOW, WINDOW, WINDOW).reshape(-1, WINDOW**2)
        return -100.0 * (side[:, :, None] != side[:, None])


class PlainMAE(Peer):
    """A: every clip padded to a multiple of 64 frames, all patches projected, two sorts and gathers by indices copied
    to full width, explicit attention, prediction and loss on all patches, AdamW as PyTorch runs it by default.
    B: the same with SDPA, AdamW fused.
    """

    def __init__(self, run: AudioMaeRun, improved: bool) -> None:
        super().__init__()
        self.improved, encoder, decoder = improved, run.encoder, run.objective
        self.frames = padded_frames(run)
        dim, width, patches = encoder.dim, decoder.decoder_dim, self.frames // PATCH * BANDS
        self.rows, self.local = self.frames // PATCH, decoder.decoder == "local"
        self.patch, self.embed = nn.Conv2d(1, dim, PATCH, PATCH), nn.Linear(dim, width)
        for name, channels in (("places", dim), ("decoder_places", width)):  # fixed codes; their values cost nothing
            self.register_buffer(name, torch.randn(1, patches + 1, channels))
        self.cls, self.hidden = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, width))
        blocks = (Block(dim, encoder.heads, encoder.ffn, pre=True, fused=improved) for _ in range(encoder.layers))
        self.encoder = nn.Sequential(*blocks, nn.LayerNorm(dim))
        self.decoder = nn.ModuleList(
            WindowBlock(width, decoder.decoder_heads, WINDOW // 2 * (n % 2), improved)
            if self.local
            else Block(width, decoder.decoder_heads, 4 * width, pre=True, fused=improved)
            for n in range(decoder.decoder_layers)
        )
        self.norm, self.predict = nn.LayerNorm(width), nn.Linear(width, PATCH**2)

    def forward(self, batch: Batch) -> Tensor:
        x = spectrograms(batch, self.frames)
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.places[:, 1:]  # (B, N, D), of which 80 % are dropped
        size, count, dim = tokens.shape
        shuffle = torch.rand(size, count, device=x.device).argsort(1)
        restore = shuffle.argsort(1)
        kept = shuffle[:, : int(count * KEPT), None].repeat(1, 1, dim)
        masked = torch.ones(size, count, device=x.device)
        masked[:, : kept.shape[1]] = 0
        masked = masked.gather(1, restore)
        visible = torch.cat([(self.cls + self.places[:, :1]).expand(size, -1, -1), tokens.gather(1, kept)], 1)
        y = self.embed(self.encoder(visible))
        filled = torch.cat([y[:, 1:], self.hidden.repeat(size, count - kept.shape[1], 1)], 1)
        filled = filled.gather(1, restore[:, :, None].repeat(1, 1, y.shape[2]))
        y = torch.cat([y[:, :1], filled], 1) + self.decoder_places
        y = y[:, 1:] if self.local else y
        for block in self.decoder:
            y = block(y, self.rows) if self.local else block(y)
        return pixel_loss(self.predict(self.norm(y))[:, -count:], x, masked)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 4e-4, (0.9, 0.95), weight_decay=1e-4, fused=self.improved or None)


def padded_frames(run: AudioMaeRun) -> int:
    """Frames that the code pads a crop to: 1024 for 10 s, 512 for 5 s, 128 for 1 s."""
    return -(-int(100 * run.objective.crop_s - 2) // 64) * 64


def spectrograms(batch: Batch, frames: int) -> Tensor:
    """(B, 1, frames, 128): a clip at a time, padded with zeros before it is normalised by AudioSet's statistics."""
    found = [kaldi_fbank(clip - clip.mean(), PATCH * BANDS, "hann")[:frames] for clip in clips(batch)]
    padded = torch.stack([F.pad(x, (0, 0, 0, frames - len(x))) for x in found])
    return ((padded + 4.2677393) / (2 * 4.5689974))[:, None]


def pixel_loss(predicted: Tensor, x: Tensor, masked: Tensor) -> Tensor:
    """Squared error on all patches (B, N, 256), each normalised, of which those masked (B, N) count."""
    size, rows = len(x), x.shape[2] // PATCH
    target = x.view(size, rows, PATCH, BANDS, PATCH).transpose(2, 3).reshape(size, rows * BANDS, PATCH**2)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return ((predicted - target).square().mean(-1) * masked).sum() / masked.sum()


def build(row: str, run: AudioMaeRun) -> Peer:
    return PlainMAE(run, improved=row == "B")


def operations(run: AudioMaeRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the forward pass, the encoder on kept patches of true frames, the decoder on all."""
    encoder, decoder, width = run.encoder, run.objective, run.objective.decoder_dim
    patches = np.ceil(frames_of(samples) / PATCH) * BANDS
    kept = np.floor(patches * KEPT)
    total = kept.sum() * 2 * encoder.dim * (PATCH**2 + width)
    total += encoder.layers * block_operations(kept, encoder.dim, encoder.ffn)
    if decoder.decoder == "local":
        total += decoder.decoder_layers * patches.sum() * (2 * 12 * width * width + 4 * width * WINDOW**2)
    else:
        total += decoder.decoder_layers * block_operations(patches, width, 4 * width)
    return float(3 * (total + (patches - kept).sum() * 2 * width * PATCH**2))
