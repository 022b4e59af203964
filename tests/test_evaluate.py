"""Evaluation from files to tables, with an encoder that hears one thing only: how loud each frame is."""

import json
import re

import numpy as np
import pytest
import soundfile
from loudness import RATE, Loudness, manifest, run, write_clips

from auricle import cli
from auricle.data.manifest import Manifest
from auricle.errors import AuricleError, ConfigError, EvaluationError
from auricle.evaluation.answers import _drawn
from auricle.evaluation.metrics import scorer
from auricle.evaluation.prepare import frame_labels
from auricle.evaluation.results import read_results, table
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks import SUITES, TASKS, Task
from auricle.evaluation.tasks.custom import custom_task


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


def test_an_encoder_that_leaks_the_label_scores_one(audio, tmp_path):
    (result,) = run(Loudness(), manifest(audio), "loud", tmp_path, layers=(0, 1))
    assert (result.score, result.low, result.high) == (1, 1, 1)
    assert result.seeds == [1, 1, 1]
    assert result.chosen[0].layer == 1
    assert result.chance == pytest.approx(1 / 6)
    assert (result.n_train, result.n_dev, result.n_test, result.units) == (30, 12, 18, 18)
    assert "split" in result.split


def test_one_named_output_can_be_probed(audio, tmp_path):
    encoder = Loudness()
    encoder.outputs = {"noise": 0, "level": 1}
    (result,) = run(encoder, manifest(audio), "loud", tmp_path, layers="level")
    assert result.score == 1
    assert {trial.layer for trial in result.grid} == {1}
    (result,) = run(encoder, manifest(audio), "loud", tmp_path, layers="noise")
    assert {trial.layer for trial in result.grid} == {0}
    with pytest.raises(ConfigError, match="did you mean 'level'"):
        run(encoder, manifest(audio), "loud", tmp_path, layers="levell")


def test_shuffled_labels_score_chance_within_the_interval(audio, tmp_path):
    labels = np.random.default_rng(1).permutation([f"level {clip % 3}" for clip in range(60)])
    (result,) = run(Loudness(), manifest(audio, loud=labels), "loud", tmp_path)
    assert result.low <= 1 / 3 <= result.high
    assert result.score < 0.7


def test_selection_never_sees_test(audio, tmp_path):
    noisy = np.array([f"level {(clip + (clip % 7 == 0)) % 6}" for clip in range(60)])
    other = np.concatenate([noisy[:42], np.random.default_rng(2).permutation(noisy[42:])])
    (one,) = run(Loudness(), manifest(audio, loud=noisy), "loud", tmp_path / "one", heads=("linear", "mlp"))
    (two,) = run(Loudness(), manifest(audio, loud=other), "loud", tmp_path / "two", heads=("linear", "mlp"))
    assert one.score != two.score
    assert (one.chosen, one.grid, one.dev) == (two.chosen, two.grid, two.dev)
    answers = [result.predictions().sort_by("clip_id")["prediction"].to_pylist() for result in (one, two)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("values", "kind", "metric"),
    [
        ([["soft", "even"][clip % 2 :] if clip % 6 < 3 else ["loud"] for clip in range(60)], "labels", "map"),
        (["a;b" if clip % 6 < 3 else "c" for clip in range(60)], "labels", "map"),
        ([0.5 * (clip % 6) for clip in range(60)], "values", "r2"),
        ([clip % 6 for clip in range(60)], "classes", "accuracy"),
        ([float(clip % 6) for clip in range(60)], "classes", "accuracy"),
        ([clip % 6 < 3 for clip in range(60)], "classes", "accuracy"),
    ],
)
def test_kind_and_metric_follow_the_column_and_results_survive_the_disk(audio, tmp_path, values, kind, metric):
    (result,) = run(Loudness(), manifest(audio, loud=values), "loud", tmp_path, lrs=(1e-2, 1e-1))
    assert (result.kind, result.metric, result.level) == (kind, metric, "clip")
    if values[0] != ["soft", "even"]:  # `even` cannot be told by loudness
        assert result.score > 0.99
    (back,) = read_results(tmp_path)
    assert back == result
    again = scorer(back.metric, back.outcomes())(np.ones((1, back.units)))[0]
    assert again == pytest.approx(result.score, abs=1e-9)
    assert result.score == pytest.approx(np.mean(result.seeds))
    rows = back.predictions().to_pylist()
    assert {row["split"] for row in rows} == {"dev", "test"}
    assert len(rows) == 30
    assert all(row["map_x"] is not None for row in rows)


def test_a_metric_decides_between_kinds(audio):
    ages = manifest(audio, loud=list(range(60)))
    assert custom_task(ages, "loud", name="x").kind == "values"
    assert custom_task(ages, "loud", name="x", metric="balanced_accuracy").kind == "classes"


def test_folds_test_every_clip_once(audio, tmp_path):
    data = manifest(audio, split=None, fold=[clip // 6 % 5 for clip in range(60)])
    (result,) = run(Loudness(), data, "loud", tmp_path, lrs=(1e-2,))
    rows = result.predictions().to_pylist()
    assert sorted(row["clip_id"] for row in rows) == sorted(data.column("clip_id"))
    assert {row["split"] for row in rows} == {"test"}
    assert len(result.chosen) == 5
    assert result.score == 1


def test_units_are_resampled_where_named(audio, tmp_path):
    speakers = [f"s{clip % 3}" for clip in range(60)]
    (result,) = run(Loudness(), manifest(audio, speaker=speakers), "loud", tmp_path, unit="speaker")
    assert (result.unit, result.units) == ("speaker", 3)
    data = manifest(audio, split=None, speaker=[f"s{clip // 6}" for clip in range(60)])
    (grouped,) = run(Loudness(), data, "loud", tmp_path / "grouped", group="speaker")
    assert grouped.unit == "speaker"


# ------------------------------------------------------------------------------------------------ frames

CODE = {f"p{step}": step - 1 for step in range(1, 6)}


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Clips whose loudness changes every 30 to 120 ms, and the intervals; the last stretch has no label."""
    folder, rng, clips = tmp_path_factory.mktemp("sequences"), np.random.default_rng(0), []
    for clip in range(15):
        edges = np.cumsum([0, *rng.integers(480, 1920, size=20)])
        steps = rng.integers(1, 6, size=20)
        soundfile.write(folder / f"{clip:02}.wav", np.repeat(steps / 10, np.diff(edges)), RATE, subtype="FLOAT")
        clips.append((edges, steps))
    intervals = [
        [
            {"start_s": float(start) / RATE, "end_s": float(end) / RATE, "label": f"p{step}"}
            for start, end, step in list(zip(edges, edges[1:], steps, strict=False))[:-1]
        ]
        for edges, steps in clips
    ]
    columns = {
        "path": [f"{clip:02}.wav" for clip in range(15)],
        "split": ["train"] * 8 + ["dev"] * 3 + ["test"] * 4,
        "phones": intervals,
    }
    return Manifest.from_columns(columns, folder), clips


@pytest.mark.parametrize("hop", [160, 320, 2560])
@pytest.mark.parametrize("offset", [0, 200])
def test_frames_score_the_ceiling_of_their_hop(sequences, tmp_path, hop, offset):
    data, clips = sequences
    right = total = 0
    for edges, steps in clips[11:]:  # by definition: at t = (i + ½) 10 ms the nearest frame centre is heard
        centres = np.arange(offset, edges[-1], hop)
        for time in np.arange(80, edges[-2], 160):
            heard = centres[np.flatnonzero(np.abs(centres - time) == np.abs(centres - time).min())[-1]]
            truth, found = (steps[np.searchsorted(edges, place, side="right") - 1] for place in (time, heard))
            right, total = right + (truth == found), total + 1
    (result,) = run(Loudness(hop=hop, offset=offset), data, "phones", tmp_path, layers=(0, 1), lrs=(1e-2,))
    assert (result.level, result.units, result.n_test) == ("frame", 4, 4)
    assert sum(row["total"] for row in result.predictions().to_pylist() if row["split"] == "test") == total
    if hop < 2560:  # few frames tell what is heard, so that the best answer is to say it
        assert result.score == pytest.approx(right / total, abs=1e-9)
    else:
        assert abs(result.score - right / total) < 0.05


def test_frames_of_a_clip_that_cannot_be_embedded_get_the_commonest_class(sequences, tmp_path):
    data, _ = sequences
    folder = tmp_path / "audio"
    folder.mkdir()
    lengths = [soundfile.info(path).frames for path in data.column("path")]
    for clip, length in enumerate(lengths):  # clip 14 is NaN on reading, or nearly so: beyond what can be one-hot
        samples = soundfile.read(data.column("path")[clip], dtype="float32")[0]
        samples[:] = np.nan if clip == 14 else samples
        soundfile.write(folder / f"{clip:02}.wav", samples, RATE, subtype="FLOAT")
        assert length == len(samples)
    columns = {name: data.column(name) for name in ("split", "phones")}
    broken = Manifest.from_columns(columns | {"path": [f"{clip:02}.wav" for clip in range(15)]}, folder)
    (result,) = run(Loudness(), broken, "phones", tmp_path / "out", layers=(1,), lrs=(1e-2,))
    assert result.skipped == 1
    rows = {row["clip_id"]: row for row in result.predictions().to_pylist()}
    codes = {clip: frame_labels(data.column("phones")[clip], data.durations[clip], CODE) for clip in range(15)}
    train = np.concatenate([codes[clip] for clip in range(8)])
    commonest = np.bincount(train[train >= 0]).argmax()
    assert rows["14.wav"]["correct"] == (codes[14] == commonest).sum()
    assert rows["13.wav"]["correct"] > 0.9 * rows["13.wav"]["total"]


def test_labels_of_frames_are_half_open_and_late_starters_win():
    intervals = [
        {"start_s": 0.005, "end_s": 0.025, "label": "a"},
        {"start_s": 0.015, "end_s": 0.020, "label": "b"},
        {"start_s": 0.045, "end_s": 0.046, "label": "a"},
    ]
    assert frame_labels(intervals, 0.06, {"a": 0, "b": 1}).tolist() == [0, 1, -1, -1, 0, -1]


def test_frames_are_drawn_within_the_bound_and_in_order():
    points = [np.arange(10), np.arange(0), np.arange(5, 300)]
    drawn = _drawn(points, 50)
    assert sum(map(len, drawn)) == 50
    assert all((np.diff(part) > 0).all() and set(part) <= set(whole) for part, whole in zip(drawn, points, strict=True))
    assert _drawn(points, 1000) is points


# ----------------------------------------------------------------------------------- what is done only once


def test_results_that_are_there_are_not_made_again(audio, tmp_path):
    encoder, data = Loudness(), manifest(audio)
    (first,) = run(encoder, data, "loud", tmp_path)
    calls = encoder.calls
    assert calls > 0
    assert run(encoder, data, "loud", tmp_path) == [first]
    assert run(encoder, data, "loud", tmp_path, overwrite="never") == [first]
    assert encoder.calls == calls
    with pytest.raises(EvaluationError, match="other options"):
        run(encoder, data, "loud", tmp_path, seeds=(4, 5), overwrite="never")
    (second,) = run(encoder, data, "loud", tmp_path, seeds=(4, 5))
    assert len(second.seeds) == 2
    assert read_results(tmp_path) == [second]
    (third,) = run(encoder, data, "loud", tmp_path, seeds=(4, 5), overwrite="always")
    assert (third.score, third.low, third.high, third.grid) == (second.score, second.low, second.high, second.grid)


def test_results_of_audio_that_was_replaced_are_made_again(tmp_path):
    (tmp_path / "clips").mkdir()
    folder = write_clips(tmp_path / "clips")
    encoder, data = Loudness(), manifest(folder)
    (first,) = run(encoder, data, "loud", tmp_path / "out")
    info = soundfile.info(folder / "59.wav")
    soundfile.write(folder / "59.wav", np.zeros(info.frames), info.samplerate, subtype="FLOAT")  # same name and length
    with pytest.raises(EvaluationError, match="other options or clips"):
        run(encoder, data, "loud", tmp_path / "out", overwrite="never")
    (second,) = run(encoder, data, "loud", tmp_path / "out")
    assert (first.score, second.score < 1) == (1, True)


def test_a_second_task_encodes_nothing_anew(audio, tmp_path, monkeypatch):
    data = manifest(audio, half=["soft" if clip % 6 < 3 else "loud" for clip in range(60)])
    monkeypatch.setattr("auricle.evaluation.prepare.find_corpus", lambda corpus, root: data)
    tasks = [Task(name=name, target=name, kind="classes", corpus="made") for name in ("loud", "half")]
    encoder = Loudness()
    results = evaluate(encoder, tasks=tasks[:1], output=tmp_path / "one", device="cpu", progress=False)
    calls = encoder.calls
    results = evaluate(encoder, tasks=tasks, output=tmp_path / "two", device="cpu", progress=False)
    assert encoder.calls == 2 * calls
    assert [result.score for result in results] == [1, 1]
    assert results[1].seconds_encode == 0


# ------------------------------------------------------------------------------------------- what a task ignores


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lrs": (1e-2,)}, "knows no lrs"),
        ({"heads": ("linear", "mlp")}, "knows no heads"),
        ({"split": "folds"}, "knows no folds"),
        ({"pool": "meanstd", "level": "clip"}, "knows no level and no pool"),
        ({"protocol": "knn", "speaker": "who"}, "knows no protocol and no speaker"),
        ({"data": "labels.csv", "tasks": ["superb-pr", "superb-ks"]}, "give data to it alone"),
    ],
)
def test_phone_recognition_refuses_what_it_would_ignore(tmp_path, options, words):
    with pytest.raises(EvaluationError, match=f"task superb-pr: {words}") as caught:
        evaluate("fbank", **{"tasks": ["superb-pr"], "corpora": tmp_path} | options)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- bad data


def test_a_clip_that_cannot_be_embedded_is_counted_and_answered_without_hearing(audio, tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    for path in audio.glob("*.wav"):
        (folder / path.name).write_bytes(path.read_bytes())
    for clip, length in ((59, 0), (58, 150), (3, 150)):
        soundfile.write(folder / f"{clip:02}.wav", np.full(length + 10, 0.5), RATE, subtype="FLOAT")
    loud = ["level 1" if clip % 6 in (1, 4, 5) else f"level {clip % 6}" for clip in range(60)]
    (result,) = run(Loudness(offset=200), manifest(folder, loud=loud), "loud", tmp_path / "results")
    assert result.skipped == 3
    rows = {row["clip_id"]: row for row in result.predictions().to_pylist()}
    assert result.n_test == 18
    for clip in (58, 59):  # both get the commonest class of train
        assert rows[f"{clip:02}.wav"]["prediction"] == "level 1"
    assert result.score == 1  # here a lucky guess


@pytest.mark.parametrize(
    ("columns", "target", "options", "message"),
    [
        ({}, "lowd", {}, "did you mean 'loud'"),
        ({}, "loud", {"unit": "speeker"}, "unknown column 'speeker'"),
        ({}, "loud", {"metric": "acuracy"}, "did you mean 'accuracy'"),
        ({}, "loud", {"metric": "r2"}, "numbers"),
        ({}, "loud", {"level": "frame"}, "interval"),
        ({"loud": ["same"] * 60}, "loud", {}, "one"),
        ({"loud": ["x"] * 30 + ["y"] * 30}, "loud", {}, "not in train"),
        ({"loud": [None] * 60}, "loud", {}, "no clip has a value"),
    ],
)
def test_what_cannot_be_scored_is_one_line(audio, tmp_path, columns, target, options, message):
    data = manifest(audio, **columns)
    with pytest.raises(AuricleError, match=message) as caught:
        run(Loudness(), data, target, tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_nan_is_named(audio, tmp_path):
    with pytest.raises(EvaluationError, match="deaf could embed none"):
        run(Loudness("deaf", scale=1e39), manifest(audio), "loud", tmp_path)


@pytest.mark.parametrize("second", ["fbnk", "runs/none", "untrained:runs/none", "s3prlx:file.ckpt/x"])
def test_a_misspelt_encoder_is_told_before_another_is_probed(audio, tmp_path, second):
    with pytest.raises(AuricleError, match=f"{second}|runs/none"):
        evaluate([Loudness(), second], data=manifest(audio), target="loud", output=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_named_like_plain_features_hides_them_from_nobody(audio, tmp_path, monkeypatch):
    (tmp_path / "fbank").mkdir()
    monkeypatch.chdir(tmp_path)
    (result,) = run("fbank", manifest(audio), "loud", tmp_path / "out")
    assert (result.encoder, result.leaks) == ("fbank", "")


def test_what_to_evaluate_must_be_said(tmp_path, audio):
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        evaluate(Loudness(), output=tmp_path)
    with pytest.raises(EvaluationError, match="needs a target"):
        evaluate(Loudness(), data=manifest(audio), output=tmp_path)
    with pytest.raises(AuricleError, match="did you mean 'quick'"):
        evaluate(Loudness(), suite="quik", output=tmp_path)
    with pytest.raises(AuricleError, match="unknown task"):
        evaluate(Loudness(), tasks=["quick-phonez"], output=tmp_path)


def test_damaged_and_newer_results_are_one_line(audio, tmp_path):
    (result,) = run(Loudness(), manifest(audio), "loud", tmp_path)
    values = json.loads(result.file.read_text())
    result.file.write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(EvaluationError, match="upgrade auricle"):
        read_results(tmp_path)
    result.file.write_text("{")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_results(tmp_path)
    with pytest.raises(EvaluationError, match="no results"):
        read_results(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------ tables and tasks


def test_tables_mark_the_best_and_its_ties(audio, tmp_path):
    data = manifest(audio)
    deaf = Loudness("deaf", scale=0.0)
    results = run([Loudness("good"), Loudness("twin", hop=320), deaf], data, "loud", tmp_path)
    text = table(read_results(tmp_path))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "100.0 ± 0.0*" in lines["good"]
    assert "100.0 ± 0.0=" in lines["twin"]
    assert "*" not in lines["deaf"]
    assert "=" not in lines["deaf"]
    assert "16.7" in lines["chance"]
    assert table(results, "markdown").startswith("| encoder | ")
    assert len(table(results, "csv").splitlines()) == 4
    assert json.loads(table(results, "json"))[0]["encoder"] == "good"


def test_many_tasks_stand_in_rows(audio, tmp_path):
    results = run([Loudness("good"), Loudness("deaf", scale=0.0)], manifest(audio), "loud", tmp_path)
    several = [result.model_copy(update={"task": f"task-{number}"}) for number in range(9) for result in results]
    lines = [line.split() for line in table(several).splitlines()]
    assert lines[0] == ["task", "metric", "good", "deaf", "chance"]
    assert [line[0] for line in lines[2:11]] == [f"task-{number}" for number in range(9)]
    assert lines[2][1:4] == ["accuracy", "%", "100.0"]
    assert table(several, "markdown").splitlines()[1].count(":") == 5
    assert table(several, "latex").split("\\midrule")[0].count("\\\\") == 1


def test_a_table_in_latex_has_equal_rows_and_no_bare_specials(audio, tmp_path):
    run([Loudness("a_b"), Loudness("50%_#~c", hop=320)], manifest(audio), "loud", tmp_path / "out")
    assert cli.main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "scores.tex")]) == 0
    text = (tmp_path / "scores.tex").read_text(encoding="utf-8")
    body = text[text.index("\\toprule") : text.index("\\end{tabular}")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 5  # two of heads, two encoders, chance
    assert {row.count(" & ") for row in rows} == {1}
    assert text.startswith("\\begin{tabular}{lr}\n")
    assert "a\\_b & 100.0 $\\pm$ 0.0$^=$" in text
    assert "50\\%\\_\\#\\textasciitilde{}c & 100.0 $\\pm$ 0.0$^*$" in text
    assert not re.search(r"(?<!\\)[%#_&](?! )", text)


@pytest.mark.parametrize(
    ("ending", "start"), [("md", "| encoder"), ("csv", "encoder,"), ("json", "["), ("txt", "encoder")]
)
def test_the_ending_of_a_report_makes_it_a_table(audio, tmp_path, ending, start):
    run(Loudness(), manifest(audio), "loud", tmp_path / "out")
    file = tmp_path / f"table.{ending}"
    assert cli.main(["report", str(tmp_path / "out"), "--output", str(file)]) == 0
    assert file.read_text(encoding="utf-8").startswith(start)


def test_scores_of_other_clips_do_not_share_a_column(audio, tmp_path):
    run(Loudness("a"), manifest(audio), "loud", tmp_path)
    run(Loudness("b"), manifest(audio, split=["test"] * 18 + ["dev"] * 12 + ["train"] * 30), "loud", tmp_path)
    header = table(read_results(tmp_path)).splitlines()[0]
    assert header.count("loud") == 2


def test_a_row_is_marked_where_test_was_heard_in_pretraining(audio, tmp_path):
    data = manifest(audio)
    for name, heard in (("fair", range(30)), ("unfair", range(60))):
        (tmp_path / name).mkdir()
        data.select(list(heard)).save(tmp_path / name / "manifest.parquet")
    results = run([Loudness(str(tmp_path / name)) for name in ("fair", "unfair")], data, "loud", tmp_path / "out")
    assert [result.transductive for result in results] == [False, True]
    assert "†" in table(results)


def test_suites_name_tasks_and_every_task_says_what_it_is():
    assert all(name in TASKS for members in SUITES.values() for name in members)
    assert all(task.measures and task.licence and task.name == name for name, task in TASKS.items())
