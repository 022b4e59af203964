"""Verbs that learn: demo, pretrain, finetune."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from auricle.cli.options import Args, parse, take
from auricle.errors import ConfigError

if TYPE_CHECKING:
    from auricle.methods.base import RunConfig


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
    options = parse(Demo, "demo", args)
    from auricle.demo import tour

    tour(options.output, options.seconds, options.seed)


def pretrain(args: Args) -> int:
    """Learn from recordings: `auricle pretrain mockingjay-base --data ~/audio --output runs/mj`."""
    from auricle.methods import preset_names

    if "--resume" in args:
        return _resume(args)
    name = args.pop(0) if args and not args[0].startswith("-") else None
    config, args = take(args, "--config")
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
    options = parse(_pretrain_options(run), f"pretrain {name or run.preset}", args)
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

    folder = parse(Resume, "pretrain", args).resume
    resume(folder)
    _say_trained(folder)
    return 0


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

        again = parse(Resume, "finetune", args)
        result, folder, as_json = resume(again.resume), again.resume, again.json
    else:
        name, args = take(args, "--recipe")
        start = recipe(name or "default")
        own = ("config", Annotated[type(start), tyro.conf.arg(name="")], dataclasses.field(default=start))
        described = f"{Finetune.__doc__} Begin with --recipe NAME ({', '.join(RECIPES)}) to have its defaults below."
        kind = dataclasses.make_dataclass("Finetune", [own], bases=(Finetune,), namespace={"__doc__": described})
        options = vars(parse(kind, "finetune", args))
        folder, as_json = options["output"], options.pop("json")
        result = run(options.pop("encoder"), options.pop("data"), **options)
    print(json.dumps(result.model_dump(mode="json")) if as_json else table([result]))
    print(f"{folder}: label new recordings with: auricle predict {folder} --data NEW --output NEW.csv", file=sys.stderr)


def _is_main_process() -> bool:
    """False in all but the first of the processes that `torchrun` or `accelerate launch` starts."""
    return os.environ.get("RANK", "0") == "0"


def _say_trained(folder: Path) -> None:
    from auricle.config import read_yaml

    if _is_main_process():
        begun_with = read_yaml(folder / "config.yaml")["train"].get("init")
        others = [*([begun_with] if begun_with else []), "fbank", f"untrained:{folder}"]
        print(f"{folder}: evaluate it with: auricle evaluate {folder} {' '.join(others)} --suite quick")


def _pretrain_usage(presets: Sequence[str]) -> str:
    return f"""usage: auricle pretrain PRESET --data PATH [PATH ...] --output RUN [OPTIONS]
       auricle pretrain --config RUN/config.yaml --data PATH [PATH ...] --output RUN [OPTIONS]
       auricle pretrain --resume RUN

PRESET with --init ENCODER goes on from another encoder's weights (auricle list encoders).

presets: {", ".join(presets)}

auricle pretrain PRESET --help lists the options of its encoder, objective, data and training."""
