"""Run folders and results folders to one self-contained HTML page."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import auricle
from auricle.errors import AuricleError
from auricle.evaluation.results import Result, read_results
from auricle.report import charts, clips, music, runs, scores
from auricle.report.verification import verifications

FORMAT = 1
AUDIO_BYTES, BEAT_BYTES, PICTURE_BYTES, SOUND_BYTES, POINTS = 7_000_000, 2_000_000, 3_000_000, 1_000_000, 60_000
"""Shares of the page, which with all the rest stays below 15 MB; points are those of all maps together."""


def build_report(folders: Sequence[Path | str], output: Path | str) -> Path:
    """Write the page that shows these run and results folders, in any number and order; returns its path.

    A page of one file, at most 15 MB, that loads nothing from elsewhere. Raises an `AuricleError` naming the folder or
    file that is missing or damaged; what folders merely lack, the page says.
    """
    if not folders:
        raise AuricleError("report: name at least one run folder or results folder")
    output, found_runs, results = Path(output), [], []
    for folder in map(Path, folders):
        if runs.is_run(folder):
            found_runs.append(runs.read(folder))
        elif any(folder.rglob("*@*-v*.json")):
            results += read_results(folder)
        else:
            raise AuricleError(
                f"{folder}: neither a run folder (no config.yaml) nor one of results (no TASK@PROTOCOL-vN.json)"
            )
    page = _render(found_runs, results)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise AuricleError(f"{output}: cannot be written ({error.strerror})") from None
    return output


def _render(found_runs: Sequence[runs.Run], results: Sequence[Result]) -> str:
    board = scores.arrange(results)
    maps = _maps(board)
    sounds, unreadable = clips.inline_audio(maps, AUDIO_BYTES)
    audio_note = _audio_note(maps, sounds, unreadable)
    shown = [_show(run, PICTURE_BYTES // len(found_runs)) for run in found_runs]
    chart_js = _asset("vendor/chart.umd.min.js").partition("//# sourceMappingURL")[0]
    page_js = "\n".join(map(_asset, ("page.js", "page.music.js", "page.start.js")))
    drawn = {
        "encoders": list(board.encoders),
        "layers": charts.layer_charts(board),
        "polyphony": charts.polyphony_charts(board),
        "keys": music.key_wheels(board),
        "beats": music.beat_clips(board, sounds, BEAT_BYTES),
    }
    headline, *lead = scores.sentences(board) if results else [runs.sentence(run) for run in found_runs]
    environment = Environment(
        loader=PackageLoader("auricle.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        version=auricle.__version__,
        format=FORMAT,
        script_hashes=f"{_hash(chart_js)} {_hash(page_js)}",
        style=Markup(_asset("page.css")),
        headline=headline,
        lead=lead,
        board=board,
        verifications=verifications(board),
        runs=[
            view
            | {
                "facts": run.facts(),
                "alarms": run.alarms,
                "sounds": runs.inline_sounds(run.sounds, SOUND_BYTES // len(found_runs)),
            }
            for run, view in zip(found_runs, shown, strict=True)
        ],
        maps=maps,
        **drawn,
        audio_note=audio_note,
        details=[runs.details(run) for run in found_runs] + scores.details(board),
        sources=f"{len(found_runs)} run folder(s) and {len(results)} result(s)",
        data=_json({"runs": shown, "maps": maps, **drawn}),
        sounds=_json(sounds),
        chart_js=Markup(chart_js),
        page_js=Markup(page_js),
    )


def _maps(board: scores.Board) -> list[dict[str, Any]]:
    """The map of every clip task that has one."""
    columns = [column for column in board.columns if column.first.level == "clip"]
    most = POINTS // max(1, sum(len(column.rows) for column in columns))
    maps = [
        clips.clip_map(column.title, column.first.kind, column.predictions, max(100, min(1500, most)))
        for column in columns
    ]
    return [place for place in maps if place]


def _show(run: runs.Run, budget: int) -> dict[str, Any]:
    """What the page's script draws of a run."""
    return {
        "name": run.name,
        "train": run.curve("train", "loss", "lr", "audio_s_per_s"),
        "valid": run.curve("valid", "loss", "trivial"),
        "pictures": runs.inline_pictures(run.pictures, budget),
    }


def _audio_note(maps: Sequence[dict[str, Any]], sounds: Sequence[str], unreadable: int) -> str:
    """How many clips play, and why not all."""
    points = sum(len(place["id"]) for place in maps)
    playable = sum(index is not None for place in maps for index in place["audio"])
    note = f"{playable:,} of {points:,} points can be played"
    if playable < points:
        note += ", chosen evenly over tasks and labels to keep the page small" if sounds else ""
    if unreadable:
        note += f"; {unreadable:,} recordings could not be read where they were when they were evaluated"
    thinned = sum(place["total"] for place in maps) - points
    return f"{note}. {thinned:,} further test clips are not drawn." if thinned else f"{note}."


def _json(values: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    return Markup(json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def _hash(script: str) -> str:
    """A content security policy's name for a script: this one may run, and no other."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("auricle.report").joinpath(name).read_text(encoding="utf-8")
