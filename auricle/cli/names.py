"""Verbs around them: list, check, prepare."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro

from auricle.cli.options import Args, parse


@dataclasses.dataclass
class List:
    """Names that other commands take."""

    what: Annotated[Literal["presets", "recipes", "encoders", "tasks", "suites", "corpora"], tyro.conf.Positional]
    json: bool = False
    """Print as JSON."""


def list_names(args: Args) -> None:
    """Names that other commands take: `auricle list presets|recipes|encoders|tasks|suites|corpora`."""
    options = parse(List, "list", args)
    rows = {name: str(about) for name, about in _listing(options.what).items()}
    if options.json:
        print(json.dumps(rows))
        return
    width = max(len(name) for name in rows)
    for name, about in rows.items():
        print(f"{name:{width}}  {about}")


def _listing(what: str) -> Mapping[str, object]:
    if what == "presets":
        from auricle.methods import about, preset_names

        return {name: about(name) for name in preset_names()}
    if what == "recipes":
        from auricle.evaluation.finetuning.config import RECIPES

        return {name: (recipe.__doc__ or "").splitlines()[0] for name, recipe in RECIPES.items()}
    if what == "encoders":
        from auricle.encoders import ENCODER_FORMS

        return ENCODER_FORMS
    if what == "corpora":
        from auricle.data.corpora import CORPORA

        return CORPORA
    from auricle.evaluation.tasks import SUITES, TASKS

    return TASKS if what == "tasks" else {name: ", ".join(tasks) for name, tasks in SUITES.items()}


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


def prepare(args: Args) -> None:
    """A corpus as a manifest: `auricle prepare librispeech /data/LibriSpeech --output librispeech.parquet`."""
    options = parse(Prepare, "prepare", args)
    from auricle.data.corpora import read_corpus

    given = {name: getattr(options, name) for name in ("subsets", "alignments", "cpc") if getattr(options, name)}
    manifest = read_corpus(options.corpus, options.folder, **given)
    manifest.save(options.output)
    hours = manifest.durations.sum() / 3600
    print(f"{options.output}: {len(manifest)} clips, {hours:.1f} h, columns {', '.join(manifest.labels)}")
