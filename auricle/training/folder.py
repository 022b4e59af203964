"""A run folder: begun once, continued only by the same run on the same clips."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import auricle
from auricle.config import read_yaml, to_yaml
from auricle.data.manifest import Manifest
from auricle.errors import AuricleError, CheckpointError, ConfigError, ManifestError, TooManySkipsError
from auricle.methods.base import RunConfig
from auricle.training.logs import SKIPPED, write_skips

FORMAT = 1
CONFIG, MANIFEST, README = "config.yaml", "manifest.parquet", "README.md"
FREE = {
    "train": ("log_every", "valid_every", "checkpoint_every", "keep_checkpoints", "stop_after_s", "device"),
    "data": ("workers", "max_skipped"),
}
"""Options that do not decide what is learned: a resumed run may change them."""


def begin(run: RunConfig, sources: Sequence[Path | str], output: Path) -> None:
    """Make the folder, `config.yaml` last: with it, the folder holds a run.

    Raises `CheckpointError` when something else lies there, `ManifestError` for sources without clips,
    `TooManySkipsError` when too many of them are unusable.
    """
    leftovers = {MANIFEST, README, SKIPPED, f".{CONFIG}.unfinished"}  # of a start that was killed
    if (output / CONFIG).exists():
        raise CheckpointError(f"{output}: holds a run already; resume it, or choose another output folder")
    if output.exists() and not (output.is_dir() and {path.name for path in output.iterdir()} <= leftovers):
        raise CheckpointError(f"{output}: is not an empty folder; choose another output")
    manifest = Manifest.open(sources)
    if not len(manifest):
        raise ManifestError(f"{', '.join(map(str, sources))}: no usable recordings ({len(manifest.skipped)} unusable)")
    if manifest.skipped:
        first = manifest.skipped[0]
        check_skips(run, f"{first.path}: {first.reason}", len(manifest.skipped), len(manifest) + len(manifest.skipped))
    output.mkdir(parents=True, exist_ok=True)
    manifest.save(output / MANIFEST)
    (output / SKIPPED).unlink(missing_ok=True)
    write_skips(output, -1, manifest.skipped)
    (output / README).write_text(_readme(run, manifest, output), encoding="utf-8")
    _write_config(run, output)


def check_same(run: RunConfig, sources: Sequence[Path | str], output: Path) -> None:
    """Refuse (`CheckpointError`) to continue the folder's run with another config or other clips.

    Options in `FREE` may differ; the folder's `config.yaml` follows them.
    """
    stored, asked = read_run(output), _described(run)
    for place, old, new in _differences(stored, asked):
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


def _differences(old: Any, new: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [(place, old, new)]
    keys = [key for key in {**old, **new} if place or key not in ("format", "auricle")]
    return [
        difference
        for key in keys
        for difference in _differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    ]


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
| `pictures/` | what the model sees and answers, on a held-out recording |
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
