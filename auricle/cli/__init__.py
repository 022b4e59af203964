"""The command line: a thin function a verb. Heavy rooms are imported inside the verb that needs them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

import auricle
from auricle.cli.learn import demo, finetune, pretrain
from auricle.cli.names import check, list_names, prepare
from auricle.cli.options import Args
from auricle.cli.use import embed, evaluate, export, predict, report
from auricle.errors import AuricleError, ConfigError, unknown

VERBS: dict[str, Callable[[Args], int | None]] = {
    "demo": demo,
    "pretrain": pretrain,
    "embed": embed,
    "evaluate": evaluate,
    "finetune": finetune,
    "predict": predict,
    "export": export,
    "report": report,
    "list": list_names,
    "check": check,
    "prepare": prepare,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0 done, 2 the user's mistake, 3 too many skips, 130 interrupted and saved."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if args[0] == "--version":
        print(f"auricle {auricle.__version__}")
        return 0
    _log_to_stderr()
    try:
        if args[0] not in VERBS:
            raise ConfigError(unknown("command", args[0], VERBS))
        return VERBS[args[0]](args[1:]) or 0
    except AuricleError as error:
        print(f"auricle: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("auricle: interrupted", file=sys.stderr)
        return 130


class _Lines(logging.Handler):
    """Log records as lines of stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _log_to_stderr() -> None:
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("auricle")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _usage() -> str:
    verbs = "\n".join(f"  {name:9} {(verb.__doc__ or '').strip()}" for name, verb in VERBS.items())
    return f"""usage: auricle COMMAND [OPTIONS]     (auricle COMMAND --help explains each)

{verbs}"""
