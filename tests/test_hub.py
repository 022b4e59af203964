"""Encoders on the Hugging Face Hub, which is imitated, and in folders of its layout."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from waveform_models import VARIANTS, built, refused, saved

from auricle import cli
from auricle.encoders import hub
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import load
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.encoders.waveform import WaveformEncoder
from auricle.errors import CheckpointError, MissingDependencyError


def mel():
    torch.manual_seed(0)
    return MelTransformer(MelTransformerConfig(dim=8, layers=1, heads=2, ffn=16)).eval()


def test_our_own_encoders_are_saved_and_loaded(tmp_path):
    encoder = mel()
    encoder.save_pretrained(tmp_path)
    for again in (Encoder.from_pretrained(tmp_path), MelTransformer.from_pretrained(str(tmp_path)), load(tmp_path)):
        assert again.fingerprint() == encoder.fingerprint()
    with pytest.raises(CheckpointError, match="holds a MelTransformer, not a WaveformEncoder"):
        WaveformEncoder.from_pretrained(tmp_path)


class FakeHub:
    """What `HfApi` is asked to do, kept."""

    def __init__(self):
        self.files, self.created = {}, []

    def create_repo(self, repository, **options):
        self.created.append((repository, options))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.files[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def test_push_to_hub_and_back(tmp_path, monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    encoder = mel()
    assert encoder.push_to_hub("me/tiny", private=True) == "https://huggingface.co/me/tiny"
    assert fake.created == [("me/tiny", {"private": True, "exist_ok": True})]
    files = fake.files["me/tiny"]
    assert files.keys() == {"config.json", "model.safetensors", "README.md"}
    card = files["README.md"].decode()
    assert re.match(r"---\nlibrary_name: auricle\n(.+\n)*---\n", card)
    assert 'auricle.load("hf:me/tiny")' in card
    assert "mel_transformer" in card

    def download(name, *, allow_patterns, local_files_only):
        from huggingface_hub.errors import LocalEntryNotFoundError

        if local_files_only:
            raise LocalEntryNotFoundError("nothing cached")
        for file, content in files.items():
            (tmp_path / file).write_bytes(content)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert Encoder.from_pretrained("me/tiny").fingerprint() == encoder.fingerprint()
    assert load("hf:me/tiny").name == "hf:me/tiny"


def test_what_the_cache_holds_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    mel().save_pretrained(tmp_path)
    asked = []

    def download(name, *, allow_patterns, local_files_only):
        asked.append(local_files_only)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    load("hf:me/tiny")
    assert asked == [True]


def test_a_repository_with_old_weights_alone_is_fetched_too(tmp_path, monkeypatch):
    asked = []

    def download(name, *, allow_patterns, local_files_only):
        from huggingface_hub.errors import LocalEntryNotFoundError

        if local_files_only:
            raise LocalEntryNotFoundError("nothing cached")
        asked.append(allow_patterns)
        (tmp_path / "config.json").write_text("{}")
        if any("bin" in pattern for pattern in allow_patterns):
            (tmp_path / "pytorch_model.bin").write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.fetch("me/old") == tmp_path
    assert len(asked) == 2


def test_names_are_refused_politely_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refused("hf:nobody/has-this-in-the-cache")
    assert "no such folder" in refused("hf:not/a/name")


def test_what_the_hub_refuses_is_one_line(monkeypatch):
    def deny(self, *args, **options):
        raise OSError("401 Client Error\nmore lines")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", deny)
    with pytest.raises(CheckpointError, match="not pushed"):
        mel().push_to_hub("me/tiny")


def test_absent_packages_are_one_sentence_with_the_command(monkeypatch, tmp_path):
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "conv_dim": [16] * 7}
    saved(transformers.WavLMModel(transformers.WavLMConfig(**sizes)), tmp_path)
    saved(built("Hubert", {}), tmp_path / "hubert")
    for package in ("transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    load(f"hf:{tmp_path / 'hubert'}")  # needs neither
    for name in (tmp_path, "me/tiny"):
        with pytest.raises(MissingDependencyError, match=r"pip install 'auricle\[hf\]'"):
            load(f"hf:{name}")
    with pytest.raises(MissingDependencyError, match=r"pip install 'auricle\[hf\]'"):
        mel().push_to_hub("me/tiny")


def test_the_command_line_takes_them(tmp_path, capsys):
    saved(built(*VARIANTS["hubert base"]), tmp_path)
    assert cli.main(["check", f"hf:{tmp_path}"]) == 0
    assert cli.main(["list", "encoders", "--json"]) == 0
    assert {"hf:NAME", "fairseq:FILE"} <= json.loads(capsys.readouterr().out.splitlines()[-1]).keys()
