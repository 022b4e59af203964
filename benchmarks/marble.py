"""MARBLE's 1,008 probes of an encoder: auricle's grid, all points together, against a plain loop and a process a point.

    python benchmarks/marble.py --train 1024 --epochs 4 --threads 1

Twelve tasks x (13 layers of a BASE encoder and their learned sum) x six learning rates, on random embeddings that are
there already, as after one pass of the encoder; the tasks have MIR13's kinds and numbers of classes. Both train with
the same minibatches of 64 and the same number of epochs, none stopped early, and score dev after each. The loop keeps
all tensors in memory, picks rows by index and uses `torch.nn` modules and fused Adam, a head after another. A process a
point, as MARBLE's own scripts run them, is one such head with the start of Python, and the reading of its layer from a
file; it is timed once and multiplied. The floor is what the matrix products, forward and backward, take alone in the
best shapes a grid could give them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from common import CLOCKS, machine, measure, ratio, show_ratio, show_times, wait_for, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.evaluation.probes.heads import Examples, Kind, ProbeConfig
from auricle.evaluation.probes.marble import MarbleConfig, MarbleProber, dev_measure
from auricle.nn.linear import linear

LAYERS = 13
TAGGED = 0.08
"""Share of the examples that have a label."""


class Probed(NamedTuple):
    """A task's kind, and how many classes, labels or values it has."""

    kind: Kind
    outputs: int


PROBED = {
    "mtt-tags": Probed("labels", 50),
    "gtzan-genre": Probed("classes", 10),
    "giantsteps-key": Probed("classes", 24),
    "emomusic": Probed("values", 2),
    "nsynth-instrument": Probed("classes", 11),
    "nsynth-pitch": Probed("classes", 112),
    "vocalset-technique": Probed("classes", 10),
    "vocalset-singer": Probed("classes", 20),
    "jamendo-instrument": Probed("labels", 40),
    "jamendo-mood": Probed("labels", 56),
    "jamendo-genre": Probed("labels", 87),
    "jamendo-top50": Probed("labels", 50),
}


class Parts(NamedTuple):
    """What is learned, and what it is chosen by."""

    task: Probed
    train: Examples
    dev: Examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=PROBED, default=list(PROBED))
    parser.add_argument("--train", type=int, default=1024, help="examples to train on")
    parser.add_argument("--dev", type=int, default=256, help="examples to choose on")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", choices=("linear", "mlp"), default=("linear", "mlp"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # a process that trains the first point alone
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        saved, task = load_file(args.one, args.device), PROBED[args.tasks[0]]
        train, dev = (Examples({0: saved[f"{name}_x"]}, saved[f"{name}_y"]) for name in ("train", "dev"))
        config = config_of(args.heads[0], args)
        train_one(Parts(task, train, dev), (0,), config.lrs[0], config)
        return

    every = all_parts(args)
    targets = {"linear": "5 on a CPU, 30 on a GPU", "mlp": "none on a CPU: see the floor; 30 on a GPU"}
    print(f"{args.train} x {args.dim} embeddings, {args.epochs} epochs, {points(config_of('mlp', args))} heads a task")
    times, ratios, processes = {}, {}, {}
    for head in args.heads:
        config, whole = config_of(head, args), {"plain loop": 0.0, "auricle's grid": 0.0, "floor": 0.0}
        for name, parts in every.items():
            rows = {
                "plain loop": partial(timed, partial(plain_loop, parts, config), args),
                "auricle's grid": partial(timed, partial(whole_grid, parts, config, args), args),
                "floor": partial(timed, products(parts.task.outputs, config, args), args),
            }
            found = measure(rows, args.rounds, clock=args.clock)
            show_ratio(f"{head}, {name} ({parts.task.outputs})", ratio(found, "plain loop", "auricle's grid"), "")
            whole = {row: whole[row] + seconds for row, seconds in found.items()}
            times |= {f"{head} {name}: {row}": seconds for row, seconds in found.items()}
        heads = points(config) * len(every)
        times |= {f"{head}, {heads} heads: {row}": seconds for row, seconds in whole.items()}
        ratios[head] = ratio(whole, "plain loop", "auricle's grid")
        processes[head] = one_process(head, every[args.tasks[0]], args) * heads
    show_times({name: seconds for name, seconds in times.items() if "heads" in name}, "s")
    print()
    for head, found in ratios.items():
        show_ratio(f"{head}: grid over loop", found, targets[head])
        grid, floor = (times[f"{head}, {heads} heads: {row}"].min() for row in ("auricle's grid", "floor"))
        print(f"{head}: a process a point, {processes[head]:.0f} s: {processes[head] / grid:.0f} times the grid's")
        print(f"{head}: the grid takes {grid / floor:.2f} times the floor's time")
    settings = {name: getattr(args, name) for name in ("tasks", "train", "dev", "dim", "epochs", "rounds", "clock")}
    write_json(
        args.json, "marble", **machine(args.threads), device=args.device, **settings, times_s=times, ratios=ratios,
        processes_s=processes,
    )  # fmt: skip


def config_of(head: str, args: argparse.Namespace) -> MarbleConfig:
    return MarbleConfig(head=head, max_epochs=args.epochs, patience=args.epochs + 1)


def points(config: MarbleConfig) -> int:
    return (LAYERS + 1) * len(config.lrs)


def timed(run: Callable[[], object], args: argparse.Namespace) -> None:
    run()
    wait_for(torch.device(args.device))


def all_parts(args: argparse.Namespace) -> dict[str, Parts]:
    """The tasks, which all read the same embeddings: noise in which their targets show faintly."""
    found = {}
    rng = torch.Generator().manual_seed(0)
    noise = [[torch.randn(count, args.dim, generator=rng) for _ in range(LAYERS)] for count in (args.train, args.dev)]
    layers = [{layer: x.to(args.device) for layer, x in enumerate(part)} for part in noise]
    for name in args.tasks:
        task = PROBED[name]
        direction = torch.randn(args.dim, task.outputs, generator=torch.Generator().manual_seed(99))
        goals = [sum(part) @ direction for part in noise]
        if task.kind == "classes":
            goals = [goal.argmax(1) for goal in goals]
            goals[0][: task.outputs] = torch.arange(task.outputs)  # every class is in train
        elif task.kind == "labels":
            goals = [(goal > goal.quantile(1 - TAGGED, 0)).float() for goal in goals]
        found[name] = Parts(task, *(Examples(x, goal.to(args.device)) for x, goal in zip(layers, goals, strict=True)))
    return found


def whole_grid(parts: Parts, config: MarbleConfig, args: argparse.Namespace) -> None:
    prober = MarbleProber(config, ProbeConfig(seeds=(0,)))
    prober.fit(parts.task.kind, parts.train, parts.dev, balanced=False, device=args.device)


class Summed(nn.Module):
    """(N, L, D) to (N, D)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(layers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensordot(x, self.mix.softmax(0), ([1], [0]))


def plain_loop(parts: Parts, config: MarbleConfig) -> None:
    wanted = [(layer,) for layer in range(LAYERS)] + [tuple(range(1, LAYERS))]
    for layers in wanted:
        for lr in config.lrs:
            train_one(parts, layers, lr, config)


LOSSES = {"classes": F.cross_entropy, "labels": F.binary_cross_entropy_with_logits, "values": F.mse_loss}


def train_one(parts: Parts, layers: Sequence[int], lr: float, config: MarbleConfig) -> None:
    torch.manual_seed(0)
    (kind, outputs), train, dev = parts
    loss_of, score_of = LOSSES[kind], dev_measure(kind, dev.targets)
    x, x_dev = (
        part.layers[layers[0]] if len(layers) == 1 else torch.stack([part.layers[index] for index in layers], 1)
        for part in (train, dev)
    )
    dim = x.shape[-1]
    stack: list[nn.Module] = [Summed(len(layers))] if len(layers) > 1 else []
    if config.head == "mlp":
        stack += [nn.Linear(dim, config.hidden), nn.ReLU(), nn.Dropout(config.dropout)]
        dim = config.hidden
    network = nn.Sequential(*stack, nn.Linear(dim, outputs)).to(x.device)
    optimizer = torch.optim.Adam(network.parameters(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, config.plateau)
    order, best = torch.Generator().manual_seed(0), -torch.inf
    for _ in range(config.max_epochs):
        network.train()
        for rows in torch.randperm(len(x), generator=order).to(x.device).split(config.batch):
            loss = loss_of(network(x.index_select(0, rows)), train.targets.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            score = float(score_of(network(x_dev).T[None])[0])
        schedule.step(score)
        if score > best:
            best, _ = score, [weight.detach().clone() for weight in network.parameters()]


def one_process(head: str, parts: Parts, args: argparse.Namespace) -> float:
    """Seconds, by the wall, of a process that trains one point."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "layer.safetensors"
        some = {"train": parts.train, "dev": parts.dev}
        tensors = {f"{name}_x": part.layers[0] for name, part in some.items()}
        save_file(tensors | {f"{name}_y": part.targets for name, part in some.items()}, file)
        passed = [f"--{name}={getattr(args, name)}" for name in ("epochs", "device", "threads")]
        command = [sys.executable, __file__, "--one", str(file), *passed, "--heads", head, "--tasks", args.tasks[0]]
        return float(measure({"one": lambda: subprocess.run(command, check=True)}, 1)["one"][0])


def products(outputs: int, config: MarbleConfig, args: argparse.Namespace) -> Callable[[], None]:
    """The matrix products of a whole grid: a layer's heads in one product, as they share an input."""
    lrs, rows, place = len(config.lrs), config.batch, {"device": args.device}
    first = outputs if config.head == "linear" else config.hidden
    x, w = torch.randn(rows, args.dim, **place), torch.randn(lrs * first, args.dim, requires_grad=True, **place)
    hidden = torch.randn(lrs, config.hidden, rows, requires_grad=True, **place)
    v = torch.randn(lrs, outputs, config.hidden, requires_grad=True, **place)
    slope, top = torch.randn(lrs * first, rows, **place), torch.randn(lrs, outputs, rows, **place)

    def run() -> None:
        for _ in range((LAYERS + 1) * config.max_epochs * -(-args.train // rows)):
            torch.autograd.grad(linear(w, x), w, slope)
            if config.head == "mlp":
                torch.autograd.grad(v @ hidden, (v, hidden), top)

    return run


if __name__ == "__main__":
    main()
