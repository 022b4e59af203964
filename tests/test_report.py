"""The page is checked against the folders it was made from, with an HTML parser of the standard library."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from safetensors.numpy import save_file

from auricle.errors import AuricleError
from auricle.evaluation.results import Result, write_result
from auricle.report.build import build_report

RATE = 8000
HOSTILE = "</script><img src=x onerror=alert(1)>"


# ----------------------------------------------------------------------------------------- a synthetic run and results


def write_run(folder: Path, lines: Sequence[dict[str, Any]] | None = None, pictures: int = 3) -> Path:
    """A run folder with logs, pictures, clips and weights."""
    from matplotlib.image import imsave

    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    config = "format: 1\nauricle: 0.1.0\nmethod: mockingjay\npreset: mockingjay-tiny\ntrain:\n  steps: 400\n"
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines or log_lines()))
    for index in range(pictures):
        imsave(folder / "pictures" / f"step-{100 * (index + 1):08d}.png", rng.random((60, 200)), cmap="magma")
    pq.write_table(pa.table({"clip_id": ["a", "b"], "duration_s": [1800.0, 5400.0]}), folder / "manifest.parquet")
    checkpoint = folder / "checkpoints" / "step-00000400"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    save_file({"w": np.zeros((30, 4), np.float32), "b": np.zeros(5, np.float32)}, checkpoint / "model.safetensors")
    return folder


def log_lines() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    lines: list[dict[str, Any]] = [{"step": 0, "split": "session", "format": 1, "auricle": "0.1.0", "device": "cpu"}]
    for step in range(10, 401, 10):
        loss = 0.6 + 0.8 * np.exp(-step / 90) + 0.02 * rng.standard_normal()
        rate = 5e-4 * min(step / 50, 1 - (step - 50) / 350)
        train = {"loss": round(loss, 5), "lr": rate, "audio_s": 50.0 * step, "audio_s_per_s": 220 + rng.normal(0, 9)}
        lines.append({"step": step, "split": "train", **train, "skipped": 2})
        if step % 50 == 0:
            held = {"loss": round(0.62 + 0.8 * np.exp(-step / 90), 5), "trivial": 0.913}
            lines.append({"step": step, "split": "valid", **held})
    lines.append({"step": 400, "split": "alarm", "name": "throughput", "message": "fell to half of its best"})
    return lines


def write_clips(folder: Path, labels: Sequence[str], seconds: float = 0.4, suffix: str = ".wav") -> list[str]:
    """Recordings of a tone each, its pitch given by the label."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, label in enumerate(labels):
        time = np.arange(round(seconds * RATE)) / RATE
        noise = np.random.default_rng(index).normal(0, 0.05, len(time))
        paths.append(str(folder / f"clip{index:03d}{suffix}"))
        soundfile.write(paths[-1], 0.4 * np.sin(2 * np.pi * (250 + 90 * (ord(label[0]) % 9)) * time) + noise, RATE)
    return paths


def write_scores(
    folder: Path, encoder: str, right: Sequence[bool], targets: Sequence[str], paths: Sequence[str], **changes: Any
) -> Result:
    """The result of an encoder that is `right` where told, on clips of 0.4 s."""
    rng = np.random.default_rng(len(encoder))
    classes = sorted(set(targets))
    wrong = {name: classes[(place + 1) % len(classes)] for place, name in enumerate(classes)}
    values: dict[str, Any] = {
        "encoder": encoder, "fingerprint": f"{crc32(encoder.encode()):08x}", "task": "tones", "protocol": "auricle",
        "version": 1, "kind": "classes", "level": "clip", "target": "pitch", "classes": classes, "metric": "accuracy",
        "score": float(np.mean(right)), "low": float(np.mean(right)) - 0.0611, "high": float(np.mean(right)) + 0.0433,
        "seeds": [float(np.mean(right))], "dev": 0.5,
        "chosen": [{"head": "linear", "layer": 1, "lr": 1e-3, "dev": 0.5}],
        "grid": [], "chance": 1 / len(classes), "split": "column split", "split_hash": "5e1f", "unit": "clip",
        "units": len(targets), "n_train": 99, "n_dev": 9, "n_test": len(targets), "skipped": 0, "transductive": False,
        "seconds_encode": 1.0, "seconds_probe": 2.0, "settings": "c0ffee", "versions": {"torch": "2.13"},
    }  # fmt: skip
    values |= changes
    centre = {name: 4 * rng.standard_normal(2) for name in classes}
    places = np.array([centre[target] + rng.standard_normal(2) for target in targets])
    table = pa.table(
        {
            "clip_id": [f"{Path(path).stem}" for path in paths],
            "path": list(paths),
            "start_s": [0.0] * len(paths),
            "duration_s": [soundfile.info(path).duration if Path(path).exists() else 1.0 for path in paths],
            "split": ["test"] * len(paths),
            "unit": [f"{index}" for index in range(len(paths))],
            "target": list(targets),
            "prediction": [target if hit else wrong[target] for target, hit in zip(targets, right, strict=True)],
            "correct": np.array(right, float),
            "total": np.ones(len(paths)),
            "map_x": places[:, 0],
            "map_y": places[:, 1],
        }
    )
    return write_result(Result.parse(values), table, folder)


def write_tree(folder: Path) -> tuple[Path, Path]:
    """A run, and results of it and of two baselines on 40 clips of four pitches."""
    targets = [name for name in ("alto", "bass", "cello", "drum") for _ in range(10)]
    paths = write_clips(folder / "audio", targets)
    run, results = write_run(folder / "mine"), folder / "results"
    for encoder, mistakes in ((str(run), 2), ("fbank", 18), ("mfcc", 3)):
        write_scores(results, encoder, [index >= mistakes for index in range(40)], targets, paths)
    return run, results


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, Path]:
    return write_tree(tmp_path)


class Page(HTMLParser):
    """What a browser would find: elements, their text, and the data of the script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.inside = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.text = " ".join(self.text.split())
        self.data = json.loads(self.scripts["data"])
        self.sounds = json.loads(self.scripts["sounds"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = (dict(attrs).get("id") or "code") if tag == "script" else tag if tag == "style" else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data
        else:
            self.text += data + " "


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tree that tests only read, and the page of it."""
    folder = tmp_path_factory.mktemp("intact")
    build_report(write_tree(folder), folder / "out" / "report.html")
    return folder


@pytest.fixture(scope="module")
def page(intact: Path) -> Page:
    return Page(intact / "out" / "report.html")


# ------------------------------------------------------------------------------------------------------- what it shows


def test_every_score_and_interval_is_on_the_page(page: Page) -> None:
    for score, low, high in (("95.0", "88.9", "99.3"), ("55.0", "48.9", "59.3"), ("92.5", "86.4", "96.8")):
        assert f"{score} {low} – {high}" in page.text
    assert "chance 25.0" in page.text


def test_best_and_tie_are_marked_by_the_paired_comparison(page: Page) -> None:
    rows = re.findall(
        r"(mine|fbank|mfcc) (best|tie)? ?(\d\d\.\d)", page.text.split("accuracy in %")[1].split("chance")[0]
    )
    assert rows == [("mine", "best", "95.0"), ("fbank", "", "55.0"), ("mfcc", "tie", "92.5")]


def test_whiskers_stand_where_the_numbers_are(page: Page) -> None:
    axis = [float(tick) for tick in re.findall(r"<text x=\"[\d.]+%\" y=\"13\"[^>]*>([\d.]+)<", page.html)]
    first, last = axis[0], axis[-1]
    dots = [float(str(attrs["cx"]).rstrip("%")) for tag, attrs in page.tags if tag == "circle"]
    assert [first + dot / 100 * (last - first) for dot in dots] == pytest.approx([95.0, 55.0, 92.5], abs=0.02)
    spans = [attrs for tag, attrs in page.tags if tag == "line" and str(attrs["class"]).startswith("span")]
    lows = [first + float(str(attrs["x1"]).rstrip("%")) / 100 * (last - first) for attrs in spans]
    assert lows == pytest.approx([88.89, 48.89, 86.39], abs=0.02)


def test_headline_tells_who_wins(page: Page) -> None:
    assert "The pre‑trained encoder mine beats log‑mel on tones." in page.text
    assert "Best scores: mine on tones." in page.text


def test_headline_says_when_log_mel_is_not_beaten(tree: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = tree
    targets = ["a", "b"] * 20
    paths = write_clips(tmp_path / "more", targets)
    for task, ours, theirs in (("even", 8, 8), ("worse", 30, 2)):
        write_scores(tmp_path / "r", str(run), [i >= ours for i in range(40)], targets, paths, task=task)
        write_scores(tmp_path / "r", "fbank", [i >= theirs for i in range(40)], targets, paths, task=task)
    text = Page(build_report([tmp_path / "r"], tmp_path / "x.html")).text
    assert "mine does not beat log‑mel on any task: it ties with it on even and loses on worse." in text


def test_two_pretrained_encoders_are_set_against_each_other(tmp_path: Path) -> None:
    targets = ["a", "b"] * 20
    paths = write_clips(tmp_path / "audio", targets)
    for encoder, mistakes in (("mine", 2), ("yours", 30)):
        write_scores(tmp_path / "r", encoder, [index >= mistakes for index in range(40)], targets, paths)
    assert "mine beats yours on tones." in Page(build_report([tmp_path / "r"], tmp_path / "x.html")).text
    write_scores(tmp_path / "r", "theirs", [True] * 40, targets, paths)
    assert "mine beats yours" not in Page(build_report([tmp_path / "r"], tmp_path / "x.html")).text


def test_of_many_encoders_the_best_is_told(tmp_path: Path) -> None:
    targets = ["a", "b"] * 20
    paths = write_clips(tmp_path / "audio", targets)
    for mistakes, encoder in enumerate(("fbank", "one", "two", "three", "four")):
        write_scores(tmp_path / "r", encoder, [index >= 8 * mistakes for index in range(40)], targets, paths)
    text = Page(build_report([tmp_path / "r"], tmp_path / "x.html")).text
    assert "fbank scores best on tones." in text
    assert "pre‑trained encoder" not in text


def test_encoders_that_are_best_equally_often_are_told_together(tmp_path: Path) -> None:
    targets = ["a", "b"] * 20
    paths = write_clips(tmp_path / "audio", targets)
    for encoder, task, mistakes in (("one", "x", 0), ("two", "x", 9), ("one", "y", 9), ("two", "y", 0)):
        right = [index >= mistakes for index in range(40)]
        write_scores(tmp_path / "r", encoder, right, targets, paths, task=task)
    assert (
        "one and two each score best on 1 of 2 tasks." in Page(build_report([tmp_path / "r"], tmp_path / "x.html")).text
    )


def test_errors_rank_the_other_way(tmp_path: Path) -> None:
    targets = ["a", "b"] * 20
    paths = write_clips(tmp_path / "audio", targets)
    for encoder, mistakes in (("mine", 2), ("fbank", 30)):
        right = [index >= mistakes for index in range(40)]
        error = {"metric": "error_rate", "score": mistakes / 40, "low": mistakes / 50, "high": mistakes / 39}
        write_scores(tmp_path / "r", encoder, right, targets, paths, **error)
    text = Page(build_report([tmp_path / "r"], tmp_path / "x.html")).text
    assert "mine beats log‑mel on tones" in text
    assert "mine best 5.0" in text


def test_curves_are_the_lines_of_the_log(page: Page, intact: Path) -> None:
    lines = [json.loads(line) for line in (intact / "mine" / "metrics.jsonl").read_text().splitlines()]
    for split, keys in (("train", ("step", "loss", "lr", "audio_s_per_s")), ("valid", ("step", "loss", "trivial"))):
        for key in keys:
            expected = [line[key] for line in lines if line["split"] == split]
            assert page.data["runs"][0][split][key] == expected


def test_long_logs_are_thinned_to_lines_of_the_log(tmp_path: Path) -> None:
    lines = [{"step": step, "split": "train", "loss": 1 / step, "lr": 1e-4} for step in range(1, 9001)]
    run = write_run(tmp_path / "long", lines, pictures=0)
    train = Page(build_report([run], tmp_path / "x.html")).data["runs"][0]["train"]
    assert len(train["step"]) <= 2000
    assert train["loss"] == [1 / step for step in train["step"]]
    assert train["audio_s_per_s"] == [None] * len(train["step"])


def test_run_facts_and_alarms(page: Page) -> None:
    for fact in ("Recordings 2 h", "Parameters 125 encoder", "Audio heard 5.56 h", "1 alarm Step 400: fell to half"):
        assert fact in page.text
    assert "% below trivial (0.913)" in page.text


def test_pictures_are_inlined_unchanged(page: Page, intact: Path) -> None:
    pictures = page.data["runs"][0]["pictures"]
    assert [picture["step"] for picture in pictures] == [100, 200, 300]
    decoded = b64decode(pictures[-1]["uri"].partition(",")[2])
    assert decoded == (intact / "mine" / "pictures" / "step-00000300.png").read_bytes()
    shown = next(attrs["src"] for tag, attrs in page.tags if tag == "img")
    assert shown == pictures[-1]["uri"]


def test_the_newest_sounds_of_a_run_play(tmp_path: Path) -> None:
    run = write_run(tmp_path / "separating")
    (run / "sounds").mkdir()
    for step, name in ((100, "old"), (200, "talker-1"), (200, "mixture")):
        soundfile.write(run / "sounds" / f"step-{step:08d}-{name}.flac", 0.1 * np.ones(800), 8000)
    page = Page(build_report([run], tmp_path / "x.html"))
    sounds = [attrs["src"] for tag, attrs in page.tags if tag == "audio" and attrs.get("src")]
    files = [run / "sounds" / f"step-00000200-{name}.flac" for name in ("mixture", "talker-1")]
    assert [b64decode(sound.partition(",")[2]) for sound in sounds] == [path.read_bytes() for path in files]
    assert "mixture talker-1" in page.text


# ------------------------------------------------------------------------------------------------------ what it plays


def test_map_has_every_clip_where_the_encoder_put_it(page: Page, intact: Path) -> None:
    place = page.data["maps"][0]
    views = {view["encoder"]: view for view in place["views"]}
    for file in (intact / "results").rglob("*.parquet"):
        view = views[json.loads(file.with_suffix(".json").read_text())["encoder"].rpartition("/")[2]]
        rows = {row["clip_id"]: row for row in pq.read_table(file).to_pylist()}
        assert sorted(place["id"]) == sorted(rows)
        for index, clip in enumerate(place["id"]):
            assert view["x"][index] == pytest.approx(rows[clip]["map_x"], rel=1e-3)
            assert view["prediction"][index] == rows[clip]["prediction"]
            assert place["labels"][place["label"][index]] == rows[clip]["target"]


def test_sounds_are_those_of_their_clips(page: Page, intact: Path) -> None:
    place = page.data["maps"][0]
    for clip, sound in zip(place["id"], place["audio"], strict=True):
        kind, _, encoded = page.sounds[sound].partition(",")
        assert kind == "data:audio/ogg;base64"
        heard, rate = soundfile.read(BytesIO(b64decode(encoded)))
        there, _ = soundfile.read(intact / "audio" / f"{clip}.wav")
        assert rate == RATE
        assert len(heard) == len(there)
        assert np.corrcoef(heard, there)[0, 1] > 0.95  # Vorbis loses a little; another clip's noise would lose all


def test_small_compressed_files_are_inlined_as_they_are(tmp_path: Path) -> None:
    targets = ["a", "b"] * 5
    paths = write_clips(tmp_path / "audio", targets, suffix=".flac")
    write_scores(tmp_path / "r", "fbank", [True] * 10, targets, paths)
    page = Page(build_report([tmp_path / "r"], tmp_path / "x.html"))
    assert {b64decode(uri.partition(",")[2]) for uri in page.sounds} == {Path(path).read_bytes() for path in paths}
    assert all(uri.startswith("data:audio/flac;") for uri in page.sounds)


def test_a_segment_is_cut_out_of_its_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE)
    soundfile.write(tmp_path / "long.flac", noise, RATE)
    result = write_scores(tmp_path / "r", "fbank", [True] * 4, ["a", "b"] * 2, [str(tmp_path / "long.flac")] * 4)
    assert result.file
    table = pq.read_table(result.file.with_suffix(".parquet")).to_pydict()
    table |= {"clip_id": ["0", "1", "2", "3"], "start_s": [0.0, 1.0, 2.0, 3.0], "duration_s": [1.0] * 4}
    pq.write_table(pa.table(table), result.file.with_suffix(".parquet"))
    page = Page(build_report([tmp_path / "r"], tmp_path / "x.html"))
    place = page.data["maps"][0]
    for clip, sound in zip(place["id"], place["audio"], strict=True):
        heard, _ = soundfile.read(BytesIO(b64decode(page.sounds[sound].partition(",")[2])))
        there = noise[int(clip) * RATE : (int(clip) + 1) * RATE]
        assert np.corrcoef(heard, there)[0, 1] > 0.8


def test_page_stays_within_its_budget(tmp_path: Path) -> None:
    targets = [str(index % 7) for index in range(30)]
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    paths = []
    for index in range(30):  # white noise at full bandwidth: nothing compresses it
        small = index % 10 > 0  # the others are long and have to be transcoded
        paths.append(str(tmp_path / "audio" / f"{index}.{'flac' if small else 'wav'}"))
        soundfile.write(paths[-1], rng.uniform(-0.9, 0.9, round(5.8 * RATE) if small else 60 * RATE), RATE)
    many = [re.sub(r"\.", f".{copy}.", path) for copy in range(8) for path in paths]
    for copy in many:
        Path(copy).symlink_to(re.sub(r"\.\d\.", ".", copy))
    write_scores(tmp_path / "r", "fbank", [True] * len(many), targets * 8, many)
    output = build_report([tmp_path / "r"], tmp_path / "x.html")
    page = Page(output)
    assert output.stat().st_size <= 15_000_000
    playable = sum(sound is not None for sound in page.data["maps"][0]["audio"])
    assert 20 < playable == len(page.sounds) < 150
    assert f"{playable} of 240 points can be played" in page.text
    labels = [
        label
        for label, sound in zip(*(page.data["maps"][0][key] for key in ("label", "audio")), strict=True)
        if sound is not None
    ]
    assert np.ptp(np.bincount(labels)) <= 1  # evenly over labels


def test_missing_recordings_are_said_and_stay_silent(tree: tuple[Path, Path], tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / "audio" / f"clip{index:03d}.wav").unlink()
    page = Page(build_report(tree, tmp_path / "x.html"))
    assert "35 of 40 points can be played" in page.text
    assert "5 recordings could not be read" in page.text


def test_many_labels_share_an_entry_and_values_become_ranges(tmp_path: Path) -> None:
    targets = [f"label{index:02d}" for index in range(50)] + ["label00", "label01"]
    paths = [str(tmp_path / f"{index}.wav") for index in range(52)]
    write_scores(tmp_path / "r", "fbank", [True] * 52, targets, paths)
    place = Page(build_report([tmp_path / "r"], tmp_path / "x.html")).data["maps"][0]
    assert len(place["labels"]) == 32
    assert {"label00", "label01", "all other labels"} <= set(place["labels"])
    numbers = [f"{index}.5" for index in range(60)]
    paths = [str(tmp_path / f"{index}.wav") for index in range(60)]
    write_scores(tmp_path / "v", "fbank", [True] * 60, numbers, paths, kind="values", metric="r2", score=0.5)
    place = Page(build_report([tmp_path / "v"], tmp_path / "x.html")).data["maps"][0]
    assert place["ordered"]
    for target, label in zip(place["target"], place["label"], strict=True):
        low, high = map(float, place["labels"][label].split(" to "))
        assert low - 0.1 <= float(target) <= high + 0.1
    pairs = [f"{index / 7};{index / 3}" for index in range(60)]
    write_scores(tmp_path / "w", "fbank", [True] * 60, pairs, paths, kind="values", metric="r2", score=0.5)
    place = Page(build_report([tmp_path / "w"], tmp_path / "x.html")).data["maps"][0]
    told = {f"{index / 7:.4g}; {index / 3:.4g}" for index in range(60)}
    assert set(place["target"]) == set(place["views"][0]["prediction"]) == told


# --------------------------------------------------------------------------------------------- safe, whole, and robust


def test_page_is_self_contained(page: Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "srcset", "action", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert "url(" not in page.scripts["style"]
    assert "@import" not in page.scripts["style"]
    assert "sourceMappingURL" not in page.html
    policy = next(str(attrs["content"]) for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_hostile_names_stay_inert(tmp_path: Path) -> None:
    targets = [HOSTILE, "b"] * 6
    folder = tmp_path / "<img src=x onerror=alert(2)>"
    paths = write_clips(folder / "audio", targets)
    config = {
        "target": HOSTILE,
        "split": HOSTILE,
        "versions": {HOSTILE: HOSTILE},
        "unit": HOSTILE,
        "task": "<script>alert(3)",
    }
    for encoder in (HOSTILE, "fbank"):
        write_scores(folder / "r", encoder, [True] * 12, targets, paths, **config)
    lines = [*log_lines(), {"step": 400, "split": "alarm", "name": "x", "message": HOSTILE}]
    page = Page(build_report([write_run(folder / "run", lines), folder / "r"], tmp_path / "x.html"))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "img"] == ["picture-0"]
    assert sum(tag == "script" for tag, _ in page.tags) == 4
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.data["maps"][0]["labels"]
    assert "<script>alert(3)" in page.text


def test_absent_parts_are_said(tree: tuple[Path, Path], tmp_path: Path) -> None:
    run, results = tree
    only_run = Page(build_report([run], tmp_path / "x.html"))
    assert "After 400 steps mine has a held‑out loss of 0.629, 31% below the trivial 0.913." in only_run.text
    assert "No results folder was given" in only_run.text
    assert "nothing to listen to" in only_run.text
    assert "No run folder was given" in Page(build_report([results], tmp_path / "y.html")).text
    (run / "metrics.jsonl").unlink()
    for picture in (run / "pictures").iterdir():
        picture.unlink()
    bare = Page(build_report([run], tmp_path / "z.html")).text
    assert "holds no training steps" in bare
    assert "no pictures" in bare


def test_frame_tasks_have_scores_without_a_map(tmp_path: Path) -> None:
    result = write_scores(tmp_path / "r", "fbank", [True] * 4, ["a", "b"] * 2, ["x", "y", "z", "w"], level="frame")
    assert result.file
    table = pq.read_table(result.file.with_suffix(".parquet")).drop_columns(["map_x", "map_y"])
    pq.write_table(table, result.file.with_suffix(".parquet"))
    page = Page(build_report([tmp_path / "r"], tmp_path / "x.html"))
    assert "100.0" in page.text
    assert page.data["maps"] == []


def test_the_same_folders_give_the_same_page(tree: tuple[Path, Path], tmp_path: Path) -> None:
    pages = [build_report(tree, tmp_path / f"{name}.html").read_bytes() for name in "ab"]
    shorter = [re.sub(rb'id="sounds">.*?<', b"<", page) for page in pages]  # Ogg streams carry a random serial number
    assert shorter[0] == shorter[1]


def test_a_log_being_written_is_read_up_to_its_last_whole_line(tree: tuple[Path, Path], tmp_path: Path) -> None:
    with open(tree[0] / "metrics.jsonl", "a") as file:
        file.write('{"step": 410, "split": "tra')
    assert Page(build_report(tree, tmp_path / "x.html")).data["runs"][0]["train"]["step"][-1] == 400


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.jsonl", lambda run, _: (run / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')),
        ("metrics.jsonl", lambda run, _: (run / "metrics.jsonl").write_text('["step"]\n')),
        ("config.yaml", lambda run, _: (run / "config.yaml").write_text("- a list")),
        ("manifest.parquet", lambda run, _: _cut(run / "manifest.parquet")),
        ("model.safetensors", lambda run, _: _cut(next(run.rglob("model.safetensors")))),
        ("tones@auricle-v1.json", lambda _, results: _cut(next(results.rglob("*.json")))),
        ("tones@auricle-v1.parquet", lambda _, results: _cut(next(results.rglob("*.parquet")))),
        ("tones@auricle-v1.parquet", lambda _, results: next(results.rglob("*.parquet")).unlink()),
        (
            "tones@auricle-v1.parquet",
            lambda _, results: pq.write_table(pa.table({"clip_id": ["a"]}), next(results.rglob("*.parquet"))),
        ),
    ],
)
def test_damage_is_one_line_naming_the_file(
    tree: tuple[Path, Path], tmp_path: Path, name: str, damage: Callable[[Path, Path], object]
) -> None:
    damage(*tree)
    with pytest.raises(AuricleError, match=re.escape(name)) as error:
        build_report(tree, tmp_path / "x.html")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x.html").exists()


def test_what_is_no_input_and_what_is_no_output(tree: tuple[Path, Path], tmp_path: Path) -> None:
    for folders in ([], [tmp_path / "nowhere"], [tmp_path / "audio"]):
        with pytest.raises(AuricleError, match=r"nowhere|audio|name at least one"):
            build_report(folders, tmp_path / "x.html")
    with pytest.raises(AuricleError, match="cannot be written"):
        build_report(tree, tmp_path / "audio")
