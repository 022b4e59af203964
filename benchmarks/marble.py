"""MARBLE's grid of probes: auricle's, all points together, against the best plain loop and a process a point.

    python benchmarks/marble.py --train 1024 --epochs 4 --threads 1

All train 14 x 6 heads (13 layers of a BASE encoder and their learned sum, six learning rates) on the same random
embeddings, with the same minibatches of 64 and the same number of epochs, none stopped early, and score dev after each.
The loop keeps all tensors in memory, picks rows by index and uses `torch.nn` modules and fused Adam, a head after
another. A process a point, as MARBLE's own scripts run them, is one such head with the start of Python, and the reading
of its layer from a file; it is timed once and multiplied. The floor is what the grid's matrix products, forward and
backward, take alone in the best shapes it could give them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import CLOCKS, machine, measure, ratio, show_ratio, show_times, wait_for, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.evaluation.probes.heads import Examples, ProbeConfig
from auricle.evaluation.probes.marble import MarbleConfig, MarbleProber
from auricle.nn.linear import linear

LAYERS = 13


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1024, help="examples to train on")
    parser.add_argument("--dev", type=int, default=256, help="examples to choose on")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=10)
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
        saved = load_file(args.one, args.device)
        parts = [Examples({0: saved[f"{name}_x"]}, saved[f"{name}_y"]) for name in ("train", "dev")]
        config = config_of(args.heads[0], args)
        train_one(parts[0], parts[1], (0,), config.lrs[0], config)
        return

    train, dev = (examples(size, args, seed) for seed, size in enumerate((args.train, args.dev)))
    targets = {"linear": "5 on a CPU, 30 on a GPU", "mlp": "none on a CPU: see the floor; 30 on a GPU"}
    times, ratios, processes = {}, {}, {}
    for head in args.heads:
        config = config_of(head, args)
        multiply = products(config, args)
        loop, grid, floor = f"{head}: plain loop", f"{head}: auricle's grid", f"{head}: floor"
        rows = {
            loop: lambda config=config: timed(lambda: plain_loop(train, dev, config), args),
            grid: lambda config=config: timed(lambda: whole_grid(train, dev, config, args), args),
            floor: lambda run=multiply: timed(run, args),
        }
        times |= measure(rows, args.rounds, clock=args.clock)
        ratios[head] = ratio(times, loop, grid)
        processes[head] = one_process(head, train, dev, args) * points(config)
    print(f"{points(config)} heads, {args.train} x {args.dim} embeddings, {args.classes} classes, {args.epochs} epochs")
    show_times(times, "s")
    print()
    for head, found in ratios.items():
        show_ratio(f"{head}: grid over loop", found, targets[head])
        seconds = float(times[f"{head}: auricle's grid"].min())
        print(f"{head}: a process a point, {processes[head]:.0f} s: {processes[head] / seconds:.0f} times the grid's")
    settings = {name: getattr(args, name) for name in ("train", "dev", "dim", "classes", "epochs", "rounds", "clock")}
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


def examples(count: int, args: argparse.Namespace, seed: int) -> Examples:
    """Embeddings whose class shows in every layer, under much noise."""
    targets = torch.arange(count) % args.classes
    centres = torch.randn(args.classes, args.dim, generator=torch.Generator().manual_seed(2))
    rng = torch.Generator().manual_seed(seed)
    noise = {layer: torch.randn(count, args.dim, generator=rng) for layer in range(LAYERS)}
    layers = {layer: (3 * x + centres[targets]).to(args.device) for layer, x in noise.items()}
    return Examples(layers, targets.to(args.device))


def whole_grid(train: Examples, dev: Examples, config: MarbleConfig, args: argparse.Namespace) -> None:
    prober = MarbleProber(config, ProbeConfig(seeds=(0,)))
    prober.fit("classes", train, dev, balanced=False, device=args.device)


class Summed(nn.Module):
    """(N, L, D) to (N, D)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(layers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensordot(x, self.mix.softmax(0), ([1], [0]))


def plain_loop(train: Examples, dev: Examples, config: MarbleConfig) -> None:
    wanted = [(layer,) for layer in range(LAYERS)] + [tuple(range(1, LAYERS))]
    for layers in wanted:
        for lr in config.lrs:
            train_one(train, dev, layers, lr, config)


def train_one(train: Examples, dev: Examples, layers: tuple[int, ...], lr: float, config: MarbleConfig) -> None:
    torch.manual_seed(0)
    x, x_dev = (
        part.layers[layers[0]] if len(layers) == 1 else torch.stack([part.layers[index] for index in layers], 1)
        for part in (train, dev)
    )
    dim, classes = x.shape[-1], int(train.targets.max()) + 1
    parts: list[nn.Module] = [Summed(len(layers))] if len(layers) > 1 else []
    if config.head == "mlp":
        parts += [nn.Linear(dim, config.hidden), nn.ReLU(), nn.Dropout(config.dropout)]
        dim = config.hidden
    network = nn.Sequential(*parts, nn.Linear(dim, classes)).to(x.device)
    optimizer = torch.optim.Adam(network.parameters(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, config.plateau)
    order, best = torch.Generator().manual_seed(0), -1.0
    for _ in range(config.max_epochs):
        network.train()
        for rows in torch.randperm(len(x), generator=order).to(x.device).split(config.batch):
            loss = F.cross_entropy(network(x.index_select(0, rows)), train.targets.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            accuracy = float((network(x_dev).argmax(1) == dev.targets).float().mean())
        schedule.step(accuracy)
        if accuracy > best:
            best, _ = accuracy, [weight.detach().clone() for weight in network.parameters()]


def one_process(head: str, train: Examples, dev: Examples, args: argparse.Namespace) -> float:
    """Seconds, by the wall, of a process that trains one point."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "layer.safetensors"
        parts = {"train": train, "dev": dev}
        tensors = {f"{name}_x": part.layers[0] for name, part in parts.items()}
        save_file(tensors | {f"{name}_y": part.targets for name, part in parts.items()}, file)
        passed = [f"--{name}={getattr(args, name)}" for name in ("epochs", "device", "threads")]
        command = [sys.executable, __file__, "--one", str(file), *passed, "--heads", head]
        return float(measure({"one": lambda: subprocess.run(command, check=True)}, 1)["one"][0])


def products(config: MarbleConfig, args: argparse.Namespace) -> Callable[[], None]:
    """The matrix products of a whole grid: a layer's heads in one product, as they share an input."""
    lrs, rows, place = len(config.lrs), config.batch, {"device": args.device}
    first = args.classes if config.head == "linear" else config.hidden
    x, w = torch.randn(rows, args.dim, **place), torch.randn(lrs * first, args.dim, requires_grad=True, **place)
    hidden = torch.randn(lrs, config.hidden, rows, requires_grad=True, **place)
    v = torch.randn(lrs, args.classes, config.hidden, requires_grad=True, **place)
    slope, top = torch.randn(lrs * first, rows, **place), torch.randn(lrs, args.classes, rows, **place)

    def run() -> None:
        for _ in range((LAYERS + 1) * config.max_epochs * -(-args.train // rows)):
            torch.autograd.grad(linear(w, x), w, slope)
            if config.head == "mlp":
                torch.autograd.grad(v @ hidden, (v, hidden), top)

    return run


if __name__ == "__main__":
    main()
