"""Readers of AudioSet, FSD50K, UrbanSound8K, Fluent Speech Commands, TIMIT and CMU-MOSEI, and of parts of ESC-50 and
LibriSpeech, on small trees in the official layouts.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auricle.audio.io import read
from auricle.data.corpora import read_corpus
from auricle.data.corpora.esc50 import HUMAN
from auricle.data.corpora.timit import CORE, DEV, FOLDED
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError


def write_audio(path: Path, seconds: float = 0.02, rate: int = 16000, kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate)), rate, format=kind)


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def by_id(manifest: Manifest) -> dict[str, dict]:
    return {row["clip_id"]: row for row in manifest.table.to_pylist()}


# ------------------------------------------------------------------------------------------------- ESC-50's humans


def test_esc50_human_is_its_ten_classes(tmp_path: Path) -> None:
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold, (target, category) in itertools.product(range(1, 6), enumerate((*HUMAN, "dog"), start=20)):
        name = f"{fold}-{fold}{target}-A-{target}.wav"
        lines.append(f"{name},{fold},{target},{category},{category in ('sneezing', 'dog')},{fold}{target},A")
        write_audio(tmp_path / "audio" / name)
    write_lines(tmp_path / "meta" / "esc50.csv", *lines)
    manifest = read_corpus("esc50_human", tmp_path)
    assert Counter(manifest.column("category")) == dict.fromkeys(HUMAN, 5)
    assert by_id(manifest) == by_id(read_corpus("esc50", tmp_path, human=True))
    assert set(read_corpus("esc50", tmp_path, human=True, esc10=True).column("category")) == {"sneezing"}
    with (tmp_path / "meta" / "esc50.csv").open("a") as file:
        file.write("5-9-A-20.wav,5,20\n")
    with pytest.raises(ManifestError, match=r"esc50.csv: line 57 is cut short"):
        read_corpus("esc50_human", tmp_path)


# ------------------------------------------------------------------------------------------------- UrbanSound8K


@pytest.fixture
def urbansound8k(tmp_path: Path) -> Path:
    root = tmp_path / "UrbanSound8K"
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold, (number, category) in itertools.product(range(1, 11), ((3, "dog_bark"), (8, "siren"))):
        name = f"{100 + fold}-{number}-0-0.wav"
        lines.append(f"{name},{100 + fold},0.0,0.317551,{1 + (number == 8)},{fold},{number},{category}")
        write_audio(root / "audio" / f"fold{fold}" / name, rate=44100)
    write_lines(root / "metadata" / "UrbanSound8K.csv", *lines)
    return tmp_path


def test_urbansound8k_labels_and_folds(urbansound8k: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("urbansound8k", urbansound8k)
    row = by_id(manifest)["110-8-0-0"]
    assert (row["category"], row["fold"], row["salience"], row["source"]) == ("siren", 10, "background", "110")
    assert row["duration_s"] == pytest.approx(0.02, abs=1e-4)
    assert Counter(manifest.column("fold")) == dict.fromkeys(range(1, 11), 2)
    assert "found 20 clips, the corpus has 8732" in caplog.text


def test_urbansound8k_damaged_is_refused(urbansound8k: Path) -> None:
    root = urbansound8k / "UrbanSound8K"
    (root / "audio/fold4/104-3-0-0.wav").rename(root / "audio/fold5/104-3-0-0.wav")
    with pytest.raises(ManifestError, match=r"1 of 20 .* missing \(audio/fold4/104-3-0-0.wav\)"):
        read_corpus("urbansound8k", urbansound8k)
    table = root / "metadata" / "UrbanSound8K.csv"
    table.write_text(table.read_text().replace("1,4,3,dog", "1,11,3,dog"))
    with pytest.raises(ManifestError, match=r"104-3-0-0.wav has fold 11"):
        read_corpus("urbansound8k", urbansound8k)


# ------------------------------------------------------------------------------------------------- FSD50K


@pytest.fixture
def fsd50k(tmp_path: Path) -> Path:
    truth = tmp_path / "FSD50K.ground_truth"
    names = ["Bark", "Dog", "Animal", *(f"Thing_{index}" for index in range(197))]
    write_lines(truth / "vocabulary.csv", *(f"{index},{name},/m/{index}" for index, name in enumerate(names)))
    write_lines(
        truth / "dev.csv",
        "fname,labels,mids,split",
        '64760,"Bark,Dog,Animal","/m/0,/m/1,/m/2",train',
        "16399,Thing_4,/m/7,val",
    )
    write_lines(truth / "eval.csv", "fname,labels,mids", '37199,"Dog,Animal","/m/1,/m/2"')
    for name in ("dev_audio/64760", "dev_audio/16399", "eval_audio/37199"):
        write_audio(tmp_path / f"FSD50K.{name}.wav", rate=44100)
    return tmp_path


def test_fsd50k_labels_and_split(fsd50k: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = by_id(read_corpus("fsd50k", fsd50k))
    assert {name: row["split"] for name, row in rows.items()} == {"64760": "train", "16399": "dev", "37199": "test"}
    assert rows["64760"]["labels"] == ["Bark", "Dog", "Animal"]
    assert rows["16399"]["labels"] == ["Thing_4"]
    assert Path(rows["37199"]["path"]) == fsd50k / "FSD50K.eval_audio" / "37199.wav"
    assert "test: found 1 clips, the corpus has 10231" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "FSD50K.eval_audio/37199.wav").unlink(), r"1 of 3 .*\(FSD50K.eval_audio/37199.wav\)"),
        (lambda root: (root / "FSD50K.ground_truth/eval.csv").unlink(), "eval.csv: cannot be read"),
        (lambda root: write_lines(root / "FSD50K.ground_truth/vocabulary.csv", "0,Dog,/m/1"), "1 classes; .* has 200"),
        (
            lambda root: write_lines(root / "FSD50K.ground_truth/eval.csv", "fname,labels,mids", "37199,Cat,/m/9"),
            "clip 37199 has .* labels 'Cat'",
        ),
        (lambda root: write_lines(root / "FSD50K.ground_truth/dev.csv", "fname,labels", "1,Dog"), "no column 'split'"),
    ],
)
def test_fsd50k_damaged_is_refused(fsd50k: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(fsd50k)
    with pytest.raises(ManifestError, match=message):
        read_corpus("fsd50k", fsd50k)


# ------------------------------------------------------------------------------------------------- AudioSet

SPEECH, ROAR = "/m/09x0r", "/t/dd00088"


def write_segments(path: Path, *rows: str) -> None:
    head = ["# Segments csv created Sun Mar  5 10:54:31 2017", "# num_ytids=22160, num_segs=22160"]
    write_lines(path, *head, "# YTID, start_seconds, end_seconds, positive_labels", *rows)


@pytest.fixture
def audioset(tmp_path: Path) -> Path:
    classes = [
        (SPEECH, '"Child speech, kid speaking"'),
        (ROAR, "Roar"),
        *((f"/m/{i}", f"Sound {i}") for i in range(525)),
    ]
    lines = [f"{index},{mid},{name}" for index, (mid, name) in enumerate(classes)]
    write_lines(tmp_path / "class_labels_indices.csv", "index,mid,display_name", *lines)
    write_segments(
        tmp_path / "balanced_train_segments.csv",
        f'--PJHxphWEs, 30.000, 40.000, "{SPEECH},{ROAR}"',
        f'Y-abcdefghi, 0.000, 10.000, "{ROAR}"',
        f'gone_gone_g, 0.000, 10.000, "{SPEECH}"',
        'abcdefghij_, 5.000, 15.000, "/m/7"',
    )
    write_segments(tmp_path / "eval_segments.csv", f'-0RWZT-miFs, 420.000, 430.000, "{SPEECH}"')
    write_audio(tmp_path / "audio" / "balanced" / "Y--PJHxphWEs.wav")
    write_audio(tmp_path / "audio" / "balanced" / "Y-abcdefghi.flac")
    write_audio(tmp_path / "audio" / "balanced" / "abcdefghij__5.000_15.000.wav")
    write_audio(tmp_path / "audio" / "balanced" / "unlisted_id.wav")
    write_audio(tmp_path / "audio" / "eval" / "-0RWZT-miFs_420.wav")
    return tmp_path


def test_audioset_labels_splits_and_variants_of_names(audioset: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("audioset", audioset)
    rows = by_id(manifest)
    assert {name: row["split"] for name, row in rows.items()} == {
        "--PJHxphWEs": "train",
        "Y-abcdefghi": "train",
        "abcdefghij_": "train",
        "-0RWZT-miFs": "test",
    }
    assert rows["--PJHxphWEs"]["labels"] == ["Child speech, kid speaking", "Roar"]
    assert rows["abcdefghij_"]["labels"] == ["Sound 7"]
    assert rows["Y-abcdefghi"]["subset"] == "balanced_train"
    assert Path(rows["-0RWZT-miFs"]["path"]) == audioset / "audio" / "eval" / "-0RWZT-miFs_420.wav"
    assert "balanced_train: 1 of 4 clips are missing (25.0 %)" in caplog.text
    assert "eval: " not in caplog.text
    assert "found 4 clips, the corpus has 22160" in caplog.text


def test_audioset_lists_apart_and_clips_twice(audioset: Path) -> None:
    rows = by_id(read_corpus("audioset", audioset))
    (audioset / "metadata").mkdir()
    for path in audioset.glob("*.csv"):
        path.rename(audioset / "metadata" / path.name)
    write_audio(audioset / "zz" / "--PJHxphWEs.wav")
    assert by_id(read_corpus("audioset", audioset)) == rows
    write_audio(audioset / "aa" / "--PJHxphWEs.wav")
    assert by_id(read_corpus("audioset", audioset))["--PJHxphWEs"]["path"] == str(audioset / "aa" / "--PJHxphWEs.wav")


def test_audioset_subsets_and_ontology(audioset: Path) -> None:
    entries = [{"id": SPEECH, "name": "Speech"}, {"id": ROAR, "name": "Roar"}, {"id": "/m/7", "name": "Seven"}]
    (audioset / "class_labels_indices.csv").unlink()
    (audioset / "ontology.json").write_text(json.dumps(entries))
    manifest = read_corpus("audioset", audioset, subsets=["eval"])
    assert manifest.column("labels") == [["Speech"]]
    with pytest.raises(ManifestError, match="unknown subset of AudioSet 'balanced'; did you mean 'balanced_train'"):
        read_corpus("audioset", audioset, subsets=["balanced"])
    with pytest.raises(ManifestError, match=r"unbalanced_train_segments.csv: cannot be read"):
        read_corpus("audioset", audioset, subsets=["unbalanced_train"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: write_lines(root / "class_labels_indices.csv", "index,mid,display_name", "0,/m/1,A"),
            "1 classes",
        ),
        (lambda root: (root / "class_labels_indices.csv").unlink(), "class_labels_indices.csv is missing"),
        (
            lambda root: write_segments(root / "eval_segments.csv", '-0RWZT-miFs, 420.000, 430.000, "/m/new"'),
            "label '/m/new' is not among",
        ),
        (
            lambda root: write_segments(
                root / "eval_segments.csv", f'-0RWZT-miFs, 420.000, 430.000, "{SPEECH}"', "-0RW"
            ),
            "'-0RW' is not 'YTID, start",
        ),
        (lambda root: (root / "audio/eval/-0RWZT-miFs_420.wav").unlink(), "none of the 1 clips of eval_segments"),
        (
            lambda root: write_segments(root / "eval_segments.csv", f'--PJHxphWEs, 30.000, 40.000, "{ROAR}"'),
            "the id '--PJHxphWEs' stands in several rows",
        ),
    ],
)
def test_audioset_damaged_is_refused(audioset: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(audioset)
    with pytest.raises(ManifestError, match=message):
        read_corpus("audioset", audioset)


# ------------------------------------------------------------------------------------------------- Fluent


@pytest.fixture
def fluent(tmp_path: Path) -> Path:
    root = tmp_path / "fluent_speech_commands_dataset"
    for part, speaker in (("train", "2BqVo8kVB2Skwgyb"), ("valid", "XRgk5lLkrvCKvRRe"), ("test", "4aGjX3AG5xcxeL7a")):
        lines = [",path,speakerId,transcription,action,object,location"]
        for index, (text, slots) in enumerate(
            (('"Lights on, kitchen"', "activate,lights,kitchen"), ("Louder", "increase,volume,none"))
        ):
            path = f"wavs/speakers/{speaker}/{part}-{index}.wav"
            lines.append(f"{index},{path},{speaker},{text},{slots}")
            write_audio(root / path)
        write_lines(root / "data" / f"{part}_data.csv", *lines)
    return tmp_path


def test_fluent_slots_intent_and_split(fluent: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("fluent_speech_commands", fluent)
    row = by_id(manifest)["valid-0"]
    assert (row["action"], row["object"], row["location"]) == ("activate", "lights", "kitchen")
    assert (row["intent"], row["text"]) == ("activate|lights|kitchen", "Lights on, kitchen")
    assert (row["split"], row["speaker"]) == ("dev", "XRgk5lLkrvCKvRRe")
    assert manifest.column("split") == ["train"] * 2 + ["dev"] * 2 + ["test"] * 2
    assert "train: found 2 clips, the corpus has 23132" in caplog.text


def test_fluent_damaged_is_refused(fluent: Path) -> None:
    root = fluent / "fluent_speech_commands_dataset"
    (root / "wavs/speakers/4aGjX3AG5xcxeL7a/test-1.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 6 .* missing \(wavs/speakers/4aGjX3AG5xcxeL7a/test-1.wav\)"):
        read_corpus("fluent_speech_commands", fluent)
    (root / "data" / "valid_data.csv").unlink()
    with pytest.raises(ManifestError, match=r"valid_data.csv: cannot be read"):
        read_corpus("fluent_speech_commands", fluent)


# ------------------------------------------------------------------------------------------------- TIMIT

PHONES = ((0, 80, "h#"), (80, 140, "ix"), (140, 160, "q"), (160, 240, "tcl"), (240, 320, "h#"))
OTHER = "MABC0"
"""A speaker of TEST who is neither in dev nor in the core test set."""


def write_sentence(folder: Path, name: str, lower: bool = False, kind: str = "NIST") -> None:
    place = Path(*(part.lower() for part in (folder / name).parts[-4:])) if lower else Path(*(folder / name).parts[-4:])
    path = folder.parents[2] / place
    write_audio(path.with_suffix(".wav" if lower else ".WAV"), kind=kind)
    write_lines(path.with_suffix(".phn" if lower else ".PHN"), *(f"{a} {b} {phone}" for a, b, phone in PHONES))


@pytest.fixture
def timit(tmp_path: Path) -> Path:
    root = tmp_path / "TIMIT"
    for name in ("SA1", "SI1027", "SX37"):
        write_sentence(root / "TRAIN" / "DR1" / "FCJF0", name)
    for speaker in (*CORE.split(), *DEV.split(), OTHER):
        write_sentence(root / "TEST" / "DR7" / speaker, "SX9")
    write_lines(root / "TRAIN" / "DR1" / "FCJF0" / "SX37.TXT", "0 320 She had.")
    return tmp_path


def test_timit_official_lists_have_their_sizes() -> None:
    assert len(set(CORE.split())) == 24
    assert len(set(DEV.split())) == 50
    assert not set(CORE.split()) & set(DEV.split())
    assert sum(speaker[0] == "F" for speaker in CORE.split()) == 8  # two men and a woman of each dialect
    assert len(FOLDED.keys() - {"sil"}) == 61
    assert len(set(FOLDED.values()) - {None}) == 39


def test_timit_phones_and_splits(timit: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("timit", timit)
    rows = by_id(manifest)
    assert Counter(manifest.column("split")) == {"train": 2, "dev": 50, "test": 24}
    row = rows["FCJF0_SI1027"]
    assert (row["speaker"], row["gender"], row["dialect"], row["sentence"]) == ("FCJF0", "f", "DR1", "SI1027")
    assert (rows["MDAB0_SX9"]["split"], rows["FAKS0_SX9"]["split"]) == ("test", "dev")
    labels = [(phone["start_s"], phone["end_s"], phone["label"]) for phone in row["phones"]]
    assert labels == [(0, 0.005, "sil"), (0.005, 0.00875, "ih"), (0.01, 0.015, "sil"), (0.015, 0.02, "sil")]
    assert row["duration_s"] == 0.02
    assert len(read(row["path"])) == 320  # SPHERE as it comes
    assert "dev: found 50 clips, the corpus has 400" in caplog.text


def test_timit_options(timit: Path) -> None:
    fine = by_id(read_corpus("timit", timit, phones=61, sa=True))
    assert [phone["label"] for phone in fine["FCJF0_SA1"]["phones"]] == ["h#", "ix", "q", "tcl", "h#"]
    complete = read_corpus("timit", timit, complete=True)
    assert Counter(complete.column("split")) == {"train": 2, "test": 75}
    assert by_id(complete)[f"{OTHER}_SX9"]["split"] == "test"
    with pytest.raises(ManifestError, match="phones must be 39 or 61, not 48"):
        read_corpus("timit", timit, phones=48)


def test_timit_in_small_letters_and_with_converted_files(tmp_path: Path) -> None:
    write_sentence(tmp_path / "train" / "dr1" / "fcjf0", "SX37", lower=True, kind="WAV")
    write_sentence(tmp_path / "test" / "dr7" / "mdab0", "SX9", lower=True)
    (tmp_path / "train/dr1/fcjf0/sx37.wav").rename(tmp_path / "train/dr1/fcjf0/sx37.WAV.wav")
    (tmp_path / "train/dr1/fcjf0/sx37.WAV").write_text("the SPHERE file, damaged")
    rows = by_id(read_corpus("timit", tmp_path, complete=True))
    assert rows.keys() == {"FCJF0_SX37", "MDAB0_SX9"}
    assert Path(rows["FCJF0_SX37"]["path"]).name == "sx37.WAV.wav"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "TEST/DR7/MDAB0/SX9.PHN").unlink(), r"1 of 152 .*\(TEST/DR7/MDAB0/SX9.PHN\)"),
        (lambda root: (root / "TEST/DR7/FAKS0/SX9.WAV").unlink(), r"1 of 152 .*\(TEST/DR7/FAKS0/SX9.WAV\)"),
        (lambda root: (root / "TEST/DR7/FAKS0").rename(root / "TEST/DR7/FAKS1"), r"1 of 74 .*\(FAKS0\)"),
        (lambda root: write_lines(root / "TEST/DR7/FAKS0/SX9.PHN", "0 5 zz"), "SX9.PHN: 'zz' is none of"),
        (lambda root: write_lines(root / "TEST/DR7/FAKS0/SX9.PHN", "0 h#"), "'0 h#' is not 'start end phone'"),
    ],
)
def test_timit_damaged_is_refused(timit: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(timit / "TIMIT")
    with pytest.raises(ManifestError, match=message):
        read_corpus("timit", timit)


# ------------------------------------------------------------------------------------------------- CMU-MOSEI

VIDEOS = [f"video{number:02}" for number in range(19)] + ["81406"]


@pytest.fixture
def mosei(tmp_path: Path) -> Path:
    """Twenty videos of 30 s with five segments each, of which two are kept."""
    lines = [",file,index,start,end,label2a,label2b,label6,label7,split"]
    segments = (
        (-0.45, 4.2, "1,1,0,2"),  # begins before its audio
        (4.2, 24.1, "0,-1,2,-3"),
        (1.0, 9.0, "1,0,0,0"),  # neutral
        (9.0, 9.9, "1,1,0,1"),  # short
        (0.0, 20.5, "1,1,0,1"),  # long
    )
    for number, video in enumerate(VIDEOS):
        for index, (start, end, labels) in enumerate(segments):
            lines.append(f"{len(lines) - 1},{video},{index},{start},{end},{labels},{number % 4}")
        write_audio(tmp_path / "Raw/Audio/Full/WAV_16000" / f"{video}.wav", 30.0, 2000)
    write_lines(tmp_path / "CMU_MOSEI_Labels.csv", *lines)
    return tmp_path


def test_mosei_segments_labels_and_standard_folds(mosei: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("cmu_mosei", mosei)
    rows = by_id(manifest)
    assert Counter(manifest.column("split")) == {"train": 10, "dev": 10, "test": 10}
    first, second = rows["video00_0"], rows["video00_1"]
    assert (first["start_s"], first["duration_s"]) == (0, 4.2)
    assert second["duration_s"] == pytest.approx(19.9)
    assert (first["sentiment"], first["sentiment7"], first["split"]) == ("positive", 2, "train")
    assert (second["sentiment"], second["sentiment7"], second["video"]) == ("negative", -3, "video00")
    assert "found 100 clips, the corpus has 23259" in caplog.text


def test_mosei_mockingjays_split_replays_its_rule(mosei: Path) -> None:
    """Names sorted as text, permuted under seed 29, nine tenths of them train; also those of no standard fold."""
    manifest = read_corpus("cmu_mosei", mosei, standard=False)
    train = np.array(sorted(VIDEOS), object)[np.random.RandomState(29).permutation(20)[:18]]
    found = {row["video"] for row in manifest.table.to_pylist() if row["mockingjay_split"] == "train"}
    assert found == set(train)
    assert Counter(manifest.column("mockingjay_split")) == {"train": 36, "test": 4}
    assert Counter(manifest.column("split"))[None] == 10
    kept = by_id(read_corpus("cmu_mosei", mosei))
    assert all(row == by_id(manifest)[name] for name, row in kept.items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "CMU_MOSEI_Labels.csv").unlink(), "CMU_MOSEI_Labels.csv is missing; expected"),
        (lambda root: (root / "Raw/Audio/Full/WAV_16000/video04.wav").unlink(), r"1 of 15 .*WAV_16000/video04.wav\)"),
        (
            lambda root: write_lines(root / "CMU_MOSEI_Labels.csv", "file,start,end,sentiment", "a,0,2,1"),
            "no column 'index'",
        ),
        (
            lambda root: write_lines(
                root / "CMU_MOSEI_Labels.csv", "file,index,start,end,label2b,label7,split", "a,0,0,x,1,1,0"
            ),
            "is not S3PRL's table",
        ),
    ],
)
def test_mosei_damaged_is_refused(mosei: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(mosei)
    with pytest.raises(ManifestError, match=message):
        read_corpus("cmu_mosei", mosei)


# ------------------------------------------------------------------------------------------------- LibriSpeech


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """A speaker with 122 utterances and one with 121."""
    for speaker, count in (("103", 122), ("26", 121)):
        folder = tmp_path / "train-clean-100" / speaker / "1240"
        for index in range(count):
            write_audio(folder / f"{speaker}-1240-{index:04}.flac", 0.005)
        write_lines(folder / f"{speaker}-1240.trans.txt", *(f"{speaker}-1240-{i:04} WORD" for i in range(count)))
    return tmp_path


def test_librispeech_mockingjays_speakers_and_split(librispeech: Path) -> None:
    manifest = read_corpus("librispeech", librispeech, mockingjay=True)
    assert set(manifest.column("speaker")) == {"103"}
    names = sorted(by_id(read_corpus("librispeech", librispeech)))
    # pandas.DataFrame.sample(frac=0.9, random_state=seed) is RandomState(seed).choice without replacement
    drawn = np.random.RandomState(20190929).choice(243, size=219, replace=False)
    train = {names[index] for index in drawn}
    assert {row["clip_id"] for row in manifest.table.to_pylist() if row["mockingjay_split"] == "train"} == {
        name for name in train if name.startswith("103")
    }
    assert len(manifest) == 122
    assert set(manifest.column("mockingjay_split")) == {"train", "test"}


def test_librispeech_mockingjay_excludes_other_choices(librispeech: Path) -> None:
    with pytest.raises(ManifestError, match="leave 'subsets' and 'cpc' out"):
        read_corpus("librispeech", librispeech, mockingjay=True, subsets=["train-clean-100"])
    transcript = librispeech / "train-clean-100/103/1240/103-1240.trans.txt"
    transcript.write_text("103-1240-0000 WORD\n")
    with pytest.raises(ManifestError, match="no speaker of train-clean-100 has 122 utterances"):
        read_corpus("librispeech", librispeech, mockingjay=True)
