"""Embedding files: the whole way from 16 kHz FLAC to Parquet against the model alone, for any encoder.

    python benchmarks/embedding.py mockingjay-base hubert-base --clips 24 --rounds 3 --threads 2 [--precision bf16]
    python benchmarks/embedding.py fbank --memory-clips 1000 100000

Encoders are presets, whose random weights do not change the time, or what `auricle.load` takes. The clips are coloured
noise with log-normal lengths between 2 and 15 s, made in a temporary folder. The model alone runs on the same batches,
read before the clock starts, and pools its frames; the two take turns. With `--memory-clips`, processes of their own
embed manifests of that many rows, all of which name the same few files of 1 s, and report the most memory they ever
held.
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
from common import CLOCKS, machine, measure, ratio, show_ratio, show_times, wait_for, write_json

import auricle
from auricle import methods
from auricle.data.dataset import clip_batches
from auricle.data.manifest import Manifest
from auricle.embedding.extract import embed
from auricle.encoders.base import Encoder, pool_stretches

RATE, FILES = 16000, 32
MODEL, WHOLE = "the model alone", "FLAC to Parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", default=["mockingjay-base"], help="presets, or names for auricle.load")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-seconds", type=float, default=120.0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--workers", type=int, default=0, help="processes that read")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU as torch names it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-clips", type=int, nargs="*", default=[], help="manifest sizes; no speed is measured")
    parser.add_argument("--held", nargs=2, metavar=("MANIFEST", "OUTPUT"), help=argparse.SUPPRESS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.held:
        print(held(args.encoders[0], *args.held))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        if not args.memory_clips:
            manifest = make_files(Path(folder) / "audio", lengths(args.clips), np.random.default_rng(0))
        for name in args.encoders:
            if args.memory_clips:
                figures[name] = show_memory(name, args.memory_clips, Path(folder), args.threads)
            else:
                figures[name] = show_speed(name, manifest, args, Path(folder))
    settings = {
        name: getattr(args, name)
        for name in ("clips", "rounds", "batch_seconds", "precision", "workers", "device", "clock")
    }
    write_json(args.json, "embedding", **machine(args.threads), **settings, encoders=figures)


def show_speed(name: str, manifest: Manifest, args: argparse.Namespace, folder: Path) -> dict[str, object]:
    times, audio_s = speed(name, manifest, args, folder), float(manifest.durations.sum())
    print(f"\n{name}: {args.clips} clips, {audio_s:.0f} s of 16 kHz FLAC, {args.precision}, {args.threads} threads")
    show_times(times, "s", times_real_time={row: f"{audio_s / np.median(t):.0f}" for row, t in times.items()})
    found = ratio(times, MODEL, WHOLE)
    show_ratio("\nspeed of the whole way, model alone = 1", found, "0.90")
    return {"audio_s": audio_s, "times_s": times, "share": found}


def speed(name: str, manifest: Manifest, args: argparse.Namespace, folder: Path) -> dict[str, np.ndarray]:
    encoder, device = find(name).to(args.device), torch.device(args.device)
    found = clip_batches(manifest, encoder.sample_rate, args.batch_seconds, equal_lengths=not encoder.pads_safely)
    batches = [batch.to(device) for _, batch in found]

    def model() -> None:
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")
        with torch.inference_mode(), autocast:
            for batch in batches:
                pool_stretches(encoder.chosen(batch.waveforms, batch.lengths, "last"), len(batch.lengths), "mean")
        wait_for(device)

    def whole() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        options = {"precision": args.precision, "batch_seconds": args.batch_seconds, "workers": args.workers}
        embed(encoder, manifest, folder / "out", progress=False, **options)

    return measure({MODEL: model, WHOLE: whole}, args.rounds, clock=args.clock)


def find(name: str) -> Encoder:
    """A preset's encoder with random weights, or the one that `auricle.load` finds by this name."""
    if name.replace("-", "_") not in methods.PRESETS:
        return auricle.load(name).eval()
    torch.manual_seed(0)
    encoder = methods.preset(name).build().encoder.eval()
    encoder.name = name
    return encoder


def lengths(clips: int) -> np.ndarray:
    """Seconds of clips, log-normal between 2 and 15."""
    drawn = np.random.default_rng(0).lognormal(math.log(6.0), 0.6, 100 * clips)
    return drawn[(drawn >= 2) & (drawn <= 15)][:clips]


def make_files(folder: Path, seconds: np.ndarray, rng: np.random.Generator) -> Manifest:
    """Noise whose power falls with frequency, as FLAC, one file a clip."""
    folder.mkdir()
    for number, length in enumerate(seconds):
        waveform = np.cumsum(rng.standard_normal(int(length * RATE)))
        waveform -= np.convolve(waveform, np.ones(400) / 400, "same")
        soundfile.write(folder / f"{number:05}.flac", 0.3 * waveform / np.abs(waveform).max(), RATE)
    return Manifest.open([folder])


def show_memory(name: str, sizes: list[int], folder: Path, threads: int) -> dict[int, float]:
    found = {}
    for size in sizes:
        found[size] = memory_of(name, size, folder, threads)
        print(f"{name}, {size} clips: at most {found[size]:.0f} MB resident", flush=True)
    return found


def memory_of(name: str, size: int, folder: Path, threads: int) -> float:
    """Megabytes that a fresh process held at most while it embedded `size` clips."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        files = make_files(Path(place) / "audio", np.ones(FILES), np.random.default_rng(1)).table
        table = pa.concat_tables([files] * math.ceil(size / FILES)).slice(0, size)
        ids = pa.array([f"clip-{number}" for number in range(size)])
        table = table.set_column(table.column_names.index("clip_id"), "clip_id", ids)
        manifest = Path(place) / "manifest.parquet"
        Manifest(table).save(manifest)
        command = [sys.executable, __file__, name, "--threads", str(threads)]
        command += ["--held", str(manifest), f"{place}/out"]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def held(name: str, manifest: str, output: str) -> float:
    embed(find(name), [Path(manifest)], Path(output), progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
