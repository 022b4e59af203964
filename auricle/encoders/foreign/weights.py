"""Files of `torch.save`, of which tensors and plain values alone are believed, and encoders filled from them."""

from __future__ import annotations

import argparse
import importlib
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auricle.encoders.base import Encoder
from auricle.encoders.foreign import PROJECTS
from auricle.errors import CheckpointError, ConfigError

ZIP, PICKLE = b"PK\x03\x04", b"\x80\x02"
"""How files of `torch.save` begin, since PyTorch 1.6 and before."""
DAMAGE = (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError)
"""What unpickling a damaged file may raise."""


def load_foreign(project: str, path: Path) -> Encoder:
    """The encoder in a checkpoint of one of `PROJECTS`.

    Raises `CheckpointError` for a file that is missing, damaged, of another layout, or needs code to be read.
    """
    module = importlib.import_module(PROJECTS[project])
    try:
        encoder: Encoder = module.convert(read(path, module.KEEP), str(path))
    except ConfigError as error:  # a size or front end that the encoder's own config refuses
        raise CheckpointError(str(error)) from None
    except (TypeError, ValueError, ArithmeticError) as error:  # options of a kind that the layout does not have
        raise CheckpointError(f"{path}: holds options that cannot be understood ({error})") from None
    return encoder


def read(path: Path, keep: Sequence[str]) -> dict[str, Any]:
    """The mapping in a file of `torch.save`, whose tensors stay on disk until they are used.

    No code in it is run: of classes only `argparse.Namespace`, a bag of plain values, is let in. A file that needs
    others is refused with the command that saves its entries `keep` alone. Raises `CheckpointError`.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start != ZIP and start[:2] != PICKLE:
            raise CheckpointError(f"{path}: not a checkpoint (not written by torch.save)")
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            entries = torch.load(path, map_location="cpu", weights_only=True, mmap=start == ZIP)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, struct.error, *DAMAGE) as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(f"{path}: {_needs(found[1], path, keep)}") from None
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({reason[0].split('. ')[0]})") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: holds a {type(entries).__name__}; expected a mapping of names")
    return entries


def _needs(name: str, path: Path, keep: Sequence[str]) -> str:
    return (
        f"holds objects of {name}, which only running its project's code could read; where that code is installed, "
        f"save the rest: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 python -c \"import torch; d = torch.load('{path}', 'cpu'); "
        f"torch.save({{k: d[k] for k in {list(keep)} if k in d}}, 'plain.pt')\""
    )


def state_dict(entries: Mapping[str, Any], key: str, place: str) -> dict[str, Tensor]:
    """The weights under `key`. Raises `CheckpointError` when there are none."""
    if key not in entries:
        raise CheckpointError(f"{place}: lacks '{key}', where the weights should be; it has {_some(entries)}")
    weights = entries[key]
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{place}: '{key}' is a {type(weights).__name__}; expected weights by name")
    for name, value in weights.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CheckpointError(f"{place}: '{name}' is a {type(value).__name__}; expected a weight")
    return dict(weights)


def weight(weights: Mapping[str, Tensor], name: str, place: str, dims: int | None = None) -> Tensor:
    """The weight of this name, with so many dimensions. Raises `CheckpointError`."""
    if name not in weights:
        raise CheckpointError(f"{place}: lacks weight {name}; it has {_some(weights)}")
    if dims is not None and weights[name].dim() != dims:
        raise CheckpointError(f"{place}: weight {name} has shape {tuple(weights[name].shape)}; expected {dims} axes")
    return weights[name]


def count(weights: Mapping[str, Tensor], prefix: str, place: str) -> int:
    """How many layers there are, whose number follows `prefix`. Raises `CheckpointError` when there are none."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)(\.|$)")
    found = {int(match[1]) for name in weights if (match := pattern.match(name))}
    if missing := set(range(len(found) or 1)) - found:
        raise CheckpointError(f"{place}: lacks weights {prefix}{min(missing)}; it has {_some(weights)}")
    return len(found)


def entry(entries: Mapping[str, Any], key: str, place: str) -> Mapping[str, Any]:
    """The options under `key`, none when it is missing. Raises `CheckpointError` for anything but a mapping."""
    value = entries.get(key)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if not isinstance(value, Mapping | None):
        raise CheckpointError(f"{place}: '{key}' is a {type(value).__name__}; expected options by name")
    return value or {}


def per_layer(ours: str, theirs: str, layers: int, modules: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """Names of the modules of one layer, ours → theirs, as those of all: `{ours}.{number}.{module}` and so on."""
    return {
        f"{ours}.{layer}.{mine}": f"{theirs}.{layer}.{name}"
        if isinstance(name, str)
        else [f"{theirs}.{layer}.{part}" for part in name]
        for layer in range(layers)
        for mine, name in modules.items()
    }


def pairs(modules: Mapping[str, str | Sequence[str]]) -> dict[str, str | Sequence[str]]:
    """Names of modules, ours → theirs, as the names of their weights and biases."""
    return {
        f"{ours}.{kind}": f"{theirs}.{kind}" if isinstance(theirs, str) else [f"{name}.{kind}" for name in theirs]
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


def fill(
    encoder: Encoder,
    weights: Mapping[str, Tensor],
    names: Mapping[str, str | Sequence[str]],
    place: str,
    ignored: str = "(?!)",
) -> None:
    """Give `encoder` its weights: `names`, ours → theirs, several of theirs lying behind each other along axis 0.

    Every weight of theirs must be used, or match `ignored` at its start. Raises `CheckpointError`.
    """
    state, used = {}, set[str]()
    for ours, value in encoder.state_dict().items():
        found = names[ours]
        theirs = [found] if isinstance(found, str) else found
        shape = (value.shape[0] // len(theirs), *value.shape[1:]) if value.dim() else ()
        for name in theirs:
            if (has := tuple(weight(weights, name, place).shape)) != shape:
                raise CheckpointError(f"{place}: weight {name} has shape {has}; expected {shape}")
        used.update(theirs)
        state[ours] = weights[theirs[0]] if len(theirs) == 1 else torch.cat([weights[name] for name in theirs])
    encoder.load_state_dict(state)
    if unknown := sorted(name for name in weights.keys() - used if not re.match(ignored, name)):
        raise CheckpointError(
            f"{place}: holds weight {unknown[0]}, of which this layout knows nothing ({len(unknown)} in all)"
        )


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(map(str, list(names)[:4]))
    return f"{shown}, ..." if len(names) > 4 else shown or "nothing"
