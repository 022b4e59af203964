"""Does CSC teach who talks, where others talk too? Against its untrained twin, without separation, and log-mel.

    python benchmarks/verification.py DATA [--rows none speaker ...] [--partitions 0 1 2] [--output DIR]
        [--set train.steps=500] [--json FILE]

DATA holds `speech_speechocean762`: 60 speakers of five utterances. Each of three partitions keeps 20 of them for test,
a third of all in turn; `csc-tiny` hears the other 40. All is told of the 20: the contrastive loss beside ln N, within
batches of N recordings, and with identities shuffled; the improvement in SI-SNR of mixtures; equal error rates of
trials in which both recordings are mixtures at 0 dB, of clean ones, and without separation (the trunk's frames
averaged). The interval of the difference to the untrained twin is a paired bootstrap over the 60 speakers. Finished
runs in DIR are not trained again. `--rows all` adds the ablations, each a change of one option.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, write_json
from numpy.typing import NDArray
from quality import changed

from auricle import methods
from auricle.config import edit, read_yaml
from auricle.data.batching import Batch, DataConfig
from auricle.data.dataset import training_batches
from auricle.data.manifest import Manifest
from auricle.encoders.checkpoint import newest_checkpoint
from auricle.evaluation.metrics import Score, paired_bootstrap, scorer
from auricle.evaluation.results import Result
from auricle.evaluation.run import evaluate
from auricle.methods import preset
from auricle.methods.base import Method
from auricle.training import checkpoint
from auricle.training.loop import pretrain

TEST_SPEAKERS, RECORDINGS, BATCHES = 20, 16, 30
"""Speakers on test in a partition; N, recordings in a held-out batch; such batches, mixtures drawn anew in each."""
TASKS = ("verification-mix-mix+0dB", "verification-clean")
LABELS = {"supervision": "speaker"}
TABLE = LABELS | {"vectors": "table", "identities": 40}
MAIN: dict[str, dict[str, Any]] = {"none": {}, "speaker": LABELS, "no separation": {"separation": 0}}
ABLATIONS: dict[str, dict[str, Any]] = {
    "none, no attention": {"attention": "none"},
    "none, four crops of half": {"crops": 4, "crop_s": 0.5},
    "none, two crops of half": {"crops": 2, "crop_s": 0.5},
    "speaker, one crop": TABLE | {"crops": 1},
    "speaker, averages": TABLE | {"vectors": "ema"},
    "speaker, table": TABLE,
    "speaker, attention over all": TABLE | {"attention": "batch"},
    "clusters": {"supervision": "pseudo", "vectors": "table"},
}
ROWS = MAIN | ABLATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(MAIN), choices=[*ROWS, "all"], metavar="ROW")
    parser.add_argument("--partitions", type=int, nargs="+", default=[0, 1, 2], choices=range(3))
    parser.add_argument("--output", type=Path, default=Path("runs/verification"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to csc-tiny, in all rows")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("auricle").setLevel(logging.ERROR)
    rows = list(ROWS) if "all" in args.rows else args.rows
    manifest = Manifest.open([args.data / "speech_speechocean762" / "manifest.csv"])
    scored: dict[str, list[list[Result]]] = {}
    figures: dict[str, Any] = {"machine": machine(2), "changes": args.set, "recordings": RECORDINGS, "runs": {}}
    for partition in args.partitions:
        is_test = held_out(manifest, partition)
        trials = manifest.with_column("split", np.where(is_test, "test", "train").tolist())
        where = args.output / str(partition)
        for row in rows:
            folder = where / row.replace(", ", "-").replace(" ", "-")
            run = edit(changed(preset("csc-tiny"), args.set), objective=ROWS[row], train={"seed": partition})
            began = time.process_time()
            pretrain(run, manifest.select(~is_test), folder, resume=True, progress=False)
            minutes = (time.process_time() - began) / 60
            told = contrast(folder, manifest.select(is_test))
            print(
                f"partition {partition}, {row}: {run.train.steps} steps, {minutes:.1f} min of processor time",
                flush=True,
            )
            print("   " + ", ".join(f"{name} {value:.3f}" for name, value in told.items()), flush=True)
            figures["runs"][f"{partition} {row}"] = told | {"steps": run.train.steps, "cpu_min": minutes}
            names = {row: [str(folder)]}
            if row == rows[0]:
                names |= {"untrained twin": [f"untrained:{folder}"], "log-mel, mean and std": ["fbank"]}
            for name, encoders in names.items():
                pool = "meanstd" if encoders == ["fbank"] else "mean"
                found = evaluate(
                    encoders, tasks=TASKS, data=trials, target="speaker", trial_count=0, output=where / "results",
                    layers="last", pool=pool, overwrite="always", progress=False,
                )  # fmt: skip
                scored.setdefault(name, []).append(found)
    figures["verification"] = report(scored, rows[0])
    write_json(args.json, "verification", **figures)


def held_out(manifest: Manifest, partition: int) -> NDArray[np.bool_]:
    """Which clips are of the 20 speakers kept for test: a third of all, drawn once."""
    speakers = np.array([str(speaker) for speaker in manifest.column("speaker")])
    people = np.random.default_rng(0).permutation(np.unique(speakers))
    return np.isin(speakers, people[partition * TEST_SPEAKERS : (partition + 1) * TEST_SPEAKERS])


def contrast(folder: Path, manifest: Manifest) -> dict[str, float]:
    """What a finished run makes of speakers it has not heard: means over batches of N recordings.

    The loss is of attended embeddings, within the batch and without labels, N candidates each. For `shuffled` each crop
    after a recording's first is exchanged for another recording's.
    """
    method = methods.run_from_yaml(read_yaml(folder / "config.yaml")).build().eval()
    newest = newest_checkpoint(folder)
    assert newest is not None, f"{folder}: no checkpoint"
    checkpoint.load_weights(newest, method)
    crops = method.needs.crops
    method.contrast.clusters = None  # type: ignore[assignment]  # every recording is a talker of its own here
    own = {name: torch.arange(RECORDINGS).repeat_interleave(crops) for name in method.needs.columns}
    told: dict[str, list[float]] = {}
    for number, batch in enumerate(batches(method, manifest)):
        for kind, given in {"": batch, "shuffled ": shuffled(batch, crops)}.items():
            torch.manual_seed(number)
            with torch.no_grad():
                step = method(replace(given, labels=own))
            for name in ("contrastive", "contrastive_trivial", "bottom_up", "accuracy", "si_snr_improvement"):
                if name in step.metrics and not (kind and name != "contrastive"):
                    told.setdefault(kind + name, []).append(float(step.metrics[name]))
    return {name: float(np.mean(values)) for name, values in told.items()}


def batches(method: Method, manifest: Manifest) -> Iterator[Batch]:
    """Held-out batches of N recordings; those that end an epoch are smaller, and left out."""
    needs = method.needs
    size = DataConfig(batch_seconds=RECORDINGS * needs.crops * needs.crop_s * 1.001)
    stream = training_batches(manifest, needs, size, seed=0)
    return islice((batch for batch in stream if len(batch.waveforms) == RECORDINGS * needs.crops), BATCHES)


def shuffled(batch: Batch, crops: int) -> Batch:
    """Crop m of each recording taken from the m-th recording after it."""
    rows = batch.waveforms.view(-1, crops, batch.waveforms.shape[1])
    mixed = torch.stack([rows[:, number].roll(-number, 0) for number in range(crops)], 1)
    return replace(batch, waveforms=mixed.flatten(0, 1))


def report(scored: dict[str, list[list[Result]]], first: str) -> dict[str, Any]:
    """Error rates, means over partitions, and the difference of every row to the first row's untrained twin."""
    figures: dict[str, Any] = {}
    for index, task in enumerate(TASKS):
        print(f"\n{task}: equal error rate, %")
        twin = over_partitions([found[index] for found in scored["untrained twin"]])
        for name, partitions in scored.items():
            results = [found[index] for found in partitions]
            rate, units = over_partitions(results)
            gap = paired_bootstrap(rate, twin[0], units, lower_is_better=True)
            plain = [found.further.get("no_separation") for found in results]
            oracle = [found.further.get("oracle_stream") for found in results]
            row = {
                "eer": [found.score for found in results],
                "no_separation": [measure.value for measure in plain if measure],
                "oracle_stream": [measure.value for measure in oracle if measure],
                "better_than_twin": {"mean": gap.mean, "low": gap.low, "high": gap.high},
            }
            figures.setdefault(task, {})[name] = row
            rest = "".join(
                f"; {kind.replace('_', ' ')} {100 * np.mean(row[kind]):.1f}"
                for kind in ("no_separation", "oracle_stream")
                if row[kind]
            )
            each = ", ".join(f"{100 * value:.1f}" for value in row["eer"])
            told = f"{100 * gap.mean:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
            print(f"  {name:34} {100 * np.mean(row['eer']):5.1f} ({each}); better than the twin by {told}{rest}")
    return figures


def over_partitions(results: Sequence[Result]) -> tuple[Score, int]:
    """The mean error rate over partitions, whose speakers differ, as a function of weights of all; their number."""
    outcomes = [result.outcomes() for result in results]
    rates, ends = [scorer("eer", outcome) for outcome in outcomes], np.cumsum([outcome.units for outcome in outcomes])

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = np.split(weights, ends[:-1], axis=1)
        return np.mean([rate(part) for rate, part in zip(rates, parts, strict=True)], axis=0)

    return mean, int(ends[-1])


if __name__ == "__main__":
    main()
