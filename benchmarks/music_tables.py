"""The tables of `music_grid.py`: scores with their intervals, gains over the untrained twin, what others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from quality import mean_score

from auricle.evaluation.metrics import LOWER_IS_BETTER, Difference, bootstrap, paired_bootstrap
from auricle.evaluation.results import Result

Row = Mapping[str, Sequence[Result]]
"""Task → a result for each encoder of the row: seeds of one configuration."""

MARBLE_TASKS = (
    ("mtt-tags", "mtt-tags, ROC-AUC / AP"),
    ("giantsteps-key", "giantsteps-key, weighted"),
    ("gtzan-genre", "gtzan-genre, accuracy"),
    ("gtzan-beats", "gtzan-beats, F"),
    ("emomusic", "emomusic, R² valence / arousal"),
    ("nsynth-instrument", "nsynth-instrument, accuracy"),
    ("nsynth-pitch", "nsynth-pitch, accuracy"),
    ("vocalset-technique", "vocalset-technique, accuracy"),
    ("vocalset-singer", "vocalset-singer, accuracy"),
    ("jamendo-instrument", "jamendo-instrument, ROC-AUC / AP"),
    ("jamendo-mood", "jamendo-mood, ROC-AUC / AP"),
    ("jamendo-genre", "jamendo-genre, ROC-AUC / AP"),
    ("jamendo-top50", "jamendo-top50, ROC-AUC / AP"),
)
"""Tasks of `mir13` in the order of the columns below, with what is told of them."""
MARBLE = {
    "MusiCNN": "90.3/37.8 14.4 73.5 – 44.4/68.8 72.6 64.1 70.3 57.0 74.0/17.2 74.0/12.6 86.0/17.5 82.0/27.5",
    "CLMR": "89.5/36.0 14.8 65.2 – 44.4/70.3 67.9 47.0 58.1 49.9 73.5/17.0 73.5/12.6 84.6/16.2 81.3/26.4",
    "Jukebox-5B": "91.4/40.6 63.8 77.9 – 57.0/73.0 70.4 91.6 76.7 82.6 78.5/22.0 77.6/15.3 88.0/20.5 83.7/30.6",
    "MULE": "91.2/40.1 64.9 75.5 – 60.7/73.1 74.6 88.5 75.5 87.5 76.6/19.2 78.0/15.4 88.0/20.4 83.7/30.6",
    "music2vec-v1": "90.0/36.2 50.6 74.1 68.2 52.1/71.0 69.3 93.1 71.1 81.4 76.1/19.2 76.7/14.3 87.1/18.8 83.0/29.2",
    "MERT-v0 95M": "90.7/38.2 64.1 74.8 88.3 52.9/69.9 70.4 92.3 73.6 77.0 76.6/18.7 75.9/13.7 86.9/18.5 82.8/28.8",
    "MERT-v0-public": "90.7/38.4 67.3 72.8 88.1 59.1/72.8 70.4 92.3 75.6 78.0 77.5/19.6 76.2/13.3 87.2/18.8 83.0/28.9",
    "MERT-v1 95M": "91.0/39.3 63.5 74.8 88.3 55.5/76.3 70.7 92.6 74.2 83.7 77.5/19.4 76.4/13.4 87.1/18.8 83.0/29.0",
    "MERT-v1 330M": "91.1/39.5 61.7 77.6 87.9 59.0/75.8 72.6 94.4 76.9 87.1 78.1/19.8 76.5/14.0 86.7/18.6 83.4/29.9",
}
"""Yuan et al. 2023, MARBLE, tables 3 and 4, in per cent."""


def score_table(table: Mapping[str, Row], configurations: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Rows by tasks, as figures and as Markdown: score, 95 % interval, and how each stands to the best configuration.

    The best of the `configurations` is bold; `=` marks rows that are no different from it (paired bootstrap over the
    same test clips), `+` other rows that are better. The last row is chance, the best constant answer.
    """
    tasks = list(next(iter(table.values())))
    figures: dict[str, Any] = {title: {} for title in [*table, "chance"]}
    for task in tasks:
        points = {title: point(row[task]) for title, row in table.items()}
        lower = metric_of(table, task) in LOWER_IS_BETTER
        best = (min if lower else max)(configurations, key=lambda title: points[title])
        for title, row in table.items():
            units = row[task][0].outcomes().units
            low, high = bootstrap(mean_score(row[task]), units)
            gap = difference(row[task], table[best][task])
            standing = "best" if title == best else verdict(gap)
            figures[title][task] = {"score": points[title], "low": low, "high": high, "to_best": standing}
            figures[title][task] |= {"metric": row[task][0].metric, "seeds": [result.score for result in row[task]]}
            figures[title][task]["layers"] = sorted({str(choice.layer) for one in row[task] for choice in one.chosen})
        figures["chance"][task] = {"score": next(iter(table.values()))[task][0].chance}
    head = [f"{task}, {metric_of(table, task)}" for task in tasks]
    lines = [[title, *(score_cell(found[task]) for task in tasks)] for title, found in figures.items()]
    note = "**bold**: the best configuration; =: no different from it (paired bootstrap, 95 %); +: better than it."
    return figures, markdown(["% (95 % interval)", *head], lines) + "\n\n" + note


def twin_table(table: Mapping[str, Row], twin: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """What pre-training has added to each configuration's untrained `twin`: paired differences, in points."""
    tasks = list(next(iter(table.values())))
    figures: dict[str, Any] = {
        name: {task: difference(table[name][task], table[title][task]) for task in tasks}
        for name, title in twin.items()
    }
    lines = [[name, *(gap_cell(found[task]) for task in tasks)] for name, found in figures.items()]
    told = {
        name: {task: {**vars(gap), "verdict": verdict(gap)} for task, gap in row.items()}
        for name, row in figures.items()
    }
    return told, markdown(["pre-trained − untrained, points (95 % interval)", *tasks], lines)


def published_table(tasks: Sequence[str]) -> str:
    """What others have published for these tasks, from full-size models."""
    told = [number for number, (task, _) in enumerate(MARBLE_TASKS) if task in tasks]
    lines = [[name, *(text.split()[number].replace("/", " / ") for number in told)] for name, text in MARBLE.items()]
    title = (
        "Published elsewhere, not measured here: full-size models, as given by Yuan et al. 2023, MARBLE, tables 3/4. "
        "The scores of the twelve configurations in Ma et al. 2023 are not among them."
    )
    return title + "\n\n" + markdown(["%", *(MARBLE_TASKS[number][1] for number in told)], lines)


def point(results: Sequence[Result]) -> float:
    """The mean score of a row's encoders."""
    return float(np.mean([result.score for result in results]))


def difference(results: Sequence[Result], others: Sequence[Result]) -> Difference:
    """How much better a row is than another on the same clips; each the mean of its encoders."""
    lower, units = results[0].metric in LOWER_IS_BETTER, results[0].outcomes().units
    return paired_bootstrap(mean_score(results), mean_score(others), units, lower_is_better=lower)


def verdict(gap: Difference) -> str:
    """In a word."""
    return "better" if gap.low > 0 else "worse" if gap.high < 0 else "no different"


def metric_of(table: Mapping[str, Row], task: str) -> str:
    """What the task is scored by."""
    return next(iter(table.values()))[task][0].metric


def score_cell(found: Mapping[str, Any]) -> str:
    """One cell: score, interval and mark."""
    text = f"{100 * found['score']:.1f}"
    if "low" not in found:  # chance
        return text
    mark = {"no different": " =", "better": " +"}.get(found["to_best"], "")
    text = f"**{text}**" if found["to_best"] == "best" else text
    return f"{text} ({100 * found['low']:.1f} to {100 * found['high']:.1f}){mark}"


def gap_cell(gap: Difference) -> str:
    """One cell: difference, interval, and in a word what it says."""
    return f"{100 * gap.mean:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}) {verdict(gap)}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of ready-made cells."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
