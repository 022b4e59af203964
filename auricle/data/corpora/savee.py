"""SAVEE (Haq and Jackson 2009): seven emotions acted in English by four men."""

from __future__ import annotations

from pathlib import Path

from auricle.data.corpora.layout import find_root, refuse_missing
from auricle.data.manifest import Manifest
from auricle.data.splits import group_shuffle

LAYOUT = "AudioData/{DC,JE,JK,KL}/{a,d,f,h,n,sa,su}{01...}.wav"
EMOTIONS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}
SPEAKERS = ("DC", "JE", "JK", "KL")
SENTENCES = {code: 30 if code == "n" else 15 for code in EMOTIONS}


def read(folder: Path) -> Manifest:
    """The 480 clips' `emotion`, `sentence` (its number within the emotion), `speaker` and `noss_split`.

    There is no official split; NOSS trains on JK and KL, chooses on JE and tests on DC. Expects LAYOUT. Raises
    `ManifestError`.
    """
    root = find_root(folder, "SAVEE", [f"AudioData/{speaker}" for speaker in SPEAKERS], LAYOUT)
    clips = [
        (speaker, code, number)
        for speaker in SPEAKERS
        for code, count in SENTENCES.items()
        for number in range(1, count + 1)
    ]
    paths = [f"AudioData/{speaker}/{code}{number:02}.wav" for speaker, code, number in clips]
    refuse_missing("the recordings", root, [path for path in paths if not (root / path).is_file()], len(paths))
    speakers = [speaker for speaker, *_ in clips]
    columns = {
        "clip_id": [f"{speaker}_{code}{number:02}" for speaker, code, number in clips],
        "path": paths,
        "noss_split": group_shuffle(speakers, (0.6, 0.2, 0.2)),
        "emotion": [EMOTIONS[code] for _, code, _ in clips],
        "sentence": [number for *_, number in clips],
        "speaker": speakers,
    }
    return Manifest.from_columns(columns, root, str(root))
