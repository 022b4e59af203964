"""Embedding files with Mockingjay BASE: the whole way from 16 kHz FLAC to Parquet against the model alone.

    python benchmarks/embedding.py --clips 96 --rounds 5 --threads 2 [--precision bf16] [--memory-clips 1000 100000]

The clips are coloured noise with log-normal lengths between 2 and 15 s, made in a temporary folder. The model alone
runs on the same batches, read before the clock starts, and pools its frames; the rows take turns. Weights are random:
they do not change the time. With `--memory-clips`, processes of their own embed manifests of that many rows, all of
which name the same few files of 1 s, with the `fbank` encoder, and report the most memory they ever held.
"""

from __future__ import annotations

import argparse
import math
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import torch
from common import CLOCKS, machine, measure, ratio, show_ratio, show_times, write_json

import auricle
from auricle import methods
from auricle.data.dataset import clip_batches
from auricle.data.manifest import Manifest
from auricle.embedding.extract import embed
from auricle.encoders.base import pool_frames

RATE, FILES = 16000, 32
MODEL, WHOLE = "the model alone", "FLAC to Parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-seconds", type=float, default=120.0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--workers", type=int, default=0, help="processes that read")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-clips", type=int, nargs="*", default=[], help="manifest sizes")
    parser.add_argument("--held", nargs=2, metavar=("MANIFEST", "OUTPUT"), help=argparse.SUPPRESS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.held:
        print(held(*args.held))
        return
    with tempfile.TemporaryDirectory() as folder:
        times, audio_s = speed(args, Path(folder))
        memory = {size: memory_of(size, Path(folder), args.threads) for size in args.memory_clips}
    print(f"{args.clips} clips, {audio_s:.0f} s of 16 kHz FLAC, BASE, {args.precision}, {args.threads} threads")
    show_times(times, "s", times_real_time={name: f"{audio_s / np.median(t):.0f}" for name, t in times.items()})
    found = ratio(times, MODEL, WHOLE)
    show_ratio("\nspeed of the whole way, model alone = 1", found, "0.90")
    for size, megabytes in memory.items():
        print(f"{size:9} clips: at most {megabytes:.0f} MB resident")
    settings = {
        name: getattr(args, name) for name in ("clips", "rounds", "batch_seconds", "precision", "workers", "clock")
    }
    figures = {"audio_s": audio_s, "times_s": times, "share": found, "resident_mb": memory}
    write_json(args.json, "embedding", **machine(args.threads), **settings, **figures)


def speed(args: argparse.Namespace, folder: Path) -> tuple[dict[str, np.ndarray], float]:
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(math.log(6.0), 0.6, 100 * args.clips)
    seconds = drawn[(drawn >= 2) & (drawn <= 15)][: args.clips]
    manifest = make_files(folder / "audio", seconds, rng)
    torch.manual_seed(0)
    encoder = methods.preset("mockingjay_base").build().encoder.eval()
    encoder.name = "mockingjay_base"
    last = [len(encoder.dims) - 1]
    batches = [batch for _, batch in clip_batches(manifest, RATE, args.batch_seconds)]

    def model() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            for batch in batches:
                out = encoder(batch.waveforms, batch.lengths, last)
                pool_frames(out.hidden_states[0], out.lengths)

    def whole() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        options = {"precision": args.precision, "batch_seconds": args.batch_seconds, "workers": args.workers}
        embed(encoder, manifest, folder / "out", progress=False, **options)

    return measure({MODEL: model, WHOLE: whole}, args.rounds, clock=args.clock), float(manifest.durations.sum())


def make_files(folder: Path, seconds: np.ndarray, rng: np.random.Generator) -> Manifest:
    """Noise whose power falls with frequency, as FLAC, one file a clip."""
    folder.mkdir()
    for number, length in enumerate(seconds):
        waveform = np.cumsum(rng.standard_normal(int(length * RATE)))
        waveform -= np.convolve(waveform, np.ones(400) / 400, "same")
        soundfile.write(folder / f"{number:05}.flac", 0.3 * waveform / np.abs(waveform).max(), RATE)
    return Manifest.open([folder])


def memory_of(size: int, folder: Path, threads: int) -> float:
    """Megabytes that a fresh process held at most while it embedded `size` clips."""
    place = folder / f"memory-{size}"
    place.mkdir()
    files = make_files(place / "audio", np.ones(FILES), np.random.default_rng(1)).table
    table = pa.concat_tables([files] * math.ceil(size / FILES)).slice(0, size)
    ids = pa.array([f"clip-{number}" for number in range(size)])
    table = table.set_column(table.column_names.index("clip_id"), "clip_id", ids)
    Manifest(table).save(place / "manifest.parquet")
    command = [sys.executable, __file__, "--threads", str(threads), "--held"]
    command += [str(place / "manifest.parquet"), str(place / "out")]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def held(manifest: str, output: str) -> float:
    embed(auricle.load("fbank"), [Path(manifest)], Path(output), progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
