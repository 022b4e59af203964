"""Readers of MagnaTagATune, GTZAN, GiantSteps, Emomusic, NSynth, VocalSet, MTG-Jamendo and MARBLE's annotations, on
small trees in the official layouts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auricle.data.corpora import read_corpus
from auricle.data.corpora.giantsteps import KEYS
from auricle.data.corpora.gtzan import SPLITS
from auricle.data.corpora.magnatagatune import CORRUPT, TAGS
from auricle.data.corpora.mtg_jamendo import SUBSETS
from auricle.data.manifest import Manifest
from auricle.data.sources import INTERVALS
from auricle.errors import ManifestError


def write_audio(path: Path, seconds: float = 0.1, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate)), rate)


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def by_id(manifest: Manifest) -> dict[str, dict]:
    return {row["clip_id"]: row for row in manifest.table.to_pylist()}


def points(intervals: list[dict]) -> list[tuple[float, str]]:
    assert all(interval["start_s"] == interval["end_s"] for interval in intervals)
    return [(interval["start_s"], interval["label"]) for interval in intervals]


# ------------------------------------------------------------------------------------------------- MagnaTagATune

SONGS = {
    "2": ("f/american_bach_soloists-j_s__bach_solo_cantatas-01-bwv54__i_aria-30-59.mp3", "classical|violin|rare"),
    "6": ("b/lisa_zane-a_man_with_a_plan-02-rope_and_wind-0-29.mp3", ""),
    "8": ("c/dac_crowell-redshift_ii-03-the_flow_of_time-88-117.mp3", "no vocals|ambient"),
    "35644": (min(CORRUPT), "guitar"),
}


@pytest.fixture
def magnatagatune(tmp_path: Path) -> Path:
    names = [*reversed(TAGS), "rare"]
    lines = ["\t".join(f'"{name}"' for name in ("clip_id", *names, "mp3_path"))]
    for number, (path, tags) in SONGS.items():
        flags = (str(int(name in tags.split("|"))) for name in names)
        lines.append("\t".join(f'"{cell}"' for cell in (number, *flags, path)))
        write_audio(tmp_path / "mp3" / path)
    (tmp_path / "mp3" / SONGS["35644"][0]).write_bytes(b"")
    write_lines(tmp_path / "annotations_final.csv", *lines)
    return tmp_path


def test_magnatagatune_tags_and_split(magnatagatune: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("magnatagatune", magnatagatune)
    rows = by_id(manifest)
    assert {name: (row["split"], row["tags"]) for name, row in rows.items()} == {
        "2": ("test", ["classical", "violin"]),
        "6": ("train", []),
        "8": ("dev", ["ambient", "no vocals"]),
    }
    assert not manifest.skipped  # the empty file is known
    assert rows["6"]["song"] == "b/lisa_zane-a_man_with_a_plan-02-rope_and_wind"
    assert Path(rows["6"]["path"]) == magnatagatune / "mp3" / SONGS["6"][0]
    assert "found 3 clips, the corpus has 25860" in caplog.text


def test_magnatagatune_without_the_folder_of_clips(magnatagatune: Path) -> None:
    rows = by_id(read_corpus("magnatagatune", magnatagatune))
    for folder in (magnatagatune / "mp3").iterdir():
        folder.rename(magnatagatune / folder.name)
    (magnatagatune / "mp3").rmdir()
    assert {name: row["tags"] for name, row in by_id(read_corpus("magnatagatune", magnatagatune)).items()} == {
        name: row["tags"] for name, row in rows.items()
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "mp3" / SONGS["8"][0]).unlink(), r"1 of 3 of the clips are missing \(c/dac_crowell"),
        (lambda root: replace(root / "annotations_final.csv", "new age", "newage"), "no column 'new age'"),
        (lambda root: replace(root / "annotations_final.csv", "\tb/lisa", "\tx/lisa"), "line 3 .* not MagnaTagATune's"),
        (lambda root: write_lines(root / "annotations_final.csv", "clip_id,tags", "2,guitar"), "no column"),
        (lambda root: replace(root / "annotations_final.csv", "8\t", "8\n8\t"), "line 4 is cut short"),
        (lambda root: (root / "annotations_final.csv").write_text(""), "no column 'clip_id'"),
    ],
)
def test_magnatagatune_damaged_is_refused(magnatagatune: Path, spoil: Callable[[Path], object], message: str) -> None:
    table = magnatagatune / "annotations_final.csv"
    table.write_text(table.read_text().replace('"', ""))  # quoted or not
    spoil(magnatagatune)
    with pytest.raises(ManifestError, match=message):
        read_corpus("magnatagatune", magnatagatune)


# ------------------------------------------------------------------------------------------------- GTZAN


def numbers(spans: str) -> set[int]:
    return {
        number
        for first, *last in (map(int, span.split("-")) for span in spans.split())
        for number in range(first, (last or [first])[0] + 1)
    }


@pytest.fixture
def gtzan(tmp_path: Path) -> Path:
    one = tmp_path / "one.wav"
    write_audio(one, 1.0, 4000)
    for genre, spans in SPLITS.items():
        (tmp_path / "genres" / genre).mkdir(parents=True)
        for number in numbers(spans.replace("|", " ")):
            os.link(one, tmp_path / "genres" / genre / f"{genre}.{number:05}.wav")
    os.link(one, tmp_path / "genres" / "reggae" / "reggae.00086.wav")  # one of the seventy left out
    return tmp_path


def write_jams(path: Path, **events: list[float]) -> None:
    kinds = {"tempo": [0.0], **events}
    annotations = [
        {
            "namespace": "tempo" if kind == "tempo" else "beat",
            "sandbox": {"annotation_type": kind},
            "data": [{"time": time, "duration": 0.0, "value": float("nan"), "confidence": 1.0} for time in times],
        }
        for kind, times in kinds.items()
    ]
    write_lines(path, json.dumps({"annotations": annotations, "file_metadata": {}}))


def test_gtzan_fault_filtered_split(gtzan: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("gtzan", gtzan)
    rows = by_id(manifest)
    assert Counter(manifest.column("split")) == {"train": 443, "dev": 197, "test": 290}
    assert "reggae.00086" not in rows
    official = {"blues.00000": "dev", "blues.00012": "test", "jazz.00054": "train", "rock.00038": "dev"}
    assert {name: rows[name]["split"] for name in official} == official
    assert rows["hiphop.00099"]["genre"] == "hiphop"
    assert "beats" not in manifest.labels
    assert "GTZAN" not in caplog.text


def test_gtzan_beats_from_gtzan_rhythm(gtzan: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    folder = gtzan / "GTZAN-Rhythm_v2_ismir2015_lbd" / "jams"
    write_jams(folder / "blues.00000.wav.jams", downbeat=[0.2], beat=[0.2, 0.4, 0.6])
    write_jams(folder / "reggae.00002.wav.jams", beat=[0.9, 1.117], downbeat=[1.117])  # past the end by 0.117 s
    write_lines(gtzan / "beats" / "gtzan_blues_00000.beats", "0.5\t1")  # the other kind does not count
    manifest = read_corpus("gtzan", gtzan)
    rows = by_id(manifest)
    assert points(rows["blues.00000"]["beats"]) == [(0.2, "beat"), (0.2, "downbeat"), (0.4, "beat"), (0.6, "beat")]
    assert points(rows["reggae.00002"]["beats"]) == [(0.9, "beat")]
    assert rows["pop.00000"]["beats"] is None
    assert len(rows) == 930
    assert "928 of 930 excerpts have no annotation of beats" in caplog.text
    assert manifest.table.schema.field("beats").type == INTERVALS
    manifest.save(tmp_path / "gtzan.parquet")
    assert by_id(Manifest.open(tmp_path / "gtzan.parquet")) == rows


def test_gtzan_beats_with_and_without_their_place_in_the_bar(gtzan: Path) -> None:
    folder = gtzan / "gtzan_tempo_beat-main" / "beats"
    write_lines(folder / "gtzan_blues_00000.beats", "0.113\t4", "0.829\t1", "0.937\t2")
    write_lines(folder / "gtzan_country_00000.beats", "0.113", "0.829")
    rows = by_id(read_corpus("gtzan", gtzan))
    assert points(rows["blues.00000"]["beats"]) == [
        (0.113, "beat"),
        (0.829, "beat"),
        (0.829, "downbeat"),
        (0.937, "beat"),
    ]
    assert points(rows["country.00000"]["beats"]) == [(0.113, "beat"), (0.829, "beat")]


def test_gtzan_damaged_excerpt_is_left_out(gtzan: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = gtzan / "genres" / "jazz" / "jazz.00054.wav"
    damaged.unlink()
    damaged.write_bytes(b"RIFF, once")
    manifest = read_corpus("gtzan", gtzan)
    assert [skip.clip_id for skip in manifest.skipped] == ["jazz.00054"]
    assert "found 929 clips, the corpus has 930" in caplog.text
    damaged.unlink()
    assert by_id(read_corpus("gtzan", gtzan)) == by_id(manifest)
    (gtzan / "genres").rename(gtzan / "genres_original")
    (gtzan / "genres_original" / "jazz" / "jazz.00055.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 930 of the excerpts are missing \(jazz.00055\)"):
        read_corpus("gtzan", gtzan)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blues.00000.wav.jams", '{"annotations": ['),
        ("blues.00000.wav.jams", '{"beats": []}'),
        ("blues.00000.wav.jams", '{"annotations": [{"namespace": "beat", "sandbox": null}]}'),
        ("blues.00000.jams", '{"annotations": [{"namespace": "beat", "sandbox": {"annotation_type": "beat"}}]}'),
        ("gtzan_blues_00000.beats", "one\t1"),
        ("gtzan_blues_00000.beats", "nan\t1"),
        ("gtzan_blues_00000.beats", "-0.5\t1"),
    ],
)
def test_gtzan_damaged_beats_are_refused(gtzan: Path, name: str, text: str) -> None:
    write_lines(gtzan / "annotations" / name, text)
    with pytest.raises(ManifestError, match=f"{name}: is no annotation of beats"):
        read_corpus("gtzan", gtzan)


# ------------------------------------------------------------------------------------------------- GiantSteps


def artist_of(part: str) -> str:
    """A name that falls to a part by its hash."""
    share = range(100) if part == "train" else range(100, 116)
    names = (f"Artist {number}" for number in range(1000))
    return next(name for name in names if int(hashlib.sha1(name.lower().encode()).hexdigest(), 16) % 116 in share)


@pytest.fixture
def giantsteps(tmp_path: Path) -> Path:
    key, mtg = tmp_path / "giantsteps-key-dataset", tmp_path / "giantsteps-mtg-key-dataset-master"
    for number, name in (("10089", "Bb major"), ("209206", "f# minor")):
        write_lines(key / "annotations" / "key" / f"{number}.LOFI.key", name)
        write_audio(key / "audio" / f"{number}.LOFI.mp3")
    train, dev = artist_of("train"), artist_of("dev")
    tracks = [  # a chain of four who worked together: two rounds reach two beyond the first
        ("1", "D# minor", "2", f"{train} D , {train}"),
        ("2", "A major ", "2", f"{train} B, {train} C"),
        ("3", "F minor", "2", f"{train} A, {train} B"),
        ("4", "G minor", "2", f"{dev}, {train} A"),
        ("5", "C minor / F# minor", "2", dev),
        ("6", "C minor", "1", dev),
        ("7", "-", "0", dev),
        ("8", "C# major", "2", dev.upper()),
        ("9", "B minor", "2", f"{train} C"),
    ]
    write_lines(mtg / "annotations" / "annotations.txt", "ID\tMANUAL KEY\tC", *("\t".join(row[:3]) for row in tracks))
    write_lines(
        mtg / "annotations" / "beatport_metadata.txt",
        "ID\tARTIST\tSONG TITLE",
        *(f"{number}\t{artist}\tSong {number}" for number, _, _, artist in tracks),
    )
    for number in "123489":
        write_audio(mtg / "audio" / f"{number}.LOFI.mp3")
    return tmp_path


def test_giantsteps_keys_and_artists_split(giantsteps: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = by_id(read_corpus("giantsteps", giantsteps))
    assert {name: (row["key"], row["split"]) for name, row in rows.items()} == {
        "key-10089": ("Bb major", "test"),
        "key-209206": ("Gb minor", "test"),
        "mtg-1": ("Eb minor", "train"),
        "mtg-2": ("A major", "dev"),  # B is reached in the second round, C stands beside
        "mtg-3": ("F minor", "dev"),
        "mtg-4": ("G minor", "dev"),
        "mtg-8": ("Db major", "dev"),
        "mtg-9": ("B minor", "train"),
    }
    assert rows["key-10089"]["artist"] is None
    assert rows["mtg-8"]["artist"] == artist_of("dev").upper()
    assert "test: found 2 clips, the corpus has 604" in caplog.text
    assert "train and dev: found 6 clips, the corpus has 1077" in caplog.text


def test_giantsteps_has_the_24_keys_of_mir_eval() -> None:
    key = pytest.importorskip("mir_eval.key")
    assert len(set(KEYS)) == 24
    assert len({key.split_key_string(name) for name in KEYS}) == 24


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "giantsteps-mtg-key-dataset-master/audio/3.LOFI.mp3").unlink(),
            r"1 of 8 .*\(giantsteps-mtg-key-dataset-master/audio/3\)",
        ),
        (lambda root: (root / "giantsteps-key-dataset").rename(root / "key"), "no giantsteps-key-dataset; expected"),
        (
            lambda root: (root / "giantsteps-mtg-key-dataset-master").rename(root / "mtg"),
            "no giantsteps-mtg-key-dataset; expected",
        ),
        (
            lambda root: write_lines(root / "giantsteps-key-dataset/annotations/key/10089.LOFI.key", "Bb dorian"),
            "10089.LOFI.key: 'Bb dorian' is no major or minor key",
        ),
        (
            lambda root: (root / "giantsteps-mtg-key-dataset-master/annotations/beatport_metadata.txt").unlink(),
            "beatport_metadata.txt: cannot be read",
        ),
        (
            lambda root: replace(
                root / "giantsteps-mtg-key-dataset-master/annotations/annotations.txt", "MANUAL KEY", "KEY"
            ),
            "annotations.txt: line 2 lacks one of ID, MANUAL KEY, C",
        ),
        (
            lambda root: replace(
                root / "giantsteps-mtg-key-dataset-master/annotations/beatport_metadata.txt", "\n8\t", "\n10\t"
            ),
            r"1 of 6 of the tracks' artists are missing \(8\)",
        ),
    ],
)
def test_giantsteps_damaged_is_refused(giantsteps: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(giantsteps)
    with pytest.raises(ManifestError, match=message):
        read_corpus("giantsteps", giantsteps)


# ------------------------------------------------------------------------------------------------- Emomusic

ARTISTS = {"The New Mystikal Troubadours": "the new mystikal troubadours", " Beyoncé  & 2 Jay-Z ": "beyonc jayz"}


@pytest.fixture
def emomusic(tmp_path: Path) -> Path:
    info = ["song_id,file_name,Artist,Song title,Genre,Mediaeval 2013 set"]
    ratings = ["song_id,mean_arousal,std_arousal,mean_valence,std_valence"]
    for number, (artist, part) in enumerate(((a, p) for a in ARTISTS for p in ("development", "evaluation")), start=7):
        info.append(f"{number},{number}.mp3,\t{artist},\tSong,\tRock,\t{part}")
        ratings.append(f"{number},{number / 2},1.2,{number / 4},0.9")
        write_audio(tmp_path / "clips_45seconds" / f"{number}.mp3")
    write_lines(tmp_path / "annotations" / "songs_info.csv", *info)
    write_lines(tmp_path / "annotations" / "static_annotations.csv", *ratings)
    return tmp_path


def test_emomusic_ratings_and_split(emomusic: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("emomusic", emomusic)
    rows = by_id(manifest)
    parts = [
        "dev" if int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 >= 8 else "train" for name in ARTISTS.values()
    ]
    assert [rows[name]["split"] for name in ("7", "8", "9", "10")] == [parts[0], "test", parts[1], "test"]
    assert (rows["9"]["arousal"], rows["9"]["valence"]) == (4.5, 2.25)
    assert (rows["9"]["artist"], rows["9"]["genre"]) == ("Beyoncé  & 2 Jay-Z", "Rock")
    assert "found 4 clips, the corpus has 744" in caplog.text
    for path in (emomusic / "annotations").iterdir():
        path.rename(emomusic / path.name)
    (emomusic / "annotations").rmdir()
    assert by_id(read_corpus("emomusic", emomusic)) == rows


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "clips_45seconds/8.mp3").unlink(), r"1 of 8 .*\(clips_45seconds/8.mp3\)"),
        (lambda root: replace(root / "annotations/static_annotations.csv", "\n9,", "\n99,"), r"1 of 8 .*\(9\)"),
        (lambda root: replace(root / "annotations/static_annotations.csv", ",4.5,", ",high,"), "'high' is no rating"),
        (lambda root: replace(root / "annotations/songs_info.csv", "Mediaeval 2013 set", "set"), "no column 'Media"),
        (lambda root: (root / "annotations/songs_info.csv").unlink(), "songs_info.csv: cannot be read"),
    ],
)
def test_emomusic_damaged_is_refused(emomusic: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(emomusic)
    with pytest.raises(ManifestError, match=message):
        read_corpus("emomusic", emomusic)


# ------------------------------------------------------------------------------------------------- NSynth


def nsynth_note(instrument: int, pitch: int, family: str = "bass", **more: object) -> dict:
    """A record of examples.json."""
    place = f"{family}_synthetic_{instrument:03}"
    return {
        "note": 201034,
        "note_str": f"{place}-{pitch:03}-050",
        "sample_rate": 16000,
        "qualities": [0] * 10,
        "qualities_str": [],
        "instrument": 417,
        "instrument_str": place,
        "instrument_family": 0,
        "instrument_family_str": family,
        "instrument_source": 2,
        "instrument_source_str": "synthetic",
        "pitch": pitch,
        "velocity": 50,
        **more,
    }


@pytest.fixture
def nsynth(tmp_path: Path) -> Path:
    dark = {"qualities": [0, 1] + [0] * 8, "qualities_str": ["dark"]}
    notes = {
        "train": [nsynth_note(33, 22, **dark), nsynth_note(33, 108, **dark)],
        "valid": [nsynth_note(4, 60)],
        "test": [nsynth_note(5, 61)],
    }
    for part, records in notes.items():
        place = tmp_path / f"nsynth-{part}"
        write_lines(place / "examples.json", json.dumps({record["note_str"]: record for record in records}, indent=1))
        for record in records:
            write_audio(place / "audio" / f"{record['note_str']}.wav")
    return tmp_path


def test_nsynth_notes_and_split(nsynth: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("nsynth", nsynth)
    row = by_id(manifest)["bass_synthetic_033-108-050"]
    assert (row["instrument_family"], row["instrument_source"], row["instrument"]) == (
        "bass",
        "synthetic",
        "bass_synthetic_033",
    )
    assert (row["pitch"], row["velocity"], row["qualities"]) == (108, 50, ["dark"])
    assert manifest.column("split") == ["train", "train", "dev", "test"]
    assert manifest.column("qualities")[3] == []
    assert "train: found 2 clips, the corpus has 289205" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "nsynth-valid/audio/bass_synthetic_004-060-050.wav").unlink(),
            r"1 of 1 .*\(nsynth-valid/audio/bass_synthetic_004-060-050.wav\)",
        ),
        (lambda root: (root / "nsynth-test/audio").rename(root / "elsewhere"), "1 of 1 of the notes are missing"),
        (lambda root: (root / "nsynth-test/examples.json").unlink(), "examples.json: cannot be read"),
        (lambda root: write_lines(root / "nsynth-test/examples.json", '{"a": '), "is not JSON"),
        (lambda root: write_lines(root / "nsynth-test/examples.json", "[]"), "is not a table of notes"),
        (lambda root: replace(root / "nsynth-test/examples.json", '"pitch": 61', '"pitch": "C4"'), "has no 'pitch'"),
    ],
)
def test_nsynth_damaged_is_refused(nsynth: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(nsynth)
    with pytest.raises(ManifestError, match=message):
        read_corpus("nsynth", nsynth)


# ------------------------------------------------------------------------------------------------- VocalSet


@pytest.fixture
def vocalset(tmp_path: Path) -> Path:
    """Twenty singers with five vowels of a scale in three techniques, and what else lies about."""
    one = tmp_path / "one.wav"
    write_audio(one)
    for voice, count in (("female", 9), ("male", 11)):
        for number in range(1, count + 1):
            folder = tmp_path / "FULL" / f"{voice}{number}"
            for technique in ("belt", "lip_trill", "pp"):
                (folder / "scales" / technique).mkdir(parents=True)
                for vowel in "aeiou":
                    os.link(one, folder / "scales" / technique / f"{voice[0]}{number}_scales_{technique}_{vowel}.wav")
    write_audio(folder / "excerpts" / "vibrato" / "caro_vibrato.wav")
    write_audio(folder / "scales" / "belt" / "._m11_scales_belt_a.wav")
    write_audio(folder / "scales" / "yodel" / "m11_scales_yodel_a.wav")
    return tmp_path


def test_vocalset_techniques_singers_and_splits(vocalset: Path) -> None:
    manifest = read_corpus("vocalset", vocalset)
    rows = by_id(manifest)
    assert len(rows) == 20 * 3 * 5
    row = rows["male10/scales/lip_trill/m10_scales_lip_trill_e"]
    assert (row["technique"], row["technique17"], row["singer"], row["context"]) == (
        "lip_trill",
        "lip_trill",
        "m10",
        "scales",
    )
    assert rows["female1/scales/pp/f1_scales_pp_a"]["technique"] is None
    assert rows["female1/scales/pp/f1_scales_pp_a"]["technique17"] == "pp"
    assert {row["singer"] for row in rows.values() if row["split"] == "test"} == {"f2", "f8", "m3", "m5", "m10"}
    parts = Counter(manifest.column("split"))
    assert parts["test"] == 75
    assert parts["train"] / 225 == pytest.approx(0.6, abs=0.1)
    assert Counter(manifest.column("singer_split")) == {"train": 144, "dev": 96, "test": 60}
    singers = {(row["singer"], row["singer_split"]) for row in rows.values()}
    assert {singer for singer, part in singers if part == "train"} >= {row["singer"] for row in rows.values()}


def test_vocalset_recordings_begin_with_their_first_sound(vocalset: Path) -> None:
    """Less than 40 dB below the loudest is sound; silence later on, and at the end, is left."""
    place, rate = vocalset / "FULL" / "female1" / "scales" / "belt", 44_100
    tone = np.sin(2 * np.pi * 220 * np.arange(rate) / rate)
    parts = {
        "late": [1e-4 * tone, 0.5 * tone, 0 * tone, 0.5 * tone, 0 * tone],
        "soft": [0.02 * tone, 0.5 * tone],
        "silent": [0 * tone],
    }
    for name, sounds in parts.items():
        soundfile.write(place / f"f1_{name}.wav", np.concatenate(sounds), rate)
    (place / "f1_broken.wav").write_bytes(b"no audio")
    manifest = read_corpus("vocalset", vocalset)
    rows = by_id(manifest)
    found = {name: rows[f"female1/scales/belt/f1_{name}"] for name in parts}
    assert {name: (row["start_s"], row["duration_s"]) for name, row in found.items()} == {
        "late": (1.0, 4.0),
        "soft": (0.0, 2.0),
        "silent": (0.0, 1.0),
    }
    assert [Path(skip.path).name for skip in manifest.skipped] == ["f1_broken.wav"]


def test_vocalset_version_1_2_and_missing_singers(vocalset: Path) -> None:
    rows = by_id(read_corpus("vocalset", vocalset))
    (vocalset / "FULL").rename(vocalset / "data_by_singer")
    again = by_id(read_corpus("vocalset", vocalset))
    assert {name: row["singer_split"] for name, row in again.items()} == {
        name: row["singer_split"] for name, row in rows.items()
    }
    (vocalset / "data_by_singer" / "male7").rename(vocalset / "male7")
    with pytest.raises(ManifestError, match=r"1 of 20 of the singers are missing \(male7\)"):
        read_corpus("vocalset", vocalset)


# ------------------------------------------------------------------------------------------------- MTG-Jamendo

CATEGORY = {"genre": "genre", "instrument": "instrument", "moodtheme": "mood/theme", "top50tags": "genre"}


@pytest.fixture
def mtg_jamendo(tmp_path: Path) -> Path:
    root = tmp_path / "mtg-jamendo-dataset"
    for index, (subset, count) in enumerate(SUBSETS.items()):
        tags = [f"{CATEGORY[subset]}---{subset}{number}" for number in range(count)]
        for number, part in enumerate(("train", "validation", "test"), start=10):
            chosen = tags if part == "train" else tags[:2]
            track = number if subset != "moodtheme" else number + 50
            write_lines(
                root / "data" / "splits" / "split-0" / f"autotagging_{subset}-{part}.tsv",
                "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS",
                f"track_00000{track}\tartist_{track}\talbum_{index}\t{track}/{track}.mp3\t0.1\t" + "\t".join(chosen),
            )
            write_audio(root / "audio" / f"{track}" / f"{track}.mp3")
    write_audio(root / "audio" / "11" / "11.low.mp3")
    return tmp_path


def test_mtg_jamendo_all_subsets_in_one_manifest(mtg_jamendo: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_corpus("mtg_jamendo", mtg_jamendo)
    rows = by_id(manifest)
    assert {name: row["split"] for name, row in rows.items()} == {
        f"track_00000{number}": part
        for first in (10, 60)
        for number, part in enumerate(("train", "dev", "test"), first)
    }
    row = rows["track_0000011"]
    assert row["genre"] == ["genre0", "genre1"]
    assert row["instrument"] == ["instrument0", "instrument1"]
    assert row["top50tags"] == ["top50tags0", "top50tags1"]
    assert row["moodtheme"] is None
    assert rows["track_0000061"]["moodtheme"] == ["moodtheme0", "moodtheme1"]
    assert rows["track_0000061"]["genre"] is None
    assert (row["artist"], row["album"]) == ("artist_11", "album_0")
    assert Path(row["path"]).name == "11.low.mp3"
    assert Path(rows["track_0000010"]["path"]).name == "10.mp3"
    assert "found 6 clips, the corpus has 55525" in caplog.text


def test_mtg_jamendo_subsets_and_audio_apart(mtg_jamendo: Path) -> None:
    (mtg_jamendo / "mtg-jamendo-dataset" / "audio").rename(mtg_jamendo / "audio")
    (mtg_jamendo / "audio" / "10" / "10.mp3").unlink()
    manifest = read_corpus("mtg_jamendo", mtg_jamendo, subsets=["moodtheme"])
    assert manifest.labels == ["moodtheme", "artist", "album"]
    assert len(manifest) == 3
    with pytest.raises(ManifestError, match=r"1 of 6 of the tracks are missing \(10/10\)"):
        read_corpus("mtg_jamendo", mtg_jamendo)
    with pytest.raises(ManifestError, match="unknown subset of MTG-Jamendo 'moodthem'; did you mean 'moodtheme'"):
        read_corpus("mtg_jamendo", mtg_jamendo, subsets=["moodthem"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda split: (split / "autotagging_genre-test.tsv").unlink(), "genre-test.tsv: cannot be read"),
        (
            lambda split: replace(split / "autotagging_genre-train.tsv", "\tgenre---genre86", ""),
            "86 tags in subset genre, the splits of MTG-Jamendo have 87",
        ),
        (lambda split: replace(split / "autotagging_genre-train.tsv", "PATH", "FILE"), "line 2 is not 'TRACK_ID"),
        (lambda split: replace(split / "autotagging_genre-train.tsv", "\tgenre---genre3", "\tgenre3"), "line 2 is not"),
        (
            lambda split: replace(split / "autotagging_instrument-test.tsv", "track_0000012", "track_0000010"),
            "track_0000010 is in another part of another subset",
        ),
    ],
)
def test_mtg_jamendo_damaged_is_refused(mtg_jamendo: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(mtg_jamendo / "mtg-jamendo-dataset" / "data" / "splits" / "split-0")
    with pytest.raises(ManifestError, match=message):
        read_corpus("mtg_jamendo", mtg_jamendo)


# ------------------------------------------------------------------------------------------------- MARBLE


def write_marble(root: Path, task: str, labels: list, corpus: str = "GTZAN", **more: object) -> None:
    """A clip of one second for each label: the first is train, the second val, the third test."""
    for index, (part, label) in enumerate(zip(("train", "val", "test"), labels, strict=True)):
        place = f"data/{corpus}/wav/{task}.{index:05}.wav"
        record = {"audio_path": place, "label": label, "duration": 1.0, "sample_rate": 4000, "num_samples": 4000}
        record |= {"bit_depth": 16, "channels": 1, **more}
        write_lines(root / "data" / corpus / f"{task}.{part}.jsonl", json.dumps(record))
        write_audio(root / place, 1.0, 4000)


def test_marble_classes_and_lists(tmp_path: Path) -> None:
    write_marble(tmp_path, "GTZANGenre", ["blues", "jazz", "rock"])
    for folder in (tmp_path, tmp_path / "data", tmp_path / "data" / "GTZAN"):
        manifest = read_corpus("marble", folder)
        assert manifest.column("label") == ["blues", "jazz", "rock"]
        assert manifest.column("split") == ["train", "dev", "test"]
        assert Path(manifest.column("path")[1]) == tmp_path / "data/GTZAN/wav/GTZANGenre.00001.wav"
    write_marble(tmp_path, "MTT", [["classical", "violin"], [], ["pop"]], "MTT", ori_uid="0005061")
    tagged = read_corpus("marble", tmp_path, task="MTT")
    assert tagged.column("label") == [["classical", "violin"], [], ["pop"]]
    assert tagged.column("ori_uid") == ["0005061"] * 3
    with pytest.raises(ManifestError, match=r"several tasks \(GTZANGenre, MTT\); name one"):
        read_corpus("marble", tmp_path)
    with pytest.raises(ManifestError, match="unknown task 'MT'; did you mean 'MTT'"):
        read_corpus("marble", tmp_path, task="MT")


def test_marble_numbers_beats_and_chords(tmp_path: Path) -> None:
    write_marble(tmp_path, "EMO", [[-0.5, 1], [0.25, 2.5], [1.0, 0.0]], "EMO")
    values = read_corpus("marble", tmp_path, task="EMO")
    assert (values.column("label_0"), values.column("label_1")) == ([-0.5, 0.25, 1.0], [1.0, 2.5, 0.0])
    beats = {"beat": [0.1, 0.5, 1.2], "downbeat": [0.5], "tempo": 126.46, "meter": "4/4"}
    write_marble(tmp_path, "GTZANBeatTracking", [beats, {"beat": [], "downbeat": [], "tempo": 90}, beats])
    tracked = read_corpus("marble", tmp_path, task="GTZANBeatTracking")
    assert points(tracked.column("beats")[0]) == [(0.1, "beat"), (0.5, "beat"), (0.5, "downbeat")]
    assert tracked.column("beats")[1] == []
    assert tracked.column("label_tempo") == [126.46, 90.0, 126.46]
    assert tracked.column("label_meter") == ["4/4", None, "4/4"]
    chords = [
        {"start_time": 0.0, "end_time": 0.4, "chord_str": "N"},
        {"start_time": 0.4, "end_time": 1.7, "chord_str": "E:maj"},
    ]
    write_marble(tmp_path, "Chords1217", [chords] * 3, "Chords1217")
    intervals = read_corpus("marble", tmp_path, task="Chords1217").column("chords")[2]
    assert [tuple(interval.values()) for interval in intervals] == [(0.0, 0.4, "N"), (0.4, 1.0, "E:maj")]


@pytest.mark.parametrize(
    "labels",
    [
        ["blues", ["jazz"], "rock"],
        [[0.5, 1.0], [0.5], [1.0, 2.0]],
        [{"beat": ["early"]}] * 3,
        [[{"start_time": 0.0, "chord_str": "N"}]] * 3,
        [{"tempo": 120}, {"tempo": "fast"}, {"tempo": 90}],
        [None, "blues", "rock"],
    ],
)
def test_marble_labels_of_another_kind_are_refused(tmp_path: Path, labels: list) -> None:
    write_marble(tmp_path, "GTZANGenre", labels)
    with pytest.raises(ManifestError, match=r"GTZANGenre.*labels are of several kinds, or of none that MARBLE has"):
        read_corpus("marble", tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "wav/GTZANGenre.00002.wav").unlink(), r"1 of 3 .*\(wav/GTZANGenre.00002.wav\)"),
        (lambda root: (root / "GTZANGenre.val.jsonl").unlink(), "GTZANGenre.val.jsonl: cannot be read"),
        (lambda root: write_lines(root / "GTZANGenre.val.jsonl", '{"audio'), "val.jsonl: line 1 is not JSON"),
        (lambda root: write_lines(root / "GTZANGenre.val.jsonl", '{"audio_path": "a.wav"}'), "line 1 is no record"),
    ],
)
def test_marble_damaged_is_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    write_marble(tmp_path, "GTZANGenre", ["blues", "jazz", "rock"])
    spoil(tmp_path / "data" / "GTZAN")
    with pytest.raises(ManifestError, match=message):
        read_corpus("marble", tmp_path)
