"""Does pre-training teach anything? Pre-trained encoders against their untrained twins, log-mel and chance.

    python benchmarks/quality.py DATA mockingjay [--seeds 0 1 2] [--output DIR] [--set train.steps=500] [--json FILE]

DATA holds labelled corpora, a folder each with a `manifest.csv`. Tasks are named per method below, before any run. The
clips that are probed are not heard in pre-training, so all of them may be tested: five folds, each with the next as
dev. Of speech and sounds these are whole corpora; of music there are only the two that are probed, so one half of each
may be heard and the other is probed, split by what would otherwise tell (a note by instrument and pitch, since it is
there at two loudnesses). Each pre-training seed meets the twin of that seed; the interval of the difference (mean over
the pairs) is a paired bootstrap over the test clips. Finished runs in DIR are not trained again. All rows are printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from common import machine, write_json

from auricle.config import edit
from auricle.data.manifest import Manifest
from auricle.evaluation.metrics import Score, bootstrap, paired_bootstrap, scorer
from auricle.evaluation.results import Result
from auricle.evaluation.run import evaluate
from auricle.methods import preset
from auricle.methods.base import RunConfig
from auricle.training.loop import pretrain

BASELINES = ("fbank", "fbank-context", "mfcc")


@dataclass(frozen=True)
class Plan:
    """What a method is pre-trained on, and the two tasks it is judged by."""

    preset: str
    heard: tuple[str, ...]
    tasks: tuple[str, ...]
    halves: tuple[str, ...] = ()
    """Corpora of `MUSIC` of which the half that is not probed is heard."""
    first: str | None = None
    """Preset of the iteration before, whose run of the same seed makes the labels; it is trained by its own plan."""


MUSIC = {"music_notes_rendered": ("instrument", "midi"), "music_generated": ("path",)}
"""Corpus → columns of which the clips that agree are in one half."""

PLANS = {
    "mockingjay": Plan(
        "mockingjay-tiny", ("speech_speechocean762", "speech_fsdd", "speech_synth_langid"), ("phones", "keyword")
    ),
    "tera": Plan("tera-tiny", ("speech_speechocean762", "speech_fsdd", "speech_synth_langid"), ("phones", "keyword")),
    "mae-ast": Plan(
        "mae-ast-tiny",
        (
            *("speech_speechocean762", "speech_fsdd", "speech_synth_langid"),
            *("music_generated", "music_notes_rendered"),
        ),
        ("esc10", "keyword"),
    ),
    "apc": Plan("apc-tiny", ("speech_speechocean762", "speech_fsdd", "speech_synth_langid"), ("phones", "keyword")),
    "cpc": Plan("cpc-tiny", ("speech_wakewords", "speech_synth_langid"), ("phones", "speaker")),
    "audio-mae": Plan(
        "audio-mae-tiny",
        (
            *("music_generated", "music_notes_rendered"),
            *("speech_fsdd", "speech_speechocean762", "speech_synth_langid"),
        ),
        ("esc10", "keyword"),
    ),
    "trill": Plan(
        "trill-tiny",
        (
            *("speech_wakewords", "speech_synth_phones", "speech_synth_langid"),
            *("music_generated", "music_notes_rendered"),
        ),
        ("speaker", "esc10"),
    ),
    "music2vec": Plan("music2vec-tiny", ("sound_esc10",), ("pitch", "instruments"), tuple(MUSIC)),
    "musichubert": Plan("musichubert-tiny", ("sound_esc10",), ("pitch", "instruments"), tuple(MUSIC)),
    "musichubert-iter2": Plan(
        "musichubert-tiny-iter2", ("sound_esc10",), ("pitch", "instruments"), tuple(MUSIC), first="musichubert-tiny"
    ),
    "best-rq": Plan(
        "best-rq-tiny", ("speech_speechocean762", "speech_fsdd", "speech_synth_langid"), ("phones", "keyword")
    ),
    "best-rq-music": Plan("best-rq-music-tiny", ("sound_esc10",), ("pitch", "instruments"), tuple(MUSIC)),
    "data2vec2": Plan("data2vec2-music-tiny", ("sound_esc10",), ("pitch", "instruments"), tuple(MUSIC)),
}


def phones(data: Path) -> tuple[Manifest, dict[str, Any]]:
    """Which phone every 10 ms, in voices that the probe has not heard (the espeak part, folds by voice)."""
    manifest = Manifest.open([data / "speech_synth_phones" / "manifest.csv"])
    manifest = manifest.select(np.array(manifest.column("engine")) == "espeak")
    return manifest, {"target": "phones", "split": "folds", "group": "voice"}


def keyword(data: Path) -> tuple[Manifest, dict[str, Any]]:
    """Which of six wake words, five folds by recording."""
    return Manifest.open([data / "speech_wakewords" / "manifest.csv"]), {"target": "keyword", "split": "folds"}


def speaker(data: Path) -> tuple[Manifest, dict[str, Any]]:
    """Which of sixty speakers, five folds by utterance."""
    manifest = Manifest.open([data / "speech_speechocean762" / "manifest.csv"])
    return manifest, {"target": "speaker", "split": "folds"}


def esc10(data: Path) -> tuple[Manifest, dict[str, Any]]:
    """Which of ten environmental sounds, in the corpus's own three folds."""
    return Manifest.open([data / "sound_esc10" / "manifest.csv"]), {"target": "category", "split": "folds"}


def pitch(data: Path) -> tuple[Manifest, dict[str, Any]]:
    """Which of eighteen pitches a note has, of instruments the probe has not heard; the half not pre-trained on."""
    manifest = half(data, "music_notes_rendered", heard=False)
    return manifest, {"target": "midi", "metric": "accuracy", "split": "folds", "group": "instrument"}


def instruments(data: Path) -> tuple[Manifest, dict[str, Any]]:
    """Which instruments play, mean average precision over them, five folds; the half not pre-trained on."""
    return half(data, "music_generated", heard=False), {"target": "instruments", "metric": "map", "split": "folds"}


TASKS = {
    "phones": phones,
    "keyword": keyword,
    "speaker": speaker,
    "esc10": esc10,
    "pitch": pitch,
    "instruments": instruments,
}


def half(data: Path, corpus: str, heard: bool) -> Manifest:
    """The half of a corpus of `MUSIC` that is heard in pre-training, or the other, which is probed."""
    manifest = Manifest.open([data / corpus / "manifest.csv"])
    keys = ["\t".join(map(str, key)) for key in zip(*map(manifest.column, MUSIC[corpus]), strict=True)]
    names, group = np.unique(keys, return_inverse=True)
    first = np.random.default_rng(0).permutation(len(names)) < len(names) // 2
    return manifest.select(first[group] == heard)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("method", choices=PLANS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the preset")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("auricle").setLevel(logging.ERROR)
    plan = PLANS[args.method]
    run = changed(preset(plan.preset), args.set)
    runs = [train(run, plan, args.data, seed, args.output) for seed in args.seeds]
    figures: dict[str, Any] = {"machine": machine(2), "method": args.method, "changes": args.set, "runs": runs}
    for name in plan.tasks:
        figures[name] = judge(name, args.data, [run["folder"] for run in runs], args.output / f"results-{args.method}")
    write_json(args.json, f"quality {args.method}", **figures)


def changed(run: RunConfig, changes: Sequence[str]) -> RunConfig:
    """The run with `encoder.layers=2` and the like applied."""
    for change in changes:
        key, _, text = change.partition("=")
        value: Any = yaml.safe_load(text)
        for part in reversed(key.split(".")):
            value = {part: value}
        run = edit(run, **value)
    return run


def train(run: RunConfig, plan: Plan, data: Path, seed: int, output: Path) -> dict[str, Any]:
    """One run; its steps, minutes on the clock and of processor time, and held-out loss beside its trivial level."""
    folder = output / f"{plan.preset}-{seed}"
    run = edit(run, train={"seed": seed})
    if plan.first:
        run = edit(run, objective={"quantizer": str(output / f"{plan.first}-{seed}")})
    heard: list[Path | Manifest] = [data / corpus / "manifest.csv" for corpus in plan.heard]
    heard += [half(data, corpus, heard=True) for corpus in plan.halves]
    began, busy = time.perf_counter(), time.process_time()
    pretrain(run, heard, folder, resume=True, progress=False)
    found: dict[str, Any] = {
        "folder": str(folder),
        "steps": run.train.steps,
        "wall_min": (time.perf_counter() - began) / 60,
    }
    found["cpu_min"] = (time.process_time() - busy) / 60
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if line["split"] == "valid"][-1]
    found |= {"held_out": last["loss"], "trivial": last["trivial"]}
    print(
        f"{folder}: {found['steps']} steps, {found['wall_min']:.1f} min ({found['cpu_min']:.1f} of processor time), "
        f"held-out loss {last['loss']:.3f}, trivial {last['trivial']:.3f}",
        flush=True,
    )
    return found


def judge(name: str, data: Path, runs: Sequence[str], output: Path) -> dict[str, Any]:
    """A task's table: every row, then the difference between pre-trained encoders and their twins."""
    manifest, options = TASKS[name](data)
    twins = [f"untrained:{run}" for run in runs]
    results = evaluate(
        [*runs, *twins, *BASELINES], data=manifest, output=output / name, overwrite="always", progress=False, **options
    )
    assert not any(row.transductive for row in results), "pre-training has heard clips that are tested"
    control = evaluate(
        [runs[0]], data=shuffled(manifest, options["target"]), output=output / f"{name}-shuffled", overwrite="always",
        progress=False, **options,
    )[0]  # fmt: skip
    groups = {
        f"pre-trained, {len(runs)} seeds": results[: len(runs)],
        f"untrained twins, {len(runs)} seeds": results[len(runs) : 2 * len(runs)],
        **{row.encoder: [row] for row in results[2 * len(runs) :]},
        "pre-trained, shuffled labels": [control],
    }
    print(f"\n{name}: {TASKS[name].__doc__}")
    figures: dict[str, Any] = {"chance": control.chance, "rows": {}}
    for title, rows in groups.items():
        score, units = mean_score(rows), rows[0].outcomes().units
        low, high = bootstrap(score, units)
        each = ", ".join(f"{100 * row.score:.1f}" for row in rows)
        chosen = ", ".join(sorted({str(choice.layer) for row in rows for choice in row.chosen}))
        value = float(score(np.ones((1, units)))[0])
        print(
            f"  {title:32} {100 * value:5.1f} % ({100 * low:.1f} to {100 * high:.1f})   seeds {each}; layers {chosen}"
        )
        figures["rows"][title] = {"score": value, "low": low, "high": high, "seeds": [row.score for row in rows]}
    print(f"  {'chance (majority class)':32} {100 * control.chance:5.1f} %")
    trained, untrained, *_ = groups.values()
    units = trained[0].outcomes().units
    figures["difference"] = difference(mean_score(trained), mean_score(untrained), units)
    return figures


def difference(trained: Score, twins: Score, units: int) -> dict[str, Any]:
    """The paired bootstrap of pre-trained encoders against their twins, told in a line and in figures."""
    gap = paired_bootstrap(trained, twins, units)
    verdict = "better" if gap.low > 0 else "worse" if gap.high < 0 else "no different"
    print(
        f"  pre-trained - untrained: {100 * gap.mean:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}): {verdict}"
    )
    return {"mean": gap.mean, "low": gap.low, "high": gap.high, "verdict": verdict}


def mean_score(rows: Sequence[Result]) -> Score:
    """The mean score of several encoders on the same test clips."""
    scores = [scorer(row.metric, row.outcomes()) for row in rows]
    return lambda weights: np.mean([score(weights) for score in scores], axis=0)


def shuffled(manifest: Manifest, target: str) -> Manifest:
    """The negative control: labels permuted over clips, or interval labels over all intervals."""
    rng, values = np.random.default_rng(0), manifest.column(target)
    if isinstance(values[0], list):
        labels = iter(rng.permutation([interval["label"] for clip in values for interval in clip]).tolist())
        mixed = [[{**interval, "label": next(labels)} for interval in clip] for clip in values]
    else:
        mixed = rng.permutation(values).tolist()
    return manifest.with_column(target, pa.array(mixed, manifest.table.schema.field(target).type))


if __name__ == "__main__":
    main()
