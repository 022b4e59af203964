"""From a task to utterances with their phones: once, the same for every encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from auricle.data.manifest import Manifest, Sources
from auricle.data.splits import split
from auricle.errors import EvaluationError, ManifestError, unknown
from auricle.evaluation.prepare import Prepared, read_task
from auricle.evaluation.recognition.lexicon import find_lexicons, pronounce, read_lexicon, unknown_words
from auricle.evaluation.run import task_name
from auricle.evaluation.tasks.task import Task

log = logging.getLogger("auricle")

WORDS, PHONES = "text", "phones"
"""Columns of words, which a lexicon turns into phones, and of phones separated by blanks."""


def prepare_speech(
    task: Task,
    data: Sources | None = None,
    target: str | None = None,
    *,
    corpora: Path | str | None = None,
    group: str | None = None,
    unit: str | None = None,
    seed: int = 0,
) -> Prepared:
    """The utterances of the task's corpus, or of `data`, with the phones said; `targets` are codes of `classes`.

    Column `text` holds words, whose phones the files `librispeech-lexicon*.txt` in `corpora` tell; any other holds
    phones, separated by blanks. Of `data` the column is `target`, else `phones`, else `text`; `group` and `unit` are
    of a split that is made and of the interval: `speaker`, unless they are named or there is no such column.
    Utterances with a word outside the lexicon are left out, and the words told. Raises `ManifestError` for columns and
    files that are not there, `EvaluationError` where no phones are known.
    """
    if data is None and target is not None:
        raise EvaluationError(f"target '{target}': names a column of your own data, and there is none")
    if data is None:
        manifest = _of_subsets(task, read_task(task, corpora))
    else:
        manifest = Manifest.open(data)
        manifest.warn_of_skipped()
        column = target or (PHONES if _is_text(manifest, PHONES) else WORDS)
        speaker = "speaker" if "speaker" in manifest.table.column_names else None
        group, unit = group or (speaker if "split" not in manifest.table.column_names else None), unit or speaker
        task = replace(
            task, name=task_name(data, column), corpus="", options={}, target=column, group=group, unit=unit, seed=seed
        )
    for name in (task.target, task.group, task.unit):
        if name is not None and name not in manifest.table.column_names:
            raise ManifestError(unknown("column", name, manifest.labels))
    if not _is_text(manifest, task.target):
        raise ManifestError(f"column '{task.target}': is not text; give words as '{WORDS}', or phones between blanks")
    manifest = manifest.select(np.array([bool((value or "").strip()) for value in manifest.column(task.target)], bool))
    said, note = _said(task, manifest, corpora)
    manifest = manifest.select(np.array([phones is not None for phones in said], bool))
    if not len(manifest):
        raise EvaluationError(f"task {task.name}: of no utterance the phones are known{note}")
    parts = split(manifest, None, task.group, task.seed)
    used = np.isin(parts.assignment, ("train", "dev", "test"))
    manifest, assignment = manifest.select(used), parts.assignment[used]
    sequences = [phones for phones in said if phones is not None]
    sequences = [sequences[row] for row in np.flatnonzero(used)]
    classes = sorted({phone for phones in sequences for phone in phones})
    log.info("%s: %d clips, split %s (%s)", task.name, len(manifest), parts.rule, parts.hash)
    return Prepared(
        task=task,
        manifest=manifest,
        classes=classes,
        targets=_coded(sequences, classes),
        texts=[" ".join(phones) for phones in sequences],
        units=[str(value) for value in manifest.column(task.unit or "clip_id")],
        unit=task.unit or "clip",
        assignments=[assignment],
        rule=f"{parts.rule}{note}",
        split_hash=parts.hash,
        home=os.path.commonpath(map(os.path.dirname, manifest.column("path"))) if task.corpus else "",
    )


def _of_subsets(task: Task, manifest: Manifest) -> Manifest:
    """Those that the task names, which a manifest made before may lack, or hold others beside."""
    subsets = task.options.get("subsets", ())
    found = manifest.column("subset") if subsets else []
    if missing := [subset for subset in subsets if subset not in found]:
        raise ManifestError(f"task {task.name}: {task.corpus} is without {missing[0]}; prepare it again")
    return manifest.select(np.isin(found, subsets)) if subsets else manifest


def _is_text(manifest: Manifest, column: str) -> bool:
    if column not in manifest.table.column_names:
        return False
    kind = manifest.table.schema.field(column).type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _said(task: Task, manifest: Manifest, corpora: Path | str | None) -> tuple[list[tuple[str, ...] | None], str]:
    """The phones of each utterance, None where they are not known; and what to tell of the lexicon."""
    texts = manifest.column(task.target)
    if task.target != WORDS:
        return [tuple(text.split()) for text in texts], ""
    files = find_lexicons(corpora)
    lexicon = read_lexicon(files)
    said = [pronounce(text, lexicon) for text in texts]
    note = f"; phones by {' and '.join(path.name for path in files)}"
    if outside := unknown_words(texts, lexicon):
        outside = f"{said.count(None)} of {len(said)} utterances left out for {outside}"
        log.warning("task %s: %s", task.name, outside)
        note += f", {outside}"
    return said, note


def _coded(sequences: Sequence[tuple[str, ...]], classes: Sequence[str]) -> NDArray[np.object_]:
    """(N,) arrays of codes."""
    code = {phone: number for number, phone in enumerate(classes)}
    coded = np.empty(len(sequences), object)
    for row, phones in enumerate(sequences):
        coded[row] = np.array([code[phone] for phone in phones], np.int64)
    return coded
