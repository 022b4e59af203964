"""Kill a pre-training run at random moments, resume it each time, and compare what it leaves with an unbroken run.

    python benchmarks/resume.py DATA --kills 10 --steps 60

Everything that is no clock has to agree: weights, moments, metrics, TensorBoard and the list of skipped clips. Each
start is a process of its own, killed (SIGKILL) at a moment drawn over start-up and training alike.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine, write_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from auricle.training import checkpoint
from auricle.training.folder import CONFIG

CLOCKS = ("audio_s_per_s", "waiting")
MODES = {"eager": [], "compiled": ["--train.compile"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="folders of audio, or manifests")
    parser.add_argument("--preset", default="mockingjay-tiny")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-seconds", type=float, default=16.0)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()

    rows = {}
    print(f"{args.preset}, {args.steps} steps, killed {args.kills} times\n")
    print(f"{'':10}{'killed':>8}{'before a checkpoint':>24}{'unbroken s':>12}  identical")
    for mode in args.modes:
        with tempfile.TemporaryDirectory() as folder:
            rows[mode] = row = measure(args, MODES[mode], Path(folder))
        same = ", ".join(name if equal else f"NOT {name}" for name, equal in row["identical"].items())
        print(f"{mode:10}{row['killed']:8}{row['before_a_checkpoint']:24}{row['unbroken_s']:12.1f}  {same}", flush=True)
    options = {name: getattr(args, name) for name in ("preset", "kills", "steps", "batch_seconds", "seed")}
    write_json(args.json, "resume", machine=machine(torch.get_num_threads()), options=options, rows=rows)
    if not all(all(row["identical"].values()) for row in rows.values()):
        sys.exit(1)


def measure(args: argparse.Namespace, options: list[str], folder: Path) -> dict:
    """One unbroken run, one that is killed, and whether they agree."""
    every = max(1, args.steps // 12)
    begin = ["pretrain", args.preset, "--data", *map(str, args.data), "--train.steps", str(args.steps), *options]
    begin += ["--data.batch-seconds", str(args.batch_seconds), "--train.checkpoint-every", str(every)]
    begin += ["--train.valid-every", str(4 * every), "--train.log-every", "2", "--data.max-skipped", "1"]
    whole, broken = folder / "whole", folder / "broken"
    begun = time.perf_counter()
    if run([*begin, "--output", str(whole)]) != 0:
        sys.exit("the unbroken run failed")
    seconds = time.perf_counter() - begun
    draw, killed, early = random.Random(args.seed), 0, 0
    while killed < args.kills:
        resumed = ["pretrain", "--resume", str(broken)]
        start = resumed if (broken / CONFIG).exists() else [*begin, "--output", str(broken)]
        if run(start, draw.uniform(0, seconds / 2)) == 0:
            break  # it came to its end between two kills
        killed += 1
        early += checkpoint.newest(broken / "checkpoints") is None
    start = ["pretrain", "--resume", str(broken)] if (broken / CONFIG).exists() else [*begin, "--output", str(broken)]
    if run(start) != 0:
        sys.exit("the resumed run failed")
    a, b = traces(whole), traces(broken)
    return {
        "killed": killed,
        "before_a_checkpoint": early,
        "unbroken_s": seconds,
        "identical": {name: a[name] == b[name] for name in a},
    }


def run(command: list[str], kill_after_s: float | None = None) -> int:
    """Exit code of `auricle` with this command, killed after a while."""
    process = subprocess.Popen(
        [sys.executable, "-m", "auricle", *command], stdout=subprocess.DEVNULL, stderr=sys.stderr
    )
    try:
        return process.wait(kill_after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return -9


def traces(output: Path) -> dict[str, object]:
    """All that a run leaves and no clock has touched."""
    newest = checkpoint.newest(output / "checkpoints")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = [tag for tag in sorted(board.Tags()["scalars"]) if not tag.endswith(CLOCKS)]
    skipped = output / "skipped.jsonl"
    return {
        "weights": [(newest / name).read_bytes() for name in (checkpoint.ENCODER, checkpoint.OBJECTIVE)],
        "moments": (newest / checkpoint.OPTIMIZER).read_bytes(),
        "metrics": [
            {key: value for key, value in line.items() if key not in CLOCKS}
            for line in lines
            if line["split"] in ("train", "valid")
        ],
        "tensorboard": {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in tags},
        "skips": skipped.read_text() if skipped.exists() else "",
    }


if __name__ == "__main__":
    main()
