"""The Hugging Face Hub: folders fetched by name, encoders pushed with a card that says what they are."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import auricle
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import CONFIG, WEIGHTS, save
from auricle.errors import CheckpointError, MissingDependencyError

INSTALL = "pip install 'auricle[hf]'"
_WANTED = ["*.json", "model*.safetensors"]
_OLD = ["*.json", "pytorch_model*.bin"]
"""Fetched only where there are no safetensors."""


def fetch(name: str) -> Path:
    """The folder that `name` is, or the Hub's repository `user/name`, from the cache where it is whole there.

    Raises `CheckpointError` when it is neither, or cannot be reached; `MissingDependencyError` without huggingface_hub.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise CheckpointError(f"{name}: no such folder")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise MissingDependencyError(f"hf:{name}: needs huggingface_hub; install it with: {INSTALL}") from None
    for offline in (True, False):
        for patterns in (_WANTED, _OLD):
            try:
                folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
            except (OSError, HFValidationError) as error:
                if offline:
                    break
                raise CheckpointError(f"hf:{name}: {_reason(error)}") from None
            if _has_weights(folder):
                return folder
    raise CheckpointError(
        f"hf:{name}: its repository holds no config.json with weights in safetensors or PyTorch's form"
    )


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):  # the Hub does not tell what is private from what is missing
        return "no such folder here and no such repository on the Hub, or one that you must log in for (hf auth login)"
    return "no such folder, not in the Hub's cache, and the Hub cannot be reached; go online or name a folder"


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(
        (folder / pattern).is_file() or any(folder.glob(pattern)) for pattern in (_WANTED[1], _OLD[1])
    )


def push(encoder: Encoder, repository: str, *, private: bool = False) -> str:
    """Save `encoder` and its card as the Hub's `repository` (user/name), made if need be; returns its address.

    Raises `CheckpointError` when the Hub refuses or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise MissingDependencyError(f"{repository}: needs huggingface_hub; install it with: {INSTALL}") from None
    with TemporaryDirectory() as folder:
        save(encoder, folder)
        (Path(folder) / "README.md").write_text(card(encoder, repository), encoding="utf-8")
        hub = HfApi()
        try:
            address = str(hub.create_repo(repository, private=private, exist_ok=True))
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"auricle {auricle.__version__}")
        except (OSError, HFValidationError) as error:
            raise CheckpointError(f"{repository}: not pushed ({str(error).strip().splitlines()[0]})") from None
    return address


def card(encoder: Encoder, repository: str) -> str:
    """The Markdown of a model card: what the encoder is, and how to use it."""
    hop_ms = 1000 * encoder.hop / encoder.sample_rate
    return f"""---
library_name: auricle
pipeline_tag: feature-extraction
tags: [audio, self-supervised-learning, {encoder.family}]
---

# {repository}

An audio encoder of the family `{encoder.family}`, written by auricle {auricle.__version__}: mono audio at
{encoder.sample_rate} Hz to a frame every {hop_ms:g} ms, in {len(encoder.dims)} layers,
of which the last has {encoder.dims[-1]} channels. `{CONFIG}` and `{WEIGHTS}` are all it needs.

```python
import auricle

encoder = auricle.load("hf:{repository}")
frames = encoder.frames("audio.wav")  # (T, {encoder.dims[-1]})
vector = encoder.clip("audio.wav")    # ({encoder.dims[-1]},)
```
"""
