"""What a recipe's commands read, make and take, known without running them."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from auricle.cli.options import parsed
from auricle.errors import AuricleError, ConfigError, ManifestError
from auricle.evaluation.recipes import Found, Recipe, Recordings, Speed, look, measure

if TYPE_CHECKING:
    from auricle.data.manifest import Manifest
    from auricle.encoders.base import Encoder
    from auricle.methods.base import RunConfig

TRAINING = 3.0
"""Time of a training step in forward passes."""


@dataclass
class Step:
    """What a command takes, as far as it can be told beforehand."""

    words: list[str]
    seconds: float | None = None
    """On this machine; None: not estimated."""
    memory: int = 0
    """Bytes of embeddings and attention."""
    problem: str = ""

    def __str__(self) -> str:
        parts = ["" if self.seconds is None else _time(self.seconds), _size(self.memory) if self.memory else ""]
        about = self.problem or ", ".join(part for part in parts if part)
        return told(self.words) + (f"\n      {about}" if about else "")


@dataclass
class Plan:
    """A recipe's commands, and what is known of them after `look`."""

    recipe: Recipe
    root: Path
    output: Path
    encoders: tuple[str, ...] = ()
    found: dict[str, Found] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    timed: bool = False

    @property
    def folder(self) -> Path:
        """Of the recipe's own results."""
        name = self.recipe.name
        return self.output / (Path(name).stem if name.endswith((".yaml", ".yml")) else name)

    @cached_property
    def commands(self) -> list[list[str]]:
        """Arguments of `auricle`, a list a step."""
        places = {"corpora": self.root, "runs": self.output / "runs", "output": self.folder}
        return self.recipe.steps(**places, encoders=self.encoders)

    @property
    def problems(self) -> list[str]:
        """Everything in the way, a line each."""
        lines = [found.problem for found in self.found.values()] + [step.problem for step in self.steps]
        return list(dict.fromkeys(line for line in lines if line))

    @property
    def complaint(self) -> str:
        """The same in one line: a single problem whole, of several recordings their names."""
        missing = [found.label for found in self.found.values() if found.problem]
        if len(self.problems) == 1 or not missing:
            return f"{self.recipe.name}: {'; '.join(self.problems)}"
        others = [step.problem for step in self.steps if step.problem]
        text = "; ".join([f"cannot use {', '.join(missing)} in {self.root}", *dict.fromkeys(others)])
        return f"{self.recipe.name}: {text}; --dry-run says where to get them"

    def look(self, commands: Iterable[list[str]], device: str | None = None) -> None:
        """Parse the commands, find what they read, and with a `device` estimate what they take on it.

        Raises `ConfigError` where a command cannot be parsed, or reads what the recipe does not list.
        """
        self.timed = device is not None
        with tempfile.TemporaryDirectory(prefix="auricle-recipe-") as folder:
            prospect = _Prospect(self, Path(folder), device)
            self.steps = [prospect.step(words) for words in commands]

    def results(self) -> str:
        """The scores in the recipe's folder as a table, and what was reported."""
        from auricle.evaluation.results import read_results, table

        return f"{table(read_results(self.folder))}\n\n{self._reported()}"

    def __str__(self) -> str:
        found = "\n".join(f"  {found}" for found in self.found.values()) or "  none"
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(self.steps, 1))
        known = [step.seconds for step in self.steps if step.seconds is not None and not step.problem]
        whole = known and not self.problems
        total = f"\n  together about {_time(sum(known))} on this machine, without probes" if whole else ""
        return (
            f"{self.recipe.name}: {self.recipe.row}\n{self.recipe.paper}\n\n{self._reported()}\n"
            f"cost: {self.recipe.cost}\n\nrecordings in {self.root}\n{found}\n\n"
            f"steps, with the networks' time and memory\n{steps}{total}"
        )

    def _reported(self) -> str:
        numbers = self.recipe.expected
        lines = ["reported: no number was verified"] if numbers is None else [f"reported: {one}" for one in numbers]
        return "\n".join(lines + ([f"note: {self.recipe.note}"] if self.recipe.note else []))


class _Prospect:
    """Walks through commands that are not run: what each would read, and what later ones would find of its making."""

    def __init__(self, plan: Plan, folder: Path, device: str | None) -> None:
        self.plan, self.folder, self.device = plan, folder, device
        self.manifests: dict[str, Found] = {}
        """By the path that `auricle prepare` would write."""
        self.runs: dict[str, RunConfig] = {}
        """By the folder that `auricle pretrain` would make."""
        self._built: dict[str, Encoder] = {}
        self._speeds: dict[str, Speed] = {}

    def step(self, words: list[str]) -> Step:
        """What is known of a command. Raises `ConfigError`."""
        from auricle.cli import VERBS

        try:
            options = parsed(VERBS[words[0]], self._stand_ins(words[1:]))
        except AuricleError as error:
            raise ConfigError(f"{self.plan.recipe.name}: '{told(words)}': {error}") from None
        step = Step(words)
        try:
            getattr(self, f"_{words[0]}")(options, step)
        except AuricleError as error:
            step.problem = str(error)
        return step

    # ------------------------------------------------------------------------------------------------- the verbs

    def _prepare(self, options: Any, step: Step) -> None:
        root, given = str(self.plan.root), _reader_options(options)
        given = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        given = {
            key: value.replace(root, "{root}") if isinstance(value, str) else value for key, value in given.items()
        }
        self.manifests[str(options.output)] = self._corpus(options.corpus, given, official=True)

    def _pretrain(self, options: Any, step: Step) -> None:
        self.runs[str(options.output)] = run = options.run
        hours = self._hours(map(self._data, map(str, options.data)))
        if self.device is not None and hours:
            seconds = run.train.steps * run.train.accumulate * run.data.batch_seconds
            step.seconds = TRAINING * seconds * self._speed(str(options.output)).seconds

    def _finetune(self, options: Any, step: Step) -> None:
        found = [self._data(str(path)) for path in options.data]
        if self.device is None or not self._hours(found):
            self._check_encoders([options.encoder])
        else:
            speed = self._speed(options.encoder)
            heard = sum(float(one.durations.clip(max=options.config.crop_s).sum()) for one in _manifests(found))
            step.seconds = TRAINING * options.config.epochs * heard * speed.seconds

    def _evaluate(self, options: Any, step: Step) -> None:
        from auricle.evaluation.answers import CHUNK_FRAMES, DEV_FRAMES
        from auricle.evaluation.tasks import suite_tasks, task
        from auricle.evaluation.tasks.verification import SIRS

        tasks = [*map(task, options.tasks), *(suite_tasks(options.suite) if options.suite else [])]
        repeats, frames = 1, max((task.frames for task in tasks if task.level == "frame"), default=0)
        found: dict[str, Found] = {}
        if options.data:
            found = {str(path): self._data(str(path), options.trials) for path in options.data}
            repeats += len(SIRS) * any("mix" in task.name for task in tasks)
        else:
            for record in tasks:
                one = self._corpus(record.corpus, dict(record.options))
                found[one.label] = one
                wanted = (record.target, record.column, record.unit, record.group, record.speaker, *record.where)
                _check_columns(one, wanted, f"task {record.name}")
        if options.target:
            for one in found.values():
                _check_columns(one, (options.target, options.group, options.unit), one.label)
        names = options.encoders
        if self.device is None or not self._hours(found.values()):
            self._check_encoders(names)
            return
        manifests = _manifests(found.values())
        seconds = repeats * sum(float(manifest.durations.sum()) for manifest in manifests)
        vectors = max(map(len, manifests))
        if frames:
            vectors = max(vectors, frames + DEV_FRAMES + CHUNK_FRAMES)
        speeds = [self._speed(name) for name in names]
        step.seconds = seconds * sum(speed.seconds for speed in speeds)
        step.memory = max(speed.memory(vectors, max(one.longest_s for one in found.values())) for speed in speeds)

    # --------------------------------------------------------------------------------------------- what they need

    def _corpus(self, corpus: str, options: dict[str, Any], official: bool = False) -> Found:
        key = _key(corpus, options)
        wanted = next((one for one in self.plan.recipe.corpora if _key(one.corpus, one.options) == key), None)
        if wanted is None:
            raise ConfigError(f"{self.plan.recipe.name}: reads corpus {corpus} {options or ''}, and does not list it")
        return self._look(wanted, official)

    def _data(self, path: str, trials: str | None = None) -> Found:
        from auricle.data.manifest import Manifest
        from auricle.evaluation.verification.voxceleb import LISTS, read_voxceleb

        if path in self.manifests:
            return self.manifests[path]
        if path.startswith(str(self.plan.output / "runs")) and Path(path).is_file():  # of a step that is done
            return Found(path, Manifest.open(path))
        for wanted in self.plan.recipe.corpora:
            if wanted.file and str(self.plan.root / wanted.file) == path:
                if trials not in LISTS or not Path(path).is_dir():
                    return self._look(wanted)
                try:
                    found = Found(f"{wanted} ({trials})", read_voxceleb(path, str(trials))[0])
                except AuricleError as error:
                    found = Found(f"{wanted} ({trials})", problem=str(error))
                self.plan.found[found.label] = found
                return found
        raise ConfigError(f"{self.plan.recipe.name}: reads {path}, and does not list it")

    def _look(self, wanted: Recordings, official: bool = False) -> Found:
        label = str(wanted)
        if label not in self.plan.found:
            self.plan.found[label] = look(wanted, self.plan.root, official=official)
        return self.plan.found[label]

    def _hours(self, found: Iterable[Found]) -> float:
        """Of all; 0 where any is missing."""
        every = list(found)
        return 0.0 if any(one.problem for one in every) else sum(one.hours for one in every)

    def _check_encoders(self, names: Iterable[str]) -> None:
        for name in names:
            if name.removeprefix("untrained:") not in self.runs:
                self._encoder(name)

    def _encoder(self, name: str) -> Encoder:
        """An encoder, or a fresh network of the run that an earlier step would make."""
        from auricle.encoders.checkpoint import load

        run = name.removeprefix("untrained:")
        if run not in self._built:
            self._built[run] = self.runs[run].build().encoder.eval() if run in self.runs else load(run)
        return self._built[run]

    def _speed(self, name: str) -> Speed:
        name = name.removeprefix("untrained:")
        if name not in self._speeds:
            self._speeds[name] = measure(self._encoder(name).to(self.device or "cpu"))
        return self._speeds[name]

    def _stand_ins(self, words: list[str]) -> list[str]:
        """The words, where one of them is a run to learn from, which is opened to parse them: a fresh network of it."""
        from auricle.encoders.checkpoint import save

        replaced = []
        for option, word in zip(["", *words], words, strict=False):
            if option == "--quantizer" and word in self.runs:
                place = self.folder / Path(word).name
                save(self._encoder(word), place)
                word = str(place)
            replaced.append(word)
        return replaced


def told(words: Sequence[str]) -> str:
    """The command as a person would type it."""
    return shlex.join(["auricle", *words])


def _key(corpus: str, options: dict[str, Any]) -> tuple[str, str]:
    plain = {name: list(value) if isinstance(value, tuple | list) else value for name, value in options.items()}
    return corpus, json.dumps(plain, sort_keys=True, default=str)


def _reader_options(options: Any) -> dict[str, Any]:
    """What `auricle prepare` gives to a corpus's reader."""
    names = ("subsets", "alignments", "cpc")
    others = (option.partition("=") for option in options.options)
    given = {name: getattr(options, name) for name in names if getattr(options, name)}
    return given | {name: yaml.safe_load(value) for name, _, value in others}


def _manifests(found: Iterable[Found]) -> list[Manifest]:
    return [one.manifest for one in found if one.manifest is not None]


def _check_columns(found: Found, columns: Iterable[str | None], what: str) -> None:
    if found.manifest is not None:
        for column in columns:
            if column is not None and column not in found.manifest.table.column_names:
                raise ManifestError(f"{what}: {found.label} has no column '{column}'")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
