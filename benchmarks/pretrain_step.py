"""One optimizer step of a method's base preset: auricle against plain PyTorch that does what the official code does.

    python benchmarks/pretrain_step.py METHOD --clips 8 --rounds 5 --threads 2 [--bucketed] [--memory] [--profile]

METHOD is a file in `peers/`, which tells what each of its rows does. A step goes from waveforms to new weights:
features, masks, forward, backward, clipping, the optimizer. The rows take turns on the same clips; every round has
others, which are noise of the lengths that the method is trained on.

    A  plain eager fp32 PyTorch doing the official code's work
    B  the same with scaled_dot_product_attention (where nothing attends, with what `peers/` says) and a fused optimizer
    T  the same model in the transformers library, where it has one
    C  auricle's own training step in fp32
    D  the same in bf16, under autocast
    E  A in bf16, under autocast
    F  B in bf16, under autocast

Memory is what a process of its own holds at most over two steps on the longest batch, beyond what it held before the
model was made; of ours, fitting clusters or statistics included. The step's operations are counted as the model needs
them on true frames (padding is waste): three times the forward pass, a frozen teacher's once. They are set against the
best rate that large matrix products of the row's precision reach.
"""

from __future__ import annotations

import argparse
import importlib
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from common import CLOCKS, machine, matrix_peak, measure, ratio, show_ratio, show_times, wait_for, write_json
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from auricle import methods
from auricle.config import edit
from auricle.data.batching import Batch
from auricle.methods.base import RunConfig
from auricle.training import optim

METHODS = sorted(file.stem for file in (Path(__file__).parent / "peers").glob("[a-z]*.py"))
OURS = {"C": "auricle fp32", "D": "auricle bf16"}
IN_BF16 = {"E": "A", "F": "B"}
TARGETS = {"D over A": "3", "C over B": "1.2", "D over B": "", "C over T": "", "D over T": "", "D over E": "1.5, GPU"}
"""Ratios that are shown, and what they should be."""
RATE, MEDIAN_S, SIGMA = 16000, 6.0, 0.6

Step = Callable[[Batch], Tensor]


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    peer = importlib.import_module(f"peers.{args.method}")
    run = edit(methods.preset(args.preset or peer.PRESET), **getattr(peer, "EDITS", {}))
    device = torch.device(args.device)
    seconds = tuple(args.seconds or peer.SECONDS)
    drawn = draw_batches(seconds, args.clips, args.rounds, args.seed, args.bucketed, rate_of(run))
    batches = [batch.to(device) for batch in drawn]
    if args.held:
        print(held(args.held, peer, run, batches, args.seed))
        return
    names = {letter: f"{letter}  {name}" for letter, name in row_names(peer).items()}
    chosen = args.rows or "".join(names).translate({ord(letter): None for letter in IN_BF16 if device.type == "cpu"})
    memory = {names[letter]: memory_of(letter) for letter in chosen} if args.memory else {}
    steps = {names[letter]: build(letter, peer, run, batches, args.seed) for letter in chosen}
    current = batches[0]

    def choose(number: int) -> None:
        nonlocal current
        current = batches[number]

    def timed(step: Step) -> None:
        step(current)
        wait_for(device)

    rows = {name: lambda step=step: timed(step) for name, step in steps.items()}
    if args.profile:
        for name, row in rows.items():
            show_profile(name, row, device)
        return
    report(args, peer, run, batches, measure(rows, args.rounds, choose, args.clock), memory)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--preset", help="in place of the method's base preset, of the same kind")
    parser.add_argument("--clips", type=int, default=8, help="clips in a batch")
    parser.add_argument("--seconds", type=float, nargs=2, help="shortest and longest clip, else the method's own")
    parser.add_argument("--rounds", type=int, default=5, help="each times every row once, on a batch of its own")
    parser.add_argument("--bucketed", action="store_true", help="clips of like length together, as data paths do")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, audio and weights")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU as torch names it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", help="which of them to run, e.g. AD; without E and F on a CPU unless named")
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each row, in its own process")
    parser.add_argument("--profile", action="store_true", help="show where the time of each row goes, then stop")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--held", metavar="ROW", help=argparse.SUPPRESS)
    return parser.parse_args()


def row_names(peer: ModuleType) -> dict[str, str]:
    """What each row is, by its letter."""
    return {**peer.ROWS, **OURS, **{letter: f"{plain} in bf16" for letter, plain in IN_BF16.items()}}


def report(
    args: argparse.Namespace,
    peer: ModuleType,
    run: RunConfig,
    batches: list[Batch],
    times: dict[str, np.ndarray],
    memory: dict[str, float],
) -> None:
    device = torch.device(args.device)
    samples = [batch.lengths.cpu().numpy() for batch in batches]
    teraflops = np.array([peer.operations(run, lengths) / 1e12 for lengths in samples])
    padding = 1 - sum(lengths.sum() for lengths in samples) / sum(len(lengths) * lengths.max() for lengths in samples)
    peaks = {dtype: matrix_peak(dtype, device, args.clock) for dtype in (torch.float32, torch.bfloat16)}
    audio_s = np.mean([lengths.sum() for lengths in samples]) / rate_of(run)
    print(f"{run.preset}: {args.rounds} batches of {args.clips} clips, {audio_s:.0f} s, seed {args.seed}", end="")
    print(f"{', bucketed' if args.bucketed else ''}; {padding:.0%} padding; {np.mean(teraflops):.3f} Tflop a step")
    print("matrix peak, Tflop/s: " + ", ".join(f"{str(dtype)[6:]} {peak:.3g}" for dtype, peak in peaks.items()))
    shares = {}
    for name, seconds in times.items():
        peak = peaks[torch.bfloat16 if name[0] in ("D", *IN_BF16) else torch.float32]
        shares[name] = float(np.median(teraflops / seconds)) / peak
    columns = {"share_of_peak": {name: f"{share:.0%}" for name, share in shares.items()}}
    if memory:
        columns["memory_MB"] = {name: f"{megabytes:.0f}" for name, megabytes in memory.items()}
    show_times(times, "s", **columns)
    print()
    ratios = {}
    by_letter = {name[0]: name for name in times}
    for label, target in {**TARGETS, **getattr(peer, "TARGETS", {})}.items():
        fast, slow = by_letter.get(label[0]), by_letter.get(label[-1])
        if slow and fast:
            ratios[label] = found = ratio(times, slow, fast)
            show_ratio(label, found, target)
    settings = {
        name: getattr(args, name) for name in ("method", "clips", "rounds", "seed", "bucketed", "device", "clock")
    }
    figures = {"preset": run.preset, "padding": padding, "teraflops": teraflops, "times_s": times, "ratios": ratios}
    figures |= {"share_of_peak": shares, "memory_mb": memory}
    figures["peak_tflops"] = {str(dtype): peak for dtype, peak in peaks.items()}
    write_json(args.json, "pretrain_step", **machine(args.threads), **settings, **figures)


def rate_of(run: RunConfig) -> int:
    """Samples in a second; 16 kHz where a configuration does not name it."""
    return getattr(run.encoder, "sample_rate", RATE)


def draw_batches(
    seconds: tuple[float, float], clips: int, count: int, seed: int, bucketed: bool, rate: int = RATE
) -> list[Batch]:
    """Noise of log-normal lengths within `seconds`; bucketed, clips side by side among forty times as many, sorted."""
    rng = np.random.default_rng(seed)
    shortest, longest = seconds
    drawn = rng.lognormal(math.log(MEDIAN_S), SIGMA, 400 * clips * count)
    drawn = drawn[(drawn >= shortest) & (drawn <= longest)] if shortest < longest else np.full(len(drawn), longest)
    lengths_s = drawn[: min(40 * count, len(drawn) // clips) * clips].reshape(-1, clips)
    if bucketed:
        lengths_s = np.sort(lengths_s, axis=None).reshape(-1, clips)
        lengths_s = lengths_s[rng.permutation(len(lengths_s))]
    batches = []
    for row in lengths_s[:count]:
        lengths = torch.from_numpy((row * rate).astype(np.int64))
        waveforms = torch.zeros(clips, int(lengths.max()))
        for waveform, length in zip(waveforms, lengths, strict=True):
            waveform[:length] = torch.from_numpy(0.1 * rng.standard_normal(int(length), np.float32))
        ids, starts = [str(number) for number in range(clips)], torch.zeros(clips, dtype=torch.long)
        # One speaker, as in CPC_audio's batches; two crops of a recording side by side, as in CSC's.
        labels = {"speaker": torch.zeros(clips, dtype=torch.long), "path": torch.arange(clips) // 2}
        batches.append(Batch(waveforms, lengths, ids, starts, labels))
    return batches


# -------------------------------------------------------------------------------------------------------------- steps


def build(row: str, peer: ModuleType, run: RunConfig, batches: list[Batch], seed: int) -> Step:
    """The step of a row, given its letter: it takes a batch and returns the loss ()."""
    torch.manual_seed(seed)
    device = batches[0].waveforms.device
    if row in OURS:
        return ours(run, batches, bf16=row == "D")
    model = peer.build(IN_BF16.get(row, row), run).to(device).train()
    optimizer = model.optimizer()

    def step(batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=row in IN_BF16):
            loss = model(batch)
        loss.backward()
        if model.clip_norm is not None:
            clip_grad_norm_(model.parameters(), model.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def ours(run: RunConfig, batches: list[Batch], bf16: bool) -> Step:
    """The training loop's own step: one micro-batch, the update gated, clipped and fused."""
    device = batches[0].waveforms.device
    method = run.build().to(device).train()
    method.prepare(cycle(batches))
    optimizer = optim.build_optimizer(method, run.train)

    def step(batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            result = method(batch)
        (result.loss.float() * result.count).backward()
        optim.update(optimizer, 1, run.train, result.loss.detach(), result.count)
        method.on_optimizer_step(1)
        return result.loss.detach()

    return step


# ------------------------------------------------------------------------------------------------------- measurements


def memory_of(row: str) -> float:
    """Megabytes that a process of its own, started with our own arguments, holds for a row."""
    child = subprocess.run([sys.executable, *sys.argv, "--held", row], check=True, capture_output=True, text=True)
    return float(child.stdout.splitlines()[-1])


def held(row: str, peer: ModuleType, run: RunConfig, batches: list[Batch], seed: int) -> float:
    """Most megabytes held over two steps on the longest batch, weights and optimizer included; in a fresh process."""
    device = batches[0].waveforms.device
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    step = build(row, peer, run, batches, seed)
    longest = max(batches, key=lambda batch: batch.waveforms.shape[1])
    for _ in range(2):
        step(longest)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before


def show_profile(name: str, row: Callable[[], object], device: torch.device) -> None:
    row()
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as prof:
        row()
    print(name)
    by = f"self_{device.type}_time_total"
    print(prof.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=48))


if __name__ == "__main__":
    main()
