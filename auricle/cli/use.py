"""Verbs that use encoders: embed, evaluate, predict, export, and report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from auricle.cli.options import Args, device, layers, parse
from auricle.errors import ConfigError

Level = Literal["clip", "frames"]
STYLES: dict[str, Literal["markdown", "latex", "csv", "json", "text"]] = {
    ".md": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".json": "json",
    ".txt": "text",
}
"""Of tables, by the ending of the file."""


@dataclasses.dataclass
class Embed:
    """Embeddings of recordings, as Parquet shards. A second start does only what is missing."""

    encoder: Annotated[str, tyro.conf.Positional]
    """A run folder, fbank, s3prl:FILE, module:attribute or another form (auricle list encoders)."""
    data: tuple[Path, ...]
    """Folders of audio, and manifests."""
    output: Path
    """Folder to write."""
    level: Level = "clip"
    """One vector a clip, or its sequence of frames."""
    layers: str = "last"
    """last, all, mean, a named output such as layer19, or numbers such as 3,5 (0 is what enters the first block)."""
    pool: Literal["mean", "meanstd"] = "mean"
    """How frames become a clip's vector."""
    dtype: Literal["float32", "float16"] = "float32"
    """Stored precision."""
    precision: Literal["auto", "bf16", "fp32"] = "fp32"
    """Precision of the network."""
    batch_seconds: float = 120.0
    """Padded seconds of audio a batch."""
    workers: int = 0
    """Processes that read audio."""
    max_skipped: float = 1.0
    """Share of unusable clips above which the command fails (exit code 3)."""
    device: str = "auto"
    """auto, cpu, cuda:0, ..."""
    json: bool = False
    """Print the summary as JSON."""


def embed(args: Args) -> None:
    """Embeddings of recordings as Parquet: `auricle embed runs/mj --data ~/audio --output emb/`."""
    options = parse(Embed, "embed", args)
    from auricle.embedding.extract import embed as extract
    from auricle.encoders.checkpoint import load

    summary = extract(
        load(options.encoder, device(options.device)),
        options.data,
        options.output,
        level=options.level,
        layers=layers(options.layers),
        pool=options.pool,
        dtype=options.dtype,
        precision=options.precision,
        batch_seconds=options.batch_seconds,
        workers=options.workers,
        max_skipped=options.max_skipped,
    )
    print(json.dumps(dataclasses.asdict(summary)) if options.json else summary)


@dataclasses.dataclass
class Evaluate:
    """Probe encoders on labelled recordings: a suite, named tasks, or a column of your own labels.

    `auricle evaluate --recipe PAPER/ROW --corpora ROOT --dry-run`, or without the last, makes a published row.
    """

    encoders: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, fbank, untrained:RUN, s3prl:FILE, module:attribute, others (auricle list encoders); side by side."""
    suite: str | None = None
    """A suite's name (auricle list suites), or hear:DIR, a folder of HEAR's tasks as they are."""
    tasks: tuple[str, ...] = ()
    """Tasks' names (auricle list tasks)."""
    corpora: Path | None = None
    """Folder of the corpora that tasks need: each in a folder of its name, or NAME.parquet from auricle prepare."""
    protocol: str | None = None
    """How to probe, instead of each task's own way (auricle list protocols)."""
    data: tuple[Path, ...] = ()
    """Your own labelled recordings: manifests or folders."""
    target: str | None = None
    """Column of --data to predict; for suite verification the speakers (speaker unless set)."""
    level: Literal["clip", "frame"] | None = None
    """Chosen by the column unless set: interval columns are probed by frame."""
    metric: str | None = None
    """Chosen by the column unless set (accuracy, weighted_key, map, roc_auc, r2, mae, beat_f1_mean …)."""
    split: Literal["auto", "split", "folds"] = "auto"
    """The column `split`, folds (the column `fold`, or five made), or whichever is there; else made by a rule."""
    group: str | None = None
    """Column whose values never straddle a split that is made (a speaker, say)."""
    unit: str | None = None
    """Column the interval resamples; clips unless set."""
    speaker: str | None = None
    """Column of the speakers, for protocols that normalise by speaker (noss)."""
    pool: Literal["mean", "meanstd"] = "mean"
    """How frames become a clip's vector."""
    heads: tuple[Literal["linear", "mlp"], ...] = ("linear",)
    """Heads to try, of protocol auricle; the choice is made on dev."""
    layers: str = "all"
    """Layers to try: all, last, a named output such as layer19, or numbers such as 3,5; the choice is made on dev."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the heads."""
    trials: str | None = None
    """Of verification-clean: a file of lines `label enrol test`, or a list (voxceleb1-o-cleaned, ...) in --data."""
    trial_count: int = 10_000
    """Trials drawn of each kind, same and different speaker, where none are given; 0: all pairs."""
    as_norm: int = 0
    """Clips of the cohort by which verification scores are normalised; 0: not at all."""
    center: bool = False
    """Subtract the cohort's mean before verification."""
    output: Path = Path("results")
    """Results folder."""
    overwrite: Literal["always", "never", "only-missing"] = "only-missing"
    """What to do about results that are already there."""
    cache: str = "auto"
    """Folder of embeddings, by content and encoder: nothing is encoded twice. auto: .cache in the output; off: none."""
    device: str = "auto"
    """auto, cpu, cuda:0, ..."""
    json: bool = False
    """Print results as JSON."""


def evaluate(args: Args) -> int:
    """Measure encoders: `auricle evaluate runs/mj fbank --data labels.csv --target speaker --output results/`."""
    if any(word.partition("=")[0] == "--recipe" for word in args):
        from auricle.cli.recipes import evaluate_recipe

        return evaluate_recipe(args)
    options = parse(Evaluate, "evaluate", args)
    from auricle.evaluation.results import table
    from auricle.evaluation.run import evaluate as run

    results = run(
        options.encoders,
        tasks=options.tasks or None,
        suite=options.suite,
        corpora=options.corpora,
        protocol=options.protocol,
        data=options.data or None,
        target=options.target,
        level=options.level,
        metric=options.metric,
        split=options.split,
        group=options.group,
        unit=options.unit,
        speaker=options.speaker,
        pool=options.pool,
        heads=options.heads,
        layers=layers(options.layers),
        seeds=options.seeds,
        trials=options.trials,
        trial_count=options.trial_count,
        as_norm=options.as_norm,
        center=options.center,
        output=options.output,
        overwrite=options.overwrite,
        cache=None if options.cache == "off" else options.cache,
        device=device(options.device),
    )
    print(json.dumps([result.model_dump(mode="json") for result in results]) if options.json else table(results))
    return 0


@dataclasses.dataclass
class Predict:
    """The answers of a fine-tuned encoder on recordings, as CSV: prediction, and the probability of each class."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that finetune has made."""
    data: tuple[Path, ...]
    """Folders of audio, and manifests."""
    output: Path
    """CSV to write; a JSON file of the same name says what it is, and lists the recordings that could not be used."""
    batch_seconds: float = 120.0
    """Padded seconds of audio a batch."""
    workers: int = 0
    """Processes that read audio."""
    device: str = "auto"
    """auto, cpu, cuda:0, ..."""


def predict(args: Args) -> None:
    """Label recordings: `auricle predict runs/ft --data new/ --output predictions.csv`."""
    options = parse(Predict, "predict", args)
    from auricle.evaluation.finetuning.predict import predict as run

    rows = run(
        options.run,
        options.data,
        options.output,
        batch_seconds=options.batch_seconds,
        workers=options.workers,
        device=device(options.device),
    )
    print(f"{options.output}: {rows.num_rows} rows")


@dataclasses.dataclass
class Export:
    """An encoder for other people's tools."""

    encoder: Annotated[str, tyro.conf.Positional]
    """A run folder, or another form (auricle list encoders)."""
    format: Literal["hf", "onnx"]
    """hf: a folder that transformers opens with from_pretrained; onnx: a graph, front end included, for onnxruntime."""
    output: Path
    """Folder to make."""
    layers: str = "last"
    """Of onnx: last, all, mean, a named output such as layer19, or numbers such as 0,3."""


def export(args: Args) -> None:
    """For other tools: `auricle export runs/hubert --format hf --output hubert/`, or `--format onnx`."""
    options = parse(Export, "export", args)
    from auricle.exporting.run import export as run

    folder = run(options.encoder, options.output, format=options.format, layers=layers(options.layers))
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


@dataclasses.dataclass
class Report:
    """One self-contained HTML page from run and results folders; or a table of results alone."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders and results folders."""
    output: Path = Path("report.html")
    """Page to write; or a table, as Markdown (.md), LaTeX (.tex), CSV (.csv), JSON (.json) or text (.txt)."""


def report(args: Args) -> None:
    """A page to look at and listen to: `auricle report runs/mj results/ --output report.html`."""
    options = parse(Report, "report", args)
    if style := STYLES.get(options.output.suffix.lower()):
        from auricle.embedding.store import write_atomic
        from auricle.evaluation.results import read_results, table

        text = table(read_results(options.folders), style) + "\n"
        write_atomic(options.output, lambda file: file.write(text.encode()))
        print(options.output)
        return
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{options.output}: ends neither in .html nor as a table does ({', '.join(STYLES)})")
    from auricle.report.build import build_report

    print(build_report(options.folders, options.output))
