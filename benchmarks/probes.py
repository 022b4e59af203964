"""Grids of probe heads: auricle's, all at once, against the best plain loop, one head after another.

    python benchmarks/probes.py --train 8192 --dim 768 --classes 10 --layers 4 --steps 500 --threads 2

Both train layers x 3 learning rates x 3 seeds of softmax heads on the same random embeddings, with the same minibatches
and the same number of steps, none stopped early, and measure accuracy and loss on dev every 25. The loop keeps all
tensors in memory, standardised once a layer, picks rows by index and uses `torch.nn` modules and fused Adam. The floor
is what the grid's matrix products, forward and backward, take alone in the best shapes it could give them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from common import CLOCKS, machine, measure, ratio, show_ratio, show_times, write_json
from torch import nn
from torch.nn import functional as F

from auricle.evaluation.probes.heads import Examples, Head, ProbeConfig, fit_heads
from auricle.nn.linear import linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=8192, help="examples to train on")
    parser.add_argument("--dev", type=int, default=2048, help="examples to choose on")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    train, dev = examples(args.train, args, seed=0), examples(args.dev, args, seed=1)
    times, ratios = {}, {}
    for head, target in (("linear", "5"), ("mlp", "none: see the floor")):
        layers = tuple(range(args.layers))
        config = ProbeConfig(heads=(head,), layers=layers, max_steps=args.steps, patience=args.steps)
        loop, grid, floor = f"{head}: plain loop", f"{head}: auricle's grid", f"{head}: floor"
        rows = {
            loop: lambda head=head, config=config: plain_loop(head, train, dev, config),
            grid: lambda config=config: fit_heads("classes", train, dev, config),
            floor: products(head, args, config),
        }
        times |= measure(rows, args.rounds, clock=args.clock)
        ratios[head] = (ratio(times, loop, grid), target)
    count = args.layers * len(config.lrs) * len(config.seeds)
    print(f"{count} heads, {args.train} x {args.dim} embeddings, {args.classes} classes, {args.steps} steps of 256")
    show_times(times, "s")
    print()
    for head, (found, target) in ratios.items():
        show_ratio(f"{head} heads, grid over loop", found, target)
    settings = {
        name: getattr(args, name) for name in ("train", "dev", "dim", "classes", "layers", "steps", "rounds", "clock")
    }
    found = {head: value for head, (value, _) in ratios.items()}
    write_json(args.json, "probes", **machine(args.threads), **settings, times_s=times, ratios=found)


def examples(count: int, args: argparse.Namespace, seed: int) -> Examples:
    """Embeddings whose class shows in every layer, under much noise."""
    targets = torch.arange(count) % args.classes
    centres = torch.randn(args.classes, args.dim, generator=torch.Generator().manual_seed(2))
    rng = torch.Generator().manual_seed(seed)
    noise = {layer: torch.randn(count, args.dim, generator=rng) for layer in range(args.layers)}
    return Examples({layer: 3 * x + centres[targets] for layer, x in noise.items()}, targets)


def plain_loop(head: Head, train: Examples, dev: Examples, config: ProbeConfig) -> None:
    dim, classes = train.layers[0].shape[1], int(train.targets.max()) + 1
    sizes = [(dim, classes)] if head == "linear" else [(dim, config.hidden), (config.hidden, classes)]
    for layer in config.layers:
        std, mean = torch.std_mean(train.layers[layer], 0)
        x, x_dev = ((part.layers[layer] - mean) / std for part in (train, dev))
        for lr in config.lrs:
            for seed in config.seeds:
                torch.manual_seed(seed)
                parts = [part for size in sizes for part in (nn.Linear(*size), nn.ReLU())]
                network = nn.Sequential(*parts[:-1])
                train_one(network, (x, train.targets), (x_dev, dev.targets), lr, config)


def train_one(
    network: nn.Module,
    train: tuple[torch.Tensor, torch.Tensor],
    dev: tuple[torch.Tensor, torch.Tensor],
    lr: float,
    config: ProbeConfig,
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr, fused=True)
    order, step, best = torch.Generator().manual_seed(0), 0, 0.0
    while True:
        parts = -(-len(train[0]) // config.batch)
        for rows in torch.randperm(len(train[0]), generator=order).tensor_split(parts):
            loss = F.cross_entropy(network(train[0].index_select(0, rows)), train[1].index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % config.eval_every == 0:
                with torch.no_grad():
                    logits = network(dev[0])
                    F.cross_entropy(logits, dev[1])
                    accuracy = float((logits.argmax(1) == dev[1]).float().mean())
                if accuracy > best:
                    best, _ = accuracy, [weight.detach().clone() for weight in network.parameters()]
            if step == config.max_steps:
                return


def products(head: Head, args: argparse.Namespace, config: ProbeConfig) -> Callable[[], None]:
    """The matrix products of a whole grid: a layer's heads in one product where they share an input."""
    heads, rows = len(config.lrs) * len(config.seeds), config.batch
    first = args.classes if head == "linear" else config.hidden
    x, w = torch.randn(rows, args.dim), torch.randn(heads * first, args.dim, requires_grad=True)
    hidden = torch.randn(heads, config.hidden, rows, requires_grad=True)
    v = torch.randn(heads, args.classes, config.hidden, requires_grad=True)
    slope, top = torch.randn(heads * first, rows), torch.randn(heads, args.classes, rows)

    def run() -> None:
        for _ in range(args.layers * args.steps):
            torch.autograd.grad(linear(w, x), w, slope)
            if head == "mlp":
                torch.autograd.grad(v @ hidden, (v, hidden), top)

    return run


if __name__ == "__main__":
    main()
