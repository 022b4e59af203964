"""RAVDESS (Livingstone and Russo 2018): two sentences spoken, or sung, in eight emotions by 24 actors."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from auricle.data.corpora.layout import find_root, refuse_missing, warn_count
from auricle.data.manifest import Manifest

LAYOUT = "Actor_01/03-01-01-01-01-01-01.wav to Actor_24/..., as in Audio_Speech_Actors_01-24.zip"
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STRENGTHS = ("normal", "strong")


def read(folder: Path, *, song: bool = False) -> Manifest:
    """The spoken clips (with `song` the sung ones): `emotion`, `strength`, `statement`, `take`, `speaker`, `gender`.

    `statement` is 1 or 2, `take` too. There is no official split. Actor 18 did not sing, and songs are neither
    disgusted nor surprised. Expects LAYOUT, likewise of Audio_Song_Actors_01-24.zip. Raises `ManifestError`.
    """
    channel, emotions, official = (2, EMOTIONS[:6], 1012) if song else (1, EMOTIONS, 1440)
    kinds = [
        (emotion, strength, statement, take)
        for emotion, strength, statement, take in product(emotions, STRENGTHS, (1, 2), (1, 2))
        if (emotion, strength) != ("neutral", "strong")
    ]
    names = [
        f"03-{channel:02}-{EMOTIONS.index(emotion) + 1:02}-{STRENGTHS.index(strength) + 1:02}-{statement:02}-{take:02}"
        for emotion, strength, statement, take in kinds
    ]
    folders = {f"{actor:02}": f"Actor_{actor:02}" for actor in range(1, 25)}
    marks = [f"{place}/{names[0]}-{actor}.wav" for actor, place in folders.items()]
    root = find_root(folder, "RAVDESS's " + ("songs" if song else "speech"), marks, LAYOUT)
    actors = [actor for actor, place in folders.items() if any((root / place).glob(f"03-{channel:02}-*.wav"))]
    clips = [(actor, name, kind) for actor in actors for name, kind in zip(names, kinds, strict=True)]
    paths = [f"{folders[actor]}/{name}-{actor}.wav" for actor, name, _ in clips]
    refuse_missing("the recordings", root, [path for path in paths if not (root / path).is_file()], len(paths))
    warn_count("RAVDESS", len(clips), official)
    columns = {
        "clip_id": [f"{name}-{actor}" for actor, name, _ in clips],
        "path": paths,
        "emotion": [emotion for *_, (emotion, *_) in clips],
        "strength": [strength for *_, (_, strength, *_) in clips],
        "statement": [statement for *_, (*_, statement, _) in clips],
        "take": [take for *_, (*_, take) in clips],
        "speaker": [actor for actor, *_ in clips],
        "gender": ["m" if int(actor) % 2 else "f" for actor, *_ in clips],
    }
    return Manifest.from_columns(columns, root, str(root))
