"""What the page shows of music, of layers and of leaks, from planted results."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import mir_eval
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from test_report import Page, write_clips, write_scores

from auricle.errors import EvaluationError
from auricle.evaluation.beats import matched
from auricle.evaluation.music import circle_of_fifths
from auricle.report.build import build_report
from auricle.report.scores import metric_name

RATE = 8000


def change_predictions(result: Any, **columns: Any) -> None:
    """Replace or add columns of a result's table."""
    path = result.file.with_suffix(".parquet")
    pq.write_table(pa.table(pq.read_table(path).to_pydict() | columns), path)


def grid(best: Sequence[float], total: float | None = None) -> list[dict[str, Any]]:
    """A grid whose best dev score on each layer, and on their sum, is given; and a head that diverged."""
    rows = [
        {"head": "mlp-512", "layer": layer, "lr": lr, "dev": dev - 100 * (lr - 1e-3)}
        for layer, dev in enumerate(best)
        for lr in (1e-3, 2e-3)
    ]
    rows.append({"head": "mlp-512", "layer": 0, "lr": 1e-2, "dev": None})
    if total is not None:
        rows.append({"head": "mlp-512", "layer": "sum", "lr": 1e-3, "dev": total})
    return rows


def write_keys(folder: Path, encoder: str, truth: Sequence[str], told: Sequence[str], **changes: Any) -> None:
    paths = [f"{index}.wav" for index in range(len(truth))]
    metric = {"task": "giantsteps-key", "metric": "weighted_key", **changes}
    result = write_scores(folder, encoder, [True] * len(truth), truth, paths, **metric)
    change_predictions(result, prediction=list(told))


def write_beats(
    folder: Path, encoder: str, paths: Sequence[str], late_s: Sequence[float], metric: str = "beat_f1_mean", **more: Any
) -> None:
    """Beats twice a second, each fourth a downbeat; the encoder is late by so much, and finds one more at 0.25 s."""
    task = {"task": "gtzan-beats", "level": "frame", "metric": metric, "classes": ["beat", "downbeat"]}
    result = write_scores(folder, encoder, [True] * len(paths), ["a", "b"] * (len(paths) // 2), paths, **(task | more))
    seconds = [soundfile.info(path).duration if Path(path).exists() else 8.0 for path in paths]
    beats = [np.arange(0.5, end, 0.5) for end in seconds]
    found = [np.sort(np.append(one + late, 0.25)) for one, late in zip(beats, late_s, strict=True)]
    change_predictions(
        result,
        correct=[1.0 - late for late in late_s],
        reference_s=[one.tolist() for one in beats],
        reference_downbeats_s=[one[::4].tolist() for one in beats],
        estimated_s=[one.tolist() for one in found],
        estimated_downbeats_s=[one[1::4].tolist() for one in found],
    )


def write_music(folder: Path, encoders: Sequence[str] = ("ours", "fbank"), suffix: str = "") -> Path:
    """Results of a task with layers, of keys, of beats (names with a `suffix`) and of one to three voices."""
    results, targets = folder / "results", ["a", "b"] * 6
    clips = write_clips(folder / "audio", targets)
    music = write_clips(folder / "music", ["a"] * 6, seconds=8.0)
    keys = circle_of_fifths()
    for number, encoder in enumerate(encoders):
        right = [index >= 2 * number for index in range(12)]
        layers = {"grid": grid([0.3, 0.6, 0.5], 0.55), "chosen": grid([0.3, 0.6])[2:3]} if number == 0 else {}
        oracle = {"oracle": {"value": 0.9876, "low": 0.9, "high": 1.0}}
        further = oracle | {"map": {"value": 0.4321, "low": 0.4, "high": 0.5}}
        write_scores(results, encoder, right, targets, clips, task="gtzan-genre" + suffix, further=further, **layers)
        write_keys(results, encoder, keys, keys[2 * number :] + keys[: 2 * number], task="giantsteps-key" + suffix)
        write_beats(
            results, encoder, music, [0.02 + 0.1 * number, 0.1, 0.0, 0.0, 0.2, 0.0], task="gtzan-beats" + suffix
        )
        for voices in (1, 2, 3):
            score = {"score": 0.9 / voices, "low": 0.8 / voices, "high": 1 / voices}
            write_scores(results, encoder, right, targets, clips, task=f"polyphony-pitch-{voices}", **score)
    return results


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("music")
    return Page(build_report([write_music(folder)], folder / "x.html"))


def test_layers_show_their_best_dev_score_and_the_chosen_one(page: Page) -> None:
    (chart,) = page.data["layers"]
    assert chart["task"] == "gtzan-genre"
    assert chart["curves"] == [
        {"encoder": 0, "layers": [0, 1, 2, "sum"], "dev": [30.0, 60.0, 50.0, 55.0], "chosen": [1]}
    ]
    assert page.data["encoders"] == ["ours", "fbank"]
    assert "These are no test scores" in page.text


def test_further_measures_are_told_and_the_best_on_test_is_no_score(page: Page) -> None:
    assert "best on test in % gtzan-genre 98.8 90.0 – 100.0 98.8" in page.text
    assert "mean average precision in % gtzan-genre 43.2 40.0 – 50.0" in page.text
    names = ("r2 valence", "downbeat_f1_mean by peaks", "beat_f1_marble", "min_dcf_0.01", "mean over folds")
    assert [metric_name(name) for name in names] == [
        "R² valence", "downbeat F1 by peaks", "beat F1, as MARBLE counts", "minDCF 0.01", "mean over folds",
    ]  # fmt: skip
    assert "selection on test and no score" in page.text


def test_leaks_and_supervision_are_marked(tmp_path: Path) -> None:
    told = {
        "heard": {"leaks": "test", "transductive": True},
        "near": {"leaks": "corpus", "supervision": "speaker"},
        "clean": {},
    }
    for encoder, changes in told.items():
        write_scores(tmp_path, encoder, [True, False] * 5, ["a", "b"] * 5, ["x"] * 10, **changes)
    text = Page(build_report([tmp_path], tmp_path / "x.html")).text
    assert "50.0 † 43.9" in text
    assert "50.0 ‡ 43.9" in text
    assert text.count("†") == text.count("‡") == 2  # the mark and its meaning
    assert "near supervision: speaker" in text
    write_scores(tmp_path / "other", "clean", [True, False] * 5, ["a", "b"] * 5, ["x"] * 10)
    clean = Page(build_report([tmp_path / "other"], tmp_path / "y.html")).text
    assert "†" not in clean
    assert "Further measures" not in clean


def test_voices_are_in_their_order_with_intervals(tmp_path: Path) -> None:
    for kind, voices in (("pitch", 3), ("pitch", 1), ("key", 2), ("pitch", 6)):
        score = {"score": 1 / voices, "low": 0.9 / voices, "high": 1.0, "chance": 0.1}
        write_scores(
            tmp_path, "ours", [True] * 4, ["a", "b"] * 2, ["x"] * 4, task=f"polyphony-{kind}-{voices}", **score
        )
    charts = {chart["kind"]: chart for chart in Page(build_report([tmp_path], tmp_path / "x.html")).data["polyphony"]}
    assert charts["pitch"]["voices"] == [1, 3, 6]
    (curve,) = charts["pitch"]["curves"]
    assert (curve["voices"], curve["score"]) == ([1, 3, 6], [100.0, 33.33, 16.67])
    assert (curve["low"], curve["high"]) == ([90.0, 30.0, 15.0], [100.0] * 3)
    assert charts["pitch"]["chance"] == [10.0] * 3
    assert charts["key"]["curves"][0]["voices"] == [2]


def test_keys_stand_where_they_lie_from_the_true_one(tmp_path: Path) -> None:
    pairs = {  # (true minor, told minor, fifths): told keys
        (0, 0, 0): ("Eb major", "D# major"),
        (0, 0, 1): ("C major", "G major"),
        (0, 0, 11): ("C major", "F major"),
        (0, 1, 0): ("C major", "A minor"),
        (0, 1, 9): ("C major", "C minor"),
        (1, 1, 1): ("A minor", "E minor"),
        (1, 0, 0): ("A minor", "C major"),
        (1, 0, 3): ("A minor", "A major"),
    }
    truth, told = zip(*pairs.values(), strict=True)
    write_keys(tmp_path, "ours", truth, told)
    (wheel,) = Page(build_report([tmp_path], tmp_path / "x.html")).data["keys"]
    counts = np.array(wheel["views"][0]["counts"])
    assert counts.shape == (2, 2, 12)
    assert {tuple(place) for place in np.argwhere(counts).tolist()} == set(pairs)
    assert counts.sum() == len(pairs)


def test_a_key_that_is_none_names_the_file(tmp_path: Path) -> None:
    write_keys(tmp_path, "ours", ["C major", "H major"], ["C major", "C major"])
    with pytest.raises(EvaluationError, match=r"giantsteps-key@auricle-v1\.json: .*H major"):
        build_report([tmp_path], tmp_path / "x.html")


def test_beats_are_drawn_as_they_were_matched(page: Page) -> None:
    (task,) = page.data["beats"]
    assert (task["what"], task["skip"]) == ("beat", 5.0)
    assert len(task["clips"]) == 4
    worst, best = task["clips"][0], task["clips"][-1]
    assert worst["id"] == "clip004"
    assert best["marks"] == [[k / 2, int(k % 4 == 1)] for k in range(1, 16)]
    assert [view["encoder"] for view in best["views"]] == ["ours", "fbank"]
    for view, late in zip(worst["views"], (0.2, 0.2), strict=True):
        assert not any(view["found"])
        assert view["marks"][:2] == [[0.25, 0], [0.5 + late, 1]]
    assert best["views"][0]["found"] == [True] * 15
    assert best["views"][0]["right"] == [False] + [True] * 15


def test_clips_that_count_for_nothing_have_no_beats_drawn(tmp_path: Path) -> None:
    paths = write_clips(tmp_path / "audio", ["a"] * 4, seconds=1.0)
    write_beats(tmp_path / "r", "ours", paths, [0.0] * 4)
    file = next((tmp_path / "r").rglob("*.parquet"))
    for total, drawn in (([1.0, 0.0, 0.0, 1.0], [["clip000", "clip003"]]), ([0.0] * 4, [])):
        pq.write_table(pa.table(pq.read_table(file).to_pydict() | {"total": total, "correct": total}), file)
        tasks = Page(build_report([tmp_path / "r"], tmp_path / "x.html")).data["beats"]
        assert [[clip["id"] for clip in task["clips"]] for task in tasks] == drawn


def test_downbeats_alone_are_drawn_where_they_are_scored(tmp_path: Path) -> None:
    paths = write_clips(tmp_path / "audio", ["a"] * 2, seconds=6.0)
    write_beats(tmp_path / "r", "ours", paths, [0.0, 0.0], metric="downbeat_f1_marble")
    (task,) = Page(build_report([tmp_path / "r"], tmp_path / "x.html")).data["beats"]
    assert (task["what"], task["skip"]) == ("downbeat", 0.0)
    assert task["clips"][0]["marks"] == [[0.5, 1], [2.5, 1], [4.5, 1]]
    assert task["clips"][0]["views"][0]["found"] == [True] * 3


def test_beats_play_over_the_waveform_of_their_clip(tmp_path: Path) -> None:
    clock = np.arange(30 * RATE) / RATE
    (tmp_path / "loud").mkdir()
    path = tmp_path / "loud" / "a.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 300 * clock) * (clock % 10 < 5), RATE)
    missing = str(tmp_path / "missing.wav")
    write_beats(tmp_path / "r", "ours", [str(path), missing], [0.0, 0.3])
    page = Page(build_report([tmp_path / "r"], tmp_path / "x.html"))
    clips = {clip["id"]: clip for clip in page.data["beats"][0]["clips"]}
    wave = np.array(clips["a"]["wave"]).reshape(4, -1)  # of the first 20 s
    assert wave[[0, 2], 5:-5].min() >= 90
    assert wave[[1, 3], 5:-5].max() <= 1
    heard, rate = soundfile.read(BytesIO(b64decode(page.sounds[clips["a"]["audio"]].partition(",")[2])))
    assert len(heard) == 20 * rate
    assert clips["a"]["length"] == 20.0
    assert max(time for time, _ in clips["a"]["marks"]) < 20
    assert (clips["missing"]["audio"], clips["missing"]["wave"]) == (None, [])


def test_sounds_of_beats_stay_within_their_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auricle.report.build.BEAT_BYTES", 100_000)
    paths = write_clips(tmp_path / "audio", ["a"] * 4, seconds=8.0)
    write_beats(tmp_path / "r", "ours", paths, [0.0] * 4)
    page = Page(build_report([tmp_path / "r"], tmp_path / "x.html"))
    assert 1 <= len(page.sounds) < 4
    assert sum(map(len, page.sounds)) <= 100_000
    assert [clip["audio"] for clip in page.data["beats"][0]["clips"]][: len(page.sounds)] == [*range(len(page.sounds))]


times = st.lists(st.integers(0, 60), unique=True).map(lambda ticks: np.sort(np.array(ticks, float)) * 0.03)


@given(times, times)
def test_matches_are_a_largest_matching(reference: np.ndarray, estimated: np.ndarray) -> None:
    found, right = matched(reference, estimated)
    assert found.sum() == right.sum() == len(mir_eval.util.match_events(reference, estimated, 0.07))
    assert (np.abs(reference[found] - estimated[right]) <= 0.07 + 1e-9).all()
