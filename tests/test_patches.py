"""Patches, their positions, and attention in local windows, against slow or independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.errors import ConfigError
from auricle.nn.patches import (
    gather_tokens,
    hidden_bound,
    normalize_patches,
    pad_frames,
    patch_steps,
    patchify,
    random_tokens,
    scatter_tokens,
    select,
    unpatchify,
    visible_bound,
)
from auricle.nn.positions import GridPositions, grid_sinusoids
from auricle.nn.swin import LocalTransformer


@given(steps=st.integers(1, 5), bands=st.integers(1, 4), length=st.integers(1, 4), height=st.integers(1, 4))
def test_patches_are_cut_in_time_major_order(steps, bands, length, height):
    x = torch.arange(2.0 * steps * length * bands * height).view(2, steps * length, bands * height)
    patches = patchify(x, (length, height))
    for token in range(steps * bands):
        t, f = token // bands * length, token % bands * height
        assert torch.equal(patches[:, token], x[:, t : t + length, f : f + height].flatten(1))
    assert torch.equal(unpatchify(patches, bands, (length, height)), x)


def test_a_linear_map_of_patches_is_a_strided_convolution():
    x, conv = torch.randn(2, 48, 128), nn.Conv2d(1, 10, 16, stride=16)
    wanted = conv(x[:, None]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(F.linear(patchify(x), conv.weight.flatten(1), conv.bias), wanted, atol=1e-5, rtol=0)


def test_padding_to_whole_patches():
    assert pad_frames(torch.zeros(1, 17, 2), 16, 3.0).shape == (1, 32, 2)
    assert pad_frames(torch.zeros(1, 17, 2), 16, 3.0)[0, 17:].unique() == 3.0
    assert pad_frames(torch.zeros(1, 0, 2), 16, 3.0).shape == (1, 16, 2)
    assert pad_frames(torch.zeros(1, 998, 2), 16, 3.0, least=1024).shape == (1, 1024, 2)
    assert patch_steps(torch.tensor([0, 1, 16, 17])).tolist() == [0, 1, 1, 2]


def test_normalised_patches_have_unit_unbiased_variance():
    patches = torch.randn(3, 5, 256) * 4 + 2
    patches[1, 2] = 7.0
    found, array = normalize_patches(patches), patches.double().numpy()
    wanted = (array - array.mean(-1, keepdims=True)) / np.sqrt(array.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    energy = found.square().mean(-1)
    assert energy[1, 2] == 0
    energy[1, 2] = 255 / 256
    torch.testing.assert_close(energy, torch.full_like(energy, 255 / 256))


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=4), ratio=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_tokens_kept_at_random(counts, ratio, seed):
    torch.manual_seed(seed)
    total = max(40, *counts)
    seen = random_tokens(torch.tensor(counts), total, ratio)
    visible = select(seen, visible_bound(total, ratio))
    true = torch.arange(total) < torch.tensor(counts)[:, None]
    hidden = select(true & ~seen, hidden_bound(total, ratio))
    for row, count in enumerate(counts):
        kept = min(count, max(1, int(count * (1 - ratio))))
        assert (visible.counts[row], hidden.counts[row]) == (kept, count - kept)
        assert kept <= visible.index.shape[1]
        assert count - kept <= hidden.index.shape[1]
        both = [*visible.index[row, :kept].tolist(), *hidden.index[row, : count - kept].tolist()]
        assert sorted(both) == list(range(count))
        assert visible.index[row, :kept].tolist() == sorted(visible.index[row, :kept].tolist())
        assert not visible.index[row, kept:].any()


def test_every_true_token_is_kept_equally_often():
    torch.manual_seed(0)
    kept = random_tokens(torch.full((4000,), 10), 16, 0.75).float().mean(0)
    assert not kept[10:].any()
    assert (kept[:10] - 0.2).abs().max() < 4 * math.sqrt(0.2 * 0.8 / 4000)


def test_gathering_and_scattering():
    x, fill = torch.randn(2, 6, 3), torch.full((2, 6, 3), 9.0)
    chosen = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    tokens = select(chosen, 4)
    rows = gather_tokens(x, tokens.index)
    assert torch.equal(rows[0, :3], x[0, [1, 2, 5]])
    assert torch.equal(scatter_tokens(rows, tokens, fill), torch.where(chosen[:, :, None], x, fill))
    assert torch.equal(gather_tokens(x[0], tokens.index), x[0][tokens.index])


def cosine(table: Tensor, first: int, second: int) -> float:
    return F.cosine_similarity(table[first], table[second], dim=0).item()


def test_position_codes_of_a_grid():
    dim, bands = 16, 3
    table = grid_sinusoids(5, bands, dim)
    for token in range(15):
        for channel in range(dim):
            place = token % bands if channel < dim // 2 else token // bands
            angle = place / 10000 ** (channel % (dim // 4) / (dim // 4))
            wave = math.sin if channel % (dim // 2) < dim // 4 else math.cos
            assert table[token, channel].item() == pytest.approx(wave(angle), abs=1e-6)


def test_the_released_table_is_the_transposed_grids():
    right, released = grid_sinusoids(64, 8, 768), grid_sinusoids(64, 8, 768, "audiomae")
    for token in (0, 5, 63, 64, 300, 511):
        f, t = token % 64, token // 64
        wanted = grid_sinusoids(t + 1, f + 1, 768)[-1]  # the code of band f and step t
        torch.testing.assert_close(released[token], wanted)
    assert len(released.unique(dim=0)) == 512
    # Neighbours in time inside a column of the released table, across its edge, and on the right grid.
    assert cosine(released, 8 * 20, 8 * 21) == pytest.approx(0.86, abs=0.01)
    assert cosine(released, 8 * 31, 8 * 32) == pytest.approx(0.74, abs=0.01)
    assert cosine(right, 8 * 31, 8 * 32) == pytest.approx(0.99, abs=0.01)


def test_grid_positions_grow_unless_they_are_weights():
    ours, released = GridPositions(16, 4, 2), GridPositions(16, 4, 2, "audiomae")
    assert torch.equal(ours(20)[:8], ours(8))
    assert not ours.state_dict()
    assert list(released.state_dict()) == ["table"]
    with pytest.raises(ConfigError, match="holds 8 tokens"):
        released(10)


def plain_local(model: LocalTransformer, x: Tensor, steps: int, bands: int) -> Tensor:
    """The same decoder by rolls and window partitions on the grid, (steps, bands, D), window by window, in float64."""
    length, height = model.window
    x = x.view(steps, bands, -1)
    x = F.pad(x, (0, 0, 0, 0, 0, -steps % length))
    total = len(x)
    for number, block in enumerate(model.blocks):
        shift = length // 2 if number % 2 else 0
        rolled, time = x.roll(-shift, 0), torch.arange(total).roll(-shift)
        added = torch.zeros_like(x)
        for t in range(0, total, length):
            for f in range(0, bands, height):
                window = rolled[t : t + length, f : f + height].reshape(length * height, -1)
                when = time[t : t + length].repeat_interleave(height)
                place = torch.stack([torch.arange(len(when)) // height, torch.arange(len(when)) % height], 1)
                between = (place[:, None] - place[None]).double()
                between = between.sign() * (1 + between.abs()).log()
                bias = block.bias_out(F.relu(block.bias_in(between))).permute(2, 0, 1)
                q, k, v = (
                    part.view(len(when), block.heads, -1).transpose(0, 1) for part in block.qkv(window).chunk(3, 1)
                )
                scores = (
                    F.cosine_similarity(q[:, :, None], k[:, None], dim=-1) / block.tau.clamp(min=0.01)[:, None, None]
                )
                apart = (when[:, None] < shift) != (when[None] < shift)
                scores = scores + bias + (-100.0 if shift else 0.0) * apart
                scores = scores.masked_fill(when >= steps, -math.inf)
                mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
                added[t : t + length, f : f + height] = block.attention_out(mixed).view(length, height, -1)
        x = x + block.attention_norm(added.roll(shift, 0))
        x = x + block.ffn_norm(block.ffn_out(F.gelu(block.ffn_in(x))))
    return model.final_norm(x[:steps].flatten(0, 1))


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_local_attention_is_the_plain_one(layers):
    torch.manual_seed(0)
    bands = 8
    model = LocalTransformer(16, layers, 4, 32, bands).double().eval()
    for block in model.blocks:  # temperatures and scores that matter; one at its clamp
        nn.init.uniform_(block.tau, 0.05, 1.0)
        block.tau.data[0] = 0.001
        nn.init.normal_(block.bias_in.weight, std=1.0)
    x, steps = torch.randn(3, 12 * bands, 16, dtype=torch.float64), torch.tensor([12, 7, 9])
    for row, length in enumerate(steps.tolist()):
        alone = model(x[row : row + 1, : length * bands], steps[row : row + 1])[0]
        torch.testing.assert_close(
            alone, plain_local(model, x[row, : length * bands], length, bands), atol=1e-5, rtol=0
        )


def test_local_attention_of_a_clip_alone_is_that_in_a_batch():
    torch.manual_seed(0)
    model = LocalTransformer(16, 4, 4, 32, 8).eval()
    x, steps = torch.randn(3, 96, 16), torch.tensor([12, 7, 1])
    together = model(x, steps)
    for row, length in enumerate(steps.tolist()):
        alone = model(x[row : row + 1, : length * 8], steps[row : row + 1])
        torch.testing.assert_close(together[row, : length * 8], alone[0], atol=1e-5, rtol=0)


def test_local_attention_reaches_neighbouring_windows_in_time_only():
    torch.manual_seed(0)
    model = LocalTransformer(16, 2, 4, 32, 8).eval()
    x = torch.randn(1, 12 * 8, 16, requires_grad=True)
    model(x, torch.tensor([12]))[0, 4 * 8 + 1, 0].backward()  # step 4, band 1
    heard = x.grad.abs().sum(-1).view(12, 8) > 0
    assert heard[:8, :4].all()  # its shifted window (2 to 5) and the two windows that these lie in
    assert not heard[8:].any()
    assert not heard[:, 4:].any()


def test_dropout_of_the_scores_is_drawn_in_training_only():
    torch.manual_seed(0)
    block = LocalTransformer(16, 1, 4, 32, 4).blocks[0]
    assert not torch.equal(block.bias(), block.bias())
    assert torch.equal(block.eval().bias(), block.bias())
