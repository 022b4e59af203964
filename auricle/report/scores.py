"""Results arranged for a reader: tasks in columns, what wins, what cannot be told apart, and the sentence on top."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.ticker import MaxNLocator

from auricle.encoders import BASELINES
from auricle.errors import EvaluationError
from auricle.evaluation.metrics import LOWER_IS_BETTER, Outcomes, paired_bootstrap, scorer
from auricle.evaluation.results import FURTHER, LEAK_MARKS, Choice, Measure, Result, read_outcomes, read_trials
from auricle.evaluation.tasks import TASKS

LOG_MEL, TWIN = "fbank", "untrained:"
METRIC_NAMES = {
    "eer": "equal error rate",
    "map": "mean average precision",
    "roc_auc": "ROC AUC",
    "r2": "R²",
    "mae": "mean absolute error",
    "per": "phone error rate",
    "oracle": "best on test",
    **FURTHER,
    **{
        f"{kind}_f1_{how}": f"{kind} F1{told}"
        for kind in ("beat", "downbeat")
        for how, told in {"mean": "", "pooled": ", pooled", "marble": ", as MARBLE counts"}.items()
    },
}
"""Of those that are written otherwise in prose."""
MOST_TOLD, MOST_BEST = 3, 4
"""Pre-trained encoders that have sentences of their own on top, and encoders whose best scores are listed."""
ORACLE = "oracle"
TRIAL_COLUMNS = ("enrol", "test", "enrol_speaker", "test_speaker", "target", "score")
COLUMNS = ("clip_id", "path", "start_s", "duration_s", "split", "unit", "target", "prediction", "correct", "total")


@dataclass(frozen=True)
class Column:
    """Results of one task on the same test clips, by the names that encoders are shown under."""

    title: str
    rows: dict[str, Result]

    @cached_property
    def first(self) -> Result:
        """Any of the results, for what they share."""
        return next(iter(self.rows.values()))

    @cached_property
    def lower_is_better(self) -> bool:
        """Whether the metric is an error."""
        return self.first.metric in LOWER_IS_BETTER

    @cached_property
    def best(self) -> str:
        """The encoder with the best score."""
        return (min if self.lower_is_better else max)(self.rows, key=lambda name: self.rows[name].score)

    @cached_property
    def marks(self) -> dict[str, str]:
        """`best`, `tie` (not told from the best) or nothing, for every encoder; nothing where there is one alone."""
        if len(self.rows) == 1:
            return dict.fromkeys(self.rows, "")
        return {
            name: "best" if name == self.best else "" if self.compare(self.best, name) else "tie" for name in self.rows
        }

    def compare(self, a: str, b: str) -> int:
        """1 where encoder `a` beats `b` by a paired bootstrap over test units (95 %), -1 where it loses, else 0."""
        one, other = self._outcomes[a], self._outcomes[b]
        if one.units != other.units:
            raise EvaluationError(
                f"{self.rows[b].file}: has other test units than {self.rows[a].file}; evaluate it again"
            )
        metric = self.first.metric
        gap = paired_bootstrap(
            scorer(metric, one), scorer(metric, other), one.units, lower_is_better=self.lower_is_better
        )
        return 0 if not gap.significant else 1 if gap.mean > 0 else -1

    @cached_property
    def predictions(self) -> dict[str, pa.Table]:
        """Every encoder's table of predictions. Raises `EvaluationError` for one that is damaged."""
        tables = {name: row.predictions() for name, row in self.rows.items()}
        for name, table in tables.items():
            wanted = TRIAL_COLUMNS if self.first.level == "trial" else COLUMNS
            if missing := [column for column in wanted if column not in table.column_names]:
                path = (self.rows[name].file or PurePath(name)).with_suffix(".parquet")
                raise EvaluationError(f"{path}: column {missing[0]} is missing; delete it and evaluate again")
        return tables

    @cached_property
    def _outcomes(self) -> dict[str, Outcomes]:
        first = self.first
        if first.level == "trial":
            return {name: read_trials(table) for name, table in self.predictions.items()}
        tests = {name: table.filter(pc.equal(table["split"], "test")) for name, table in self.predictions.items()}
        return {name: read_outcomes(first.kind, first.classes, test.sort_by("clip_id")) for name, test in tests.items()}

    @property
    def unit(self) -> str:
        """`%`, or nothing."""
        return "" if self.first.kind == "values" else "%"

    @property
    def metric(self) -> str:
        """The metric's name and unit, for a column's head."""
        return metric_name(self.first.metric) + self.in_unit()

    def in_unit(self, key: str = "") -> str:
        """The unit as it is written after the name of the metric, or of a measure of `further`."""
        return f" in {self.unit}" if self.unit and not key.startswith("min_dcf") else ""

    @property
    def further(self) -> dict[str, dict[str, Measure]]:
        """What else was measured, by measure and encoder; what is no score, the best on test, first."""
        keys = sorted({key for row in self.rows.values() for key in row.further}, key=lambda key: (key != ORACLE, key))
        return {key: {name: row.further[key] for name, row in self.rows.items() if key in row.further} for key in keys}

    def measure(self, key: str, value: float) -> str:
        """A value of `further` as it is shown; costs are no shares."""
        return f"{value:.3f}" if key.startswith("min_dcf") else self.number(value)

    def leak(self, name: str) -> str:
        """The mark of what the encoder is known to have heard in pre-training, or nothing."""
        return self.rows[name].leak_mark

    @property
    def remark(self) -> str:
        """What is measured, and over what the interval goes."""
        first = self.first
        record = TASKS.get(first.task)
        measures = f"{record.measures[:1].upper()}{record.measures[1:]}. " if record and record.measures else ""
        direction = " (lower is better)" if self.lower_is_better else ""
        units = "" if first.unit == "clip" else f"; intervals over column {first.unit} ({first.units})"
        what = "trials" if first.level == "trial" else "test clips"
        return f"{measures}{self.metric[:1].upper()}{self.metric[1:]}{direction} on {first.n_test:,} {what}{units}."

    def number(self, value: float) -> str:
        """A score as it is shown."""
        return f"{value:.3g}" if self.first.kind == "values" else f"{100 * value:.1f}"

    def scaled(self, value: float) -> float:
        """A score as it is drawn, four digits of it."""
        return float(f"{value if self.first.kind == 'values' else 100 * value:.4g}")

    def tick(self, value: float) -> str:
        """A tick as it is labelled."""
        return f"{value if self.first.kind == 'values' else 100 * value:g}"

    def interval(self, name: str) -> str:
        """The 95 % interval of an encoder's score."""
        return f"{self.number(self.rows[name].low)} – {self.number(self.rows[name].high)}"

    @cached_property
    def ticks(self) -> list[float]:
        """Round values from below all that the chart of intervals shows to above it."""
        values = [self.first.chance, *(value for row in self.rows.values() for value in (row.low, row.high, row.score))]
        low, high = min(values), max(values)
        margin = 0.04 * (high - low or 1.0)
        low, high = low - margin, high + margin
        if self.first.kind != "values":
            low, high = max(low, 0.0), min(high, 1.0)
        return [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]

    def at(self, value: float) -> float:
        """Where a value stands in the chart, in percent of its width."""
        return round(100 * (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]), 2)


@dataclass(frozen=True)
class Board:
    """All results: encoders, as they are shown, in rows, and tasks in columns."""

    encoders: dict[str, str]
    """Shown name → the name the encoder was loaded by."""
    columns: list[Column]

    @property
    def leaks(self) -> dict[str, str]:
        """Marks on the board, and what they mean."""
        found = {column.leak(name) for column in self.columns for name in column.rows}
        return {mark: meaning for mark, meaning in LEAK_MARKS.items() if mark in found}

    @property
    def further(self) -> list[tuple[Column, str, str, dict[str, Measure]]]:
        """(column, measure, its name, measures by encoder): all that was measured besides scores."""
        return [
            (column, key, f"{metric_name(key)}{column.in_unit(key)}", found)
            for column in self.columns
            for key, found in column.further.items()
        ]

    @property
    def has_oracle(self) -> bool:
        """Whether the best on test is told anywhere."""
        return any(key == ORACLE for _, key, _, _ in self.further)

    @property
    def supervision(self) -> dict[str, str]:
        """What told encoders' training who talks, where that is stated."""
        rows = ((name, row.supervision) for column in self.columns for name, row in column.rows.items())
        return {name: told for name, told in rows if told}

    def place(self, name: str) -> int:
        """Number of an encoder among all."""
        return list(self.encoders).index(name)


def arrange(results: Sequence[Result]) -> Board:
    """Results as a board; the pre-trained encoders first, then baselines and untrained twins."""
    full = list(dict.fromkeys((result.encoder, result.fingerprint) for result in results))
    full.sort(key=lambda name: (not _pretrained(name[0]), name[0] not in BASELINES))
    shown = _shown_names(full)
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.name, result.split_hash), []).append(result)
    columns = []
    for (name, split_hash), group in groups.items():
        title = group[0].task
        if sum(other[0].task == title for other in groups.values()) > 1:
            title = f"{name} on split {split_hash[:6]}"
        rows = {shown[result.encoder, result.fingerprint]: result for result in group}
        columns.append(Column(title, {name: rows[name] for name in shown.values() if name in rows}))
    return Board({shown[name]: name[0] for name in full}, columns)


def metric_name(metric: str) -> str:
    """A metric as it is written in prose, with what it is of or how it was found ("r2 valence")."""
    name, *more = metric.split(" ")
    return " ".join([METRIC_NAMES.get(name, name.replace("_", " ")), *more])


def sentences(board: Board) -> list[str]:
    """The result in words: first how pre-trained encoders do against log-mel, then their twins, and what is best.

    Of many pre-trained encoders, what is best alone.
    """
    pretrained = [shown for shown, name in board.encoders.items() if _pretrained(name)]
    pretrained = pretrained if len(pretrained) <= MOST_TOLD else []
    log_mel = next((shown for shown, name in board.encoders.items() if name == LOG_MEL), None)
    told = []
    if log_mel:
        told = [_against(board, encoder, log_mel, "log-mel", "The pre-trained encoder ") for encoder in pretrained]
    wins = {name: [column.title for column in board.columns if column.best == name] for name in board.encoders}
    ranked = sorted((name for name in wins if wins[name]), key=lambda name: -len(wins[name]))
    parts = [f"{name} on {_listed(wins[name])}" for name in ranked[:MOST_BEST]]
    if others := ranked[MOST_BEST:]:
        parts.append(f"{_count(len(others), 'other')} on {_count(sum(len(wins[name]) for name in others), 'task')}")
    best = f"Best scores: {'; '.join(parts)}."
    if not any(told) and len(board.encoders) > 1:
        first, tasks = wins[ranked[0]], _count(len(board.columns), "task")
        equal = [name for name in ranked if len(wins[name]) == len(first)]
        what = _listed(first) if len(ranked) == 1 else f"{len(first)} of {tasks}"
        who = _joined(equal) if len(equal) <= MOST_BEST else _count(len(equal), "encoder")
        told = [f"{who} {'scores' if len(equal) == 1 else 'each score'} best on {what}."]
        best = best if len(ranked) > 1 else ""
    elif len(board.encoders) == 1:
        told, best = [f"{ranked[0]}, measured on {_count(len(board.columns), 'task')}."], ""
    for encoder in pretrained:
        twin = next((shown for shown, name in board.encoders.items() if name == TWIN + board.encoders[encoder]), None)
        if twin:
            told.append(_against(board, encoder, twin, "its own untrained network", ""))
    if len(pretrained) == 2:
        one, other = pretrained
        told.append(_against(board, one, other, other, ""))
    return [sentence for sentence in [*told, best] if sentence]


def details(board: Board) -> list[tuple[str, list[tuple[str, str]], str]]:
    """(title, facts, text) of each column: all that is needed to repeat its scores."""
    found = []
    for column in board.columns:
        first = column.first
        record = TASKS.get(first.task)
        facts = [
            ("Target", f"{first.target} ({first.kind}, by {first.level})"),
            ("Split", f"{first.split} (hash {first.split_hash})"),
            ("Trials", f"{first.n_test:,}, {first.n_train:,} clips of a cohort, {first.n_dev:,} clips of dev")
            if first.level == "trial"
            else ("Clips", f"{first.n_train:,} train, {first.n_dev:,} dev, {first.n_test:,} test"),
            ("Interval", f"95 % bootstrap over {_count(first.units, first.unit)}"),
            ("Chance", column.number(first.chance)),
        ]
        if record and record.leaks:
            facts.append(("What flatters", record.leaks))
        facts += [(name, _provenance(column, row)) for name, row in column.rows.items()]
        found.append((f"Task: {first.name}", facts, ""))
    return found


def _provenance(column: Column, row: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in {"auricle": row.auricle, **row.versions}.items())
    seeds = ", ".join(column.number(score) for score in row.seeds)
    skipped = f"; {_count(row.skipped, 'clip')} skipped" if row.skipped else ""
    dev = "-" if row.dev is None else column.number(row.dev)
    return (
        f"{row.encoder}, fingerprint {row.fingerprint}; test {column.number(row.score)} (seeds {seeds}), "
        f"dev {dev}; {'; '.join(dict.fromkeys(map(_choice, row.chosen)))}{skipped}; "
        f"{row.seconds_encode:.1f} s encoding, {row.seconds_probe:.1f} s probing; {versions}"
    )


def _choice(choice: Choice) -> str:
    layer = "sum of layers" if choice.layer == "sum" else f"layer {choice.layer}"
    if choice.lr is not None:
        return f"{choice.head} head on {layer}, learning rate {choice.lr:g}"
    return f"{choice.head} of {layer}" + (f" ({choice.detail})" if choice.detail else "")


def _against(board: Board, a: str, b: str, rival: str, subject: str) -> str:
    """How `a` does against `b` in one sentence; empty without a common task."""
    tasks: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for column in board.columns:
        if a in column.rows and b in column.rows:
            tasks[column.compare(a, b)].append(column.title)
    count = sum(map(len, tasks.values()))
    if not count:
        return ""
    ties = [f"ties with it on {_listed(tasks[0])}"] if tasks[0] else []
    losses = [f"loses on {_listed(tasks[-1])}"] if tasks[-1] else []
    if tasks[1]:
        return f"{subject}{a} {_joined([f'beats {rival} on {_listed(tasks[1])}', *ties, *losses])}."
    nowhere = "on any task" if count > 1 else f"on {(tasks[0] + tasks[-1])[0]}"
    return f"{subject}{a} does not beat {rival} {nowhere}: it {_joined([*ties, *losses])}."


def _pretrained(name: str) -> bool:
    return name not in BASELINES and not name.startswith(TWIN)


def _shown_names(full: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Names without their folders where these do not tell them apart; with the fingerprint where nothing else does."""
    short = {name: f"{TWIN if name[0].startswith(TWIN) else ''}{PurePath(name[0]).name}" for name in full}
    shown = {name: short[name] if _once(short[name], short.values()) else name[0] for name in full}
    return {name: shown[name] if _once(shown[name], shown.values()) else f"{name[0]} ({name[1][:6]})" for name in full}


def _once(name: str, names: Iterable[str]) -> bool:
    return list(names).count(name) == 1


def _listed(names: Sequence[str]) -> str:
    return _joined(names) if len(names) <= 4 else f"{len(names)} tasks"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
