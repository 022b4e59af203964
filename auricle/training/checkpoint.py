"""Checkpoints: a folder a step, written whole under another name, fsynced and renamed once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor

import auricle
from auricle.encoders.checkpoint import save as save_encoder
from auricle.errors import CheckpointError
from auricle.methods.base import Method
from auricle.training.parallel import gathered, like

FORMAT = 1
ENCODER, OBJECTIVE, OPTIMIZER, STATE = (
    "model.safetensors",
    "objective.safetensors",
    "optimizer.safetensors",
    "state.json",
)


def save(
    checkpoints: Path,
    step: int,
    method: Method,
    moments: dict[str, Tensor],
    counters: dict[str, Tensor],
    state: dict[str, Any],
    about: dict[str, Any],
    keep: int,
) -> Path:
    """Write `checkpoints/step-XXXXXXXX/`; afterwards only the `keep` newest remain.

    `moments` are the optimizer's, by the function of that name; `counters` (tensors) and `state` (plain values) are
    the loop's; `about` goes into the encoder's `config.json`. A reader never sees half a checkpoint, and an older one
    goes only when the new one is safe. Raises `OSError` (disk full, no permission), leaving the older ones.
    """
    folder = checkpoints / f"step-{step:08d}"
    if _is_complete(folder):
        return folder
    clean(checkpoints)
    unfinished = checkpoints / f".{folder.name}.unfinished"
    unfinished.mkdir(parents=True)
    try:
        save_encoder(method.encoder, unfinished, step=step, **about)
        objective = {name: value for name, value in method.state_dict().items() if not name.startswith("encoder.")}
        save_file(_plain(objective), unfinished / OBJECTIVE)
        save_file(_plain(moments | counters), unfinished / OPTIMIZER)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {unfinished}: {error}") from None
    sizes = {path.name: path.stat().st_size for path in unfinished.iterdir()}
    record = {"format": FORMAT, "auricle": auricle.__version__, "step": step, **state, "files": sizes}
    (unfinished / STATE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in [*unfinished.iterdir(), unfinished]:
        fsync(path)
    if folder.exists():  # damaged, or it would have been complete above
        shutil.rmtree(folder)
    unfinished.rename(folder)
    fsync(checkpoints)
    for old in complete(checkpoints)[:-keep]:
        doomed = old.rename(checkpoints / f".{old.name}.unfinished")  # killed half-way, it is not half a checkpoint
        shutil.rmtree(doomed)
    return folder


def newest(checkpoints: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    return next(reversed(complete(checkpoints)), None)


def complete(checkpoints: Path) -> list[Path]:
    """Checkpoints that hold every file they were written with, oldest first."""
    found = [path for path in checkpoints.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(filter(_is_complete, found), key=lambda path: int(path.name.removeprefix("step-")))


def read_state(folder: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint. Raises `CheckpointError` when it is newer than this package."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{folder}: written by a newer auricle ({state['auricle']}); upgrade auricle to resume it"
        )
    return state


def moments(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, whole, by weight and key. Every process of a sharded run takes part."""
    return {
        f"{name} {key}": gathered(value)
        for name, weight in method.named_parameters()
        if weight in optimizer.state
        for key, value in optimizer.state[weight].items()
    }


def load_weights(folder: Path, method: Method) -> None:
    """Put a checkpoint's weights into `method`, bit for bit.

    Raises `CheckpointError` when a file is damaged or does not fit.
    """
    with _damage_told(folder):
        load_model(method.encoder, folder / ENCODER)
        names = {name for name in method.state_dict() if not name.startswith("encoder.")}
        objective = load_file(folder / OBJECTIVE)
        if names != objective.keys():
            raise CheckpointError(f"{folder / OBJECTIVE}: lacks or adds {sorted(names ^ objective.keys())[0]}")
        method.load_state_dict(objective, strict=False)


def load_moments(folder: Path, method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put a checkpoint's moments into `optimizer`, bit for bit; returns the counters. Raises as `load_weights` does."""
    with _damage_told(folder):
        stored = load_file(folder / OPTIMIZER)
    weights = dict(method.named_parameters())
    counters = {name: stored.pop(name) for name in list(stored) if " " not in name}
    for name, value in stored.items():
        weight_name, key = name.split(" ")
        optimizer.state[weights[weight_name]][key] = like(value, weights[weight_name])
    return counters


def clean(checkpoints: Path) -> None:
    """Delete what an interrupted save has left."""
    for folder in checkpoints.glob(".step-*.unfinished"):
        shutil.rmtree(folder)


def fsync(path: Path) -> None:
    """Have a file or a folder's entries on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / STATE).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: load_state_dict, on another shape or name
        raise CheckpointError(f"{folder}: damaged, or of another config ({str(error).splitlines()[0]})") from None


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each with memory of its own: safetensors refuses weights that share it."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
