"""Continued pre-training: a run whose encoder begins with the weights of another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from auricle.config import differences
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import load
from auricle.errors import ConfigError
from auricle.methods.base import RunConfig


def given(run: RunConfig) -> Encoder | None:
    """The encoder with whose weights `run` begins (`train.init`), if it names one.

    Raises `ConfigError` when it is not built as the run's is (only dropouts may differ), and as `auricle.load` does.
    """
    name = run.train.init
    if name is None:
        return None
    encoder = load(name)
    if type(encoder.config) is not type(run.encoder):
        raise ConfigError(
            f"train.init: {name} is an encoder of family '{encoder.family}', not the one that method '{run.method}' "
            "trains; take a preset of another method (auricle list presets)"
        )
    differing = differences(run.encoder.model_dump(mode="json"), encoder.config.model_dump(mode="json"))
    differing = [difference for difference in differing if "dropout" not in difference[0]]
    if differing:
        place, ours, theirs = differing[0]
        mend = " ".join(_option(place, theirs) for place, _, theirs in differing)
        raise ConfigError(
            f"encoder.{place}: {ours} here, but {theirs} in {name}; to begin with its weights add: {mend}"
        )
    return encoder


@contextlib.contextmanager
def given_weights(run: RunConfig, encoder: Encoder) -> Iterator[None]:
    """Inside and afterwards, `encoder` has the weights that `train.init` names, if it does.

    Statistics of the data that are measured for the encoder inside are replaced by those its weights were learned with.
    """
    begin = given(run)
    if begin is None:
        yield
        return
    encoder.load_state_dict(begin.state_dict())
    yield
    encoder.load_state_dict(begin.state_dict())


def _option(place: str, value: Any) -> str:
    """What to add on the command line for this value of the encoder's config."""
    section, _, name = f"encoder.{place}".replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{section}.{'' if value else 'no-'}{name}"
    words = " ".join(str(each) for each in value) if isinstance(value, list) else str(value)
    return f"--{section}.{name} {words}"
