"""DementiaBank's Pitt corpus (Becker et al. 1994): the cookie theft picture described, with and without dementia."""

from __future__ import annotations

import re
from pathlib import Path

from auricle.data.corpora.layout import find_root, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.data.splits import group_shuffle

LAYOUT = "Control/cookie/*.mp3 and Dementia/cookie/*.mp3 (or .wav), e.g. Control/cookie/002-0.mp3, as in Pitt"
GROUPS = {"Control": "control", "Dementia": "dementia"}
NAME = re.compile(r"(\d+)-(\w+)")


def read(folder: Path) -> Manifest:
    """`diagnosis` ("control" or "dementia"), `speaker`, `visit`, and `noss_split`, which keeps speakers whole.

    Several visits of a person are several clips. There is no official split. Expects LAYOUT, in `folder` or in
    `folder`/dementia/English/Pitt. Raises `ManifestError`.
    """
    pitt = folder / "dementia" / "English" / "Pitt"
    root = find_root(pitt if pitt.is_dir() else folder, "Pitt", [f"{group}/cookie" for group in GROUPS], LAYOUT)
    clips = []
    for group, diagnosis in GROUPS.items():
        found = sorted(path for kind in ("mp3", "wav") for path in (root / group / "cookie").glob(f"*.{kind}"))
        once = {path.stem: path for path in found}  # of an mp3 and its wav, one
        clips += [(diagnosis, path, match) for name, path in once.items() if (match := NAME.fullmatch(name))]
    absent = set(GROUPS.values()) - {diagnosis for diagnosis, *_ in clips}
    refuse_missing("the groups' recordings", root, sorted(absent), len(GROUPS))
    warn_count("Pitt (cookie)", len(clips), 552)
    speakers = [match[1] for *_, match in clips]
    columns = {
        "clip_id": [f"{diagnosis}/{path.stem}" for diagnosis, path, _ in clips],
        "path": [str(path.relative_to(root)) for _, path, _ in clips],
        "noss_split": group_shuffle(speakers),
        "diagnosis": [diagnosis for diagnosis, *_ in clips],
        "speaker": speakers,
        "visit": [match[2] for *_, match in clips],
    }
    return Manifest.from_columns(columns, root, str(root))
