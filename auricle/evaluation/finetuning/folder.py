"""The folder of a fine-tuning run: begun once, continued only as it began, loadable at any time.

finetune.yaml                format, auricle, what is predicted from what, every option
manifest.parquet             clips trained and chosen on
test.parquet                 clips scored at the end
checkpoints/step-00000120/   the weights that are best on dev so far: `auricle.load(folder)` takes these
latest/step-00000160/        all that is needed to go on; gone when the run is over
results/                     the score on test, as `evaluate` writes it
metrics.jsonl  tensorboard/  skipped.jsonl
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import auricle
from auricle.config import Config, read_yaml, to_yaml
from auricle.data.manifest import Manifest
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import load
from auricle.errors import CheckpointError, ConfigError
from auricle.evaluation.finetuning.config import FREE, FinetuneConfig
from auricle.evaluation.finetuning.model import Tuned
from auricle.evaluation.metrics import Kind
from auricle.evaluation.prepare import Prepared, prepare
from auricle.evaluation.tasks.task import Task
from auricle.training import checkpoint
from auricle.training.folder import LOCK
from auricle.training.logs import SKIPPED, write_skips

FORMAT = 1
ABOUT, HEARD, TEST, BEST, LATEST, RESULTS = (
    "finetune.yaml", "manifest.parquet", "test.parquet", "checkpoints", "latest", "results",
)  # fmt: skip


class About(Config):
    """What stands in `finetune.yaml`: what a run learns, from what, and how."""

    format: int = FORMAT
    auricle: str = auricle.__version__
    encoder: str
    """The name it was loaded by."""
    fingerprint: str
    """Of its weights at the start."""
    task: str
    target: str
    kind: Kind
    level: str
    metric: str
    unit: str | None
    """Column the interval resamples; None for clips."""
    classes: list[str]
    """Names of classes or labels; empty for values."""
    standard: tuple[float, float]
    """Mean and deviation of the train clips' values; 0 and 1 for classes and labels."""
    split: str
    """The rule that split the clips."""
    split_hash: str
    clips: str
    """Hash of them all, with their labels."""
    config: FinetuneConfig

    @property
    def record(self) -> Task:
        """The task, on clips that are split."""
        level: Any = self.level
        return Task(
            name=self.task, target=self.target, kind=self.kind, level=level, metric=self.metric, split="split",
            unit=self.unit, protocol="finetune", measures=f"column {self.target}",
        )  # fmt: skip

    @property
    def settings(self) -> str:
        """Hash of all that decides the score besides the encoder."""
        config = self.config.model_dump(mode="json", exclude=set(FREE))
        parts = [self.task, self.target, self.metric, self.unit, self.clips, self.split_hash, config]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def model(self, encoder: Encoder) -> Tuned:
        """The encoder under a fresh head."""
        return Tuned(encoder, self.config, self.kind, self.level, max(len(self.classes), 1), self.standard)


def begin(output: Path, about: About, model: Tuned, parts: tuple[Manifest, Manifest], opened: Manifest) -> None:
    """Fill the folder, `finetune.yaml` last: with it, the folder holds a run. `opened` has the clips as they came."""
    shutil.rmtree(output / LATEST, ignore_errors=True)
    for manifest, name in zip(parts, (HEARD, TEST), strict=True):
        manifest.save(output / name)
    (output / SKIPPED).unlink(missing_ok=True)
    write_skips(output, -1, opened.skipped)
    state: dict[str, Any] = {"best": None, "best_step": 0, "rank": None, "stale": 0, "names": [], "audio_s": 0.0}
    checkpoint.save(output / LATEST, 0, model, {}, {}, state, {}, keep=1)
    _write(output, about)


def finish(output: Path) -> None:
    """What was needed to go on is needed no more."""
    shutil.rmtree(output / LATEST)


def check_free(output: Path) -> None:
    """Raises `CheckpointError` unless the folder is new, empty, or what a start that was killed has left."""
    if (output / ABOUT).exists():
        raise CheckpointError(f"{output}: holds a fine-tuning run already; resume it, or choose another output folder")
    leftovers = {HEARD, TEST, SKIPPED, LATEST, LOCK, f".{ABOUT}.unfinished"}
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= leftovers):
        raise CheckpointError(f"{output}: is not an empty folder; choose another output")


def check_same(output: Path, about: About) -> None:
    """Refuse (`CheckpointError`) to go on with another run than the folder's; options in `FREE` may differ."""
    stored, asked = (_flat(found.model_dump(mode="json")) for found in (read_about(output), about))
    for name in asked:
        if stored[name] != asked[name] and name not in ("auricle", *(f"config.{free}" for free in FREE)):
            raise CheckpointError(
                f"{output}: its run has {name} = {stored[name]}, not {asked[name]}; choose another output folder"
            )
    _write(output, about)


def read_about(output: Path) -> About:
    """The folder's `finetune.yaml`. Raises `CheckpointError` when there is none, or a damaged or newer one."""
    if not (output / ABOUT).is_file():
        raise CheckpointError(f"{output}: holds no fine-tuning run ({ABOUT} is missing)")
    try:
        values = read_yaml(output / ABOUT)
        if isinstance(values.get("format"), int) and values["format"] > FORMAT:
            raise CheckpointError(f"{output}: written by a newer auricle ({values.get('auricle')}); upgrade auricle")
        return About.parse(values, str(output / ABOUT))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def reopen(output: Path, about: About) -> Prepared:
    """The run's own clips, as they were split."""
    ready = prepare(about.record, Manifest.open([output / HEARD, output / TEST]))
    return replace(ready, rule=about.split, split_hash=about.split_hash)


def best(output: Path, device: str = "cpu") -> tuple[About, Tuned]:
    """A run and its best weights so far, ready to answer. Raises `CheckpointError` where there are none yet."""
    about, folder = read_about(output), checkpoint.newest(output / BEST)
    if folder is None:
        raise CheckpointError(f"{output}: has no weights yet; go on with: auricle finetune --resume {output}")
    model = about.model(load(folder))
    checkpoint.load_weights(folder, model)
    model.encoder.name = str(output)
    return about, model.to(device).eval()


def _write(output: Path, about: About) -> None:
    unfinished = output / f".{ABOUT}.unfinished"
    unfinished.write_text(to_yaml(about.model_dump(mode="json")), encoding="utf-8")
    os.replace(unfinished, output / ABOUT)


def _flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{place}{key}.") if isinstance(value, Mapping) else {f"{place}{key}": value}
    return flat
