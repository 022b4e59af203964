"""Log-mel filter banks: auricle's batched `KaldiFbank` against kaldi-native-fbank, interleaved, on the same threads.

    python benchmarks/features.py --clips 32 --seconds 10 --threads 2

kaldi-native-fbank takes a clip at a time and frees Python's lock meanwhile, so a pool of threads shares the clips out.
Its first row is the computation alone; the second also gathers the frames into an array, as ours are. The ratio is
taken of the same round, and of the first row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import torch
from common import CLOCKS, machine, measure, ratio, show_ratio, show_times, write_json

from auricle.features.fbank import KaldiFbank

OURS, COMPUTED, GATHERED = "auricle KaldiFbank", "kaldi-native-fbank", "kaldi-native-fbank, as an array"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each clip")
    parser.add_argument("--mels", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="each times every row once, in turn")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
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
        seconds = measure(rows, args.rounds, clock=args.clock)

    hours = args.clips * args.seconds / 3600
    print(f"{args.clips} clips of {args.seconds:g} s, {args.mels} mels, float32, {args.threads} threads")
    show_times(seconds, hours_per_s={name: f"{hours / np.median(times):.2f}" for name, times in seconds.items()})
    found = ratio(seconds, COMPUTED, OURS)
    show_ratio("\nratio", found, "2")
    print(f"largest difference {difference:.1e} nat")
    settings = {name: getattr(args, name) for name in ("clips", "seconds", "mels", "rounds", "clock")}
    difference = float(difference)
    write_json(
        args.json, "features", **machine(args.threads), **settings, times_s=seconds, ratio=found, difference=difference
    )


if __name__ == "__main__":
    main()
