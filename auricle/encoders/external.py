"""Anybody's Python callable as an encoder: `module:attribute`.

The attribute is an `Encoder` (instance, or class that needs no arguments), a plain object, or a class or function that
makes one when called without arguments. A plain object has

- `sample_rate` (Hz) and `hop` (samples between frames);
- `__call__(waveforms)` from (B, S) float32 in [-1, 1] to frames (B, T, D), or a list of them, one a layer. With a
  parameter named `lengths` it is given the clips' true samples (B,) too. It may return `Frames` instead, to state
  each clip's frame count;

and, where the defaults do not fit, `offset` (samples from the clip's start to the centre of frame 0; half a hop),
`min_samples` (the shortest clip it takes; 1), `pads_safely` (False: it is only fed clips of equal length),
`fingerprint` (a string; else made from its module's source, weights and numbers).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from auricle.encoders.base import Encoder, Frames, hash_tensors
from auricle.errors import ConfigError, unknown


def load_callable(name: str) -> Encoder:
    """The encoder behind `module:attribute`; modules in the working directory are found too. Raises `ConfigError`."""
    module_name, _, attribute = name.partition(":")
    thing: Any = import_named(module_name, name)
    for step in attribute.split("."):
        if not hasattr(thing, step):
            public = [known for known in vars(thing) if not known.startswith("_")]
            raise ConfigError(f"{name}: {unknown('attribute', step, public)}")
        thing = getattr(thing, step)
    return wrap(thing, name)


def import_named(module: str, name: str) -> ModuleType:
    """A module, of the working directory too. Raises `ConfigError`, naming the encoder `name`."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{name}: module {module} cannot be imported ({error})") from None


def wrap(thing: Any, name: str) -> Encoder:
    """An `Encoder` from an encoder, a plain object, or what makes one. Raises `ConfigError` saying what is missing."""
    if isinstance(thing, type) or (callable(thing) and not hasattr(thing, "sample_rate")):
        try:
            inspect.signature(thing).bind()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}: must be callable without arguments ({error}); name a factory instead") from None
        thing = thing()
    return thing if isinstance(thing, Encoder) else External(thing, name)


class External(Encoder):
    """A plain object (see the module's description) behind the encoder's contract.

    One second of faint noise is encoded at once, to learn the layers' widths and to report mistakes before any work.
    """

    family = "external"

    def __init__(self, thing: Any, name: str) -> None:
        super().__init__()
        self.name = name
        self.thing = thing  # registers itself when it is a module; a plain object's modules are registered below
        if not callable(thing):
            raise ConfigError(
                f"{name}: {type(thing).__name__} is not callable; give it __call__(waveforms) -> (B, T, D)"
            )
        self.sample_rate = self._positive("sample_rate", "Hz, such as 16000")
        self.hop = self._positive("hop", "samples between frames, such as 320")
        self.min_samples = (
            self._positive("min_samples", "samples of the shortest clip") if hasattr(thing, "min_samples") else 1
        )
        self.offset = float(getattr(thing, "offset", self.hop / 2))
        self.pads_safely = bool(getattr(thing, "pads_safely", False))
        self.parts = nn.ModuleList(part for part in _attributes(thing).values() if isinstance(part, nn.Module))
        call = thing.forward if isinstance(thing, nn.Module) else thing
        self._takes_lengths = "lengths" in inspect.signature(call).parameters
        self.eval()
        noise = 0.01 * torch.randn(
            1, max(self.sample_rate, self.min_samples), generator=torch.Generator().manual_seed(0)
        )
        with torch.inference_mode():
            try:
                states = self(noise.to(self.device), torch.tensor([noise.shape[1]], device=self.device)).hidden_states
            except TypeError as error:  # of its arguments, most likely
                given = "waveforms, lengths=lengths" if self._takes_lengths else "waveforms"
                raise ConfigError(f"{name}: called with ({given}) it raised TypeError: {error}") from error
        self.dims = tuple(state.shape[-1] for state in states)

    def forward(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Frames:
        """Frames of waveforms (B, S); unless the object says otherwise, all `lengths` (B,) must equal S."""
        if waveforms.shape[1] < self.min_samples:
            empty = [waveforms.new_zeros(len(waveforms), 0, dim) for dim in self.dims]
            return Frames([empty[layer] for layer in _order(layers, empty)], torch.zeros_like(lengths))
        out = self.thing(waveforms, lengths=lengths) if self._takes_lengths else self.thing(waveforms)
        if isinstance(out, Frames):
            states, counts = out.hidden_states, out.lengths
        else:
            states = list(out) if isinstance(out, list | tuple) else [out]
            if bool((lengths != waveforms.shape[1]).any()):
                raise ConfigError(
                    f"{self.name}: given clips of unequal length, it must return Frames(hidden_states, lengths) "
                    f"with each clip's frame count; or leave pads_safely False"
                )
            counts = None
        for state in states:
            if not isinstance(state, Tensor) or state.dim() != 3 or len(state) != len(waveforms):
                found = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
                raise ConfigError(
                    f"{self.name}: for waveforms {tuple(waveforms.shape)} it returned {found}; "
                    f"expected a tensor ({len(waveforms)}, T, D), or a list of them"
                )
        if not states:
            raise ConfigError(f"{self.name}: returned an empty list; expected at least one tensor (B, T, D)")
        if counts is None:
            counts = torch.full_like(lengths, states[0].shape[1])
        return Frames([states[layer] for layer in _order(layers, states)], counts)

    def fingerprint(self) -> str:
        """The object's own `fingerprint`, or sixteen hex digits over its module's source, weights, arrays and numbers.

        Raises `ConfigError` when there is no source to read.
        """
        if isinstance(own := getattr(self.thing, "fingerprint", None), str):
            return own
        kind = self.thing if inspect.isfunction(self.thing) else type(self.thing)
        try:
            source = inspect.getsource(inspect.getmodule(kind) or kind)
        except (OSError, TypeError):
            raise ConfigError(
                f"{self.name}: its source cannot be read; give it a string attribute `fingerprint`"
            ) from None
        digest = hashlib.sha256(f"{kind.__qualname__}\n{source}".encode())
        attributes = {key: value for key, value in _attributes(self.thing).items() if key != "training"}
        arrays = {key: torch.from_numpy(value) for key, value in attributes.items() if _is_numeric(value)}
        hash_tensors(digest, arrays | {key: value for key, value in attributes.items() if isinstance(value, Tensor)})
        hash_tensors(digest, self.state_dict())
        numbers = {key: value for key, value in sorted(attributes.items()) if isinstance(value, int | float)}
        digest.update(repr(numbers).encode())
        return digest.hexdigest()[:16]

    def _positive(self, attribute: str, unit: str) -> int:
        value = getattr(self.thing, attribute, None)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"{self.name}: needs a positive integer attribute `{attribute}` ({unit}), found {value!r}"
            )
        return value


def _attributes(thing: Any) -> dict[str, Any]:
    return dict(getattr(thing, "__dict__", {}))


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"


def _order(layers: Sequence[int] | None, states: Sequence[Tensor]) -> Sequence[int]:
    return range(len(states)) if layers is None else layers
