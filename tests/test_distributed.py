"""Two gloo processes, started by torchrun and by accelerate, against one that takes the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_resume import bits, timeless
from test_training import known, lines, quiet  # noqa: F401 -- `known` is a fixture
from tiny import tiny_run, write_corpus

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
    command = [sys.executable, "-m", *LAUNCHERS[launcher], TINY, str(corpus), str(output), json.dumps(changes)]
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
