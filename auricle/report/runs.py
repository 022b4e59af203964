"""What a report shows of a run folder: its curves, alarms, pictures and facts."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from auricle.errors import CheckpointError, ManifestError
from auricle.training.folder import CONFIG, MANIFEST, read_run

CURVE_POINTS = 2000
"""Most points drawn of one curve; longer logs are thinned to every n-th line."""
PICTURES = 12
"""Most pictures shown of one run: the newest, and others spread evenly over training."""


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    name: str
    folder: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    """metrics.jsonl."""
    pictures: list[tuple[int, Path]]
    """(step, PNG), oldest first."""
    sounds: dict[str, Path]
    """What there is to hear of the newest measurement that left sounds."""
    hours: float | None
    """Recordings in manifest.parquet; None without one."""
    parameters: int | None
    """The encoder's weights in the newest checkpoint; None without one."""
    config_text: str

    def curve(self, split: str, *keys: str) -> dict[str, list[float | None]]:
        """Columns `step` and `keys` of a split's lines; None where a value is absent or not finite."""
        lines = [line for line in self.lines if line.get("split") == split]
        lines = lines[:: math.ceil(len(lines) / CURVE_POINTS) or 1]
        return {key: [_finite(line.get(key)) for line in lines] for key in ("step", *keys)}

    def last(self, split: str, key: str) -> float | None:
        """The newest finite value of `key` in a split's lines."""
        return next((value for value in reversed(self.curve(split, key)[key]) if value is not None), None)

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """(step, message) of every alarm."""
        return [(line["step"], str(line.get("message", ""))) for line in self.lines if line.get("split") == "alarm"]

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """What each start or resume of the run said of its machine and versions."""
        return [line for line in self.lines if line.get("split") == "session"]

    def facts(self) -> list[tuple[str, str, str]]:
        """(name, value, remark): what a reader wants to know first."""
        valid, trivial = self.last("valid", "loss"), self.last("valid", "trivial")
        steps, heard, speed = (self.last("train", key) for key in ("step", "audio_s", "audio_s_per_s"))
        below = (
            f"{1 - valid / trivial:.0%} below trivial ({trivial:.3g})" if valid and trivial and valid < trivial else ""
        )
        if valid and trivial and valid >= trivial:
            below = f"not below trivial ({trivial:.3g})"
        facts = [
            ("Method", str(self.config.get("method", "unknown")), str(self.config.get("preset", ""))),
            ("Steps", f"{steps:,.0f}" if steps is not None else "", ""),
            ("Held-out loss", f"{valid:.4g}" if valid is not None else "", below),
            ("Recordings", f"{self.hours:.3g} h" if self.hours is not None else "", ""),
            ("Audio heard", f"{heard / 3600:.3g} h" if heard is not None else "", "repeats included"),
            ("Speed", f"{speed:.3g} s" if speed is not None else "", "of audio per second"),
            ("Parameters", f"{self.parameters:,}" if self.parameters is not None else "", "encoder"),
        ]
        return [fact for fact in facts if fact[1]]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder."""
    return (folder / CONFIG).is_file()


def read(folder: Path) -> Run:
    """Read a run folder. Raises `CheckpointError` or `ManifestError`, naming the damaged file."""
    return Run(
        name=folder.resolve().name,
        folder=folder,
        config=read_run(folder),
        lines=_read_lines(folder / "metrics.jsonl"),
        pictures=sorted((_step(path), path) for path in (folder / "pictures").glob("step-*.png")),
        sounds=_sounds(folder / "sounds"),
        hours=_hours(folder / MANIFEST),
        parameters=_parameters(folder / "checkpoints"),
        config_text=(folder / CONFIG).read_text(encoding="utf-8"),
    )


def _sounds(folder: Path) -> dict[str, Path]:
    """By name, in the names' order."""
    files = sorted(folder.glob("step-*-*.flac"), key=lambda path: path.stem)
    newest = max((path.name.split("-")[1] for path in files), default="")
    return {path.stem.split("-", 2)[2]: path for path in files if path.name.split("-")[1] == newest}


def sentence(run: Run) -> str:
    """How far the run has come, in one sentence."""
    valid, trivial, step = run.last("valid", "loss"), run.last("valid", "trivial"), run.last("train", "step")
    if step is None:
        return f"{run.name} has not been trained yet."
    if valid is None or trivial is None:
        return f"{run.name} was trained for {step:,.0f} steps; its held-out loss is not measured yet."
    verdict = f"{1 - valid / trivial:.0%} below" if valid < trivial else "not below"
    return (
        f"After {step:,.0f} steps {run.name} has a held-out loss of {valid:.3g}, {verdict} the trivial {trivial:.3g}."
    )


def details(run: Run) -> tuple[str, list[tuple[str, str]], str]:
    """(title, facts, text): all that is needed to repeat the run."""
    facts = [
        ("Folder", str(run.folder.resolve())),
        ("Written by", f"auricle {run.config.get('auricle', 'unknown')}"),
        ("Recordings skipped", str(int(run.last("train", "skipped") or 0))),
    ]
    for line in run.sessions:
        values = ", ".join(f"{key} {value}" for key, value in line.items() if key not in ("step", "split", "format"))
        facts.append((f"Started at step {line['step']:,}", values))
    return f"Run: {run.name}", facts, run.config_text


def inline_pictures(pictures: Sequence[tuple[int, Path]], budget: int) -> list[dict[str, Any]]:
    """Pictures spread over training as data URIs, oldest first; where `budget` (bytes) is short, the newest of them."""
    chosen = sorted(set(np.linspace(0, len(pictures) - 1, PICTURES).round().astype(int))) if pictures else []
    shown: list[dict[str, Any]] = []
    for step, path in (pictures[index] for index in reversed(chosen)):
        uri = "data:image/png;base64," + b64encode(path.read_bytes()).decode()
        budget -= len(uri)
        if budget < 0:
            break
        shown.insert(0, {"step": step, "uri": uri})
    return shown


def inline_sounds(sounds: Mapping[str, Path], budget: int) -> list[dict[str, str]]:
    """Sounds as data URIs, as many as `budget` (bytes) holds."""
    shown = []
    for name, path in sounds.items():
        uri = "data:audio/flac;base64," + b64encode(path.read_bytes()).decode()
        budget -= len(uri)
        if budget < 0:
            break
        shown.append({"name": name, "uri": uri})
    return shown


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; a last line without its newline is still being written and is left out."""
    if not path.exists():
        return []
    lines = []
    try:
        complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        for number, text in enumerate(complete.splitlines(), 1):
            line = json.loads(text)
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise CheckpointError(f"{path}: line {number} is not an object with a 'step'; remove it or train anew")
            lines.append(line)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: line {number} is not JSON ({error.msg}); remove it or train anew") from None
    return lines


def _hours(path: Path) -> float | None:
    if not path.exists():
        return None
    try:
        seconds = pc.sum(pq.read_table(path, columns=["duration_s"])["duration_s"]).as_py()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ManifestError(f"{path}: cannot be read as a manifest ({str(error).splitlines()[0]})") from None
    return float(seconds or 0) / 3600


def _parameters(checkpoints: Path) -> int | None:
    """Numbers in the newest checkpoint's weights, from the header alone."""
    files = sorted(checkpoints.glob("step-*/model.safetensors"))
    if not files:
        return None
    try:
        with safe_open(files[-1], framework="numpy") as weights:
            shapes: list[list[int]] = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{files[-1]}: cannot be read ({error}); delete this checkpoint") from None
    return sum(math.prod(shape) for shape in shapes)


def _step(path: Path) -> int:
    digits = path.stem.removeprefix("step-")
    if not digits.isdigit():
        raise CheckpointError(f"{path}: expected a name such as step-00012000.png")
    return int(digits)


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
