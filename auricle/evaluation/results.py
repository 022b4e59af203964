"""Results as files: `results/<encoder>-<fingerprint>/<task>@<protocol>-v<n>.json`, predictions in a Parquet beside it.

The folder is the database: tables and reports are functions of it alone.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

import auricle
from auricle.config import Config
from auricle.embedding.store import write_atomic
from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.metrics import LOWER_IS_BETTER, Kind, Outcomes, paired_bootstrap, scorer

FORMAT = 1
Style = Literal["text", "markdown", "latex", "csv", "json"]
Leaks = Literal["", "corpus", "test", "unknown"]
LEAK_MARKS = {
    "†": "test clips were among those the encoder was pre-trained on, without labels",
    "‡": "other clips of the corpus were",
}
"""How tables mark what is known to have been heard in pre-training."""
MOST_COLUMNS = 8
"""A table of more tasks has them in rows, and encoders in columns."""


class Choice(Config):
    """One row of the grid of heads, with its mean dev score over seeds (None: it diverged, or there was no choice)."""

    head: str
    """`linear`, `mlp`, `cosine`, or the name of an estimator."""
    layer: int | Literal["sum"]
    lr: float | None
    """None where nothing is trained."""
    dev: float | None
    detail: str = ""
    """What else tells it from other rows."""


class Measure(Config):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, low: float, high: float) -> Measure:
        """The measure of these three."""
        return cls(value=value, low=low, high=high)


class Result(Config):
    """The score of one encoder on one task."""

    format: int = FORMAT
    auricle: str = auricle.__version__
    """Package version that wrote it."""
    encoder: str
    """The name it was loaded by."""
    fingerprint: str
    """Of weights and front end."""
    supervision: str = ""
    """What told the encoder's training who talks (`none`, `speaker`, ...); empty where that is not stated."""
    task: str
    protocol: str
    version: int
    """Of the task under its protocol."""
    kind: Kind
    level: Literal["clip", "frame", "trial"]
    """What is answered one by one."""
    target: str
    """Column predicted."""
    classes: list[str]
    """Names of classes or labels, in the order of `outputs`; empty for values."""
    metric: str
    score: float
    """On test, mean over seeds of the heads chosen on dev."""
    low: float
    """Lower end of the 95 % bootstrap interval over units."""
    high: float
    further: dict[str, Measure] = Field(default_factory=dict)
    """`oracle`: the best row of the grid on test, which is no fair score. Of trials: detection costs, and equal error
    rates of other ways to use the same encoder. Of beats: the other metrics, and two of them `by peaks`, picked
    instead of tracked."""
    seeds: list[float]
    """Test score of each seed."""
    dev: float | None
    """Mean dev score of the choice (of the choices, over folds); None where there was none."""
    chosen: list[Choice]
    """Head, layer and learning rate chosen on dev: one, or one a fold."""
    grid: list[Choice]
    """All that was tried (in the first fold)."""
    chance: float
    """What the best constant answer scores on test; of beats, those of another clip."""
    split: str
    """The rule that split the clips."""
    split_hash: str
    unit: str
    """Column the interval resamples, or `clip`."""
    units: int
    """Units on test."""
    n_train: int
    """Clips (in the first fold, as is `n_dev`)."""
    n_dev: int
    n_test: int
    """Clips, over all folds; or trials."""
    skipped: int
    """Clips the encoder could not embed; on test they get the constant answer that is best on train."""
    transductive: bool
    """Whether test clips were among the recordings the encoder was pre-trained on."""
    leaks: Leaks = ""
    """What the encoder's own pre-training run is known to have heard: test clips, or others of the task's corpus."""
    seconds_encode: float
    seconds_probe: float
    settings: str
    """Hash of all that decides the score besides the encoder: task, clips, split, pooling and grid of heads."""
    versions: dict[str, str]
    """Of the libraries that matter."""
    file: Path | None = Field(None, exclude=True)
    """Where it was read from or written to."""

    @property
    def name(self) -> str:
        """`task@protocol-vN`: results of one name are comparable where `split_hash` agrees, too."""
        return f"{self.task}@{self.protocol}-v{self.version}"

    @property
    def leak_mark(self) -> str:
        """A key of `LEAK_MARKS`, or nothing."""
        return "†" if self.transductive or self.leaks == "test" else "‡" if self.leaks == "corpus" else ""

    def predictions(self) -> pa.Table:
        """One row per dev and test clip: `clip_id, path, start_s, duration_s, split, unit, target, prediction, correct,
        total, map_x, map_y, outputs`, and of beats `reference_s, estimated_s, reference_downbeats_s,
        estimated_downbeats_s`, seconds from the clip's start; for trials a row each (see `read_trials`). Raises
        `EvaluationError`.
        """
        path = (self.file or Path(self.name)).with_suffix(".parquet")
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise EvaluationError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None

    def outcomes(self) -> Outcomes:
        """Test outcomes, clips in order of their names, so that two encoders' agree row by row."""
        table = self.predictions()
        if self.level == "trial":
            return read_trials(table)
        table = table.filter(pa.array([split == "test" for split in table["split"].to_pylist()]))
        return read_outcomes(self.kind, self.classes, table.sort_by("clip_id"))


def read_outcomes(kind: Kind, classes: Sequence[str], test: pa.Table) -> Outcomes:
    """Outcomes from the test rows of a table of predictions."""
    unit = np.unique(np.asarray(test["unit"].to_pylist()), return_inverse=True)[1]
    correct, total = (np.asarray(test[name], np.float64) for name in ("correct", "total"))
    texts = test["target"].to_pylist()
    outputs = None
    if kind != "classes":
        outputs = np.asarray(test["outputs"].to_pylist(), np.float64)
        outputs = outputs.reshape(len(texts), -1, max(len(classes), 1)).swapaxes(0, 1)  # (S, N, K)
    if kind == "values":
        targets = np.array([text.split(";") for text in texts], np.float64)  # (N, K)
        if targets.shape[1] == 1:
            targets, outputs = targets[:, 0], None if outputs is None else outputs[..., 0]
        return Outcomes(unit, targets, correct, total, outputs)
    if kind == "labels":
        hits = [[name in text.split(";") for name in classes] for text in texts]
        return Outcomes(unit, np.asarray(hits, np.int64), correct, total, outputs)
    code = {name: index for index, name in enumerate(classes)}
    return Outcomes(unit, np.asarray([code.get(text, -1) for text in texts]), correct, total)


def read_trials(table: pa.Table, column: str = "score") -> Outcomes:
    """Outcomes of trials from a table of theirs, in its order; units are speakers, scores those in `column`.

    Other columns: `enrol`, `test` (clips), `enrol_speaker`, `test_speaker`, `enrol_interferer`, `test_interferer` (null
    in clean recordings), `target`; `no_separation`, `oracle_stream` (scores) for encoders that separate talkers.
    """
    sides = [np.asarray(table[f"{side}_speaker"].cast(pa.string()).to_pylist()) for side in ("enrol", "test")]
    units = np.unique(np.concatenate(sides), return_inverse=True)[1].reshape(2, -1)
    target, one = table["target"].to_numpy().astype(np.int64), np.ones(table.num_rows)
    return Outcomes(units[0], target, one, one, table[column].to_numpy()[None], units[1])


def result_path(output: Path | str, encoder: str, fingerprint: str, name: str) -> Path:
    """Where the result of a task `name` (`task@protocol-vN`) for an encoder belongs."""
    slug = re.sub(r"[^\w.-]+", "-", encoder).strip("-.")[-100:]
    return Path(output) / f"{slug}-{fingerprint}" / f"{name}.json"


def write_result(result: Result, predictions: pa.Table, output: Path | str) -> Result:
    """Write a result, its predictions first; both whole or not at all. Raises `ConfigError` where it cannot."""
    path = result_path(output, result.encoder, result.fingerprint, result.name)
    predictions = predictions.replace_schema_metadata({"format": str(FORMAT), "auricle": auricle.__version__})
    write_atomic(path.with_suffix(".parquet"), lambda file: pq.write_table(predictions, file))
    text = json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))
    return result.model_copy(update={"file": path})


def read_result(path: Path) -> Result:
    """Read one result. Raises `EvaluationError` when it is damaged or newer than this package."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}); delete it and evaluate again") from None
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise EvaluationError(f"{path}: not a result of auricle")
    if values["format"] > FORMAT:
        raise EvaluationError(f"{path}: written by auricle {values.get('auricle')}; upgrade auricle to read it")
    try:
        return Result.parse(values | {"file": path}, str(path))
    except ConfigError as error:
        raise EvaluationError(f"{error}; delete it and evaluate again") from None


def read_results(folders: Path | str | Iterable[Path | str]) -> list[Result]:
    """All results under some folders, by path. Raises `EvaluationError` for a folder that is missing or holds none."""
    results = []
    for folder in [folders] if isinstance(folders, Path | str) else folders:
        found = sorted(Path(folder).rglob("*@*-v*.json"))
        if not found:
            raise EvaluationError(f"{folder}: no results there; `auricle evaluate --output {folder}` writes some")
        results += [read_result(path) for path in found]
    return results


def table(results: Sequence[Result], style: Style = "text") -> str:
    """Encoders × tasks (where there are many, tasks × encoders) as text, Markdown or LaTeX (with booktabs); a row per
    result as CSV or JSON.

    Cells are score ± half the 95 % interval; the best of a column is marked `*`, and what a paired bootstrap over the
    same test units cannot tell from it `=`. Scores on other clips stand in a column of their own.
    """
    if style == "json":
        return json.dumps([result.model_dump(mode="json") for result in results], indent=2, ensure_ascii=False)
    if style == "csv":
        return _csv(results)
    if not results:
        return "no results"
    columns: dict[tuple[str, str], list[Result]] = {}  # those scored on the same clips
    for result in results:
        columns.setdefault((result.name, result.split_hash), []).append(result)
    names = list(dict.fromkeys(map(_key, results)))
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {name: {} for name in names}
    titles, metrics = [], []
    for key, column in columns.items():
        first = column[0]
        several = any(other.task == first.task and other.protocol != first.protocol for other in results)
        titles.append(f"{first.task}@{first.protocol}" if several else first.task)
        metrics.append(first.metric.replace("_", " ") + (" %" if first.kind != "values" else ""))
        for result, mark in zip(column, _marks(column), strict=True):
            half = f" ± {_number(result, (result.high - result.low) / 2)}" if result.units > 1 else ""
            cells[_key(result)][key] = f"{_number(result, result.score)}{half}{mark}"
    rows = [["encoder", *titles], ["", *metrics]]
    for name in names:
        shown = name[0] if sum(other[0] == name[0] for other in names) == 1 else f"{name[0]} ({name[1][:6]})"
        if supervision := next(result.supervision for result in results if _key(result) == name):
            shown += f" [supervision: {supervision}]"
        rows.append([shown, *(cells[name].get(key, "-") for key in columns)])
    rows.append(["chance", *(_number(column[0], column[0].chance) for column in columns.values())])
    notes = ["* best; = not told from the best by a paired bootstrap (95 %)"]
    marks = {result.leak_mark for result in results}
    notes += [f"{mark} {meaning}" for mark, meaning in LEAK_MARKS.items() if mark in marks]
    if unknown := list(dict.fromkeys(result.encoder for result in results if result.leaks == "unknown")):
        notes.append(f"what was pre-trained on is not known of {', '.join(unknown)}")
    heads = 2
    if len(columns) > MOST_COLUMNS:
        rows[:2], heads = [["task", *titles], ["metric", *metrics]], 1
        rows = [list(column) for column in zip(*rows, strict=True)]
    tables = [_layout(rows, style, heads) + "\n" + "\n".join(_note(note, style) for note in notes)]
    if any("oracle" in result.further for result in results):
        tables.append(_oracle_table(results, style))
    if trials := [result for result in results if result.level == "trial"]:
        tables.append(_trial_table(trials, style))
    return "\n\n".join(tables)


def _oracle_table(results: Sequence[Result], style: Style) -> str:
    """Beside the fair scores what some papers report: the best row of the grid on test."""
    rows = [["oracle", "encoder", "score", "chosen on test"], ["", "", "", "(no fair score)"]]
    for result in results:
        if oracle := result.further.get("oracle"):
            values = (_number(result, value) for value in (result.score, oracle.value))
            rows.append([result.task, result.encoder, *values])
    return _layout(rows, style)


FURTHER = {
    "min_dcf_0.01": "minDCF 0.01",
    "min_dcf_0.05": "minDCF 0.05",
    "no_separation": "no separation",
    "oracle_stream": "oracle stream",
    "gain_by_separation": "gain",
}
"""Columns of what else is told of trials."""


def _trial_table(results: Sequence[Result], style: Style) -> str:
    """A row a task and encoder: all that is told of trials, with 95 % intervals over speakers."""
    columns = [name for name in FURTHER if any(name in result.further for result in results)]
    rows = [["trials", "encoder", "eer", *(FURTHER[name] for name in columns)]]
    rows.append(["", *("" if name.startswith("min_dcf") else "%" for name in ("min_dcf", "eer", *columns))])
    for name in dict.fromkeys(result.task for result in results):
        for result in results:
            if result.task == name:
                further = [(column, result.further.get(column)) for column in columns]
                score = Measure.of(result.score, result.low, result.high)
                rows.append([name, result.encoder, *(_measure(key, of) for key, of in [("eer", score), *further])])
    return _layout(rows, style)


def _measure(name: str, measure: Measure | None) -> str:
    if measure is None:
        return "-"
    if name.startswith("min_dcf"):
        return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"
    return f"{100 * measure.value:.1f} [{100 * measure.low:.1f}, {100 * measure.high:.1f}]"


def _key(result: Result) -> tuple[str, str]:
    """What tells encoders apart: name and fingerprint."""
    return result.encoder, result.fingerprint


def _marks(column: Sequence[Result]) -> list[str]:
    """For each result of a column: `*` best, `=` tied with it, each with † where transductive."""
    lower = column[0].metric in LOWER_IS_BETTER
    best = (min if lower else max)(column, key=lambda result: result.score)
    outcomes = best.outcomes() if len(column) > 1 else None
    marks = []
    for result in column:
        mark = "*" if result is best else " "
        if result is not best and outcomes is not None:
            a, b = scorer(best.metric, outcomes), scorer(best.metric, result.outcomes())
            if not paired_bootstrap(a, b, outcomes.units, lower_is_better=lower).significant:
                mark = "="
        marks.append(mark + result.leak_mark)
    return marks


def _number(result: Result, value: float) -> str:
    return f"{value:.3g}" if result.kind == "values" else f"{100 * value:.1f}"


LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "%&#_${}"}
    | {"±": r"$\pm$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "²": "$^2$", "=": "$^=$", "*": "$^*$"}
    | {"~": r"\textasciitilde{}", "\\": r"\textbackslash{}", "^": r"\textasciicircum{}"}
)
"""What letters of a table are in LaTeX."""


def _note(note: str, style: Style) -> str:
    return rf"\par{{\footnotesize {note.translate(LATEX)}}}" if style == "latex" else note


def _layout(rows: list[list[str]], style: Style, heads: int = 2) -> str:
    """Cells, of which the first rows (one or two) are heads."""
    if style == "latex":
        body = [" & ".join(cell.strip().translate(LATEX) for cell in row) + r" \\" for row in rows]
        columns = "l" + "r" * (len(rows[0]) - 1)
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        return "\n".join([begin, r"\toprule", *body[:heads], r"\midrule", *body[heads:], r"\bottomrule", end])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    if style == "markdown":
        rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    rule = ["-" * width for width in widths]
    return "\n".join("  ".join(line).rstrip() for line in [*lines[:heads], rule, *lines[heads:]])


def _csv(results: Sequence[Result]) -> str:
    columns = ["encoder", "fingerprint", "task", "protocol", "version", "metric", "score", "low", "high", "dev"]
    columns += ["chance", "unit", "units", "n_train", "n_dev", "n_test", "skipped", "split", "split_hash"]
    columns += ["transductive", "leaks", "supervision"]
    text = io.StringIO()
    writer: Any = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "oracle"])
    for result in results:
        oracle = result.further["oracle"].value if "oracle" in result.further else None
        writer.writerow([*(getattr(result, column) for column in columns), oracle])
    return text.getvalue().rstrip("\n")
