from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auricle.nn.masking import (
    SpanMaskConfig,
    Spans,
    add_noise,
    corrupt,
    draw_bands,
    draw_spans,
    interpolate,
    kept_layers,
    masked_bound,
    masked_positions,
    most_masked,
    span_mask,
    thinned,
)


def runs(row: torch.Tensor) -> list[tuple[int, int]]:
    """(start, stop) of the stretches of True in a row."""
    edges = np.flatnonzero(np.diff(np.r_[False, row.numpy(), False].astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 130), min_size=1, max_size=5),
    fraction=st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    shortest=st.integers(1, 9),
    extra=st.integers(0, 4),
    overlap=st.booleans(),
    rounding=st.sampled_from(["round", "floor"]),
    unused=st.integers(0, 2),
    seed=st.integers(0, 999),
)
def test_spans_lie_inside_their_clip(lengths, fraction, shortest, extra, overlap, rounding, unused, seed):
    torch.manual_seed(seed)
    frames = max(max(lengths), 1) + 3
    spans = draw_spans(
        torch.tensor(lengths),
        frames,
        fraction=fraction,
        span=(shortest, shortest + extra),
        overlap=overlap,
        rounding=rounding,
        unused_starts=unused,
    )
    mask = spans.mask(frames)
    assert mask.sum(1).max() <= masked_bound(frames, fraction, shortest + extra)
    for row, length in enumerate(lengths):
        size = int(spans.length[row])
        starts = spans.starts[row, spans.valid[row]].tolist()
        assert shortest <= size <= shortest + extra
        assert not mask[row, length:].any()
        assert starts == sorted(set(starts))
        assert spans.first(frames)[row].nonzero().flatten().tolist() == starts
        if length < size:
            assert starts == []
            continue
        rounded = round(length * fraction / size) if rounding == "round" else int(length * fraction / size)
        assert max(starts) <= max(length - size - unused, 0)
        if overlap:
            assert len(starts) == min(max(rounded, 1), max(length - unused - size + 1, 1))
        else:
            assert len(starts) == min(max(rounded, 1), max((length - unused) // size, 1))
            assert mask[row].sum() == len(starts) * size
        covered = {start + i for start in starts for i in range(size)}
        assert mask[row].nonzero().flatten().tolist() == sorted(covered)


def coverage(**options) -> float:
    return draw_spans(torch.full((200,), 1000), 1000, **options).mask(1000).float().mean().item()


def test_s3prl_mode_reproduces_its_realised_coverage():
    # A frame stays free if none of 21 starts, drawn from 993 places without replacement, is among the 7 that cover it.
    torch.manual_seed(0)
    free = math.comb(993 - 7, 21) / math.comb(993, 21)
    realised = coverage(overlap=True, unused_starts=1)
    assert realised == pytest.approx(0.138, abs=1e-3)
    assert realised == pytest.approx(1 - free, abs=2e-3)
    assert coverage() == pytest.approx(round(1000 * 0.15 / 7) * 7 / 1000, abs=1e-6)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("unused", [0, 1, 2])
def test_which_places_are_reachable(overlap, unused):
    torch.manual_seed(0)
    spans = draw_spans(torch.full((4000,), 20), 24, fraction=0.3, span=(3, 3), overlap=overlap, unused_starts=unused)
    reached = spans.mask(24).any(0)
    assert reached[: 20 - unused].all()
    assert not reached[20 - unused :].any()


def test_disjoint_placements_are_equally_likely():
    # Two spans of 2 in 6 frames: C(6 - 4 + 2, 2) = 6 placements.
    torch.manual_seed(0)
    spans = draw_spans(torch.full((12_000,), 6), 6, fraction=0.6, span=(2, 2))
    placements, counts = spans.starts[:, :2].unique(dim=0, return_counts=True)
    assert len(placements) == 6
    assert (counts / 12_000 - 1 / 6).abs().max() < 4 * math.sqrt(1 / 6 * 5 / 6 / 12_000)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0, 1))
def test_masked_positions_are_those_of_nonzero(seed, frames, density):
    mask = torch.rand(4, frames, generator=torch.Generator().manual_seed(seed)) < density
    bound = int(mask.sum(1).max()) + 2
    index, valid = masked_positions(mask, bound)
    assert index.shape == valid.shape == (4, bound)
    for row in range(4):
        assert index[row, valid[row]].tolist() == mask[row].nonzero().flatten().tolist()
    assert (index < frames).all()


def planted(batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor, Spans]:
    x = (torch.arange(frames, dtype=torch.float32) + 1)[None, :, None].repeat(batch, 1, 2)  # frame t holds t + 1
    lengths = torch.full((batch,), frames - 5)
    return x, lengths, draw_spans(lengths, frames, fraction=0.3, span=(4, 4))


def test_corruption_zeroes_replaces_or_keeps_whole_utterances_in_8_1_1():
    torch.manual_seed(0)
    x, lengths, spans = planted(6000, 40)
    mask = spans.mask(40)
    out = corrupt(x, spans, lengths)
    assert torch.equal(out[~mask], x[~mask])
    zeroed = ((out == 0).all(-1) | ~mask).all(1)
    kept = (out == x).all(-1).all(1)
    assert zeroed.float().mean() == pytest.approx(0.8, abs=0.02)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.015)  # a replacement by itself is rare
    replaced = out[~zeroed & ~kept]
    assert len(replaced) / 6000 == pytest.approx(0.1, abs=0.015)
    assert (replaced > 0).all()  # every replacing frame is real...
    assert replaced[:, :, 0].max() <= 35 + (40 - 35)  # ...and
    assert (replaced[mask[~zeroed & ~kept]] <= 35).all()  # from inside the true length


def test_replacements_are_whole_stretches():
    torch.manual_seed(1)
    x, lengths, spans = planted(300, 40)
    out = corrupt(x, spans, lengths, zero=0.0, replace=1.0)[:, :, 0]
    for row in range(300):
        for start in spans.starts[row, spans.valid[row]].tolist():
            assert out[row, start : start + 4].diff().tolist() == [1, 1, 1]


def test_span_scope_decides_span_by_span():
    torch.manual_seed(2)
    x, lengths, spans = planted(2000, 40)
    out = corrupt(x, spans, lengths, zero=0.5, replace=0.0, scope="span")[:, :, 0]
    fates = [
        {bool((out[row, s : s + 4] == 0).all()) for s in spans.starts[row, spans.valid[row]].tolist()}
        for row in range(200)
    ]
    assert {True, False} in fates
    for row in range(200):
        for s in spans.starts[row, spans.valid[row]].tolist():
            assert (out[row, s : s + 4] == 0).float().mean() in (0, 1)
    assert (out[spans.mask(40)] == 0).float().mean() == pytest.approx(0.5, abs=0.03)


def test_bands_have_uniform_widths_and_places():
    torch.manual_seed(0)
    bands = draw_bands(20_000, 80, 0.2, torch.device("cpu"))
    widths = bands.sum(1)
    assert widths.unique().tolist() == list(range(17))
    assert all(len(runs(row)) <= 1 for row in bands[:200])
    shares = widths.bincount() / 20_000
    assert (shares - 1 / 17).abs().max() < 0.01
    assert bands[:, 0].any()
    assert bands[:, -1].any()


def test_noise_comes_with_its_probability_and_strength():
    torch.manual_seed(0)
    x = torch.ones(2, 500, 4)
    noisy = [add_noise(x, 0.15, 0.2) - x for _ in range(1000)]
    touched = [d for d in noisy if d.any()]
    assert len(touched) / 1000 == pytest.approx(0.15, abs=0.04)
    assert torch.stack(touched).std() == pytest.approx(0.2, abs=0.005)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.1, 0.95))
def test_interpolation_is_numpys(seed, frames, density):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, frames + 2, 2, generator=generator)
    mask = torch.rand(3, frames + 2, generator=generator) < density
    lengths = torch.tensor([frames, frames + 2, max(frames - 1, 1)])
    out = interpolate(x, mask, lengths)
    for row, length in enumerate(lengths.tolist()):
        known = np.flatnonzero(~mask[row, :length].numpy())
        for channel in range(2):
            expected = np.zeros(length)
            if len(known):
                expected = np.interp(np.arange(length), known, x[row, known, channel].numpy())
            assert np.allclose(out[row, :length, channel].numpy(), expected, atol=1e-5)


def test_nothing_reads_back_from_the_device():
    # On the meta device any synchronisation (`.item()`, boolean indexing) raises.
    lengths = torch.empty(3, dtype=torch.long, device="meta")
    x = torch.empty(3, 50, 8, device="meta")
    spans = draw_spans(lengths, 50)
    mask = spans.mask(50)
    index, valid = masked_positions(mask, masked_bound(50, 0.15, 7))
    assert corrupt(x, spans, lengths).shape == x.shape
    assert interpolate(x, mask, lengths).shape == x.shape
    assert draw_bands(3, 8, 0.2, x.device).shape == (3, 8)
    assert index.device.type == valid.device.type == "meta"


COVERAGE = {  # (probability, span): free and thinned at 249 frames, then at 1499; fairseq's, in batches of 8
    (0.65, 10): (0.49, 0.43, 0.49, 0.47),
    (0.50, 10): (0.41, 0.35, 0.40, 0.38),
    (0.80, 10): (0.57, 0.51, 0.57, 0.54),
    (0.65, 5): (0.505, 0.46, 0.50, 0.485),
    (0.65, 15): (0.49, 0.41, 0.49, 0.46),
    (0.80, 5): (0.58, 0.54, 0.58, 0.56),
}


@pytest.mark.parametrize(("probability", "span"), COVERAGE)
def test_hidden_share_is_that_of_fairseq(probability, span):
    torch.manual_seed(0)
    shares = []
    for frames in (249, 1499):
        for equalize in ("none", "fairseq"):
            config = SpanMaskConfig(probability=probability, span=span, equalize=equalize)
            masks = [span_mask(torch.full((8,), frames), frames, config) for _ in range(60)]
            shares.append(torch.stack(masks).float().mean().item())
    np.testing.assert_allclose(shares, COVERAGE[probability, span], atol=0.02)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 130), min_size=1, max_size=5),
    probability=st.sampled_from([0.05, 0.5, 0.65, 1.0]),
    span=st.integers(1, 15),
    min_spans=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_span_masks_lie_inside_their_clip(lengths, probability, span, min_spans, seed):
    torch.manual_seed(seed)
    frames = max(max(lengths), 1) + 3
    config = SpanMaskConfig(probability=probability, span=span, min_spans=min_spans)
    mask = span_mask(torch.tensor(lengths), frames, config)
    assert mask.sum(1).max() <= most_masked(frames, config)
    for row, length in enumerate(lengths):
        assert not mask[row, length:].any()
        stretches = runs(mask[row])
        if length > span + min_spans + probability * length / span:  # as many places as spans: each is whole
            most = max(min_spans, math.floor(length * probability / span) + 1)
            assert len(stretches) <= most
            assert all(stop - start >= span for start, stop in stretches)
            assert mask[row].sum() >= span + min_spans - 1
            assert not mask[row, length - 1]
        elif length:
            assert stretches


def test_span_starts_are_uniform_and_counts_follow_each_clips_own_length():
    torch.manual_seed(0)
    rows, frames, span = 20_000, 12, 3
    config = SpanMaskConfig(probability=0.3, span=span)  # floor(1.2 + u) spans in 12 frames, floor(0.6 + u) in 6
    lengths = torch.tensor([12, 6]).repeat(rows // 2)
    mask = span_mask(lengths, frames, config)
    short = mask[1::2]
    assert (short.sum(1) == span).all()  # at least one, and never two
    starts = short.int().argmax(1).bincount(minlength=4)[:4] / len(short)
    np.testing.assert_allclose(starts, [1 / 3, 1 / 3, 1 / 3, 0], atol=0.02)  # fairseq's range(T - span)
    # Two spans in a fifth of the long clips, d apart in 9 - d of the 36 pairs of places.
    distance = {d: 9 - d for d in range(1, 9)}
    pairs = sum(distance.values())
    covered = 0.8 * span + 0.2 * sum(n * (span + min(span, d)) for d, n in distance.items()) / pairs
    assert mask[::2].float().sum(1).mean() == pytest.approx(covered, abs=0.03)


def test_thinned_rows_hold_as_few_as_the_least_at_random():
    torch.manual_seed(0)
    mask = torch.zeros(4, 40, dtype=torch.bool)
    mask[0, :9], mask[1, 5:35], mask[2, 20:24] = True, True, True  # and a row without any, which does not count
    drawn = torch.stack([thinned(mask) for _ in range(3000)])
    assert (drawn.sum(2) == torch.tensor([4, 4, 4, 0])).all()
    assert not (drawn & ~mask).any()
    np.testing.assert_allclose(drawn[:, 1, 5:35].float().mean(0), 4 / 30, atol=0.03)


def test_span_masks_and_layer_drop_never_read_a_value():
    lengths = torch.empty(3, dtype=torch.long, device="meta")  # .item() and everything like it raises here
    for equalize in ("none", "fairseq"):
        assert span_mask(lengths, 50, SpanMaskConfig(equalize=equalize)).shape == (3, 50)
    assert kept_layers(6, 0.1, 5, torch.empty((), dtype=torch.long, device="meta"), "meta").shape == (6,)


def test_layers_are_dropped_alike_everywhere_and_as_often_as_asked():
    kept = torch.stack([kept_layers(12, 0.2, seed, step) for seed in range(5) for step in range(2000)]).double()
    np.testing.assert_allclose(kept.mean(0), 0.8, atol=5 * math.sqrt(0.16 / len(kept)))
    neighbours = torch.cat([kept[:-1], kept[1:]], dim=1)  # layers of one step, and of the next
    correlation = torch.corrcoef(neighbours.T).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(len(kept))
    assert torch.equal(kept_layers(12, 0.2, 1, torch.tensor(3)), kept_layers(12, 0.2, 1, 3))
    assert kept_layers(12, 0.0, 2**62, 10**9).all()
    assert not kept_layers(12, 1.0, 0, 0).any()
