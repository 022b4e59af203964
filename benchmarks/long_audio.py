"""Long audio: what attention in windows changes, how probes fare at other lengths, and the memory that hours take.

    python benchmarks/long_audio.py runs/mockingjay auricle/recordings/manifest.csv --target category
    python benchmarks/long_audio.py --memory 10 60 180 --presets mockingjay-tiny hubert-tiny    # minutes; untrained

Windows, of encoders that have `chunk_frames`: recordings of a class are strung together to 15, 30 and 60 s; frames that
an encoder gives in overlapping windows are compared with those it gives when attention sees the whole. Lengths: a probe
is trained on 3 s and scored on 1, 3 and 15 s, drawn from strings of the test recordings of a class. Memory: peak of a
process of its own each.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from auricle.audio.io import as_waveform, probe, read, write
from auricle.config import Config, edit
from auricle.data.dataset import training_batches
from auricle.data.manifest import Manifest
from auricle.data.splits import split
from auricle.embedding.extract import embed
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import load
from auricle.evaluation.run import evaluate
from auricle.methods import preset

RATE = 16_000
TRAINED_S, TESTED_S, WINDOWED_S = 3.0, (1.0, 3.0, 15.0), (15.0, 30.0, 60.0)
JOBS = ("crop", "pretrain", "clip", "clip, all layers", "frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="run folder, or another encoder's name")
    parser.add_argument("data", nargs="?", help="manifest with labels")
    parser.add_argument("--target", default="category", help="column of the classes")
    parser.add_argument("--clips", type=int, default=10, help="strings of each length, and windows of each class")
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="MINUTES")
    parser.add_argument("--presets", nargs="+", default=["mockingjay-tiny"], help="whose memory; without label columns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--job", nargs=3, metavar=("JOB", "PRESET", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.job:
        print(peak_of(*args.job))
        return
    figures: dict[str, object] = {"benchmark": "long_audio", "torch": torch.__version__, "threads": args.threads}
    if args.run and args.data:
        strings = Strings(Manifest.open(args.data), args.target)
        if hasattr(load(args.run).config, "chunk_frames"):
            figures["windows"] = show_windows(load(args.run), strings, args.clips)
        figures["lengths"] = show_lengths(args.run, strings, args.clips)
    if args.memory:
        figures["memory"] = show_memory(args.presets, args.memory, args.threads)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


class Strings:
    """Recordings of one class and part, strung together in random order."""

    def __init__(self, manifest: Manifest, target: str) -> None:
        known = manifest.select([value not in (None, "") for value in manifest.column(target)])
        self.splits, self.known, self.labels = split(known, target), known, known.column(target)
        self.classes = sorted(set(map(str, self.labels)))

    def draw(self, label: str, part: str, seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
        rows = [row for row in self.splits.rows(part) if str(self.labels[row]) == label]
        pieces: list[NDArray[np.float32]] = []
        while sum(map(len, pieces)) < 1.5 * seconds * RATE:
            pieces += [read(self.known.row(int(row))["path"], RATE) for row in rng.permutation(rows)]
        whole, length = np.concatenate(pieces), round(seconds * RATE)
        start = int(rng.integers(len(whole) - length))
        return whole[start : start + length]


@torch.inference_mode()
def show_windows(chunked: Encoder, strings: Strings, clips: int) -> list[dict[str, float]]:
    """Relative differences |chunked - whole| / |whole| of frames of the last layer."""
    window_s = window(chunked.config) * chunked.hop / chunked.sample_rate
    whole = seeing(chunked, max(WINDOWED_S))
    last, rows = [len(chunked.dims) - 1], []
    print(f"\nwindows of {window_s:g} s against the whole, last layer, {clips} strings each")
    print(f"{'seconds':>8}{'mean':>10}{'95 %':>10}{'largest':>10}{'clip mean':>12}")
    for seconds in WINDOWED_S:
        rng, frames, vectors = np.random.default_rng(0), [], []
        for clip in range(clips):
            label = strings.classes[clip % len(strings.classes)]
            waveform = torch.from_numpy(
                as_waveform(strings.draw(label, "test", seconds, rng), RATE, chunked.sample_rate)
            )
            batch = waveform[None], torch.tensor([len(waveform)])
            one, other = (encoder(*batch, last).hidden_states[0][0] for encoder in (chunked, whole))
            frames.append((one - other).norm(dim=1) / other.norm(dim=1))
            vectors.append(float((one.mean(0) - other.mean(0)).norm() / other.mean(0).norm()))
        found = torch.cat(frames)
        row = {"seconds": seconds, "mean": float(found.mean()), "p95": float(found.quantile(0.95))}
        row |= {"max": float(found.max()), "clip_mean": float(np.mean(vectors))}
        rows.append(row)
        print(f"{seconds:8g}{row['mean']:10.4f}{row['p95']:10.4f}{row['max']:10.4f}{row['clip_mean']:12.4f}")
    return rows


def window(config: Config) -> int:
    """Frames that attention sees at most."""
    return int(config.chunk_frames) // getattr(config, "patch_frames", 1)  # type: ignore[attr-defined]


def seeing(encoder: Encoder, seconds: float) -> Encoder:
    """An encoder of the same weights whose attention sees clips of `seconds` as a whole."""
    config = encoder.config
    windows = math.ceil(seconds * encoder.sample_rate / encoder.hop / window(config))
    whole = type(encoder)(edit(config, chunk_frames=windows * config.chunk_frames))  # type: ignore[arg-type, attr-defined]
    whole.load_state_dict(encoder.state_dict())
    return whole.eval()


def show_lengths(run: str, strings: Strings, clips: int) -> list[dict[str, object]]:
    """Scores of linear probes trained on windows of 3 s, for the run, its untrained twin and plain features."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        learned = [
            _window(strings, folder, label, part, TRAINED_S, number, rng)
            for part, count in (("train", 3 * clips), ("dev", clips))
            for label in strings.classes
            for number in range(count)
        ]
        print(f"\na probe trained on {TRAINED_S:g} s, on other lengths: {', '.join(strings.classes)}")
        print(f"{'encoder':40}" + "".join(f"{f'{seconds:g} s':>22}" for seconds in TESTED_S))
        manifests = []
        for seconds in TESTED_S:
            tested = [
                _window(strings, folder, label, "test", seconds, number, rng)
                for label in strings.classes
                for number in range(clips)
            ]
            table = {key: [row[key] for row in learned + tested] for key in learned[0]}
            manifests.append(Manifest.from_columns(table, folder))
        for encoder in (run, f"untrained:{run}", "fbank"):
            print(f"{encoder[-39:]:40}", end="")
            for seconds, manifest in zip(TESTED_S, manifests, strict=True):
                (result,) = evaluate(encoder, data=manifest, target="label", output=folder / "results", progress=False)
                rows.append({"encoder": encoder, "seconds": seconds, "score": result.score, "low": result.low})
                rows[-1] |= {"high": result.high, "metric": result.metric, "test": result.n_test}
                print(f"{result.score:8.3f} ({result.low:.3f}–{result.high:.3f})", end="", flush=True)
            print()
    return rows


def _window(
    strings: Strings, folder: Path, label: str, part: str, seconds: float, number: int, rng: np.random.Generator
) -> dict[str, str]:
    path = folder / f"{part}-{seconds:g}-{strings.classes.index(label)}-{number}.wav"
    write(path, strings.draw(label, part, seconds, rng), RATE)
    return {"path": path.name, "label": label, "split": part}


def show_memory(presets: list[str], minutes: list[int], threads: int) -> list[dict[str, object]]:
    """Peak memory of each job beyond that of the imports, in a process of its own."""
    rows: list[dict[str, object]] = []
    print(f"\n{'peak MB beyond imports':44}{'minutes':>8}{'samples MB':>12}{'peak MB':>10}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            path, rng = Path(folder) / f"{length}.flac", np.random.default_rng(0)
            with soundfile.SoundFile(path, "w", RATE, 1) as file:
                for _ in range(length):
                    file.write(0.1 * rng.standard_normal(60 * RATE))
            for name, job in product(presets, JOBS):
                begun = time.perf_counter()
                command = [sys.executable, __file__, "--threads", str(threads), "--job", job, name, str(path)]
                peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                row = {"preset": name, "job": job, "minutes": length, "peak_mb": peak}
                row["samples_mb"] = length * 60 * RATE * 4 / 2**20
                rows.append(row | {"seconds": time.perf_counter() - begun})
                cells = f"{row['samples_mb']:12.0f}{peak:10.0f}{rows[-1]['seconds']:9.0f}"
                print(f"{f'{name}, {job}':44}{length:8}{cells}", flush=True)
    return rows


def peak_of(job: str, name: str, path: str) -> float:
    """MB that this process has ever held, less what it held before the job."""
    run = preset(name)
    method = run.build()
    method.encoder.name = name
    before = _peak()
    if job == "crop":
        read(path, RATE, probe(path).num_samples // 2, 5 * RATE)
    elif job == "pretrain":
        batches = training_batches(Manifest.open(path), method.needs, run.data, seed=0)
        method.prepare(batches)
        for _ in range(3):
            method(next(batches)).loss.backward()
    else:
        level, layers = ("frames" if job == "frames" else "clip"), ("all" if "all" in job else "last")
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as output:
            embed(method.encoder, path, output, level=level, layers=layers, progress=False)  # type: ignore[arg-type]
    return _peak() - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
