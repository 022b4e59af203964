"""Log-mel filter banks: auricle's batched `KaldiFbank` against kaldi-native-fbank, interleaved, on the same threads.

    python benchmarks/features.py --clips 32 --seconds 10 --threads 2

kaldi-native-fbank takes a clip at a time and frees Python's lock meanwhile, so a pool of threads shares the clips out.
Its first row is the computation alone; the second also gathers the frames into an array, as ours are. The ratio is
taken of the same round, and of the first row.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import torch

from auricle.features.fbank import KaldiFbank

OURS, COMPUTED, GATHERED = "auricle KaldiFbank", "kaldi-native-fbank", "kaldi-native-fbank, as an array"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each clip")
    parser.add_argument("--mels", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="each times every row once, in turn")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    samples = int(args.seconds * 16000)
    waveforms = (0.1 * np.random.default_rng(0).standard_normal((args.clips, samples))).astype(np.float32)
    batch, lengths = torch.from_numpy(waveforms), torch.full((args.clips,), samples)
    as_int16 = waveforms * 32768  # what kaldi reads; not counted
    fbank = KaldiFbank(n_mels=args.mels)
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = args.mels

    def compute(clip: np.ndarray) -> knf.OnlineFbank:
        online = knf.OnlineFbank(options)
        online.accept_waveform(16000, clip)
        online.input_finished()
        return online

    def gather(clip: np.ndarray) -> np.ndarray:
        online = compute(clip)
        return np.stack([online.get_frame(i) for i in range(online.num_frames_ready)])

    with ThreadPoolExecutor(args.threads) as pool, torch.inference_mode():
        rows: dict[str, Callable[[], object]] = {
            OURS: lambda: fbank(batch, lengths),
            COMPUTED: lambda: list(pool.map(compute, as_int16)),
            GATHERED: lambda: list(pool.map(gather, as_int16)),
        }
        difference = np.abs(fbank(batch, lengths)[0].numpy() - np.stack(list(pool.map(gather, as_int16)))).max()
        seconds = measure(rows, args.rounds)

    ratios = seconds[COMPUTED] / seconds[OURS]
    hours = args.clips * args.seconds / 3600
    print(f"{args.clips} clips of {args.seconds:g} s, {args.mels} mels, float32, {args.threads} threads")
    print(f"\n{'':34}{'median ms':>10}{'min ms':>10}{'max ms':>10}{'hours/s':>10}")
    for name, times in seconds.items():
        median, low, high = (1000 * figure(times) for figure in (np.median, np.min, np.max))
        print(f"{name:34}{median:10.1f}{low:10.1f}{high:10.1f}{1000 * hours / median:10.2f}")
    print(f"\nratio {np.median(ratios):.1f} (from {ratios.min():.1f} to {ratios.max():.1f} over {args.rounds} rounds)")
    print(f"largest difference {difference:.1e} nat")
    if args.json:
        figures = {
            "benchmark": "features",
            "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
            "torch": torch.__version__,
            **{name: getattr(args, name) for name in ("clips", "seconds", "mels", "threads", "rounds")},
            "times_s": {name: times.tolist() for name, times in seconds.items()},
            "ratio_median": float(np.median(ratios)),
            "largest_difference": float(difference),
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(rows: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each row in each round; the rows take turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for row in rows.values():
        row()
    for _ in range(rounds):
        for name, row in rows.items():
            begun = time.perf_counter()
            row()
            times[name].append(time.perf_counter() - begun)
    return {name: np.array(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
