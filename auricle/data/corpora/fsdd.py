"""Free Spoken Digit Dataset: ten English digits, six speakers, fifty takes of each, 8 kHz."""

from __future__ import annotations

import re
from pathlib import Path

from auricle.data.corpora.layout import find_root, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "recordings/{digit}_{speaker}_{index}.wav"
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)")
TEST_TAKES = 5


def read(folder: Path) -> Manifest:
    """`digit`, `speaker`, `take`, and the official `split`: takes 0 to 4 are test, 5 to 49 train (the README's rule).

    There is no official dev set, and every speaker is in both splits. Expects LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "FSDD", ["recordings"], LAYOUT)
    clips = [
        (path, match) for path in sorted((root / "recordings").glob("*.wav")) if (match := NAME.fullmatch(path.stem))
    ]
    if not clips:
        raise ManifestError(f"{root / 'recordings'}: no recordings of FSDD; expected {LAYOUT}")
    found = {path.stem for path, _ in clips}
    speakers = sorted({match[2] for _, match in clips})
    takes = 1 + max(int(match[3]) for _, match in clips)
    expected = [f"{digit}_{speaker}_{take}" for digit in range(10) for speaker in speakers for take in range(takes)]
    refuse_missing("the recordings", root, [name for name in expected if name not in found], len(expected))
    warn_count("FSDD", len(clips), 3000)
    columns = {
        "clip_id": [path.stem for path, _ in clips],
        "path": [f"recordings/{path.name}" for path, _ in clips],
        "split": ["test" if int(match[3]) < TEST_TAKES else "train" for _, match in clips],
        "digit": [int(match[1]) for _, match in clips],
        "speaker": [match[2] for _, match in clips],
        "take": [int(match[3]) for _, match in clips],
    }
    return Manifest.from_columns(columns, root, str(root))
