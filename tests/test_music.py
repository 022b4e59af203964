"""Keys against mir_eval, several values against scikit-learn, and the records of the thirteen tasks."""

import itertools

import mir_eval
import numpy as np
import pytest
import soundfile
from sklearn.metrics import r2_score

from auricle.config import edit
from auricle.data.corpora import CORPORA
from auricle.data.corpora.giantsteps import KEYS
from auricle.data.manifest import Manifest
from auricle.errors import EvaluationError
from auricle.evaluation.metrics import Outcomes, scorer
from auricle.evaluation.music import (
    circle_of_fifths,
    each_value,
    key_chance,
    key_confusion,
    key_credit,
    relation,
    relations,
)
from auricle.evaluation.prepare import prepare
from auricle.evaluation.probes.grouped import MarbleConfig
from auricle.evaluation.tasks.custom import custom_task
from auricle.evaluation.tasks.mir13 import MIR13, MusicTask


def test_credit_is_mir_evals_for_every_pair_of_keys():
    wanted = [[mir_eval.key.weighted_score(true, told) for told in KEYS] for true in KEYS]
    np.testing.assert_array_equal(key_credit(KEYS), wanted)


@pytest.mark.parametrize(
    ("true", "told", "named"),
    [
        ("C major", "C major", "same"),
        ("C major", "G major", "fifth"),
        ("C major", "F major", "other"),
        ("A minor", "E minor", "fifth"),
        ("C major", "A minor", "relative"),
        ("A minor", "C major", "relative"),
        ("C major", "C minor", "parallel"),
        ("Db major", "C# major", "same"),
        ("C major", "E minor", "other"),
    ],
)
def test_relations_have_names(true, told, named):
    assert relation(true, told) == named


def test_what_is_no_key_is_one_line():
    with pytest.raises(EvaluationError, match="unknown key 'H minor'"):
        relation("H minor", "C major")


def test_a_key_is_one_class_however_it_is_spelled(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    keys = ["C# major", "Db major", "Eb minor", "d# minor", "Db major", "Eb minor"]
    split = ["train", "dev", "train", "test", "test", "dev"]
    data = Manifest.from_columns({"path": ["a.wav"] * 6, "key": keys, "split": split}, tmp_path)
    ready = prepare(custom_task(data, "key", name="own", metric="weighted_key"), data)
    assert ready.classes == ["Db major", "Eb minor"]
    assert ready.targets.tolist() == [0, 0, 1, 1, 0, 1]
    wrong = data.with_column("key", ["Am", *keys[1:]])
    with pytest.raises(EvaluationError, match=r"column 'key', clip a\.wav: unknown key 'Am'"):
        prepare(custom_task(wrong, "key", name="own", metric="weighted_key"), wrong)


def test_confusion_stands_in_the_order_of_the_circle():
    circle = circle_of_fifths()
    assert sorted(circle) == sorted(KEYS)
    assert circle[:4] == ["C major", "A minor", "G major", "E minor"]
    for here, there in itertools.pairwise(circle[::2]):
        assert relation(here, there) == "fifth"
    for major, minor in zip(circle[::2], circle[1::2], strict=True):
        assert relation(major, minor) == "relative"
    counts = key_confusion(["C major", "C major", "Db minor"], ["C major", "G major", "C# minor"])
    minor = circle.index("Db minor")
    assert (counts[0, 0], counts[0, 2], counts[minor, minor], counts.sum()) == (1, 1, 1, 3)


def test_shares_of_relations_weigh_up_to_the_score():
    rng = np.random.default_rng(0)
    true, told = (rng.choice(KEYS, 200).tolist() for _ in range(2))
    weights = {"same": 1.0, "fifth": 0.5, "relative": 0.3, "parallel": 0.2, "other": 0.0}
    score = sum(weights[name] * share for name, share in relations(true, told).items())
    assert score == pytest.approx(
        np.mean([mir_eval.key.weighted_score(*pair) for pair in zip(true, told, strict=True)])
    )


def test_the_best_constant_key_may_be_a_near_miss():
    keys = ["C major", "F major", "G major"]
    targets = np.array([0] * 3 + [1] * 4)  # G is a fifth above C, C is a fifth above F
    every = key_credit(keys)[targets].mean(0)
    assert key_chance(key_credit(keys), targets) == pytest.approx(max(every))
    assert every.tolist() == pytest.approx([(3 + 2) / 7, 4 / 7, 1.5 / 7])


def test_values_are_scored_one_by_one():
    rng = np.random.default_rng(0)
    targets, outputs = rng.normal(size=(30, 2)), rng.normal(size=(3, 30, 2))
    correct = np.full(30, np.nan)
    whole = Outcomes(np.arange(30), targets, correct, np.ones(30), outputs)
    for number, (name, one) in enumerate(each_value(whole, ["arousal", "valence"]).items()):
        assert name == ("arousal", "valence")[number]
        score = scorer("r2", one)(np.ones((1, 30)))[0]
        assert score == pytest.approx(np.mean([r2_score(targets[:, number], seed[:, number]) for seed in outputs]))


@pytest.mark.parametrize("task", MIR13, ids=lambda task: task.name)
def test_tasks_name_a_corpus_that_is_there_and_training_that_is_known(task):
    assert isinstance(task, MusicTask)
    assert task.corpus in CORPORA
    assert task.protocol == "marble"
    assert task.measures
    assert task.citation
    edit(MarbleConfig(), **task.training)


def test_there_are_thirteen_tasks_of_seven_corpora():
    assert len({task.name for task in MIR13}) == 13
    assert {task.corpus for task in MIR13} == {
        *("magnatagatune", "gtzan", "giantsteps", "emomusic", "nsynth", "vocalset", "mtg_jamendo")
    }
