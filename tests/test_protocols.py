"""What surrounds the heads: protocols, corpora on disk, few labels, one speaker at a time, the best on test."""

import csv
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from loudness import RATE, Loudness, manifest, run, write_clips

from auricle.config import edit
from auricle.data.corpora import CORPORA, Corpus, find_corpus
from auricle.data.manifest import Manifest
from auricle.errors import AuricleError, EvaluationError, ManifestError
from auricle.evaluation.prepare import prepare
from auricle.evaluation.probes import hear, presets, protocols
from auricle.evaluation.probes.heads import Examples, ProbeConfig, Trial, fit_heads
from auricle.evaluation.probes.protocols import PROTOCOLS, Protocol
from auricle.evaluation.results import Measure, read_results, table
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks import TASKS, Task


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


LOUD = Task(name="loud", target="loud", kind="classes", corpus="made")


# ------------------------------------------------------------------------------------------------- protocols


@dataclass(frozen=True)
class Constants:
    """A `Prober` whose grid answers one class each, whatever is heard; it chooses by dev, and remembers speakers."""

    config: ProbeConfig

    def fit(self, kind, train, dev, *, balanced, device):
        seen.append((train.groups, dev.groups))
        fitted.append((len(train.targets), len(dev.targets)))
        shares = [(dev.targets == code).float().mean().item() for code in range(6)]
        trials = [Trial("constant", 1, None, (share,), f"class {code}") for code, share in enumerate(shares)]
        return Constant(trials[int(np.argmax(shares))], trials)


@dataclass(frozen=True)
class Constant:
    choice: Trial
    trials: list[Trial]
    layers: tuple[int, ...] = (1,)

    def predict(self, layers, groups=None):
        seen.append(groups)
        return self.answer(self.trials.index(self.choice), len(layers[1]))

    def answer(self, code, count):
        seeds = 1 + code % 2  # as some estimators draw, and others do not
        return torch.nn.functional.one_hot(torch.full((seeds, count), code), 6).double()

    def view(self, layers):
        return layers[1]

    def tests(self, layers, groups=None):
        assert set(layers) == {0, 1}
        return [(trial, self.answer(code, len(layers[1]))) for code, trial in enumerate(self.trials)]


seen, fitted = [], []


@pytest.fixture
def constants(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "constants", Protocol("test_protocols:Constants", "one class each"))
    monkeypatch.setattr("test_protocols.seen", [])


def shares(dev, test):
    """A column of classes: five of each in train; on dev and test these classes are the commonest, the others equal."""
    every = [f"level {step}" for step in range(6)]
    return every * 5 + [f"level {dev}"] * 6 + every + [f"level {test}"] * 12 + every


def test_the_best_on_test_is_told_and_never_chosen(audio, tmp_path, constants):
    data = manifest(audio, loud=shares(dev=2, test=4), speaker=[f"s{clip % 4}" for clip in range(60)])
    (result,) = run(Loudness(), data, "loud", tmp_path, protocol="constants")
    assert result.name.endswith("@constants-v1")
    assert (result.chosen[0].head, result.chosen[0].detail, result.chosen[0].lr) == ("constant", "class 2", None)
    assert result.score == pytest.approx(1 / 18)
    oracle = result.further["oracle"]
    assert oracle.value == pytest.approx(13 / 18)
    assert oracle.low < oracle.value < oracle.high
    (back,) = read_results(tmp_path)
    assert back == result
    lines = [line.split() for line in table([back]).splitlines() if "loudness " in line]
    assert lines[0][:2] == ["loudness", "5.6"]  # among the scores
    assert lines[1][1:] == ["loudness", "5.6", "72.2"]  # apart from them
    (row,) = csv.DictReader(table([back], "csv").splitlines())
    assert float(row["oracle"]) == oracle.value


def test_folds_have_one_best_row_over_all_of_them(audio, tmp_path, constants):
    loud = np.array(["level 1"] * 20 + [f"level {clip % 6}" for clip in range(40)])[
        np.random.default_rng(0).permutation(60)
    ]
    data = manifest(audio, split=None, loud=loud, fold=[clip % 3 for clip in range(60)])
    (result,) = run(Loudness(), data, "loud", tmp_path, protocol="constants")
    assert result.further["oracle"].value == pytest.approx(np.mean(loud == "level 1"))
    assert result.score == pytest.approx(np.mean(result.seeds))


def test_folds_may_choose_rows_of_different_numbers_of_seeds(audio, tmp_path, constants):
    every, fold = [f"level {step}" for step in range(6)], np.repeat([0, 1, 2], 20)
    loud = [level for common in (1, 2, 2) for level in [*every, *every, *[f"level {common}"] * 8]]
    data = manifest(audio, split=None, loud=loud, fold=fold)
    (result,) = run(Loudness(), data, "loud", tmp_path, protocol="constants")
    assert {choice.detail for choice in result.chosen} == {"class 1", "class 2"}
    assert len(result.seeds) == 2
    assert result.seeds == pytest.approx([result.score] * 2)


def test_speakers_reach_the_protocol_where_the_task_names_them(audio, tmp_path, constants, monkeypatch):
    data = manifest(audio, speaker=[f"s{clip % 4}" for clip in range(60)])
    monkeypatch.setattr("auricle.evaluation.prepare.find_corpus", lambda corpus, root: data)
    task = replace(LOUD, protocol="constants", speaker="speaker")
    evaluate(Loudness(), tasks=[task], output=tmp_path, progress=False, device="cpu")
    (train, dev), of_dev, of_test = seen
    assert train.tolist() == [clip % 4 for clip in range(30)]
    assert dev.tolist() == of_dev.tolist() == [clip % 4 for clip in range(30, 42)]
    assert of_test.tolist() == [clip % 4 for clip in range(42, 60)]
    seen.clear()
    evaluate(Loudness(), tasks=[replace(task, speaker=None)], output=tmp_path, progress=False, device="cpu")
    assert seen == [(None, None), None, None]


def test_every_protocol_is_known_by_name_and_tasks_name_known_ones():
    assert {task.protocol for task in TASKS.values()} <= set(PROTOCOLS)
    with pytest.raises(EvaluationError, match="did you mean 'knn'"):
        protocols.prober("kn", ProbeConfig())


QUICK = {"seeds": (0,), "layers": (1,)}


@pytest.mark.parametrize("name", [name for name, record in PROTOCOLS.items() if record.maker])
class TestEveryProtocol:
    """Planted answers: a label in the embedding is found, labels of chance are not, and test is never looked at."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        """Fewer and smaller networks, trained for less long."""

        def small(config, **values):
            return edit(config, **values | {"max_steps": 300, "hidden": 32})

        monkeypatch.setattr(presets, "edit", small)
        monkeypatch.setattr(hear, "HearConfig", partial(hear.HearConfig, points=2, hidden=32, max_epochs=60))

    def test_a_label_in_the_embedding_is_found(self, audio, tmp_path, name):
        data = manifest(audio, who=[f"s{clip % 5}" for clip in range(60)])
        (result,) = run(Loudness(), data, "loud", tmp_path, protocol=name, speaker="who", **QUICK)
        assert result.score >= (0.8 if name == "marble-linear" else 1)  # which stops where dev gains nothing more
        assert result.protocol == name
        assert result.grid
        assert result.chosen[0] in result.grid
        assert result.further.get("oracle", Measure.of(1, 1, 1)).value == 1

    def test_shuffled_labels_score_chance(self, audio, tmp_path, name):
        labels = np.random.default_rng(1).permutation([f"level {clip % 3}" for clip in range(60)])
        (result,) = run(Loudness(), manifest(audio, loud=labels), "loud", tmp_path, protocol=name, **QUICK)
        assert result.low <= 1 / 3 <= result.high

    def test_the_choice_never_sees_test(self, audio, tmp_path, name):
        noisy = np.array([f"level {(clip + (clip % 7 == 0)) % 6}" for clip in range(60)])
        other = np.concatenate([noisy[:42], np.random.default_rng(2).permutation(noisy[42:])])
        one, two = (
            run(Loudness(), manifest(audio, loud=loud), "loud", tmp_path, protocol=name, overwrite="always", **QUICK)[0]
            for loud in (noisy, other)
        )
        assert one.score != two.score
        assert (one.chosen, one.grid, one.dev) == (two.chosen, two.grid, two.dev)


def test_a_protocol_with_its_own_heads_takes_no_others(audio, tmp_path):
    with pytest.raises(EvaluationError, match="of its own"):
        run(Loudness(), manifest(audio), "loud", tmp_path, protocol="knn", lrs=(1.0,))


def test_a_bottleneck_and_dropout_are_those_of_torch():
    """Two hidden layers with the masks drawn, and a bottleneck, each against autograd through torch's own modules."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=rng), torch.randint(3, (40,), generator=rng)
    part = Examples({0: x}, y)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    for head, depth, dropout in (("mlp", 2, 0.5), ("bottleneck", 1, 0.0)):
        config = ProbeConfig(
            heads=(head,), hidden=7, hidden_layers=depth, dropout=dropout, lrs=(1e-2,), seeds=(4,), max_steps=20,
            eval_every=20,
        )  # fmt: skip
        fitted = fit_heads("classes", part, part, config)
        drawn, masks = torch.Generator().manual_seed(4), torch.Generator().manual_seed(1)
        sizes = [(5, 7), *[(7, 7)] * (depth - 1), (7, 3)]
        weights = []
        for fan_in, fan_out in sizes:
            for columns in (fan_in, 1):
                weight = (torch.rand(fan_out, columns, generator=drawn) * 2 - 1) / fan_in**0.5
                weights.append((weight if columns > 1 else weight[:, 0]).requires_grad_())
        optimizer = torch.optim.Adam(weights, lr=1e-2)

        for _ in range(20):
            kept = (torch.rand(depth, 7, 40, generator=masks) >= dropout).float() / (1 - dropout)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits(standard, weights, head, kept), y).backward()
            optimizer.step()
        wanted = logits(standard, weights, head, torch.ones(depth, 7, 40)).softmax(1).detach()
        torch.testing.assert_close(fitted.predict({0: x})[0], wanted, rtol=1e-4, atol=1e-5)


def logits(x, weights, head, masks):
    """Linear layers in turn, with ReLU between those of an MLP, and masks (H, N) on hidden units."""
    for place in range(0, len(weights), 2):
        x = torch.nn.functional.linear(x, *weights[place : place + 2])
        if place < len(weights) - 2:
            x = (x.relu() if head == "mlp" else x) * masks[place // 2].T
    return x


# --------------------------------------------------------------------------------------------- corpora on disk


def read_made(folder, suffix="wav"):
    """A reader as corpora have them."""
    if isinstance(suffix, Path):
        raise ManifestError(f"a path: {suffix}")
    return Manifest.from_columns({"path": [f"{clip:02}.{suffix}" for clip in range(60)], "loud": LEVELS}, folder)


LEVELS = [f"level {clip % 6}" for clip in range(60)]


def test_a_corpus_lies_in_a_folder_of_its_name_or_is_prepared(audio, tmp_path, monkeypatch):
    made = Corpus("test_protocols:read_made", "Made", 0.01, "CC0", "https://made.example")
    monkeypatch.setitem(CORPORA, "made", made)
    with pytest.raises(
        ManifestError, match=r"neither the folder made nor made.parquet; get Made: https://made.example"
    ):
        evaluate(Loudness(), tasks=[LOUD], corpora=tmp_path, output=tmp_path / "out", progress=False)
    with pytest.raises(ManifestError, match="name the folder"):
        evaluate(Loudness(), tasks=[LOUD], output=tmp_path / "out", progress=False)
    (tmp_path / "made").symlink_to(audio)
    results = evaluate(Loudness(), tasks=[LOUD], corpora=tmp_path, output=tmp_path / "out", progress=False)
    assert results[0].score == 1
    with pytest.raises(ManifestError, match="takes no option 'sufix'"):
        find_corpus("made", tmp_path, sufix="wav")
    with pytest.raises(ManifestError, match=f"a path: {tmp_path}/wav"):
        find_corpus("made", tmp_path, suffix="{root}/wav")
    read_made(audio).select(range(40)).save(tmp_path / "made.parquet")
    assert len(find_corpus("made", tmp_path)) == 40
    assert len(find_corpus("made", tmp_path, suffix="wav")) == 60


def test_other_recordings_of_the_corpus_in_pretraining_are_told(audio, tmp_path, monkeypatch):
    data = manifest(audio)
    monkeypatch.setattr("auricle.evaluation.prepare.find_corpus", lambda corpus, root: data)
    for name, rows in (("train", range(30)), ("test", range(45, 60)), ("other", range(0))):
        (tmp_path / name).mkdir()
        heard = (
            data.select(list(rows)).table if len(rows) else data.table.set_column(1, "path", [["/other/x.wav"] * 60])
        )
        Manifest(heard).save(tmp_path / name / "manifest.parquet")
    for name, begun in (("went-on", "train"), ("foreign", "hf:somebody/else")):
        shutil.copytree(tmp_path / "other", tmp_path / name)
        init = str(tmp_path / begun) if begun == "train" else begun
        (tmp_path / name / "config.yaml").write_text(f"train: {{init: '{init}'}}")
    (tmp_path / "nothing-tells").mkdir()
    names = ("train", "test", "other", "went-on", "foreign", "nothing-tells")
    encoders = [Loudness(str(tmp_path / name)) for name in names] + [Loudness("hf:somebody/else")]
    monkeypatch.chdir(tmp_path / "test")  # whose manifest says nothing of what is loaded from elsewhere
    results = evaluate(encoders, tasks=[LOUD], output=tmp_path / "out", progress=False, device="cpu")
    assert [result.leaks for result in results] == ["corpus", "test", "", "corpus", "unknown", "unknown", "unknown"]
    assert f"not known of {tmp_path / 'foreign'}, {tmp_path / 'nothing-tells'}, hf:somebody/else" in table(results)
    results = results[:3]
    text = table(results)
    assert text.count("‡") == text.count("†") == 2  # one in the table, one in the notes
    assert [row["leaks"] for row in csv.DictReader(table(results, "csv").splitlines())] == ["corpus", "test", ""]


# ------------------------------------------------------------------------------------------------- few labels


def test_few_labels_are_drawn_once_with_every_class_and_within_larger_shares(audio):
    data = manifest(audio)
    rows = {}
    for share in (1.0, 0.5, 0.3, 0.01):
        ready = prepare(replace(LOUD, labels=share), data)
        (assignment,) = ready.assignments
        clips = np.array(ready.manifest.column("clip_id"))
        rows[share] = set(clips[assignment == "train"])
        assert (assignment == "dev").sum() == 12
        assert (assignment == "test").sum() == 18
        labels = np.array(ready.texts)[assignment == "train"]
        assert set(labels) == {f"level {step}" for step in range(6)}
        again = prepare(replace(LOUD, labels=share), data)
        assert again.manifest.column("clip_id") == ready.manifest.column("clip_id")
    assert [len(part) for part in rows.values()] == [30, 15, 9, 6]
    assert rows[0.01] < rows[0.3] < rows[0.5] < rows[1.0]
    other = prepare(replace(LOUD, labels=0.3, seed=1), data)
    assert other.split_hash != prepare(replace(LOUD, labels=0.3), data).split_hash
    assert "9 of the 30 train clips (30 %)" in other.rule


# ------------------------------------------------------------------------------------- one speaker at a time

PERSONAL = replace(LOUD, speaker="who", personal=True)


def test_one_speaker_at_a_time_never_mixes_speakers_and_tests_every_class(audio):
    who = ["ann"] * 24 + ["bob"] * 18 + ["cat"] * 12 + [None] * 6  # cat has two clips of each class
    ready = prepare(PERSONAL, manifest(audio, who=who, split=None))
    assert len(ready.assignments) == 10
    assert set(ready.units) == {"ann", "bob"}
    assert "2 speakers at a time (3 in" in ready.rule
    for number, assignment in enumerate(ready.assignments):
        speaker = "ann" if number < 5 else "bob"
        for part, least in (("train", 6), ("dev", 6), ("test", 6)):
            rows = np.flatnonzero(assignment == part)
            assert {ready.units[row] for row in rows} == {speaker}
            assert {ready.texts[row] for row in rows} == {f"level {step}" for step in range(6)}
            assert len(rows) >= least
    assert len({tuple(assignment) for assignment in ready.assignments}) == 10
    with pytest.raises(ManifestError, match="nobody has three clips"):
        prepare(PERSONAL, manifest(audio, who=[f"s{clip % 20}" for clip in range(60)], split=None))
    with pytest.raises(EvaluationError, match="needs the speakers' column"):
        prepare(replace(LOUD, personal=True), manifest(audio))


def test_the_personal_score_is_the_mean_over_speakers(audio, tmp_path, constants, monkeypatch):
    """Of constant answers: ann's test has 12 clips, half of them of the class answered; bob's has 6, one of them."""
    classes = [f"level {step}" for step in range(6)]
    loud = classes * 3 + ["level 0"] * 27 + classes * 2 + classes[:3]
    who = ["bob"] * 18 + ["ann"] * 42
    loud = classes * 3 + (classes * 3 + ["level 0"] * 24)
    data = manifest(audio, split=None, loud=loud, who=who)
    monkeypatch.setattr("auricle.evaluation.prepare.find_corpus", lambda corpus, root: data)
    task = replace(PERSONAL, protocol="constants")
    (result,) = evaluate(Loudness(), tasks=[task], output=tmp_path, progress=False, device="cpu")
    ann = round(27 / 5)  # of the clips tested
    assert result.score == pytest.approx((1 / 6 + ann / (ann + 5)) / 2)
    assert result.further["oracle"].value == pytest.approx(result.score)
    assert (result.units, result.unit) == (2, "who")
    again = read_results(tmp_path)[0]
    assert np.divide(*(part.sum() for part in (again.outcomes().correct, again.outcomes().total))) == pytest.approx(
        result.score
    )


# ------------------------------------------------------------------------------------------------------- frames


def test_a_task_bounds_the_frames_its_heads_learn_from(audio, tmp_path, constants, monkeypatch):
    data = manifest(audio)
    monkeypatch.setattr("auricle.evaluation.prepare.find_corpus", lambda corpus, root: data)
    monkeypatch.setattr("auricle.evaluation.answers.DEV_FRAMES", 70)
    for frames, drawn in ((50, 50), (10**6, sum(round(100 * duration) for duration in data.durations[:30]))):
        task = replace(LOUD, level="frame", protocol="constants", frames=frames)
        (result,) = evaluate(Loudness(), tasks=[task], output=tmp_path, progress=False, device="cpu")
        assert fitted[-1] == (drawn, 70)
        assert result.score == pytest.approx(1 / 6, abs=0.1)


def test_a_class_of_the_whole_clip_can_be_asked_of_every_frame(audio, tmp_path, monkeypatch):
    data = manifest(audio)
    monkeypatch.setattr("auricle.evaluation.prepare.find_corpus", lambda corpus, root: data)
    task = replace(LOUD, level="frame")
    (result,) = evaluate(Loudness(), tasks=[task], output=tmp_path, progress=False, device="cpu", seeds=(0,))
    assert (result.score, result.level) == (1, "frame")
    rows = [row for row in result.predictions().to_pylist() if row["split"] == "test"]
    assert all(row["total"] == round(100 * row["duration_s"]) for row in rows)


# ------------------------------------------------------------------------------------------------- other splits


def test_a_named_column_is_the_split_and_clips_without_it_are_left_out(audio):
    own = ["train"] * 20 + ["test"] * 10 + ["dev"] * 10 + [None] * 20
    data = manifest(audio, noss_split=own)
    ready = prepare(replace(LOUD, column="noss_split"), data)
    assert ready.assignments[0].tolist() == own[:40]
    assert "noss_split" in ready.rule
    folds = prepare(
        replace(LOUD, column="session"), manifest(audio, session=[f"s{clip // 6 % 4}" for clip in range(60)])
    )
    assert len(folds.assignments) == 4
    for assignment in folds.assignments:
        sessions = np.array([clip // 6 % 4 for clip in range(60)])
        parts = [set(sessions[assignment == part]) for part in ("train", "dev", "test")]
        assert sum(map(len, parts)) == 4
    with pytest.raises(ManifestError, match="has no train and test"):
        prepare(replace(LOUD, column="session", split="split"), manifest(audio, session=["a", "b"] * 30))
    with pytest.raises(ManifestError, match="did you mean 'noss_split'"):
        prepare(replace(LOUD, column="nos_split"), data)


# ----------------------------------------------------------------------------------------------------- bad data


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({"loud": ["x"] * 30 + ["y"] * 30}, {}, "not in train"),
        ({"split": None, "fold": [0] * 60}, {}, "1 folds"),
        (
            {"split": None, "fold": [clip // 20 for clip in range(60)], "loud": ["x"] * 20 + ["y"] * 40},
            {},
            "two classes|not in train",
        ),
        ({}, {"speaker": "speeker"}, "unknown column 'speeker'"),
        ({}, {"target": "lowd"}, "did you mean 'loud'"),
        ({}, {"where": {"corpus": "x"}}, "unknown column 'corpus'"),
        ({}, {"where": {"loud": "level 9"}}, "no clip has a value"),
        ({}, {"corpus": ""}, "names no corpus"),
    ],
)
def test_what_cannot_be_learned_is_one_line(audio, tmp_path, monkeypatch, columns, changes, message):
    data = manifest(audio, **columns)
    monkeypatch.setattr("auricle.evaluation.prepare.find_corpus", lambda corpus, root: data)
    with pytest.raises(AuricleError, match=message) as caught:
        evaluate(Loudness(), tasks=[replace(LOUD, **changes)], output=tmp_path, progress=False)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_recordings_are_counted(audio, tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    for path in audio.glob("*.wav"):
        (folder / path.name).write_bytes(path.read_bytes())
    data = manifest(folder)
    (folder / "05.wav").unlink()
    (folder / "31.wav").write_bytes(b"nothing")
    samples = soundfile.read(folder / "50.wav", dtype="float32")[0]
    soundfile.write(folder / "50.wav", samples * np.nan, RATE, subtype="FLOAT")
    (result,) = run(Loudness(), data, "loud", tmp_path / "out")
    assert result.skipped == 3
    assert result.n_test == 18
    assert pq.read_table(result.file.with_suffix(".parquet")).num_rows == 30


def test_a_suite_names_all_corpora_that_are_not_there_and_what_to_do_without_them(tmp_path):
    (tmp_path / "savee").mkdir()
    with pytest.raises(EvaluationError, match=r"lacks voxforge, voxceleb1, .*--tasks noss-savee$") as caught:
        evaluate("fbank", suite="noss", corpora=tmp_path, output=tmp_path / "results")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["auricle", "knn"])
def test_clips_that_are_all_alike_have_no_map(audio, tmp_path, name):
    (result,) = run(Loudness(scale=0.0), manifest(audio), "loud", tmp_path, protocol=name, **QUICK)
    assert np.isnan(result.predictions()["map_x"].to_numpy(zero_copy_only=False).astype(float)).all()
    assert result.low <= result.score <= result.high
