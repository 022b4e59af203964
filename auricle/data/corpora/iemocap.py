"""IEMOCAP (Busso et al. 2008): five sessions of two actors in scripted and improvised dialogues, by turns."""

from __future__ import annotations

import re
from pathlib import Path

from auricle.data.corpora.layout import find_root, read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest

LAYOUT = "Session1/dialog/EmoEvaluation/*.txt and Session1/sentences/wav/*/*.wav, to Session5"
SESSIONS = [f"Session{number}" for number in range(1, 6)]
TURN = re.compile(r"\[.+\]\t(Ses\d\d[FM]_(?:impro|script)\w+_([FM])\w+)\t(\w+)\t\[([\d.]+), ([\d.]+), ([\d.]+)\]\s*")
EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "sad": "sad", "ang": "angry"}
"""The four usual classes, excitement counted as happiness; other turns have none."""


def read(folder: Path) -> Manifest:
    """`emotion` of four classes (None elsewhere), and all that the evaluation says of the 10,039 turns.

    That is `category` (the annotators' majority, e.g. "fru"; "xxx" where there is none), `valence`, `activation` and
    `dominance` (means, 1 to 5); `improvised`, `speaker`, `gender`. `fold` is the session: folds share no speaker, and
    SUPERB tests on each in turn. Expects LAYOUT. Raises `ManifestError`.
    """
    evaluation = "dialog/EmoEvaluation"
    root = find_root(folder, "IEMOCAP", [f"{session}/{evaluation}" for session in SESSIONS], LAYOUT)
    absent = [session for session in SESSIONS if not (root / session / evaluation).is_dir()]
    refuse_missing("the sessions", root, absent, len(SESSIONS))
    turns = [
        match
        for session in SESSIONS
        for path in sorted((root / session / evaluation).glob("Ses*.txt"))
        for line in read_lines(path)
        if (match := TURN.fullmatch(line))
    ]
    names = [turn[1] for turn in turns]
    paths = [f"Session{name[4]}/sentences/wav/{name.rpartition('_')[0]}/{name}.wav" for name in names]
    refuse_missing("the recordings", root, [path for path in paths if not (root / path).is_file()], len(paths))
    emotions = [EMOTIONS.get(turn[3]) for turn in turns]
    warn_count("IEMOCAP", len(turns), 10_039)
    warn_count("IEMOCAP, four classes", len(turns) - emotions.count(None), 5_531)
    columns = {
        "clip_id": names,
        "path": paths,
        "fold": [int(name[4]) for name in names],
        "emotion": emotions,
        "category": [turn[3] for turn in turns],
        "valence": [float(turn[4]) for turn in turns],
        "activation": [float(turn[5]) for turn in turns],
        "dominance": [float(turn[6]) for turn in turns],
        "improvised": ["_impro" in name for name in names],
        "speaker": [f"{name[:5]}{turn[2]}" for name, turn in zip(names, turns, strict=True)],
        "gender": [turn[2].lower() for turn in turns],
    }
    return Manifest.from_columns(columns, root, str(root))
