"""A run small enough for tests of the loop: a linear autoencoder over frames, with dropout so that draws matter."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from pydantic import Field
from torch import Tensor, nn

import auricle.encoders
import auricle.methods
from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.base import Encoder, Frames
from auricle.encoders.checkpoint import load, save
from auricle.methods.base import Method, RunConfig, Step
from auricle.training.loop import pretrain, resume

RATE, HOP = 8000, 80


class TinyEncoderConfig(Config):
    dim: int = 6


class TinyEncoder(Encoder):
    family = "tiny"
    config: TinyEncoderConfig

    def __init__(self, config: TinyEncoderConfig):
        super().__init__()
        self.config = config
        self.sample_rate, self.hop, self.offset, self.dims = RATE, HOP, (HOP - 1) / 2, (HOP, config.dim)
        self.norm = nn.LayerNorm(HOP)
        self.project = nn.Linear(HOP, config.dim)

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return waveforms.unfold(1, HOP, HOP), lengths // HOP  # (B, T, HOP)

    def encode(self, x: Tensor, lengths: Tensor, *, layers: object = None) -> Frames:
        states = [x, self.project(self.norm(x))]
        return Frames(states if layers is None else [states[layer] for layer in layers], lengths)


class TinyObjective(Config):
    dropout: float = Field(0.2, ge=0, lt=1)
    sick: tuple[int, ...] = ()
    """Steps whose loss is NaN."""
    idle: bool = False
    """There is a weight that no step uses."""
    pictures: bool = False
    """Drawing them takes longer than the rest of a test."""


class TinyMethod(Method):
    """Reconstruct each frame from its 6 dimensions, with dropout on the input; a teacher follows the projection."""

    def __init__(self, run: TinyRun):
        super().__init__()
        self.encoder = TinyEncoder(run.encoder)
        self.needs = DataNeeds(sample_rate=RATE, crop_s=0.5, min_s=0.05)
        self.decoder = nn.Linear(run.encoder.dim, HOP)
        self.tied = self.decoder.weight  # one weight under two names
        self.dropout = nn.Dropout(run.objective.dropout)
        self.register_buffer("teacher", torch.zeros(run.encoder.dim, HOP))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        if run.objective.idle:
            self.idle = nn.Parameter(torch.ones(3))
            self.skips_weights = True
        self.sick, self.pictures = run.objective.sick, run.objective.pictures

    def prepare(self, batches) -> None:
        self.scale.fill_(next(iter(batches)).waveforms.std())

    def forward(self, batch: Batch) -> Step:
        x, lengths = self.encoder.features(batch.waveforms, batch.lengths)  # (B, T, HOP)
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (B, T)
        out = self.decoder(self.encoder.encode(self.dropout(x), lengths).hidden_states[-1])
        count = valid.sum() * HOP
        error = ((out - x).float() / self.scale).square().masked_fill(~valid[..., None], 0).sum()
        trivial = (x.float() / self.scale).square().masked_fill(~valid[..., None], 0).sum() / count
        loss = error / count
        if self.training and int(self.steps_seen) + 1 in self.sick:
            loss = loss * torch.nan
        return Step(loss, count, {"trivial": trivial})

    def on_optimizer_step(self, step: int) -> None:
        self.steps_seen.fill_(step)
        self.teacher.lerp_(self.encoder.project.weight.detach(), 0.1)

    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        if not self.pictures:
            return {}
        return {"target": self.encoder.features(batch.waveforms, batch.lengths)[0][0].cpu()}

    def listen(self, batch: Batch) -> dict[str, Tensor]:
        return {"clip": batch.waveforms[0].cpu()} if self.pictures else {}


class TinyRun(RunConfig):
    method: ClassVar[str] = "tiny"
    preset: str = "tiny"
    encoder: TinyEncoderConfig = TinyEncoderConfig()
    objective: TinyObjective = TinyObjective()

    def build(self) -> TinyMethod:
        return TinyMethod(self)


def tiny_run(**changes) -> TinyRun:
    base = {
        "train": {
            "steps": 30,
            "lr": 0.02,
            "log_every": 4,
            "valid_every": 10,
            "checkpoint_every": 6,
            "precision": "fp32",
        },
        "data": {"batch_seconds": 3.0, "valid_fraction": 0.1},
    }
    return edit(edit(TinyRun(), **base), **changes)


def register() -> None:
    """Make `tiny` known, as a line in the tables would."""
    auricle.encoders.FAMILIES["tiny"] = "tiny:TinyEncoder"
    auricle.methods.METHODS["tiny"] = "tiny:TinyRun"


def learn(model: Method, sounds: Callable[[int, int], Batch], steps: int, lr: float, clips: int = 16) -> Step:
    """Train with Adam on new `sounds(clips, seed)` every step; what the model then says of 16 held-out ones."""
    weights = [weight for weight in model.train().parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr)
    for number in range(steps):
        optimizer.zero_grad()
        model(sounds(clips, number)).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        model.on_optimizer_step(number + 1)
    with torch.no_grad():
        return model.eval()(sounds(16, 1000))


def loads_as_saved(encoder: Encoder, batch: Batch, folder: Path) -> None:
    """Saved to a folder and loaded again, an encoder gives the same numbers."""
    save(encoder.eval(), folder, seed=0)
    wanted, found = (net(batch.waveforms, batch.lengths).hidden_states for net in (encoder, load(folder)))
    assert all(torch.equal(one, two) for one, two in zip(wanted, found, strict=True))


def resumes_as_one(run: RunConfig, sources: list[Path], folder: Path) -> Path:
    """A run taken up at the last checkpoint but one ends with the same bits; the checkpoint it ends with."""
    last = f"checkpoints/step-{run.train.steps:08d}"
    pretrain(run, sources, folder / "whole", progress=False)
    shutil.copytree(folder / "whole", folder / "cut")
    shutil.rmtree(folder / "cut" / last)
    resume(folder / "cut", progress=False)
    for name in ("model.safetensors", "objective.safetensors", "optimizer.safetensors"):
        assert (folder / "whole" / last / name).read_bytes() == (folder / "cut" / last / name).read_bytes()
    return folder / "whole" / last


Part = Callable[[pytest.MonkeyPatch, int], tuple[Method, Batch]]
"""The method, alike for all, and the batch of process 0 or 1."""


def two_processes_are_one(part: Part, folder: Path, rtol: float = 1e-4) -> None:
    """The gradients of two processes are those of one with their two batches as micro-batches.

    `part` is a function of a module, since another process must find it.
    """
    torch.multiprocessing.spawn(_one_of_two, (part, str(folder)), nprocs=2)
    with pytest.MonkeyPatch.context() as patch:
        model, total = part(patch, 0)[0], 0.0
        for rank in range(2):
            batch = part(patch, rank)[1]
            torch.manual_seed(rank)
            step = model(batch)
            (step.loss * step.count).backward()
            total = total + step.count
    for rank in range(2):
        found = torch.load(folder / f"{rank}.pt", weights_only=True)
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                close = 1e-4 * float(weight.grad.abs().max() / total)
                torch.testing.assert_close(found[name], weight.grad / total, rtol=rtol, atol=close + 1e-8)


def _one_of_two(rank: int, part: Part, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(_gradients_of_two(rank, part), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _gradients_of_two(rank: int, part: Part) -> dict[str, Tensor]:
    """In a function of its own: a wrapper that outlives its group may wait for ever for the group's thread."""
    with pytest.MonkeyPatch.context() as patch:
        model, batch = part(patch, rank)
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.manual_seed(rank)
        step = wrapped(batch)
        (step.loss * step.count).backward()
    count = step.count.clone()
    torch.distributed.all_reduce(count)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: 2 * weight.grad / count for name, weight in weights.items()}


def beats(count: int, seed: int) -> Batch:
    """One second each of five tones that swell five times a second, from a random phase on, in a little noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(16000) / 16000
    phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
    tones = torch.stack([torch.sin(2 * math.pi * hz * time) for hz in (300, 700, 1500, 3000, 5000)]).sum(0)
    noise = 0.3 * torch.randn(count, 16000, generator=generator)
    waveforms = 0.02 * (1.2 * torch.sin(2 * math.pi * 5 * time + phase)).exp() * (tones + noise)
    return Batch(waveforms, torch.full((count,), 16000), [str(i) for i in range(count)], torch.zeros(count))


def write_corpus(folder: Path, clips: int = 24) -> Path:
    """Noisy tones of 0.2 to 0.9 s; three pitches, which six dimensions can hold."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(clips):
        t = np.arange(int(RATE * (0.2 + 0.03 * i))) / RATE
        wave = 0.3 * np.sin(2 * np.pi * (130, 310, 570)[i % 3] * t) + 0.05 * rng.standard_normal(len(t))
        soundfile.write(folder / f"{i:02d}.wav", wave, RATE)
    return folder


def start(corpus: str, output: str, changes: dict, kill: tuple[int, float] | None = None) -> None:
    """A run in this process, until (steps, seconds after them) in `kill`."""
    register()
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of readers, whatever way this process was started
    follow, done = TinyMethod.on_optimizer_step, []

    def die_later(self: TinyMethod, step: int) -> None:
        follow(self, step)
        done.append(step)
        if len(done) == kill[0]:
            timer = Timer(kill[1], os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()

    if kill:
        TinyMethod.on_optimizer_step = die_later
    pretrain(tiny_run(**changes), [corpus], output, resume=True, progress=False)


if __name__ == "__main__":  # for tests of several processes: tiny.py CORPUS OUTPUT CHANGES
    start(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
