"""APC as its authors' code trains it: a stack of GRUs predicts the frame n steps ahead."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from auricle.data.batching import Batch
from auricle.methods.apc import ApcRun
from peers import Peer, clips, frames_of, kaldi_fbank, standardise

PRESET = "apc_base"
SECONDS = (2.0, 15.0)  # LibriSpeech's utterances
ROWS = {"A": "APC eager fp32, as its code", "B": "never packed, loss on true frames"}


class PlainAPC(Peer):
    """A: every utterance padded to the longest crop (1600 frames, as in the authors' data set), packed and unpacked
    around each layer, head and loss on padding too, Adam as PyTorch runs it by default. On a CPU the gradient of packed
    input takes time quadratic in the frames. B (there is no attention to fuse): padded to the batch's longest and never
    packed, head and loss on true frames, Adam fused.
    """

    clip_norm = 1.0

    def __init__(self, run: ApcRun, improved: bool) -> None:
        super().__init__()
        self.improved, self.ahead, self.mels = improved, run.objective.ahead, run.encoder.front_end.n_mels
        dim, layers, self.longest = run.encoder.dim, run.encoder.layers, int(100 * run.objective.crop_s)
        self.layers = nn.ModuleList(nn.GRU(dim if n else self.mels, dim, batch_first=True) for n in range(layers))
        self.head = nn.Linear(dim, self.mels)

    def forward(self, batch: Batch) -> Tensor:
        features = [standardise(kaldi_fbank(waveform, self.mels, "povey")) for waveform in clips(batch)]
        features.sort(key=len, reverse=True)  # packing wants them in this order
        return self.unpacked(features) if self.improved else self.packed(features)

    def packed(self, features: list[Tensor]) -> Tensor:
        lengths = [len(clip) for clip in features]
        x = pad_sequence(features, batch_first=True)
        x = F.pad(x, (0, 0, 0, max(0, self.longest - x.shape[1])))  # (B, 1600, F)
        hidden = x
        for number, layer in enumerate(self.layers):
            packed, _ = layer(pack_padded_sequence(hidden, lengths, batch_first=True))
            out, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
            hidden = out + hidden if number else out
        return F.l1_loss(self.head(hidden)[:, : -self.ahead], x[:, self.ahead :])  # a mean over padding too

    def unpacked(self, features: list[Tensor]) -> Tensor:
        hidden = pad_sequence(features, batch_first=True)  # (B, T, F)
        for number, layer in enumerate(self.layers):
            out, _ = layer(hidden)
            hidden = out + hidden if number else out
        states = torch.cat([states[: len(clip) - self.ahead] for states, clip in zip(hidden, features, strict=True)])
        return F.l1_loss(self.head(states), torch.cat([clip[self.ahead :] for clip in features]))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-4, fused=self.improved or None)


def build(row: str, run: ApcRun) -> Peer:
    return PlainAPC(run, improved=row == "B")


def operations(run: ApcRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the forward pass on the frames that have something to predict."""
    dim, mels, layers = run.encoder.dim, run.encoder.front_end.n_mels, run.encoder.layers
    weights = 3 * dim * (mels + dim) + (layers - 1) * 3 * dim * 2 * dim + dim * mels
    return float(3 * 2 * weights * (frames_of(samples) - run.objective.ahead).sum())
