"""Manifests: what people have, read as meant, and refused in one line where it makes no sense."""

import csv
import json
import os
from datetime import date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from auricle.data import manifest as module
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError


def sound(path, seconds=1.0, rate=8_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)), rate)
    return path


@pytest.fixture
def corpus(tmp_path):
    """Three recordings of 1, 2 and 3 s at 8 kHz."""
    for index, name in enumerate(("a.wav", "b.flac", "sub/c.ogg"), start=1):
        sound(tmp_path / "audio" / name, index)
    return tmp_path


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_is_searched(corpus):
    audio = corpus / "audio"
    (audio / "notes.txt").write_text("no audio")
    (audio / ".hidden.wav").write_bytes(b"")
    (audio / "broken.mp3").write_text("no audio either")
    (audio / "film.mp4").write_bytes(b"\0" * 50)
    sound(audio / "x.wav" / "d.wav", 0.5)  # a folder with an audio name is a folder
    os.symlink(audio, audio / "sub" / "loop")
    os.symlink(audio / "a.wav", audio / "link.wav")
    sound(corpus / "elsewhere" / "é.wav")
    os.symlink(corpus / "elsewhere", audio / "more")
    manifest = Manifest.open(audio)
    assert manifest.column("clip_id") == ["a.wav", "b.flac", "link.wav", "more/é.wav", "sub/c.ogg", "x.wav/d.wav"]
    assert manifest.durations.tolist() == [1, 2, 1, 1, 3, 0.5]
    assert manifest.row(4) == {
        "clip_id": "sub/c.ogg",
        "path": str(audio / "sub" / "c.ogg"),
        "start_s": 0.0,
        "duration_s": 3.0,
        "sample_rate": 8_000,
    }
    assert {(skip.clip_id, skip.reason.split()[1]) for skip in manifest.skipped} == {
        ("broken.mp3", "not"),
        ("film.mp4", "audio"),
    }
    assert manifest.labels == []


def test_a_name_that_is_no_text_is_counted(corpus):
    os.rename(corpus / "audio" / "b.flac", os.fsencode(corpus / "audio") + b"/\xff.flac")
    manifest = Manifest.open(corpus / "audio")
    assert (len(manifest), len(manifest.skipped)) == (2, 1)


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="no audio found"):
        Manifest.open(tmp_path)
    (tmp_path / "a.wav").write_text("not audio")
    with pytest.raises(ManifestError, match=r"no file can be read; .*a\.wav: is not audio"):
        Manifest.open(tmp_path)
    with pytest.raises(ManifestError, match="no such file or folder"):
        Manifest.open([tmp_path / "nowhere"])


COLUMNS = {
    "speaker": ["0005", "0010", "0100"],
    "digit": [1, -2, 30],
    "age": [1.5, -2.0, 3e-05],
    "sung": [True, False, True],
    "text": ["yes, no", "line\nbreak", '"quoted"'],
    "split": ["train", "dev", "test"],
}


@pytest.mark.parametrize(
    "path_name", ["path", "file", "filename", "audio", "wav", "filepath", "file_path", "file_name"]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_any_kind_keep_the_labels_types(corpus, suffix, path_name):
    columns = {path_name: ["audio/a.wav", str(corpus / "audio" / "b.flac"), "audio/sub/c.ogg"], **COLUMNS}
    path = corpus / f"labels.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(columns), path)
    elif suffix == "jsonl":
        path.write_text(
            "".join(
                json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)
            )
        )
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter="," if suffix == "csv" else "\t")
            writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
    manifest = Manifest.open(path)
    assert manifest.labels == ["speaker", "digit", "age", "sung", "text"]
    for name, values in COLUMNS.items():
        assert manifest.column(name) == values
        assert [type(value) for value in manifest.column(name)] == [type(value) for value in values]
    assert manifest.column("clip_id") == ["audio/a.wav", "audio/b.flac", "audio/sub/c.ogg"]
    assert manifest.column("path")[1:] == [str(corpus / "audio/b.flac"), str(corpus / "audio/sub/c.ogg")]
    assert Manifest.open(path, columns=["text", "age"]).labels == ["age", "text"]
    with pytest.raises(ManifestError, match="did you mean 'speaker'"):
        Manifest.open(path, columns=["speker"])
    with pytest.raises(ManifestError, match="did you mean 'digit'"):
        manifest.column("digits")


def test_segments_and_their_ids(corpus):
    path = table(
        corpus / "s.csv",
        "path,start_s,end_s,duration\naudio/sub/c.ogg,0.5,1.25,\naudio/sub/c.ogg,2,,\naudio/sub/c.ogg,1,,0.5\n"
        "audio/a.wav,,,\naudio/b.flac,0.5,2.04,\n",
    )
    manifest = Manifest.open(path)
    assert manifest.column("start_s") == [0.5, 2, 1, 0, 0.5]
    assert manifest.durations == pytest.approx([0.75, 1, 0.5, 1, 1.5])  # 2.04 of 2 s is rounding
    ids = [f"audio/sub/c.ogg@{start}" for start in ("0.500", "2.000", "1.000")]
    assert manifest.column("clip_id") == [*ids, "audio/a.wav", "audio/b.flac"]


def test_the_header_knows_lengths_better_than_the_manifest(corpus):
    manifest = Manifest.open(table(corpus / "s.csv", "path,duration,sample_rate\naudio/b.flac,99,44100\n"))
    assert manifest.row(0)["duration_s"] == 2.0
    assert manifest.row(0)["sample_rate"] == 8_000
    assert manifest.labels == []


def test_ids_given_or_made(corpus):
    rows = "audio/a.wav,7\naudio/b.flac,8\n"
    assert Manifest.open(table(corpus / "i.csv", f"path,id\n{rows}")).column("clip_id") == ["7", "8"]
    with pytest.raises(ManifestError, match="the id '7' stands in several rows"):
        Manifest.open(table(corpus / "i.csv", f"path,clip_id\n{rows}audio/sub/c.ogg,7\n"))
    twice = Manifest.open([corpus / "audio", corpus / "audio", corpus / "audio" / "a.wav"])
    assert twice.column("clip_id") == [
        *("a.wav", "b.flac", "sub/c.ogg"),
        *("a.wav~2", "b.flac~2", "sub/c.ogg~2", "a.wav~3"),
    ]


def test_sources_are_concatenated(corpus):
    first = table(corpus / "first.csv", "path,speaker,score\naudio/a.wav,x,1\n")
    second = table(corpus / "second.csv", "file,score\naudio/b.flac,1.5\n")
    manifest = Manifest.open([first, second, corpus / "audio" / "sub"])
    assert manifest.column("speaker") == ["x", None, None]
    assert manifest.column("score") == [1.0, 1.5, None]
    third = table(corpus / "third.csv", "file,score\naudio/b.flac,high\n")
    with pytest.raises(ManifestError, match="type of a column"):
        Manifest.open([first, third])


def test_interval_labels(corpus):
    (corpus / "phones").mkdir()
    table(corpus / "phones" / "a.tsv", "0.5\t1.01\tb\n0\t0.5\ta\n")
    table(corpus / "beats.tsv", "0.25\t4\n0.75\t1\n")
    rows = "audio/a.wav,phones/a.tsv,beats.tsv\naudio/b.flac,,beats.tsv\n"
    manifest = Manifest.open(table(corpus / "m.csv", f"path,phones_tsv,beats_tsv\n{rows}"))
    phones = [{"start_s": 0.0, "end_s": 0.5, "label": "a"}, {"start_s": 0.5, "end_s": 1.0, "label": "b"}]
    beats = [{"start_s": 0.25, "end_s": 0.25, "label": "4"}, {"start_s": 0.75, "end_s": 0.75, "label": "1"}]
    assert manifest.column("phones") == [phones, None]
    assert manifest.column("beats") == [beats, beats]
    as_lists = [{"path": "audio/a.wav", "phones": [[0.5, 1, "b"], [0, 0.5, "a"]], "beats": [[0.25, "4"], [0.75, "1"]]}]
    as_dicts = [
        {"path": "audio/a.wav", "phones": phones, "beats": [{"start": 0.25, "end": 0.25, "label": 4}, beats[1]]}
    ]
    for rows in (as_lists, as_dicts):
        read = Manifest.open(table(corpus / "m.jsonl", "\n".join(map(json.dumps, rows))))
        assert (read.column("phones"), read.column("beats")) == ([phones], [beats])
        assert read.table.schema.field("phones").type == manifest.table.schema.field("phones").type
    pq.write_table(manifest.table.select(["path", "phones"]), corpus / "m.parquet")
    assert Manifest.open(corpus / "m.parquet").column("phones") == [phones, None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,start_s\naudio/a.wav,-1\n", "row 1: 'start_s' is -1"),
        ("path,start_s,end_s\naudio/a.wav,0,1\naudio/b.flac,1.5,1.2\n", "row 2: the clip is from 1.5 to 1.2 s"),
        ("path,start_s,end_s\naudio/a.wav,0.5,0.5\n", "row 1: the clip is"),
        ("path,start_s\naudio/a.wav,soon\n", "row 1: 'start_s' is 'soon', which is no number of seconds"),
        ("path,end_s\naudio/a.wav,0.5\naudio/b.flac,1 s\n", "row 2: 'end_s' is '1 s'"),
        ("path,end_s\naudio/a.wav,2020-01-02\n", "'end_s'"),
        ("path,phones_tsv\naudio/a.wav,back.tsv\n", "row 1: 'x' from 0.5 to 0.2 s"),
        ("path,phones_tsv\naudio/a.wav,early.tsv\n", "row 1: 'x' from -0.5 to 0.2 s"),
        ("path,phones_tsv\naudio/a.wav,words.tsv\n", r"words\.tsv: line 1 is not"),
        ("path,phones_tsv\naudio/a.wav,missing.tsv\n", r"missing\.tsv: cannot be read"),
        ("path,phones_tsv,phones\naudio/a.wav,ok.tsv,x\n", "two columns are called 'phones'"),
        ("path,a,a\naudio/a.wav,1,2\n", "two columns are called 'a'"),
        ("name,speaker\naudio/a.wav,x\n", r"no column of paths \(path, file.*: name, speaker"),
        ("path,speaker\naudio/a.wav\n", "cannot be read as csv"),
        ("path,speaker\n,x\n", "row 1: 'path' is empty|must hold text"),
        ("path\n1\n", "'path' must hold text"),
        ("", "cannot be read as csv"),
        ("path,speaker\n", "no audio found"),
    ],
)
def test_tables_that_make_no_sense(corpus, text, reason):
    for name, content in {
        "back": "0.5\t0.2\tx",
        "early": "-0.5\t0.2\tx",
        "words": "one\ttwo\tthree",
        "ok": "0\t1\tx",
    }.items():
        table(corpus / f"{name}.tsv", content)
    with pytest.raises(ManifestError, match=reason) as caught:
        Manifest.open(table(corpus / "m.csv", text))
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_costs_its_clips_and_no_more(corpus):
    """What lies past the end of a file is the file's fault; the other rows stay, in order, with their labels."""
    table(corpus / "p.tsv", "0.5\t1.2\tx\n0\t0.2\ty\n")
    rows = [
        "audio/a.wav,,,p.tsv,0",
        "audio/b.flac,,,p.tsv,1",
        "audio/a.wav,0.5,1.5,,2",
        "audio/a.wav,5,,,3",
        "audio/a.wav,0.5,,,4",
        "audio/a.wav,7,8,p.tsv,5",
    ]
    path = table(corpus / "m.csv", "\n".join(["path,start_s,end_s,phones_tsv,number", *rows]))
    manifest = Manifest.open(path)
    assert manifest.column("number") == [1, 4]
    assert manifest.durations.tolist() == [2.0, 0.5]
    assert [(skip.clip_id, skip.reason) for skip in manifest.skipped] == [
        ("audio/a.wav@0.000", "column 'phones': 'x' from 0.5 to 1.2 s in a clip of 1 s"),
        ("audio/a.wav@0.500", "the clip ends at 1.5 s, its file ends at 1 s"),
        ("audio/a.wav@5.000", "the clip begins at 5 s, its file ends at 1 s"),
        ("audio/a.wav@7.000", "the clip begins at 7 s, its file ends at 1 s"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"path": "audio/a.wav"', "line 1 is not JSON"),
        ("[1, 2]", "not a JSON object"),
        (
            '{"path": "audio/a.wav", "x": 1}\n{"path": "audio/b.flac", "x": "one"}',
            "column 'x' mixes types: a number at first, text in row 2",
        ),
        ('{"path": "audio/a.wav", "x": [{"start": "now", "end": 1, "label": "a"}]}', "column 'x' holds values that do"),
        (
            '{"path": "audio/a.wav", "x": [[0, 1, "a"]]}\n{"path": "audio/b.flac", "x": 0}',
            "a list at first, a number in row 2",
        ),
        ('{"path": "audio/a.wav", "x": 1' + 5000 * "0" + "}", "line 1 is not JSON"),
        (5000 * "[", "line 1 is not JSON"),
        ('{"path": "audio/\\ud800.wav"}', "cannot be read as jsonl"),
        ('{"path": "audio/a.wav", "\\ud800": 1}', "cannot be read as jsonl"),
        ('{"path": "audio/a.wav", "id": ["a"]}', "'id' must hold text"),
        ('{"path": "audio/a.wav", "start_s": {"s": 1}}', "'start_s' must hold seconds"),
        ('{"path": "audio/a.wav", "x_tsv": "x\\u0000.tsv"}', "cannot be read"),
        ('{"path": "no such\\nfile.wav"}', "no file can be read"),
        ('{"path": {"bytes": "x"}}', "'path' must hold text"),
    ],
)
def test_lines_that_make_no_sense(corpus, line, reason):
    with pytest.raises(ManifestError, match=reason) as caught:
        Manifest.open(table(corpus / "m.jsonl", line))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_of_any_system(corpus, end, encoding):
    lines = ["path,word", 'audio/a.wav,"yes, or ""no"""', "audio/b.flac,é 漢", ""]
    (corpus / "m.csv").write_bytes(end.join(lines).encode(encoding))
    assert Manifest.open(corpus / "m.csv").column("word") == ['yes, or "no"', "é 漢"]


def test_labels_of_odd_types(corpus):
    """Whatever Parquet holds can be opened, hashed, and saved with its run; equal content has equal hashes."""
    columns = {
        "when": pa.array([datetime(2020, 1, 2)]),
        "day": pa.array([date(2020, 1, 2)]),
        "wait": pa.array([timedelta(seconds=3)]),
        "price": pa.array([Decimal("1.50")]),
        "half": pa.array([np.float16(0.5)]),
        "raw": pa.array([b"\xff"]),
        "word": pa.array(["x"]).dictionary_encode(),
        "long": pa.array(["x"], pa.large_string()),
        "view": pa.array(["x"], pa.string_view()),
        "raw view": pa.array([b"x"], pa.binary_view()),
        "list": pa.array([["a", None]]),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "record": pa.array([{"a": 1}]),
        "nothing": pa.nulls(1),
        "large": pa.array([2**63], pa.uint64()),
    }
    pq.write_table(pa.table({"path": ["audio/a.wav"], **columns}), corpus / "odd.parquet")
    manifest = Manifest.open(corpus / "odd.parquet")
    assert manifest.labels == list(columns)
    manifest.save(corpus / "m.parquet")
    again = Manifest.open(corpus / "m.parquet")
    assert again.content_hash() == manifest.content_hash()
    assert again.row(0) == manifest.row(0)
    for name in columns:
        assert again.with_column(name, ["other"]).content_hash() != manifest.content_hash()


def test_parquet_that_makes_no_sense(corpus):
    interval = pa.struct([("start", pa.float64()), ("end", pa.float64()), ("label", pa.string())])
    bad_text = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff"))
    for name, column, reason in (
        ("phones", pa.array([[None]], pa.list_(interval)), "'phones' holds intervals that are none"),
        ("word", bad_text, "cannot be read as parquet .*UTF8"),
        ("start_s", pa.array([timedelta(seconds=1)]), "'start_s' must hold seconds"),
    ):
        pq.write_table(pa.table({"path": ["audio/a.wav"], name: column}), corpus / "m.parquet")
        with pytest.raises(ManifestError, match=reason):
            Manifest.open(corpus / "m.parquet")
    saved = Manifest.open(corpus / "audio")
    saved.save(corpus / "m.parquet")
    metadata = pq.read_schema(corpus / "m.parquet").metadata
    for table_, reason in (
        (saved.table.drop_columns(["duration_s"]), "'duration_s' is missing"),
        (saved.table.set_column(2, "start_s", [["soon"] * 3]), "'start_s' is missing or not double"),
    ):
        pq.write_table(table_.replace_schema_metadata(metadata), corpus / "m.parquet")
        with pytest.raises(ManifestError, match=reason):
            Manifest.open(corpus / "m.parquet")
    with pytest.raises(ManifestError, match="cannot be written"):
        Manifest.open(table(corpus / "m.jsonl", '{"path": "audio/a.wav", "x": {}}')).save(corpus / "n.parquet")


def test_overlapping_intervals_are_kept_by_start_then_end(corpus):
    rows = [[0.5, 0.9, "c"], [0, 1, "b"], [0.5, 0.6, "d"], [0, 0.2, "a"]]
    manifest = Manifest.open(table(corpus / "m.jsonl", json.dumps({"path": "audio/a.wav", "x": rows})))
    assert [item["label"] for item in manifest.column("x")[0]] == ["a", "b", "d", "c"]


def test_other_files_are_refused(corpus):
    with pytest.raises(ManifestError, match="expected a folder"):
        Manifest.open(table(corpus / "m.xlsx", "x"))
    for encoding in ("latin-1", "utf-16", "utf-32"):
        (corpus / "m.csv").write_bytes("path,name\naudio/a.wav,é\n".encode(encoding))
        with pytest.raises(ManifestError, match="cannot be read as csv"):
            Manifest.open(corpus / "m.csv")
    with pytest.raises(ManifestError, match="cannot be read as parquet"):
        Manifest.open(table(corpus / "m.parquet", "PAR1 or so"))


def test_saved_and_opened_without_looking_at_the_files(corpus):
    rows = '{"path": "audio/a.wav", "tags": ["x", "y"], "phones": [[0, 1, "a"]], "nothing": null}'
    manifest = Manifest.open(table(corpus / "m.jsonl", rows))
    manifest.save(corpus / "m.parquet")
    (corpus / "audio" / "a.wav").unlink()
    again = Manifest.open(corpus / "m.parquet")
    assert again.row(0) == manifest.row(0)
    assert again.content_hash() == manifest.content_hash()
    described = pq.read_schema(corpus / "m.parquet").metadata
    assert described[b"auricle_manifest"] == b"1"
    newer = manifest.table.replace_schema_metadata({b"auricle_manifest": b"2"})
    pq.write_table(newer, corpus / "newer.parquet")
    with pytest.raises(ManifestError, match=r"newer auricle \(format 2"):
        Manifest.open(corpus / "newer.parquet")
    manifest.save(corpus / "new" / "folder" / "m.parquet")
    assert len(Manifest.open(corpus / "new" / "folder" / "m.parquet")) == 1
    with pytest.raises(ManifestError, match="cannot be written"):
        manifest.save(corpus / "newer.parquet" / "m.parquet")  # a file is no folder


def test_the_content_hash_sees_content_and_not_place(corpus):
    labels = table(corpus / "m.csv", "path,speaker\naudio/a.wav,x\naudio/b.flac,\n")
    first = Manifest.open(labels)
    moved = corpus.parent / f"{corpus.name}-moved"
    corpus.rename(moved)
    assert Manifest.open(moved / "m.csv").content_hash() == first.content_hash()
    changed = [
        first.select([0]),
        first.select([1, 0]),
        first.with_column("speaker", ["x", "y"]),
        first.with_column("speaker", ["x", ""]),
        first.with_column("other", [1, 2]),
        Manifest(first.table.rename_columns([*first.table.column_names[:-1], "voice"])),
        Manifest(first.table.set_column(2, "start_s", [[0.25, 0.0]])),
    ]
    assert len({first.content_hash(), *(manifest.content_hash() for manifest in changed)}) == len(changed) + 1


def many(n):
    return Manifest(
        pa.table(
            {
                "clip_id": [f"clip{index}" for index in range(n)],
                "path": [f"/corpus/clip{index}.wav" for index in range(n)],
                "start_s": np.zeros(n),
                "duration_s": 1.0 + np.arange(n) % 7,
                "sample_rate": np.full(n, 16_000),
                "speaker": [f"s{index % 10}" for index in range(n)],
            }
        )
    )


def test_a_large_manifest_is_mapped_and_not_held(tmp_path, monkeypatch):
    manifest = many(200_000)
    manifest.save(tmp_path / "m.parquet")
    monkeypatch.setattr(module, "LARGE", 1 << 20)
    before = pa.total_allocated_bytes()
    opened = Manifest.open(tmp_path / "m.parquet")
    rows = np.random.default_rng(0).permutation(200_000)[:150_000]
    selected = opened.select(rows)
    assert pa.total_allocated_bytes() - before < manifest.table.nbytes / 10
    assert opened.table.equals(manifest.table)
    assert opened.content_hash() == manifest.content_hash()
    assert selected.column("clip_id") == [f"clip{row}" for row in rows]
    assert selected.durations.tolist() == (1.0 + rows % 7).tolist()


@given(st.lists(st.integers(0, 19), max_size=30))
def test_select_takes_rows_in_order(rows):
    manifest = many(20)
    assert manifest.select(rows).column("clip_id") == [f"clip{row}" for row in rows]
    mask = np.isin(np.arange(20), rows)
    assert manifest.select(mask).column("clip_id") == [f"clip{row}" for row in sorted(set(rows))]
