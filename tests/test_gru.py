from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from auricle.nn.gru import GRU, GruStack

LENGTHS = torch.tensor([4, 11, 1, 7, 11])


def plain(stack: GruStack, x: Tensor, lengths: Tensor, layer: int) -> Tensor:
    """The stack by PyTorch's own GRUs, packed and unpacked at every layer."""
    for number, gru in enumerate(stack.grus[:layer]):
        other = nn.GRU(gru.input_size, gru.hidden_size, batch_first=True).to(x)
        other.load_state_dict(gru.state_dict())
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out = pad_packed_sequence(other(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        x = out + x if stack.residual and number else out
    return x


@pytest.mark.parametrize("residual", [True, False])
def test_the_stack_is_pytorchs(residual):
    torch.manual_seed(0)
    stack, x = GruStack(5, 8, 3, residual=residual), torch.randn(5, 11, 5)
    states, _ = stack(x, LENGTHS, stack.initial(5, x), [0, 1, 2, 3])
    valid = torch.arange(11) < LENGTHS[:, None]
    for layer, state in enumerate(states):
        torch.testing.assert_close(state[valid], plain(stack, x, LENGTHS, layer)[valid], atol=1e-6, rtol=1e-5)


def test_a_step_back_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = GRU(5, 8).double(), nn.GRU(5, 8, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    x, state = (
        torch.randn(5, 11, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(5, 8, dtype=torch.float64, requires_grad=True),
    )
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    data, sizes, order, back = packed
    one, _ = ours(data, state[order], sizes.tolist())
    other, _ = theirs(packed, state[None])
    weights = torch.randn_like(one)
    grads = torch.autograd.grad((one.sin() * weights).sum(), [x, state, *ours.parameters()], retain_graph=True)
    wanted = torch.autograd.grad((other.data.sin() * weights).sum(), [x, state, *theirs.parameters()])
    for mine, expected in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-9)
    assert pad_packed_sequence(PackedSequence(one, sizes, order, back))[0].shape == (11, 5, 8)


def test_the_state_goes_on_after_a_cut():
    torch.manual_seed(0)
    stack, x = GruStack(5, 8, 3, residual=True), torch.randn(3, 20, 5)
    lengths = torch.tensor([9, 20, 15])
    whole, _ = stack(x, lengths, stack.initial(3, x), [3])
    state, parts = stack.initial(3, x), []
    for start, stop in ((0, 6), (6, 7), (7, 20)):
        part, state = stack(x[:, start:stop], (lengths - start).clamp(0, stop - start), state, [3])
        parts += part
    cut = torch.cat(parts, dim=1)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(cut[row, :length], whole[0][row, :length], atol=1e-6, rtol=0)


def test_padded_batches_give_the_same_as_packed_ones():
    """The way of other devices, taken here by hand."""
    torch.manual_seed(0)
    stack, x = GruStack(5, 8, 3, residual=True), torch.randn(5, 11, 5)
    packed, end = stack(x, LENGTHS, stack.initial(5, x), [1, 3])
    padded, padded_end = stack._run(x, stack.initial(5, x), [1, 3], None)
    valid = torch.arange(11) < LENGTHS[:, None]
    for one, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(one[valid], other[valid], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(end[:, LENGTHS == 11], padded_end[:, LENGTHS == 11], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("drop_last", "count"), [(True, 3), (False, 2)])
def test_dropout_is_on_outputs_before_the_sum(drop_last, count, monkeypatch):
    torch.manual_seed(0)
    stack, x = GruStack(8, 8, 3, residual=True, dropout=0.5, drop_last=drop_last), torch.randn(2, 6, 8)
    dropped: list[Tensor] = []
    monkeypatch.setattr(stack.dropout, "forward", lambda out: dropped.append(out) or out * 0)
    states, _ = stack(x, torch.tensor([6, 4]), stack.initial(2, x), [1, 2, 3])
    assert len(dropped) == count
    assert not states[0].any()
    assert torch.equal(states[1], states[0])  # nothing but what came in


def test_training_and_evaluation_differ_by_dropout_alone():
    torch.manual_seed(0)
    stack, x = GruStack(8, 8, 2, residual=True, dropout=0.5), torch.randn(2, 6, 8)
    lengths, state = torch.tensor([6, 6]), stack.initial(2, x)
    quiet = [stack.eval()(x, lengths, state, [2])[0][0] for _ in range(2)]
    loud = [stack.train()(x, lengths, state, [2])[0][0] for _ in range(2)]
    assert torch.equal(*quiet)
    assert not torch.allclose(*loud)


def test_bfloat16_follows_float32():
    torch.manual_seed(0)
    stack, x, lengths = GruStack(20, 64, 3, residual=True), torch.randn(4, 50, 20), torch.tensor([50, 30, 44, 50])
    results = []
    for half in (False, True):
        stack.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = stack(x, lengths, stack.initial(4, x), [3])[0][0]
        out.square().sum().backward()
        assert out.dtype == torch.float32
        results.append([out.detach(), *(p.grad.clone() for p in stack.parameters())])
    for exact, close in zip(*results, strict=True):
        assert (exact - close).norm() < 0.02 * exact.norm()
