"""Gated recurrent units over clips packed by time, for CPUs: true frames only, and one matrix product a step each way.

PyTorch's GRU on a CPU adds to the gradient of the recurrent weights at every step, and so moves the whole matrix
through memory each time; here that gradient is one product over all frames, after the last step back. Under bfloat16
autocast the products are bfloat16, and the state stays fp32. Other devices take the padded batch by PyTorch's GRU
(cuDNN), so that the host need not know the lengths: padding comes behind a clip's frames, which see nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from auricle.features.spectrum import exporting
from auricle.nn.linear import linear
from auricle.nn.recurrent import onnx_recurrent
from auricle.nn.transformer import Dropout


class GruStack(nn.Module):
    """`layers` GRUs of width `dim`, one upon the other; with `residual`, all but the first add their input.

    Dropout is on each layer's output before that sum; on the last layer's only with `drop_last`.
    """

    def __init__(
        self, input_dim: int, dim: int, layers: int, *, residual: bool, dropout: float = 0.0, drop_last: bool = False
    ) -> None:
        super().__init__()
        self.dim = dim
        self.residual = residual
        self.grus = nn.ModuleList(GRU(dim if number else input_dim, dim) for number in range(layers))
        self.dropout = Dropout(dropout)
        self.dropped = layers if drop_last else layers - 1

    def initial(self, clips: int, like: Tensor) -> Tensor:
        """The state (L, B, D) before the first frame, of the type and on the device of `like`."""
        return like.new_zeros(len(self.grus), clips, self.dim)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the compiler would unroll the steps
    def forward(self, x: Tensor, lengths: Tensor, state: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """x (B, T, F), true lengths (B,) and the state (L, B, D) before: the hidden states asked for, each (B, T, D).

        Layer 0 is x itself, layer L the last GRU's output. Beside them the state (L, B, D) after frame T - 1, of clips
        that have such a frame. Frames past a clip's length are undefined.
        """
        if x.device.type != "cpu" or exporting():
            return self._run(x, state, layers, None)
        packed = pack_padded_sequence(x, lengths.clamp_min(1), batch_first=True, enforce_sorted=False)
        frames, sizes, order, back = packed
        states, state = self._run(frames, state[:, order], layers, sizes.tolist())
        sequences = [PackedSequence(hidden, sizes, order, back) for hidden in states]
        padded = [pad_packed_sequence(each, batch_first=True, total_length=x.shape[1])[0] for each in sequences]
        return padded, state[:, back]

    def _run(
        self, x: Tensor, state: Tensor, layers: Sequence[int], sizes: list[int] | None
    ) -> tuple[list[Tensor], Tensor]:
        states, ends = {0: x}, []
        for layer in range(1, max(layers) + 1):
            out, end = self.grus[layer - 1](x, state[layer - 1], sizes)
            if layer <= self.dropped:
                out = self.dropout(out)
            x = states[layer] = out + x if self.residual and layer > 1 else out
            ends.append(end)
        return [states[layer] for layer in layers], torch.stack([*ends, *state[len(ends) :]])


class GRU(nn.GRU):
    """One layer with PyTorch's weights and equations, which takes packed frames as well as padded ones."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__(input_dim, dim, batch_first=True)

    def forward(self, x: Tensor, state: Tensor, sizes: list[int] | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """x (B, T, F) and the state (B, D) before it: outputs (B, T, D), and the state (B, D) after it.

        With `sizes`, how many clips have a first frame, how many a second and so on, x is packed in that order, (N, F),
        and so are the outputs; the state after is that of clips which have the last frame, zeros of others.
        """
        if sizes is None:  # the weights by name: those that PyTorch's module keeps aside are stale when sharded
            weights = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
            if exporting():  # of whole clips, so that the state before is zeros
                out = onnx_recurrent("GRU", x, weights)
                return out, out[:, -1]
            out, end = torch.gru(x, state[None], weights, True, 1, 0.0, self.training, False, True)
            return out, end[0]
        gates = linear(x, self.weight_ih_l0, self.bias_ih_l0)
        out = _Recurrence.apply(gates, self.weight_hh_l0, self.bias_hh_l0, state, sizes)  # type: ignore[no-untyped-call]
        return out, F.pad(out[-sizes[-1] :], (0, 0, 0, len(state) - sizes[-1]))


class _Recurrence(torch.autograd.Function):
    """The steps of a GRU: input gates (N, 3 D), packed, and the state (B, D) before them to the states (N, D).

    With the recurrent products a = W h + b, in three parts: r, z = sigmoid(gates + a), n = tanh(gates + r a), and the
    next state is (1 - z) n + z h.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, state: Tensor, sizes: list[int]) -> Tensor:
        dim, dtype = state.shape[1], gates.dtype
        weight, bias, gates = weight.to(dtype), bias.to(dtype), gates.to(state.dtype)
        rz, a, n, out = (gates.new_empty(len(gates), width) for width in (2 * dim, dim, dim, dim))
        h = state
        steps = (torch.split(part, sizes) for part in (gates, rz, a, n, out))
        for gates_t, rz_t, a_t, n_t, out_t in zip(*steps, strict=True):
            h = h[: len(gates_t)]
            products = F.linear(h.to(dtype), weight, bias)
            torch.add(gates_t[:, : 2 * dim], products[:, : 2 * dim], out=rz_t).sigmoid_()
            a_t.copy_(products[:, 2 * dim :])
            torch.addcmul(gates_t[:, 2 * dim :], rz_t[:, :dim], a_t, out=n_t).tanh_()
            h = torch.lerp(n_t, h, rz_t[:, dim:], out=out_t)
        ctx.sizes = sizes
        ctx.save_for_backward(weight, state, rz, a, n, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, state, rz, a, n, out = ctx.saved_tensors
        (r, z), sizes = rz.chunk(2, dim=1), ctx.sizes
        before = torch.cat([state, *(h[:size] for h, size in zip(torch.split(out, sizes), sizes[1:], strict=False))])
        to_n = (1 - z) * (1 - n * n)  # d state / d (what is under the tanh)
        slopes = torch.stack([to_n * a * r * (1 - r), (before - n) * z * (1 - z), to_n * r], dim=1)  # to products
        grad, back = grad.clone(), grad.new_zeros(0, grad.shape[1])  # back: of the step after, through its state
        for grad_t, z_t, slopes_t in zip(
            *(reversed(torch.split(part, sizes)) for part in (grad, z, slopes)), strict=True
        ):
            grad_t[: len(back)] += back
            slopes_t *= grad_t[:, None]
            back = (z_t * grad_t).add_(slopes_t.flatten(1).to(weight.dtype) @ weight)
        products = slopes.flatten(1)
        d_weight = products.to(weight.dtype).T @ before.to(weight.dtype)
        d_gates = torch.cat([products[:, : 2 * out.shape[1]], grad * to_n], dim=1)
        return d_gates.to(weight.dtype), d_weight.to(state.dtype), products.sum(0), back, None
