"""What a run leaves for its reader: metrics.jsonl, TensorBoard, skipped.jsonl, pictures, sounds; cut back on resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import auricle
from auricle.audio.io import write
from auricle.data.batching import Skip
from auricle.training.checkpoint import fsync

FORMAT = 1
METRICS, SKIPPED, TENSORBOARD = "metrics.jsonl", "skipped.jsonl", "tensorboard"
PICTURES, SOUNDS = "pictures", "sounds"


class RunLog:
    """The logs of one session of the run in folder `output`; entries after step `step` (-1: all) are cut away.

    `skipped` maps the clips found unusable so far to the step that found them, -1 being the opening of the sources.
    """

    def __init__(self, output: Path, step: int) -> None:
        self.output = output
        _cut_back(output / METRICS, step)
        self.skipped = {line["clip_id"]: line["step"] for line in _cut_back(output / SKIPPED, step)}
        for file in (*output.glob(f"{PICTURES}/step-*.png"), *output.glob(f"{SOUNDS}/step-*.flac")):
            if int(file.stem.split("-")[1]) > step:
                file.unlink()
        (output / PICTURES).mkdir(exist_ok=True)
        self._metrics = open(output / METRICS, "a", encoding="utf-8")  # noqa: SIM115 -- closed in close()
        self._board = SummaryWriter(str(output / TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; numbers go to TensorBoard as `split/key` too, strings as text."""
        line = {"step": step, "split": split} | {key: _finite_or_none(value) for key, value in values.items()}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        for key, value in values.items():
            if isinstance(value, str):
                self._board.add_text(f"{split}/{key}", value, step)
            elif value is not None:
                self._board.add_scalar(f"{split}/{key}", value, step)

    def session(self, step: int, **facts: Any) -> None:
        """The line that opens a session: format, versions, machine. It is no measurement, so TensorBoard has none."""
        line = {"step": step, "split": "session", "format": FORMAT, "auricle": auricle.__version__, **facts}
        self._metrics.write(json.dumps(line) + "\n")

    def skip(self, step: int, skip: Skip) -> None:
        """Record an unusable clip, once."""
        if skip.clip_id not in self.skipped:
            self.skipped[skip.clip_id] = step
            write_skips(self.output, step, [skip])

    def picture(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """`pictures/step-XXXXXXXX.png`: panels of (T, F), time to the right and low frequencies below."""
        if not pictures:
            return
        from matplotlib.figure import Figure  # draws with Agg, without a display or pyplot's global state

        figure = Figure(figsize=(10, 0.4 + 1.9 * len(pictures)), layout="constrained")
        axes = figure.subplots(len(pictures), squeeze=False)[:, 0]
        for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
            alike = [other for other in pictures.values() if len(other) == len(picture)]
            low, high = min(float(other.min()) for other in alike), max(float(other.max()) for other in alike)
            axis.imshow(picture.float().T.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high)
            axis.set_title(name, loc="left", fontsize=9)
        axes[-1].set_xlabel("frame")
        figure.suptitle(f"step {step}", fontsize=9)
        figure.savefig(self.output / PICTURES / f"step-{step:08d}.png", dpi=90)

    def sound(self, step: int, sounds: Mapping[str, Tensor], sample_rate: int) -> None:
        """`sounds/step-XXXXXXXX-NAME.flac`, each (S,)."""
        for name, waveform in sounds.items():
            (self.output / SOUNDS).mkdir(exist_ok=True)
            write(self.output / SOUNDS / f"step-{step:08d}-{name}.flac", waveform.float().clamp(-1, 1), sample_rate)

    def flush(self) -> None:
        """Have all of it on the disk: a checkpoint must not be newer than its logs."""
        self._board.flush()
        self._metrics.flush()
        for path in (self.output / METRICS, self.output / SKIPPED):
            if path.exists():
                fsync(path)

    def close(self) -> None:
        """Close the files."""
        self._board.close()
        self._metrics.close()


def write_skips(output: Path, step: int, skips: Iterable[Skip]) -> None:
    """Append unusable clips to skipped.jsonl."""
    head = {"format": FORMAT, "auricle": auricle.__version__, "step": step}
    with open(output / SKIPPED, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(head | vars(skip)) + "\n" for skip in skips)


def _cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines after `step`, and a last one cut off by a kill; returns those that stay."""
    if not path.exists():
        return []
    kept = []
    for text in path.read_text(encoding="utf-8").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["step"] <= step:
            kept.append(line)
    shorter = path.with_name(f".{path.name}.unfinished")
    shorter.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    fsync(shorter)
    os.replace(shorter, path)
    return kept


def _finite_or_none(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
