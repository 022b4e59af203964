"""Readers of corpora, on small trees in the official layouts."""

from __future__ import annotations

import importlib
import itertools
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from auricle.data.corpora import CORPORA, read_corpus
from auricle.data.corpora.layout import IntervalColumn
from auricle.data.corpora.textgrid import read_textgrid
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError


def write_audio(path: Path, seconds: float = 0.5, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate)), rate)


def by_id(manifest: Manifest) -> dict[str, dict]:
    return {row["clip_id"]: row for row in manifest.table.to_pylist()}


def triples(intervals: list[dict]) -> list[tuple]:
    return [(interval["start_s"], interval["end_s"], interval["label"]) for interval in intervals]


# ------------------------------------------------------------------------------------------------- the table


def test_every_entry_names_a_function_and_says_what_it_is() -> None:
    for corpus in CORPORA.values():
        module, function = corpus.reader.split(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert corpus.title in str(corpus)
        assert corpus.licence in str(corpus)


def test_listing_corpora_imports_no_reader_and_nothing_heavy() -> None:
    code = "import sys, auricle.data.corpora as c; list(c.CORPORA); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pyarrow", "numpy", "auricle.data.corpora.librispeech"} & set(loaded)


def test_unknown_names_and_folders_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="unknown corpus 'librispech'; did you mean 'librispeech'"):
        read_corpus("librispech", tmp_path)
    with pytest.raises(ManifestError, match="'fsdd' needs the folder"):
        read_corpus("fsdd")
    with pytest.raises(ManifestError, match="'bundled' takes no folder"):
        read_corpus("bundled", tmp_path)


@pytest.mark.parametrize("name", [name for name in CORPORA if CORPORA[name].url])
def test_another_folder_is_refused_in_one_line_with_the_layout(name: str, tmp_path: Path) -> None:
    write_audio(tmp_path / "somewhere" / "else.wav")
    for folder, reason in ((tmp_path, "not "), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(ManifestError, match=f"{reason}.*expected ") as caught:
            read_corpus(name, folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- FSDD


@pytest.fixture
def fsdd(tmp_path: Path) -> Path:
    for digit, speaker, take in itertools.product(range(10), ("jackson", "theo"), range(7)):
        write_audio(tmp_path / "recordings" / f"{digit}_{speaker}_{take}.wav", 0.02, 8000)
    write_audio(tmp_path / "recordings" / "notes from a friend.wav")
    return tmp_path


def test_fsdd_labels_and_official_split(fsdd: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("fsdd", fsdd)
    assert len(manifest) == 140
    row = by_id(manifest)["7_theo_5"]
    assert (row["digit"], row["speaker"], row["take"], row["split"]) == (7, "theo", 5, "train")
    assert Path(row["path"]) == fsdd / "recordings" / "7_theo_5.wav"
    assert row["sample_rate"] == 8000
    test_takes = {row["take"] for row in manifest.table.to_pylist() if row["split"] == "test"}
    assert test_takes == {0, 1, 2, 3, 4}
    assert "found 140 clips, the corpus has 3000" in caplog.text


def test_fsdd_names_missing_recordings(fsdd: Path) -> None:
    (fsdd / "recordings" / "3_theo_2.wav").unlink()
    (fsdd / "recordings" / "9_jackson_0.wav").unlink()
    with pytest.raises(ManifestError, match=r"2 of 140 .* missing \(3_theo_2, 9_jackson_0\)"):
        read_corpus("fsdd", fsdd)


def test_fsdd_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    with pytest.raises(ManifestError, match="no recordings of FSDD"):
        read_corpus("fsdd", tmp_path)


# ------------------------------------------------------------------------------------------------- ESC-50


@pytest.fixture
def esc50(tmp_path: Path) -> Path:
    """In the folder that GitHub's archive brings."""
    root = tmp_path / "ESC-50-master"
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold, (target, category) in itertools.product(range(1, 6), ((0, "dog"), (14, "chirping_birds"))):
        name = f"{fold}-{1000 + fold}-A-{target}.wav"
        lines.append(f"{name},{fold},{target},{category},{category == 'dog'},{1000 + fold},A")
        write_audio(root / "audio" / name, 0.05, 44100)
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\r\n".join(lines) + "\r\n")
    return tmp_path


def test_esc50_labels_and_folds(esc50: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("esc50", esc50)
    assert len(manifest) == 10
    row = by_id(manifest)["3-1003-A-14"]
    assert (row["category"], row["fold"], row["esc10"], row["source"]) == ("chirping_birds", 3, False, "1003")
    assert "found 10 clips, the corpus has 2000" in caplog.text
    assert by_id(read_corpus("esc50", esc50 / "ESC-50-master")) == by_id(manifest)


def test_esc10_is_its_ten_classes(esc50: Path) -> None:
    manifest = read_corpus("esc10", esc50)
    assert set(manifest.column("category")) == {"dog"}
    assert sorted(manifest.column("fold")) == [1, 2, 3, 4, 5]


def test_esc50_names_missing_clips_and_columns(esc50: Path) -> None:
    (esc50 / "ESC-50-master" / "audio" / "2-1002-A-0.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 10 .* missing \(2-1002-A-0.wav\)"):
        read_corpus("esc50", esc50)
    (esc50 / "ESC-50-master" / "meta" / "esc50.csv").write_text("filename,target\n")
    with pytest.raises(ManifestError, match="no column 'category'"):
        read_corpus("esc50", esc50)


# ------------------------------------------------------------------------------------------------- LibriSpeech

TEXTS = {
    "84-121123-0000": "GO DO YOU HEAR",
    "84-121123-0001": "BUT IN LESS THAN FIVE MINUTES",
    "84-121550-0000": "BUT WITH FULL RAVISHMENT",
    "103-1240-0000": "CHAPTER ONE",
    "103-1240-0001": "THAT HAD ITS SOURCE AWAY BACK",
}
SUBSET = {name: "dev-clean" if name.startswith("84") else "train-clean-100" for name in TEXTS}


def chapter(name: str) -> str:
    speaker, chapter, _ = name.split("-")
    return f"{SUBSET[name]}/{speaker}/{chapter}"


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    for name, text in TEXTS.items():
        write_audio(root / chapter(name) / f"{name}.flac", 1.005)
        with (root / chapter(name) / f"{name.rpartition('-')[0]}.trans.txt").open("a") as file:
            file.write(f"{name} {text}\n")
    (root / "SPEAKERS.TXT").write_text(
        "; All the LibriSpeech speakers\n;ID  |SEX| SUBSET           |MINUTES| NAME\n"
        "84   | F | dev-clean        |  8.02 | Christie Nowak\n"
        "103  | M | train-clean-100  | 25.05 | Karen | Savage\n"
    )
    return tmp_path


TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.005
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.005
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.7
            text = "go"
        intervals [3]:
            xmin = 0.7
            xmax = 1.005
            text = "do"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.005
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.4
            text = "G"
        intervals [3]:
            xmin = 0.4
            xmax = 0.7
            text = "OW1"
        intervals [4]:
            xmin = 0.7
            xmax = 1.005
            text = "D"
    item [3]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.005
        points: size = 1
        points [1]:
            number = 0.5
            mark = "here"
"""


def test_librispeech_labels_come_from_the_tree(librispeech: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("librispeech", librispeech)
    rows = by_id(manifest)
    assert {name: row["text"] for name, row in rows.items()} == TEXTS
    row = rows["84-121550-0000"]
    assert (row["speaker"], row["chapter"], row["gender"]) == ("84", "121550", "f")
    assert (row["subset"], row["split"]) == ("dev-clean", "dev")
    assert rows["103-1240-0000"]["gender"] == "m"
    assert rows["103-1240-0000"]["split"] == "train"
    assert Path(row["path"]) == librispeech / "LibriSpeech/dev-clean/84/121550/84-121550-0000.flac"
    assert row["duration_s"] == 1.005
    assert "dev-clean: found 3 clips, the corpus has 2703" in caplog.text
    assert "phones" not in manifest.labels


def test_librispeech_subsets_can_be_chosen(librispeech: Path) -> None:
    assert set(read_corpus("librispeech", librispeech, subsets=["dev-clean"]).column("speaker")) == {"84"}
    with pytest.raises(ManifestError, match="unknown subset of LibriSpeech 'dev-claen'; did you mean 'dev-clean'"):
        read_corpus("librispeech", librispeech, subsets=["dev-claen"])
    with pytest.raises(ManifestError, match=r"test-clean: no transcripts; expected SUBSET/SPEAKER"):
        read_corpus("librispeech", librispeech, subsets=["test-clean"])


def test_librispeech_names_missing_recordings(librispeech: Path) -> None:
    (librispeech / "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac").unlink()
    with pytest.raises(ManifestError, match=r"1 of 5 .* missing \(dev-clean/84/121123/84-121123-0001.flac\)"):
        read_corpus("librispeech", librispeech)


def test_librispeech_without_speakers_txt_leaves_genders_unknown(
    librispeech: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (librispeech / "LibriSpeech" / "SPEAKERS.TXT").unlink()
    assert set(read_corpus("librispeech", librispeech).column("gender")) == {None}
    assert "genders are unknown" in caplog.text


@pytest.fixture
def aligned(tmp_path: Path) -> Path:
    """Alignments of all utterances but one, which the aligner gave up."""
    folder = tmp_path / "alignments"
    for name in TEXTS:
        (folder / chapter(name)).mkdir(parents=True, exist_ok=True)
        (folder / chapter(name) / f"{name}.TextGrid").write_text(TEXTGRID)
    (folder / chapter("84-121550-0000") / "84-121550-0000.TextGrid").unlink()
    return folder


def test_librispeech_alignments_become_phones_and_words(librispeech: Path, aligned: Path) -> None:
    rows = by_id(read_corpus("librispeech", librispeech, alignments=aligned))
    phones = [(0, 0.25, "sil"), (0.25, 0.4, "G"), (0.4, 0.7, "OW1"), (0.7, 1.005, "D")]
    assert triples(rows["84-121123-0001"]["phones"]) == phones
    assert triples(rows["103-1240-0000"]["words"]) == [(0.25, 0.7, "go"), (0.7, 1.005, "do")]
    assert rows["84-121550-0000"]["phones"] is None
    assert rows["84-121550-0000"]["words"] is None


def test_librispeech_without_any_alignment_or_tier_is_refused(librispeech: Path, aligned: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no alignments; expected .*\.TextGrid"):
        read_corpus("librispeech", librispeech, alignments=tmp_path / "nowhere")
    path = aligned / chapter("103-1240-0000") / "103-1240-0000.TextGrid"
    path.write_text(TEXTGRID.replace('"phones"', '"segments"'))
    with pytest.raises(ManifestError, match="expected tiers 'phones' and 'words', found words, segments"):
        read_corpus("librispeech", librispeech, alignments=aligned)


@pytest.fixture
def cpc(tmp_path: Path) -> Path:
    folder = tmp_path / "cpc"
    folder.mkdir()
    (folder / "train_split.txt").write_text("103-1240-0001\n")
    (folder / "test_split.txt").write_text("103-1240-0000\n")
    (folder / "converted_aligned_phones.txt").write_text(
        "9-9-0009 1 1 1\n"
        f"103-1240-0000 {' '.join(['0'] * 30 + ['17'] * 5 + ['4'] + ['17'] * 63)}\n"
        f"103-1240-0001 {' '.join(['0'] * 99)}\n"
    )
    return folder


def test_librispeech_cpc_split_and_its_phones(librispeech: Path, cpc: Path) -> None:
    rows = by_id(read_corpus("librispeech", librispeech, cpc=cpc))
    assert {name: row["split"] for name, row in rows.items()} == {"103-1240-0000": "test", "103-1240-0001": "train"}
    phones = triples(rows["103-1240-0000"]["phones"])
    assert phones == [(0, 0.3, "0"), (0.3, 0.35, "17"), (0.35, 0.36, "4"), (0.36, 0.99, "17")]
    # frame i of the file covers [i, i + 1) hundredths of a second: read back at the middles, the frames return
    frames = ["0"] * 30 + ["17"] * 5 + ["4"] + ["17"] * 63
    middles = [(i + 0.5) / 100 for i in range(len(frames))]
    assert [next(label for start, end, label in phones if start <= t < end) for t in middles] == frames


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cpc: (cpc / "test_split.txt").unlink(), "test_split.txt: cannot be read"),
        (lambda cpc: (cpc / "converted_aligned_phones.txt").unlink(), "aligned_phones.txt: no such file"),
        (lambda cpc: (cpc / "converted_aligned_phones.txt").write_text("103-1240-0000 1 2\n"), r"\(103-1240-0001\)"),
        (lambda cpc: (cpc / "train_split.txt").write_text("7-7-0007\n8-8-0008\n"), r"2 of 3 .*\(7-7-0007, 8-8-0008\)"),
    ],
)
def test_librispeech_incomplete_cpc_lists_are_refused(
    librispeech: Path, cpc: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(cpc)
    with pytest.raises(ManifestError, match=message):
        read_corpus("librispeech", librispeech, cpc=cpc)


def test_librispeech_takes_phones_from_one_source(librispeech: Path, cpc: Path, aligned: Path) -> None:
    with pytest.raises(ManifestError, match="give one of them"):
        read_corpus("librispeech", librispeech, cpc=cpc, alignments=aligned)


# ------------------------------------------------------------------------------------------------- TextGrid


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_textgrid_in_praats_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_bytes(TEXTGRID.replace('"OW1"', '"əʊ ""loud"""').encode(encoding))
    tiers = read_textgrid(path)
    assert tiers.keys() == {"words", "phones"}
    assert tiers["phones"][2] == (0.4, 0.7, 'əʊ "loud"')
    assert tiers["words"] == [(0, 0.25, ""), (0.25, 0.7, "go"), (0.7, 1.005, "do")]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), max_size=5), max_size=6))
def test_textgrid_gives_back_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Texts that look like the format itself, quotation marks and all."""
    texts = [*texts, 'xmin = 1 xmax = 2 text = "', 'class = "IntervalTier" name = "x"']
    body = "".join(
        f'intervals [{i + 1}]:\n xmin = {i}\n xmax = {i + 1}\n text = "{text.replace(chr(34), chr(34) * 2)}"\n'
        for i, text in enumerate(texts)
    )
    path = tmp_path_factory.mktemp("grid") / "a.TextGrid"
    head = f'class = "IntervalTier"\n name = "t"\n xmin = 0\n xmax = 9\n intervals: size = {len(texts)}\n'
    path.write_text(f'File type = "ooTextFile"\nitem [1]:\n {head}{body}', encoding="utf-8")
    assert read_textgrid(path) == {"t": [(float(i), float(i + 1), text) for i, text in enumerate(texts)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "not a TextGrid"),
        (TEXTGRID[: TEXTGRID.index('"OW1"')], "tier 'phones' is damaged"),
        (TEXTGRID.replace("intervals: size = 4", ""), "tier 'phones' is damaged"),
    ],
)
def test_damaged_textgrids_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_textgrid(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_textgrid(tmp_path / "nowhere.TextGrid")


# ------------------------------------------------------------------------------------------------- intervals

CLIPS = st.lists(st.none() | st.lists(st.tuples(st.floats(0, 1), st.floats(1, 2), st.text(max_size=3)), max_size=4))


@given(CLIPS)
def test_interval_column_holds_what_was_added(clips: list) -> None:
    column = IntervalColumn()
    for clip in clips:
        column.add(clip)
    expected = [
        clip and [dict(zip(("start_s", "end_s", "label"), item, strict=True)) for item in clip] for clip in clips
    ]
    assert column.to_arrow().to_pylist() == expected


def test_readers_log_under_the_packages_name(fsdd: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "auricle"):
        read_corpus("fsdd", fsdd)
    assert {record.name for record in caplog.records} == {"auricle"}
