"""`auricle export`: a trained encoder as a folder that transformers opens, or as an ONNX graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file

from auricle.encoders.base import Encoder, Layers
from auricle.encoders.checkpoint import CONFIG, load, newest_checkpoint
from auricle.encoders.huggingface import OBJECTIVE, write
from auricle.errors import ConfigError
from auricle.exporting.onnx import write_onnx

Format = Literal["hf", "onnx"]


def export(encoder: Encoder | str | Path, output: Path | str, *, format: Format, layers: Layers = "last") -> Path:
    """Write an encoder, or one by a name that `auricle.load` takes, into the folder `output`, which it returns.

    `hf`: a folder for transformers' `from_pretrained`, for encoders of family `waveform`; of a run, what the objective
    has learned (heads, teacher, clusters) lies beside in objective.safetensors. `onnx`: `model.onnx`, see `write_onnx`,
    with the hidden states of `layers`. Raises `ConfigError` for an encoder or layers that cannot be written so,
    `CheckpointError` as `auricle.load` does, `MissingDependencyError` without the packages of `auricle[onnx]`.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output}: is not an empty folder; choose another output")
    source = None if isinstance(encoder, Encoder) else Path(encoder)
    encoder = encoder if isinstance(encoder, Encoder) else load(encoder)
    if format == "hf":
        _write_hf(encoder, source, output)
    else:
        write_onnx(encoder, output, layers)
    return output


def _write_hf(encoder: Encoder, source: Path | None, output: Path) -> None:
    if encoder.family != "waveform":
        raise ConfigError(
            f"{encoder.name}: transformers has no model like encoders of family '{encoder.family}'; write it as onnx, "
            "or in auricle's own layout with encoder.save_pretrained(folder)"
        )
    folder = source and (newest_checkpoint(source) or source)
    if folder is None or not (folder / OBJECTIVE).is_file():
        write(encoder, output)
        return
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    about = {key: described[key] for key in ("method", "preset", "seed", "step") if key in described}
    write(encoder, output, load_file(folder / OBJECTIVE), about=about)
