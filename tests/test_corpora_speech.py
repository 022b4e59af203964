"""Readers of corpora of speech, on small trees in the official layouts, whole and damaged."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auricle.audio.io import read
from auricle.data.corpora import read_corpus
from auricle.data.corpora.speech_commands import NOISES, WORDS
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

COMMANDS = {"yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"}


@cache
def encoded(kind: str, samples: int, rate: int) -> bytes:
    """The bytes of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, np.arange(samples) % 100 / 200, rate, format=kind)
    return file.getvalue()


def write_audio(path: Path, samples: int = 160, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(path.suffix[1:], samples, rate))


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def by_id(manifest: Manifest) -> dict[str, dict]:
    return {row["clip_id"]: row for row in manifest.table.to_pylist()}


def speakers_of(manifest: Manifest, column: str) -> dict[str, set[str]]:
    """Part to its speakers."""
    parts: dict[str, set[str]] = {}
    for row in manifest.table.to_pylist():
        parts.setdefault(row[column], set()).add(row["speaker"])
    return parts


# ------------------------------------------------------------------------------------------------- Speech Commands

TRAINED, CHOSEN, TESTED = "0a7c2a8d_nohash_0.wav", "b00dface_nohash_1.wav", "c0ffee00_nohash_0.wav"


def speech_commands(root: Path, version: str) -> Path:
    """One clip a word and part, noises of three seconds, and the test set's archive with two clips a class."""
    words = sorted(WORDS[version])
    for word, name in product(words, (TRAINED, CHOSEN, TESTED)):
        write_audio(root / word / name)
    for name in NOISES:
        write_audio(root / "_background_noise_" / f"{name}.wav", 48_000 + 2_000 * (name == "running_tap"))
    write_lines(root / "_background_noise_" / "README.md", "noise")
    write_lines(root / "validation_list.txt", *(f"{word}/{CHOSEN}" for word in words))
    write_lines(root / "testing_list.txt", *(f"{word}/{TESTED}" for word in words))
    archive = root.parent / f"speech_commands_test_set_{version}"
    for word in COMMANDS:
        write_audio(archive / word / TESTED)
    write_audio(archive / "_unknown_" / f"bed_{TESTED}.wav")
    write_audio(archive / "_silence_" / "1035.wav")
    return root


@pytest.mark.parametrize(("name", "version", "words"), [("v1", "v0.01", 30), ("v2", "v0.02", 35)])
def test_speech_commands_words_and_keywords(
    name: str, version: str, words: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = speech_commands(tmp_path / f"speech_commands_{version}", version)
    manifest = read_corpus(f"speech_commands_{name}", root)
    rows = by_id(manifest)
    assert len(set(manifest.column("word")) - {None}) == words
    assert set(manifest.column("keyword")) - {None} == COMMANDS | {"unknown", "silence"}
    worded = Counter(row["split"] for row in rows.values() if row["word"])
    assert worded == {"train": words, "dev": words, "test": words}
    assert rows[f"yes/{TRAINED}"]["keyword"] == "yes"
    assert rows[f"bed/{CHOSEN}"]["keyword"] == "unknown"
    assert (rows[f"bed/{CHOSEN}"]["split"], rows[f"bed/{CHOSEN}"]["speaker"]) == ("dev", "b00dface")
    assert rows[f"yes/{TESTED}"]["keyword"] is None  # the archive tests keywords
    keyed = {row["clip_id"]: row for row in rows.values() if row["split"] == "test" and row["keyword"]}
    assert len(keyed) == 12
    assert all(row["word"] is None for row in keyed.values())
    unknown = keyed[f"test_set/_unknown_/bed_{TESTED}.wav"]
    assert (unknown["keyword"], unknown["speaker"]) == ("unknown", "c0ffee00")
    assert keyed["test_set/_silence_/1035.wav"]["speaker"] is None
    assert f"{version}: found {3 * words} clips" in caplog.text
    assert "test set: found 12 clips" in caplog.text
    assert by_id(read_corpus(f"speech_commands_{name}", tmp_path)) == rows


def test_speech_commands_silence_is_the_noises_second_by_half_second(tmp_path: Path) -> None:
    root = speech_commands(tmp_path / "speech_commands_v0.02", "v0.02")
    rows = [row for row in by_id(read_corpus("speech_commands_v2", root)).values() if row["keyword"] == "silence"]
    cut = [row for row in rows if row["split"] != "test"]
    assert {row["duration_s"] for row in cut} == {1.0}
    starts = {name: [row["start_s"] for row in cut if Path(row["path"]).stem == name] for name in NOISES}
    # TensorFlow Datasets: for start in range(0, samples - 16000, 8000)
    assert starts == {name: [0, 0.5, 1, 1.5] + [2] * (name == "running_tap") for name in NOISES}
    assert {Path(row["path"]).stem for row in cut if row["split"] == "dev"} == {"running_tap"}
    last = next(row for row in cut if row["clip_id"] == "running_tap@2")
    assert len(read(last["path"], 16000, round(last["start_s"] * 16000), 16000)) == 16000


def test_speech_commands_without_the_test_set_tests_the_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = speech_commands(tmp_path / "speech_commands_v0.01", "v0.01")
    shutil.rmtree(tmp_path / "speech_commands_test_set_v0.01")
    manifest = read_corpus("speech_commands_v1", root)
    tested = [row for row in by_id(manifest).values() if row["split"] == "test"]
    assert Counter(row["keyword"] for row in tested) == dict.fromkeys(COMMANDS, 1) | {"unknown": 20}
    assert "speech_commands_test_set_v0.01 is not there: no silence is tested" in caplog.text


def test_speech_commands_versions_are_told_apart_by_their_words(tmp_path: Path) -> None:
    first = speech_commands(tmp_path / "first", "v0.01")
    second = speech_commands(tmp_path / "second", "v0.02")
    with pytest.raises(ManifestError, match=r"this is Speech Commands v0.01, not v0.02"):
        read_corpus("speech_commands_v2", first)
    with pytest.raises(ManifestError, match=r"this is Speech Commands v0.02, not v0.01"):
        read_corpus("speech_commands_v1", second)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "wow"), r"1 of 35 of the words are missing \(wow\)"),
        (lambda root: (root / "wow" / TESTED).unlink(), rf"1 of 70 of the clips of the lists .*\(wow/{TESTED}\)"),
        (lambda root: (root / "testing_list.txt").unlink(), "testing_list.txt: cannot be read"),
        (lambda root: (root / "_background_noise_" / "pink_noise.wav").unlink(), r"1 of 6 .*pink_noise.wav"),
        (lambda root: shutil.rmtree(root.parent / "speech_commands_test_set_v0.02" / "go"), r"1 of 12 .*\(go\)"),
    ],
)
def test_damaged_speech_commands_are_refused(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    root = speech_commands(tmp_path / "speech_commands_v0.02", "v0.02")
    spoil(root)
    with pytest.raises(ManifestError, match=message):
        read_corpus("speech_commands_v2", root)


# ------------------------------------------------------------------------------------------------- VoxCeleb1

VOXCELEB1 = {
    f"{speaker}/{video}/0000{utterance}.wav": part
    for speaker in ("id10001", "id10269", "id10270", "id10309", "id11251")
    for part, video, utterance in (
        ("1", "1zcIwhmdeo4", 1),
        ("1", "1zcIwhmdeo4", 2),
        ("2", "7gWzIy6yIIk", 1),
        ("3", "x", 1),
    )
}


@pytest.fixture(params=["wav", "dev/wav"])
def voxceleb1(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """In one folder, or in two as the archives are often kept apart."""
    for clip in VOXCELEB1:
        tested = clip.startswith(("id10270", "id10309")) and request.param == "dev/wav"
        write_audio(tmp_path / ("test/wav" if tested else request.param) / clip)
    write_lines(tmp_path / "iden_split.txt", *(f"{part} {clip}" for clip, part in VOXCELEB1.items()))
    return tmp_path


def test_voxceleb1_speakers_and_identification_split(voxceleb1: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("voxceleb1", voxceleb1)
    parts = {"1": "train", "2": "dev", "3": "test"}
    split = {f"{row['clip_id']}.wav": row["split"] for row in manifest.table.to_pylist()}
    assert split == {clip: parts[part] for clip, part in VOXCELEB1.items()}
    row = by_id(manifest)["id10309/7gWzIy6yIIk/00001"]
    assert (row["speaker"], row["video"]) == ("id10309", "7gWzIy6yIIk")
    assert "found 20 clips, the corpus has 153516" in caplog.text
    assert "are missing" not in caplog.text


def test_voxceleb1_without_the_test_speakers_is_read_and_told(
    voxceleb1: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for speaker in ("id10270", "id10309"):
        shutil.rmtree(next(voxceleb1.rglob(speaker)))
    assert set(read_corpus("voxceleb1", voxceleb1).column("speaker")) == {"id10001", "id10269", "id11251"}
    assert "8 of 20 recordings are missing (vox1_test_wav.zip); 3 speakers remain" in caplog.text


@pytest.mark.parametrize("lost", ["id10001/1zcIwhmdeo4/00002.wav", "id10270/x/00001.wav"])
def test_voxceleb1_names_other_missing_recordings(voxceleb1: Path, lost: str) -> None:
    next(voxceleb1.rglob(lost)).unlink()
    with pytest.raises(ManifestError, match=rf"1 of 20 .* missing \({lost}\)"):
        read_corpus("voxceleb1", voxceleb1)


def test_voxceleb1_refuses_another_list(voxceleb1: Path) -> None:
    write_lines(voxceleb1 / "iden_split.txt", "1 id10270/x/00001.wav id10270/x/00002.wav", "4 id10270/x/00001.wav")
    with pytest.raises(ManifestError, match=r"iden_split.txt: '.*' is not '1 SPEAKER/VIDEO/UTTERANCE.wav'"):
        read_corpus("voxceleb1", voxceleb1)


# ------------------------------------------------------------------------------------------------- VoxForge

VOXFORGE = {
    "de": ["guenter-20090806-aaa", "anonymous-20080101-xyz"],
    "en": ["Aaron-20080318-kdl", "Aaron-20191231-kdm", "Aaron-20200101-kdn", "anonymous-20100101-xyz", "old"],
    "es": ["carlos-20110102-abc"],
    "fr": ["jean-luc-20120304-abc"],
    "it": ["piero-20130405-abc"],
    "ru": ["ivan-20140506-abc", "nemo-20140506-abc"],
}
TRUNK = "Trunk/Audio/Main/16kHz_16bit"


@pytest.fixture(params=["plain", "site"])
def voxforge(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder a language, or the site's own ones."""
    for language, archives in VOXFORGE.items():
        place = tmp_path / language
        if request.param == "site":
            name = "SpeechCorpus" if language == "en" else language
            place = tmp_path / "www.repository.voxforge1.org" / "downloads" / name / TRUNK
        for archive in archives:
            write_lines(place / archive / "etc" / "PROMPTS", "x/mfc/a0001 HELLO")
            for clip in ("a0001", "a0002"):
                folder = "flac" if archive.startswith("nemo") else "wav"
                write_audio(place / archive / folder / f"{clip}.{folder}")
    return tmp_path


def test_voxforge_languages_speakers_and_noss_split(voxforge: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("voxforge", voxforge)
    rows = by_id(manifest)
    assert Counter(row["language"] for row in rows.values()) == dict.fromkeys(("es", "fr", "it", "ru"), 2) | {
        "de": 4,
        "en": 8,
    }
    row = rows["fr/jean-luc-20120304-abc/wav/a0002.wav"]
    assert (row["speaker"], row["date"], row["archive"]) == ("jean", "20120304", "jean-luc-20120304-abc")
    assert rows["en/old/wav/a0001.wav"]["date"] is None
    assert not any("20200101" in name for name in rows)
    # the rule by hand; a speaker without a wav is shuffled with the others
    names = sorted(["guenter", "anonymous", "Aaron", "old", "carlos", "jean", "piero", "ivan", "nemo"])
    np.random.RandomState(0).shuffle(names)
    expected = {"train": set(names[:6]), "dev": set(names[6:7]), "test": set(names[7:])}
    assert speakers_of(manifest, "noss_split") == {part: held - {"nemo"} for part, held in expected.items()}
    assert f"found {len(rows)} clips, the corpus has 176438" in caplog.text


def test_voxforge_reads_later_recordings_if_asked(voxforge: Path) -> None:
    manifest = read_corpus("voxforge", voxforge, before=None)
    assert "en/Aaron-20200101-kdn/wav/a0001.wav" in manifest.column("clip_id")
    with pytest.raises(ManifestError, match="no recordings of it, ru"):
        read_corpus("voxforge", voxforge, before="2013-01-01")


def test_voxforge_needs_all_languages_unpacked(voxforge: Path) -> None:
    for path in list(voxforge.rglob("carlos-*")):
        shutil.rmtree(path)
        path.with_suffix(".tgz").write_bytes(b"packed")
    with pytest.raises(ManifestError, match="no recordings of es; unpack the archives"):
        read_corpus("voxforge", voxforge)


# ------------------------------------------------------------------------------------------------- CREMA-D

NOSS_DEV = (1015, 1079, 1020, 1030, 1050, 1089, 1090, 1070, 1021)
NOSS_TEST = (1086, 1073, 1026, 1038, 1047, 1040, 1066, 1059, 1013, 1071)
NOSS_TEST += (1037, 1022, 1084, 1010, 1088, 1068, 1065, 1048, 1045)


@pytest.fixture
def crema_d(tmp_path: Path) -> Path:
    for actor in range(1001, 1092):
        write_audio(tmp_path / "AudioWAV" / f"{actor}_IEO_ANG_HI.wav")
    for name in ("1040_ITH_SAD_X", "1006_TIE_NEU_XX", "1013_WSI_DIS_XX", "1013_WSI_SAD_XX", "1076_MTI_SAD_XX"):
        write_audio(tmp_path / "AudioWAV" / f"{name}.wav")
    write_audio(tmp_path / "AudioWAV" / "notes.wav")
    return tmp_path


def test_crema_d_labels_and_the_published_split(crema_d: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("crema_d", crema_d)
    rows = by_id(manifest)
    assert len(rows) == 96
    row = rows["1086_IEO_ANG_HI"]
    assert (row["emotion"], row["level"], row["sentence"], row["speaker"]) == ("anger", "high", "IEO", "1086")
    assert (rows["1076_MTI_SAD_XX"]["emotion"], rows["1076_MTI_SAD_XX"]["level"]) == ("sadness", None)
    parts = speakers_of(manifest, "noss_split")
    assert parts["dev"] == set(map(str, NOSS_DEV))
    assert parts["test"] == set(map(str, NOSS_TEST))
    assert len(parts["train"]) == 63
    left_out = {name for name, row in rows.items() if row["noss_split"] is None}
    assert left_out == {"1040_ITH_SAD_X", "1006_TIE_NEU_XX", "1013_WSI_DIS_XX"}
    assert "found 96 clips, the corpus has 7442" in caplog.text


def test_crema_d_needs_all_speakers(crema_d: Path) -> None:
    (crema_d / "AudioWAV" / "1091_IEO_ANG_HI.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 91 of the speakers are missing \(1091\)"):
        read_corpus("crema_d", crema_d)


def test_crema_d_of_pointers_is_refused(crema_d: Path) -> None:
    for path in (crema_d / "AudioWAV").glob("*"):
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 72000\n")
    with pytest.raises(ManifestError, match="run 'git lfs pull'"):
        read_corpus("crema_d", crema_d)


# ------------------------------------------------------------------------------------------------- SAVEE


@pytest.fixture
def savee(tmp_path: Path) -> Path:
    for speaker, code, number in product(("DC", "JE", "JK", "KL"), ("a", "d", "f", "h", "n", "sa", "su"), range(1, 31)):
        if code == "n" or number <= 15:
            write_audio(tmp_path / "AudioData" / speaker / f"{code}{number:02}.wav", 441, 44100)
    write_lines(tmp_path / "AudioData" / "Info.txt", "Speakers")
    return tmp_path


def test_savee_labels_and_the_published_split(savee: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("savee", savee)
    assert len(manifest) == 480
    assert not caplog.records
    assert Counter(manifest.column("emotion")).most_common(1) == [("neutral", 120)]
    row = by_id(manifest)["JE_sa03"]
    assert (row["emotion"], row["sentence"], row["speaker"], row["sample_rate"]) == ("sadness", 3, "JE", 44100)
    assert speakers_of(manifest, "noss_split") == {"train": {"JK", "KL"}, "dev": {"JE"}, "test": {"DC"}}


def test_savee_names_missing_recordings(savee: Path) -> None:
    (savee / "AudioData" / "KL" / "n30.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 480 .* missing \(AudioData/KL/n30.wav\)"):
        read_corpus("savee", savee)


# ------------------------------------------------------------------------------------------------- DementiaBank

PITT = "dementia/English/Pitt"


@pytest.fixture(params=["mp3", "wav"])
def dementiabank(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for group, first in (("Control", 2), ("Dementia", 100)):
        for person, visit in product(range(first, first + 6), range(2)):
            write_audio(tmp_path / PITT / group / "cookie" / f"{person:03}-{visit}.{request.param}", 4410, 44100)
    write_audio(tmp_path / PITT / "Control" / "fluency" / "002-0.mp3")
    return tmp_path


def test_dementiabank_groups_and_noss_split(dementiabank: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("dementiabank", dementiabank)
    assert Counter(manifest.column("diagnosis")) == {"control": 12, "dementia": 12}
    row = by_id(manifest)["dementia/103-1"]
    assert (row["diagnosis"], row["speaker"], row["visit"]) == ("dementia", "103", "1")
    names = sorted(set(manifest.column("speaker")))
    np.random.RandomState(0).shuffle(names)
    expected = {"train": set(names[:8]), "dev": set(names[8:9]), "test": set(names[9:])}  # 8.4, 1.2 and 2.4
    assert speakers_of(manifest, "noss_split") == expected
    assert "found 24 clips, the corpus has 552" in caplog.text
    assert by_id(read_corpus("dementiabank", dementiabank / PITT)) == by_id(manifest)


def test_dementiabank_counts_a_recording_kept_twice_once(dementiabank: Path) -> None:
    for kind in ("mp3", "wav"):
        write_audio(dementiabank / PITT / "Control" / "cookie" / f"002-0.{kind}", 4410, 44100)
    assert len(read_corpus("dementiabank", dementiabank)) == 24


def test_dementiabank_needs_both_groups(dementiabank: Path) -> None:
    shutil.rmtree(dementiabank / PITT / "Control")
    with pytest.raises(ManifestError, match=r"1 of 2 of the groups' recordings are missing \(control\)"):
        read_corpus("dementiabank", dementiabank)


# ------------------------------------------------------------------------------------------------- MASK

MASK = {
    "train_00001.wav": "mask",
    "train_00002.wav": "clear",
    "devel_00001.wav": "clear",
    "test_00001.wav": "mask",
}


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    root = tmp_path / "ComParE2020_Mask"
    for name in MASK:
        write_audio(root / "wav" / name, 16000)
    write_lines(root / "lab" / "labels.csv", "file_name,label", *(f"{name},{label}" for name, label in MASK.items()))
    return tmp_path


def test_mask_labels_and_the_challenges_split(mask: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = by_id(read_corpus("mask", mask))
    assert {name: (row["mask"], row["split"]) for name, row in rows.items()} == {
        "train_00001": ("mask", "train"),
        "train_00002": ("clear", "train"),
        "devel_00001": ("clear", "dev"),
        "test_00001": ("mask", "test"),
    }
    assert "found 4 clips, the corpus has 36554" in caplog.text
    assert "withheld" not in caplog.text


def test_mask_says_that_labels_are_withheld(mask: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = mask / "ComParE2020_Mask" / "lab" / "labels.csv"
    table.write_text(table.read_text().replace("test_00001.wav,mask", "test_00001.wav,?"))
    assert by_id(read_corpus("mask", mask))["test_00001"]["mask"] is None
    assert "the labels of 1 clips are withheld" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["file_name,label\ntrain_00001.wav,positive\n", "filename,upper_belt\ntrain_00.wav,0.1\n", "file_name,label\n"],
)
def test_other_challenges_are_not_mask(mask: Path, text: str) -> None:
    (mask / "ComParE2020_Mask" / "lab" / "labels.csv").write_text(text)
    with pytest.raises(ManifestError, match="is no row of MASK; expected"):
        read_corpus("mask", mask)


def test_mask_names_missing_recordings(mask: Path) -> None:
    (mask / "ComParE2020_Mask" / "wav" / "devel_00001.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 4 .* missing \(devel_00001.wav\)"):
        read_corpus("mask", mask)


# ------------------------------------------------------------------------------------------------- RAVDESS


def ravdess(root: Path, channel: str, actors: tuple[str, ...], emotions: int) -> None:
    for actor, emotion, strength, statement, take in product(actors, range(1, emotions + 1), (1, 2), (1, 2), (1, 2)):
        if emotion > 1 or strength == 1:
            name = f"03-{channel}-{emotion:02}-{strength:02}-{statement:02}-{take:02}-{actor}.wav"
            write_audio(root / f"Actor_{actor}" / name, 480, 48000)


@pytest.mark.parametrize("together", [True, False])
def test_ravdess_speech_and_song(tmp_path: Path, together: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Both archives unpacked into one folder, or into one each."""
    ravdess(tmp_path / ("" if together else "Audio_Speech_Actors_01-24"), "01", ("02", "17", "18"), 8)
    ravdess(tmp_path / ("" if together else "Audio_Song_Actors_01-24"), "02", ("02", "17"), 6)
    speech, song = read_corpus("ravdess", tmp_path), read_corpus("ravdess", tmp_path, song=True)
    assert (len(speech), len(song)) == (60 * 3, 44 * 2)
    assert set(speech.column("speaker")) == {"02", "17", "18"}
    assert len(set(speech.column("emotion"))) == 8
    assert set(speech.column("emotion")) - set(song.column("emotion")) == {"disgust", "surprised"}
    row = by_id(speech)["03-01-06-01-02-01-18"]
    assert (row["emotion"], row["strength"], row["statement"], row["take"]) == ("fearful", "normal", 2, 1)
    assert (row["speaker"], row["gender"]) == ("18", "f")
    assert "found 180 clips, the corpus has 1440" in caplog.text
    assert "found 88 clips, the corpus has 1012" in caplog.text


def test_ravdess_names_missing_recordings(tmp_path: Path) -> None:
    ravdess(tmp_path, "01", ("01", "02"), 8)
    (tmp_path / "Actor_02" / "03-01-08-02-02-02-02.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 120 .* missing \(Actor_02/03-01-08-02-02-02-02.wav\)"):
        read_corpus("ravdess", tmp_path)
    with pytest.raises(ManifestError, match="not RAVDESS's songs; expected"):
        read_corpus("ravdess", tmp_path, song=True)


# ------------------------------------------------------------------------------------------------- EmoDB


@pytest.fixture
def emodb(tmp_path: Path) -> Path:
    for speaker, text, emotion in product(("03", "16"), ("a01", "b10"), "WLEAFTN"):
        write_audio(tmp_path / "wav" / f"{speaker}{text}{emotion}a.wav")
    write_audio(tmp_path / "wav" / "16b10Tb.wav")
    write_audio(tmp_path / "wav" / "99x01Qa.wav")
    return tmp_path


def test_emodb_labels(emodb: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = by_id(read_corpus("emodb", emodb))
    assert len(rows) == 29
    assert len({row["emotion"] for row in rows.values()}) == 7
    row = rows["03a01Fa"]
    assert (row["emotion"], row["sentence"], row["speaker"], row["gender"]) == ("happiness", "a01", "03", "m")
    assert (rows["16b10Tb"]["emotion"], rows["16b10Tb"]["gender"]) == ("sadness", "f")
    assert "found 29 clips, the corpus has 535" in caplog.text


def test_emodb_later_versions_and_other_recordings_are_refused(emodb: Path) -> None:
    clip = emodb / "wav" / "03a01Fa.wav"
    for speaker, text, emotion, take in product(("08", "09", "10"), ("a02", "a04"), "WLEAFTN", "abcdefghijklm"):
        shutil.copy(clip, emodb / "wav" / f"{speaker}{text}{emotion}{take}.wav")
    with pytest.raises(ManifestError, match="575 clips, where EmoDB has 535; get its first version"):
        read_corpus("emodb", emodb)
    shutil.rmtree(emodb / "wav")
    write_audio(emodb / "wav" / "else.wav")
    with pytest.raises(ManifestError, match="no recordings of EmoDB"):
        read_corpus("emodb", emodb)


# ------------------------------------------------------------------------------------------------- IEMOCAP


def evaluation(session: int) -> dict[str, list[str]]:
    """Dialogue to the lines of its turns."""
    impro, script = f"Ses0{session}F_impro01", f"Ses0{session}M_script03_2"
    return {
        impro: [
            f"[6.2901 - 8.2357]\t{impro}_F000\tneu\t[2.5000, 2.5000, 2.5000]",
            f"[10.0100 - 11.3925]\t{impro}_M001\texc\t[4.5000, 3.0000, 2.0000]",
            f"[14.8872 - 18.0175]\t{impro}_F002\txxx\t[2.5000, 2.5000, 2.5000]",
        ],
        script: [f"[19.2900 - 20.7875]\t{script}_M003\tang\t[1.0000, 4.0000, 5.0000]"],
    }


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    root = tmp_path / "IEMOCAP_full_release"
    for session in range(1, 6):
        place = root / f"Session{session}"
        for dialogue, turns in evaluation(session).items():
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for turn in turns:
                lines += [turn, "C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
                write_audio(place / "sentences" / "wav" / dialogue / f"{turn.split(chr(9))[1]}.wav")
            write_lines(place / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", *lines)
            (place / "dialog" / "EmoEvaluation" / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    return tmp_path


def test_iemocap_turns_classes_and_sessions(iemocap: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("iemocap", iemocap)
    rows = by_id(manifest)
    assert len(rows) == 20
    assert Counter(manifest.column("emotion")) == {"neutral": 5, "happy": 5, "angry": 5, None: 5}
    happy = rows["Ses02F_impro01_M001"]
    assert (happy["emotion"], happy["category"], happy["fold"], happy["improvised"]) == ("happy", "exc", 2, True)
    assert (happy["valence"], happy["activation"], happy["dominance"]) == (4.5, 3.0, 2.0)
    assert (happy["speaker"], happy["gender"]) == ("Ses02M", "m")  # who speaks, not who wears the markers
    angry = rows["Ses05M_script03_2_M003"]
    assert (angry["emotion"], angry["fold"], angry["speaker"], angry["improvised"]) == ("angry", 5, "Ses05M", False)
    folds = speakers_of(manifest, "fold")
    assert folds == {fold: {f"Ses0{fold}F", f"Ses0{fold}M"} for fold in range(1, 6)}
    assert "IEMOCAP: found 20 clips, the corpus has 10039" in caplog.text
    assert "four classes: found 15 clips, the corpus has 5531" in caplog.text


def test_iemocap_names_missing_turns_and_sessions(iemocap: Path) -> None:
    root = iemocap / "IEMOCAP_full_release"
    lost = "Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_F000.wav"
    (root / lost).unlink()
    with pytest.raises(ManifestError, match=rf"1 of 20 .* missing \({lost}\)"):
        read_corpus("iemocap", iemocap)
    shutil.rmtree(root / "Session4")
    with pytest.raises(ManifestError, match=r"1 of 5 of the sessions are missing \(Session4\)"):
        read_corpus("iemocap", iemocap)
