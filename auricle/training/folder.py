"""A run folder: begun once, continued only by the same run on the same clips."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

import auricle
from auricle import methods
from auricle.config import differences, read_yaml, to_yaml
from auricle.data.dataset import hold_out
from auricle.data.manifest import Manifest, Sources
from auricle.errors import AuricleError, CheckpointError, ConfigError, TooManySkipsError
from auricle.methods import FORMAT
from auricle.methods.base import RunConfig
from auricle.training import initial
from auricle.training.logs import SKIPPED, write_skips
from auricle.training.probe import OnlineProbe

CONFIG, MANIFEST, README, LOCK = "config.yaml", "manifest.parquet", "README.md", ".lock"
FREE = {
    "train": ("log_every", "valid_every", "checkpoint_every", "keep_checkpoints", "stop_after_s", "device", "probe"),
    "data": ("workers", "max_skipped"),
}
"""Options that do not decide what is learned: a resumed run may change them."""
LOCK_PATIENCE_S = 6.0
"""Readers of a killed run may hold its lock until they find, within five seconds, that it is gone."""


@contextlib.contextmanager
def opened(run: RunConfig, sources: Sources, output: Path, resume: bool) -> Iterator[None]:
    """The run's folder, closed to other processes: made, or with `resume` continued if it holds a run.

    Raises `CheckpointError` when something else lies there, or another run, or another process is training it;
    `ManifestError` for sources without clips, `TooManySkipsError` when too many of them are unusable, `ConfigError`
    when `train.probe` cannot score the held-out ones, or `train.init` does not fit.
    """
    if resume and (output / CONFIG).exists():
        with exclusive(output):
            _check_same(run, sources, output)
            yield
        return
    _check_free(output)
    manifest = Manifest.open(sources)
    if manifest.skipped:
        first = manifest.skipped[0]
        check_skips(run, f"{first.path}: {first.reason}", len(manifest.skipped), len(manifest) + len(manifest.skipped))
    if run.train.probe:
        OnlineProbe(manifest.select(hold_out(manifest, run.data.valid_fraction, run.train.seed)[1]), run.train.probe)
    run.check_ready()
    initial.given(run)
    output.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        _begin(run, manifest, output)
        yield


@contextlib.contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; the system lifts the lock of one that dies.

    Raises `CheckpointError` when another process is training there, or there is no such folder.
    """
    if not output.is_dir():
        raise CheckpointError(f"{output}: holds no run (there is no such folder)")
    lock = filelock.FileLock(output / LOCK)
    try:
        lock.acquire(timeout=LOCK_PATIENCE_S)
    except filelock.Timeout:
        raise CheckpointError(f"{output}: another process is training this run; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def _check_free(output: Path) -> None:
    leftovers = {MANIFEST, README, SKIPPED, LOCK, f".{CONFIG}.unfinished"}  # of a start that was killed
    if (output / CONFIG).exists():
        raise CheckpointError(f"{output}: holds a run already; resume it, or choose another output folder")
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= leftovers):
        raise CheckpointError(f"{output}: is not an empty folder; choose another output")


def _begin(run: RunConfig, manifest: Manifest, output: Path) -> None:
    """Fill the folder, `config.yaml` last: with it, the folder holds a run."""
    manifest.save(output / MANIFEST)
    (output / SKIPPED).unlink(missing_ok=True)
    write_skips(output, -1, manifest.skipped)
    (output / README).write_text(_readme(run, manifest, output), encoding="utf-8")
    _write_config(run, output)


def _check_same(run: RunConfig, sources: Sources, output: Path) -> None:
    """Refuse (`CheckpointError`) to continue the folder's run with another config or other clips.

    Options in `FREE` may differ; the folder's `config.yaml` follows them.
    """
    stored, asked = _described(methods.run_from_yaml(read_run(output))), _described(run)
    for place, old, new in differences(stored, asked):
        section, _, option = place.partition(".")
        if option not in FREE.get(section, ()):
            raise CheckpointError(f"{output}: its run has {place} = {old}, not {new}; choose another output folder")
    if Manifest.open(sources).content_hash() != Manifest.open([output / MANIFEST]).content_hash():
        raise CheckpointError(f"{output}: its run hears other clips than these sources; choose another output folder")
    _write_config(run, output)


def check_skips(run: RunConfig, where: str, found: int, clips: int) -> None:
    """Raise `TooManySkipsError` when `found` unusable ones are more than `data.max_skipped` of all `clips`."""
    if found > run.data.max_skipped * clips:
        raise TooManySkipsError(
            f"{found} of {clips} clips are unusable, over data.max_skipped = {run.data.max_skipped:g} ({where}): "
            "mend them or raise it"
        )


def read_run(output: Path) -> dict[str, Any]:
    """The values in the folder's `config.yaml`. Raises `CheckpointError` when there is no run, or a newer one."""
    if not (output / CONFIG).is_file():
        raise CheckpointError(f"{output}: holds no run ({CONFIG} is missing)")
    try:
        values = read_yaml(output / CONFIG)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if values.get("format", 0) > FORMAT:
        raise CheckpointError(
            f"{output}: written by a newer auricle ({values.get('auricle')}); upgrade auricle to resume it"
        )
    return values


@contextlib.contextmanager
def one_line_for_the_disk(output: Path) -> Iterator[None]:
    """A full or read-only disk is the user's to mend, in one line."""
    try:
        yield
    except OSError as error:
        raise AuricleError(
            f"{error.filename or output}: {error.strerror or error}; mend it and resume, the newest checkpoint is kept"
        ) from None


def _described(run: RunConfig) -> dict[str, Any]:
    head = {"format": FORMAT, "auricle": auricle.__version__, "method": run.method}
    return head | run.model_dump(mode="json")


def _write_config(run: RunConfig, output: Path) -> None:
    unfinished = output / f".{CONFIG}.unfinished"
    unfinished.write_text(to_yaml(_described(run)), encoding="utf-8")
    os.replace(unfinished, output / CONFIG)


def _readme(run: RunConfig, manifest: Manifest, output: Path) -> str:
    hours = float(manifest.durations.sum()) / 3600
    return f"""# {output.name}

A pre-training run of auricle {auricle.__version__}: method `{run.method}`, preset `{run.preset}`,
{run.train.steps} steps over {len(manifest)} recordings ({hours:.2f} hours).

| file | holds |
|---|---|
| `{CONFIG}` | every option of the run |
| `{MANIFEST}` | the recordings, as found at the start |
| `checkpoints/` | weights and all that is needed to go on |
| `metrics.jsonl`, `tensorboard/` | losses, rates, alarms |
| `pictures/`, `sounds/` | what the model sees and answers, on a held-out recording |
| `{SKIPPED}` | recordings that could not be used, and why |

```
auricle pretrain --resume {output}                       # go on after an interruption
auricle embed {output} --data AUDIO --output EMBEDDINGS
auricle evaluate {output} fbank --data LABELS.csv --target COLUMN --output RESULTS
tensorboard --logdir {output}
```
```python
import auricle

encoder = auricle.load("{output}")
frames = encoder.frames("recording.wav")  # (T, D)
```
"""
