"""`finetune`: an encoder, or its upper part, trained with a head on labels, and scored once on test."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from auricle.config import edit
from auricle.data.batching import Batch, plan_buckets
from auricle.data.dataset import row_batches
from auricle.data.manifest import Manifest, Sources
from auricle.encoders import FAMILIES
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import load
from auricle.errors import CheckpointError, ConfigError, TooManySkipsError, TrainingError
from auricle.evaluation.answers import Answers, clip_answers, frame_answers, outcomes, table, with_map
from auricle.evaluation.beats import BEAT_METRICS
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.events import EVENT_METRICS
from auricle.evaluation.finetuning import folder
from auricle.evaluation.finetuning.augment import balanced_weights, draws, mix_waveforms, steps_per_epoch
from auricle.evaluation.finetuning.config import FinetuneConfig, recipe
from auricle.evaluation.finetuning.model import TARGET, Tuned
from auricle.evaluation.finetuning.targets import clip_targets, frame_targets, loss
from auricle.evaluation.metrics import LOWER_IS_BETTER, scorer
from auricle.evaluation.music import KEY_METRIC
from auricle.evaluation.prepare import UNLABELLED, Prepared, prepare
from auricle.evaluation.results import Choice, Result, read_results, write_result
from auricle.evaluation.run import task_name
from auricle.evaluation.scores import scored
from auricle.evaluation.tasks.custom import custom_task
from auricle.training import checkpoint, optim
from auricle.training.folder import exclusive, one_line_for_the_disk
from auricle.training.logs import RunLog
from auricle.training.loop import PATIENCE, TrainingInterrupted
from auricle.training.processes import Processes, Signals
from auricle.training.tally import Tally, sums_of

logger = logging.getLogger("auricle")

BY_PROBES = frozenset({*EVENT_METRICS, *BEAT_METRICS, KEY_METRIC})
"""Metrics of answers that a tuned head does not give: events, beats, keys near the right one."""


def finetune(
    encoder: str | Path | Encoder,
    data: Sources,
    *,
    target: str,
    output: Path | str,
    config: FinetuneConfig | str = "default",
    level: Literal["clip", "frame"] | None = None,
    metric: str | None = None,
    split: Literal["auto", "split", "folds"] = "auto",
    fold: int = 0,
    group: str | None = None,
    unit: str | None = None,
    split_seed: int = 0,
    resume: bool = False,
    progress: bool = True,
    **edits: Any,
) -> Result:
    """Train an encoder (or a name for `load`) with a head to predict column `target`; returns its score on test.

    `config` is a `FinetuneConfig` or a recipe's name, which `edits` change: `finetune("runs/mj", "labels.csv",
    target="word", output="runs/ft", blocks=2, epochs=10)`. Level, kind, metric and split follow from the column as
    `evaluate` has them; of folds, number `fold` is tested on. The weights that are best on dev are kept: `load(output)`
    gives that encoder, `predict(output, ...)` its answers.

    With `resume` a run that the folder holds goes on from its newest checkpoint, on CPU bit for bit as if it had never
    stopped; an empty folder begins. Raises `AuricleError`s, one line each: foreign folders, columns that cannot be
    learned, encoders without weights, too many unusable clips, losses that are not finite.
    """
    config, output = edit(recipe(config) if isinstance(config, str) else config, **edits), Path(output)
    going_on = resume and (output / folder.ABOUT).exists()
    if not going_on:
        folder.check_free(output)
    with one_line_for_the_disk(output):
        encoder = copy.deepcopy(encoder).cpu() if isinstance(encoder, Encoder) else load(encoder)
        if encoder.family not in FAMILIES:
            raise CheckpointError(f"{encoder.name or encoder.family}: Python code of others cannot be fine-tuned")
        opened = Manifest.open(data)
        if len(opened.skipped) > config.max_skipped * (len(opened) + len(opened.skipped)):
            first = opened.skipped[0]
            raise TooManySkipsError(
                f"{first.path}: {first.reason}; {len(opened.skipped)} clips are unusable, over max_skipped = "
                f"{config.max_skipped:g}: mend them or raise it"
            )
        record = custom_task(
            opened, target, name=task_name(data, target), level=level, metric=metric, split=split, group=group,
            unit=unit, seed=split_seed,
        )  # fmt: skip
        if record.scored_by in BY_PROBES:
            raise ConfigError(f"metric {record.scored_by}: is of probes on frozen encoders; evaluate knows it")
        ready = prepare(record, opened, fold)
        about, parts = _describe(encoder, ready, config)
        output.mkdir(parents=True, exist_ok=True)
        with exclusive(output):
            if going_on:
                folder.check_same(output, about)
            else:
                torch.manual_seed(config.seed)
                folder.begin(output, about, about.model(encoder), parts, opened)
            return _go_on(output, progress)


def resume(output: Path | str, *, progress: bool = True) -> Result:
    """Go on with the fine-tuning run in folder `output`, as its own `finetune.yaml` says. Raises as `finetune` does."""
    output = Path(output)
    folder.read_about(output)
    with one_line_for_the_disk(output), exclusive(output):
        return _go_on(output, progress)


def _describe(
    encoder: Encoder, ready: Prepared, config: FinetuneConfig
) -> tuple[folder.About, tuple[Manifest, Manifest]]:
    """What the run is, and its clips: those trained and chosen on, and those tested. Raises `ConfigError`."""
    record, assignment = ready.task, ready.assignments[0]
    for option in ("mixup", "roll", "balanced", "loss"):
        plain, unfit = FinetuneConfig.model_fields[option].default, option in ("balanced", "loss")
        if getattr(config, option) != plain and (record.level == "frame" or (unfit and record.kind == "values")):
            raise ConfigError(f"{option}: is not for {record.kind} by {record.level}; set it to {plain}")
    split = ready.manifest.with_column("split", assignment.tolist())
    used = np.isin(assignment, ("train", "dev"))
    parts = split.select(used), split.select(assignment == "test")
    standard = (0.0, 1.0)
    if record.kind == "values":
        values = ready.targets[assignment == "train"]
        standard = float(values.mean()), max(float(values.std()), 1e-8)
    about = folder.About(
        encoder=encoder.name or encoder.family,
        fingerprint=encoder.fingerprint(),
        task=record.name,
        target=record.target,
        kind=record.kind,
        level=record.level,
        metric=record.scored_by,
        unit=record.unit or record.group,
        classes=ready.classes,
        standard=standard,
        split=ready.rule,
        split_hash=ready.split_hash,
        clips=split.content_hash(),
        config=config,
    )
    return about, parts


def _go_on(output: Path, progress: bool) -> Result:
    about = folder.read_about(output)
    if (output / folder.RESULTS).exists() and not (output / folder.LATEST).exists():
        logger.info("%s: finished already", output)
        return read_results(output / folder.RESULTS)[0]
    loop = _Loop(output, about)
    try:
        return loop.run(progress)
    finally:
        loop.log.close()


class _Loop:
    """One session of a run. `step` updates are done."""

    def __init__(self, output: Path, about: folder.About) -> None:
        self.output, self.about, self.config = output, about, about.config
        self.ready = folder.reopen(output, about)
        if self.ready.classes != about.classes:
            raise CheckpointError(f"{output / folder.HEARD}: is not the run's own any more; put that one back")
        self.assignment = self.ready.assignments[0]
        self.clips = np.flatnonzero(self.assignment == "train")
        per_epoch = steps_per_epoch(len(self.clips), self.config.batch)
        self.train = self.config.train(self.config.epochs * per_epoch)
        self.every = self.config.valid_every or per_epoch
        self.device = Processes(self.train).device
        self.dtype = optim.autocast_dtype(self.train, self.device)

        newest = checkpoint.newest(output / folder.LATEST)
        if newest is None:
            raise CheckpointError(f"{output / folder.LATEST}: holds no whole checkpoint; start anew in another folder")
        self.model = about.model(load(newest)).to(self.device)
        checkpoint.load_weights(newest, self.model)
        self.optimizer = optim.build_optimizer(self.model, self.train, self.model.scales())
        self.state = checkpoint.read_state(newest)
        self.tally = Tally(self.device)
        self.step: int = self.state["step"]
        if self.step:
            counters = checkpoint.load_moments(newest, self.model, self.optimizer)
            self.tally.load(counters, self.state["names"])
        self.log = RunLog(output, self.step if self.step else -1)
        facts = {"precision": "bf16" if self.dtype else "fp32", "torch": torch.__version__, "device": self.device.type}
        self.log.session(self.step, **facts, threads=torch.get_num_threads())
        self.targets = clip_targets(self.ready, about.standard)
        self.weights = balanced_weights(self.targets[self.clips].numpy()) if self.config.balanced else None

    def run(self, progress: bool) -> Result:
        """Train to the end, or until dev says so; then score the best weights on test."""
        bar = tqdm(total=self.train.steps, initial=self.step, unit="step", desc="finetune", disable=not progress)
        began = time.monotonic()
        with bar, Signals() as signals, contextlib.closing(self._batches()) as batches:
            if self.step == 0:
                self._measure()
            while self.step < self.train.steps and self.state["stale"] < self.config.patience:
                self._update(*next(batches))
                bar.update()
                if self.step % self.every == 0 or self.step == self.train.steps:
                    bar.set_postfix_str(self._measure())
                elif signals.received:
                    self._save()
                if signals.received:
                    raise TrainingInterrupted(
                        f"{self.output}: stopped after step {self.step} of {self.train.steps}, and saved; go on with: "
                        f"auricle finetune --resume {self.output}"
                    )
        return self._score(time.monotonic() - began)

    def _batches(self) -> Generator[tuple[NDArray[np.int64], Batch], None, None]:
        plans = draws(self.clips, self.config.batch, self.config.seed, self.step, self.weights)
        batches = row_batches(self.ready.manifest, self.model.needs, plans, workers=self.config.workers)
        return cast(Generator[tuple[NDArray[np.int64], Batch], None, None], batches)

    def _update(self, rows: NDArray[np.int64], batch: Batch) -> None:
        """One optimizer step on a batch, in parts that the device can hold, without waiting for it."""
        self.step += 1
        for skip in batch.skipped:
            self.log.skip(self.step, skip)
        found = len(self.log.skipped)
        if found > self.config.max_skipped * len(self.ready.manifest):
            last = batch.skipped[-1]
            raise TooManySkipsError(
                f"{last.path}: {last.reason}; {found} of {len(self.ready.manifest)} clips are unusable, over "
                f"max_skipped = {self.config.max_skipped:g}: see {self.output / 'skipped.jsonl'}"
            )
        if not len(rows):
            return
        parts = plan_buckets(batch.lengths.numpy() / self.model.needs.sample_rate, self.config.batch_seconds)
        longest = [int(batch.lengths[part].max()) for part in parts]
        targets = (
            self.targets[rows].float()
            if self.about.level == "clip"
            else frame_targets(self.ready, rows, batch, self.model.encoder)
        )
        batch = replace(batch, labels={TARGET: targets}).to(self.device)
        torch.manual_seed(self._seed(0))
        if self.config.mixup:
            mixed = mix_waveforms(
                batch.waveforms, batch.lengths, batch.labels[TARGET], self.config.mixup, self.config.mixup_beta
            )
            batch = replace(batch, waveforms=mixed[0], labels={TARGET: mixed[1]})
        self.model.train()
        sums = torch.zeros((), device=self.device)
        for number, (part, samples) in enumerate(zip(parts, longest, strict=True), start=1):
            torch.manual_seed(self._seed(number))
            piece = _rows_of(batch, torch.from_numpy(part).to(self.device), samples)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                result = self.model(piece)
            (result.loss * result.count).backward()
            sums = sums + sums_of(result, piece.lengths.sum() / self.model.needs.sample_rate)
        norm, gated = optim.update(self.optimizer, self.step, self.train, sums[0], sums[1])
        self.tally.add(sums, norm, gated, [])

    def _measure(self) -> str:
        """Score dev, keep the weights if they are the best so far, and leave a checkpoint. Returns it in words."""
        if int(self.tally.gates[2]) >= PATIENCE:
            raise TrainingError(
                f"{self.output}: {PATIENCE} non-finite updates in a row before step {self.step}; lower lr, or set "
                "precision to fp32"
            )
        if self.tally.window is not None:
            values: dict[str, Any] = self.tally.read()
            self.state["audio_s"] += values["audio_s"]
            values |= {"lr": optim.learning_rate(self.step, self.train), "audio_s": self.state["audio_s"]}
            self.log.write(self.step, "train", values)
        answers, _ = self._answers(self.model, "dev")
        told = outcomes(self.ready, [answers])
        score = float(scorer(self.about.metric, told)(np.ones((1, told.units)))[0])
        sign = -1 if self.about.metric in LOWER_IS_BETTER else 1
        rank = [sign * score if math.isfinite(score) else -math.inf, -loss(self.ready, answers)]
        if self.state["rank"] is None or rank > self.state["rank"]:
            self.state |= {"best": score, "best_step": self.step, "rank": rank, "stale": 0}
            checkpoint.save(self.output / folder.BEST, self.step, self.model, {}, {}, {}, self._origin(), keep=1)
        else:
            self.state["stale"] += 1
        self.log.write(self.step, "valid", {self.about.metric: score, "loss": -rank[1], "best": self.state["best"]})
        self._save()
        return f"dev {self.about.metric} {score:.3f}, best {self.state['best']:.3f} at step {self.state['best_step']}"

    def _answers(self, model: Tuned, part: str) -> tuple[Answers, tuple[Embedder, int]]:
        """What the model answers on dev or test; the embedder, and the clips it could not embed."""
        embedder, skipped = Embedder(model.encoder, "mean", self.config.batch_seconds, model.layers), set[int]()
        embedder.name = self.about.encoder
        known = self.ready.targets[self.assignment == "train"]
        with _evaluating(model):
            if self.about.level == "clip":
                answers = clip_answers(embedder, self.ready, self.assignment, part, model, known)
                present, _ = embedder.clips(self.ready.manifest.select(answers.rows))
                return answers, (embedder, int((~present).sum()))
            codes = np.concatenate(list(known))
            commonest = int(np.bincount(codes[codes != UNLABELLED]).argmax())
            answers = frame_answers(embedder, self.ready, self.assignment, part, model, commonest, skipped)
            return answers, (embedder, len(skipped))

    def _score(self, seconds: float) -> Result:
        """The best weights on test, once; a Result beside its predictions. `latest` goes."""
        about, model = folder.best(self.output, str(self.device))
        test, (embedder, deaf) = self._answers(model, "test")
        dev, _ = self._answers(model, "dev")
        last, best = model.layers[0], self.state["best"]
        chosen = [Choice(head=self.config.head, layer=last, lr=self.config.lr, dev=best)]
        result = scored(
            self.ready,
            [test],
            encoder=about.encoder,
            fingerprint=about.fingerprint,
            dev=best,
            chosen=chosen,
            grid=chosen,
            skipped=deaf + len(self.log.skipped),
            seconds_encode=embedder.seconds,
            seconds_probe=seconds,
            settings=about.settings,
        )
        predictions = pa.concat_tables(
            [table(self.ready, part, answers) for part, answers in (("test", test), ("dev", dev))]
        )
        with _evaluating(model):
            result = write_result(
                result, with_map(predictions, embedder, self.ready, model), self.output / folder.RESULTS
            )
        folder.finish(self.output)
        return result

    # --------------------------------------------------------------------------------------------- small parts

    def _save(self) -> None:
        self.log.flush()
        moments = checkpoint.moments(self.model, self.optimizer)
        state = {key: self.state[key] for key in ("best", "best_step", "rank", "stale", "audio_s")}
        state["names"] = self.tally.names
        checkpoint.save(
            self.output / folder.LATEST, self.step, self.model, moments, self.tally.tensors(), state, {}, keep=1
        )

    def _origin(self) -> dict[str, Any]:
        return {"finetuned_from": self.about.encoder, "target": self.about.target}

    def _seed(self, number: int) -> int:
        """Of what a step draws for its mixtures (0), and for each of its parts (1, ...)."""
        words = np.random.SeedSequence([self.config.seed, self.step, number]).generate_state(1, np.uint64)
        return int(words[0]) >> 1


def _rows_of(batch: Batch, rows: Tensor, samples: int) -> Batch:
    """Some rows of a batch, as long as their longest."""
    labels = {name: value[rows] for name, value in batch.labels.items()}
    return replace(batch, waveforms=batch.waveforms[rows, :samples], lengths=batch.lengths[rows], labels=labels)


@contextlib.contextmanager
def _evaluating(model: Tuned) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
