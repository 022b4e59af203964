"""The guided tour: pre-train on the bundled recordings, embed, evaluate, and a page, within a budget of seconds."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import torch

from auricle.config import edit
from auricle.data.corpora import read_corpus
from auricle.data.dataset import training_batches
from auricle.embedding.extract import embed
from auricle.encoders.checkpoint import load
from auricle.evaluation.results import table
from auricle.evaluation.run import evaluate
from auricle.methods import preset
from auricle.methods.base import RunConfig
from auricle.report.build import build_report
from auricle.training.loop import pretrain

log = logging.getLogger("auricle")

RESERVE_S = 10.0
"""Seconds kept for the report and for what the estimates miss."""


def tour(output: Path, seconds: float = 170.0, seed: int = 0) -> Path:
    """Pre-train, embed, evaluate and report into `output`, in about `seconds`; returns the page's path.

    Everything else is timed first, on the untrained twin; pre-training gets the seconds that are left.
    """
    clock = _Clock()
    _make_room(output)
    recordings = read_corpus("bundled")
    heard = recordings.select([row for row, split in enumerate(recordings.column("split")) if split == "train"])
    heard.save(output / "train.parquet")
    log.info(
        "%d recordings, %.0f minutes; pre-training hears the %d of the train split, without their labels",
        len(recordings), recordings.durations.sum() / 60, len(heard),
    )  # fmt: skip
    run = edit(preset("mockingjay-tiny"), train={"seed": seed})
    clock.lap("reading")

    results = evaluate(["fbank", "mfcc"], suite="quick", output=output / "results")
    clock.lap("evaluating log-mel and MFCC")
    torch.manual_seed(seed)
    twin = run.build().encoder.eval()
    twin.name = f"untrained:{output / 'run'}"
    results += evaluate([twin], suite="quick", output=output / "results")
    twin_s = clock.lap("evaluating the untrained twin")

    budget = max(20.0, seconds - clock.total() - 1.5 * twin_s - RESERVE_S)
    steps = max(10, int(budget / _seconds_per_step(run, output / "train.parquet")))
    run = edit(run, train={
        "steps": steps, "stop_after_s": 1.2 * budget, "valid_every": max(5, steps // 8), "checkpoint_every": steps,
    })  # fmt: skip
    folder = pretrain(run, [output / "train.parquet"], output / "run")
    clock.lap(f"pre-training {steps} steps")

    encoder = load(str(folder))
    embed(encoder, [heard], output / "embeddings")
    clock.lap("embedding")
    results += evaluate([encoder], suite="quick", output=output / "results")
    clock.lap("evaluating the pre-trained model")
    page = build_report([folder, output / "results"], output / "report.html")
    clock.lap("report")

    print(table(results))
    print(_verdict(results, encoder.name))
    print(f"\nopen {page.resolve().as_uri()} in a browser: curves, pictures, and a map of sounds to listen to")
    print(f"{clock.total():.0f} s: {clock}")
    return page
