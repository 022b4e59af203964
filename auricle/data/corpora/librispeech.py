"""LibriSpeech (Panayotov et al. 2015), with phone times from either of the two alignments the literature uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from auricle.data.corpora.layout import (
    Interval,
    IntervalColumn,
    find_root,
    logger,
    read_lines,
    refuse_missing,
    warn_count,
)
from auricle.data.corpora.textgrid import read_textgrid
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError, unknown

LAYOUT = "SUBSET/SPEAKER/CHAPTER/*.flac beside *.trans.txt, e.g. dev-clean/84/121123/84-121123.trans.txt"
UTTERANCES = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
"""Subset to its official number of utterances."""
FRAMES_PER_S = 100
MOCKINGJAY_UTTERANCES = 122
"""Fewest utterances in train-clean-100 of a speaker whom Mockingjay's speaker recognition knows."""
MOCKINGJAY_SEED = 20190929


def read(
    folder: Path,
    *,
    subsets: Sequence[str] | None = None,
    alignments: Path | None = None,
    cpc: Path | None = None,
    mockingjay: bool = False,
) -> Manifest:
    """Utterances of `subsets` (default: those there are): `subset`, `speaker`, `chapter`, `gender`, `text`, `split`.

    `alignments`: a folder with the Montreal Forced Aligner's SUBSET/SPEAKER/CHAPTER/*.TextGrid; adds `phones`, "sil"
    where nothing is said, and `words`; None for utterances that it could not align.
    `cpc`: a folder with `train_split.txt`, `test_split.txt` and `converted_aligned_phones.txt` of Riviere et al. 2020
    (github.com/facebookresearch/CPC_audio; the split of van den Oord et al. 2018); keeps their utterances of
    train-clean-100, with their `split` and `phones` ("0" to "40", a number every 10 ms in the file).
    `mockingjay`: adds `mockingjay_split` for the speaker recognition of Liu et al. 2020, and keeps its speakers, those
    with at least 122 utterances in train-clean-100: nine tenths of all its utterances, drawn with seed 20190929 as
    pandas draws, are train, the others test; dev is to be cut out of train. Inferred: they are drawn from a list sorted
    by name; the authors' own was sorted by length, in no order among equals, so that their parts cannot be had again.
    Expects LAYOUT. Raises `ManifestError`.
    """
    if alignments is not None and cpc is not None:
        raise ManifestError("librispeech: 'alignments' and 'cpc' both bring phones; give one of them")
    if mockingjay and (cpc is not None or subsets is not None):
        raise ManifestError("librispeech: 'mockingjay' is a split of train-clean-100; leave 'subsets' and 'cpc' out")
    root = find_root(folder, "LibriSpeech", list(UTTERANCES), LAYOUT)
    there = [name for name in UTTERANCES if (root / name).is_dir()]
    chosen = list(subsets or (["train-clean-100"] if cpc or mockingjay else there))
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for subset in chosen:
        if subset not in UTTERANCES:
            raise ManifestError(unknown("subset of LibriSpeech", subset, UTTERANCES))
        found = _transcripts(root, subset)
        warn_count(f"LibriSpeech {subset}", len(found), UTTERANCES[subset])
        texts |= found
        places |= dict.fromkeys(found, subset)
    split = {name: place.split("-")[0] for name, place in places.items()}
    if cpc is not None:
        split = _cpc_split(cpc)
        absent = [name for name in split if name not in texts]
        refuse_missing("the utterances that the CPC split lists", root, absent, len(split))

    names = sorted(split)
    halves = _mockingjay_split(names) if mockingjay else {}
    names = [name for name in names if name in halves or not mockingjay]
    if not names:
        raise ManifestError(f"{root}: no speaker of train-clean-100 has {MOCKINGJAY_UTTERANCES} utterances")
    folders = {name: f"{places[name]}/{'/'.join(name.split('-')[:2])}" for name in names}
    paths = {name: f"{folders[name]}/{name}.flac" for name in names}
    refuse_missing("the recordings", root, [path for path in paths.values() if not (root / path).is_file()], len(names))
    genders = _genders(root / "SPEAKERS.TXT")
    speakers = [name.split("-")[0] for name in names]
    columns: dict[str, Any] = {
        "clip_id": names,
        "path": [paths[name] for name in names],
        "split": [split[name] for name in names],
        "subset": [places[name] for name in names],
        "speaker": speakers,
        "chapter": [name.split("-")[1] for name in names],
        "gender": [genders.get(speaker) for speaker in speakers],
        "text": [texts[name] for name in names],
    }
    if mockingjay:
        columns["mockingjay_split"] = [halves[name] for name in names]
    if cpc is not None:
        runs, phones = _cpc_phones(cpc, set(names)), IntervalColumn()
        for name in names:
            phones.add(runs[name])
        columns["phones"] = phones.to_arrow()
    if alignments is not None:
        phones, words, aligned = IntervalColumn(), IntervalColumn(), 0
        for name in names:
            spoken = _aligned(alignments / folders[name] / f"{name}.TextGrid")
            phones.add(spoken and spoken[0])
            words.add(spoken and spoken[1])
            aligned += spoken is not None
        if not aligned:
            raise ManifestError(f"{alignments}: no alignments; expected {folders[names[0]]}/{names[0]}.TextGrid")
        logger.info("LibriSpeech: %d of %d utterances are aligned", aligned, len(names))
        columns |= {"phones": phones.to_arrow(), "words": words.to_arrow()}
    return Manifest.from_columns(columns, root, str(root))


def _transcripts(root: Path, subset: str) -> dict[str, str]:
    """Utterance to its text."""
    texts = {}
    for path in sorted((root / subset).glob("*/*/*.trans.txt")):
        for line in read_lines(path):
            name, _, text = line.partition(" ")
            texts[name] = text
    if not texts:
        raise ManifestError(
            f"{root / subset}: no transcripts; expected {LAYOUT}; get it from https://www.openslr.org/12"
        )
    return texts


def _genders(path: Path) -> dict[str, str]:
    """Speaker to "f" or "m"; empty where SPEAKERS.TXT (one for all subsets) was not unpacked."""
    if not path.is_file():
        logger.warning("%s is missing: the genders are unknown", path)
        return {}
    rows = [line.split("|") for line in read_lines(path) if not line.startswith(";") and "|" in line]
    return {row[0].strip(): row[1].strip().lower() for row in rows}


def _mockingjay_split(names: Sequence[str]) -> dict[str, str]:
    """Utterances of the speakers with enough of them to "train" or "test"; drawn before the others are dropped."""
    order = np.random.RandomState(MOCKINGJAY_SEED).permutation(len(names))  # as pandas' DataFrame.sample
    train = set(order[: round(0.9 * len(names))].tolist())
    count = Counter(name.split("-")[0] for name in names)
    return {
        name: "train" if index in train else "test"
        for index, name in enumerate(names)
        if count[name.split("-")[0]] >= MOCKINGJAY_UTTERANCES
    }


def _cpc_split(folder: Path) -> dict[str, str]:
    """Utterance to "train" or "test"."""
    return {line.strip(): part for part in ("train", "test") for line in read_lines(folder / f"{part}_split.txt")}


def _cpc_phones(folder: Path, names: set[str]) -> dict[str, list[Interval]]:
    """Utterance to its runs of equal phone numbers."""
    path = folder / "converted_aligned_phones.txt"
    phones: dict[str, list[Interval]] = {}
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; it comes with the lists of the CPC split")
    with path.open(encoding="utf-8") as lines:  # 100 MB: line by line
        for line in lines:
            name, *frames = line.split()
            if name in names:
                phones[name] = _runs(frames)
    refuse_missing(f"the utterances in {path.name}", folder, sorted(names - phones.keys()), len(names))
    return phones


def _runs(frames: Sequence[str]) -> list[Interval]:
    runs, start = [], 0
    for label, group in groupby(frames):
        end = start + sum(1 for _ in group)
        runs.append((start / FRAMES_PER_S, end / FRAMES_PER_S, label))
        start = end
    return runs


def _aligned(path: Path) -> tuple[list[Interval], list[Interval]] | None:
    """Phones and words of an utterance; None where there is no file."""
    if not path.is_file():
        return None
    tiers = read_textgrid(path)
    if not {"phones", "words"} <= tiers.keys():
        raise ManifestError(f"{path}: expected tiers 'phones' and 'words', found {', '.join(tiers) or 'none'}")
    phones = [(start, end, label or "sil") for start, end, label in tiers["phones"]]
    return phones, [(start, end, label) for start, end, label in tiers["words"] if label]
