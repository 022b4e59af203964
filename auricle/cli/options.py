"""What the verbs share: parsing of options, and of values that mean several things."""

from __future__ import annotations

from typing import Any

import tyro

from auricle.errors import ConfigError

Args = list[str]


def parse(kind: type[Any], verb: str, args: Args) -> Any:
    """The options of `auricle VERB` as an object of this dataclass; ends the process on a mistake, and after --help."""
    return tyro.cli(kind, prog=f"auricle {verb}", args=args)


def take(args: Args, option: str) -> tuple[str | None, Args]:
    """The value of `--option VALUE` or `--option=VALUE`, and the arguments without it."""
    for place, word in enumerate(args):
        if word == option:
            if place + 1 == len(args):
                raise ConfigError(f"{option}: expected a file name after it")
            return args[place + 1], args[:place] + args[place + 2 :]
        if word.startswith(f"{option}="):
            return word.partition("=")[2], args[:place] + args[place + 1 :]
    return None, args


def device(name: str) -> str:
    """A torch device's name; `auto` is the GPU if there is one."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def layers(text: str) -> str | list[int]:
    """A word or a name as it is, else numbers split at commas."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        return text
