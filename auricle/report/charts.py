"""What a report draws as lines, one an encoder: dev scores by layer, and test scores as the number of voices grows."""

from __future__ import annotations

import re
from typing import Any

from auricle.evaluation.results import Result
from auricle.report.scores import Board, Column

POLYPHONY = re.compile(r"polyphony-(pitch|key)-(\d+)")


def layer_charts(board: Board) -> list[dict[str, Any]]:
    """The best dev score of every layer, over heads and learning rates, for tasks where some encoder tried several.

    Layers are numbers or `sum`. Encoders are told by their place on the board, here and in `polyphony_charts`.
    """
    charts = []
    for column in board.columns:
        found = {name: _best_by_layer(row) for name, row in column.rows.items()}
        if max(len(best) for best in found.values()) > 1:
            curves = [
                {
                    "encoder": board.place(name),
                    "layers": list(best),
                    "dev": [column.scaled(score) for score in best.values()],
                    "chosen": sorted({choice.layer for choice in column.rows[name].chosen}, key=_order),
                }
                for name, best in found.items()
                if best
            ]
            charts.append({"task": column.title, "unit": column.unit, "curves": curves})
    return charts


def polyphony_charts(board: Board) -> list[dict[str, Any]]:
    """Test scores and intervals against the number of voices: a chart of pitches and one of keys, by protocol."""
    groups: dict[tuple[str, str], dict[int, Column]] = {}
    for column in board.columns:
        if task := POLYPHONY.fullmatch(column.first.task):
            groups.setdefault((task[1], column.first.protocol), {})[int(task[2])] = column
    charts = []
    for (kind, protocol), columns in groups.items():
        some = dict(sorted(columns.items()))
        curves = []
        for place, name in enumerate(board.encoders):
            rows = {voices: column.rows[name] for voices, column in some.items() if name in column.rows}
            if rows:
                points = {key: [some[at].scaled(getattr(rows[at], key)) for at in rows] for key in MEASURES}
                curves.append({"encoder": place, "voices": list(rows), **points})
        first = next(iter(some.values()))
        chance = [column.scaled(column.first.chance) for column in some.values()]
        chart = {"kind": kind, "protocol": protocol, "metric": first.metric, "voices": list(some), "chance": chance}
        charts.append({**chart, "curves": curves})
    return charts


MEASURES = ("score", "low", "high")


def _best_by_layer(row: Result) -> dict[int | str, float]:
    best: dict[int | str, float] = {}
    for choice in row.grid:
        if choice.dev is not None:
            best[choice.layer] = max(best.get(choice.layer, choice.dev), choice.dev)
    return dict(sorted(best.items(), key=lambda item: _order(item[0])))


def _order(layer: int | str) -> tuple[bool, int | str]:
    """Numbers first, the sum last."""
    return isinstance(layer, str), layer
