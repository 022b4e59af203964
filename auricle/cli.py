"""The command line: a thin function a verb. Heavy rooms are imported inside the verb that needs them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import auricle
from auricle.errors import AuricleError, ConfigError, unknown

if TYPE_CHECKING:
    from auricle.methods.base import RunConfig

Args = list[str]
Level = Literal["clip", "frames"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0 done, 2 the user's mistake, 3 too many skips, 130 interrupted and saved."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if args[0] == "--version":
        print(f"auricle {auricle.__version__}")
        return 0
    _log_to_stderr()
    try:
        if args[0] not in VERBS:
            raise ConfigError(unknown("command", args[0], VERBS))
        return VERBS[args[0]](args[1:]) or 0
    except AuricleError as error:
        print(f"auricle: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("auricle: interrupted", file=sys.stderr)
        return 130


# --------------------------------------------------------------------------------------------------- demo


@dataclasses.dataclass
class Demo:
    """The guided tour, offline: pre-train on the bundled recordings, embed, evaluate, and a page to look at."""

    output: Path = Path("auricle-demo")
    """Folder for the run, the results and the page; an earlier demo there is replaced."""
    seconds: float = 150.0
    """Time for all of it; pre-training takes what the rest leaves."""
    seed: int = 0
    """Seed of the run."""


def demo(args: Args) -> None:
    """Three minutes, offline: pre-train, embed, evaluate, and a page to look at."""
    options = _parse(Demo, "demo", args)
    from auricle.demo import tour

    tour(options.output, options.seconds, options.seed)


# ----------------------------------------------------------------------------------------------- pretrain


def pretrain(args: Args) -> int:
    """Learn from recordings: `auricle pretrain mockingjay-base --data ~/audio --output runs/mj`."""
    from auricle.methods import preset_names

    if "--resume" in args:
        return _resume(args)
    name = args.pop(0) if args and not args[0].startswith("-") else None
    config, args = _take(args, "--config")
    if name is None and config is None:
        if args in ([], ["-h"], ["--help"]):
            print(_pretrain_usage(preset_names()))
            return 0
        raise ConfigError(f"pretrain: name a preset ({', '.join(preset_names())}) or give --config FILE.yaml")

    from auricle.config import edit, read_yaml
    from auricle.methods import preset, run_from_yaml

    values = read_yaml(config) if config else {}
    if name is None:
        run = run_from_yaml(values, str(config))
    else:  # the preset first, then what the file changes in it
        run = preset(name)
        if values.get("method", run.method) != run.method:
            raise ConfigError(f"{config}: is of method '{values['method']}', but preset '{name}' is of '{run.method}'")
        about = ("format", "auricle", "method", "preset")
        run = edit(run, **{key: value for key, value in values.items() if key not in about})
    options = _parse(_pretrain_options(run), f"pretrain {name or run.preset}", args)
    from auricle.training.loop import pretrain as train

    train(options.run, options.data, options.output)
    _say_trained(options.output)
    return 0


def _pretrain_options(run: RunConfig) -> type[Any]:
    """Options of a run: those of every run, and every field of its config with the value it has in `run`."""

    @dataclasses.dataclass
    class Pretrain:
        data: tuple[Path, ...]
        """Folders of audio, and CSV, TSV, JSONL or Parquet manifests, in any number."""
        output: Path
        """Run folder to make."""

    own = ("run", Annotated[type(run), tyro.conf.arg(name="")], dataclasses.field(default=run))
    return dataclasses.make_dataclass("Pretrain", [own], bases=(Pretrain,))


def _resume(args: Args) -> int:
    @dataclasses.dataclass
    class Resume:
        resume: Path
        """Run folder of an interrupted run."""

    from auricle.training.loop import resume

    folder = _parse(Resume, "pretrain", args).resume
    resume(folder)
    _say_trained(folder)
    return 0


# -------------------------------------------------------------------------------------------------- embed


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
    options = _parse(Embed, "embed", args)
    from auricle.embedding.extract import embed as extract
    from auricle.encoders.checkpoint import load

    summary = extract(
        load(options.encoder, _device(options.device)),
        options.data,
        options.output,
        level=options.level,
        layers=_layers(options.layers),
        pool=options.pool,
        dtype=options.dtype,
        precision=options.precision,
        batch_seconds=options.batch_seconds,
        workers=options.workers,
        max_skipped=options.max_skipped,
    )
    print(json.dumps(dataclasses.asdict(summary)) if options.json else summary)


# ----------------------------------------------------------------------------------------------- evaluate


@dataclasses.dataclass
class Evaluate:
    """Probe encoders on labelled recordings: a suite, named tasks, or a column of your own labels."""

    encoders: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, fbank, untrained:RUN, s3prl:FILE, module:attribute, others (auricle list encoders); side by side."""
    suite: str | None = None
    """A suite's name (auricle list suites)."""
    tasks: tuple[str, ...] = ()
    """Tasks' names (auricle list tasks)."""
    data: tuple[Path, ...] = ()
    """Your own labelled recordings: manifests or folders."""
    target: str | None = None
    """Column of --data to predict."""
    level: Literal["clip", "frame"] | None = None
    """Chosen by the column unless set: interval columns are probed by frame."""
    metric: str | None = None
    """Chosen by the column unless set."""
    split: Literal["auto", "split", "folds"] = "auto"
    """The column `split`, folds (the column `fold`, or five made), or whichever is there; else made by a rule."""
    group: str | None = None
    """Column whose values never straddle a split that is made (a speaker, say)."""
    unit: str | None = None
    """Column the interval resamples; clips unless set."""
    pool: Literal["mean", "meanstd"] = "mean"
    """How frames become a clip's vector."""
    heads: tuple[Literal["linear", "mlp"], ...] = ("linear",)
    """Heads to try; the choice is made on dev."""
    layers: str = "all"
    """Layers to try: all, last, a named output such as layer19, or numbers such as 3,5; the choice is made on dev."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the heads."""
    output: Path = Path("results")
    """Results folder."""
    overwrite: Literal["always", "never", "only-missing"] = "only-missing"
    """What to do about results that are already there."""
    device: str = "auto"
    """auto, cpu, cuda:0, ..."""
    json: bool = False
    """Print results as JSON."""


def evaluate(args: Args) -> None:
    """Measure encoders: `auricle evaluate runs/mj fbank --data labels.csv --target speaker --output results/`."""
    options = _parse(Evaluate, "evaluate", args)
    from auricle.evaluation.results import table
    from auricle.evaluation.run import evaluate as run

    results = run(
        options.encoders,
        tasks=options.tasks or None,
        suite=options.suite,
        data=options.data or None,
        target=options.target,
        level=options.level,
        metric=options.metric,
        split=options.split,
        group=options.group,
        unit=options.unit,
        pool=options.pool,
        heads=options.heads,
        layers=_layers(options.layers),
        seeds=options.seeds,
        output=options.output,
        overwrite=options.overwrite,
        device=_device(options.device),
    )
    print(json.dumps([result.model_dump(mode="json") for result in results]) if options.json else table(results))


# --------------------------------------------------------------------------------------- finetune, predict


@dataclasses.dataclass
class Finetune:
    """Train an encoder, or its last blocks, with a head on labels; `auricle predict` then labels new recordings."""

    encoder: Annotated[str, tyro.conf.Positional]
    """What to start from: a run folder, a checkpoint, untrained:RUN (auricle list encoders); it must have weights."""
    data: tuple[Path, ...]
    """Labelled recordings: manifests or folders."""
    target: str
    """Column of --data to predict: classes, several labels (with `;`), numbers, or intervals (by frame)."""
    output: Path
    """Folder to make."""
    level: Literal["clip", "frame"] | None = None
    """Chosen by the column unless set: interval columns are learned by frame."""
    metric: str | None = None
    """Chosen by the column unless set; decides which weights are best on dev."""
    split: Literal["auto", "split", "folds"] = "auto"
    """The column `split`, folds (the column `fold`, or five made), or whichever is there; else made by a rule."""
    fold: int = 0
    """Of folds, the number of the one to test on; the next is dev."""
    group: str | None = None
    """Column whose values never straddle a split that is made (a speaker, say)."""
    unit: str | None = None
    """Column the interval resamples; clips unless set."""
    json: bool = False
    """Print the result as JSON."""


def finetune(args: Args) -> None:
    """Train an encoder on labels: `auricle finetune runs/mj --data labels.csv --target word --output runs/ft`."""
    from auricle.evaluation.finetuning.config import RECIPES, recipe
    from auricle.evaluation.finetuning.loop import finetune as run
    from auricle.evaluation.finetuning.loop import resume
    from auricle.evaluation.results import table

    if "--resume" in args:

        @dataclasses.dataclass
        class Resume:
            resume: Path
            """Folder of an interrupted fine-tuning run."""
            json: bool = False
            """Print the result as JSON."""

        again = _parse(Resume, "finetune", args)
        result, folder, as_json = resume(again.resume), again.resume, again.json
    else:
        name, args = _take(args, "--recipe")
        start = recipe(name or "default")
        own = ("config", Annotated[type(start), tyro.conf.arg(name="")], dataclasses.field(default=start))
        described = f"{Finetune.__doc__} Begin with --recipe NAME ({', '.join(RECIPES)}) to have its defaults below."
        kind = dataclasses.make_dataclass("Finetune", [own], bases=(Finetune,), namespace={"__doc__": described})
        options = vars(_parse(kind, "finetune", args))
        folder, as_json = options["output"], options.pop("json")
        result = run(options.pop("encoder"), options.pop("data"), **options)
    print(json.dumps(result.model_dump(mode="json")) if as_json else table([result]))
    print(f"{folder}: label new recordings with: auricle predict {folder} --data NEW --output NEW.csv", file=sys.stderr)


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
    options = _parse(Predict, "predict", args)
    from auricle.evaluation.finetuning.predict import predict as run

    rows = run(
        options.run,
        options.data,
        options.output,
        batch_seconds=options.batch_seconds,
        workers=options.workers,
        device=_device(options.device),
    )
    print(f"{options.output}: {rows.num_rows} rows")


# ------------------------------------------------------------------------------- report, list, check, prepare


@dataclasses.dataclass
class Report:
    """One self-contained HTML page from run and results folders."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders and results folders."""
    output: Path = Path("report.html")
    """Page to write."""


def report(args: Args) -> None:
    """A page to look at and listen to: `auricle report runs/mj results/ --output report.html`."""
    options = _parse(Report, "report", args)
    from auricle.report.build import build_report

    print(build_report(options.folders, options.output))


@dataclasses.dataclass
class List:
    """Names that other commands take."""

    what: Annotated[Literal["presets", "recipes", "encoders", "tasks", "suites", "corpora"], tyro.conf.Positional]
    json: bool = False
    """Print as JSON."""


def list_names(args: Args) -> None:
    """Names that other commands take: `auricle list presets|recipes|encoders|tasks|suites|corpora`."""
    options = _parse(List, "list", args)
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
    options = _parse(Check, "check", args)
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
    options = _parse(Prepare, "prepare", args)
    from auricle.data.corpora import read_corpus

    given = {name: getattr(options, name) for name in ("subsets", "alignments", "cpc") if getattr(options, name)}
    manifest = read_corpus(options.corpus, options.folder, **given)
    manifest.save(options.output)
    hours = manifest.durations.sum() / 3600
    print(f"{options.output}: {len(manifest)} clips, {hours:.1f} h, columns {', '.join(manifest.labels)}")


VERBS: dict[str, Callable[[Args], int | None]] = {
    "demo": demo,
    "pretrain": pretrain,
    "embed": embed,
    "evaluate": evaluate,
    "finetune": finetune,
    "predict": predict,
    "report": report,
    "list": list_names,
    "check": check,
    "prepare": prepare,
}


# ------------------------------------------------------------------------------------------------- helpers


def _parse(kind: type[Any], verb: str, args: Args) -> Any:
    return tyro.cli(kind, prog=f"auricle {verb}", args=args)


def _take(args: Args, option: str) -> tuple[str | None, Args]:
    """The value of `--option VALUE` or `--option=VALUE`, and the arguments without it."""
    for place, word in enumerate(args):
        if word == option:
            if place + 1 == len(args):
                raise ConfigError(f"{option}: expected a file name after it")
            return args[place + 1], args[:place] + args[place + 2 :]
        if word.startswith(f"{option}="):
            return word.partition("=")[2], args[:place] + args[place + 1 :]
    return None, args


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_main_process() -> bool:
    """False in all but the first of the processes that `torchrun` or `accelerate launch` starts."""
    return os.environ.get("RANK", "0") == "0"


def _say_trained(folder: Path) -> None:
    if _is_main_process():
        print(f"{folder}: evaluate it with: auricle evaluate {folder} fbank untrained:{folder} --suite quick")


def _layers(text: str) -> str | list[int]:
    """A word or a name as it is, else numbers split at commas."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        return text


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("auricle")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _usage() -> str:
    verbs = "\n".join(f"  {name:9} {(verb.__doc__ or '').strip()}" for name, verb in VERBS.items())
    return f"""usage: auricle COMMAND [OPTIONS]     (auricle COMMAND --help explains each)

{verbs}"""


def _pretrain_usage(presets: Sequence[str]) -> str:
    return f"""usage: auricle pretrain PRESET --data PATH [PATH ...] --output RUN [OPTIONS]
       auricle pretrain --config RUN/config.yaml --data PATH [PATH ...] --output RUN [OPTIONS]
       auricle pretrain --resume RUN

presets: {", ".join(presets)}

auricle pretrain PRESET --help lists the options of its encoder, objective, data and training."""


if __name__ == "__main__":
    sys.exit(main())
