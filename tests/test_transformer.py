from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from auricle.nn import transformer
from auricle.nn.linear import Linear
from auricle.nn.losses import reconstruction_loss
from auricle.nn.positions import SinusoidalPositions, sinusoids
from auricle.nn.transformer import Dropout, Transformer, _plain_attention, attention, mix_padded, padding_bias


def reference_layer(block, norm: str) -> nn.TransformerEncoderLayer:
    """PyTorch's own layer with the weights of one of our blocks."""
    dim, ffn = block.ffn_in.in_features, block.ffn_in.out_features
    layer = nn.TransformerEncoderLayer(
        dim,
        block.heads,
        ffn,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=block.ffn_norm.eps,
        batch_first=True,
        norm_first=norm == "pre",
    )
    attend = layer.self_attn
    with torch.no_grad():
        attend.in_proj_weight.copy_(block.qkv.weight)
        attend.in_proj_bias.copy_(block.qkv.bias)
    for theirs, ours in [
        (attend.out_proj, block.attention_out),
        (layer.linear1, block.ffn_in),
        (layer.linear2, block.ffn_out),
        (layer.norm1, block.attention_norm),
        (layer.norm2, block.ffn_norm),
    ]:
        theirs.load_state_dict(ours.state_dict())
    return layer


def shaken(model: nn.Module) -> nn.Module:
    """Every parameter, norms and biases too, at a random value, so that leaving one out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_stack_is_pytorchs(norm):
    torch.manual_seed(0)
    model = shaken(Transformer(32, 3, 4, 64, dropout=0.0, attention_dropout=0.0, norm=norm, norm_eps=1e-12))
    x = torch.randn(3, 17, 32, requires_grad=True)
    lengths = torch.tensor([17, 9, 1])
    padded = torch.arange(17) >= lengths[:, None]
    states = model(x, lengths)
    expected = x
    for number, block in enumerate(model.blocks, start=1):
        layer = reference_layer(block, norm)
        expected = layer(expected, src_key_padding_mask=padded)
        shown = model.final_norm(expected) if number == 3 else expected
        torch.testing.assert_close(states[number][~padded], shown[~padded], atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(x) * ~padded[..., None]
    ours = torch.autograd.grad((states[-1] * weights).sum(), x, retain_graph=True)[0]
    theirs = torch.autograd.grad((model.final_norm(expected) * weights).sum(), x)[0]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_stack_is_berts():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = shaken(Transformer(32, 2, 4, 64, dropout=0.0, attention_dropout=0.0))
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        attn_implementation="eager",
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).encoder.eval()
    for theirs, ours in zip(bert.layer, model.blocks, strict=True):
        heads = theirs.attention.self
        for part, weight, bias in zip(
            (heads.query, heads.key, heads.value), ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True
        ):
            part.load_state_dict({"weight": weight, "bias": bias})
        theirs.attention.output.dense.load_state_dict(ours.attention_out.state_dict())
        theirs.attention.output.LayerNorm.load_state_dict(ours.attention_norm.state_dict())
        theirs.intermediate.dense.load_state_dict(ours.ffn_in.state_dict())
        theirs.output.dense.load_state_dict(ours.ffn_out.state_dict())
        theirs.output.LayerNorm.load_state_dict(ours.ffn_norm.state_dict())
    x = torch.randn(2, 11, 32)
    expected = bert(x).last_hidden_state
    torch.testing.assert_close(model(x, None)[-1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 7, 200])
def test_plain_products_equal_the_fused_kernel(frames):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, frames, 16, requires_grad=True).unbind(0)
    bias = padding_bias(torch.tensor([frames, max(frames // 2, 1)]), frames)
    off = Dropout(0.5).eval()
    for mask in (None, bias):
        ours = _plain_attention(q, k, v, mask, off)
        theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        grads = [torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True) for out in (ours, theirs)]
        for mine, other in zip(*grads, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 7, 200])
def test_causal_attention_is_masked_attention(frames):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, frames, 16, requires_grad=True).unbind(0)
    future = torch.ones(frames, frames, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(future, -torch.inf)
    expected = scores.softmax(-1) @ v
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v), retain_graph=True)
    keeping = Dropout(0.5)
    keeping.forward = lambda x: x  # type: ignore[method-assign]
    for dropout in (Dropout(0.0), keeping):  # the fused kernel, and plain products
        ours = attention(q, k, v, None, dropout, causal=True)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
        grads = torch.autograd.grad(ours.square().sum(), (q, k, v), retain_graph=True)
        for mine, other in zip(grads, wanted, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_a_causal_stack_is_the_same_packed_and_padded_and_sees_no_future():
    torch.manual_seed(0)
    model = shaken(Transformer(32, 2, 4, 64, norm="pre", causal=True)).eval()
    x, lengths = torch.randn(3, 17, 32), torch.tensor([17, 9, 1])
    valid = torch.arange(17) < lengths[:, None]
    packed = model(x, lengths)
    padded = model._run(x, [0, 1, 2], partial(mix_padded, bias=None, causal=True))
    for one, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(one[valid], other[valid], atol=1e-5, rtol=1e-5)
    changed = torch.cat([x[:, :9], torch.randn(3, 8, 32)], dim=1)
    for one, other in zip(packed, model(changed, lengths), strict=True):
        torch.testing.assert_close(one[0, :9], other[0, :9], atol=1e-6, rtol=0)
        assert not torch.allclose(one[0, 9], other[0, 9], atol=1e-2)


@pytest.mark.parametrize("scores", [1, 200, 1 << 22])
def test_true_frames_alone_give_what_the_padded_batch_gives(monkeypatch, scores):
    monkeypatch.setattr(transformer, "CPU_SCORES", scores)  # heads one by one, a few together, all
    torch.manual_seed(0)
    model = shaken(Transformer(32, 3, 4, 64, dropout=0.0, attention_dropout=0.0, norm="pre")).double()
    x, lengths = torch.randn(4, 13, 32, dtype=torch.float64, requires_grad=True), torch.tensor([13, 0, 7, 1])
    true = torch.arange(13) < lengths[:, None]
    packed = model(x, lengths)
    padded = model._run(x, range(4), partial(mix_padded, bias=padding_bias(lengths, 13)))
    grads = []
    for states in (packed, padded):
        loss = sum((state[true] ** 3).sum() for state in states)
        grads.append(torch.autograd.grad(loss, [x, *model.parameters()]))
    for ours, plain in zip([*packed, *grads[0]], [*padded, *grads[1]], strict=True):
        if ours.shape == x.shape:
            ours, plain = ours[true], plain[true]
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("shape", [(40,), (3, 40), (16, 40), (2, 300, 40), (0, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_is_pytorchs(shape, dtype):
    torch.manual_seed(0)
    layer = Linear(40, 24).to(dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    results = []
    for out in (layer(x), F.linear(x, layer.weight, layer.bias)):
        results.append([out, *torch.autograd.grad((out**2).sum(), [x, layer.weight, layer.bias])])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = x.dtype if dtype == torch.float64 else torch.bfloat16
        assert layer(x).dtype == F.linear(x, layer.weight, layer.bias).dtype == expected


def test_bfloat16_follows_float32():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 50, 16).unbind(0)
    bias = padding_bias(torch.tensor([50, 20]), 50)
    off = Dropout(0.0)
    low = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias, off)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), attention(q, k, v, bias, off), atol=0.03, rtol=0.03)


def test_a_clip_without_frames_stays_finite():
    model = Transformer(16, 2, 2, 32).eval()
    assert all(state.isfinite().all() for state in model(torch.randn(2, 5, 16), torch.tensor([5, 0])))


def test_layers_are_chosen_and_the_rest_not_run():
    torch.manual_seed(0)
    model = Transformer(16, 3, 2, 32, norm="pre").eval()
    x = torch.randn(2, 6, 16)
    every = model(x, None)
    assert torch.equal(every[0], x)
    some = model(x, None, [2, 0])
    assert torch.equal(some[0], every[2])
    assert torch.equal(some[1], every[0])
    model.blocks[2].register_forward_hook(lambda *_: pytest.fail("block 3 was run"))
    model(x, None, [2])


def test_shared_layers_hold_one_set_of_weights():
    torch.manual_seed(0)
    shared = Transformer(16, 3, 2, 32, shared=True).eval()
    copies = Transformer(16, 3, 2, 32).eval()
    for block in copies.blocks:
        block.load_state_dict(shared.blocks[0].state_dict())
    x = torch.randn(2, 6, 16)
    assert sum(p.numel() for p in copies.parameters()) == 3 * sum(p.numel() for p in shared.parameters())
    for ours, theirs in zip(shared(x, None), copies(x, None), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.9), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99))
def test_dropout_keeps_the_mean_and_scales_the_gradient(p, dtype, seed):
    torch.manual_seed(seed)
    x = torch.ones(100_003, dtype=dtype, requires_grad=True)
    out = Dropout(p)(x)
    out.backward(torch.ones_like(out))
    assert torch.equal(out, x.grad)
    dropped = (out == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / 100_003) ** 0.5)
    assert out[out != 0].unique().tolist() == [torch.tensor(1 / (1 - p), dtype=dtype).item()]
    neighbours = (out[:-1] == 0) & (out[1:] == 0)  # elements that share a draw are independent too
    assert neighbours.double().mean().item() == pytest.approx(p * p, abs=0.01)


@pytest.mark.parametrize(("p", "mean"), [(1e-9, 1.0), (1 - 1e-9, 0.0)])
def test_dropout_takes_extreme_rates(p, mean):
    assert (Dropout(p)(torch.ones(1000)) > 0).float().mean() == pytest.approx(mean, abs=0.01)


def test_dropout_does_nothing_in_evaluation():
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_positions_follow_the_formula():
    table = sinusoids(50, 6)
    for t in (0, 1, 49):
        for i in range(6):
            angle = torch.tensor(t / 10000 ** (2 * (i // 2) / 6), dtype=torch.float64)
            expected = angle.sin() if i % 2 == 0 else angle.cos()
            assert table[t, i].item() == pytest.approx(expected.item(), abs=1e-6)


def test_positions_past_the_table_and_jitter():
    torch.manual_seed(0)
    x = torch.zeros(400, 12, 8)
    still, moving = SinusoidalPositions(8, 5), SinusoidalPositions(8, 5, jitter=3)
    assert not still.state_dict()
    assert torch.equal(still(x)[0], sinusoids(12, 8))
    assert torch.equal(moving.eval()(x)[0], sinusoids(12, 8))
    starts = {next(s for s in range(4) if torch.equal(row, sinusoids(15, 8)[s : s + 12])) for row in moving.train()(x)}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_reconstruction_loss_is_the_mean_of_the_chosen(kind):
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    error = (a - b).abs() if kind == "l1" else (a - b) ** 2
    for chosen in (torch.rand(2, 5, 3) < 0.5, torch.rand(2, 5, 1) < 0.5):
        loss, count = reconstruction_loss(a, b, chosen, kind)
        selected = error[chosen.expand_as(error)]
        assert count == selected.numel()
        torch.testing.assert_close(loss, selected.mean())
    loss, count = reconstruction_loss(a, b, torch.zeros(2, 5, 1, dtype=torch.bool), kind)
    assert (loss, count) == (0, 0)


@pytest.mark.slow
def test_compiles_once_for_all_shapes():
    torch.manual_seed(0)
    model = Transformer(32, 2, 4, 64, dropout=0.0, attention_dropout=0.0)
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    with torch.compiler.set_stance("default"), torch._dynamo.config.patch(error_on_recompile=True):
        for batch, frames in ((3, 20), (4, 31), (2, 57)):
            x, lengths = torch.randn(batch, frames, 32), torch.full((batch,), frames - 1)
            ours, plain = (net(x, lengths)[-1][:, : frames - 1] for net in (compiled, model))  # the rest is undefined
            torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
