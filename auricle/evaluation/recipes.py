"""Published rows as recipes: which recordings, which commands, what was reported, what it costs.

A recipe is a YAML file `recipes/<paper>/<row>.yaml` of this package, known as `<paper>/<row>`, or a file of one's own.
It is data: `auricle.cli.recipes` checks and runs it.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from auricle.config import Config, read_yaml
from auricle.data.corpora import CORPORA, find_corpus, read_corpus
from auricle.errors import AuricleError, ConfigError, ManifestError, unknown

if TYPE_CHECKING:
    from auricle.data.manifest import Manifest
    from auricle.encoders.base import Encoder

FORMAT = 1
"""Layout of recipes that this package reads."""
VERBS = ("prepare", "pretrain", "finetune", "evaluate")
"""Commands that a recipe may hold."""
PROVENANCE = {
    "paper": "read in the paper",
    "readme": "read in the authors' README",
    "card": "read in the authors' model card",
    "quoted": "read in another paper, which quotes or measured it",
}
"""Where a reported number was read. Numbers that were only recalled are in no recipe."""


class Recordings(Config):
    """A corpus of `auricle list corpora`, or recordings of one's own, in the folder of all corpora."""

    corpus: str = ""
    """Key in the table of corpora."""
    options: dict[str, Any] = Field({})
    """Of the corpus's reader."""
    file: str = ""
    """Instead of a corpus: a manifest, or a folder of audio."""
    columns: tuple[str, ...] = ()
    """That the manifest `file` must have."""
    about: str = ""
    """What the recordings are for, or where to get them."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.corpus) == bool(self.file):
            raise ValueError("give either corpus or file")
        if self.corpus and self.corpus not in CORPORA:
            raise ValueError(unknown("corpus", self.corpus, CORPORA))
        return self

    def __str__(self) -> str:
        options = ", ".join(f"{key} {_plain(value)}" for key, value in self.options.items())
        return self.file or (f"{self.corpus} ({options})" if options else self.corpus)


class Expected(Config):
    """A number as it was reported."""

    task: str
    """The recipe's task or column that it is about."""
    value: float
    """As printed, in percent."""
    metric: str
    """Key in the table of metrics."""
    source: str
    """Publication and table."""
    provenance: Literal["paper", "readme", "card", "quoted"]
    """Key in `PROVENANCE`."""
    encoder: str = ""
    """Which of the recipe's encoders, where it has several."""

    def __str__(self) -> str:
        whose = f" of {self.encoder}" if self.encoder else ""
        return f"{self.task}{whose}: {self.metric} {self.value:g} ({self.source}; {PROVENANCE[self.provenance]})"


class Cost(Config):
    """What a run takes, pre-training included."""

    gpu_hours: float | None = Field(None, gt=0)
    """Hours of one GPU."""
    cpu_hours: float | None = Field(None, gt=0)
    """Hours of one CPU core."""
    basis: str
    """How that was found."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.gpu_hours is None) == (self.cpu_hours is None):
            raise ValueError("give either gpu_hours or cpu_hours")
        return self

    def __str__(self) -> str:
        hours, unit = (self.gpu_hours, "GPU") if self.gpu_hours else (self.cpu_hours, "CPU")
        return f"about {hours:g} {unit} hours: {self.basis}"


class Recipe(Config):
    """A published row, and the commands that make our version of it."""

    format: int = FORMAT
    """Layout of the file."""
    name: str
    """`<paper>/<row>`, or the path of a file of one's own."""
    paper: str
    """Citation."""
    row: str
    """Which row of which table, in words."""
    corpora: tuple[Recordings, ...]
    """All recordings that the commands read."""
    encoders: tuple[str, ...] = Field(min_length=1)
    """What is evaluated, unless a person names encoders of their own, which are then not pre-trained."""
    commands: tuple[str, ...] = Field(min_length=1)
    """Command lines, one after another. `{corpora}` is the folder of all corpora, `{runs}` a folder that all recipes
    share, `{output}` the recipe's own, `{encoders}` all encoders; a command with `{encoder}` is there once for each,
    `{name}` being a folder's name for it."""
    expected: tuple[Expected, ...] | None
    """What was reported; None where no number was verified."""
    cost: Cost
    note: str = ""
    """In what ours differs from what was published."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format > FORMAT:
            raise ValueError(f"format {self.format} is newer than this package reads; upgrade auricle")
        if self.expected is None and not self.note:
            raise ValueError("note: say why no number is expected")
        for command in self.commands:
            if not command.startswith(tuple(f"auricle {verb} " for verb in VERBS)):
                raise ValueError(f"commands: '{command}' is none of auricle {', '.join(VERBS)}")
        return self

    def __str__(self) -> str:
        if self.expected is None:
            return f"{self.row} (no number verified)"
        return f"{self.row} (reported: {', '.join(f'{one.value:g}' for one in self.expected)})"

    def steps(
        self, *, corpora: Path | str, runs: Path | str, output: Path | str, encoders: tuple[str, ...] = ()
    ) -> list[list[str]]:
        """The commands as arguments of `auricle`, every placeholder filled in.

        With `encoders` of one's own, pre-training is left out, and so is preparing what only it hears.
        """
        places = {"corpora": str(corpora), "runs": str(runs), "output": str(output)}
        chosen = encoders or tuple(_fill(name, places) for name in self.encoders)
        steps = []
        for command in self.commands:
            words = shlex.split(command)[1:]
            if encoders and words[0] == "pretrain":
                continue
            for name in chosen if any("{encoder}" in word or "{name}" in word for word in words) else chosen[:1]:
                filled = places | {"encoder": name, "name": _slug(name)}
                step: list[str] = []
                for word in words:
                    step += chosen if word == "{encoders}" else [_fill(word, filled)]
                steps.append(step)
        read = {word for step in steps if step[0] != "prepare" for word in step}
        return [step for step in steps if step[0] != "prepare" or step[step.index("--output") + 1] in read]


def recipe_names() -> list[str]:
    """The recipes of this package, `<paper>/<row>` each."""
    return sorted(path.relative_to(_home()).with_suffix("").as_posix() for path in _home().glob("*/*.yaml"))


def load_recipe(name: str | Path) -> Recipe:
    """A recipe of this package by name, or in a YAML file.

    Raises `ConfigError` for an unknown name, and for whatever is wrong in the file.
    """
    path = _home() / f"{name}.yaml"
    if str(name) not in recipe_names():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(unknown("paper's row", str(name), recipe_names()))
    return Recipe.parse({"name": str(name), **read_yaml(path)}, str(path))


# ---------------------------------------------------------------------------------------- what is there, and how fast


@dataclass(frozen=True)
class Found:
    """What there is of some recordings; no audio was decoded."""

    label: str
    manifest: Manifest | None = None
    problem: str = ""
    """Why they cannot be used, in one line."""

    @property
    def hours(self) -> float:
        """Of all clips."""
        return 0.0 if self.manifest is None else float(self.manifest.durations.sum()) / 3600

    @property
    def longest_s(self) -> float:
        """Seconds of the longest clip."""
        return 0.0 if self.manifest is None or not len(self.manifest) else float(self.manifest.durations.max())

    def __str__(self) -> str:
        if self.manifest is None or self.problem:
            return f"{self.label}: MISSING ({self.problem})"
        return f"{self.label}: {len(self.manifest)} clips, {self.hours:.2f} h, the longest {self.longest_s:.1f} s"


def look(wanted: Recordings, root: Path | str, *, official: bool = False) -> Found:
    """Whether recordings are in the folder of all corpora, by layout, file names and headers.

    `official`: the corpus must lie there in its official layout, as `auricle prepare` needs it.
    """
    from auricle.data.manifest import Manifest  # which imports pyarrow

    label = str(wanted)
    try:
        if wanted.file:
            place = Path(root) / wanted.file
            if not place.exists():
                raise ManifestError(f"{place}: no such file or folder; {wanted.about}")
            manifest = Manifest.open(place)
        elif official and wanted.corpus != "bundled":
            folder, corpus = Path(root) / wanted.corpus, CORPORA[wanted.corpus]
            if not folder.is_dir():
                raise ManifestError(f"{root}: holds no folder {wanted.corpus}; get {corpus.title}: {corpus.url}")
            options = {
                key: Path(_fill(value, {"root": str(root)})) if "{root}" in str(value) else value
                for key, value in wanted.options.items()
            }
            manifest = read_corpus(wanted.corpus, folder, **options)
        else:
            manifest = find_corpus(wanted.corpus, root, **wanted.options)
        for column in wanted.columns:
            if column not in manifest.table.column_names:
                raise ManifestError(f"{label}: {unknown('column', column, manifest.labels)}")
    except AuricleError as error:
        return Found(label, problem=str(error))
    return Found(label, manifest)


@dataclass(frozen=True)
class Speed:
    """How fast an encoder is on this machine, and how wide."""

    seconds: float
    """To encode a second of audio."""
    width: int
    """Channels of all its layers together."""
    heads: int
    """Of attention; 0 where there is none, or where it is not told."""
    tokens_per_s: float
    window: int
    """Most tokens that attention sees at once."""

    def memory(self, vectors: int, longest_s: float) -> int:
        """Bytes of so many vectors of all layers in float32, and of one layer's attention on the longest clip, should
        it be computed as a whole."""
        tokens = min(longest_s * self.tokens_per_s, self.window)
        return 4 * (vectors * self.width + int(self.heads * tokens**2))


def measure(encoder: Encoder, seconds: float = 4.0) -> Speed:
    """Time an encoder on so many seconds of noise, after a first second that counts for nothing."""
    import torch

    with torch.inference_mode():
        for duration in (1.0, seconds):
            samples = int(duration * encoder.sample_rate)
            noise = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
            started = time.perf_counter()
            encoder(noise.to(encoder.device), torch.tensor([samples], device=encoder.device))
            if encoder.device.type == "cuda":
                torch.cuda.synchronize(encoder.device)
            taken = time.perf_counter() - started
    config = encoder.config if hasattr(encoder, "config") else None
    bands, chunk = getattr(config, "bands", 1), getattr(config, "chunk_frames", 0)
    return Speed(
        seconds=taken / seconds,
        width=sum(encoder.dims),
        heads=getattr(config, "heads", 0) if chunk else 0,
        tokens_per_s=bands * encoder.sample_rate / encoder.hop,
        window=bands * (chunk // getattr(config, "patch_frames", 1)),
    )


def _home() -> Path:
    return Path(str(files("auricle"))) / "recipes"


def _fill(word: str, places: Mapping[str, str]) -> str:
    for key, value in places.items():
        word = word.replace(f"{{{key}}}", value)
    return word


def _slug(name: str) -> str:
    twin = "untrained-" if name.startswith("untrained:") else ""
    return twin + (re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.") or "encoder")


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
