"""SI-SNR in closed form, and the choice of the permutation against planted and exhaustive ones."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import auricle.nn.separation
from auricle.nn.separation import best_permutation, in_order, pairwise_si_snr, si_snr


def orthogonal(count: int, samples: int = 1000) -> torch.Tensor:
    """Rows (C, S) without a mean, of power 1, orthogonal to each other: float64."""
    noise = torch.randn(samples, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(noise - noise.mean(0))[0].T * samples**0.5


@pytest.mark.parametrize("sir", [-5.0, 0.0, 5.0])
def test_of_a_mixture_it_is_the_ratio(sir):
    target, interferer = orthogonal(2)
    mixture = target + interferer * 10 ** (-sir / 20)
    for gain, level in ((1.0, 0.0), (-0.01, 0.3), (20.0, -2.0)):  # neither loudness, sign nor offset matters
        assert float(si_snr(gain * mixture + level, 3 * target - level)) == pytest.approx(sir, abs=1e-11)
    assert float(si_snr(mixture, target)) - float(si_snr(mixture.clone(), target)) == 0  # no improvement


def test_in_float32_and_inside_autocast():
    target, interferer = orthogonal(2)
    mixture = target + interferer * 10**-1.5  # 30 dB
    with torch.autocast("cpu", torch.bfloat16):
        found = si_snr(mixture.float(), target.float())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(30, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("silent", ["source", "estimate", "both", "neither"])
def test_silence_and_perfection_are_finite(dtype, silent):
    x = orthogonal(1)[0].to(dtype)
    zero = torch.zeros_like(x)
    estimate = (zero if silent in ("estimate", "both") else x).clone().requires_grad_()
    value = si_snr(estimate, zero if silent in ("source", "both") else x)
    value.backward()
    assert value.isfinite()
    assert estimate.grad.isfinite().all()


def test_scores_are_of_every_pair():
    estimates, sources = torch.randn(2, 3, 50), torch.randn(2, 3, 50)
    scores = pairwise_si_snr(estimates, sources)
    for clip, i, j in itertools.product(range(2), range(3), range(3)):
        torch.testing.assert_close(scores[clip, i, j], si_snr(estimates[clip, i], sources[clip, j]))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_planted_permutation_is_found(count):
    generator = torch.Generator().manual_seed(count)
    sources = torch.randn(6, count, 200, generator=generator)
    planted = torch.stack([torch.randperm(count, generator=generator) for _ in range(6)])
    noisy = sources + 0.1 * torch.randn(sources.shape, generator=generator)
    estimates = torch.empty_like(noisy).scatter_(1, planted[..., None].expand_as(noisy), noisy)
    found = best_permutation(pairwise_si_snr(estimates, sources))
    assert torch.equal(found, planted)
    torch.testing.assert_close(in_order(estimates, found), noisy)
    names = torch.arange(count).expand(6, count)  # what else the streams carry goes the same way
    assert torch.equal(in_order(names, found), planted)


def test_swaps_leave_the_loss_unchanged():
    estimates, sources = torch.randn(4, 3, 100), torch.randn(4, 3, 100)
    embeddings = torch.randn(4, 3, 7)

    def loss(estimates, sources, embeddings):
        order = best_permutation(pairwise_si_snr(estimates, sources))
        ordered = (in_order(embeddings, order) * sources[..., :7]).sum()
        return si_snr(in_order(estimates, order), sources).mean(), ordered

    swap = torch.tensor([2, 0, 1])
    expected = loss(estimates, sources, embeddings)
    torch.testing.assert_close(loss(estimates[:, swap], sources, embeddings[:, swap]), expected)
    torch.testing.assert_close(loss(estimates, sources[:, swap], embeddings), expected)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
def test_hungarian_and_all_orders_agree(seed, count):
    scores = torch.randn(3, count, count, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for few in (0, 4):
            patch.setattr(auricle.nn.separation, "_FEW", few)
            found.append(best_permutation(scores))
    assert torch.equal(*found)
    totals = scores[torch.arange(3)[:, None], found[0], torch.arange(count)].sum(1)
    best = [
        max(sum(clip[i][j] for j, i in enumerate(order)) for order in itertools.permutations(range(count)))
        for clip in scores.tolist()
    ]
    torch.testing.assert_close(totals, torch.tensor(best))


def test_no_gradient_flows_through_the_choice():
    scores = torch.randn(2, 2, 2, requires_grad=True)
    assert not best_permutation(scores).requires_grad
    assert not best_permutation(torch.randn(2, 5, 5, requires_grad=True)).requires_grad
