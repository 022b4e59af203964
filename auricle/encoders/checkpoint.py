"""Encoders on disk: `config.json` + `model.safetensors`, and every name by which an encoder can be loaded."""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

import auricle
from auricle.config import Config
from auricle.encoders import BASELINES, ENCODER_FORMS, FAMILIES
from auricle.encoders.base import Encoder
from auricle.encoders.external import load_callable
from auricle.encoders.foreign import PROJECTS
from auricle.encoders.foreign.weights import load_foreign
from auricle.errors import CheckpointError, ConfigError, unknown

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CALLABLE = re.compile(r"[\w.]+:[\w.]+")
"""The form of `module:attribute`."""


def save(encoder: Encoder, folder: Path | str, **extra: Any) -> None:
    """Write `config.json` and `model.safetensors` into `folder`; `extra` (seed, method, step, ...) goes into the first.

    Raises `CheckpointError` for an encoder that is somebody's code rather than one of our families.
    """
    if encoder.family not in FAMILIES:
        raise CheckpointError(
            f"{encoder.name or encoder.family}: an encoder that is somebody else's code cannot be saved"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "format": FORMAT,
        "auricle": auricle.__version__,
        "family": encoder.family,
        "config": encoder.config.model_dump(mode="json"),
        "sample_rate": encoder.sample_rate,
        "hop": encoder.hop,
        "offset": encoder.offset,
        "dims": list(encoder.dims),
    }
    if encoder.supervision:
        description["supervision"] = encoder.supervision
    if clash := sorted(description.keys() & extra.keys()):
        raise CheckpointError(f"{folder}: {', '.join(clash)} cannot be replaced by an extra entry of {CONFIG}")
    save_model(encoder, str(folder / WEIGHTS))
    (folder / CONFIG).write_text(json.dumps(description | extra, indent=2) + "\n", encoding="utf-8")


def load(name: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """An encoder in evaluation mode on `device`, by any of the forms in `auricle.encoders.ENCODER_FORMS`.

    `untrained:FOLDER` builds the folder's network anew under its seed: the run's own step 0; `s3prl:FILE` and the like
    convert another project's checkpoint, which `save` then writes as ours; `hf:NAME` is a folder of Hugging Face's
    layout, or of ours, here or on the Hub. Raises `CheckpointError` for a missing, damaged or newer checkpoint,
    `ConfigError` for an unknown name and for code that cannot be used.
    """
    name = str(name)
    encoder = _find(name)
    encoder.name = name
    return encoder.to(device).eval()


def newest_checkpoint(folder: Path | str) -> Path | None:
    """The checkpoint with the highest step in a run folder, or None; one still being written has another name."""
    found = [path for path in Path(folder).glob("checkpoints/step-*") if re.fullmatch(r"step-\d+", path.name)]
    complete = [path for path in found if (path / CONFIG).is_file() and (path / WEIGHTS).is_file()]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def _find(name: str) -> Encoder:
    if name in BASELINES:
        return _build(name, {}, name)
    if name.startswith("untrained:"):
        return _load_untrained(Path(name.removeprefix("untrained:")))
    project, _, file = name.partition(":")
    if file and project == "hf":
        from auricle.encoders.huggingface import load_huggingface  # which imports this module

        with torch.random.fork_rng(_gpus()):
            return load_huggingface(file)
    if file and project == "hear":
        from auricle.encoders.hear import load_hear  # which runs somebody's code

        with torch.random.fork_rng(_gpus()):
            return load_hear(file, name)
    if file and project in PROJECTS:
        with torch.random.fork_rng(_gpus()):  # building draws weights; the caller's generator must not notice
            return load_foreign(project, Path(file))
    if Path(name).exists():
        return load_folder(Path(name))
    if CALLABLE.fullmatch(name):
        return load_callable(name)
    raise _no_such(name)


def refuse_unknown(name: str) -> None:
    """Raise as `load` does for a name of no known form and for a folder without a checkpoint, before any is loaded."""
    form, _, _ = name.partition(":")
    if name in BASELINES:  # whatever lies there under its name
        return
    if form == "untrained" or (Path(name).exists() and form not in PROJECTS):
        _describe(Path(name.removeprefix("untrained:")))
    elif form not in (*PROJECTS, "hf", "hear") and not CALLABLE.fullmatch(name):
        raise _no_such(name)


def _no_such(name: str) -> ConfigError:
    beside = Path(name).absolute().parent
    folders = [str(Path(name).with_name(path.name)) for path in beside.iterdir()] if beside.is_dir() else []
    close = difflib.get_close_matches(name, [*BASELINES, *folders], n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return ConfigError(f"unknown encoder '{name}'; {hint}known forms: {', '.join(ENCODER_FORMS)}")


def load_folder(path: Path) -> Encoder:
    """The encoder of ours in a run or checkpoint folder. Raises `CheckpointError`."""
    folder, description = _describe(path)
    with torch.random.fork_rng(_gpus()):  # building draws weights; the caller's generator must not notice
        encoder = _build(description["family"], description["config"], folder / CONFIG)
    encoder.supervision = str(description.get("supervision", ""))
    try:
        missing, unexpected = load_model(encoder, str(folder / WEIGHTS), strict=False)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: damaged or unreadable ({_first_line(error)})") from None
    except RuntimeError as error:  # load_state_dict, on a weight of another shape
        raise CheckpointError(f"{folder / WEIGHTS}: does not fit its {CONFIG} ({_first_line(error, -1)})") from None
    for what, keys in (("lacks", missing), ("holds unknown", unexpected)):
        if keys:
            raise CheckpointError(f"{folder / WEIGHTS}: {what} weight {sorted(keys)[0]} ({len(keys)} in all)")
    return encoder


def _load_untrained(path: Path) -> Encoder:
    folder, description = _describe(path)
    if not isinstance(description.get("seed"), int):
        raise CheckpointError(f"{folder / CONFIG}: holds no seed, so its untrained twin is not known")
    with torch.random.fork_rng(_gpus()):
        torch.manual_seed(description["seed"])
        return _build(description["family"], description["config"], folder / CONFIG)


def _describe(path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint folder that a run or checkpoint folder stands for, and its `config.json`."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run or checkpoint folder")
    folder = path if (path / CONFIG).exists() else newest_checkpoint(path)
    if folder is None:
        raise CheckpointError(
            f"{path}: holds neither a checkpoint ({CONFIG}, {WEIGHTS}) nor a run's checkpoints/step-*"
        )
    place = folder / CONFIG
    try:
        description = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place}: damaged or unreadable ({_first_line(error)})") from None
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise CheckpointError(f"{place}: is not auricle's ('format' is missing)")
    if description["format"] > FORMAT:
        version = description.get("auricle", "unknown")
        raise CheckpointError(f"{place}: written by a newer auricle ({version}); upgrade auricle to read it")
    for key, kind in (("family", str), ("config", dict)):
        if not isinstance(description.get(key), kind):
            raise CheckpointError(f"{place}: '{key}' is missing")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing")
    return folder, description


def _build(family: str, values: Mapping[str, Any], place: str | Path) -> Encoder:
    """A family's encoder with fresh weights. Raises `CheckpointError` when the config does not fit."""
    if family not in FAMILIES:
        raise CheckpointError(f"{place}: {unknown('encoder family', family, FAMILIES)}")
    module, attribute = FAMILIES[family].split(":")
    kind = getattr(importlib.import_module(module), attribute)
    config: type[Config] = get_type_hints(kind)["config"]
    try:
        encoder: Encoder = kind(config.parse(values, str(place)))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    return encoder


def _gpus() -> range:
    return range(torch.cuda.device_count())


def _first_line(error: BaseException, line: int = 0) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[line].strip()
