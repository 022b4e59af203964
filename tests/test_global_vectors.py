"""The contrast with global vectors and attention over conditions, against closed forms and plain float64 loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from auricle.nn.global_vectors import LEAST_ALPHA, ConditionAttention, GlobalVectors, csc_loss, in_batch_scores


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(dim: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed))[0]


def by_distances(c: Tensor, e: Tensor, y: Tensor, alpha: float) -> Tensor:
    """The definition, one row after another."""
    rows = []
    for vector, talker in zip(c, y.tolist(), strict=True):
        exponents = torch.stack([-alpha * (vector - other).square().sum() for other in e])
        rows.append(exponents.logsumexp(0) - exponents[talker])
    return torch.stack(rows)


# ------------------------------------------------------------------------------------------------------- the loss


def test_equal_vectors_give_the_logarithm_of_their_number():
    e = normal(1, 16).expand(10, -1)
    loss = csc_loss(normal(5, 16, seed=1), e, torch.arange(5), 7.0)
    torch.testing.assert_close(loss, torch.full((5,), math.log(10), dtype=torch.float64))


@pytest.mark.parametrize(("alpha", "value"), [(1.0, 0.7966138), (10.0, 1.855e-8)])
def test_a_perfect_match_among_orthonormal_vectors(alpha, value):
    e = rotation(16)[:10]
    loss = csc_loss(e, e, torch.arange(10), alpha).mean().item()
    assert loss == pytest.approx(math.log1p(9 * math.exp(-2 * alpha)), rel=1e-6)
    assert loss == pytest.approx(value, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(2, 12), st.integers(1, 8), st.floats(0.1, 20), st.integers(0, 999))
def test_the_loss_is_the_definition(rows, talkers, dim, alpha, seed):
    c, e = normal(rows, dim, seed=seed), normal(talkers, dim, seed=seed + 1)
    y = torch.randint(talkers, (rows,), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(csc_loss(c, e, y, alpha), by_distances(c, e, y, alpha), rtol=1e-10, atol=1e-12)


def test_unit_vectors_make_it_a_softmax_of_cosines():
    c, e, y = F.normalize(normal(6, 8), dim=1), F.normalize(normal(9, 8, seed=1), dim=1), torch.arange(6)
    cosine = F.cross_entropy(2 * 5.0 * c @ e.T, y, reduction="none")
    torch.testing.assert_close(csc_loss(c, e, y, 5.0), cosine, rtol=0, atol=1e-14)


def test_gradients_are_the_closed_forms():
    c, e, y = normal(4, 5).requires_grad_(), normal(7, 5, seed=1).requires_grad_(), torch.tensor([3, 0, 3, 6])
    alpha = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    csc_loss(c, e, y, alpha).sum().backward()
    away = e[None] - c[:, None]  # (4, 7, 5)
    p = (-alpha * away.square().sum(2)).softmax(1)
    true = F.one_hot(y, 7)
    torch.testing.assert_close(c.grad, (2 * alpha * (p @ e - e[y])).detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(e.grad, (2 * alpha * ((true - p)[..., None] * away).sum(0)).detach(), rtol=0, atol=1e-13)
    distances = away.square().sum(2)
    wanted = ((true - p) * distances).sum().detach()
    torch.testing.assert_close(alpha.grad, wanted, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda *x: csc_loss(x[0], x[1], y, x[2]), (c, e, alpha))


def test_what_moves_all_moves_nothing():
    c, e, y = normal(5, 8), normal(6, 8, seed=1), torch.tensor([0, 5, 2, 2, 1])
    loss, turn, shift = csc_loss(c, e, y, 2.0), rotation(8, 3), normal(8, seed=4)
    torch.testing.assert_close(csc_loss(c @ turn + shift, e @ turn + shift, y, 2.0), loss)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(csc_loss(c, e[order], order.argsort()[y], 2.0), loss)
    assert not torch.allclose(csc_loss(3 * c, e, y, 2.0), loss)


def test_the_bound_is_tightest_at_the_true_precision_and_void_for_shuffled_talkers():
    torch.manual_seed(0)
    e, y = torch.eye(16, dtype=torch.float64)[:10], torch.randint(10, (100_000,))
    c = e[y] + 0.5 * torch.randn(len(y), 16, dtype=torch.float64)
    bound = {alpha: math.log(10) - csc_loss(c, e, y, alpha).mean().item() for alpha in (1.0, 2.0, 4.0)}
    assert bound == pytest.approx({1.0: 1.138, 2.0: 1.345, 4.0: 1.089}, abs=0.01)
    assert math.log(10) - csc_loss(c, e, y[torch.randperm(len(y))], 2.0).mean().item() < 0


def test_the_loss_is_float32_inside_autocast():
    c, e = normal(4, 32, dtype=torch.float32), normal(4, 32, seed=1, dtype=torch.float32)
    exact = csc_loss(c, e, torch.arange(4), 10.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(csc_loss(c, e, torch.arange(4), 10.0), exact)


def test_in_the_batch_each_query_meets_the_bank_of_its_own_condition():
    queries, banks, conditions = normal(5, 4), normal(3, 6, 4, seed=1), torch.tensor([2, 0, 1, 1, 2])
    alpha = torch.tensor(3.0, dtype=torch.float64)
    found = in_batch_scores(queries, conditions, banks, alpha)
    for row, condition in enumerate(conditions.tolist()):
        wanted = [-3.0 * (queries[row] - other).square().sum() for other in banks[condition]]
        wanted = torch.stack(wanted) + 3.0 * queries[row].square().sum()
        torch.testing.assert_close(found[row], wanted)


# ------------------------------------------------------------------------------------------------- global vectors


def test_precision_begins_where_asked_and_stays_positive():
    vectors = GlobalVectors("inbatch", 4, alpha=10.0)
    assert vectors.alpha.item() == pytest.approx(10, rel=1e-6)
    vectors.a.data.fill_(-1e4)
    assert vectors.alpha.item() == pytest.approx(LEAST_ALPHA)


def test_a_table_learns_and_an_average_follows():
    table, average = GlobalVectors("table", 4, 5), GlobalVectors("ema", 4, 5)
    c, y = F.normalize(normal(3, 4, dtype=torch.float32), dim=1), torch.tensor([1, 1, 4])
    for vectors in (table, average):
        torch.testing.assert_close(vectors().norm(dim=1), torch.ones(5))
        vectors.zero_grad()
        csc_loss(c, vectors(), y, vectors.alpha).sum().backward()
        before = vectors.e.detach().clone()
        vectors.hear(c, y)
        vectors.follow()
        assert torch.equal(vectors.e.detach(), before) == (vectors is table)
    assert table.e.grad.any()
    assert not any(weight is average.e for weight in average.parameters())
    assert "e" in average.state_dict()


@pytest.mark.parametrize("momentum", [1.0, 0.9, 0.0])
def test_averages_are_the_definition(momentum):
    vectors = GlobalVectors("ema", 4, 5, momentum).double()
    before = vectors.e.clone()
    parts = [(normal(3, 4), torch.tensor([1, 1, 4])), (normal(2, 4, seed=1), torch.tensor([4, 0]))]
    for part in parts:
        vectors.hear(*part)
    assert torch.equal(vectors.e, before)
    vectors.follow()
    c, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    for talker in range(5):
        wanted = before[talker]
        if (y == talker).any():
            wanted = F.normalize(momentum * wanted + (1 - momentum) * c[y == talker].mean(0), dim=0)
        torch.testing.assert_close(vectors.e[talker], wanted)
    after = vectors.e.clone()
    vectors.follow()  # nothing was heard since
    assert torch.equal(vectors.e, after)


def test_a_broken_step_leaves_no_trace_in_averages():
    vectors = GlobalVectors("ema", 4, 2)
    vectors.hear(torch.full((2, 4), torch.nan), torch.tensor([0, 1]))
    vectors.follow()
    assert vectors.e.isfinite().all()


# ----------------------------------------------------------------------------------------------------- attention


def attention(scope: str = "identity", dim: int = 6) -> ConditionAttention:
    torch.manual_seed(0)
    module = ConditionAttention(dim, scope).double()
    torch.nn.init.normal_(module.value.weight)
    return module


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_attention_is_the_definition(leave_one_out):
    module, z = attention(), normal(3, 4, 6)
    c, weights = module(z, leave_one_out)
    for i in range(3):
        for m in range(4):
            among = [k for k in range(4) if not (leave_one_out and k == m)]
            q = module.query.weight @ z[i, m]
            shares = torch.stack([q @ (module.key.weight @ z[i, k]) / math.sqrt(6) for k in among]).softmax(0)
            torch.testing.assert_close(weights[i, m, among], shares)
            values = torch.stack([module.value.weight @ z[i, k] for k in among])
            torch.testing.assert_close(c[i, m], shares @ values)


def test_equal_keys_share_alike():
    module, z = attention(), normal(2, 4, 6)
    module.key.weight.data.zero_()
    c, weights = module(z)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 4))
    torch.testing.assert_close(c, (z @ module.value.weight.T).mean(1, keepdim=True).expand_as(c))


def test_it_begins_as_a_mean_of_what_it_attends_to():
    torch.manual_seed(0)
    module, z = ConditionAttention(6), normal(2, 3, 6, dtype=torch.float32)
    c, weights = module(z)
    torch.testing.assert_close(c, weights @ z)


@pytest.mark.parametrize("scope", ["identity", "batch"])
def test_the_order_of_conditions_is_that_of_the_outputs(scope):
    module, z, order = attention(scope), normal(3, 4, 6), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(module(z[:, order])[0], module(z)[0][:, order])


def test_talkers_do_not_hear_each_other_unless_asked_to():
    for scope, apart in (("identity", True), ("batch", False)):
        z = normal(3, 4, 6).requires_grad_()
        (gradient,) = torch.autograd.grad(attention(scope)(z)[0][1].square().sum(), z)
        assert gradient[1].all()
        assert (not gradient[[0, 2]].any()) == apart


@pytest.mark.parametrize("scope", ["identity", "batch"])
def test_left_out_it_is_not_heard(scope):
    module, z = attention(scope), normal(3, 4, 6).requires_grad_()
    weights = module(z, leave_one_out=True)[1]
    own = torch.eye(4, dtype=torch.bool).expand(3, -1, -1)
    if scope == "batch":
        own = torch.eye(12, dtype=torch.bool).view(3, 4, 12)
    assert (weights[own] == 0).all()
    assert (weights[~own] > 0).all()
    module.query.weight.data.zero_()  # which asks for all alike: the value path remains
    (gradient,) = torch.autograd.grad(module(z, leave_one_out=True)[0][1, 2].sum(), z)
    assert not gradient[1, 2].any()
    assert gradient[1, 0].all()


def test_a_single_condition_cannot_be_left_out():
    for scope in ("identity", "batch"):
        with pytest.raises(ValueError, match="two conditions or more"):
            attention(scope)(normal(3, 1, 6), leave_one_out=True)
        attention(scope)(normal(3, 1, 6))


def test_interferers_may_be_attended_to_in_the_batch():
    module, z, others = attention("batch"), normal(2, 3, 6), normal(4, 6, seed=1)
    c, weights = module(z, others=others)
    assert weights.shape == (2, 3, 10)
    values = torch.cat([z.flatten(0, 1), others]) @ module.value.weight.T
    torch.testing.assert_close(c, weights @ values)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3, dtype=torch.float64))
