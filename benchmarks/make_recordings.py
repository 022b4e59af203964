"""Cut the recordings that ship inside the package out of the corpora they come from.

    python benchmarks/make_recordings.py CORPORA [--output auricle/recordings]

CORPORA holds one folder a corpus (named below), each with `manifest.csv` (path and labels), the files it names and
`LICENSE.txt`. The choice depends on SEED and the manifests alone. The bundle's DATA.md tells what it holds.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
import soxr

SEED = 0
RATE = 16000
BITRATE = (
    15000  # bits per second asked of Opus; its range is 6,000 to 256,000, which libsndfile maps to a level from 1 to 0
)
LEVEL = 1 - (BITRATE - 6000) / 250000
LABELS = ["speaker", "gender", "age_group", "digit", "keyword", "category", "instrument", "midi", "voice", "text"]
COLUMNS = ["path", "corpus", "split", "fold", "source", "phones_tsv", *LABELS]

TEST_VOICES, DEV_VOICES = ("en-gb+f4", "en-us+m1"), ("en-us+klatt2",)
TEST_PITCHES, DEV_PITCHES = (49, 55, 63, 69, 77), (53, 71)
NOT_FREE = ("40730", "96460")  # of ESC-10: CC Sampling+, which does not allow every use

TERMS = {
    "speechocean762": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "fsdd": "CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/",
    "wakewords": "Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0",
    "synth_phones": "Apache License 2.0, as the rest of this package",
    "esc10": "CC BY 3.0 or CC0 1.0, as the credit of each clip says",
    "notes": "Apache License 2.0, as the rest of this package; soundfont: FluidR3 GM by Frank Wen, MIT License",
}

Row = dict[str, str]


def speechocean762(rows: list[Row], rng: random.Random) -> list[Row]:
    """All: of each of 60 speakers three utterances to train on, one for dev, one for test (the folder's own split)."""
    return [row | {"split": row["split"].replace("valid", "dev")} for row in rows]


def fsdd(rows: list[Row], rng: random.Random) -> list[Row]:
    """A few takes of every digit by every speaker; takes 0-4 are the official test set, 5-9 are kept for dev."""
    take = {row["path"]: int(re.findall(r"\d+", row["path"])[-1]) for row in rows}
    return [
        picked | {"split": split}
        for (split, low, high), count in {("train", 10, 50): 3, ("dev", 5, 10): 1, ("test", 0, 5): 2}.items()
        for group in grouped([row for row in rows if low <= take[row["path"]] < high], "digit", "speaker")
        for picked in rng.sample(group, count)
    ]


def wakewords(rows: list[Row], rng: random.Random) -> list[Row]:
    """Some takes of every keyword, inside the corpus folder's own split."""
    return by_split(rows, rng, "keyword", {"train": 12, "dev": 4, "test": 10})


def synth_phones(rows: list[Row], rng: random.Random) -> list[Row]:
    """The espeak-ng voices (one phone set); a voice is in one split only."""
    espeak = [row for row in rows if row["engine"] == "espeak"]
    for row in espeak:
        row["split"] = "test" if row["voice"] in TEST_VOICES else "dev" if row["voice"] in DEV_VOICES else "train"
    return by_split(espeak, rng, "voice", {"train": 30, "dev": 15, "test": 30})


def esc10(rows: list[Row], rng: random.Random) -> list[Row]:
    """The official folds, which share no source recording: 1 to train on, 2 for dev, 3 for test."""
    rows = [row for row in rows if row["freesound_id"] not in NOT_FREE]
    for row in rows:
        row["split"] = {"1": "train", "2": "dev", "3": "test"}[row["fold"]]
        row["source"] = row["freesound_id"]
    return by_split(rows, rng, "category", {"train": 7, "dev": 3, "test": 7})


def notes(rows: list[Row], rng: random.Random) -> list[Row]:
    """Twelve instruments; a pitch is in one split only."""
    for row in rows:
        pitch = int(row["midi"])
        row["split"] = "test" if pitch in TEST_PITCHES else "dev" if pitch in DEV_PITCHES else "train"
    one_velocity = [rng.choice(group) for group in grouped(rows, "instrument", "midi")]
    return by_split(one_velocity, rng, "instrument", {"train": 7, "dev": 2, "test": 5})


CORPORA = {
    "speechocean762": ("speech_speechocean762", speechocean762),
    "fsdd": ("speech_fsdd", fsdd),
    "wakewords": ("speech_wakewords", wakewords),
    "synth_phones": ("speech_synth_phones", synth_phones),
    "esc10": ("sound_esc10", esc10),
    "notes": ("music_notes_rendered", notes),
}


def grouped(rows: list[Row], *columns: str) -> list[list[Row]]:
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["path"]):
        groups[tuple(row[column] for column in columns)].append(row)
    return [groups[key] for key in sorted(groups)]


def by_split(rows: list[Row], rng: random.Random, label: str, counts: dict[str, int]) -> list[Row]:
    """From every class of `label`, as many clips of each split as `counts` says."""
    rows = [row | {"split": row["split"].replace("valid", "dev")} for row in rows]
    return [row for group in grouped(rows, label, "split") for row in rng.sample(group, counts[group[0]["split"]])]


def transcode(source: Path, target: Path) -> None:
    """Mono, 16 kHz, Ogg Opus: the smallest of the formats browsers play; it keeps every length to the sample."""
    waveform, rate = soundfile.read(source, dtype="float32", always_2d=True)
    waveform = soxr.resample(waveform.mean(axis=1), rate, RATE)
    peak = 1.0
    while peak >= 1:  # the codec overshoots: such clips are turned down
        soundfile.write(target, waveform, RATE, format="OGG", subtype="OPUS", compression_level=LEVEL)
        peak = np.abs(soundfile.read(target)[0]).max()
        waveform *= 0.95 / peak


def licence(source: Path, name: str, chosen: list[Row]) -> str:
    """The folder's text (of ESC-10's credits, a line a clip, only those of chosen clips), terms and changes."""
    names = {Path(row["path"]).stem for row in chosen}
    credit = re.compile(r"^- \*\*\[(\S+)\.ogg\]")
    lines = (source / "LICENSE.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not (match := credit.match(line)) or match[1] in names]
    change = "copied bit for bit" if name == "fsdd" else f"made mono, 16 kHz, Ogg Opus at {BITRATE} bits per second"
    return "\n".join([*kept, "", f"Terms: {TERMS[name]}", f"Changes for this bundle: some of the clips, {change}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "auricle" / "recordings")
    arguments = parser.parse_args()
    manifest = []
    for name, (folder, choose) in CORPORA.items():
        source, target = arguments.corpora / folder, arguments.output / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with (source / "manifest.csv").open(encoding="utf-8", newline="") as file:
            chosen = choose(list(csv.DictReader(file)), random.Random(SEED))
        (target / "LICENSE.txt").write_text(licence(source, name, chosen), encoding="utf-8")
        for row in sorted(chosen, key=lambda row: row["path"]):
            audio = Path(name, *Path(row["path"]).parts[1:])  # without "audio/"
            (arguments.output / audio).parent.mkdir(exist_ok=True)
            if name == "fsdd":  # telephone-like: left as it is, 8 kHz FLAC
                shutil.copyfile(source / row["path"], arguments.output / audio)
            else:
                audio = audio.with_suffix(".ogg")
                transcode(source / row["path"], arguments.output / audio)
            phones = ""
            if row.get("phones_tsv"):
                phones = f"{name}/{row['phones_tsv']}"
                (arguments.output / phones).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / row["phones_tsv"], arguments.output / phones)
            row |= {"path": audio.as_posix(), "corpus": name, "phones_tsv": phones}
            manifest.append({column: row.get(column, "") for column in COLUMNS})
    with (arguments.output / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(manifest)


if __name__ == "__main__":
    main()
