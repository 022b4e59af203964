"""One optimizer step of Mockingjay BASE: auricle against transformers' Bert blocks trained as S3PRL trains them.

    python benchmarks/pretrain_step.py --clips 8 --rounds 5 --threads 2 [--bucketed] [--profile]

Each step goes from waveforms to new weights: features, masks, forward, backward, clipping, AdamW; dropout 0.1.
The rows take turns on the same clips; every round has other clips, their lengths log-normal between 2 and 15 s.

    A  Bert blocks, eager attention, fp32, as S3PRL does it: features and masks a clip at a time, batches padded,
       the head on all frames, a boolean masked_select in the loss, AdamW as PyTorch runs it by default on a CPU
    B  the same with scaled_dot_product_attention, the head on the masked frames alone, and fused AdamW
    C  auricle's own training step in fp32
    D  the same in bf16, under autocast

The step's operations are counted as the model needs them on true frames (padding is waste), three times the forward
pass; they are set against the best rate that large matrix products of either precision reach on this machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import CLOCKS, machine, measure, ratio, show_ratio, show_times, write_json
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel

from auricle import methods
from auricle.data.batching import Batch
from auricle.features.spectrum import mel_filters
from auricle.nn.positions import sinusoids
from auricle.training import optim

RATE, HOP, MELS, DIM, LAYERS, HEADS, FFN = 16000, 160, 80, 768, 3, 12, 3072
SHORTEST_S, LONGEST_S, MEDIAN_S, SIGMA = 2.0, 15.0, 6.0, 0.6
A, B, C, D = "A  Bert eager fp32, as S3PRL", "B  Bert SDPA fp32, masked head", "C  auricle fp32", "D  auricle bf16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="clips in a batch")
    parser.add_argument("--rounds", type=int, default=5, help="each times every row once, on a batch of its own")
    parser.add_argument("--bucketed", action="store_true", help="clips of like length together, as data paths do")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, audio and weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="ABCD", help="which of them to run")
    parser.add_argument("--profile", action="store_true", help="show where the time of each row goes, then stop")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    batches = draw_batches(args.clips, args.rounds, args.seed, args.bucketed)
    current = batches[0]
    steps = {
        A: lambda: peer(args.seed, "eager", masked_head=False),
        B: lambda: peer(args.seed, "sdpa", masked_head=True),
        C: lambda: ours(args.seed, "fp32"),
        D: lambda: ours(args.seed, "bf16"),
    }
    built = {name: build() for name, build in steps.items() if name[0] in args.rows}

    def choose(number: int) -> None:
        nonlocal current
        current = batches[number]

    rows = {name: lambda step=step: step(current) for name, step in built.items()}
    if args.profile:
        for name, row in rows.items():
            show_profile(name, row)
        return
    times = measure(rows, args.rounds, choose, args.clock)
    report(args, batches, times)


def report(args: argparse.Namespace, batches: list[Batch], times: dict[str, np.ndarray]) -> None:
    frames = [1 + batch.lengths.numpy() // HOP for batch in batches]
    teraflops = np.array([operations(lengths) / 1e12 for lengths in frames])
    padding = 1 - sum(lengths.sum() for lengths in frames) / sum(len(lengths) * lengths.max() for lengths in frames)
    peaks = {"fp32": matrix_peak(torch.float32, args.clock), "bf16": matrix_peak(torch.bfloat16, args.clock)}
    print(f"{args.rounds} batches of {args.clips} clips, seed {args.seed}, {'bucketed' if args.bucketed else 'random'}")
    print(f"{np.mean(teraflops):.2f} Tflop and {np.mean([f.sum() for f in frames]):.0f} true frames a step on average")
    print(f"padding {padding:.0%} of a batch; matrix peak: fp32 {peaks['fp32']:.2f}, bf16 {peaks['bf16']:.2f} Tflop/s")
    rates = {name: float(np.median(teraflops / seconds)) for name, seconds in times.items()}
    shares = {name: rate / peaks["bf16" if name == D else "fp32"] for name, rate in rates.items()}
    show_times(
        times,
        "s",
        Tflop_per_s={name: f"{rate:.3f}" for name, rate in rates.items()},
        share_of_peak={name: f"{share:.0%}" for name, share in shares.items()},
    )
    print()
    ratios = {}
    for slow, fast, target in ((A, D, "4"), (B, D, "2"), (B, C, "1.2")):
        if slow in times and fast in times:
            ratios[f"{fast[0]} over {slow[0]}"] = found = ratio(times, slow, fast)
            show_ratio(f"{fast[0]} over {slow[0]}", found, target)
    settings = {name: getattr(args, name) for name in ("clips", "rounds", "seed", "bucketed", "clock")}
    figures = {"padding": padding, "teraflops": teraflops, "peak_tflops": peaks, "times_s": times, "ratios": ratios}
    write_json(args.json, "pretrain_step", **machine(args.threads), **settings, **figures)


def draw_batches(clips: int, count: int, seed: int, bucketed: bool) -> list[Batch]:
    """Noise of log-normal lengths; bucketed, clips that stand side by side among forty times as many, sorted."""
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(math.log(MEDIAN_S), SIGMA, 400 * clips * count)
    seconds = drawn[(drawn >= SHORTEST_S) & (drawn <= LONGEST_S)][: 40 * clips * count].reshape(-1, clips)
    if bucketed:
        seconds = np.sort(seconds, axis=None).reshape(-1, clips)
        seconds = seconds[rng.permutation(len(seconds))]
    batches = []
    for row in seconds[:count]:
        lengths = torch.from_numpy((row * RATE).astype(np.int64))
        waveforms = torch.zeros(clips, int(lengths.max()))
        for waveform, length in zip(waveforms, lengths, strict=True):
            waveform[:length] = torch.from_numpy(0.1 * rng.standard_normal(int(length), np.float32))
        ids = [str(number) for number in range(clips)]
        batches.append(Batch(waveforms, lengths, ids, torch.zeros(clips, dtype=torch.long)))
    return batches


def operations(frames: np.ndarray) -> float:
    """Floating-point operations of a step on clips of these true frames (B,): three times the forward pass."""
    per_frame = 2 * MELS * DIM + LAYERS * 2 * (4 * DIM * DIM + 2 * DIM * FFN)
    attention = LAYERS * 4 * DIM * float(np.square(frames, dtype=np.float64).sum())
    head = 0.15 * 2 * (DIM * DIM + DIM * MELS)
    return 3 * (float(frames.sum()) * (per_frame + head) + attention)


def matrix_peak(dtype: torch.dtype, clock: str, size: int = 4096) -> float:
    """Tflop/s of square matrix products, the best of several, by the faster of the libraries behind PyTorch.

    `matmul` may call MKL; a convolution over single points is the same product and calls oneDNN.
    """
    a, b = torch.randn(2, size, size).to(dtype)
    image, kernel = a.view(1, size, 1, size).permute(0, 3, 1, 2), b.view(size, size, 1, 1)
    with torch.no_grad():
        times = measure({"matmul": lambda: a @ b, "conv": lambda: F.conv2d(image, kernel)}, 5, clock=clock)
    return 2 * size**3 / min(seconds.min() for seconds in times.values()) / 1e12


def show_profile(name: str, row: Callable[[], object]) -> None:
    row()
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        row()
    print(name)
    print(prof.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48))


# ----------------------------------------------------------------------------------------------------------- auricle


def ours(seed: int, precision: str) -> Callable[[Batch], Tensor]:
    """The training loop's own step: one micro-batch, the update gated, clipped and fused."""
    run = methods.preset("mockingjay_base")
    torch.manual_seed(seed)
    method = run.build().train()
    optimizer = optim.build_optimizer(method, run.train)

    def step(batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            result = method(batch)
        (result.loss * result.count).backward()
        optim.update(optimizer, 1000, run.train, result.loss, result.count)
        return result.loss

    return step


# -------------------------------------------------------------------------------------------------------------- peer


class BertMockingjay(nn.Module):
    """S3PRL's Mockingjay around transformers' Bert blocks."""

    def __init__(self, attention: str, masked_head: bool) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=DIM,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=FFN,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            layer_norm_eps=1e-12,
            attn_implementation=attention,
        )
        self.masked_head = masked_head
        self.project = nn.Linear(MELS, DIM)
        self.norm, self.dropout = nn.LayerNorm(DIM, eps=1e-12), nn.Dropout(0.1)
        self.encoder = BertModel(config, add_pooling_layer=False).encoder
        self.head = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.LayerNorm(DIM, eps=1e-12), nn.Linear(DIM, MELS))
        self.register_buffer("positions", sinusoids(int(LONGEST_S * RATE / HOP) + 1, DIM))
        self.register_buffer("window", torch.hann_window(400))
        self.register_buffer("filters", mel_filters("htk", RATE, 400, MELS, 0.0, RATE / 2).float())

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        clips = zip(batch.waveforms, batch.lengths.tolist(), strict=True)
        features = [self.features(waveform[:length]) for waveform, length in clips]
        target = pad_sequence(features, batch_first=True)
        masked, selected = self.mask(target, [len(clip) for clip in features])
        lengths = torch.tensor([len(clip) for clip in features])
        padded = torch.arange(target.shape[1]) >= lengths[:, None]
        bias = (padded * -10000.0)[:, None, None, :]
        hidden = self.dropout(self.norm(self.project(masked) + self.positions[: target.shape[1]]))
        hidden = self.encoder(hidden, attention_mask=bias).last_hidden_state
        if self.masked_head:
            return F.l1_loss(self.head(hidden[selected[:, :, 0]]), target[selected[:, :, 0]])
        return F.l1_loss(self.head(hidden).masked_select(selected), target.masked_select(selected))

    def features(self, waveform: Tensor) -> Tensor:
        """One clip (S,) at -25 dB to normalised log-mel energies (T, F)."""
        waveform = waveform * (10 ** (-25 / 20) / waveform.square().mean().sqrt())
        spectrum = torch.stft(waveform, 400, HOP, window=self.window, return_complex=True).abs().square()
        x = (spectrum.T @ self.filters + 1e-10).log()
        return (x - x.mean(0)) / (x.std(0) + 1e-10)

    def mask(self, target: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Masked copy of the features (B, T, F) and which values were selected, drawn a clip at a time."""
        masked, selected = target.clone(), torch.zeros_like(target, dtype=torch.bool)
        for number, length in enumerate(lengths):
            starts = torch.randperm(length - 7)[: round(length * 0.15 / 7)]
            chosen = (starts[:, None] + torch.arange(7)).flatten()
            dice = float(torch.rand(()))
            if dice < 0.8:
                masked[number, chosen] = 0
            elif dice < 0.9:
                starts = torch.randperm(length - 7)[: len(starts)]
                masked[number, chosen] = target[number, (starts[:, None] + torch.arange(7)).flatten()]
            selected[number, chosen] = True
        return masked, selected


def peer(seed: int, attention: str, masked_head: bool) -> Callable[[Batch], Tensor]:
    torch.manual_seed(seed)
    model = BertMockingjay(attention, masked_head).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4, fused=masked_head or None)

    def step(batch: Batch) -> Tensor:
        loss = model(batch)
        loss.backward()
        clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


if __name__ == "__main__":
    main()
