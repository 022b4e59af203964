"""The guided tour: pre-train on the bundled recordings, embed, evaluate, and a page, within a budget of seconds."""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from auricle.config import edit
from auricle.data.corpora import read_corpus
from auricle.data.dataset import training_batches
from auricle.data.manifest import Manifest
from auricle.embedding.extract import embed
from auricle.encoders.checkpoint import load
from auricle.errors import ConfigError
from auricle.evaluation.results import table
from auricle.evaluation.run import evaluate
from auricle.methods import preset
from auricle.methods.base import RunConfig
from auricle.report.build import build_report
from auricle.report.scores import arrange, sentences
from auricle.training.loop import pretrain
from auricle.training.optim import autocast_dtype

log = logging.getLogger("auricle")

PRESETS = ("mockingjay-tiny", "apc-tiny")
"""Frames filled in from both sides, and frames foretold from the past: the comparison that Mockingjay's paper makes."""
RESERVE_S = 12.0
"""Seconds kept for the page and for what the estimates miss."""
LEAST_S = 15.0
"""Seconds of pre-training a method, however slow the machine."""


def tour(output: Path, seconds: float = 150.0, seed: int = 0) -> Path:
    """Pre-train, embed, evaluate and report into `output`, in about `seconds`; returns the page.

    All else is timed first, on the untrained twins; pre-training gets the seconds that are left, each method as many.
    Raises `ConfigError` when `output` holds anything but an earlier demo.
    """
    clock = _Clock()
    _make_room(output)
    recordings = read_corpus("bundled")
    source = output / "train.parquet"
    recordings.select([row for row, split in enumerate(recordings.column("split")) if split == "train"]).save(source)
    runs = {name: edit(preset(name), train={"seed": seed, "device": "cpu"}) for name in PRESETS}
    log.info("the demo: %d recordings, %.0f minutes", len(recordings), recordings.durations.sum() / 60)

    # Normalised features have the same mean in every clip: what tells clips apart is in the spread as well. Probes have
    # one rate and one seed: the time is for learning.
    options: dict[str, Any] = {"suite": "quick", "pool": "meanstd", "lrs": (3e-3,), "seeds": (0,)}
    options["output"] = output / "results"
    results = evaluate(["fbank", "mfcc"], **options)
    clock.lap("log-mel and MFCC")
    twins = []
    for name, run in runs.items():
        torch.manual_seed(seed)
        twins.append(run.build().encoder.eval())
        twins[-1].name = f"untrained:{output / name}"
    results += evaluate(twins, **options)
    twins_s = clock.lap("untrained twins")

    budget_s = max(LEAST_S, (seconds - clock.total() - 1.5 * twins_s - RESERVE_S) / len(runs))
    log.info("pre-training on the train split, without its labels")
    for name, run in runs.items():
        pretrain(_within(run, source, budget_s), [source], output / name)
        clock.lap(name)

    encoders = [load(output / name) for name in runs]
    for name, encoder in zip(runs, encoders, strict=True):
        embed(encoder, recordings, output / "embeddings" / name, precision="auto")
    clock.lap("embedding")
    results += evaluate(encoders, **options)
    clock.lap("pre-trained models")
    page = build_report([*(output / name for name in runs), output / "results"], output / "report.html")
    clock.lap("page")

    print(table(results))
    print("\n".join(sentences(arrange(results))))
    print(f"\nOpen {page.resolve().as_uri()} in a browser: curves, pictures, and a map of sounds to listen to.")
    print(f"{clock.total():.0f} s in all: {clock}.")
    return page


def _within(run: RunConfig, source: Path, budget_s: float) -> RunConfig:
    """The run with as many steps as fit into the seconds."""
    steps = max(10, int(budget_s / _seconds_per_step(run, source)))
    every = max(1, steps // 8)
    return edit(run, train={
        "steps": steps, "valid_every": every, "log_every": max(1, steps // 50), "checkpoint_every": every,
        "stop_after_s": 1.2 * budget_s,
    })  # fmt: skip


def _seconds_per_step(run: RunConfig, source: Path) -> float:
    """What a training step takes here: the median of three, after one that warms up."""
    method, dtype = run.build().train(), autocast_dtype(run.train, torch.device("cpu"))
    batches = training_batches(Manifest.open([source]), method.needs, run.data, seed=run.train.seed)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = method(next(batches)).loss
        loss.backward()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _make_room(output: Path) -> None:
    """An empty folder: an earlier demo there is removed, anything else refused."""
    ours = {*PRESETS, "results", "embeddings", "train.parquet", "report.html"}
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= ours):
        raise ConfigError(f"{output}: holds other things than a demo; name another folder with --output")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)


class _Clock:
    """Where the time went."""

    def __init__(self) -> None:
        self.began = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> float:
        """Seconds since the lap before, kept under `name`."""
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now
        return self.laps[name]

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.laps.items())
