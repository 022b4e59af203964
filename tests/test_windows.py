from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auricle.nn.windows import encode_long, pieces, windows


@pytest.mark.parametrize("size", [4, 7, 80])
@pytest.mark.parametrize("causal", [False, True])
def test_windows_tile_every_length(size, causal):
    for length in range(5 * size):
        kept: list[int] = []
        for start, stop, keep, until in windows(length, size, causal):
            assert 0 <= start <= keep <= until <= stop <= length
            assert stop - start <= size
            assert keep == 0 or keep - start >= (size // 2 if causal else size // 4)
            kept += range(keep, until)
        assert kept == list(range(length))


@pytest.mark.parametrize("causal", [False, True])
def test_pieces_are_each_clips_own_frames_in_order(causal, monkeypatch):
    monkeypatch.setattr("auricle.nn.windows.WINDOWS_AT_ONCE", 2)
    x, lengths = torch.arange(200.0).reshape(2, 100, 1), torch.tensor([100, 33])

    def encode(x: Tensor, lengths: Tensor) -> list[Tensor]:
        assert x.shape[1] == lengths.max() <= 10
        return [x, 2 * x.expand(-1, -1, 3)]

    one, two = encode_long(encode, x, lengths, 10, (1, 3), causal)
    for clip, length in enumerate((100, 33)):
        assert torch.equal(one[clip, :length], x[clip, :length])
        assert torch.equal(two[clip, :length], 2 * x[clip, :length].expand(-1, 3))
    assert not one[1, 33:].any()
    assert [clip for clip, _ in pieces(encode, x, lengths, 10, causal)] == sorted([0] * 10 + [1] * 3)
