"""Kill a pre-training run at random moments, resume it each time, and compare what it leaves with an unbroken run.

    python benchmarks/resume.py DATA --kills 10 --steps 60

Everything that is no clock has to agree: weights, moments, metrics, TensorBoard and the list of skipped clips. Each
start is a process of its own, killed (SIGKILL) a random while after its log shows a random step; where the log of the
start before shows that step already, during start-up.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

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
    print(f"{'':10}{'killed':>8}{'resumed':>10}{'unbroken s':>12}  identical")
    for mode in args.modes:
        with tempfile.TemporaryDirectory() as folder:
            rows[mode] = row = measure(args, MODES[mode], Path(folder))
        same = ", ".join(name if equal else f"NOT {name}" for name, equal in row["identical"].items())
        print(f"{mode:10}{row['killed']:8}{row['from_a_checkpoint']:10}{row['unbroken_s']:12.1f}  {same}", flush=True)
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
    draw, exits, resumed = random.Random(args.seed), [], 0
    for step in [*sorted(draw.uniform(0, 0.9 * args.steps) for _ in range(args.kills)), None]:
        resumed += checkpoint.newest(broken / "checkpoints") is not None
        resume = ["pretrain", "--resume", str(broken)]
        start = resume if (broken / CONFIG).exists() else [*begin, "--output", str(broken)]
        exits.append(run(start, None if step is None else Moment(broken, step, draw.uniform(0, 1))))
    if exits.pop() != 0:
        sys.exit("the resumed run failed")
    a, b = traces(whole), traces(broken)
    return {
        "killed": sum(code == -signal.SIGKILL for code in exits),
        "from_a_checkpoint": resumed,
        "unbroken_s": seconds,
        "identical": {name: a[name] == b[name] for name in a},
    }


class Moment(NamedTuple):
    """`seconds` after the log in `folder` shows `step`."""

    folder: Path
    step: float
    seconds: float

    def has_come(self) -> bool:
        log = self.folder / "metrics.jsonl"
        steps = re.findall(r'"step": (\d+)', log.read_text()) if log.exists() else []
        return max(map(int, steps), default=-1) >= self.step


def run(command: list[str], kill: Moment | None = None) -> int:
    """Exit code of `auricle` with this command, killed at a moment."""
    process = subprocess.Popen([sys.executable, "-m", "auricle", *command], stdout=subprocess.DEVNULL)
    while kill and process.poll() is None:
        time.sleep(0.05)
        if kill.has_come():
            time.sleep(kill.seconds)
            process.kill()
            break
    return process.wait()


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
