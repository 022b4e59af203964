"""GALR against its definition, written out in PyTorch's own modules and float64; segments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from auricle.nn.galr import GALR, GalrStack, SegmentNorm, count_segments, overlap_add, segment
from auricle.nn.positions import sinusoids


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("length", [997, 1000, 3999])
@pytest.mark.parametrize("size", [2, 64, 100])
def test_overlap_add_undoes_segments(length, size):
    x = noise(2, length, 3)
    segments = segment(x, size)
    assert segments.shape == (size, 2, math.ceil(length / (size // 2)) + 1, 3)
    assert count_segments(torch.tensor([length, 1, 0]), size).tolist() == [segments.shape[2], 2, 0]
    torch.testing.assert_close(overlap_add(segments, length), x, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 60), half=st.integers(1, 20))
def test_segments_are_pieces_of_the_padded_sequence(length, half):
    x = torch.arange(1.0, length + 1)[None, :, None]
    padded = [0.0] * half + x.flatten().tolist() + [0.0] * (3 * half)
    for number, places in enumerate(segment(x, 2 * half)[:, 0, :, 0].T.tolist()):
        assert places == padded[number * half : (number + 2) * half]
    torch.testing.assert_close(overlap_add(segment(x, 2 * half), length), x)


@pytest.mark.parametrize(
    ("blocks", "dim", "hidden", "size", "low", "parameters"),
    [(6, 64, 128, 100, 32, 1_432_728), (6, 128, 128, 64, 8, 2_191_536), (2, 128, 128, 64, 8, 730_512)],
)
def test_sizes_are_the_published_ones(blocks, dim, hidden, size, low, parameters):
    stack = GalrStack(blocks, dim, hidden, size, low, heads=8)
    assert sum(weight.numel() for weight in stack.parameters()) == parameters


def reference(block: GALR, x: torch.Tensor, hidden: int) -> torch.Tensor:
    """One block on x (B, D, K, S), by PyTorch's modules in the layout of the released code."""
    batch, dim, size, segments = x.shape
    weights = {name: weight.detach() for name, weight in block.state_dict().items()}

    def given_to(module: nn.Module, **names: str) -> nn.Module:
        module = module.to(x.dtype)
        module.load_state_dict({own: weights[theirs] for own, theirs in names.items()})
        return module

    def like(name: str) -> dict[str, str]:
        return {"weight": f"{name}.weight", "bias": f"{name}.bias"}

    lstm = nn.LSTM(dim, hidden, batch_first=True, bidirectional=True).to(x.dtype)
    lstm.load_state_dict(block.lstm.state_dict())
    rows = lstm(x.permute(0, 3, 2, 1).reshape(batch * segments, size, dim))[0]
    local = given_to(nn.Linear(2 * hidden, dim), **like("local_out"))(rows)
    local = local.view(batch, segments, size, dim).permute(0, 3, 2, 1)
    x = x + given_to(nn.GroupNorm(1, dim, eps=1e-5), **like("local_norm"))(local)

    low = len(weights["reduce.bias"])
    mixed = given_to(nn.Linear(size, low), **like("reduce"))(x.transpose(2, 3))  # (B, D, S, Q)
    mixed = mixed.permute(0, 3, 2, 1).reshape(batch * low, segments, dim)
    mixed = given_to(nn.LayerNorm(dim), **like("input_norm"))(mixed) + sinusoids(segments, dim).to(x.dtype)
    names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
    names |= {f"out_proj.{kind}": f"attention_out.{kind}" for kind in ("weight", "bias")}
    attention = given_to(nn.MultiheadAttention(dim, block.heads, batch_first=True), **names)
    mixed = given_to(nn.LayerNorm(dim), **like("attention_norm"))(mixed + attention(mixed, mixed, mixed)[0])
    mixed = mixed.view(batch, low, segments, dim).permute(0, 3, 2, 1)  # (B, D, S, Q)
    mixed = given_to(nn.Linear(low, size), **like("expand"))(mixed).transpose(2, 3)
    return x + given_to(nn.GroupNorm(1, dim, eps=1e-5), **like("global_norm"))(mixed)


def block_of(seed=0):
    torch.manual_seed(seed)
    block = GALR(8, 6, 4, 3, heads=2, dropout=0.1).double().eval()
    with torch.no_grad():
        for weight in block.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return block


def test_block_is_that_of_the_definition():
    block, x = block_of(), noise(2, 8, 4, 5, dtype=torch.float64).requires_grad_()  # (B, D, K, S)
    ours, theirs = block(x.permute(2, 0, 3, 1)).permute(1, 3, 0, 2), reference(block, x, 6)
    assert ours.shape == x.shape
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad((out * weight).sum(), x)[0] for out in (ours, theirs)))


@pytest.mark.parametrize("counts", [[7, 4, 1], [7, 7, 7]])
def test_a_clip_in_a_batch_is_the_clip_alone(counts):
    torch.manual_seed(0)
    stack = GalrStack(2, 8, 6, 4, 3, heads=2).double().eval()
    x = noise(4, 3, 7, 8, dtype=torch.float64).requires_grad_()
    together = stack(x, torch.tensor(counts))[-1]
    for clip, count in enumerate(counts):
        alone = stack(x[:, clip : clip + 1, :count], None)[-1]
        torch.testing.assert_close(together[:, clip : clip + 1, :count], alone)
        weight = torch.randn_like(alone)
        beside = (together[:, clip : clip + 1, :count] * weight).sum()
        batched, single = (
            torch.autograd.grad(out, x, retain_graph=True)[0] for out in (beside, (alone * weight).sum())
        )
        torch.testing.assert_close(batched, single)


def test_layers_are_given_in_the_order_asked():
    stack, x = GalrStack(3, 8, 6, 4, 3, heads=2).eval(), noise(4, 1, 5, 8)
    states = stack(x, None)
    assert len(states) == 4
    torch.testing.assert_close(states[0], x)
    for chosen in ([2, 0], [1], [3, 3]):
        torch.testing.assert_close(stack(x, None, chosen), [states[layer] for layer in chosen])


@pytest.mark.parametrize("counts", [None, [5, 3, 0]])
def test_norm_is_groupnorm_over_true_segments(counts):
    norm = SegmentNorm(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    x = (50 + 3 * noise(4, 3, 5, 3, dtype=torch.float64)).requires_grad_()
    out = norm(x, None if counts is None else torch.tensor(counts))
    assert out.isfinite().all()
    for clip, count in enumerate(counts or [5, 5, 5]):
        if count:
            rows = x[:, clip, :count].permute(2, 0, 1)[None]  # (1, D, K, S)
            expected = nn.functional.group_norm(rows, 1, norm.weight, norm.bias)[0].permute(1, 2, 0)
            torch.testing.assert_close(out[:, clip, :count], expected)
    number = None if counts is None else torch.tensor(counts)

    def scaled(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x, number))

    assert torch.autograd.gradcheck(scaled, (x, norm.weight, norm.bias))


def test_bfloat16_follows_float32():
    torch.manual_seed(0)
    block, x = GALR(32, 32, 16, 8, heads=4, dropout=0.0), noise(16, 2, 20, 32).requires_grad_()
    weight, grads = noise(16, 2, 20, 32, seed=1), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = block(x)
        assert out.dtype == torch.float32  # the residual's
        block.zero_grad()
        grads.append([out.detach(), *torch.autograd.grad((out * weight).sum(), [x, *block.parameters()])])
    for one, other in zip(*grads, strict=True):
        assert float((one - other).norm()) < 0.05 * float(one.norm()) + 1e-2
