"""`evaluate`: encoders × tasks → results on disk. Every encoder meets the same clips, splits and seeds."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from auricle.config import edit
from auricle.data.corpora import has_corpus
from auricle.data.manifest import Manifest, Sources
from auricle.encoders.base import WORDS, Encoder, Pooling, choose_layers
from auricle.encoders.checkpoint import load, refuse_unknown
from auricle.errors import EvaluationError
from auricle.evaluation.answers import answer, table, with_map
from auricle.evaluation.beats import BEAT_METRICS, WINDOW_S, applicable
from auricle.evaluation.cache import Cache
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.prepare import Prepared, prepare, read_task
from auricle.evaluation.probes.beats import beat_prober
from auricle.evaluation.probes.heads import Head, Layer, ProbeConfig
from auricle.evaluation.probes.marble import MarbleProber
from auricle.evaluation.probes.protocols import prober
from auricle.evaluation.probes.tracks import prepare_music
from auricle.evaluation.results import Result, read_result, result_path, write_result
from auricle.evaluation.scores import beside, choice_of, oracle, scored
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

    Tasks of beats are not applicable to an encoder whose frames lie more than 70 ms apart: a warning tells, and the
    encoder gets no result there.

    Results that are there and were made with the same options are returned as they are unless `overwrite="always"`;
    those made with others are replaced, or with `"never"` refused. Embeddings are kept in the folder `cache` (`.cache`
    in `output`; None: not at all) by the content of the audio and the encoder's fingerprint, so that another task, head
    or seed, or a second start, encodes nothing twice. Raises `AuricleError`s, one line each.
    """
    names = [encoders] if isinstance(encoders, str | Path | Encoder) else list(encoders)
    for name in names:
        if not isinstance(name, Encoder):
            refuse_unknown(str(name))
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    chosen = [name if isinstance(name, Task) else task(name) for name in tasks or ()]
    own = hear_tasks(suite.removeprefix("hear:")) if suite and suite.startswith("hear:") else []
    chosen += _answerable(suite_tasks(suite), protocol) if suite and not own else []
    common: dict[str, Any] = {
        "output": output, "overwrite": overwrite, "cache": cache, "device": place, "batch_seconds": batch_seconds,
        "progress": progress,
    }  # fmt: skip
    if any(record.scored_by == "eer" for record in chosen):
        from auricle.evaluation.verification.run import verify  # which imports this module, as recognition does

        if any(record.scored_by != "eer" for record in chosen):
            raise EvaluationError("verification has tasks of its own: ask for them, and for others, one after another")
        _refuse(
            "verification", level=level, metric=metric, group=group, unit=unit, protocol=protocol, speaker=speaker,
            folds=split == "folds", heads=tuple(heads) != ProbeConfig().heads, lrs=tuple(lrs) != ProbeConfig().lrs,
        )  # fmt: skip
        return verify(
            names, chosen, data=data, target=target, trials=trials, count=trial_count, seed=split_seed,
            as_norm=as_norm, center=center, pool=pool, layers=layers, **common,
        )  # fmt: skip
    if trials is not None:
        raise EvaluationError("trials: a list of pairs of recordings needs the task verification-clean")
    probe = _grid(heads, layers, lrs, seeds)
    if speech := [record for record in chosen if record.scored_by == "per"]:
        from auricle.evaluation.recognition.setup import prepare_speech

        if data is not None and len(chosen) > 1:
            raise EvaluationError(f"task {speech[0].name}: give data to it alone")
        _refuse(
            f"task {speech[0].name}", level=level, metric=metric, protocol=protocol not in (None, speech[0].protocol),
            heads=probe.heads != ProbeConfig().heads, lrs=probe.lrs != ProbeConfig().lrs, pool=pool != "mean",
            folds=split == "folds", speaker=speaker,
        )  # fmt: skip
        phones = [
            prepare_speech(record, data, target, corpora=corpora, group=group, unit=unit, seed=split_seed)
            for record in speech
        ]
        data = target = None  # which were theirs
        chosen = [record for record in chosen if record not in speech]
    if data is not None:
        if target is None or tasks or suite:
            raise EvaluationError("data needs a target, the column to predict, and neither tasks nor a suite")
        manifest = Manifest.open(data)
        record = custom_task(
            manifest, target, name=task_name(data, target), level=level, metric=metric, split=split, group=group,
            unit=unit, speaker=speaker, seed=split_seed,
        )  # fmt: skip
        prepared = [prepare(_under(protocol, record), manifest)]
    elif not (chosen or own or speech) or target is not None:
        raise EvaluationError("nothing to evaluate: give tasks, a suite, or data with the target column")
    else:
        if chosen or own:
            _refuse(
                "a ready-made task", level=level, metric=metric, group=group, unit=unit, speaker=speaker,
                folds=split == "folds",
            )  # fmt: skip
        prepared = _prepared([_under(protocol, record) for record in chosen], corpora)
        prepared += [prepare(_under(protocol, record), clips) for record, clips in own]
    for ready in prepared:  # a mistake here is told before anything is encoded
        _check_protocol(ready.task, probe)
        log.info("%s: %d clips, split %s (%s)", ready.task.name, len(ready.manifest), ready.rule, ready.split_hash)
    named = layers if isinstance(layers, str) and layers not in WORDS else None
    results = _probe(names, prepared, probe, named, pool, **common) if prepared else []
    if speech:
        from auricle.evaluation.recognition.ctc import CtcConfig
        from auricle.evaluation.recognition.run import recognise

        results += recognise(names, phones, CtcConfig(seeds=tuple(seeds)), layers=layers, **common)
    return results


def _refuse(what: str, **given: Any) -> None:
    """Raise `EvaluationError` where options are given that would be ignored."""
    if ignored := [option for option, value in given.items() if value]:
        raise EvaluationError(f"{what}: knows no {' and no '.join(ignored)}; leave that out")


def _grid(
    heads: Sequence[Head], layers: str | Sequence[Layer], lrs: Sequence[float], seeds: Sequence[int]
) -> ProbeConfig:
    """The grid asked for; one output of an encoder by its name is a layer that only the encoder knows."""
    tried = tuple(layers) if not isinstance(layers, str) else layers if layers in WORDS else "all"
    return ProbeConfig.parse({"heads": tuple(heads), "layers": tried, "lrs": tuple(lrs), "seeds": tuple(seeds)})


def _check_protocol(record: Task, probe: ProbeConfig) -> None:
    """Raise `EvaluationError` for a protocol that there is not, or that does not go with the task or the grid."""
    made = prober(record.protocol, probe)
    if record.scored_by in BEAT_METRICS:
        beat_prober(record, made)
    if record.protocol != "auricle" and (probe.heads, probe.lrs) != (ProbeConfig().heads, ProbeConfig().lrs):
        raise EvaluationError(f"protocol {record.protocol} has heads and learning rates of its own: leave them out")


def _probe(
    names: Sequence[str | Path | Encoder],
    prepared: Sequence[Prepared],
    probe: ProbeConfig,
    named: str | None,
    pool: Pooling,
    *,
    output: Path | str,
    overwrite: Overwrite,
    cache: Path | str | None,
    device: torch.device,
    batch_seconds: float,
    progress: bool,
) -> list[Result]:
    """Probe each encoder, loaded in turn, on all tasks; on those alone whose beats its frames can tell."""
    results = []
    with tqdm(total=len(names) * len(prepared), unit="score", desc="evaluate", disable=not progress) as bar:
        for name in names:
            encoder = name.to(device) if isinstance(name, Encoder) else load(name, device)
            fingerprint = encoder.fingerprint()
            kept = None if cache is None else Cache(Path(output) / ".cache" if cache == "auto" else cache, fingerprint)
            some = _chosen(encoder, named or probe.layers)
            embedder, grid = Embedder(encoder, pool, batch_seconds, some, kept), probe
            if some is not None and probe.layers != "last":
                grid = edit(probe, layers=tuple(some))
            for ready in prepared:
                bar.set_postfix_str(f"{embedder.name} {ready.task.name}")
                settings = _settings(ready, grid, pool)
                if _applies(encoder, ready.task):
                    there = find_result(output, embedder.name, fingerprint, ready.task, settings, overwrite)
                    results.append(there or _evaluate(embedder, fingerprint, ready, grid, settings, output))
                bar.update()
    return results


def _answerable(suite: Sequence[Task], protocol: str | None) -> list[Task]:
    """The tasks of a suite that the protocol asked for can answer; warns of others: beats, and several values a clip,
    are for MARBLE's alone."""
    if protocol is None or isinstance(prober(protocol, ProbeConfig()), MarbleProber):
        return list(suite)
    left_out = [
        record
        for record in suite
        if record.scored_by in BEAT_METRICS or (isinstance(record, MusicTask) and record.also)
    ]
    for record in left_out:
        log.warning("task %s: left out, protocol %s cannot answer it", record.name, protocol)
    return [record for record in suite if record not in left_out]


def _applies(encoder: Encoder, record: Task) -> bool:
    """Whether the task says anything of the encoder; warns if not."""
    hop_s = encoder.hop / encoder.sample_rate
    if record.scored_by not in BEAT_METRICS or applicable(hop_s):
        return True
    log.warning(
        "task %s: not applicable to %s, whose frames lie %.0f ms apart; beats are told within %.0f ms",
        record.name, encoder.name or encoder.family, 1000 * hop_s, 1000 * WINDOW_S,
    )  # fmt: skip
    return False


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
    parts = [
        record,
        pool,
        probe.model_dump(mode="json"),
        ready.manifest.content_hash(),
        ready.manifest.files_hash(),
        ready.split_hash,
    ]
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
        chosen=[choice_of(fold.fitted.choice) for fold in folds],
        grid=[choice_of(trial) for trial in folds[0].fitted.trials],
        skipped=max(fold.skipped for fold in folds),
        further=oracle(ready, folds) | beside(ready, folds),
        seconds_encode=encoded,
        seconds_probe=probed - encoded,
        settings=settings,
    )
    parts = [("test", test) for test in tests] + [("dev", folds[0].dev)] * (len(folds) == 1)
    predictions = pa.concat_tables([table(ready, part, answers) for part, answers in parts])
    return write_result(result, with_map(predictions, embedder, ready, folds[0].fitted), output)
