"""An encoder as an ONNX graph, front end included: for any batch and any length, checked against PyTorch."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import auricle
from auricle.encoders import FAMILIES
from auricle.encoders.base import Encoder, Layers, choose_layers
from auricle.errors import ConfigError, MissingDependencyError

FORMAT = 1
"""Layout of the graph's inputs, outputs and metadata."""
MODEL = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""Largest difference from PyTorch that is let through, as a share of the layer's largest value; 1e-5 is usual."""


def write_onnx(encoder: Encoder, folder: Path | str, layers: Layers = "last") -> Path:
    """Write `folder`/model.onnx and return its path.

    Inputs: `waveforms` (B, S) float32, zero past the clips' ends, and `lengths` (B,) int64 in samples; any B, any S.
    Outputs: for each of `layers` `layer_N` (B, T, D), or their `mean`, and `frames` (B,) int64; what lies past a clip's
    frames is undefined. Clips of any length are encoded in one pass, where encoders here take long ones in windows: the
    memory of attention grows with the length squared, so cut them. The metadata hold `sample_rate`, `hop`, `offset`,
    `layers`, the config, and the versions of format and package. The graph is run by onnxruntime and compared before
    this returns. Raises `MissingDependencyError`, and `ConfigError` for what has no such graph.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingDependencyError(f"onnx: needs {', '.join(missing)}; install it with: pip install 'auricle[onnx]'")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        raise MissingDependencyError(f"onnx: needs torch 2.10 or newer, this is {torch.__version__}")
    if encoder.family not in FAMILIES:
        raise ConfigError(f"{encoder.name}: onnx is for auricle's own encoders; this one is somebody else's code")
    chosen = choose_layers(layers, encoder.dims, encoder.outputs)
    names = ["mean"] if layers == "mean" else [f"layer_{layer}" for layer in chosen]
    if len(set(names)) < len(names):
        raise ConfigError("layers: name each layer once")
    graph = _Graph(encoder, chosen, layers == "mean")
    program = _program(graph, names)
    program.model.metadata_props.update(_metadata(encoder, chosen, layers == "mean"))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    program.save(folder / MODEL)  # past 2 GB the weights lie beside it
    _check(graph, folder / MODEL)
    return folder / MODEL


class _Graph(nn.Module):
    """What is exported: a copy of the encoder on the CPU, for these layers."""

    def __init__(self, encoder: Encoder, layers: list[int], mean: bool) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            self.encoder = type(encoder)(encoder.config)
        self.encoder.load_state_dict(encoder.state_dict())
        self.encoder.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.encoder.name = encoder.name
        if "chunk_frames" in type(encoder.config).model_fields:  # one pass, here and in the graph
            self.encoder.config = encoder.config.model_copy(update={"chunk_frames": sys.maxsize})
        self.layers, self.mean = layers, mean

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Waveforms (B, S) and lengths (B,) to hidden states (B, T, D) and their true numbers (B,)."""
        frames = self.encoder(waveforms, lengths, self.layers)
        states = [torch.stack(frames.hidden_states).mean(0)] if self.mean else frames.hidden_states
        return *states, frames.lengths

    def least(self) -> int:
        """Samples that are enough for two frames, a power of two: from there on, no size in the graph is special."""
        samples = 1024
        while self.encoder(torch.zeros(1, samples), torch.tensor([samples]), self.layers[:1]).lengths[0] < 2:
            samples *= 2
        return samples


@torch.no_grad()
def _program(graph: _Graph, names: list[str]) -> Any:
    """The graph as a `torch.onnx.ONNXProgram`."""
    least = graph.least()
    example = torch.randn(2, least + least // 3), torch.tensor([least + least // 3, least])
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("samples", min=least)
    try:
        with _quiet():
            exported = torch.export.export(
                graph,
                example,
                dynamic_shapes=({0: batch, 1: samples}, {0: batch}),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            # Not optimised: the optimiser takes constants below 1e-8 for 0, and the floor under a logarithm is one.
            program = torch.onnx.export(
                exported,
                input_names=["waveforms", "lengths"],
                output_names=[*names, "frames"],
                dynamo=True,
                optimize=False,
            )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{graph.encoder.name}: has no ONNX graph, because PyTorch cannot trace it ({reason})"
        ) from None
    assert program is not None  # it is when a file is named
    _pad_short(program.model, least)
    return program


def _pad_short(model: Any, least: int) -> None:
    """Put a `Pad` before the graph: shorter waveforms are followed by zeros up to `least` samples."""
    import onnx_ir as ir

    graph = model.graph
    inner = graph.inputs[0]
    outer = ir.Value(name=inner.name, shape=ir.Shape(["batch", "samples"]), type=inner.type)
    inner.name, inner.shape = "padded", ir.Shape(["batch", "at_least"])
    graph.inputs[0] = outer

    def constant(name: str, values: list[int]) -> Any:
        value = ir.Value(name=name, const_value=ir.tensor(values, dtype=ir.DataType.INT64, name=name))
        graph.register_initializer(value)
        return value

    size = ir.node("Shape", [outer], {"start": 1})
    missing = ir.node("Sub", [constant("least", [least]), size.outputs[0]])
    behind = ir.node("Max", [missing.outputs[0], constant("none", [0])])
    pads = ir.node("Concat", [constant("before", [0, 0, 0]), behind.outputs[0]], {"axis": 0})
    pad = ir.node("Pad", [outer, pads.outputs[0]], outputs=[inner])
    graph.insert_before(graph[0], [size, missing, behind, pads, pad])


def _metadata(encoder: Encoder, layers: list[int], mean: bool) -> dict[str, str]:
    values = {
        "format": FORMAT,
        "auricle": auricle.__version__,
        "family": encoder.family,
        "sample_rate": encoder.sample_rate,
        "hop": encoder.hop,
        "offset": encoder.offset,
        "layers": layers,
        "mean": mean,
        "dims": [encoder.dims[layer] for layer in layers],
        "config": encoder.config.model_dump(mode="json"),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


@torch.no_grad()
def _check(graph: _Graph, path: Path) -> None:
    """Run the file by onnxruntime on noise: a batch of another size, other lengths. Raises `ConfigError`."""
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    rate = graph.encoder.sample_rate
    lengths = torch.tensor([2 * rate + 77, rate, rate // 9])
    waveforms = 0.1 * torch.randn(3, int(lengths[0]), generator=generator)
    waveforms = waveforms.masked_fill(torch.arange(waveforms.shape[1]) >= lengths[:, None], 0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about optimisations
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    *states, counts = session.run(None, {"waveforms": waveforms.numpy(), "lengths": lengths.numpy()})
    *wanted, frames = graph(waveforms, lengths)
    if counts.tolist() != frames.tolist():
        raise ConfigError(f"{path}: gives {counts.tolist()} frames where PyTorch gives {frames.tolist()}")
    for state, right in zip(states, wanted, strict=True):
        for row, truth, count in zip(torch.from_numpy(state), right, frames.tolist(), strict=True):
            if count and (row[:count] - truth[:count]).abs().max() > TOLERANCE * truth[:count].abs().max():
                raise ConfigError(f"{path}: differs from PyTorch by {(row[:count] - truth[:count]).abs().max():.1g}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells of its own progress and plans."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
