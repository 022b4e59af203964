"""EmoDB (Burkhardt et al. 2005): ten German sentences acted in seven emotions by ten people."""

from __future__ import annotations

import re
from pathlib import Path

from auricle.data.corpora.layout import find_root, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "wav/{speaker}{text}{emotion}{take}.wav, e.g. wav/03a01Fa.wav"
NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z]?)")
EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
MEN, WOMEN = ("03", "10", "11", "12", "15"), ("08", "09", "13", "14", "16")
CLIPS = 535


def read(folder: Path) -> Manifest:
    """`emotion`, `sentence`, `speaker` and `gender`; there is no official split. Expects LAYOUT.

    Raises `ManifestError`, also for later versions, which add recordings that listeners had rejected.
    """
    root = find_root(folder, "EmoDB", ["wav"], LAYOUT)
    clips = [
        (path, match)
        for path in sorted((root / "wav").glob("*.wav"))
        if (match := NAME.fullmatch(path.stem)) and match[1] in MEN + WOMEN
    ]
    if not clips:
        raise ManifestError(f"{root / 'wav'}: no recordings of EmoDB; expected {LAYOUT}")
    if len(clips) > CLIPS:
        raise ManifestError(f"{root}: {len(clips)} clips, where EmoDB has {CLIPS}; get its first version")
    warn_count("EmoDB", len(clips), CLIPS)
    columns = {
        "clip_id": [path.stem for path, _ in clips],
        "path": [f"wav/{path.name}" for path, _ in clips],
        "emotion": [EMOTIONS[match[3]] for _, match in clips],
        "sentence": [match[2] for _, match in clips],
        "speaker": [match[1] for _, match in clips],
        "gender": ["m" if match[1] in MEN else "f" for _, match in clips],
    }
    return Manifest.from_columns(columns, root, str(root))
