"""The separative encoder: a clip alone and in a batch, masks before training, streams of long audio, its promises."""

import math

import pytest
import torch
from pydantic import ValidationError

import auricle.encoders.csc as room
from auricle.encoders.base import join_stretches
from auricle.encoders.check import check
from auricle.encoders.checkpoint import load, save
from auricle.encoders.csc import CscConfig, CscEncoder
from auricle.nn.separation import best_permutation, in_order, pairwise_si_snr, si_snr

SMALL = {
    "dim": 16,
    "heads": 2,
    "embedding": 8,
    "shared_blocks": 2,
    "separation_blocks": 1,
    "speaker_blocks": 1,
    "window": 16,
    "segment": 10,
    "hidden": 12,
    "low": 3,
    "n_mels": 20,
    "ffn": 24,
}
both = pytest.mark.parametrize("trunk", ["galr", "mel"])


def small(trunk: str = "galr", **changes: object) -> CscEncoder:
    torch.manual_seed(0)
    return CscEncoder(CscConfig(**SMALL | {"trunk": trunk} | changes)).eval()


def clips(*samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, S), a clip ten times as loud as the one before, with its lengths."""
    lengths = torch.tensor(samples)
    noise = 0.01 * torch.randn(len(samples), max(samples), generator=torch.Generator().manual_seed(seed))
    return noise * (torch.arange(max(samples)) < lengths[:, None]) * 10.0 ** torch.arange(len(samples))[
        :, None
    ], lengths


@both
@pytest.mark.parametrize("sources", [2, 3])
@torch.no_grad()
def test_a_clip_alone_is_the_same_in_a_batch(trunk, sources):
    encoder = small(trunk, sources=sources)
    waveforms, lengths = clips(4001, 1234, 640, 17)
    together, streams, frames = (
        encoder.separate(waveforms, lengths),
        encoder.streams(waveforms, lengths),
        encoder(waveforms, lengths),
    )
    assert together.estimates.shape == (4, sources, 4001)
    assert streams.shape == (4, sources, 8)
    torch.testing.assert_close(streams.norm(dim=2), torch.ones(4, sources))
    for clip, length in enumerate(lengths.tolist()):
        alone = waveforms[clip : clip + 1, :length], lengths[clip : clip + 1]
        for single in (encoder.separate(*alone), encoder.separate(alone[0])):
            found = together.estimates[clip, :, :length]
            torch.testing.assert_close(found, single.estimates[0], rtol=0, atol=1e-5 * float(found.abs().max()))
            tokens = single.tokens.shape[2]
            torch.testing.assert_close(together.tokens[clip, :, :tokens], single.tokens[0], rtol=0, atol=1e-5)
            assert not together.tokens[clip, :, tokens:].any()
            torch.testing.assert_close(encoder.embed(single.tokens)[0], streams[clip], rtol=0, atol=1e-5)
        assert not together.estimates[clip, :, length:].any()
        torch.testing.assert_close(encoder.streams(*alone)[0], streams[clip], rtol=0, atol=1e-5)
        count = int(encoder(*alone).lengths)
        assert count == frames.lengths[clip] == tokens
        for one, many in zip(encoder(*alone).hidden_states, frames.hidden_states, strict=True):
            torch.testing.assert_close(many[clip, :count], one[0, :count], rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("gain_db", [-12, 12])
@torch.no_grad()
def test_loudness_changes_the_estimates_alone(trunk, gain_db):
    encoder, (waveforms, lengths) = small(trunk), clips(3000, 2000)
    louder = waveforms * 10 ** (gain_db / 20)
    torch.testing.assert_close(encoder.streams(louder, lengths), encoder.streams(waveforms, lengths), rtol=0, atol=1e-5)
    for one, other in zip(encoder.separate(louder), encoder.separate(waveforms), strict=True):
        scale = 10 ** (gain_db / 20) if one.shape[2] == louder.shape[1] else 1.0
        torch.testing.assert_close(one, scale * other, rtol=1e-3, atol=1e-5)


@both
@pytest.mark.parametrize("sources", [2, 4])
@torch.no_grad()
def test_before_training_masks_are_equal_shares(trunk, sources):
    """So that there is no improvement over the mixture yet, and no loss either."""
    encoder = small(trunk, sources=sources)
    talkers = torch.randn(3, sources, 4003, generator=torch.Generator().manual_seed(0))
    mixture = talkers.sum(1)
    estimates = encoder.separate(mixture).estimates
    torch.testing.assert_close(estimates.sum(1), mixture, rtol=0, atol=1e-5)
    assert float(si_snr(estimates * sources, mixture[:, None]).min()) > 30
    scores = pairwise_si_snr(estimates, talkers)
    ordered = si_snr(in_order(estimates, best_permutation(scores)), talkers)
    assert abs(float((ordered - si_snr(mixture[:, None], talkers)).mean())) < 0.3


@pytest.mark.parametrize(("dim", "window"), [(64, 16), (128, 8), (64, 32), (64, 64), (48, 32), (34, 32), (2, 2)])
@torch.no_grad()
def test_synthesis_begins_as_the_inverse_of_analysis(dim, window):
    front = small(dim=dim, window=window, heads=1).front
    x, _ = clips(1003, 1003)
    x[1] /= x[0].abs().max() * 10
    torch.testing.assert_close(front.synthesise(front.analyse(x)[:, :, None], 1003)[:, 0], x, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_every_parameter(trunk, precision):
    encoder = small(trunk).train()
    mixture, _ = clips(2000, 2000)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        estimates, tokens = encoder.separate(mixture)
        assert estimates.dtype == torch.float32
        goal = torch.randn(encoder.embed(tokens).shape)
        loss = si_snr(estimates, torch.randn_like(estimates)).mean() + (encoder.embed(tokens) * goal).sum()
    loss.backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


@both
@torch.no_grad()
def test_bfloat16_follows_float32(trunk):
    encoder, (waveforms, lengths) = small(trunk), clips(4000, 3000)
    exact = encoder.separate(waveforms, lengths), encoder.streams(waveforms, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder.separate(waveforms, lengths), encoder.streams(waveforms, lengths)
    assert float(si_snr(rounded[0].estimates, exact[0].estimates).min()) > 30
    assert float((rounded[1].float() * exact[1]).sum(2).min()) > 0.99


@both
def test_it_learns_to_separate(trunk):
    """Two talkers, one low and one high: after some steps estimates are far nearer to them than the mixture is."""
    encoder = small(trunk, separation_blocks=0, shared_blocks=1, dropout=0.0, hop_ms=4.0).train()
    optimizer = torch.optim.Adam(encoder.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(2000) / 8000
    for _ in range(40):
        pitch = torch.tensor([200.0, 1500.0]) * (1 + 0.5 * torch.rand(8, 2, generator=generator))
        talkers = (2 * torch.pi * pitch[..., None] * time + 6 * torch.rand(8, 2, 1, generator=generator)).sin()
        estimates, _ = encoder.separate(talkers.sum(1))
        order = best_permutation(pairwise_si_snr(estimates, talkers))
        loss = -si_snr(in_order(estimates, order), talkers).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < -5  # dB; of the mixture 0


@both
@torch.no_grad()
def test_long_audio_is_encoded_in_windows(trunk, monkeypatch):
    """The same by `forward` and in `stretches`, and features cut from a clip are those of the clip."""
    encoder = small(trunk, chunk_s=1.0)
    waveforms, lengths = clips(21_000, 8000 * 4 + 77, 500)
    x, counts = encoder.features(waveforms, lengths)
    assert counts.tolist() == encoder.front.count(lengths).tolist()
    cut = encoder._cutter(waveforms, lengths)
    for clip, start, stop in ((0, 0, 20), (0, 1, 9), (1, 40, 77), (1, 300, int(counts[1])), (2, 0, int(counts[2]))):
        torch.testing.assert_close(cut(clip, start, stop), x[clip, start:stop], rtol=0, atol=1e-4)
    frames = encoder(waveforms, lengths)
    assert frames.lengths.tolist() == counts.tolist()
    joined, found = join_stretches(encoder.stretches(waveforms, lengths), 3)
    assert found.tolist() == counts.tolist()
    for layer in range(3):
        for clip, count in enumerate(counts.tolist()):
            torch.testing.assert_close(
                torch.from_numpy(joined[layer][clip]), frames.hidden_states[layer][clip, :count], rtol=0, atol=1e-4
            )
    largest: list[int] = []
    shared = encoder._shared
    monkeypatch.setattr(encoder, "_shared", lambda x, counts: largest.append(x.shape[1]) or shared(x, counts))
    streams = encoder.streams(waveforms, lengths)
    assert max(largest) <= encoder.chunk
    for clip, length in enumerate(lengths.tolist()):
        alone = encoder.streams(waveforms[clip : clip + 1, :length], lengths[clip : clip + 1])
        torch.testing.assert_close(streams[clip], alone[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_talker_stays_in_its_stream_from_window_to_window(monkeypatch):
    encoder = small("mel", chunk_s=1.0, sources=3)
    talkers = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    turns = iter(torch.randperm(3, generator=torch.Generator().manual_seed(turn)) for turn in range(100))

    def planted(shared, counts, all_true=False):
        return talkers[next(turns)][None, :, None].expand(-1, -1, shared.shape[1], -1)

    monkeypatch.setattr(encoder, "_tokens", planted)
    found = encoder.streams(*clips(60_000))[0]
    torch.testing.assert_close((found @ talkers.T).amax(0), torch.ones(3))


@both
def test_every_promise_of_an_encoder_is_kept(trunk):
    report = check(small(trunk))
    assert report.ok, report


@both
def test_saved_and_loaded_it_is_the_same(trunk, tmp_path):
    encoder, (waveforms, lengths) = small(trunk), clips(4000, 3000)
    save(encoder, tmp_path)
    again = load(tmp_path)
    assert again.has_streams
    assert again.fingerprint() == encoder.fingerprint()
    torch.testing.assert_close(again.streams(waveforms, lengths), encoder.streams(waveforms, lengths))


@both
def test_one_recording_has_one_vector(trunk):
    encoder, (waveforms, _) = small(trunk), clips(5000)
    clip = encoder.clip(waveforms[0].numpy(), 8000)
    frames = encoder.frames(waveforms[0].numpy(), 8000)
    assert len(frames) == math.ceil(5000 / encoder.hop) + 1 + (trunk == "galr")
    torch.testing.assert_close(clip, frames.mean(0), rtol=1e-4, atol=1e-5)


@both
def test_depths_are_the_trunks(trunk):
    depths = small(trunk).depths()
    assert {depth for name, depth in depths.items() if name.startswith("front.")} == {0}
    assert {depth for name, depth in depths.items() if name.startswith("shared.blocks.1.")} == {2}
    assert {depth for name, depth in depths.items() if name.startswith(("separation", "speaker", "who"))} == {2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "not a multiple of heads"),
        ({"window": 15}, "must be even"),
        ({"segment": 9}, "must be even"),
        ({"window": 32}, "cannot hold windows of 32"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        CscConfig(**SMALL | changes)


def test_margin_covers_the_mel_window():
    """Features cut from a long clip see what the clip's own do: half a window is less than the margin."""
    front = small("mel").front
    assert front.mels.config.window_size / 2 <= room._MARGIN * front.hop
