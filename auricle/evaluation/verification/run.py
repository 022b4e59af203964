"""`evaluate` for trials: embed once, score every trial, and tell error rates with intervals over speakers."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from auricle.data.manifest import Manifest, Sources
from auricle.encoders.base import Encoder, Pooling, choose_layers
from auricle.encoders.checkpoint import load
from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.cache import Cache
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.metrics import Difference, Outcomes, bootstrap, paired_bootstrap, scorer
from auricle.evaluation.probes.heads import Layer
from auricle.evaluation.results import Choice, Measure, Result, read_trials, write_result
from auricle.evaluation.run import Overwrite, find_result, task_name
from auricle.evaluation.scores import leaks
from auricle.evaluation.tasks.task import Task
from auricle.evaluation.tasks.verification import CONDITIONS, Condition
from auricle.evaluation.verification.interference import write_mixtures
from auricle.evaluation.verification.metrics import MEASURES, equal_error_rate
from auricle.evaluation.verification.scoring import Vectors, as_norm, cohort_statistics, cosines, nearest_stream, unit
from auricle.evaluation.verification.setup import Setup, prepare_trials
from auricle.evaluation.verification.trials import Rows, draw_trials

log = logging.getLogger("auricle")

DEV_TRIALS = 2_000
"""Of each kind, at most, on which a layer is chosen."""
STREAMS = -1
"""Stands for an encoder's streams where its layers are numbered."""


def verify(
    encoders: Sequence[str | Path | Encoder],
    records: Sequence[Task],
    *,
    data: Sources | None = None,
    target: str | None = None,
    trials: Path | str | None = None,
    count: int = 10_000,
    seed: int = 0,
    as_norm: int = 0,
    center: bool = False,
    pool: Pooling = "mean",
    layers: str | Sequence[Layer] = "all",
    output: Path | str = "results",
    overwrite: Overwrite = "only-missing",
    cache: Path | str | None = "auto",
    device: torch.device,
    batch_seconds: float = 120.0,
    progress: bool = True,
) -> list[Result]:
    """Score encoders on the trials of `prepare_trials`, in the conditions of `records`; `count` 0 takes all pairs.

    A clip's embedding is the `pool`ed layer which, of `layers`, has the lowest equal error rate on clean trials of dev
    speakers. Encoders with streams are scored by the best pair of streams; beside that stand the `oracle_stream` (of a
    mixture only the stream nearest to the target's recording alone takes part) and `no_separation` (the embedding of
    the mixture as a whole). `as_norm` is the number of clips of the cohort, the speakers in no trial, by which scores
    are normalised (0: not at all), `center` subtracts the cohort's mean. Embeddings of clips and mixtures are kept in
    `cache`, so that other trials encode nothing twice; streams are not. Other arguments and errors as `evaluate`.
    """
    mixtures = any(CONDITIONS[record.name].test_mixed for record in records)
    target = target or records[0].target
    ready = prepare_trials(
        data, records[0].where, target=target, trials=trials, count=count or None, seed=seed, mixtures=mixtures,
        name="verification" if data is None else task_name(data, target),
    )  # fmt: skip
    log.info("%s: %s (%s)", ready.name, ready.rule, ready.hash)
    if not isinstance(layers, str) and "sum" in layers:
        raise ConfigError("layers: a sum of layers is learned, and verification learns nothing; give numbers")
    results = []
    with tqdm(total=len(encoders) * len(records), unit="score", desc="evaluate", disable=not progress) as bar:
        for name in encoders:
            encoder = name.to(device) if isinstance(name, Encoder) else load(name, device)
            numbers = layers if isinstance(layers, str) else [int(layer) for layer in layers]
            chosen = choose_layers(numbers, encoder.dims, encoder.outputs)
            fingerprint, verifier = encoder.fingerprint(), None
            kept = None if cache is None else Cache(Path(output) / ".cache" if cache == "auto" else cache, fingerprint)
            embedder = Embedder(encoder, pool, batch_seconds, chosen, kept)
            for record in records:
                condition = CONDITIONS[record.name]
                suffix = "" if trials else record.name.removeprefix("verification")
                named = replace(record, name=ready.name + suffix, target=ready.column)
                bar.set_postfix_str(f"{embedder.name} {named.name}")
                settings = _settings(named, ready, [pool, chosen, as_norm, center])
                result = find_result(output, embedder.name, fingerprint, named, settings, overwrite)
                if result is None:
                    verifier = verifier or Verifier(embedder, ready, as_norm=as_norm, center=center)
                    result = verifier.evaluate(named, condition, fingerprint, settings, output)
                results.append(result)
                bar.update()
    return results


def difference(a: Result, b: Result, metric: str = "eer") -> Difference:
    """How much lower `metric` is for `a` than for `b` (positive: `a` is better), over the same draws of speakers.

    Raises `EvaluationError` where they were not scored on the same trials.
    """
    if (a.name, a.split_hash) != (b.name, b.split_hash):
        raise EvaluationError(f"{a.name} and {b.name}: scored on other trials, so there is nothing to pair")
    one, other = a.outcomes(), b.outcomes()
    return paired_bootstrap(scorer(metric, one), scorer(metric, other), one.units, lower_is_better=True)


class Verifier:
    """One encoder at work on trials. What it has embedded serves all conditions."""

    def __init__(self, embedder: Embedder, ready: Setup, *, as_norm: int = 0, center: bool = False) -> None:
        self.embedder, self.ready, self.top, self.center = embedder, ready, as_norm, center
        self.cohort = ready.cohort if as_norm or center else ready.cohort[:0]
        if (as_norm or center) and not len(ready.cohort):
            raise EvaluationError("verification: as_norm and center need clips of speakers who are in no trial")
        self._clean: dict[int, Vectors] = {}
        self._mixed: dict[tuple[float, int], Vectors] = {}
        self.grid: dict[int, float | None] = dict.fromkeys(embedder.layers)
        """Equal error rate of every layer on dev; None where there is no choice."""
        if len(self.grid) > 1:
            self.grid.update(self._dev())
        self.layer = min(self.grid, key=lambda layer: self.grid[layer] or 0.0)

    def evaluate(
        self, record: Task, condition: Condition, fingerprint: str, settings: str, output: Path | str
    ) -> Result:
        """Score one condition, and write the result."""
        started, encoded = time.monotonic(), self.embedder.seconds
        scores = {"no_separation": self._scores(condition, self.layer)}
        if self.embedder.encoder.has_streams:
            scores["score"] = self._scores(condition, STREAMS)
            if condition.test_mixed:
                scores["oracle_stream"] = self._scores(condition, STREAMS, oracle=True)
        else:
            scores = {"score": scores["no_separation"]}
        for values in scores.values():
            if np.isnan(values).all():
                raise EvaluationError(f"{record.name}: {self.embedder.name} could embed no trial; the log says why")
            values[np.isnan(values)] = np.nanmedian(values)  # which tells nothing
        table = _table(self.ready, condition, scores)
        outcomes = {name: read_trials(table, name) for name in scores}
        main = outcomes.pop("score")
        score, low, high = _interval("eer", main)
        further = {name: Measure.of(*_interval(name, main)) for name in MEASURES[1:]}
        further |= {name: Measure.of(*_interval("eer", other)) for name, other in outcomes.items()}
        if "no_separation" in outcomes:
            gain = paired_bootstrap(
                scorer("eer", main), scorer("eer", outcomes["no_separation"]), main.units, lower_is_better=True
            )
            further["gain_by_separation"] = Measure.of(gain.mean, gain.low, gain.high)
        encoded = self.embedder.seconds - encoded
        leaked = leaks(self.embedder.name, self._paths(self.ready.trials.rows))
        result = Result(
            encoder=self.embedder.name,
            fingerprint=fingerprint,
            supervision=self.embedder.encoder.supervision,
            task=record.name,
            protocol=record.protocol,
            version=record.version,
            kind="classes",
            level="trial",
            target=record.target,
            classes=[],
            metric="eer",
            score=score,
            low=low,
            high=high,
            further=further,
            seeds=[score],
            dev=self.grid[self.layer],
            chosen=[Choice(head="cosine", layer=self.layer, lr=None, dev=self.grid[self.layer])],
            grid=[Choice(head="cosine", layer=layer, lr=None, dev=dev) for layer, dev in self.grid.items()],
            chance=0.5,
            split=f"{self.ready.rule}; {condition}{self._extras()}",
            split_hash=self.ready.hash,
            unit=record.target,
            units=main.units,
            n_train=len(self.cohort),
            n_dev=len(self.ready.dev) if len(self.grid) > 1 else 0,
            n_test=len(self.ready.trials),
            skipped=self._absent(condition),
            transductive=leaked == "test",
            leaks=leaked,
            seconds_encode=encoded,
            seconds_probe=time.monotonic() - started - encoded,
            settings=settings,
            versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        )
        return write_result(result, table, output)

    def _absent(self, condition: Condition) -> int:
        """Clips in trials that could not be embedded, or whose mixture could not."""
        kind = STREAMS if self.embedder.encoder.has_streams else self.layer
        found = [self._clean[kind]] + ([self._mixed[condition.sir_db, kind]] if condition.test_mixed else [])
        return int(np.any([np.isnan(vectors[self.ready.trials.rows, 0, 0]) for vectors in found], 0).sum())

    def _extras(self) -> str:
        norm = f"; AS-norm by the nearest {self.top} of {len(self.cohort)} utterances" if self.top else ""
        return norm + ("; mean of the cohort subtracted" if self.center else "")

    def _paths(self, rows: Rows) -> list[str]:
        paths = self.ready.manifest.column("path")
        return [paths[row] for row in rows]

    def _dev(self) -> dict[int, float | None]:
        """Equal error rate of each layer on clean trials of dev speakers."""
        try:
            trials = draw_trials(self.ready.dev, self.ready.speakers, DEV_TRIALS, self.ready.seed)
        except EvaluationError:
            raise ConfigError(
                "layers: there are no trials of other speakers to choose one on; name one, such as --layers last"
            ) from None
        pairs = np.stack([trials.enrol, trials.test], 1)
        grid: dict[int, float | None] = {}
        for layer in self.grid:
            voices = unit(self._voices(layer, self.ready.dev))
            scores = cosines(voices, voices, pairs)
            heard = ~np.isnan(scores)
            grid[layer] = equal_error_rate(scores[heard], trials.target[heard])
        return grid

    def _scores(self, condition: Condition, layer: int, oracle: bool = False) -> NDArray[np.float64]:
        """(N,) of the trials; NaN where a side cannot be embedded."""
        trials = self.ready.trials
        pairs, rows = np.stack([trials.enrol, trials.test], 1), trials.rows
        cohort = self._voices(layer, self.cohort)[self.cohort] if len(self.cohort) else None
        mean = np.nanmean(cohort, (0, 1)) if cohort is not None and self.center else None
        clean = unit(self._voices(layer, rows), mean)
        mixed = unit(self._mixtures(layer, condition.sir_db, rows), mean) if condition.test_mixed else clean
        if oracle:
            mixed = nearest_stream(mixed, clean)
        enrol, test = mixed if condition.enrol_mixed else clean, mixed
        scores = cosines(enrol, test, pairs)
        if not self.top or cohort is None:
            return scores
        others = unit(cohort[~np.isnan(cohort).any((1, 2))], mean)
        statistics = []
        for side in (enrol, test):
            found = np.full((2, len(side)), np.nan)
            found[:, rows] = cohort_statistics(side[rows], others, self.top)
            statistics.append((found[0], found[1]))
        return as_norm(scores, pairs, statistics[0], statistics[1])

    def _voices(self, layer: int, rows: Rows) -> Vectors:
        """(N, C, E) of the manifest's clips, NaN for all but `rows` and those asked for before."""
        present, found = _embed(self.embedder, self.ready.manifest.select(rows), layer)
        if layer not in self._clean:
            self._clean[layer] = np.full((len(self.ready.manifest), *found.shape[1:]), np.nan, np.float32)
        self._clean[layer][rows[present]] = found
        return self._clean[layer]

    def _mixtures(self, layer: int, sir_db: float, rows: Rows) -> Vectors:
        """(N, C, E) of the mixtures of `rows`; each is made once, and embedded as a whole and in streams."""
        if (sir_db, layer) not in self._mixed:
            assert self.ready.interferers is not None
            encoder, whole = self.embedder.encoder, self.embedder
            once = Embedder(encoder, whole.pool, whole.batch_seconds, [self.layer], whole.cache)  # goes with its memory
            with tempfile.TemporaryDirectory(prefix="auricle-mixtures-") as folder:
                mixtures, made = write_mixtures(
                    self.ready.manifest, rows, self.ready.interferers, sir_db, encoder.sample_rate, Path(folder)
                )
                for kind in (self.layer, STREAMS) if encoder.has_streams else (self.layer,):
                    present, found = _embed(once, mixtures, kind)
                    vectors = np.full((len(self.ready.manifest), *found.shape[1:]), np.nan, np.float32)
                    vectors[made[present]] = found
                    self._mixed[sir_db, kind] = vectors
            self.embedder.seconds += once.seconds
        return self._mixed[sir_db, layer]


def _embed(embedder: Embedder, manifest: Manifest, layer: int) -> tuple[NDArray[np.bool_], Vectors]:
    """Which clips could be embedded, and their vectors (n, C, E)."""
    if layer == STREAMS:
        return embedder.streams(manifest)
    present, layers = embedder.clips(manifest)
    if not present.any():
        raise EvaluationError(f"{embedder.name} could embed none of the recordings; the log says why")
    return present, layers[layer].numpy()[:, None]


def _settings(record: Task, ready: Setup, options: list[Any]) -> str:
    """Hash of all that decides a score besides the encoder."""
    parts = [
        asdict(record) | {"where": dict(record.where)},
        options,
        ready.manifest.content_hash(),
        ready.manifest.files_hash(),
        ready.hash,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _interval(metric: str, outcomes: Outcomes) -> tuple[float, float, float]:
    """A score, and the ends of its 95 % interval over speakers."""
    score = scorer(metric, outcomes)
    return float(score(np.ones((1, outcomes.units)))[0]), *bootstrap(score, outcomes.units)


def _table(ready: Setup, condition: Condition, scores: dict[str, NDArray[np.float64]]) -> pa.Table:
    """A row a trial."""
    ids, speakers = (
        ready.manifest.table[name].combine_chunks().cast(pa.string()) for name in ("clip_id", ready.column)
    )
    trials, columns = ready.trials, {}
    for side, rows, mixed in (
        ("enrol", trials.enrol, condition.enrol_mixed),
        ("test", trials.test, condition.test_mixed),
    ):
        over = ready.interferers[rows] if mixed and ready.interferers is not None else np.full(len(rows), -1)
        columns[side] = ids.take(pa.array(rows)).dictionary_encode()
        columns[f"{side}_speaker"] = speakers.take(pa.array(rows)).dictionary_encode()
        columns[f"{side}_interferer"] = ids.take(pa.array(over, mask=over < 0)).dictionary_encode()
    return pa.table(columns | {"target": pa.array(trials.target)} | scores)
