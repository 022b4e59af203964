"""The training loop: one for every method, and it never asks which."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch import nn
from tqdm import tqdm

from auricle import methods
from auricle.config import edit
from auricle.data.batching import Skip
from auricle.data.dataset import fixed_batches, hold_out, long_enough, training_batches
from auricle.data.manifest import Manifest, Sources
from auricle.encoders.base import Encoder
from auricle.errors import AuricleError, CheckpointError, TrainingError
from auricle.methods.base import RunConfig, Step
from auricle.training import checkpoint, folder, health, initial, optim, parallel
from auricle.training.logs import RunLog
from auricle.training.probe import OnlineProbe
from auricle.training.processes import Processes, Signals
from auricle.training.stream import Stream
from auricle.training.tally import Tally, sums_of

logger = logging.getLogger("auricle")
Probe = Callable[[Encoder], dict[str, float]]
PATIENCE = 10
"""Non-finite updates in a row that end a run."""


class TrainingInterrupted(AuricleError):
    """SIGINT or SIGTERM came; the step was finished and a checkpoint saved."""

    exit_code = 130


def pretrain(
    run: RunConfig | str,
    sources: Sources,
    output: Path | str,
    *,
    resume: bool = False,
    progress: bool = True,
    probe: Probe | None = None,
    **edits: Any,
) -> Path:
    """Train `run`, a config or a preset's name, on the recordings in `sources`; returns `output`, the run folder.

    `edits` change the config: `pretrain("mockingjay-tiny", "audio/", "runs/mj", train={"steps": 100})`. With `resume`,
    a run that the folder holds goes on from its newest checkpoint, on CPU bit for bit as if it had never stopped; an
    empty folder begins. `torchrun` and `accelerate launch` start it in several processes. `probe` scores the encoder
    (higher is better) at every held-out measurement, in every process. Raises `ConfigError`, `ManifestError`,
    `CheckpointError` (another run's folder, or one in use), `TooManySkipsError`, `TrainingError` (non-finite updates
    without end), `TrainingInterrupted`, and `AuricleError` when the disk is full or not writable.
    """
    run, output = edit(methods.preset(run) if isinstance(run, str) else run, **edits), Path(output)
    with folder.one_line_for_the_disk(output), contextlib.ExitStack() as held:
        processes = Processes(run.train)
        if processes.main:
            held.enter_context(folder.opened(run, sources, output, resume))
        processes.wait()
        return _train(run, output, processes, progress, probe)


def resume(output: Path | str, *, progress: bool = True, probe: Probe | None = None) -> Path:
    """Go on with the run in folder `output`, as its own `config.yaml` says. Raises as `pretrain` does."""
    output = Path(output)
    with folder.one_line_for_the_disk(output), contextlib.ExitStack() as held:
        run = methods.run_from_yaml(folder.read_run(output))
        processes = Processes(run.train)
        if processes.main:
            held.enter_context(folder.exclusive(output))
        processes.wait()
        return _train(run, output, processes, progress, probe)


def _train(run: RunConfig, output: Path, processes: Processes, progress: bool, probe: Probe | None) -> Path:
    newest = checkpoint.newest(output / "checkpoints")
    if newest and checkpoint.read_state(newest)["step"] >= run.train.steps:
        if processes.main:
            logger.info("%s: finished already, all %d steps are done", output, run.train.steps)
        return output
    loop = _Loop(run, output, processes, newest, probe)
    try:
        loop.train(progress)
    finally:
        if loop.log:
            loop.log.close()
    return output


class _Loop:
    """One session of a run, in one of its processes. `step` updates are done."""

    def __init__(
        self, run: RunConfig, output: Path, processes: Processes, newest: Path | None, probe: Probe | None
    ) -> None:
        self.run, self.output, self.processes, self.probe = run, output, processes, probe
        self.device = processes.device
        self.dtype = optim.autocast_dtype(run.train, self.device)
        manifest = Manifest.open([output / folder.MANIFEST])
        self.data_hash = manifest.content_hash()
        heard, held_out = hold_out(manifest, run.data.valid_fraction, run.train.seed)
        self.heard, self.held_out = manifest.select(heard), manifest.select(held_out)

        self.online_probe = OnlineProbe(self.held_out, run.train.probe) if run.train.probe else None

        torch.manual_seed(run.train.seed)
        self.method = run.build().to(self.device)
        if newest:
            checkpoint.load_weights(newest, self.method)
        elif processes.main:
            torch.manual_seed(_seed(run.train.seed, "prepare"))
            with (
                initial.given_weights(run, self.method.encoder),
                contextlib.closing(self._stream(rank=0, world=1)) as stream,
            ):
                self.method.prepare(batch.to(self.device) for batch in stream)
        self.model: nn.Module = self.method
        if processes.count > 1:
            self.model = parallel.copy_or_shard(self.method, run.train.sharding, processes.count)
        self.optimizer = optim.build_optimizer(self.method, run.train, self.method.rates())
        self.step, self.taken, self.audio_s, self.monitor = 0, 0, 0.0, health.Monitor()
        self.tally = Tally(self.device)
        if newest:
            self._load(newest)

        if run.train.compile:
            self.method.compile_networks()
        self.log = RunLog(output, self.step if newest else -1) if processes.main else None
        if self.log:
            too_short = len(manifest) - len(long_enough(manifest, self.method.needs))
            if too_short and not newest:
                least = f"objective.min_s = {self.method.needs.min_s:g} s"
                logger.warning("%d of %d clips are shorter than %s, and are left out", too_short, len(manifest), least)
            facts = {"precision": "bf16" if self.dtype else "fp32", "too_short": too_short} | self._setting()
            self.log.session(self.step, **facts)
        opening = sum(step < 0 for step in self.log.skipped.values()) if self.log else 0
        self.clips = processes.vote(len(manifest) + opening)
        self.skips: list[tuple[int, Skip]] = []
        self.clock, self.whole_window = 0.0, self.tally.window is None
        self.pace = [0.0, 0.0, 0.0]  # seconds of audio, of time and of waiting since the last measurement

    def train(self, progress: bool) -> None:
        """Go on to the last step, a signal, or the end of the time allowed."""
        train, processes, begun = self.run.train, self.processes, time.perf_counter()
        hidden = not (progress and processes.main)
        self.bar = tqdm(total=train.steps, initial=self.step, unit="step", disable=hidden, dynamic_ncols=True)
        with (
            self.bar,
            Signals() as signals,
            contextlib.closing(self._stream(processes.rank, processes.count, self.taken)) as self.stream,
        ):
            if self.step == 0:
                self._validate()
            self.clock = time.perf_counter()
            while self.step < train.steps:
                self._update()
                out_of_time = train.stop_after_s is not None and time.perf_counter() - begun > train.stop_after_s
                stop = processes.vote(2 if signals.received else int(out_of_time))
                saving = stop or self._due(train.checkpoint_every)
                if self._due(train.log_every):
                    self._log()
                if self._due(train.valid_every):
                    self._validate()
                if saving or self._due(train.log_every):
                    skipped = self._record_skips()
                    saving |= skipped > self.run.data.max_skipped * self.clips
                if saving:
                    self._save()
                    folder.check_skips(self.run, f"see {self.output / 'skipped.jsonl'}", skipped, self.clips)
                if stop and self.step < train.steps:
                    line = f"{self.output}: stopped after step {self.step} of {train.steps}, and saved; go on with: "
                    line += f"auricle pretrain --resume {self.output}"
                    if stop == 2:
                        raise TrainingInterrupted(line)
                    if processes.main:
                        logger.info("%s", line)
                    return

    def _update(self) -> None:
        """One optimizer step over `accumulate` micro-batches of every process, without waiting for the device."""
        train, processes = self.run.train, self.processes
        sums = torch.zeros((), device=self.device)
        for i in range(train.accumulate):
            batch = next(self.stream).to(self.device)
            self.skips += [(self.step + 1, skip) for skip in self.stream.skipped]
            self.stream.skipped.clear()
            torch.manual_seed(_seed(train.seed, self.step + 1, i, processes.rank))
            with parallel.synchronised(self.model, last=i + 1 == train.accumulate):
                with self._autocast():
                    result: Step = self.model(batch)
                # Gradients of sums add up over micro-batches and processes; `update` divides by the items of all.
                (result.loss.float() * result.count).backward()  # type: ignore[no-untyped-call]
            sums = sums + sums_of(result, batch.lengths.sum() / self.method.needs.sample_rate)
        sums = reduce(sums, "sum")
        loss, count = sums[0], sums[1]
        # The wrapper has averaged the gradients of the processes: their sum is that times the number of processes.
        norm, gated = optim.update(self.optimizer, self.step + 1, train, loss, count / processes.count)
        self.tally.add(sums, norm, gated, list(result.metrics))
        self.step += 1
        self.method.on_optimizer_step(self.step)
        self.bar.update()

    def _log(self) -> None:
        """One line of training metrics. Here, and before checkpoints, the host reads what the device has counted."""
        self._check_finite()
        skipped = self._record_skips()
        values: dict[str, Any] = {"lr": optim.learning_rate(self.step, self.run.train)} | self.tally.read()
        audio_s, waited_s, now = values["audio_s"], self.stream.waited_s, time.perf_counter()
        seconds, self.clock, self.stream.waited_s = now - self.clock, now, 0.0
        speed = audio_s / seconds if self.whole_window else None  # else part of it was heard in an earlier session
        if self.whole_window:
            self.pace = [self.pace[0] + audio_s, self.pace[1] + seconds, self.pace[2] + waited_s]
        self.whole_window = True
        self.audio_s += audio_s
        values |= {"audio_s": self.audio_s, "audio_s_per_s": speed, "waiting": waited_s / seconds}
        values |= {"gated": int(self.tally.gates[0]), "skipped": skipped}
        if self.log:
            self.log.write(self.step, "train", values)
            self.bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed or math.nan:.0f}× real time")

    def _validate(self) -> None:
        """Held-out loss beside its trivial level, probe, picture and alarms.

        Every process measures the same clips, so that methods that look across processes stay in step.
        """
        with self._off_the_clock():
            train, batches = self.run.train, fixed_batches(self.held_out, self.method.needs, self.run.data)
            with parallel.unsharded(self.method):
                found = health.measure(self.method, batches, _seed(train.seed, "held out") >> 1, self._autocast)
                scores = self._probe_scores(found)
            self.skips += [(self.step, skip) for skip in found.skipped]
            if not (self.log and found.values):
                return
            self.log.write(self.step, "valid", found.facts() | {f"probe_{name}": scores[name] for name in scores})
            self.log.picture(self.step, found.pictures)
            self.log.sound(self.step, found.sounds, self.method.encoder.sample_rate)
            vitals = found.vitals(self.step / train.steps, scores, *self.pace)
            self.pace = [0.0, 0.0, 0.0]
            for name, line in self.monitor.check(vitals).items():
                self.bar.clear()  # the alarm gets a line of its own
                logger.warning("step %d, %s: %s", self.step, name, line)
                self.log.write(self.step, "alarm", {"name": name, "message": line})

    # ------------------------------------------------------------------------------------- checkpoints and counts

    def _save(self) -> None:
        self._check_finite()
        with self._off_the_clock():
            taken = self.processes.gather([self.stream.taken])
            method = parallel.whole(self.method, self.run)
            moments = checkpoint.moments(self.method, self.optimizer)
            if self.log:
                self.log.flush()
                progress = {"taken": taken, "audio_s": self.audio_s, "names": self.tally.names}
                checkpoint.save(
                    self.output / "checkpoints",
                    self.step,
                    method,
                    moments,
                    self.tally.tensors(),
                    state=self._setting() | progress | {"monitor": vars(self.monitor)},
                    about={"seed": self.run.train.seed, "method": self.run.method, "preset": self.run.preset},
                    keep=self.run.train.keep_checkpoints,
                )
            self.processes.wait()

    def _load(self, newest: Path) -> None:
        state, here = checkpoint.read_state(newest), self._setting()
        if state["processes"] != here["processes"]:
            raise CheckpointError(
                f"{self.output}: trained by {state['processes']} processes, not {here['processes']}; start as many"
            )
        if state["data"] != here["data"]:
            raise CheckpointError(f"{self.output / folder.MANIFEST}: is not the run's own any more; put that one back")
        changed = [f"{key} {here[key]} (was {state[key]})" for key in here if state[key] != here[key]]
        if changed and self.processes.main:
            logger.warning("%s: goes on with %s; the last bits may differ", self.output, ", ".join(changed))
        self.tally.load(checkpoint.load_moments(newest, self.method, self.optimizer), state["names"])
        self.step, self.audio_s = state["step"], state["audio_s"]
        self.taken = state["taken"][self.processes.rank]
        self.monitor = health.Monitor(**state["monitor"])

    def _setting(self) -> dict[str, Any]:
        """What must stay the same for a resumed run to be exact; without the first two it is refused."""
        return {
            "processes": self.processes.count,
            "data": self.data_hash,
            "torch": torch.__version__,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }

    def _check_finite(self) -> None:
        if int(self.tally.gates[2]) >= PATIENCE:
            raise TrainingError(
                f"{self.output}: {PATIENCE} non-finite updates in a row before step {self.step}; the newest "
                "checkpoint is kept; lower train.lr or set train.precision to fp32"
            )

    def _record_skips(self) -> int:
        """Write down what all processes found unusable since the last time; returns the clips skipped so far."""
        found = self.processes.gather(self.skips)
        self.skips = []
        if self.log:
            for step, skip in sorted(found, key=lambda item: item[0]):
                self.log.skip(step, skip)
        return self.processes.vote(len(self.log.skipped) if self.log else 0)

    # ------------------------------------------------------------------------------------------------ small parts

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.run.train.steps

    def _stream(self, rank: int, world: int, taken: int = 0) -> Stream:
        seed, data, needs = self.run.train.seed, self.run.data, self.method.needs
        batches = training_batches(self.heard, needs, data, seed=seed, start=taken, rank=rank, world=world)
        return Stream(batches, len(long_enough(self.heard, needs)), taken)

    def _probe_scores(self, found: health.Measurement) -> dict[str, float]:
        scores = self.online_probe.scores(found.clip_ids, found.embeddings) if self.online_probe else {}
        if self.probe:
            self.method.eval()
            with torch.no_grad():
                scores |= self.probe(self.method.encoder)
            self.method.train()
        return scores

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    @contextlib.contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        begun = time.perf_counter()
        yield
        self.clock += time.perf_counter() - begun


def _seed(*parts: int | str) -> int:
    """A seed for torch from what names the draw: the run's seed, step, micro-batch, rank."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
