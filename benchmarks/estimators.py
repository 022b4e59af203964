"""NOSS's linear classifiers: auricle's converged solvers against scikit-learn's, which stop after 100 iterations.

    python benchmarks/estimators.py --clips 5000 --dim 1024 --classes 10 --threads 2

A round is what NOSS does with one layer: logistic regression (C = 1e5), the same with balanced classes, and linear
discriminants with Ledoit-Wolf shrinkage, for each of `--variants`: as they are, of length 1, by speaker, both. The
embeddings are rectified random features of noisy classes of unequal size. scikit-learn is timed in float64 and float32,
and in float64 for as long as it finds anything to gain; ours returns float64. The gap is that of our objective to that
of scikit-learn run to a tolerance of 1e-10, as a share (negative: ours is lower). The floor is the matrix products of
40 gradients, two Gram matrices and the discriminants', alone.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import CLOCKS, machine, measure, ratio, show_ratio, show_times, write_json
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from auricle.evaluation.probes.estimators import C, Normalisation
from auricle.evaluation.probes.lda import Linear, fit_lda
from auricle.evaluation.probes.logistic import balanced_weights, fit_logistic, objective

VARIANTS = {
    "plain": Normalisation(False, False),
    "l2": Normalisation(True, False),
    "speaker": Normalisation(False, True),
    "l2+speaker": Normalisation(True, True),
}
OURS, DOUBLE, SINGLE, FLOOR = "auricle, converged", "scikit-learn, float64", "scikit-learn, float32", "floor"
CONVERGED = "scikit-learn, converged"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--speakers", type=int, default=50)
    parser.add_argument("--apart", type=float, default=1.0, help="how far apart the classes are")
    parser.add_argument("--embeddings", type=Path, help=".npz with X (N, D), y and s, the speakers, instead")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gaps", action="store_true", help="also run scikit-learn to convergence (minutes)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)

    x, y, speakers = read(args.embeddings) if args.embeddings else draw(args)
    print(f"{len(x)} x {x.shape[1]} embeddings, {y.max() + 1} classes, {args.threads} threads, {args.clock} clock")
    ratios, gaps, times = {}, {}, {}
    with threadpool_limits(args.threads):
        for name in args.variants:
            values = VARIANTS[name](x, speakers)
            small = values.astype(np.float32)
            rows: dict[str, Callable[[], object]] = {
                OURS: lambda values=values: ours(values, y),
                DOUBLE: lambda values=values: theirs(values, y),
                SINGLE: lambda small=small: theirs(small, y),
                CONVERGED: lambda values=values: theirs(values, y, tol=1e-10, max_iter=20_000),
                FLOOR: lambda values=values, small=small: products(values, small, int(y.max()) + 1),
            }
            times[name] = measure(rows, args.rounds, clock=args.clock)
            ratios[name] = {slow: ratio(times[name], slow, OURS) for slow in (DOUBLE, SINGLE, CONVERGED)}
            print(f"\n{name}")
            show_times(times[name], "s")
            show_ratio("over converged", ratios[name][CONVERGED], "5")
            show_ratio("over float64", ratios[name][DOUBLE], "5")
            show_ratio("over float32", ratios[name][SINGLE], "")
            show_ratio("ours over the floor", ratio(times[name], OURS, FLOOR), "")
            if args.gaps:
                gaps[name] = [gap(values, y, weight) for weight in (None, "balanced")]
                print(f"objective above the converged: {gaps[name][0]:.1e}, balanced {gaps[name][1]:.1e}; target 1e-4")
    settings = {"clips": len(x), "dim": x.shape[1], "classes": int(y.max()) + 1, "clock": args.clock}
    write_json(args.json, "estimators", **machine(args.threads), **settings, times_s=times, ratios=ratios, gaps=gaps)


def draw(args: argparse.Namespace) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(0)
    share = rng.random(args.classes) + 0.3
    y = rng.choice(args.classes, args.clips, p=share / share.sum())
    speakers = rng.integers(args.speakers, size=args.clips)
    latent = rng.standard_normal((args.clips, 128)) * 3
    latent += (
        args.apart * rng.standard_normal((args.classes, 128))[y] + rng.standard_normal((args.speakers, 128))[speakers]
    )
    hidden = latent @ rng.standard_normal((128, args.dim)) / 12 + rng.standard_normal(args.dim)
    x = np.maximum(hidden, 0) + 0.1 * rng.standard_normal(hidden.shape)
    return torch.from_numpy(x).float(), y, torch.from_numpy(speakers)


def read(path: Path) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    with np.load(path) as file:
        return torch.from_numpy(file["X"]).float(), file["y"], torch.from_numpy(file["s"])


def ours(x: np.ndarray, y: np.ndarray) -> None:
    fit_logistic(x, y, np.ones(len(y)), balanced_weights(y), c=C)
    fit_lda(x, y)


def theirs(x: np.ndarray, y: np.ndarray, **stop: float) -> None:
    LogisticRegression(C=C, **stop).fit(x, y)
    LogisticRegression(C=C, class_weight="balanced", **stop).fit(x, y)
    LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y)


def products(x: np.ndarray, small: np.ndarray, classes: int) -> None:
    w = np.ones((classes, x.shape[1]), np.float32)
    for _ in range(40):
        (w @ small.T) @ small
    for _ in range(2):
        small.T @ small
    np.linalg.cholesky(x.T @ x + len(x) * np.eye(x.shape[1]))


def gap(x: np.ndarray, y: np.ndarray, weight: str | None) -> float:
    even = np.ones(len(y))
    weights = balanced_weights(y) if weight else even
    plain, balanced = fit_logistic(x, y, even, balanced_weights(y), c=C)
    found = objective(balanced if weight else plain, x, y, weights, C)
    model = LogisticRegression(C=C, class_weight=weight, tol=1e-10, max_iter=20_000).fit(x, y)
    w, b = model.coef_.T, model.intercept_
    two = Linear(np.hstack([-w / 2, w / 2]), np.array([-b[0] / 2, b[0] / 2])) if len(b) == 1 else Linear(w, b)
    lowest = objective(two, x, y, weights, C)
    return (found - lowest) / min(found, lowest)


if __name__ == "__main__":
    main()
