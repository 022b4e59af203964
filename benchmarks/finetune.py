"""Does pre-training help fine-tuning? Pre-trained encoders against their untrained twins, tuned on the same budget.

    python benchmarks/finetune.py DATA TASK RUN [RUN ...] [--recipe audio-mae] [--set epochs=20 blocks=2] [--folds 0 1]
                                  [--output DIR] [--json FILE]

DATA and TASK (esc10, keyword, ...) are those of `quality.py`, RUN the folders of pre-training runs, one a seed. Each is
fine-tuned on every fold (or those named) beside `untrained:RUN`, with the same options, clips, steps and seed; both
keep the weights that are best on dev. The interval of the difference (mean over the pairs) is a paired bootstrap over
the test clips of all folds. Finished runs in DIR are not trained again. All rows are printed.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from common import machine, write_json
from quality import TASKS, difference

from auricle.config import edit
from auricle.evaluation.finetuning.config import FinetuneConfig, recipe
from auricle.evaluation.finetuning.loop import finetune
from auricle.evaluation.metrics import Score, bootstrap, scorer
from auricle.evaluation.prepare import prepare
from auricle.evaluation.results import Result, read_outcomes
from auricle.evaluation.tasks.custom import custom_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--folds", type=int, nargs="+", help="all of the task's unless named")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("auricle").setLevel(logging.ERROR)
    changes = {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in args.set)}
    config = edit(recipe(args.recipe), **changes)
    figures = finetuned(args.task, args.data, args.runs, args.output, config, args.folds)
    write_json(args.json, f"finetune {args.task}", machine=machine(1), config=config.model_dump(mode="json"), **figures)


def finetuned(
    name: str, data: Path, runs: Sequence[str], output: Path, config: FinetuneConfig, folds: Sequence[int] | None = None
) -> dict[str, Any]:
    """A task's table: pre-trained encoders and their twins, each fine-tuned alike, and the difference."""
    manifest, options = TASKS[name](data)
    if folds is None:
        folds = range(len(prepare(custom_task(manifest, name=name, **options), manifest).assignments))
    print(f"\n{name}, fine-tuned ({config.recipe}): {TASKS[name].__doc__}")
    rows: dict[str, list[list[Result]]] = {}  # by title: of each run the results of all folds
    figures: dict[str, Any] = {"folds": list(folds), "rows": {}}
    for title, prefix in (("pre-trained", ""), ("untrained twins", "untrained:")):
        busy = time.process_time()
        rows[title] = [
            [
                finetune(
                    prefix + run, manifest, output=output / re.sub(r"\W+", "-", f"{name}-{prefix}{run}-{fold}"),
                    config=edit(config, seed=seed), fold=fold, resume=True, progress=False, **options,
                )
                for fold in folds
            ]
            for seed, run in enumerate(runs)
        ]  # fmt: skip
        score, units = mean_score(rows[title])
        low, high = bootstrap(score, units)
        value = float(score(np.ones((1, units)))[0])
        each = [float(joined(results)[0](np.ones((1, units)))[0]) for results in rows[title]]
        minutes = (time.process_time() - busy) / 60
        print(
            f"  {f'{title}, {len(runs)} seeds':32} {100 * value:5.1f} % ({100 * low:.1f} to {100 * high:.1f})   seeds "
            f"{', '.join(f'{100 * one:.1f}' for one in each)}; {minutes:.1f} min of processor time",
            flush=True,
        )
        figures["rows"][title] = {"score": value, "low": low, "high": high, "seeds": each, "cpu_min": minutes}
    chance = float(np.mean([result.chance for result in rows["pre-trained"][0]]))
    print(f"  {'chance (majority class)':32} {100 * chance:5.1f} %")
    (trained, units), (twins, _) = (mean_score(results) for results in rows.values())
    return figures | {"chance": chance, "difference": difference(trained, twins, units)}


def joined(results: Sequence[Result]) -> tuple[Score, int]:
    """The score of one encoder over the test clips of all its folds, and their units."""
    tests = [result.predictions() for result in results]
    tests = [test.filter(pc.equal(test["split"], "test")) for test in tests]
    outcomes = read_outcomes(results[0].kind, results[0].classes, pa.concat_tables(tests).sort_by("clip_id"))
    return scorer(results[0].metric, outcomes), outcomes.units


def mean_score(rows: Sequence[Sequence[Result]]) -> tuple[Score, int]:
    """The mean score of several encoders on the same test clips, and their units."""
    scores = [joined(results) for results in rows]
    return lambda weights: np.mean([score(weights) for score, _ in scores], axis=0), scores[0][1]


if __name__ == "__main__":
    main()
