"""The grid of heads against one-at-a-time PyTorch and scikit-learn, and planted answers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, log_loss, r2_score
from torch.nn import functional

from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.probes import heads
from auricle.evaluation.probes.heads import Examples, ProbeConfig, fit_heads

LOSSES = {
    "classes": functional.cross_entropy,
    "labels": lambda z, y: functional.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1).mean(),
    "values": lambda z, y: (z[:, 0] - y).square().mean() / 2,
}


def data(kind, n, layers=1, dim=6, seed=0):
    """Noisy examples whose target depends on the first channels of the last layer."""
    rng = torch.Generator().manual_seed(seed)
    states = {index: torch.randn(n, dim, generator=rng) * 3 + 5 for index in range(layers)}
    goal = (states[layers - 1][:, :3] - 5) / 3 + torch.randn(n, 3, generator=rng)
    targets = {"classes": goal.argmax(1), "labels": (goal > 0).float(), "values": 100 + 7 * goal[:, 0]}[kind]
    return Examples(states, targets)


def score(kind, outputs, targets):
    if kind == "classes":
        return accuracy_score(targets, outputs.argmax(1))
    if kind == "labels":
        return average_precision_score(targets, outputs)
    return r2_score(targets, outputs[:, 0])


def one_at_a_time(kind, head, train, dev, test, config, lr, seed):
    """Plain PyTorch: one head, torch's own modules, losses and Adam; dev scores by scikit-learn, the best kept."""
    mean, std = train.layers[0].mean(0), train.layers[0].std(0, correction=0)
    (x, x_dev, x_test), y, y_dev = (
        ((part.layers[0] - mean) / std for part in (train, dev, test)),
        train.targets,
        dev.targets,
    )
    if kind == "values":
        y, y_dev = ((t - train.targets.mean()) / train.targets.std() for t in (y, y_dev))
    outputs = y.shape[1] if kind == "labels" else 3 if kind == "classes" else 1
    sizes = [x.shape[1], outputs] if head == "linear" else [x.shape[1], config.hidden, outputs]
    rng = torch.Generator().manual_seed(seed)
    modules = []
    for fan_in, fan_out in pairwise(sizes):
        module = torch.nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            bound = fan_in**-0.5
            module.weight.copy_((torch.rand(fan_out, fan_in, generator=rng) * 2 - 1) * bound)
            module.bias.copy_((torch.rand(fan_out, 1, generator=rng)[:, 0] * 2 - 1) * bound)
        modules += [module, torch.nn.ReLU()]
    network = torch.nn.Sequential(*modules[:-1])
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    order = torch.Generator().manual_seed(0)
    best, kept, step = (-np.inf, -np.inf), None, 0
    while step < config.max_steps:
        for rows in torch.randperm(len(x), generator=order).tensor_split(-(-len(x) // config.batch)):
            loss = LOSSES[kind](network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % config.eval_every == 0:
                with torch.no_grad():
                    z = network(x_dev)
                    key = (round(score(kind, z, y_dev), 6), -float(LOSSES[kind](z, y_dev)))
                    if key > best:
                        best, kept = key, network(x_test)
            if step == config.max_steps:
                break
    return best[0], kept


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_grid_equals_its_heads_trained_one_at_a_time(kind, head):
    train, dev, test = (data(kind, n, seed=seed) for seed, n in enumerate((100, 60, 40)))
    config = ProbeConfig(heads=(head,), lrs=(1e-2, 3e-2), seeds=(0, 5), hidden=8, batch=32, max_steps=60, eval_every=10)
    fitted = fit_heads(kind, train, dev, config)
    expected = {
        (lr, seed): one_at_a_time(kind, head, train, dev, test, config, lr, seed)
        for lr in config.lrs
        for seed in config.seeds
    }
    for trial in fitted.trials:
        assert trial.dev == pytest.approx([expected[trial.lr, seed][0] for seed in config.seeds], abs=1e-4)
    logits = torch.stack([expected[fitted.choice.lr, seed][1] for seed in config.seeds])
    if kind == "values":
        wanted = logits[..., 0] * train.targets.std() + train.targets.mean()
    else:
        wanted = logits.softmax(-1) if kind == "classes" else logits.sigmoid()
    torch.testing.assert_close(fitted.predict(test.layers), wanted, rtol=1e-5, atol=1e-5)


def test_the_learned_sum_equals_autograd_through_torch_modules():
    train, dev = data("classes", 40, layers=3), data("classes", 30, layers=3, seed=1)
    config = ProbeConfig(layers=("sum",), lrs=(1e-2,), seeds=(3,), max_steps=30, eval_every=30)
    fitted = fit_heads("classes", train, dev, config)
    x = torch.stack([(layer - layer.mean(0)) / layer.std(0, correction=0) for layer in train.layers.values()])
    weight, bias, mix = (w[0].clone().requires_grad_() for w in heads._initial("linear", 3, 6, 3, config))
    optimizer = torch.optim.Adam([weight, bias, mix], lr=1e-2)
    for _ in range(30):
        z = (mix.softmax(0)[..., None] * x).sum(0) @ weight.T + bias[:, 0]
        optimizer.zero_grad()
        functional.cross_entropy(z, train.targets).backward()
        optimizer.step()
    torch.testing.assert_close(fitted.heads.weights[0][0], weight.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fitted.heads.weights[2][0], mix.detach(), rtol=1e-5, atol=1e-5)


def test_full_batches_reach_the_optima_of_scikit_learn(monkeypatch):
    def by_loss(kind, logits, goals, balanced):
        loss = functional.cross_entropy(logits, goals.expand(len(logits), -1), reduction="none").mean(1)
        return -loss, loss

    train = data("classes", 200)
    config = ProbeConfig(lrs=(3e-2,), seeds=(0,), batch=200, max_steps=2000, patience=100)
    with monkeypatch.context() as patch:
        patch.setattr(heads, "dev_scores", by_loss)
        ours = fit_heads("classes", train, train, config).predict(train.layers)[0].double()
    reference = LogisticRegression(C=np.inf, max_iter=1000).fit(train.layers[0], train.targets)
    assert log_loss(train.targets, ours / ours.sum(1, keepdim=True)) == pytest.approx(
        log_loss(train.targets, reference.predict_proba(train.layers[0])), abs=1e-4
    )
    train = data("values", 200)
    ours = fit_heads("values", train, train, config).predict(train.layers)[0]
    line = LinearRegression().fit(train.layers[0].double(), train.targets.double()).predict(train.layers[0].double())
    np.testing.assert_allclose(ours, line, atol=2e-2)  # of values that spread over 10


def test_heads_do_not_depend_on_their_neighbours():
    train, dev = data("classes", 300, layers=2), data("classes", 80, layers=2, seed=1)
    common = {"max_steps": 200, "eval_every": 10, "patience": 2, "batch": 64}
    wide = fit_heads("classes", train, dev, ProbeConfig(lrs=(1e-3, 1e-2, 1e-1), seeds=(0, 1, 2), **common))
    alone = fit_heads("classes", train, dev, ProbeConfig(lrs=(1e-2,), seeds=(2,), layers=(1,), **common))
    beside = next(trial for trial in wide.trials if trial.layer == 1 and trial.lr == 1e-2)
    assert alone.choice.dev[0] == pytest.approx(beside.dev[2], abs=1e-6)


def test_the_layer_that_holds_the_answer_is_chosen():
    train, dev = data("classes", 300, layers=4), data("classes", 200, layers=4, seed=1)
    for part in (train, dev):  # data() plants it in the last one
        part.layers[1], part.layers[3] = part.layers[3], part.layers[1]
    fitted = fit_heads("classes", train, dev, ProbeConfig(layers=(0, 1, 2, 3), lrs=(1e-2,)))
    assert fitted.choice.layer == 1
    assert fitted.layers == (1,)


def test_the_sum_is_chosen_where_layers_hold_parts_of_the_answer():
    rng = torch.Generator().manual_seed(0)

    def examples(n):
        a, b = torch.randn(n, 1, generator=rng), torch.randn(n, 1, generator=rng)
        return Examples({0: a, 1: b, 2: torch.randn(n, 1, generator=rng)}, (a + b > 0)[:, 0].long())

    fitted = fit_heads("classes", examples(400), examples(400), ProbeConfig(lrs=(3e-2,)))
    assert fitted.choice.layer == "sum"
    assert np.mean(fitted.choice.dev) > 0.95
    assert fitted.heads.weights[2].softmax(1)[0, 2] < 0.1  # the layer of noise


def test_the_sum_reads_only_layers_of_the_last_ones_width():
    train = Examples({0: torch.randn(50, 2), 1: torch.randn(50, 4), 2: torch.randn(50, 4)}, torch.arange(50) % 2)
    fitted = fit_heads("classes", train, train, ProbeConfig(layers=("sum",), max_steps=10))
    assert fitted.layers == (1, 2)
    assert fit_heads("classes", train, train, ProbeConfig(max_steps=10)).predict(train.layers).shape == (3, 50, 2)


def test_a_hidden_layer_learns_what_a_line_cannot():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=rng)
    both = Examples({0: x}, (x[:, 0] * x[:, 1] > 0).long())
    train, dev = (Examples({0: x[rows]}, both.targets[rows]) for rows in (slice(400), slice(400, 600)))
    fitted = fit_heads("classes", train, dev, ProbeConfig(heads=("linear", "mlp"), lrs=(1e-2,)))
    assert fitted.choice.head == "mlp"
    assert np.mean(fitted.choice.dev) > 0.9
    assert max(np.mean(trial.dev) for trial in fitted.trials if trial.head == "linear") < 0.7


def test_dev_scores_are_those_of_scikit_learn():
    rng = torch.Generator().manual_seed(1)
    z, y = torch.randn(2, 3, 50, generator=rng), torch.randint(3, (50,), generator=rng)
    z[..., :10] = 0  # ties
    balanced = heads.dev_scores("classes", z, y, True)[0]
    assert balanced.tolist() == pytest.approx([balanced_accuracy_score(y, g.argmax(0)) for g in z])
    hits = (torch.rand(50, 3, generator=rng) > 0.7).float()
    z = torch.randn(2, 3, 50, generator=rng)
    assert heads.dev_scores("labels", z, hits, False)[0].tolist() == pytest.approx(
        [average_precision_score(hits, g.T) for g in z]
    )
    values = torch.randn(50, 1, generator=rng)
    assert heads.dev_scores("values", z[:, :1], values, False)[0].tolist() == pytest.approx(
        [r2_score(values[:, 0], g[0]) for g in z]
    )


def test_offsets_scales_and_constant_channels_do_not_matter():
    train, dev = data("classes", 200), data("classes", 100, seed=1)

    def shifted(part):
        x = part.layers[0] * torch.tensor([1e-3, 1e4, 1, 1, 1, 1]) + torch.tensor([0, 0, 1e3, 0, 0, 0])
        return Examples({0: torch.cat([x, torch.full((len(x), 1), 0.1)], 1)}, part.targets)

    config = ProbeConfig(lrs=(1e-2,))
    plain, moved = (np.mean(fit_heads("classes", *parts, config).choice.dev) for parts in (
        (train, dev), (shifted(train), shifted(dev)),
    ))  # fmt: skip
    assert moved == pytest.approx(plain, abs=0.03)


def test_divergence_loses_and_total_divergence_is_one_line():
    train = data("classes", 50)
    fitted = fit_heads("classes", train, train, ProbeConfig(lrs=(1e38, 1e-2), heads=("mlp",)))
    assert fitted.choice.lr == 1e-2
    broken = Examples({0: torch.full((50, 2), torch.nan)}, train.targets)
    with pytest.raises(EvaluationError, match="no head"):
        fit_heads("values", Examples(broken.layers, torch.randn(50)), broken, ProbeConfig())


def test_a_layer_that_is_not_there_is_refused():
    train = data("classes", 50, layers=2)
    with pytest.raises(ConfigError, match="7 is not among this encoder's layers 0 to 1"):
        fit_heads("classes", train, train, ProbeConfig(layers=(7,)))
    assert fit_heads("classes", train, train, ProbeConfig(layers=(-1,), max_steps=5)).choice.layer == 1
