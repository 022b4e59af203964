"""Metrics against scikit-learn, intervals against closed forms and simulated coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn import metrics as sk

from auricle.errors import EvaluationError
from auricle.evaluation.metrics import METRICS, Outcomes, bootstrap, chance, paired_bootstrap, scorer


def classes(target, prediction, unit=None):
    """Outcomes of one or several seeds' predicted classes (S, N) or (N,)."""
    right = np.atleast_2d(prediction) == target
    unit = np.arange(len(target)) if unit is None else unit
    return Outcomes(unit, target, right.mean(0), np.ones(len(target)))


def ranked(target, outputs):
    return Outcomes(np.arange(len(target)), target, np.zeros(len(target)), np.ones(len(target)), outputs)


def value(metric, outcomes):
    return scorer(metric, outcomes)(np.ones((1, outcomes.units)))[0]


def weighted(metric, outcomes, weights):
    return scorer(metric, outcomes)(np.asarray(weights, float)[None])[0]


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_class_metrics_agree_with_sklearn_under_weights(seed):
    rng = np.random.default_rng(seed)
    target, prediction, weights = rng.integers(4, size=40), rng.integers(4, size=40), rng.integers(0, 4, size=40)
    weights[0] = 1
    outcomes, drawn = classes(target, prediction), np.repeat(np.arange(40), weights)
    accuracy = sk.accuracy_score(target[drawn], prediction[drawn])
    assert weighted("accuracy", outcomes, weights) == pytest.approx(accuracy)
    assert weighted("error_rate", outcomes, weights) == pytest.approx(1 - accuracy)
    recalls = sk.recall_score(target[drawn], prediction[drawn], average="macro", labels=np.unique(target[drawn]))
    assert weighted("balanced_accuracy", outcomes, weights) == pytest.approx(recalls)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_ranking_metrics_agree_with_sklearn_under_weights_and_ties(seed, ties):
    rng = np.random.default_rng(seed)
    target = rng.integers(2, size=(40, 3))
    target[:2] = [[0, 0, 0], [1, 1, 1]]
    outputs = rng.integers(5, size=(1, 40, 3)) / 5.0 if ties else rng.random((1, 40, 3))
    weights = rng.integers(0, 4, size=40)
    weights[:2] = 1
    outcomes = ranked(target, outputs)
    ap = sk.average_precision_score(target, outputs[0], average="macro", sample_weight=weights)
    auc = sk.roc_auc_score(target, outputs[0], average="macro", sample_weight=weights)
    assert weighted("map", outcomes, weights) == pytest.approx(ap)
    assert weighted("roc_auc", outcomes, weights) == pytest.approx(auc)


def test_regression_metrics_agree_with_sklearn_and_average_seeds():
    rng = np.random.default_rng(0)
    target = rng.normal(100, 3, size=50)
    outputs = target + rng.normal(size=(3, 50))
    weights = rng.integers(0, 4, size=50)
    outcomes = ranked(target, outputs)
    r2 = np.mean([sk.r2_score(target, seed, sample_weight=weights) for seed in outputs])
    mae = np.mean([sk.mean_absolute_error(target, seed, sample_weight=weights) for seed in outputs])
    assert weighted("r2", outcomes, weights) == pytest.approx(r2)
    assert weighted("mae", outcomes, weights) == pytest.approx(mae)


def test_seeds_are_averaged():
    target = np.array([0, 0, 1, 1])
    predictions = np.array([[0, 0, 1, 1], [0, 0, 0, 0]])
    assert value("accuracy", classes(target, predictions)) == pytest.approx(0.75)


def test_frames_weigh_clips_by_their_counts():
    outcomes = Outcomes(np.array([0, 1]), np.zeros(2), correct=np.array([10.0, 0.0]), total=np.array([10.0, 30.0]))
    assert value("accuracy", outcomes) == pytest.approx(0.25)


def test_interval_of_accuracy_is_the_binomial_one():
    correct = np.array([1.0] * 140 + [0.0] * 60)
    outcomes = Outcomes(np.arange(200), correct, correct, np.ones(200))
    low, high = bootstrap(scorer("accuracy", outcomes), 200, resamples=10_000)
    # resampling 200 clips of which 70 % are right is exactly Binomial(200, 0.7)
    assert low == pytest.approx(binom.ppf(0.025, 200, 0.7) / 200, abs=0.006)
    assert high == pytest.approx(binom.ppf(0.975, 200, 0.7) / 200, abs=0.006)


def test_interval_covers_the_truth_when_units_differ_and_a_clip_bootstrap_would_not():
    rng = np.random.default_rng(1)
    covered = {"unit": 0, "clip": 0}
    for trial in range(200):
        truth = rng.beta(2, 2, size=40)  # 40 speakers of 20 clips, accuracies vary about 0.5
        correct = (rng.random((40, 20)) < truth[:, None]).astype(float).ravel()
        for kind, unit in (("unit", np.repeat(np.arange(40), 20)), ("clip", np.arange(800))):
            outcomes = Outcomes(unit, correct, correct, np.ones(800))
            low, high = bootstrap(scorer("accuracy", outcomes), outcomes.units, resamples=300, seed=trial)
            covered[kind] += low <= 0.5 <= high
    assert 0.89 * 200 <= covered["unit"] <= 0.99 * 200
    assert covered["clip"] < 0.75 * 200


def test_paired_difference_is_much_tighter_than_the_intervals_it_compares():
    rng = np.random.default_rng(2)
    hard = rng.random(400) < 0.4  # both encoders fail on the same clips
    a = np.where(hard, 0.0, 1.0)
    b = np.where(rng.random(400) < 0.05, 0.0, a)  # b fails on a few more
    score_a, score_b = (scorer("accuracy", Outcomes(np.arange(400), right, right, np.ones(400))) for right in (a, b))
    gap = paired_bootstrap(score_a, score_b, 400)
    assert gap.mean == pytest.approx(a.mean() - b.mean())
    assert gap.significant
    assert gap.low > 0
    (low_a, _), (_, high_b) = bootstrap(score_a, 400), bootstrap(score_b, 400)
    assert low_a < high_b  # unpaired, the intervals overlap
    assert not paired_bootstrap(score_a, score_a, 400).significant
    assert paired_bootstrap(score_a, score_b, 400, lower_is_better=True).mean == pytest.approx(-gap.mean)


@pytest.mark.parametrize("metric", ["accuracy", "map", "roc_auc"])
def test_blocks_do_not_change_the_interval(metric, monkeypatch):
    rng = np.random.default_rng(3)
    target = rng.integers(2, size=(30, 2))
    if metric == "accuracy":
        outcomes = classes(target[:, 0], rng.integers(2, size=30))
    else:
        outcomes = ranked(target, rng.random((2, 30, 2)))
    whole = bootstrap(scorer(metric, outcomes), 30, resamples=50)
    monkeypatch.setattr("auricle.evaluation.metrics.CELLS", 90)
    assert bootstrap(scorer(metric, outcomes), 30, resamples=50) == pytest.approx(whole)


def test_chance_is_what_the_best_constant_answer_scores():
    target = np.array([0] * 6 + [1] * 3 + [2])
    constant = classes(target, np.zeros(10, int))
    for metric in ("accuracy", "error_rate", "balanced_accuracy"):
        assert chance(metric, target) == pytest.approx(value(metric, constant))
    labels = np.array([[1, 0], [0, 0], [0, 1], [1, 1]])
    flat = ranked(labels, np.full((1, 4, 2), 0.5))
    for metric in ("map", "roc_auc"):
        assert chance(metric, labels) == pytest.approx(value(metric, flat))
    values = np.array([1.0, 2.0, 3.0, 10.0, 11.0])
    assert chance("r2", values) == pytest.approx(value("r2", ranked(values, np.full((1, 5), values.mean()))))
    assert chance("mae", values) == pytest.approx(value("mae", ranked(values, np.full((1, 5), 3.0))))


def test_unknown_metric_names_the_near_miss():
    with pytest.raises(EvaluationError, match="did you mean 'accuracy'"):
        scorer("acuracy", classes(np.array([0]), np.array([0])))
    assert set(METRICS.values()) == {"classes", "labels", "values"}
