"""`evaluate --recipe`: a published row, checked without doing anything, or made step by step."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

import auricle
from auricle.cli.options import Args, device, parse
from auricle.cli.recipe_plan import Plan, told
from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.recipes import load_recipe

log = logging.getLogger("auricle")

FORMAT = 1
LEDGER = "steps.json"
"""In the output folder: which steps were begun, and which are done."""
INTERRUPTED = 130
"""Exit code of a command that was interrupted, and has saved its work."""


@dataclasses.dataclass
class EvaluateRecipe:
    """Make a published row: pre-train, fine-tune and evaluate as its recipe says. A second start does what is left."""

    recipe: str
    """A row's name (auricle list papers), or a YAML file like theirs."""
    corpora: Path
    """Folder of the corpora, each in a folder of its name (auricle list corpora)."""
    encoders: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Evaluate these instead of the recipe's own encoders, which are then not pre-trained."""
    output: Path = Path("results")
    """Folder for runs, which recipes share, and for the recipe's results."""
    dry_run: bool = False
    """Do nothing but check commands and corpora, and estimate time on this machine and memory."""
    device: str = "auto"
    """Of the dry run's timing: auto, cpu, cuda:0, ..."""


def evaluate_recipe(args: Args) -> int:
    """`auricle evaluate --recipe PAPER/ROW --corpora ROOT [--dry-run]`. Returns the exit code."""
    options = parse(EvaluateRecipe, "evaluate", args)
    plan = run_recipe(
        options.recipe,
        corpora=options.corpora,
        encoders=options.encoders,
        output=options.output,
        dry_run=options.dry_run,
        device=device(options.device),
    )
    print(plan if options.dry_run else plan.results())
    if options.dry_run and plan.problems:
        raise EvaluationError(plan.complaint)
    return 0


def run_recipe(
    name: str | Path,
    *,
    corpora: Path | str,
    encoders: Sequence[str] = (),
    output: Path | str = "results",
    dry_run: bool = False,
    device: str = "cpu",
) -> Plan:
    """Make a published row (a name of `recipe_names()`, or a YAML file): its commands, one after another.

    What pre-training makes lies in `output/runs`, which recipes share, the rest in `output/<paper>/<row>`. Steps that
    are done are not done again, interrupted ones go on. With `encoders` of one's own nothing is pre-trained. A dry run
    writes nothing there: it checks that every command can be parsed and every corpus is there, and estimates.

    Raises `ConfigError` for a recipe that is wrong, and for an output folder in which another command has begun a run;
    before the first step, `EvaluationError` for all that is missing; then for a step that fails. Passes on a
    `KeyboardInterrupt`, once the step has saved its work.
    """
    recipe = load_recipe(name)
    plan = Plan(recipe, Path(corpora), Path(output), tuple(encoders))
    if dry_run:
        plan.look(plan.commands, device)
        return plan
    ledger = Ledger(Path(output) / LEDGER)
    plan.look([words for words in plan.commands if not ledger.is_done(words)])
    if plan.problems:
        raise EvaluationError(plan.complaint)
    for number, words in enumerate(plan.commands, 1):
        about = f"{recipe.name}, step {number} of {len(plan.commands)}: {told(words)}"
        if ledger.is_done(words):
            log.info("%s (done already)", about)
            continue
        log.info("%s", about)
        ledger.begin(words)
        Path(_output(words)).parent.mkdir(parents=True, exist_ok=True)
        code = _run(_resumed(words))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise EvaluationError(
                f"{about}: failed (exit code {code}); mend it, and the same command goes on from here"
            )
        ledger.finish(words)
    return plan


class Ledger:
    """Which steps were begun in an output folder, and which are done; recipes share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_done(self, words: list[str]) -> bool:
        """Whether this very command has ended well, and what it made is there."""
        return self._read().get(told(words)) == "done" and Path(_output(words)).exists()

    def begin(self, words: list[str]) -> None:
        """Raises `ConfigError` where another command has begun what this one would go on with."""
        steps, output = self._read(), _output(words)
        for begun in steps:
            other = shlex.split(begun)[1:]
            if words[0] in ("pretrain", "finetune") and _output(other) == output and other != words:
                raise ConfigError(f"{output}: was begun by '{begun}'; choose another output folder, or remove it")
        self._write(steps | {told(words): "begun"})

    def finish(self, words: list[str]) -> None:
        """The command has ended well."""
        self._write(self._read() | {told(words): "done"})

    def _read(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            if values["format"] > FORMAT:
                raise ConfigError(f"{self.path}: written by a newer auricle ({values['auricle']}); upgrade auricle")
            return dict(values["steps"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}: is damaged ({error!r}); remove it, and finished steps run again") from None

    def _write(self, steps: dict[str, str]) -> None:
        from auricle.embedding.store import write_atomic

        values = {"format": FORMAT, "auricle": auricle.__version__, "steps": steps}
        write_atomic(self.path, lambda file: file.write(json.dumps(values, indent=2).encode()))


def _run(words: list[str]) -> int:
    """The exit code of a command, in a process of its own, which gives back all memory."""
    process = subprocess.Popen([sys.executable, "-m", "auricle", *words])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told the command too: it saves its work, and ends
            continue


def _resumed(words: list[str]) -> list[str]:
    """The command, or the one that goes on with the run that it has begun."""
    begun = {"pretrain": "config.yaml", "finetune": "finetune.yaml"}.get(words[0])
    folder = _output(words)
    return [words[0], "--resume", folder] if begun and (Path(folder) / begun).exists() else words


def _output(words: list[str]) -> str:
    return words[words.index("--output") + 1] if "--output" in words else ""
