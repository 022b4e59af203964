"""Saving, and every name by which an encoder is loaded."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import auricle
from auricle.encoders import BASELINES, FAMILIES
from auricle.encoders.checkpoint import load, newest_checkpoint, save
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.errors import AuricleError, CheckpointError, ConfigError

CONFIG = MelTransformerConfig(dim=16, layers=2, heads=2, ffn=32)
CLIP = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))


def build(seed=0):
    torch.manual_seed(seed)
    return MelTransformer(CONFIG).eval()


@torch.inference_mode()
def states(encoder):
    return torch.stack(encoder(CLIP, torch.tensor([CLIP.shape[1]])).hidden_states)


@pytest.fixture
def run(tmp_path):
    """A run folder: steps 9 and 10, one unfinished, one half deleted."""
    for step in (9, 10):
        save(build(step), tmp_path / f"run/checkpoints/step-{step:08d}", seed=7, step=step)
    save(build(11), tmp_path / "run/checkpoints/.step-00000011.unfinished", seed=7)
    save(build(12), tmp_path / "run/checkpoints/step-00000012", seed=7)
    (tmp_path / "run/checkpoints/step-00000012/model.safetensors").unlink()
    return tmp_path / "run"


def one_line(error):
    return "\n" not in str(error.value)


def test_saved_and_loaded_gives_the_same_numbers_and_fingerprint(tmp_path):
    encoder = build(3)
    save(encoder, tmp_path / "c", seed=3, method="mockingjay")
    loaded = load(tmp_path / "c")
    assert torch.equal(states(loaded), states(encoder))
    assert loaded.fingerprint() == encoder.fingerprint()
    assert loaded.name == str(tmp_path / "c")
    assert not loaded.training
    written = json.loads((tmp_path / "c/config.json").read_text())
    assert written["format"] == 1
    assert written["auricle"] == auricle.__version__
    assert (written["family"], written["seed"], written["method"]) == ("mel_transformer", 3, "mockingjay")
    assert (written["sample_rate"], written["hop"], written["dims"]) == (16000, 160, [16, 16, 16])


class Tied(MelTransformer):
    """One matrix under two names, as tied embeddings are."""

    family = "tied"
    config: MelTransformerConfig

    def __init__(self, config):
        super().__init__(config)
        self.tied = self.project


def test_weights_that_share_memory_are_saved_once_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "tied", f"{__name__}:Tied")
    encoder = Tied(CONFIG).eval()
    save(encoder, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert len([name for name in stored if name.endswith(("project.weight", "tied.weight"))]) == 1
    loaded = load(tmp_path)
    assert loaded.tied.weight is loaded.project.weight
    assert torch.equal(states(loaded), states(encoder))
    assert loaded.fingerprint() == encoder.fingerprint()


def test_a_run_gives_its_newest_complete_checkpoint(run):
    assert newest_checkpoint(run).name == "step-00000010"
    assert torch.equal(states(load(run)), states(build(10)))
    assert torch.equal(states(load(run / "checkpoints/step-00000009")), states(build(9)))


def test_the_untrained_twin_is_a_fresh_build_under_the_seed_and_leaves_the_generator_alone(run):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    twin = load(f"untrained:{run}")
    load(run)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(states(twin), states(build(7)))
    assert twin.fingerprint() != load(run).fingerprint()


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_load_by_name_and_from_a_checkpoint(name, tmp_path):
    encoder = load(name)
    assert (encoder.name, encoder.family) == (name, name)
    save(encoder, tmp_path)
    assert load(tmp_path).fingerprint() == encoder.fingerprint()
    assert torch.equal(states(load(tmp_path)), states(encoder))


def test_baselines_differ():
    assert len({load(name).fingerprint() for name in BASELINES}) == len(BASELINES)
    assert set(BASELINES) < set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("fbnk", "did you mean 'fbank'"), ("mfc", "did you mean 'mfcc'"), ("quite something else", "module:attribute")],
)
def test_an_unknown_name_is_refused_with_the_near_miss_and_the_forms(name, hint):
    with pytest.raises(ConfigError, match=hint) as error:
        load(name)
    assert one_line(error)
    assert "untrained:RUN" in str(error.value)


def test_a_misspelt_folder_is_refused_with_its_neighbour(run):
    with pytest.raises(ConfigError, match=f"did you mean '{run}'"):
        load(str(run) + "n")


def change(folder, **values):
    path = folder / "config.json"
    kept = {key: value for key, value in (json.loads(path.read_text()) | values).items() if value is not None}
    path.write_text(json.dumps(kept))


def test_what_is_missing_damaged_or_newer_is_refused_in_one_line(tmp_path):
    damages = {
        "upgrade auricle": lambda c: change(c, format=2, auricle="9.0"),
        "'format' is missing": lambda c: change(c, format=None),
        "'family' is missing": lambda c: change(c, family=None),
        "'config' is missing": lambda c: change(c, config=None),
        "unknown encoder family 'mel_transfomer'; did you mean 'mel_transformer'": lambda c: change(
            c, family="mel_transfomer"
        ),
        "unknown option 'widht'": lambda c: change(c, config={"widht": 3}),
        "does not fit its config": lambda c: change(c, config=CONFIG.model_dump(mode="json") | {"dim": 32}),
        "lacks weight": lambda c: change(c, config=CONFIG.model_dump(mode="json") | {"layers": 3}),
        "holds unknown weight": lambda c: change(c, config=CONFIG.model_dump(mode="json") | {"layers": 1}),
        "config.json: damaged": lambda c: (c / "config.json").write_text('{"format": 1, "fam'),
        "model.safetensors is missing": lambda c: (c / "model.safetensors").unlink(),
        "model.safetensors: damaged": lambda c: (c / "model.safetensors").write_bytes(
            (c / "model.safetensors").read_bytes()[:-50]
        ),
        "model.safetensors: damaged or": lambda c: (c / "model.safetensors").write_bytes(b""),
        "holds neither a checkpoint": lambda c: [path.unlink() for path in c.iterdir()],
    }
    for number, (message, damage) in enumerate(damages.items()):
        folder = tmp_path / str(number)
        save(build(), folder)
        damage(folder)
        with pytest.raises(CheckpointError, match=message) as error:
            load(folder)
        assert one_line(error), message
        assert str(folder) in str(error.value), message


def test_no_seed_means_no_untrained_twin(tmp_path):
    save(build(), tmp_path)
    with pytest.raises(CheckpointError, match="no seed"):
        load(f"untrained:{tmp_path}")


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for name in (tmp_path / "a.txt", f"untrained:{tmp_path / 'nowhere'}"):
        with pytest.raises(AuricleError, match="no such run or checkpoint folder"):
            load(name)


def test_extra_entries_may_not_hide_the_format(tmp_path):
    with pytest.raises(CheckpointError, match="family"):
        save(build(), tmp_path, family="other")


def test_listing_names_needs_no_torch():
    code = "import sys, auricle.encoders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
