"""NOSS's grid: solvers against scikit-learn's, normalisation against a loop, the choice, and what it never sees."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.probes import estimators
from auricle.evaluation.probes.estimators import Normalisation, judge, normalise_speakers, noss, noss_paper
from auricle.evaluation.probes.heads import Examples, ProbeConfig
from auricle.evaluation.probes.lda import Linear, fit_lda
from auricle.evaluation.probes.logistic import balanced_weights, fit_logistic, objective

NAMES = ["logistic regression", "balanced logistic regression", "LDA", "forest", "balanced forest"]


def embeddings(count: int, dim: int, classes: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of unequal classes, with a spectrum that falls as embeddings' do, and a mean far from zero."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, classes + 1) / sum(range(1, classes + 1))
    y = np.concatenate([np.repeat(np.arange(classes), 2), rng.choice(classes, count - 2 * classes, p=share)])
    means = apart * np.random.default_rng(1).standard_normal((classes, dim)) / np.sqrt(dim)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((dim, dim)))[0]
    x = (rng.standard_normal((count, dim)) + means[y]) * (1 + np.arange(dim)) ** -0.5
    return x @ rotation + 3, y


def converged(x: np.ndarray, y: np.ndarray, weight: str | None) -> LogisticRegression:
    return LogisticRegression(C=1e5, class_weight=weight, tol=1e-10, max_iter=100_000).fit(x, y)


def two_columns(model: LogisticRegression) -> Linear:
    """scikit-learn's solution; its one vector for two classes is the difference of two."""
    w, b = model.coef_.T, model.intercept_
    return Linear(np.hstack([-w / 2, w / 2]), np.array([-b[0] / 2, b[0] / 2])) if len(b) == 1 else Linear(w, b)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize(
    ("count", "dim", "classes", "apart"), [(600, 20, 5, 3), (500, 30, 2, 2), (300, 60, 4, 12), (60, 100, 3, 3)]
)
def test_logistic_regression_reaches_the_converged_objective(count, dim, classes, apart, weight):
    x, y = embeddings(count, dim, classes, apart)
    weights = balanced_weights(y) if weight else np.ones(count)
    theirs = converged(x, y, weight)
    best = objective(two_columns(theirs), x, y, weights, 1e5)
    alone, after = fit_logistic(x, y, weights)[0], fit_logistic(x, y, np.ones(count), weights)[1]
    for model in (alone, after):
        assert objective(model, x, y, weights, 1e5) <= best * (1 + 1e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_where_the_minimum_is_well_conditioned_the_probabilities_agree(classes):
    x, y = embeddings(800, 10, classes, 1.5)
    ours, theirs = fit_logistic(x, y, np.ones(800))[0], converged(x, y, None)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=5e-3)


def test_the_objective_and_its_minimum_agree_with_a_plain_minimiser():
    x, y = embeddings(50, 3, 3, 1)
    weights = balanced_weights(y)

    def value(flat: np.ndarray) -> float:
        w, b = flat[:9].reshape(3, 3), flat[9:]
        logits = x @ w + b
        losses = [np.log(np.exp(row).sum()) - row[code] for row, code in zip(logits, y, strict=True)]
        return float(weights @ losses + (w**2).sum() / 2 / 1e5)

    flat = np.random.default_rng(0).standard_normal(12)
    assert objective(Linear(flat[:9].reshape(3, 3), flat[9:]), x, y, weights, 1e5) == pytest.approx(value(flat))
    (ours,) = fit_logistic(x, y, weights)
    flat = np.concatenate([ours.weights.ravel(), ours.bias])
    least = minimize(value, flat, method="BFGS", options={"gtol": 1e-7}).fun
    assert value(flat) == pytest.approx(least, rel=1e-4)
    assert np.abs(approx_fprime(flat, value)).max() < 0.1


def test_logistic_regression_takes_constant_features_and_identical_rows():
    x, y = embeddings(200, 8, 3, 2)
    x[:, 2] = 5.0
    x[:20] = x[0]
    best = objective(two_columns(converged(x, y, None)), x, y, np.ones(200), 1e5)
    assert objective(fit_logistic(x, y, np.ones(200))[0], x, y, np.ones(200), 1e5) <= best * (1 + 1e-4)


@pytest.mark.parametrize(
    ("count", "dim", "classes"), [(300, 20, 4), (400, 5, 3), (60, 80, 5), (200, 30, 2), (50, 1, 3)]
)
def test_discriminants_are_scikit_learns(count, dim, classes):
    x, y = embeddings(count, dim, classes, 3)
    same_discriminants(x, y)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 5), st.sampled_from([1e-3, 1.0, 1e3]))
def test_discriminants_are_scikit_learns_at_any_shape_and_scale(seed, dim, classes, scale):
    x, y = embeddings(12 * classes, dim, classes, 2, seed)
    same_discriminants(x * scale, y)


def test_discriminants_of_degenerate_classes_are_scikit_learns():
    x, y = embeddings(120, 6, 4, 3)
    x[:, 1] = 2.0  # constant
    x[y == 1, 2] = 0.5  # constant in one class
    x, y = np.vstack([x, x[:1] + 1]), np.append(y, 4)  # a class of one clip
    same_discriminants(x, y)


def test_discriminants_of_a_singular_covariance_are_scikit_learns():
    x = np.random.default_rng(0).standard_normal((6, 5))
    same_discriminants(x, np.repeat([0, 1, 2], 2))  # classes of two clips are not shrunk


def same_discriminants(x: np.ndarray, y: np.ndarray) -> None:
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y)
    ours = fit_lda(x, y)
    expected = theirs.decision_function(x)
    found = ours.scores(x)
    found = found[:, 1] - found[:, 0] if found.shape[1] == 2 else found
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 1000))
def test_speaker_normalisation_against_a_loop(count, speakers, seed):
    rng = np.random.default_rng(seed)
    x, groups = rng.standard_normal((count, 4)) + 5, rng.integers(speakers, size=count) * 7
    x[:, 3] = groups  # constant within a speaker
    expected = x.copy()
    for speaker in set(groups.tolist()):
        rows = groups == speaker
        std = x[rows].std(0)
        expected[rows] = (x[rows] - x[rows].mean(0)) / np.where(std > 1e-9, std, 1)
    np.testing.assert_allclose(normalise_speakers(x, groups), expected, atol=1e-6)


def test_length_comes_before_speakers_and_a_zero_vector_stays():
    x, groups = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [4.0, 3.0]]), torch.tensor([0, 1, 0, 0])
    units = np.array([[0.6, 0.8], [0, 0], [0.6, 0.8], [0.8, 0.6]])
    np.testing.assert_allclose(Normalisation(True, False)(x, None), units, atol=1e-7)
    np.testing.assert_allclose(
        Normalisation(True, True)(x, groups), normalise_speakers(units, groups.numpy()), atol=1e-5
    )


def examples(count: int, seed: int, speakers: bool = True) -> Examples:
    x, y = embeddings(count, 12, 3, 4, seed)
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.standard_normal(x.shape)).float()
    groups = torch.from_numpy(rng.integers(4, size=count)) if speakers else None
    return Examples({0: noise, 1: torch.from_numpy(x).float()}, torch.from_numpy(y), groups)


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "TREES", 5)


@pytest.mark.usefixtures("few_trees")
@pytest.mark.parametrize("maker", [noss, noss_paper])
def test_the_grid_and_its_choice(maker):
    train, dev = examples(120, 0), examples(60, 1)
    fitted = maker(ProbeConfig(seeds=(3, 4))).fit("classes", train, dev, balanced=True, device="cpu")
    details = ["", "l2", "speaker-normalised (transductive)", "l2, speaker-normalised (transductive)"]
    expected = [(layer, detail, name) for layer in (0, 1) for detail in details for name in NAMES]
    assert [(trial.layer, trial.detail, trial.head) for trial in fitted.trials] == expected
    assert [len(trial.dev) for trial in fitted.trials[:5]] == [1, 1, 1, 2, 2]
    assert np.mean(fitted.choice.dev) == max(np.mean(trial.dev) for trial in fitted.trials)
    assert fitted.choice.layer == 1
    assert fitted.layers == (1,)
    tests = list(fitted.tests(dev.layers, dev.groups))
    assert [trial for trial, _ in tests] == fitted.trials[20:]
    for trial, found in tests:  # the rows' dev scores come back from their answers
        scores = [balanced_accuracy_score(dev.targets, one.argmax(1)) for one in found]
        assert scores == pytest.approx(list(trial.dev))
        np.testing.assert_allclose(found.sum(2), 1)
        if trial is fitted.choice:
            torch.testing.assert_close(fitted.predict(dev.layers, dev.groups), found)
    assert fitted.view(dev.layers) is dev.layers[1]


@pytest.mark.usefixtures("few_trees")
def test_forests_are_scikit_learns_with_the_same_seed():
    train, dev = examples(100, 0, speakers=False), examples(50, 1, speakers=False)
    config = ProbeConfig(seeds=(7,), layers=(1,))
    tests = list(noss(config).fit("classes", train, dev).tests(dev.layers))
    for name, weight in (("forest", None), ("balanced forest", "balanced")):
        theirs = RandomForestClassifier(5, class_weight=weight, random_state=7)
        theirs.fit(train.layers[1].double().numpy(), train.targets.numpy())
        (found,) = (found for trial, found in tests if trial.head == name and not trial.detail)
        np.testing.assert_array_equal(found[0], theirs.predict_proba(dev.layers[1].double().numpy()))


@pytest.mark.usefixtures("few_trees")
def test_the_papers_logistic_regression_is_scikit_learns():
    train, dev = examples(100, 0, speakers=False), examples(50, 1, speakers=False)
    tests = noss_paper(ProbeConfig(seeds=(0,), layers=(1,))).fit("classes", train, dev).tests(dev.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LogisticRegression(C=1e5).fit(train.layers[1].double().numpy(), train.targets.numpy())
    np.testing.assert_array_equal(next(tests)[1][0], theirs.predict_proba(dev.layers[1].double().numpy()))


@pytest.mark.usefixtures("few_trees")
def test_speakers_are_normalised_by_the_split_itself_and_must_be_told():
    """Speakers whose recordings are far apart hide the classes from all but speaker normalisation."""

    def shifted(seed: int) -> Examples:
        part = examples(150, seed)
        offset = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed)) * 50
        return replace(part, layers={1: part.layers[1] + offset[part.groups]})

    train, dev, test = shifted(0), shifted(1), shifted(2)
    fitted = noss(ProbeConfig(seeds=(0,))).fit("classes", train, dev)
    assert "transductive" in fitted.choice.detail
    found = fitted.predict(test.layers, test.groups)[0].argmax(1)
    assert accuracy_score(test.targets, found) > 0.8
    with pytest.raises(EvaluationError, match="speaker"):
        fitted.predict(test.layers)


@pytest.mark.usefixtures("few_trees")
def test_shuffled_targets_score_chance_and_absent_classes_nothing():
    train, dev = examples(200, 0), examples(90, 1)
    shuffled = train.targets[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    fitted = noss(ProbeConfig(seeds=(0,), layers=(1,))).fit(
        "classes", replace(train, targets=shuffled), dev, balanced=True
    )
    assert np.mean([trial.dev for trial in fitted.trials]) == pytest.approx(1 / 3, abs=0.1)
    renamed = Examples(train.layers, torch.tensor([0, 2, 4])[train.targets])
    fitted = noss(ProbeConfig(seeds=(0,), layers=(1,))).fit("classes", renamed, Examples(dev.layers, dev.targets + 3))
    found = fitted.predict(dev.layers)
    assert found.shape == (1, 90, 6)
    assert not found[..., [1, 3, 5]].any()


def test_mistakes_are_told():
    train, dev = examples(30, 0), examples(20, 1)
    prober = noss(ProbeConfig())
    with pytest.raises(EvaluationError, match="labels"):
        prober.fit("labels", train, dev)
    with pytest.raises(EvaluationError, match="more clips than classes"):
        prober.fit("classes", replace(train, targets=torch.zeros(30, dtype=torch.int64)), dev)
    with pytest.raises(EvaluationError, match="layer 0: the embeddings are not finite"):
        prober.fit("classes", replace(train, layers={0: train.layers[0] / 0}), dev)
    with pytest.raises(ConfigError, match="sum"):
        noss(ProbeConfig(layers=("sum",))).fit("classes", train, dev)
    with pytest.raises(ConfigError, match="layers"):
        noss(ProbeConfig(layers=(5,))).fit("classes", train, dev)


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    found, goals = rng.dirichlet(np.ones(4), (2, 40)), rng.integers(1, 4, 40)
    for balanced, score in ((False, accuracy_score), (True, balanced_accuracy_score)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = [score(goals, one.argmax(1)) for one in found]
        assert judge(found, goals, balanced)[0] == pytest.approx(expected)
