"""The recordings inside this package; `recordings/DATA.md` tells what they are and under which licences."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from auricle.data.manifest import Manifest


def read() -> Manifest:
    """All of them: `corpus` (the folder a clip lies in), `split` (train, dev, test), and per corpus what is known:

    `phones` (intervals), `voice`, `speaker`, `gender`, `age_group`, `text`, `digit`, `keyword`, `category`, `fold`,
    `source`, `instrument`, `midi`; None elsewhere.
    """
    return Manifest.open(Path(str(files("auricle"))) / "recordings" / "manifest.csv")
