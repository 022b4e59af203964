"""Error rates of trials against closed forms, scikit-learn, and replication of trials by hand."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_curve

from auricle.errors import EvaluationError
from auricle.evaluation.metrics import Outcomes, bootstrap, paired_bootstrap, scorer
from auricle.evaluation.verification.metrics import PRIORS, det_curve, equal_error_rate, min_dcf, trial_scorer


def joined(target, other):
    return np.concatenate([target, other]), np.arange(len(target) + len(other)) < len(target)


def random_trials(seed, count=60, ties=True):
    rng = np.random.default_rng(seed)
    target = rng.random(count) < 0.4
    target[:2] = [True, False]
    scores = rng.normal(size=count) + target
    return np.round(scores * 3) / 3 if ties else scores, target


def test_perfect_constant_and_reversed_scores():
    scores, target = joined(np.linspace(1, 2, 30), np.linspace(-1, 0.9, 50))
    assert equal_error_rate(scores, target) == 0
    assert min_dcf(scores, target) == 0
    assert equal_error_rate(-scores, target) == 1
    assert equal_error_rate(np.zeros(80), target) == 0.5
    assert min_dcf(np.zeros(80), target) == pytest.approx(1)


def test_the_rule_of_interpolation_in_a_case_where_rules_differ():
    # at the threshold 0.4: FNR 1/4, FPR 1/5; their mean is 0.225, and so would a rule of means say
    scores, target = joined([0.9, 0.8, 0.7, 0.3], [0.6, 0.4, 0.2, 0.1, 0.05])
    assert equal_error_rate(scores, target) == pytest.approx(0.25, abs=1e-12)


def test_interpolation_between_two_thresholds_as_a_line_would_have_it():
    # from (FNR, FPR) = (0, 1/2) at 1 to (1, 0) at 2, where a target and a non-target are tied
    scores, target = joined([2.0], [1.0, 2.0])
    assert equal_error_rate(scores, target) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("shift", "cost"), [(1, 0.999996), (2, 0.951057), (4, 0.278481)])
def test_normal_scores_have_their_closed_forms(shift, cost):
    normal = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    scores, target = joined(normal + shift, normal)
    assert equal_error_rate(scores, target) == pytest.approx(norm.cdf(-shift / 2), abs=1e-4)
    assert min_dcf(scores, target, 0.01) == pytest.approx(cost, abs=1e-3)
    t = np.linspace(-2, 8, 20_001)
    for prior in PRIORS.values():
        closed = (prior * norm.cdf(t - shift) + (1 - prior) * norm.sf(t)).min() / prior
        assert min_dcf(scores, target, prior) == pytest.approx(closed, abs=1e-3)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_curve_is_that_of_sklearn(seed, ties):
    scores, target = random_trials(seed, ties=ties)
    curve = det_curve(scores, target)
    fpr, tpr, thresholds = roc_curve(target, scores, drop_intermediate=False)  # accepts s ≥ t, from the highest on
    np.testing.assert_allclose(curve.fpr[::-1], fpr, atol=1e-12)
    np.testing.assert_allclose(1 - curve.fnr[::-1], tpr, atol=1e-12)
    np.testing.assert_array_equal(curve.thresholds[1:], thresholds[:0:-1])
    assert curve.thresholds[0] == -np.inf
    gap = curve.fnr - curve.fpr
    after = np.flatnonzero(gap >= 0)[0]
    line = np.interp(0, gap[after - 1 : after + 1], curve.fnr[after - 1 : after + 1])
    assert equal_error_rate(scores, target) == pytest.approx(line, abs=1e-12)
    slow = min(0.01 * (scores[target] <= t).mean() + 0.99 * (scores[~target] > t).mean() for t in [-np.inf, *scores])
    assert min_dcf(scores, target, 0.01) == pytest.approx(slow / 0.01)
    assert min_dcf(scores, target, 0.01) <= 1


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_order_alone_counts_and_negation_mirrors(seed):
    scores, target = random_trials(seed)
    rate = equal_error_rate(scores, target)
    assert equal_error_rate(np.exp(3 * scores) - 7, target) == pytest.approx(rate, abs=1e-12)
    assert equal_error_rate(-scores, target) == pytest.approx(1 - rate, abs=1e-12)
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    assert equal_error_rate(scores[shuffled], target[shuffled]) == rate


@given(st.integers(0, 10_000), st.sampled_from(["eer", *PRIORS]))
@settings(max_examples=40, deadline=None)
def test_speaker_weights_are_copies_of_people(seed, metric):
    scores, _ = random_trials(seed)
    rng = np.random.default_rng(seed)
    enrol, test = rng.integers(5, size=(2, len(scores)))
    target = enrol == test
    weights = rng.integers(0, 4, size=5)
    weights[[enrol[target][0], *enrol[~target][:1], *test[~target][:1]]] = 2
    copies = np.where(target, weights[enrol], weights[enrol] * weights[test])
    got = trial_scorer(metric, scores, target, enrol, test)(np.stack([weights, np.ones(5)]).astype(float))
    measure = equal_error_rate if metric == "eer" else lambda s, t: min_dcf(s, t, PRIORS[metric])
    assert got[0] == pytest.approx(measure(np.repeat(scores, copies), np.repeat(target, copies)), abs=1e-9)
    assert got[1] == pytest.approx(measure(scores, target), abs=1e-12)


def test_a_draw_without_trials_of_a_kind_has_no_rate():
    speakers = np.array([0, 0, 1])
    score = trial_scorer("eer", np.arange(3.0), np.array([True, False, False]), speakers, np.array([0, 1, 0]))
    assert np.isnan(score(np.array([[0.0, 2.0]]))).all()


def outcomes(scores, enrol, test):
    one = np.ones(len(scores))
    return Outcomes(enrol, (enrol == test).astype(int), one, one, scores[None], test)


def test_intervals_and_paired_differences_over_speakers():
    rng = np.random.default_rng(0)
    people, clips = 30, 4
    voice, speakers = rng.normal(size=(people, 8)), np.repeat(np.arange(people), clips)
    one, two = np.triu_indices(people * clips, 1)

    def scored(noise):
        heard = voice[speakers] + noise * rng.normal(size=(people * clips, 8))
        heard /= np.linalg.norm(heard, axis=1, keepdims=True)
        return outcomes((heard[one] * heard[two]).sum(1), speakers[one], speakers[two])

    good, bad, worse = (scorer("eer", scored(noise)) for noise in (0.4, 1.0, 1.05))
    low, high = bootstrap(bad, people, resamples=200)
    assert low < bad(np.ones((1, people)))[0] < high
    assert high - low > 0.02  # thirty people tell no more, though there are thousands of trials
    gap = paired_bootstrap(good, bad, people, lower_is_better=True, resamples=200)
    assert gap.significant
    assert gap.mean > 0
    assert paired_bootstrap(bad, bad, people, lower_is_better=True, resamples=50).low == 0
    pair = paired_bootstrap(bad, worse, people, lower_is_better=True, resamples=200)
    assert pair.high - pair.low < high - low  # the same draws: what both find hard cancels


def test_half_a_million_trials_in_linear_memory():
    rng = np.random.default_rng(0)
    target = rng.random(500_000) < 0.5
    scores = rng.normal(size=500_000) + 2 * target
    tracemalloc.start()
    rate = equal_error_rate(scores, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rate == pytest.approx(norm.cdf(-1), abs=2e-3)
    assert peak < 150 * len(scores)


@pytest.mark.parametrize(
    ("scores", "target", "words"),
    [([1.0, np.nan], [1, 0], "NaN"), ([1.0, 2.0], [1, 1], "one kind"), ([1.0, 2.0], [0, 0], "one kind")],
)
def test_what_has_no_rate_is_refused(scores, target, words):
    with pytest.raises(EvaluationError, match=words):
        equal_error_rate(scores, target)
