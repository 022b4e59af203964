"""A run stopped anywhere and resumed ends as if it had never stopped: weights, moments, logs, bit for bit on CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import known, lines, quiet, spoil  # noqa: F401 -- `known` is a fixture
from tiny import TinyMethod, tiny_run, write_corpus

from auricle.errors import CheckpointError
from auricle.training import checkpoint
from auricle.training.loop import TrainingInterrupted, pretrain, resume

STEPS = 30


class Crash(BaseException):
    """A process dying without a word."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(n, action)`: do something after the n-th optimizer step."""
    follow_teacher = TinyMethod.on_optimizer_step

    def arm(number, action):
        def hook(self, step):
            follow_teacher(self, step)
            if step == number:
                action()

        monkeypatch.setattr(TinyMethod, "on_optimizer_step", hook)

    yield arm
    monkeypatch.setattr(TinyMethod, "on_optimizer_step", follow_teacher)


def crash():
    raise Crash


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


def bits(output: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint; a safetensors file's bytes are its header and its values, in order."""
    newest = checkpoint.newest(output / "checkpoints")
    return {
        name: (newest / name).read_bytes() for name in (checkpoint.ENCODER, checkpoint.OBJECTIVE, checkpoint.OPTIMIZER)
    }


def timeless(output: Path) -> list[dict]:
    """Metrics without sessions and clocks. Alarms of pace (stalled data, throughput) are clocks too."""
    clocks = ("audio_s_per_s", "waiting")
    kept = [line for line in lines(output) if line["split"] in ("train", "valid")]
    return [{key: value for key, value in line.items() if key not in clocks} for line in kept]


def board(output: Path) -> list[tuple[int, float]]:
    """TensorBoard's scalars. It reads files in the order of their names, which say the second: ours start faster."""
    files = sorted(output.glob("tensorboard/*"), key=lambda path: path.stat().st_mtime_ns)
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(files):
            shutil.copy(path, Path(folder) / f"events.out.tfevents.{number:010d}")
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
    return [(event.step, event.value) for tag in ("train/loss", "valid/loss") for event in events.Scalars(tag)]


def assert_same_run(a: Path, b: Path) -> None:
    assert bits(a) == bits(b)
    assert timeless(a) == timeless(b)
    assert board(a) == board(b)
    assert lines(a, name="skipped.jsonl") == lines(b, name="skipped.jsonl")


RUNS = {
    "plain": {},
    "accumulate": {"train": {"accumulate": 3}},
    "gated": {"objective": {"sick": [3, 4, 5, 6, 7, 20]}},
    "bf16": {"train": {"precision": "bf16"}},
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("stop", [crash, interrupt])
def test_stopped_three_times_it_ends_bit_for_bit_the_same(corpus, tmp_path, at_step, name, stop):
    run = tiny_run(**RUNS[name])
    whole = quiet(run, corpus, tmp_path / "whole")
    output = tmp_path / "stopped"
    for number in sorted(random.Random(f"{name} {stop.__name__}").sample(range(1, STEPS), 3)):
        at_step(number, stop)
        with pytest.raises((Crash, TrainingInterrupted)):
            quiet(run, corpus, output, resume=True)
    at_step(0, crash)
    resume(output, progress=False)
    assert_same_run(whole, output)
    assert len(lines(output, "session")) > 1


def test_different_dropout_draws_would_be_seen(corpus, tmp_path):
    """Control: the comparison above can fail."""
    a = quiet(tiny_run(train={"steps": 6}), corpus, tmp_path / "a")
    b = quiet(tiny_run(train={"steps": 6}, objective={"dropout": 0.21}), corpus, tmp_path / "b")
    assert all(bits(a)[name] != bits(b)[name] for name in bits(a))


def test_skips_are_neither_lost_nor_doubled(corpus, tmp_path, at_step):
    spoiled = spoil(corpus, tmp_path / "spoiled", 4)
    run = tiny_run(data={"max_skipped": 0.5})
    whole = quiet(run, spoiled, tmp_path / "whole")
    output = tmp_path / "stopped"
    for number, stop in ((2, crash), (5, interrupt), (11, crash), (13, interrupt)):
        at_step(number, stop)
        with pytest.raises((Crash, TrainingInterrupted)):
            quiet(run, spoiled, output, resume=True)
    at_step(0, crash)
    resume(output, progress=False)
    assert len(lines(whole, name="skipped.jsonl")) == 4
    assert_same_run(whole, output)


def test_a_changed_number_of_readers_changes_nothing(corpus, tmp_path, at_step):
    whole = quiet(tiny_run(train={"steps": 12}), corpus, tmp_path / "whole")
    at_step(7, interrupt)
    with pytest.raises(TrainingInterrupted):
        quiet(tiny_run(train={"steps": 12}), corpus, tmp_path / "run")
    at_step(0, crash)
    quiet(tiny_run(train={"steps": 12}, data={"workers": 2}), corpus, tmp_path / "run", resume=True)
    assert bits(whole) == bits(tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["workers"] == 2


def test_a_half_written_checkpoint_is_ignored_and_cleaned(corpus, tmp_path, at_step):
    whole = quiet(tiny_run(), corpus, tmp_path / "whole")
    output = tmp_path / "run"
    at_step(13, crash)
    with pytest.raises(Crash):
        quiet(tiny_run(), corpus, output)
    checkpoints = output / "checkpoints"
    torn = shutil.copytree(checkpoints / "step-00000012", checkpoints / "step-00000018")
    with open(torn / "optimizer.safetensors", "r+b") as file:
        file.truncate(100)
    (shutil.copytree(checkpoints / "step-00000012", checkpoints / "step-00000024") / "objective.safetensors").unlink()
    shutil.copytree(checkpoints / "step-00000012", checkpoints / ".step-00000018.unfinished")
    assert checkpoint.newest(checkpoints).name == "step-00000012"
    at_step(0, crash)
    resume(output, progress=False)
    assert_same_run(whole, output)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000024", "step-00000030"]


@pytest.mark.parametrize("moment", ["save_file", "fsync", "rmtree"])
def test_dying_inside_a_save_loses_only_that_save(corpus, tmp_path, monkeypatch, moment):
    whole = quiet(tiny_run(), corpus, tmp_path / "whole")
    calls = []

    def die(*args, **kwargs):
        calls.append(args)
        raise Crash

    output = tmp_path / "run"
    monkeypatch.setattr(checkpoint.shutil if moment == "rmtree" else checkpoint, moment, die)
    with pytest.raises(Crash):
        quiet(tiny_run(train={"keep_checkpoints": 1}), corpus, output)
    assert len(calls) == 1
    monkeypatch.undo()
    tiny.register()
    newest = checkpoint.newest(output / "checkpoints")
    assert (newest.name if newest else None) == ("step-00000012" if moment == "rmtree" else None)
    resume(output, progress=False)
    assert_same_run(whole, output)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000030"]


def test_a_finished_run_says_so_and_is_left_alone(corpus, tmp_path, caplog):
    output = quiet(tiny_run(train={"steps": 4}), corpus, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    with caplog.at_level("INFO", "auricle"):
        assert resume(output, progress=False) == output
    assert "finished already" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


@pytest.fixture
def stopped(corpus, tmp_path, at_step):
    """A run that was interrupted at step 7."""
    at_step(7, interrupt)
    with pytest.raises(TrainingInterrupted):
        quiet(tiny_run(), corpus, tmp_path / "run")
    return tmp_path / "run"


def rewrite_state(output: Path, **changes) -> None:
    path = checkpoint.newest(output / "checkpoints") / checkpoint.STATE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_config_other_clips_another_world_are_refused(corpus, stopped, tmp_path):
    before = (stopped / "config.yaml").read_bytes()
    other = write_corpus(tmp_path / "other", clips=23)
    with pytest.raises(CheckpointError, match=r"train\.lr = 0\.02, not 0\.01"):
        quiet(tiny_run(train={"lr": 0.01}), corpus, stopped, resume=True)
    with pytest.raises(CheckpointError, match=r"encoder\.dim = 6, not 7"):
        quiet(tiny_run(encoder={"dim": 7}), corpus, stopped, resume=True)
    with pytest.raises(CheckpointError, match="other clips"):
        quiet(tiny_run(), other, stopped, resume=True)
    assert (stopped / "config.yaml").read_bytes() == before
    rewrite_state(stopped, processes=2)
    with pytest.raises(CheckpointError, match="trained by 2 processes, not 1"):
        resume(stopped, progress=False)
    rewrite_state(stopped, processes=1, data="0" * 16)
    with pytest.raises(CheckpointError, match=r"manifest\.parquet"):
        resume(stopped, progress=False)
    rewrite_state(stopped, format=99)
    with pytest.raises(CheckpointError, match="newer auricle"):
        resume(stopped, progress=False)


def test_a_changed_machine_is_told(stopped, caplog, at_step):
    rewrite_state(stopped, torch="1.0", threads=77)
    at_step(0, crash)
    resume(stopped, progress=False)
    assert "torch" in caplog.text
    assert "77" in caplog.text


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        resume(tmp_path)


def test_a_damaged_checkpoint_is_one_line(stopped):
    path = checkpoint.newest(stopped / "checkpoints") / "optimizer.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CheckpointError, match="damaged") as error:
        resume(stopped, progress=False)
    assert "\n" not in str(error.value)


def test_checkpoints_hold_no_pickle_and_no_shared_memory(stopped):
    newest = checkpoint.newest(stopped / "checkpoints")
    assert {path.suffix for path in newest.iterdir()} == {".json", ".safetensors"}
    with safe_open(newest / "objective.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("tied"), file.get_tensor("decoder.weight"))
    with safe_open(newest / "optimizer.safetensors", "pt") as file:
        assert float(file.get_tensor("encoder.project.weight step")) == 7


def test_an_empty_folder_begins_under_resume(corpus, tmp_path):
    run = tiny_run(train={"steps": 4})
    assert bits(quiet(run, corpus, tmp_path / "a", resume=True)) == bits(quiet(run, corpus, tmp_path / "b"))


# -------------------------------------------------------------------------------------------- slow: real processes


def start(corpus: Path, output: Path, changes: dict, kill: tuple[int, float] | None = None) -> int:
    """`tiny.start` in a process of its own, forked from a server that holds the imports already; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny"])
    process = context.Process(target=tiny.start, args=(str(corpus), str(output), changes, kill))
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"data": {"workers": 2}}, {"train": {"compile": True}}],
    ids=["eager", "readers", "compiled"],
)
def test_kill_9_at_ten_random_moments(corpus, tmp_path, changes):
    spoiled = spoil(corpus, tmp_path / "spoiled", 2)
    changes = {
        **changes,
        "train": {**changes.get("train", {}), "steps": 300, "checkpoint_every": 10, "valid_every": 25},
    }
    changes["data"] = {**changes.get("data", {}), "max_skipped": 0.2}
    assert start(spoiled, tmp_path / "whole", changes) == 0
    draw, output = random.Random(0), tmp_path / "killed"
    kills = [start(spoiled, output, changes, (draw.randint(1, 18), draw.uniform(0, 0.02))) for _ in range(10)]
    assert kills == [-signal.SIGKILL] * 10
    assert checkpoint.newest(output / "checkpoints") is not None
    assert start(spoiled, output, changes) == 0
    assert_same_run(tmp_path / "whole", output)
    assert len(lines(output, name="skipped.jsonl")) == 2
    assert len(lines(output, "session")) > 1


@pytest.mark.slow
def test_compiled_runs_resume_bit_for_bit_too(corpus, tmp_path, at_step):
    run = tiny_run(train={"compile": True, "steps": 12})
    whole = quiet(run, corpus, tmp_path / "whole")
    at_step(8, crash)
    with pytest.raises(Crash):
        pretrain(run, [corpus], tmp_path / "run", progress=False)
    at_step(0, crash)
    torch.compiler.reset()
    resume(tmp_path / "run", progress=False)
    assert bits(whole) == bits(tmp_path / "run")
