"""Verbs around them: list, check, prepare."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
import yaml

from auricle.cli.options import Args, parse
from auricle.errors import ConfigError

if TYPE_CHECKING:
    from auricle.evaluation.tasks.task import Task


@dataclasses.dataclass
class List:
    """Names that other commands take."""

    what: Annotated[
        Literal["presets", "recipes", "encoders", "tasks", "suites", "protocols", "papers", "corpora"],
        tyro.conf.Positional,
    ]
    suite: str | None = None
    """Of tasks: only those of this suite."""
    json: bool = False
    """Print as JSON."""


def list_names(args: Args) -> None:
    """Names that other commands take: `auricle list presets|recipes|encoders|tasks|suites|protocols|papers|corpora`."""
    options = parse(List, "list", args)
    rows = {name: str(about) for name, about in _listing(options.what, options.suite).items()}
    if options.json:
        print(json.dumps(rows))
        return
    width = max(len(name) for name in rows)
    for name, about in rows.items():
        print(f"{name:{width}}  {about}")


def _listing(what: str, suite: str | None) -> Mapping[str, object]:
    if suite is not None and what != "tasks":
        raise ConfigError("--suite: chooses among tasks: auricle list tasks --suite NAME")
    if what == "presets":
        from auricle.methods import about, preset_names

        return {name: about(name) for name in preset_names()}
    if what == "recipes":
        from auricle.evaluation.finetuning.config import RECIPES

        return {name: (recipe.__doc__ or "").splitlines()[0] for name, recipe in RECIPES.items()}
    if what == "encoders":
        from auricle.encoders import ENCODER_FORMS

        return ENCODER_FORMS
    if what == "papers":
        from auricle.evaluation.recipes import load_recipe, recipe_names

        return {name: load_recipe(name) for name in recipe_names()}
    if what == "protocols":
        from auricle.evaluation.probes.protocols import PROTOCOLS

        return PROTOCOLS
    if what == "corpora":
        from auricle.data.corpora import CORPORA

        return CORPORA
    from auricle.evaluation.tasks import SUITES, TASKS, suite_tasks

    if what == "suites":
        return {name: f"{', '.join(tasks)} ({_needs(suite_tasks(name), False)})" for name, tasks in SUITES.items()}
    tasks = suite_tasks(suite) if suite else list(TASKS.values())
    return {task.name: f"{task}; {_needs([task], True)}" for task in tasks}


def _needs(tasks: Sequence[Task], places: bool) -> str:
    """The corpora of some tasks, with their hours, and where to get them if `places`."""
    from auricle.data.corpora import CORPORA

    corpora = {task.corpus: CORPORA[task.corpus] for task in tasks}
    return ", ".join(
        f"{name} {corpus.hours:g} h{f' {corpus.url}' if places and corpus.url else ''}"
        for name, corpus in corpora.items()
    )


@dataclasses.dataclass
class Check:
    """Test an encoder of your own against what auricle expects of one, and explain what to mend."""

    encoder: Annotated[str, tyro.conf.Positional]
    """module:attribute, or anything that evaluate takes."""


def check(args: Args) -> int:
    """Does an encoder keep its promises? `auricle check my_module:MyEncoder`."""
    options = parse(Check, "check", args)
    from auricle.encoders.check import check as examine
    from auricle.encoders.checkpoint import load

    result = examine(load(options.encoder))
    print(result)
    return 0 if result.ok else 2


@dataclasses.dataclass
class Prepare:
    """A manifest from a corpus in its official layout."""

    corpus: Annotated[str, tyro.conf.Positional]
    """A corpus's name (auricle list corpora)."""
    folder: Annotated[Path, tyro.conf.Positional]
    """Where it lies."""
    output: Path
    """Parquet manifest to write."""
    subsets: tuple[str, ...] = ()
    """LibriSpeech: only these, such as train-clean-100; all that are there unless set."""
    alignments: Path | None = None
    """LibriSpeech: folder of TextGrid files (Montreal Forced Aligner), for columns phones and words."""
    cpc: Path | None = None
    """LibriSpeech: folder of the CPC split's lists and aligned phones, for columns phones and split."""
    options: tuple[str, ...] = ()
    """Other options of the corpus's reader, such as phones=61 (TIMIT) or mockingjay=true (LibriSpeech)."""


def prepare(args: Args) -> None:
    """A corpus as a manifest: `auricle prepare librispeech /data/LibriSpeech --output librispeech.parquet`."""
    options = parse(Prepare, "prepare", args)
    from auricle.data.corpora import read_corpus

    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("subsets", "alignments", "cpc") if getattr(options, name)
    }
    for option in options.options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--options {option}: expected NAME=VALUE")
        given[name] = yaml.safe_load(value)
    manifest = read_corpus(options.corpus, options.folder, **given)
    manifest.warn_of_skipped()
    manifest.save(options.output)
    hours = manifest.durations.sum() / 3600
    print(f"{options.output}: {len(manifest)} clips, {hours:.1f} h, columns {', '.join(manifest.labels)}")
