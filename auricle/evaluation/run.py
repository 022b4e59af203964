"""`evaluate`: encoders × tasks → results on disk. Every encoder meets the same clips, splits and seeds."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from auricle.config import edit
from auricle.data.corpora import has_corpus
from auricle.data.manifest import Manifest, Sources
from auricle.encoders.base import WORDS, Encoder, Pooling, choose_layers
from auricle.encoders.checkpoint import load
from auricle.errors import EvaluationError
from auricle.evaluation.answers import Answers, Fold, answer, of_seed, outcomes, table, with_map
from auricle.evaluation.cache import Cache
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.metrics import LOWER_IS_BETTER, Score, bootstrap, chance, scorer
from auricle.evaluation.music import KEY_METRIC, each_value, key_chance, key_credit
from auricle.evaluation.prepare import UNLABELLED, Prepared, prepare, read_task
from auricle.evaluation.probes.heads import Head, Layer, ProbeConfig, Trial
from auricle.evaluation.probes.protocols import prober
from auricle.evaluation.probes.tracks import prepare_music
from auricle.evaluation.results import Choice, Measure, Result, read_result, result_path, write_result
from auricle.evaluation.tasks import Task, suite_tasks, task
from auricle.evaluation.tasks.custom import custom_task
from auricle.evaluation.tasks.hear import hear_tasks
from auricle.evaluation.tasks.mir13 import MusicTask

log = logging.getLogger("auricle")

Overwrite = Literal["always", "never", "only-missing"]
TOLD = frozenset({"measures", "licence", "citation", "leaks"})
"""What a task tells people, and no score depends on."""


def evaluate(
    encoders: Sequence[str | Path | Encoder] | str | Path | Encoder,
    *,
    tasks: Sequence[str | Task] | None = None,
    suite: str | None = None,
    corpora: Path | str | None = None,
    protocol: str | None = None,
    data: Sources | None = None,
    target: str | None = None,
    level: Literal["clip", "frame"] | None = None,
    metric: str | None = None,
    split: Literal["auto", "split", "folds"] = "auto",
    group: str | None = None,
    unit: str | None = None,
    speaker: str | None = None,
    split_seed: int = 0,
    pool: Pooling = "mean",
    heads: Sequence[Head] = ("linear",),
    layers: str | Sequence[Layer] = "all",
    trials: Path | str | None = None,
    trial_count: int = 10_000,
    as_norm: int = 0,
    center: bool = False,
    lrs: Sequence[float] = (1e-3, 3e-3, 1e-2),
    seeds: Sequence[int] = (0, 1, 2),
    output: Path | str = "results",
    overwrite: Overwrite = "only-missing",
    cache: Path | str | None = "auto",
    device: torch.device | str = "auto",
    batch_seconds: float = 120.0,
    progress: bool = True,
) -> list[Result]:
    """Probe frozen encoders (or names for `load`) on tasks, a suite, or column `target` of your own `data`.

    The corpora of tasks lie in the folder `corpora`, each in a folder of its name (`auricle list corpora`), or as the
    Parquet manifest of that name that `auricle prepare` wrote. `suite` is also `hear:DIR`, a folder of HEAR's tasks as
    they are. `protocol` is used instead of each task's own (see `auricle.evaluation.probes.protocols`).

    `data` is what `Manifest.open` takes; level, kind and metric follow from the column unless set (see `custom_task`),
    the split from its columns `split` or `fold`, else from a rule that keeps the values of `group` together (see
    `auricle.data.splits`; `split="folds"` tests every clip once). `unit` names the column the interval resamples,
    `speaker` that of the speakers, for protocols that normalise by them.

    Heads, layers, `lrs` and `seeds` make the grid of `ProbeConfig`, `layers` being also the name of one of the
    encoders' outputs; the choice is made on dev, and test is scored once, with every seed of the choice. Protocols
    other than `auricle` have heads and learning rates of their own.

    The suite `verification` asks of pairs of recordings whether they hold the same speaker: of the bundled ones, or of
    `data`, whose column `target` (default `speaker`) names speakers. Its trials are drawn by `split_seed`,
    `trial_count` of each kind (0: all pairs); or `trials` names a file of them, or a list of VoxCeleb1 in the folder
    `data` (such as `voxceleb1-o-cleaned`). `auricle.evaluation.verification.run.verify` says more, and what `as_norm`
    and `center` do.

    Results that are there and were made with the same options are returned as they are unless `overwrite="always"`;
    those made with others are replaced, or with `"never"` refused. Embeddings are kept in the folder `cache` (`.cache`
    in `output`; None: not at all) by the content of the audio and the encoder's fingerprint, so that another task, head
    or seed, or a second start, encodes nothing twice. Raises `AuricleError`s, one line each.
    """
    names = [encoders] if isinstance(encoders, str | Path | Encoder) else list(encoders)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    named = layers if isinstance(layers, str) and layers not in WORDS else None
    tried = "all" if named else layers if isinstance(layers, str) else tuple(layers)
    probe = ProbeConfig.parse({"heads": tuple(heads), "layers": tried, "lrs": tuple(lrs), "seeds": tuple(seeds)})
    chosen = [name if isinstance(name, Task) else task(name) for name in tasks or ()]
    own = hear_tasks(suite.removeprefix("hear:")) if suite and suite.startswith("hear:") else []
    chosen += suite_tasks(suite) if suite and not own else []
    if verifications := [record for record in chosen if record.scored_by == "eer"]:
        from auricle.evaluation.verification.run import verify  # which writes results as this module does

        if len(verifications) < len(chosen):
            raise EvaluationError("verification has tasks of its own: ask for them, and for others, one after another")
        if level or metric or group or unit:
            raise EvaluationError("verification knows no level, metric, group or unit: its units are the speakers")
        return verify(
            names, verifications, data=data, target=target, trials=trials, count=trial_count, seed=split_seed,
            as_norm=as_norm, center=center, pool=pool, layers=layers, output=output, overwrite=overwrite,
            device=place, batch_seconds=batch_seconds, progress=progress,
        )  # fmt: skip
    if trials is not None:
        raise EvaluationError("trials: a list of pairs of recordings needs the task verification-clean")
    if speech := [record for record in chosen if record.scored_by == "per"]:
        from auricle.evaluation.recognition.ctc import CtcConfig
        from auricle.evaluation.recognition.run import recognise
        from auricle.evaluation.recognition.setup import prepare_speech

        if level or metric or protocol not in (None, speech[0].protocol) or (data is not None and len(chosen) > 1):
            raise EvaluationError(
                f"task {speech[0].name}: knows no level, metric or other protocol; give data to it alone"
            )
        others = [record for record in chosen if record not in speech]
        phones = [
            prepare_speech(record, data, target, corpora=corpora, group=group, unit=unit, seed=split_seed)
            for record in speech
        ]
        told = evaluate(
            names, tasks=others, corpora=corpora, pool=pool, heads=heads, layers=layers, lrs=lrs, seeds=seeds,
            output=output, overwrite=overwrite, cache=cache, device=place, batch_seconds=batch_seconds,
            progress=progress,
        ) if others else []  # fmt: skip
        return told + recognise(
            names, phones, CtcConfig(seeds=tuple(seeds)), layers=layers, output=output, overwrite=overwrite,
            cache=cache, device=place, batch_seconds=batch_seconds, progress=progress,
        )  # fmt: skip
    if data is None:
        if not (chosen or own) or target is not None:
            raise EvaluationError("nothing to evaluate: give tasks, a suite, or data with the target column")
        prepared = _prepared([_under(protocol, record) for record in chosen], corpora)
        prepared += [prepare(_under(protocol, record), clips) for record, clips in own]
    elif target is None or tasks or suite:
        raise EvaluationError("data needs a target, the column to predict, and neither tasks nor a suite")
    else:
        manifest = Manifest.open(data)
        record = custom_task(
            manifest, target, name=task_name(data, target), level=level, metric=metric, split=split, group=group,
            unit=unit, speaker=speaker, seed=split_seed,
        )  # fmt: skip
        prepared = [prepare(_under(protocol, record), manifest)]
    for ready in prepared:
        prober(ready.task.protocol, probe)  # a mistake here is told before anything is encoded
        if ready.task.protocol != "auricle" and (tuple(heads), tuple(lrs)) != (ProbeConfig().heads, ProbeConfig().lrs):
            raise EvaluationError(
                f"protocol {ready.task.protocol} has heads and learning rates of its own: leave them out"
            )
        log.info("%s: %d clips, split %s (%s)", ready.task.name, len(ready.manifest), ready.rule, ready.split_hash)
    results = []
    with tqdm(total=len(names) * len(prepared), unit="score", desc="evaluate", disable=not progress) as bar:
        for name in names:
            encoder = name.to(place) if isinstance(name, Encoder) else load(name, place)
            fingerprint = encoder.fingerprint()
            kept = None if cache is None else Cache(Path(output) / ".cache" if cache == "auto" else cache, fingerprint)
            some = _chosen(encoder, named or probe.layers)
            embedder, grid = Embedder(encoder, pool, batch_seconds, some, kept), probe
            if some is not None and probe.layers != "last":
                grid = edit(probe, layers=tuple(some))
            for ready in prepared:
                bar.set_postfix_str(f"{embedder.name} {ready.task.name}")
                settings = _settings(ready, grid, pool)
                there = find_result(output, embedder.name, fingerprint, ready.task, settings, overwrite)
                results.append(there or _evaluate(embedder, fingerprint, ready, grid, settings, output))
                bar.update()
    return results


def _chosen(encoder: Encoder, layers: str | Sequence[Layer]) -> list[int] | None:
    """Indices of the layers asked for; None for all, and where a sum of them is learned."""
    if layers == "all" or (not isinstance(layers, str) and "sum" in layers):
        return None
    numbers = layers if isinstance(layers, str) else [int(layer) for layer in layers]
    return list(dict.fromkeys(choose_layers(numbers, encoder.dims, encoder.outputs)))


def _under(protocol: str | None, record: Task) -> Task:
    return record if protocol is None else replace(record, protocol=protocol)


def _prepared(records: Sequence[Task], corpora: Path | str | None) -> list[Prepared]:
    """Tasks with their recordings; a corpus that several share is read once.

    Raises `EvaluationError` where some corpora are there and others are not, before any is read.
    """
    absent = [record for record in records if corpora and not has_corpus(record.corpus, corpora)]
    if 0 < len(absent) < len(records):
        there = " ".join(record.name for record in records if record not in absent)
        hint = f"(auricle list corpora says where to get them); without them: --tasks {there}"
        raise EvaluationError(f"{corpora}: lacks {', '.join(dict.fromkeys(one.corpus for one in absent))} {hint}")
    manifests: dict[tuple[str, str], Manifest] = {}
    prepared = []
    for record in records:
        key = record.corpus, repr(sorted(record.options.items()))
        if key not in manifests:
            manifests[key] = read_task(record, corpora)
        prepared.append(_ready(record, manifests[key]))
    return prepared


def _ready(record: Task, manifest: Manifest) -> Prepared:
    return prepare_music(record, manifest) if isinstance(record, MusicTask) else prepare(record, manifest)


def task_name(data: Any, target: str) -> str:
    """A name for a person's own task: the first source's and the column's."""
    first = data if isinstance(data, str | Path | Manifest) else next(iter(data))
    stem = "data" if isinstance(first, Manifest) else Path(first).resolve().stem
    return re.sub(r"[^\w.-]+", "-", f"{stem}-{target}")


def _settings(ready: Prepared, probe: ProbeConfig, pool: Pooling) -> str:
    """Hash of all that decides a score besides the encoder."""
    record = {key: value for key, value in asdict(ready.task).items() if key not in TOLD}
    parts = [record, pool, probe.model_dump(mode="json"), ready.manifest.content_hash(), ready.split_hash]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def find_result(
    output: Path | str, encoder: str, fingerprint: str, record: Task, settings: str, overwrite: Overwrite
) -> Result | None:
    """The result that is there, if it may stand for the one asked for."""
    path = result_path(output, encoder, fingerprint, record.label)
    if overwrite == "always" or not path.exists():
        return None
    result = read_result(path)
    if result.settings == settings and path.with_suffix(".parquet").exists():
        return result
    if overwrite == "never":
        raise EvaluationError(f"{path}: was made with other options or clips; choose another output folder")
    log.info("%s: was made with other options or clips, and is replaced", path)
    return None


def _evaluate(
    embedder: Embedder, fingerprint: str, ready: Prepared, probe: ProbeConfig, settings: str, output: Path | str
) -> Result:
    """Probe one encoder on one task, and write the result."""
    started, encoded = time.monotonic(), embedder.seconds
    folds = answer(embedder, ready, prober(ready.task.protocol, probe))
    probed, encoded = time.monotonic() - started, embedder.seconds - encoded
    tests = [fold.test for fold in folds]
    result = scored(
        ready,
        tests,
        encoder=embedder.name,
        fingerprint=fingerprint,
        supervision=embedder.encoder.supervision,
        dev=float(np.mean([np.mean(fold.fitted.choice.dev) for fold in folds])),
        chosen=[_choice(fold.fitted.choice) for fold in folds],
        grid=[_choice(trial) for trial in folds[0].fitted.trials],
        skipped=max(fold.skipped for fold in folds),
        further=_oracle(ready, folds) | _beside(ready, tests),
        transductive=heard(embedder.name, ready, tests),
        seconds_encode=encoded,
        seconds_probe=probed - encoded,
        settings=settings,
    )
    parts = [("test", test) for test in tests] + [("dev", folds[0].dev)] * (len(folds) == 1)
    predictions = pa.concat_tables([table(ready, part, answers) for part, answers in parts])
    return write_result(result, with_map(predictions, embedder, ready, folds[0].fitted), output)


def _oracle(ready: Prepared, folds: list[Fold]) -> dict[str, Measure]:
    """The best test score of any one row of the grid, where the protocol tells them: selection on test, for papers."""
    answers: dict[Trial, list[Answers]] = {}
    for fold in folds:
        for trial, found in fold.others:
            answers.setdefault(replace(trial, dev=()), []).append(found)
    metric, best = ready.task.scored_by, None
    for tests in answers.values():
        told = outcomes(ready, tests)
        score, one = scorer(metric, told), np.ones((1, told.units))
        value = float(score(one)[0])
        if len(tests) == len(folds) and (best is None or (value < best[0]) == (metric in LOWER_IS_BETTER)):
            best = value, *bootstrap(score, told.units)
    return {} if best is None else {"oracle": Measure.of(*best)}


def _beside(ready: Prepared, tests: list[Answers]) -> dict[str, Measure]:
    """Mean average precision beside areas under ROC curves, and R² of each of several values."""
    if not isinstance(ready.task, MusicTask) or ready.task.level == "frame":
        return {}
    told, found = outcomes(ready, tests), dict[str, Score]()
    if ready.task.scored_by == "roc_auc":
        found["map"] = scorer("map", told)
    if ready.task.also:
        found = {f"r2 {name}": scorer("r2", one) for name, one in each_value(told, ready.classes).items()}
    one = np.ones((1, told.units))
    return {name: Measure.of(float(score(one)[0]), *bootstrap(score, told.units)) for name, score in found.items()}


def scored(ready: Prepared, tests: list[Answers], **others: Any) -> Result:
    """The result of answers on test, one a fold, with its interval and what else is told by the task.

    `others` are the fields that depend on the encoder and on how it was probed.
    """
    record, units = ready.task, len({ready.units[row] for test in tests for row in test.rows})
    score, one = scorer(record.scored_by, outcomes(ready, tests)), np.ones((1, units))
    low, high = bootstrap(score, units)
    most = max(len(test.correct) for test in tests)
    seeds = [outcomes(ready, [of_seed(test, seed) for test in tests]) for seed in range(most)]
    first = ready.assignments[0]
    return Result(
        task=record.name,
        protocol=record.protocol,
        version=record.version,
        kind=record.kind,
        level=record.level,
        target=record.target,
        classes=ready.classes,
        metric=record.scored_by,
        score=float(score(one)[0]),
        low=low,
        high=high,
        seeds=[float(scorer(record.scored_by, seed)(one)[0]) for seed in seeds],
        chance=_chance(ready, tests),
        split=ready.rule,
        split_hash=ready.split_hash,
        unit=ready.unit,
        units=units,
        n_train=int((first == "train").sum()),
        n_dev=int((first == "dev").sum()),
        n_test=sum(len(test.rows) for test in tests),
        leaks=_leaks(others["encoder"], ready, tests),
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        **others,
    )


def _choice(trial: Trial) -> Choice:
    dev = float(np.mean(trial.dev))
    dev_score = dev if math.isfinite(dev) else None
    return Choice(head=trial.head, layer=trial.layer, lr=trial.lr, dev=dev_score, detail=trial.detail)


def _chance(ready: Prepared, tests: list[Answers]) -> float:
    targets = ready.targets[np.concatenate([test.rows for test in tests])]
    if ready.task.level == "frame":
        targets = np.concatenate(list(targets))
        targets = targets[targets != UNLABELLED]
    if ready.task.scored_by == KEY_METRIC:
        return key_chance(key_credit(ready.classes), targets)
    return chance(ready.task.scored_by, targets)


def heard(encoder: str, ready: Prepared, tests: list[Answers]) -> bool:
    """Whether the run of that name was trained on any of the test recordings."""
    paths = ready.manifest.column("path")
    return was_heard(encoder, [paths[row] for test in tests for row in test.rows])


def was_heard(encoder: str, paths: Iterable[str]) -> bool:
    """Whether the run of that name (its folder holds a manifest) was trained on any of these recordings."""
    return not _heard_by(encoder).isdisjoint(paths)


def _leaks(encoder: str, ready: Prepared, tests: list[Answers]) -> str:
    """What of the task's recordings the run of that name was trained on."""
    if heard(encoder, ready, tests):
        return "test"
    here = os.path.join(ready.home, "")
    return "corpus" if ready.home and any(path.startswith(here) for path in _heard_by(encoder)) else ""


def _heard_by(encoder: str) -> set[str]:
    """Paths that the run of that name was trained on; none where its folder holds no manifest."""
    if encoder.startswith("untrained:"):
        return set()
    folders = [Path(encoder), *Path(encoder).parents[:2]] if encoder else []
    for manifest in (folder / "manifest.parquet" for folder in folders):
        if manifest.is_file():
            return set(pq.read_table(manifest, columns=["path"])["path"].to_pylist())
    return set()
