"""TIMIT (Garofolo et al. 1993): read sentences with hand-made phone times, 630 speakers of eight dialects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from auricle.data.corpora.layout import Interval, IntervalColumn, find_root, read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "TRAIN/DR1/FCJF0/SA1.WAV beside SA1.PHN, and TEST alike, in capitals or not (LDC93S1)"
NAME = re.compile(r"(TRAIN|TEST)/(DR[1-8])/([FM][A-Z]{3}\d)/(S[AIX]\d+)")
AUDIO = ("WAV.WAV", "WAV", "FLAC")
"""What follows a sentence's name: SPHERE files as they come, or converted ones beside them or instead."""
RATE = 16000
CORE = (
    "MDAB0 MWBT0 FELC0 MTAS1 MWEW0 FPAS0 MJMP0 MLNT0 FPKT0 MLLL0 MTLS0 FJLM0 "
    "MBPM0 MKLT0 FNLP0 MCMJ0 MJDH0 FMGD0 MGRT0 MNJM0 FDHC0 MJLN0 MPAM0 FMLD0"
)
"""The 24 speakers of the core test set (the corpus's testset.doc)."""
DEV = (
    "FAKS0 FDAC1 FJEM0 MGWT0 MJAR0 MMDB1 MMDM2 MPDF0 FCMH0 FKMS0 MBDG0 MBWM0 MCSH0 FADG0 FDMS0 FEDW0 MGJF0 "
    "MGLB0 MRTK0 MTAA0 MTDT0 MTHC0 MWJG0 FNMR0 FREW0 FSEM0 MBNS0 MMJR0 MDLS0 MDLF0 MDVC0 MERS0 FMAH0 FDRW0 "
    "MRCS0 MRJM4 FCAL1 MMWH0 FJSJ0 MAJC0 MJSW0 MREB0 FGJD0 FJMG0 MROA0 MTEB0 MJFC0 MRJR0 FMML0 MRWS1"
)
"""The customary 50 speakers of dev (Halberstadt 1998), all from the complete test set."""
SPEAKERS = {"train": 462, "dev": 50, "test": 24}
COMPLETE = {"train": 462, "test": 168}
"""Speakers by split, each of two SA, five SX and three SI sentences."""
GROUPS = (
    "sil pcl tcl kcl bcl dcl gcl h# pau epi|aa ao|ae|ah ax ax-h|aw|ay|b|ch|d|dh|dx|eh|er axr|ey|f|g|hh hv|ih ix|iy|jh|"
    "k|l el|m em|n en nx|ng eng|ow|oy|p|r|s|sh zh|t|th|uh|uw ux|v|w|y|z"
)
"""The 39 classes that are scored (Lee & Hon 1989): each one's name, and what else of the 61 phones is in it."""
FOLDED = {phone: group.split()[0] for group in GROUPS.split("|") for phone in group.split()} | {"q": None}
"""Phone to class: the glottal stop "q" is in none."""


class Sentence(NamedTuple):
    """A recording's place in the tree, in capitals."""

    part: str
    dialect: str
    speaker: str
    name: str

    def split(self, complete: bool) -> str | None:
        """Train, dev or test; None if the speaker is in none."""
        if self.part == "TRAIN":
            return "train"
        return "test" if complete or self.speaker in CORE.split() else "dev" if self.speaker in DEV.split() else None


def read(folder: Path, *, phones: Literal[39, 61] = 39, complete: bool = False, sa: bool = False) -> Manifest:
    """`phones`, intervals of 39 or 61 of them; `speaker`, `gender`, `dialect`, `sentence`, and the customary `split`.

    TRAIN is train, the core test set is test, and dev 50 other speakers of TEST, the rest of whom are left out; with
    `complete`, all of TEST is test, and dev is to be cut out of train. The two SA sentences, which everybody reads, are
    left out unless `sa`. Among 39 phones the glottal stop "q" has no label, as in scoring. Expects LAYOUT. Raises
    `ManifestError`.
    """
    if phones not in (39, 61):
        raise ManifestError(f"timit: phones must be 39 or 61, not {phones}")
    root = find_root(folder, "TIMIT", ["TRAIN/DR1", "train/dr1"], LAYOUT)
    files: dict[Sentence, dict[str, str]] = {}  # kind of file to path
    for path in sorted(root.glob("*/*/*/*.*")):
        place = path.relative_to(root).as_posix()
        name, _, kind = place.upper().partition(".")
        if match := NAME.fullmatch(name):
            files.setdefault(Sentence(*match.groups()), {})[kind] = place
    sentences = sorted(key for key in files if key.split(complete) and (sa or not key.name.startswith("SA")))
    if not complete:
        wanted = {*CORE.split(), *DEV.split()}
        absent = sorted(wanted - {key.speaker for key in sentences})
        refuse_missing("the speakers of dev and core test", root, absent, len(wanted))
    audio = [next((files[key][kind] for kind in AUDIO if kind in files[key]), None) for key in sentences]
    missing = ["/".join(key) + ".WAV" for key, path in zip(sentences, audio, strict=True) if path is None]
    missing += ["/".join(key) + ".PHN" for key in sentences if "PHN" not in files[key]]
    refuse_missing("the recordings and their phones", root, missing, 2 * len(sentences))
    splits = [key.split(complete) for key in sentences]
    for part, speakers in (COMPLETE if complete else SPEAKERS).items():
        warn_count(f"TIMIT {part}", splits.count(part), speakers * (10 if sa else 8))

    intervals = IntervalColumn()
    for key in sentences:
        intervals.add(_phones(root / files[key]["PHN"], folded=phones == 39))
    columns: dict[str, Any] = {
        "clip_id": [f"{key.speaker}_{key.name}" for key in sentences],
        "path": audio,
        "split": splits,
        "speaker": [key.speaker for key in sentences],
        "gender": [key.speaker[0].lower() for key in sentences],
        "dialect": [key.dialect for key in sentences],
        "sentence": [key.name for key in sentences],
        "phones": intervals.to_arrow(),
    }
    return Manifest.from_columns(columns, root, str(root))


def _phones(path: Path, folded: bool) -> list[Interval]:
    """A sentence's phones from lines of first sample, end sample, phone."""
    intervals = []
    for line in read_lines(path):
        try:
            start, end, phone = line.split()
            times = int(start) / RATE, int(end) / RATE
        except ValueError:
            raise ManifestError(f"{path}: '{line.strip()}' is not 'start end phone' in samples") from None
        if phone not in FOLDED:
            raise ManifestError(f"{path}: '{phone}' is none of TIMIT's 61 phones")
        if label := FOLDED[phone] if folded else phone:
            intervals.append((*times, label))
    return intervals
