"""The bundled recordings: small, whole, licensed, and split so that the tasks on them are honest."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

import auricle
from auricle.data.corpora import read_corpus
from auricle.data.manifest import Manifest

FOLDER = Path(auricle.__file__).parent / "recordings"
TASKS = {
    "synth_phones": "phones",
    "speechocean762": "speaker",
    "fsdd": "digit",
    "wakewords": "keyword",
    "esc10": "category",
    "notes": "instrument",
}
DISJOINT = {"synth_phones": "voice", "esc10": "source", "notes": "midi"}
"""What no two splits may share."""


@pytest.fixture(scope="module")
def recordings() -> Manifest:
    return read_corpus("bundled")


def rows_of(recordings: Manifest, corpus: str) -> list[dict]:
    return [row for row in recordings.table.to_pylist() if row["corpus"] == corpus]


def labels_of(row: dict, target: str) -> set:
    return {interval["label"] for interval in row["phones"]} if target == "phones" else {row[target]}


def test_bundle_is_at_most_8_mb() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 8_000_000


def test_bundle_names_no_place_on_the_machine_that_made_it() -> None:
    for path in [FOLDER / "manifest.csv", FOLDER / "DATA.md", *FOLDER.glob("*/LICENSE.txt")]:
        assert not any(
            place in path.read_text(encoding="utf-8") for place in ("/home/", "/work/", "/tmp/", "/root/", "../")
        )


def test_manifest_and_audio_files_are_the_same_set(recordings: Manifest) -> None:
    with (FOLDER / "manifest.csv").open(encoding="utf-8", newline="") as file:
        listed = [row["path"] for row in csv.DictReader(file)]
    audio = [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.suffix in (".ogg", ".flac")]
    assert sorted(listed) == sorted(audio)
    assert len(recordings) == len(listed)
    assert not recordings.skipped


def test_every_file_decodes_whole_is_heard_and_is_no_copy_of_another(recordings: Manifest) -> None:
    """A copy under another name could lie in another split."""
    minutes, met = 0.0, {}
    for row in recordings.table.to_pylist():
        waveform, rate = soundfile.read(row["path"], dtype="float32")
        assert waveform.ndim == 1, row["path"]
        assert len(waveform) == round(row["duration_s"] * rate), row["path"]
        assert np.isfinite(waveform).all(), row["path"]
        assert 0.01 < np.abs(waveform).max() <= 1, row["path"]
        twin = met.setdefault(hash(waveform.tobytes()), row["path"])
        assert twin == row["path"]
        minutes += len(waveform) / rate / 60
    assert minutes >= 35


@pytest.mark.parametrize(("corpus", "target"), TASKS.items())
def test_every_class_of_dev_and_test_is_in_train(recordings: Manifest, corpus: str, target: str) -> None:
    classes = {split: set() for split in ("train", "dev", "test")}
    for row in rows_of(recordings, corpus):
        classes[row["split"]] |= labels_of(row, target)
    assert classes["dev"] | classes["test"] <= classes["train"]
    assert None not in classes["train"]
    assert len(classes["test"]) >= 6


@pytest.mark.parametrize("corpus", TASKS)
def test_there_are_enough_test_clips_for_an_interval_to_mean_something(recordings: Manifest, corpus: str) -> None:
    counts = Counter(row["split"] for row in rows_of(recordings, corpus))
    assert counts.keys() == {"train", "dev", "test"}
    assert counts["test"] >= 60
    assert counts["train"] >= counts["test"]


@pytest.mark.parametrize(("corpus", "column"), DISJOINT.items())
def test_splits_share_no_voice_source_or_pitch(recordings: Manifest, corpus: str, column: str) -> None:
    values = {split: set() for split in ("train", "dev", "test")}
    for row in rows_of(recordings, corpus):
        values[row["split"]].add(row[column])
    assert not values["train"] & values["test"]
    assert not values["train"] & values["dev"]
    assert not values["dev"] & values["test"]


def test_phones_tile_their_clips(recordings: Manifest) -> None:
    for row in rows_of(recordings, "synth_phones"):
        times = [(interval["start_s"], interval["end_s"]) for interval in row["phones"]]
        assert all(0 <= start < end <= row["duration_s"] for start, end in times), row["path"]
        assert all(end <= start for (_, end), (start, _) in pairwise(times)), row["path"]
        assert sum(end - start for start, end in times) > 0.8 * row["duration_s"], row["path"]


def test_phone_times_fit_the_audio(recordings: Manifest) -> None:
    """The level amid vowels over that amid silences is highest without a shift: the codec brought no delay."""

    def contrast(shift_s: float) -> float:
        levels: dict[str, list[float]] = {"a": [], "sil": []}
        for row in rows_of(recordings, "synth_phones")[::2]:
            waveform, rate = soundfile.read(row["path"], dtype="float32")
            for interval in row["phones"]:
                if interval["label"] in levels:
                    middle = round(((interval["start_s"] + interval["end_s"]) / 2 + shift_s) * rate)
                    piece = waveform[max(0, middle - 40) : middle + 40]
                    if len(piece):
                        levels[interval["label"]].append(10 * np.log10(np.mean(piece**2) + 1e-9))
        return float(np.mean(levels["a"]) - np.mean(levels["sil"]))

    assert contrast(0) > 30
    assert contrast(0) > max(contrast(-0.02), contrast(0.02)) + 3


def test_licences_and_credits_travel_with_the_files(recordings: Manifest) -> None:
    terms = {
        "speechocean762": "CC BY 4.0",
        "fsdd": "CC BY-SA 4.0",
        "wakewords": "Apache",
        "synth_phones": "Apache",
        "esc10": "CC BY 3.0",
        "notes": "MIT",
    }
    assert terms.keys() == set(recordings.column("corpus"))
    about = (FOLDER / "DATA.md").read_text(encoding="utf-8")
    for corpus, term in terms.items():
        text = (FOLDER / corpus / "LICENSE.txt").read_text(encoding="utf-8")
        assert term in text
        assert "Changes for this bundle" in text
        assert f"`{corpus}`" in about
    credits = (FOLDER / "esc10" / "LICENSE.txt").read_text(encoding="utf-8").splitlines()
    credited = {line.split("]")[0].split("[")[-1]: line for line in credits if line.startswith("- **[")}
    clips = {Path(row["path"]).name for row in rows_of(recordings, "esc10")}
    assert credited.keys() == clips
    assert all("CC0" in line or "CC-BY]" in line for line in credited.values())
