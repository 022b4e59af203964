"""CREMA-D (Cao et al. 2014): twelve sentences acted in six emotions by 91 people."""

from __future__ import annotations

import re
from pathlib import Path

from auricle.data.corpora.layout import find_root, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.data.splits import group_shuffle
from auricle.errors import ManifestError

LAYOUT = "AudioWAV/{actor}_{sentence}_{emotion}_{level}.wav, e.g. AudioWAV/1001_IEO_ANG_HI.wav"
NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX?)")  # one X in 1040_ITH_SAD_X
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness"}
LEVELS = {"LO": "low", "MD": "medium", "HI": "high"}
SPEAKERS = [str(number) for number in range(1001, 1092)]
NOT_IN_NOSS = frozenset({"1006_TIE_NEU_XX", "1013_WSI_DIS_XX", "1017_IWW_FEA_XX", "1040_ITH_SAD_X"})
"""Three are copies of another emotion's clip, one is misnamed: TensorFlow Datasets, and so NOSS, leaves them out."""


def read(folder: Path) -> Manifest:
    """`emotion` (the one acted), `level` ("low", "medium", "high" or None), `sentence`, `speaker` and `noss_split`.

    There is no official split. NOSS's keeps the 91 speakers whole and is None for the four clips that NOSS lacks.
    1076_MTI_SAD_XX is silent, and NOSS has it. Expects LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "CREMA-D", ["AudioWAV"], LAYOUT)
    found = sorted((root / "AudioWAV").glob("*.wav"))
    clips = [(path, match) for path in found if (match := NAME.fullmatch(path.stem))]
    speakers = [match[1] for _, match in clips]
    refuse_missing("the speakers", root, sorted(set(SPEAKERS) - set(speakers)), len(SPEAKERS))
    warn_count("CREMA-D", len(clips), 7442)
    parts = group_shuffle(speakers)
    columns = {
        "clip_id": [path.stem for path, _ in clips],
        "path": [f"AudioWAV/{path.name}" for path, _ in clips],
        "noss_split": [
            None if path.stem in NOT_IN_NOSS else part for (path, _), part in zip(clips, parts, strict=True)
        ],
        "emotion": [EMOTIONS[match[3]] for _, match in clips],
        "level": [LEVELS.get(match[4]) for _, match in clips],
        "sentence": [match[2] for _, match in clips],
        "speaker": speakers,
    }
    manifest = Manifest.from_columns(columns, root, str(root))
    if not len(manifest):  # pointers to the recordings are all that a plain clone or an archive holds
        reason = manifest.skipped[0].reason
        raise ManifestError(f"{root}: no recording can be read ({reason}); run 'git lfs pull' there")
    return manifest
