"""What the verbs share: parsing of options, and of values that mean several things."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import tyro

from auricle.errors import ConfigError

Args = list[str]

_only_parse = ContextVar("_only_parse", default=False)


class _Parsed(Exception):
    """Ends a verb once its options are known."""

    def __init__(self, options: Any) -> None:
        self.options = options


def parse(kind: type[Any], verb: str, args: Args) -> Any:
    """The options of `auricle VERB` as an object of this dataclass; ends the process on a mistake, and after --help."""
    options = tyro.cli(kind, prog=f"auricle {verb}", args=args)
    if _only_parse.get():
        raise _Parsed(options)
    return options


def parsed(verb: Callable[[Args], Any], args: Args) -> Any:
    """What a verb parses its arguments to, without doing its work. Raises `ConfigError` for a mistake in them."""
    token, said = _only_parse.set(True), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            verb(list(args))
    except _Parsed as done:
        return done.options
    except SystemExit:
        words = (word for word in said.getvalue().split() if any(letter.isalnum() for letter in word))
        raise ConfigError(" ".join(words)) from None
    finally:
        _only_parse.reset(token)
    raise ConfigError(f"'{' '.join(args)}' explains, and does nothing")


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
