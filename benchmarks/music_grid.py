"""The twelve configurations of music2vec and musicHuBERT, tiny, under one budget, on music tasks: the paper's table.

    python benchmarks/music_grid.py DATA [--out DIR] [--minutes 2] [--seeds 0] [--tasks keys beats]
    python benchmarks/music_grid.py DATA --suite mir13 --corpora ROOT [--tasks gtzan-genre giantsteps-key]

DATA holds labelled corpora, a folder each with a `manifest.csv`. All twelve hear what `quality.py` lets music2vec hear:
ESC-10 and one half of each music corpus. The other half is probed, as in `music.py --unheard`. `--minutes` of processor
time buy each of them its steps, by the pace that all were seen to keep in turns; only `music2vec-800k`, which is the
longer run, gets twice the steps of the vanilla one. With `--suite` they are probed on the tasks whose corpora lie in
ROOT instead.

DIR keeps everything: start the same command again and it goes on where it stopped; finished runs and results stay, more
seeds, tasks or baselines are added. The tables are written to DIR as table.md and table.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, measure, write_json
from music import TASKS
from music_tables import Row, published_table, score_table, twin_table
from quality import PLANS, Plan, half, train

from auricle.config import edit
from auricle.data.corpora import has_corpus
from auricle.data.dataset import training_batches
from auricle.data.manifest import Manifest
from auricle.evaluation.results import Result
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks import suite_tasks
from auricle.methods import preset
from auricle.methods.base import RunConfig
from auricle.methods.data2vec import Data2VecRun
from auricle.methods.hubert import HubertRun
from auricle.training import optim

MUSIC2VEC = tuple(
    f"music2vec-{name}" for name in ("vanilla", "800k", "crop5s", "prob50", "prob80", "span5", "span15", "target12")
)
MUSICHUBERT = tuple(f"musichubert-{name}" for name in ("k500", "k500-mfcc60", "k2000-iter1", "k2000-iter2"))
FIRST = {"musichubert-k2000-iter2": "musichubert-k2000-iter1"}
"""Second iteration → the run whose block makes its labels."""
SAME_PACE = {"music2vec-800k": "music2vec-vanilla"}
"""What differs in the number of steps alone → what is timed instead."""
TWINS = {"music2vec, untrained": MUSIC2VEC, "musicHuBERT, untrained": MUSICHUBERT}
"""The configurations of a family begin as the same network: one untrained twin (a seed) stands for all."""
BASELINES = ("fbank", "mfcc", "chroma")
LAYERS = 3
FEWER = 10
"""Clusters: 500 become 50."""
STEPS = 4
"""Training steps that are timed together."""


def tiny(name: str) -> RunConfig:
    """A published configuration at the size of its family's tiny preset, with what makes it what it is kept.

    Of the tiny preset: channels, widths, heads, batches, learning rate and the settings that short runs need (the
    convolutions' slow rate, frames in the open that count). Of the published one: probability and span of the mask, in
    frames, which last as long here; cepstra and Kaldi's 23 mel bands. In proportion: layers, 12 → 3, of which top 8 and
    12 → 2 and 3, and block 6 → 2; crops, 30 s and 5 s → 8 s, the longest clip, and 1.33 s; clusters, 500 and 2000 → 50
    and 200; steps, of which the 800k get twice as many.
    """
    published = preset(name)
    if isinstance(published, Data2VecRun):
        return _tiny_music2vec(published)
    assert isinstance(published, HubertRun)
    return _tiny_musichubert(published)


def _tiny_music2vec(published: Data2VecRun) -> RunConfig:
    small, vanilla, objective = preset("music2vec-tiny"), preset("music2vec-vanilla"), published.objective
    assert isinstance(small, Data2VecRun)
    assert isinstance(vanilla, Data2VecRun)
    kept = {
        "crop_s": small.objective.crop_s * objective.crop_s / vanilla.objective.crop_s,
        "mask": objective.mask.model_dump(),
        "top_layers": LAYERS * objective.top_layers // published.encoder.layers,
    }
    steps = small.train.steps * published.train.steps // vanilla.train.steps
    return edit(small, preset=published.preset, encoder={"layers": LAYERS}, objective=kept, train={"steps": steps})


def _tiny_musichubert(published: HubertRun) -> RunConfig:
    small, objective = edit(preset("musichubert-tiny"), encoder={"layers": LAYERS}), published.objective
    kept: dict[str, Any] = {
        "cepstra": objective.cepstra,
        "mel_bands": objective.mel_bands,
        "mask": objective.mask.model_dump(),
        "kmeans": {"clusters": objective.kmeans.clusters // FEWER},
    }
    if objective.quantizer_layer:
        block = -(-LAYERS * objective.quantizer_layer // published.encoder.layers)
        kept |= {"quantizer_layer": block, "quantizer_encoder": small.encoder.model_dump()}
    return edit(small, preset=published.preset, objective=kept)


# ------------------------------------------------------------------------------------------------------- pre-training


def plan_of(name: str) -> Plan:
    """What the configuration hears: what the tiny presets do in `quality.py`."""
    known = PLANS["music2vec"]
    return Plan(name, known.heard, (), known.halves, FIRST.get(name))


def budgeted(data: Path, minutes: float, out: Path) -> dict[str, RunConfig]:
    """The twelve with the steps that `minutes` of processor time buy; found once, and kept in steps.json."""
    path, runs = out / "steps.json", {name: tiny(name) for name in (*MUSIC2VEC, *MUSICHUBERT)}
    if not path.exists():
        plan = plan_of(MUSIC2VEC[0])
        heard = Manifest.open(
            [*(data / corpus / "manifest.csv" for corpus in plan.heard)]
            + [half(data, corpus, heard=True) for corpus in plan.halves]
        )
        rows = {name: steps_of(run, heard) for name, run in runs.items() if name not in SAME_PACE}
        pace = {name: float(np.median(times)) for name, times in measure(rows, rounds=5, clock="cpu").items()}
        steps = {name: round(60 * minutes * STEPS / pace[name]) for name in pace}
        for name, same in SAME_PACE.items():
            steps[name] = steps[same] * runs[name].train.steps // runs[same].train.steps
        write_json(path, "music grid", minutes=minutes, steps=steps)
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["minutes"] != minutes:
        raise SystemExit(f"{path}: has runs of {found['minutes']:g} minutes, not {minutes:g}; choose another --out")
    return {name: with_steps(run, found["steps"][name]) for name, run in runs.items()}


def with_steps(run: RunConfig, steps: int) -> RunConfig:
    """The run with so many steps, measured a few times on the way and saved often, since it may be stopped."""
    return edit(run, train={"steps": steps, "valid_every": max(1, steps // 4), "checkpoint_every": max(1, steps // 10)})


def steps_of(run: RunConfig, heard: Manifest) -> Callable[[], None]:
    """What takes the next few steps of a fresh run, reading included; its labels, where it has any, are no good."""
    method = run.build().train()
    optimizer = optim.build_optimizer(method, run.train, method.rates())
    stream = training_batches(heard, method.needs, run.data, seed=0)
    dtype = optim.autocast_dtype(run.train, torch.device("cpu"))

    def some() -> None:
        for _ in range(STEPS):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                result = method(next(stream))
            (result.loss.float() * result.count).backward()
            optim.update(optimizer, 1, run.train, result.loss.detach(), result.count)
            method.on_optimizer_step(1)

    return some


def pretrained(run: RunConfig, name: str, data: Path, seed: int, out: Path) -> dict[str, Any]:
    """The finished run's figures: trained now, or on from where it was stopped, or read from its file."""
    done = out / "runs" / f"{name}-{seed}.json"
    if not done.exists():
        write_json(done, "music grid", **train(run, plan_of(name), data, seed, out / "runs"))
    return {"name": name, "seed": seed, **json.loads(done.read_text(encoding="utf-8"))}


# --------------------------------------------------------------------------------------------------------- evaluation


def judge(rows: Mapping[str, Sequence[str]], tasks: Sequence[str], asked: argparse.Namespace) -> dict[str, Row]:
    """Row → task → a result for each of the row's encoders; what is there already is not made again."""
    table, results = dict[str, Row](), asked.out / "results"
    for title, names in rows.items():
        found: dict[str, list[Result]] = {}
        for task in tasks:
            manifest, options = None, {"tasks": [task], "corpora": asked.corpora}
            if not asked.suite:
                manifest, options = TASKS[task](partial(half, asked.data, heard=False))
                options |= {"split": "folds"}
            began = time.process_time()
            found[task] = evaluate(
                names, data=manifest, output=results / task, cache=results / ".cache", progress=False, **options
            )
            scores = ", ".join(f"{100 * result.score:.1f}" for result in found[task])
            print(f"{title}: {task} {scores} % ({time.process_time() - began:.0f} s of processor time)", flush=True)
        assert asked.suite or not any(result.transductive for row in found.values() for result in row)
        table[title] = found
    return table


def known_tasks(asked: argparse.Namespace) -> list[str]:
    """What the music of DATA is good for, or the suite's tasks whose corpora are there."""
    if not asked.suite:
        return list(TASKS)
    return [task.name for task in suite_tasks(asked.suite) if has_corpus(task.corpus, asked.corpora)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/music-grid"))
    parser.add_argument("--minutes", type=float, default=2.0, help="of processor time, a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of pre-training; heads have three each")
    parser.add_argument("--tasks", nargs="+", help=f"of {' '.join(TASKS)} (all), or of the suite")
    parser.add_argument("--suite", choices=["mir13", "polyphony"])
    parser.add_argument("--corpora", type=Path, help="the folder of the suite's corpora")
    parser.add_argument("--baselines", nargs="*", default=BASELINES)
    asked = parser.parse_args()
    if asked.suite and not asked.corpora:
        parser.error("--suite needs --corpora, the folder its corpora lie in")
    known = known_tasks(asked)
    tasks = asked.tasks or known
    if not tasks or not set(tasks) <= set(known):
        parser.error(f"--tasks: there are {' '.join(known) or 'none, since no corpus of the suite is'}")
    logging.getLogger("auricle").setLevel(logging.ERROR)
    (asked.out / "runs").mkdir(parents=True, exist_ok=True)
    configs = budgeted(asked.data, asked.minutes, asked.out)
    runs = [pretrained(run, name, asked.data, seed, asked.out) for seed in asked.seeds for name, run in configs.items()]
    folder = {(run["name"], run["seed"]): run["folder"] for run in runs}
    rows = {name: [folder[name, seed] for seed in asked.seeds] for name in configs}
    rows |= {
        title: [f"untrained:{folder[first, seed]}" for seed in asked.seeds] for title, (first, *_) in TWINS.items()
    }
    table = judge(rows | {name: [name] for name in asked.baselines}, tasks, asked)
    report(table, runs, asked)


def report(table: Mapping[str, Row], runs: Sequence[Mapping[str, Any]], asked: argparse.Namespace) -> None:
    """The tables, printed and written."""
    twin = {name: title for title, names in TWINS.items() for name in names}
    scores, text = score_table(table, list(twin))
    gains, told = twin_table(table, twin)
    parts = [text, told]
    if asked.suite == "mir13":
        parts.append(published_table(list(next(iter(table.values())))))
    text = "\n\n".join(parts) + "\n"
    stem = f"table-{asked.suite}" if asked.suite else "table"
    (asked.out / f"{stem}.md").write_text(text, encoding="utf-8")
    write_json(
        asked.out / f"{stem}.json", "music grid", machine=machine(torch.get_num_threads()), minutes=asked.minutes,
        scores=scores, over_twin=gains, runs=runs,
    )  # fmt: skip
    print(f"\n{text}")


if __name__ == "__main__":
    main()
