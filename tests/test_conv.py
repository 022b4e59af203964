"""Waveform convolutions against the plain form: `F.conv1d` and the norm's definition, on (B, C, T) in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from auricle.nn.conv import ChannelNorm, ConvLayer, WaveformConvolutions, _multiply, convolve

CPC = ((10, 8, 4, 4, 4), (5, 4, 2, 2, 2), (3, 2, 1, 1, 1))
HUBERT = ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), (0,) * 7)


def stack(shape=CPC, bias=True):
    torch.manual_seed(0)
    model = WaveformConvolutions([6 + i for i in range(len(shape[0]))], *shape, bias=bias)
    for layer in model.layers:  # scales and shifts that can be told from 1 and 0
        torch.nn.init.uniform_(layer.norm.weight, 0.5, 2)
        torch.nn.init.uniform_(layer.norm.bias, -1, 1)
    return model


def plain(model, waveform):
    """Frames (1, T, C) of one waveform (S,), in float64."""
    x = waveform.double()[None, None]
    for layer in model.layers:
        conv, norm = layer.conv, layer.norm
        bias = None if conv.bias is None else conv.bias.double()
        x = F.conv1d(x, conv.weight.double(), bias, layer.stride, layer.padding)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=1) + 1e-5).sqrt()
        x = (x * norm.weight[:, None].double() + norm.bias[:, None].double()).relu()
    return x.transpose(1, 2)


@pytest.mark.parametrize("shape", [CPC, HUBERT])
@pytest.mark.parametrize("bias", [True, False])
def test_frames_are_those_of_plain_convolutions(shape, bias):
    model = stack(shape, bias)
    waveform = torch.randn(3217)
    found, none = model(waveform[None], None)
    assert none is None
    torch.testing.assert_close(found, plain(model, waveform).float(), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.integers(1, 9),
    stride=st.integers(1, 6),
    padding=st.integers(0, 4),
    inputs=st.integers(1, 3),
    spare=st.integers(0, 20),
    bias=st.booleans(),
)
def test_both_products_are_the_convolution_and_have_its_gradient(kernel, stride, padding, inputs, spare, bias):
    torch.manual_seed(0)
    x = torch.randn(2, max(1, kernel - 2 * padding) + spare, inputs, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, inputs, kernel, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None
    wanted = F.conv1d(x.transpose(1, 2), weight, shift, stride, padding).transpose(1, 2)
    leaves = [x, weight, *([shift] if bias else [])]
    gradients = torch.autograd.grad(wanted.square().sum(), leaves)
    for product in (convolve, _multiply):
        found = product(x, weight, shift, stride, padding)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), leaves), gradients)


@pytest.mark.parametrize("groups", [2, 6])
def test_groups_are_convolved_apart(groups):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 6 // groups, 4, dtype=torch.float64, requires_grad=True)
    wanted = F.conv1d(x.mT, weight, None, padding=2, groups=groups).mT
    found = convolve(x, weight, None, padding=2, groups=groups)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(out.pow(3).sum(), [x, weight]) for out in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_by_the_hundred_have_the_same_gradients(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 301, 24), torch.randn(16, 24, 3) / 9
    exact = [value.double().requires_grad_() for value in (x, weight)]
    rough = [value.to(dtype).requires_grad_() for value in (x, weight)]
    wanted = torch.autograd.grad(F.conv1d(exact[0].mT, exact[1], None, 2).square().mean(), exact)
    found = torch.autograd.grad(convolve(rough[0], rough[1], None, 2).float().square().mean(), rough)
    for one, two in zip(found, wanted, strict=True):
        assert (one - two).norm() / two.norm() < (1e-5 if dtype == torch.float32 else 2e-2)


def test_channel_norm_of_random_scales():
    torch.manual_seed(0)
    norm, x = ChannelNorm(5), 1e-2 * torch.randn(3, 7, 5)  # as small as epsilon's root, so that epsilon tells
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    y = x.double()
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=1) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), (y * norm.weight + norm.bias).float())


@pytest.mark.parametrize("shape", [CPC, HUBERT])
def test_a_clip_alone_is_the_same_in_a_batch(shape):
    model = stack(shape)
    lengths = torch.tensor([4000, 400, 401, 1603, 3999, 100])
    waveforms = torch.randn(6, 4000)  # past a clip's end lies noise, which must not matter
    together, frames = model(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, count = model(waveforms[row : row + 1, :length], lengths[row : row + 1])
        assert count == frames[row]
        torch.testing.assert_close(alone[0, :count], together[row, :count], atol=1e-5, rtol=0)
        if count:
            torch.testing.assert_close(
                alone[:, :count], plain(model, waveforms[row, :length]).float(), atol=1e-4, rtol=0
            )


def test_every_length_gives_as_many_frames_as_convolutions_do():
    model = stack()
    for length in range(400, 900):
        wanted = plain(model, torch.zeros(length)).shape[1]
        assert model.frames(torch.tensor(length)) == wanted
    assert model.frames(torch.tensor([20480, 160, 158, 0])).tolist() == [128, 1, 0, 0]


@pytest.mark.parametrize(("shape", "reach", "offset", "hop"), [(CPC, 465, 79.0, 160), (HUBERT, 400, 199.5, 320)])
def test_a_frame_sees_what_is_said_of_it(shape, reach, offset, hop):
    model = stack(shape).double()
    assert (model.reach, model.offset, model.hop) == (reach, offset, hop)
    waveform = torch.randn(1, 4000, dtype=torch.float64, requires_grad=True)
    frames, _ = model(waveform, None)
    (gradient,) = torch.autograd.grad(frames[0, 5].sum(), waveform)
    seen = gradient[0].nonzero()[:, 0]
    assert (seen.min() + seen.max()) / 2 == 5 * hop + offset
    assert seen.max() - seen.min() + 1 == reach


def test_bfloat16_follows_float32():
    model = stack()
    waveforms, lengths = torch.randn(2, 3200), torch.tensor([3200, 2000])
    exact, _ = model(waveforms, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = model(waveforms, lengths)
    assert (rough - exact).norm() / exact.norm() < 0.03


def test_weights_have_the_shapes_of_plain_layers():
    layer = ConvLayer(3, 4, 8, 4, 2, bias=True)
    shapes = {name: tuple(weight.shape) for name, weight in layer.named_parameters()}
    assert shapes == {"conv.weight": (4, 3, 8), "conv.bias": (4,), "norm.weight": (4,), "norm.bias": (4,)}
