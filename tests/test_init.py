"""Continued pre-training: a run begins with another encoder's weights, or is refused with a line that mends it."""

from __future__ import annotations

import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import TinyEncoder, TinyEncoderConfig, tiny_run, write_corpus

from auricle import cli, load
from auricle.config import read_yaml
from auricle.encoders import FAMILIES
from auricle.encoders.apc import ApcEncoder
from auricle.encoders.checkpoint import save
from auricle.errors import CheckpointError, ConfigError
from auricle.methods import METHODS, preset
from auricle.training.loop import pretrain, resume


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(FAMILIES, "tiny", "tiny:TinyEncoder")
    monkeypatch.setitem(METHODS, "tiny", "tiny:TinyRun")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture
def trained(tmp_path):
    """An encoder with weights that no seed gives."""
    encoder = TinyEncoder(TinyEncoderConfig())
    with torch.no_grad():
        for number, weight in enumerate(encoder.parameters()):
            weight.copy_(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape) / (number + 1))
    save(encoder, tmp_path / "trained", seed=7)
    return tmp_path / "trained"


def begin(corpus, output, init, **train):
    """A run whose updates are too small to move a weight, so that its end shows its beginning."""
    train = {"steps": 2, "lr": 1e-30, "weight_decay": 0.0, "init": init and str(init)} | train
    return pretrain(tiny_run(train=train), [corpus], output, progress=False)


def same(ours, theirs):
    """Equal, but for what two updates at that rate can do to a weight that is 0."""
    return all(
        torch.allclose(weight, theirs.state_dict()[name], rtol=0, atol=1e-20)
        for name, weight in ours.state_dict().items()
    )


def test_a_run_begins_with_the_given_weights(corpus, tmp_path, trained):
    run = begin(corpus, tmp_path / "run", trained)
    assert same(load(run), load(trained))
    assert read_yaml(run / "config.yaml")["train"]["init"] == str(trained)
    other = begin(corpus, tmp_path / "other", None)
    assert not same(load(other), load(trained))


def test_prepare_sees_the_given_weights(corpus, tmp_path, trained, monkeypatch):
    seen = []
    monkeypatch.setattr(
        tiny.TinyMethod, "prepare", lambda self, batches: seen.append(same(self.encoder, load(trained)))
    )
    monkeypatch.setattr(tiny.TinyMethod, "forward", lambda *_: pytest.fail("no step is wanted here"))
    with pytest.raises(pytest.fail.Exception):
        begin(corpus, tmp_path / "run", trained)
    assert seen == [True]


def test_nothing_else_of_the_run_changes(corpus, tmp_path, trained):
    """The untrained twin, and the decoder that is built after the encoder, are those of the run from scratch."""
    runs = [begin(corpus, tmp_path / name, init) for name, init in (("scratch", None), ("continued", trained))]
    assert same(load(f"untrained:{runs[0]}"), load(f"untrained:{runs[1]}"))
    decoders = [load_file(run / "checkpoints/step-00000002/objective.safetensors")["decoder.weight"] for run in runs]
    assert torch.equal(*decoders)
    assert same(load(runs[0]), load(f"untrained:{runs[0]}"))  # at this rate training moves nothing


def test_a_resumed_run_does_not_need_the_folder(corpus, tmp_path, trained):
    whole = begin(corpus, tmp_path / "whole", trained, steps=4, lr=0.01)
    half = begin(corpus, tmp_path / "half", trained, steps=4, lr=0.01, checkpoint_every=2, keep_checkpoints=3)
    shutil.rmtree(half / "checkpoints/step-00000004")
    shutil.rmtree(trained)
    resume(half, progress=False)
    assert same(load(half), load(whole))


def test_an_encoder_that_is_built_otherwise_is_refused_before_anything_is_begun(corpus, tmp_path):
    save(TinyEncoder(TinyEncoderConfig(dim=4)), tmp_path / "narrow")
    with pytest.raises(ConfigError, match=r"encoder\.dim: 6 here, but 4 in .*narrow; .* add: --encoder\.dim 4$"):
        begin(corpus, tmp_path / "run", tmp_path / "narrow")
    with pytest.raises(ConfigError, match="fbank is an encoder of family 'fbank'"):
        begin(corpus, tmp_path / "run", "fbank")
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        begin(corpus, tmp_path / "run", corpus)
    assert not (tmp_path / "run").exists()


def apc_args(corpus, output, *more):
    small = [
        "--encoder.dim",
        "8",
        "--encoder.layers",
        "1",
        "--data.batch-seconds",
        "3",
        "--encoder.front-end.n-mels",
        "9",
    ]
    train = ["--train.steps", "1", "--train.lr", "1e-30", "--train.weight-decay", "0", "--objective.min-s", "0.2"]
    return ["pretrain", "apc-tiny", "--data", str(corpus), "--output", str(output), *small, *train, *more]


def test_statistics_stay_those_of_the_weights_and_the_line_mends_every_difference(corpus, tmp_path, capsys):
    run = preset("apc-tiny").encoder
    front_end = run.front_end.model_copy(update={"n_mels": 9, "stack": 2, "level_db": None, "normalize": "none"})
    config = run.model_copy(
        update={"front_end": front_end, "dim": 12, "layers": 1, "dropout": 0.3, "residual": not run.residual}
    )
    encoder = ApcEncoder(config)
    encoder.mean.fill_(3.0)
    save(encoder, tmp_path / "given")
    init = ["--init", str(tmp_path / "given")]
    assert cli.main(apc_args(corpus, tmp_path / "run", *init)) == 2
    told = capsys.readouterr().err.strip()
    mend = told.rpartition("add: ")[2].split()
    assert cli.main(apc_args(corpus, tmp_path / "run", *init, *mend)) == 0
    assert same(load(tmp_path / "run"), encoder)  # `prepare` of this method measures mean and scale of the new data
    assert f"auricle evaluate {tmp_path / 'run'} {tmp_path / 'given'} fbank" in capsys.readouterr().out
