"""Corpora in their official layouts, as manifests: one short file each, imported when it is read."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auricle.errors import ManifestError, unknown

if TYPE_CHECKING:
    from auricle.data.manifest import Manifest


@dataclass(frozen=True)
class Corpus:
    """What a corpus is, and the function that reads it."""

    reader: str
    """`module:function`, called with the corpus's folder; its docstring tells layout, columns and options."""
    title: str
    hours: float
    licence: str
    url: str
    """Where to get it; empty for what ships with this package."""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.title, f"{self.hours:g} h", self.licence, self.url) if part)


CORPORA = {
    "bundled": Corpus(
        "auricle.data.corpora.bundled:read",
        "The recordings inside this package: speech, sounds and notes",
        0.95,
        "CC BY-SA 4.0, CC BY 4.0, CC BY 3.0, CC0, Apache-2.0, by folder (DATA.md)",
        "",
    ),
    "librispeech": Corpus(
        "auricle.data.corpora.librispeech:read",
        "LibriSpeech (Panayotov et al. 2015): read English",
        982,
        "CC BY 4.0",
        "https://www.openslr.org/12",
    ),
    "fsdd": Corpus(
        "auricle.data.corpora.fsdd:read",
        "Free Spoken Digit Dataset (Jackson et al.)",
        0.37,
        "CC BY-SA 4.0",
        "https://github.com/Jakobovski/free-spoken-digit-dataset",
    ),
    "esc50": Corpus(
        "auricle.data.corpora.esc50:read",
        "ESC-50 (Piczak 2015): environmental sounds, 50 classes",
        2.8,
        "CC BY-NC 3.0",
        "https://github.com/karolpiczak/ESC-50",
    ),
    "esc10": Corpus(
        "auricle.data.corpora.esc50:read_esc10",
        "ESC-10: the ten classes of ESC-50 under free licences",
        0.56,
        "CC BY 3.0",
        "https://github.com/karolpiczak/ESC-50",
    ),
}
"""Name to record."""


def read_corpus(name: str, folder: str | Path | None = None, **options: Any) -> Manifest:
    """The manifest of a corpus in its official layout in `folder` ("bundled" needs none), with its reader's options.

    Raises `ManifestError` for an unknown name, a folder that is not the corpus, or files that are missing.
    """
    if name not in CORPORA:
        raise ManifestError(unknown("corpus", name, CORPORA))
    if (folder is None) != (name == "bundled"):
        raise ManifestError(f"corpus '{name}' {'takes no' if folder is not None else 'needs the'} folder it lies in")
    module, function = CORPORA[name].reader.split(":")
    read = getattr(importlib.import_module(module), function)
    for option in options:
        if option not in inspect.signature(read).parameters:
            raise ManifestError(f"corpus '{name}' takes no option '{option}'")
    manifest: Manifest = read(**options) if folder is None else read(Path(folder), **options)
    return manifest
