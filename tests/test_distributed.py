"""Two gloo processes, started by torchrun and by accelerate, against one that takes the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from test_resume import bits, timeless
from test_training import known, lines, quiet  # noqa: F401 -- `known` is a fixture
from tiny import tiny_run, write_corpus

import auricle
from auricle.errors import CheckpointError
from auricle.training import checkpoint
from auricle.training.loop import resume

pytestmark = pytest.mark.slow

TINY = str(Path(__file__).with_name("tiny.py"))
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    # accelerate's way to start several processes without MPI; the run's own train.device keeps them on the CPU
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"),
    ],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


def launch(launcher: str, corpus: Path, output: Path, changes: dict) -> subprocess.CompletedProcess:
    return launch_command(launcher, TINY, str(corpus), str(output), json.dumps(changes))


def launch_command(launcher: str, *command: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(TINY).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def weights(output: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(output / "checkpoints")
    return load_file(newest / checkpoint.ENCODER) | load_file(newest / checkpoint.OBJECTIVE)


def changes_for(**train) -> dict:
    return {"train": {"steps": 8, "valid_every": 8, "device": "cpu", **train}, "objective": {"dropout": 0.0}}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_are_one_with_twice_the_micro_batches(corpus, tmp_path, launcher, accumulate):
    done = launch(launcher, corpus, tmp_path / "two", changes_for(accumulate=accumulate))
    assert done.returncode == 0, done.stderr
    quiet(tiny_run(**changes_for(accumulate=2 * accumulate)), corpus, tmp_path / "one")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    (session,) = lines(tmp_path / "two", "session")  # one log
    assert session["processes"] == 2
    for a, b in zip(timeless(tmp_path / "two"), timeless(tmp_path / "one"), strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-4)


def test_two_processes_resume_bit_for_bit_and_only_as_two(corpus, tmp_path):
    changes = {"train": {"steps": 12, "device": "cpu"}}
    whole = launch("torchrun", corpus, tmp_path / "whole", changes)
    assert whole.returncode == 0, whole.stderr
    changes["train"]["stop_after_s"] = 1e-6
    for _ in range(2):
        stopped = launch("torchrun", corpus, tmp_path / "run", changes)
        assert stopped.returncode == 0, stopped.stderr
    assert checkpoint.newest(tmp_path / "run/checkpoints").name == "step-00000002"
    with pytest.raises(CheckpointError, match="trained by 2 processes, not 1"):
        resume(tmp_path / "run", progress=False)
    del changes["train"]["stop_after_s"]
    rest = launch("torchrun", corpus, tmp_path / "run", changes)
    assert rest.returncode == 0, rest.stderr
    assert bits(tmp_path / "whole") == bits(tmp_path / "run")
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "run")


def test_a_method_that_skips_weights_says_so(corpus, tmp_path):
    """Unless a method says that it does, nothing searches for such weights, and nothing warns of the search."""
    done = launch("torchrun", corpus, tmp_path / "run", changes_for())
    assert "find_unused_parameters" not in done.stderr
    odd = launch("torchrun", corpus, tmp_path / "odd", changes_for() | {"objective": {"idle": True}})
    assert odd.returncode == 0, odd.stderr
    assert checkpoint.newest(tmp_path / "odd/checkpoints").name == "step-00000008"


# ---------------------------------------------------------------------------------- the command line, and sharding


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for i in range(24):
        soundfile.write(folder / f"{i:02d}.wav", 0.1 * rng.standard_normal(8000 + 400 * i), 16000)
    return folder


def pretrain_command(noise: Path, output: Path, *options: str) -> list[str]:
    small = {
        "encoder": {"dim": 16, "layers": 2, "heads": 2, "ffn": 32, "dropout": 0},
        "data": {"batch-seconds": 4, "valid-fraction": 0.2},
        "train": {
            "steps": 6,
            "log-every": 2,
            "valid-every": 3,
            "checkpoint-every": 3,
            "precision": "fp32",
            "device": "cpu",
        },
    }
    flags = [f"--{room}.{name}={value}" for room, values in small.items() for name, value in values.items()]
    return ["-m", "auricle", "pretrain", "mockingjay-tiny", f"--data={noise}", f"--output={output}", *flags, *options]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_command_line_under_a_launcher_has_one_log_and_one_bar(noise, tmp_path, launcher):
    done = launch_command(launcher, *pretrain_command(noise, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(tmp_path / "run", "train")] == [2, 4, 6]
    assert [line["step"] for line in lines(tmp_path / "run", "valid")] == [0, 3, 6]
    (session,) = lines(tmp_path / "run", "session")
    assert session["processes"] == 2
    assert done.stdout.count("evaluate it with") == 1
    assert done.stderr.count("| 0/6 [") == 1  # a bar draws its beginning once


def test_shards_train_as_copies_do_and_leave_whole_checkpoints(noise, tmp_path):
    for name, sharding in (("copies", "none"), ("shards", "fsdp")):
        done = launch_command("torchrun", *pretrain_command(noise, tmp_path / name, f"--train.sharding={sharding}"))
        assert done.returncode == 0, done.stderr
    copies, shards = (checkpoint.newest(tmp_path / name / "checkpoints") for name in ("copies", "shards"))
    for file in (checkpoint.ENCODER, checkpoint.OBJECTIVE, checkpoint.OPTIMIZER):
        wanted, found = load_file(copies / file), load_file(shards / file)
        assert wanted.keys() == found.keys()
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)
    for a, b in zip(timeless(tmp_path / "copies"), timeless(tmp_path / "shards"), strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-4)
    assert auricle.load(tmp_path / "shards").clip(noise / "00.wav").isfinite().all()


def test_a_sharded_run_resumes_bit_for_bit(noise, tmp_path):
    whole = launch_command("torchrun", *pretrain_command(noise, tmp_path / "whole", "--train.sharding=fsdp"))
    assert whole.returncode == 0, whole.stderr
    options = ("--train.sharding=fsdp", "--train.stop-after-s=1e-6")
    stopped = launch_command("torchrun", *pretrain_command(noise, tmp_path / "run", *options))
    assert stopped.returncode == 0, stopped.stderr
    assert checkpoint.newest(tmp_path / "run/checkpoints").name == "step-00000001"
    path = tmp_path / "run/config.yaml"
    stored = yaml.safe_load(path.read_text())
    stored["train"]["stop_after_s"] = None
    path.write_text(yaml.safe_dump(stored))
    rest = launch_command("torchrun", "-m", "auricle", "pretrain", "--resume", str(tmp_path / "run"))
    assert rest.returncode == 0, rest.stderr
    assert bits(tmp_path / "whole") == bits(tmp_path / "run")


def test_sharded_weights_are_shards(tmp_path):
    """Control: what the tests above call sharded holds half of every weight."""
    script = tmp_path / "shards.py"
    script.write_text("""
import torch
from torch.distributed.tensor import DTensor
from auricle.methods import preset
from auricle.training import parallel
from auricle.training.processes import Processes

run = preset("mockingjay-tiny")
processes = Processes(run.train.model_copy(update={"device": "cpu"}))
torch.manual_seed(processes.rank)
method = run.build()
parallel.copy_or_shard(method, "fsdp", 2)
assert all(isinstance(weight, DTensor) for weight in method.parameters())
for weight in method.parameters():
    assert 2 * weight.to_local().numel() == weight.numel()
torch.manual_seed(0)  # rank 0's own weights
wanted = run.build().state_dict()
with parallel.unsharded(method):
    assert not any(isinstance(weight, DTensor) for weight in method.parameters())
assert all(isinstance(weight, DTensor) for weight in method.parameters())
found = parallel.whole(method, run).state_dict()
assert all(torch.equal(found[name], wanted[name]) for name in wanted)
""")
    done = launch_command("torchrun", str(script))
    assert done.returncode == 0, done.stderr
