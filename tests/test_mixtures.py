"""Mixtures on the device: exact ratios, the right interferers, and nothing that is not drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auricle.audio import mixing
from auricle.errors import ConfigError
from auricle.nn.mixtures import MixConfig, active_power, mix

RATE = 4_000
PLAIN = {"eq_db": 0.0, "gain_db": (0.0, 0.0), "silence_db": -80.0}
WORST_DB = {torch.float32: 1e-4, torch.float64: 1e-9}


def talkers(rows, samples, seed=0, dtype=torch.float32, shortest=1.0):
    """Noise with pauses, at levels of its own; the lengths differ, and zeros stand behind them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(int(shortest * samples), samples + 1, rows)
    lengths[0] = samples
    bursts = np.repeat(rng.random((rows, samples // 100 + 1)) ** 6, 100, axis=1)[:, :samples]
    waveforms = rng.standard_normal((rows, samples)) * bursts * rng.uniform(0.02, 0.5, (rows, 1))
    waveforms *= np.arange(samples) < lengths[:, None]
    return torch.from_numpy(waveforms).to(dtype), torch.from_numpy(lengths)


def mixed(waveforms, lengths, conditions=2, identity=None, seed=0, **options):
    torch.manual_seed(seed)
    return mix(waveforms, lengths, conditions, MixConfig(**options), identity, sample_rate=RATE)


def decibels(ratio):
    return 10 * torch.as_tensor(ratio, dtype=torch.float64).log10()


@given(st.integers(1, 900), st.integers(0, 9), st.sampled_from([RATE, 8_000, 11_025]))
def test_active_power_is_that_of_the_mixing_for_evaluation(samples, seed, rate):
    waveforms, lengths = talkers(4, samples, seed, torch.float64, shortest=0.3)
    waveforms[3] = 0
    lengths = lengths.clamp_min(1)
    found = active_power(waveforms, lengths, rate)
    wanted = [mixing.active_power(x[:n].numpy(), rate) for x, n in zip(waveforms, lengths.tolist(), strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert found[3] == 0


@pytest.mark.parametrize("dtype", WORST_DB)
@pytest.mark.parametrize(
    "options", [{}, {"sir_db": (-5.0, 10.0), "sources": 3}, {"room_s": (0.05, 0.3)}, {"eq_db": 0.0}], ids=str
)
def test_ratios_are_as_told_and_sources_sum_to_the_mixture(dtype, options):
    waveforms, lengths = talkers(16, 6_000, dtype=dtype, shortest=0.5)
    found = mixed(waveforms, lengths, silence_db=-80.0, **options)
    count = options.get("sources", 2)
    assert found.mixture.dtype == found.sir_db.dtype == dtype
    assert found.mixture.shape == (8, 2, 6_000)
    assert found.sources.shape == (8, 2, count, 6_000)
    assert found.sir_db.shape == found.interferer.shape == (8, 2, count - 1)
    assert found.usable.all()
    low, high = options.get("sir_db", (0.0, 5.0))
    assert found.sir_db.min() >= low
    assert found.sir_db.max() <= high
    assert found.sir_db.std() > 0.15 * (high - low)
    assert found.sir_db.unique().numel() == found.sir_db.numel()
    np.testing.assert_allclose(found.sources.sum(2), found.mixture, rtol=0, atol=1e-6)
    for i, m in np.ndindex(8, 2):
        length = int(lengths[2 * i + m])
        powers = [mixing.active_power(source[:length].numpy(), RATE) for source in found.sources[i, m]]
        for power, sir_db in zip(powers[1:], found.sir_db[i, m].tolist(), strict=True):
            assert float(decibels(powers[0] / power)) == pytest.approx(sir_db, abs=WORST_DB[dtype])
        assert not found.sources[i, m, :, length:].any()


def test_without_colour_it_is_the_mixing_for_evaluation():
    """Up to the level: there a mixture is scaled only where it would clip."""
    waveforms, lengths = talkers(8, 3_000, dtype=torch.float64)
    found = mixed(waveforms, torch.full_like(lengths, 3_000), conditions=1, **PLAIN)
    for i in range(8):
        j, sir_db = int(found.interferer[i, 0, 0]), float(found.sir_db[i, 0, 0])
        wanted = mixing.mix(waveforms[i].numpy(), waveforms[j].numpy(), sir_db, RATE)
        scale = np.abs(wanted.mixture).max()
        np.testing.assert_allclose(found.mixture[i, 0], wanted.mixture / scale, atol=1e-12)
        np.testing.assert_allclose(found.sources[i, 0, 0], wanted.target / scale, atol=1e-12)
        np.testing.assert_allclose(found.sources[i, 0, 1], wanted.interferer / scale, atol=1e-12)


def test_a_short_interferer_is_repeated_and_a_long_one_cut():
    waveforms, _ = talkers(2, 1_000, dtype=torch.float64)
    waveforms[1, 300:] = 0
    found = mixed(waveforms, torch.tensor([1_000, 300]), conditions=1, **PLAIN)

    def shape(x):
        return x / x.norm()

    repeated = waveforms[1, :300].repeat(4)[:1_000]
    torch.testing.assert_close(shape(found.sources[0, 0, 1]), shape(repeated))
    torch.testing.assert_close(shape(found.sources[1, 0, 1, :300]), shape(waveforms[0, :300]))
    assert not found.sources[1, 0, :, 300:].any()


def test_the_peak_is_at_the_level_drawn():
    waveforms, lengths = talkers(64, 500)
    peaks_db = decibels(mixed(waveforms, lengths, gain_db=(-20.0, -10.0)).mixture.abs().amax(-1).square())
    assert peaks_db.min() >= -20 - 1e-4
    assert peaks_db.max() <= -10 + 1e-4
    assert peaks_db.std() > 2


def source_rows(found, waveforms):
    """Which row of the batch each source (I, M, C) is, by correlation: nothing has coloured it."""
    unit = torch.nn.functional.normalize
    likeness = unit(found.sources, dim=-1) @ unit(waveforms, dim=-1).T
    assert (likeness.amax(-1) > 1 - 1e-5).all()
    return likeness.argmax(-1)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 50))
def test_interferers_are_other_recordings(recordings, conditions, seed):
    waveforms, lengths = talkers(recordings * conditions, 400, seed)
    found = mixed(waveforms, torch.full_like(lengths, 400), conditions, seed=seed, **PLAIN)
    rows = source_rows(found, waveforms)
    assert rows[..., 0].flatten().tolist() == list(range(recordings * conditions))
    assert torch.equal(rows[..., 1:] // conditions, found.interferer)
    assert (found.interferer[..., 0] != torch.arange(recordings)[:, None]).all()
    assert found.usable.all()


def test_every_other_crop_interferes_as_often():
    waveforms, lengths = talkers(8, 200)
    full, counts = torch.full_like(lengths, 200), torch.zeros(4, 8)
    for seed in range(200):
        rows = source_rows(mixed(waveforms, full, seed=seed, **PLAIN), waveforms)[..., 1]
        counts += torch.nn.functional.one_hot(rows, 8).sum(1)
    own = torch.arange(4)[:, None] == torch.arange(8) // 2
    assert not counts[own].any()
    assert (counts[~own] - 400 / 6).abs().max() < 4 * np.sqrt(400 * 5 / 36)  # four standard deviations


def test_interferers_differ_in_identity_where_it_is_known():
    waveforms, lengths = talkers(12, 200)
    identity = torch.tensor([3, 3, 3, -1, 8, -1])
    met = {row: set() for row in range(6)}
    for seed in range(60):
        found = mixed(waveforms, lengths, 2, identity, seed=seed, **PLAIN)
        assert found.usable.all()
        for row in range(6):
            met[row] |= set(found.interferer[row].flatten().tolist())
    assert met == {row: {3, 4, 5} if row < 3 else {0, 1, 2, 3, 4, 5} - {row} for row in range(6)}


def test_interferers_differ_from_each_other():
    waveforms, lengths = talkers(10, 200)
    identity = torch.tensor([0, 0, 1, 1, 2])
    for seed in range(30):
        found = mixed(waveforms, lengths, 2, identity, seed=seed, sources=3, **PLAIN)
        everyone = torch.cat([identity[:, None].expand(5, 2)[..., None], identity[found.interferer]], -1)
        assert (everyone.sort(-1).values == torch.arange(3)).all()
        assert found.usable.all()
    assert not mixed(waveforms, lengths, 2, identity, sources=4, **PLAIN).usable.any()  # three talkers in all


def test_nobody_else_there_is_told_and_harmless():
    waveforms, lengths = talkers(2, 300)
    alone = mixed(waveforms, lengths)
    assert not alone.usable.any()
    alike = mixed(*talkers(4, 300), 2, torch.tensor([5, 5]))
    assert not alike.usable.any()
    silence = mixed(torch.zeros(4, 300), torch.full((4,), 300))
    assert not silence.usable.any()
    assert not silence.mixture.any()
    for found in (alone, alike, silence):
        assert all(values.isfinite().all() for values in found)


@pytest.mark.parametrize("options", [{}, {"room_s": (0.1, 0.1)}, PLAIN], ids=["eq", "room", "plain"])
def test_silent_crops_never_interfere_and_are_told_where_they_are_targets(options):
    waveforms, lengths = talkers(8, 2_000)
    silent = [2, 5, 6, 7]  # one crop of the second and third recording, both of the last
    waveforms[silent] = 0
    waveforms[5] = 1e-5 * torch.randn(2_000)  # -100 dB
    for seed in range(20):
        found = mixed(waveforms, lengths, seed=seed, **options)
        assert all(values.isfinite().all() for values in found)
        assert (~found.usable).flatten().nonzero().flatten().tolist() == silent
        assert 3 not in found.interferer


def test_a_part_without_sound_that_is_cut_from_an_interferer_is_told():
    waveforms, _ = talkers(2, 1_000)
    waveforms[0, :600] = 0
    waveforms[1, 500:] = 0
    found = mixed(waveforms, torch.tensor([1_000, 500]), conditions=1, **PLAIN)
    assert found.usable.tolist() == [[True], [False]]
    assert all(values.isfinite().all() for values in found)


def test_mixtures_are_a_function_of_generator_and_batch():
    batch = talkers(8, 500)
    one, two, other = (mixed(*batch, seed=seed, room_s=(0.05, 0.2)) for seed in (3, 3, 4))
    assert all(map(torch.equal, one, two))
    assert not torch.equal(one.mixture, other.mixture)
    before = torch.get_rng_state()
    mixed(*batch, seed=3)
    assert not torch.equal(before, torch.get_rng_state())  # it is the global generator that is drawn from


@pytest.mark.parametrize("options", [{}, {"sources": 3, "room_s": (0.05, 0.2)}])
def test_the_host_never_waits_for_the_device(options):
    """A device without values: whatever asked for one would fail."""
    waveforms, lengths = (x.to("meta") for x in talkers(8, 500))
    found = mixed(waveforms, lengths, identity=torch.zeros(4, dtype=torch.int64, device="meta"), **options)
    assert found.mixture.shape == (4, 2, 500)
    assert {values.device.type for values in found} == {"meta"}


def clicks(recordings, conditions, samples=4_000, at=1_500):
    """A click in each crop, of which the spectrum tells what became of it."""
    waveforms = torch.zeros(recordings * conditions, samples, dtype=torch.float64)
    waveforms[:, at] = 1
    return waveforms, torch.full((len(waveforms),), samples)


def test_equalisers_stay_within_their_bounds_are_smooth_and_differ():
    found = mixed(*clicks(6, 3), conditions=3, eq_db=9.0, gain_db=(0.0, 0.0), silence_db=-80.0)
    spectra = decibels(torch.fft.rfft(found.sources).abs().square())  # (I, M, C, F), each up to a constant
    spans = spectra.amax(-1) - spectra.amin(-1)
    assert spans.max() <= 18.1  # the tail that is cut off leaves a ripple
    assert spans.min() > 3
    # Nowhere steeper than between two neighbouring points, all the way up, at 1.5 times the mean slope of that curve.
    mel = torch.log1p(torch.linspace(0, RATE / 2, spectra.shape[-1]) / 700)
    steepest = 1.5 * 18 / (mel[-1] / 7)
    assert (spectra.diff(dim=-1).abs() / mel.diff()).max() < 1.1 * steepest
    bends = (spectra.diff(dim=-1) / mel.diff()).diff(dim=-1)[..., 5:-5] / mel.diff()[6:-5]
    assert bends.abs().max() < 1.5 * 6 * 18 / (mel[-1] / 7) ** 2  # and without corners
    centred = spectra.flatten(0, 2) - spectra.flatten(0, 2).mean(-1, keepdim=True)
    likeness = torch.corrcoef(centred) - torch.eye(len(centred))
    assert likeness.abs().max() < 0.999  # each source of each mixture has one of its own
    assert abs(float(likeness.mean())) < 0.2
    peak = found.sources.abs().argmax(-1)
    assert (peak == 1_500).all()  # zero phase


def test_the_end_of_a_crop_does_not_wrap_round_to_its_beginning():
    found = mixed(*clicks(4, 1, samples=2_000, at=1_999), conditions=1, room_s=(0.5, 0.5), silence_db=-80.0)
    energy = found.sources.square()
    assert (energy[..., :1_500].sum(-1) < 1e-7 * energy.sum(-1)).all()


def test_rooms_decay_as_told_alike_for_all_sources_of_a_mixture():
    decay_s = 0.2
    options = {"room_s": (decay_s, decay_s), "eq_db": 0.0, "silence_db": -80.0}
    found = mixed(*clicks(12, 2), direct_db=(6.0, 6.0), **options)
    energy = found.sources.square()
    reverberation = energy[..., 1_501:]
    ratio_db = decibels(energy[..., 1_500] / reverberation.sum(-1))
    np.testing.assert_allclose(ratio_db, 6.0, atol=1e-6)
    assert not (energy[..., :1_500] > 1e-20 * energy[..., 1_500:1_501]).any()  # nothing sounds before its cause
    decay_db = decibels(reverberation[..., :800].unflatten(-1, (8, 100)).mean((0, 1, 2, 4)))  # 25 ms each
    slope = np.polyfit(0.025 * np.arange(8), decay_db, 1)[0]
    assert slope == pytest.approx(-60 / decay_s, rel=0.05)
    tails = torch.nn.functional.normalize(reverberation.sqrt() * found.sources[..., 1_501:].sign(), dim=-1)
    likeness = tails.flatten(0, 2) @ tails.flatten(0, 2).T - torch.eye(48)
    assert likeness.abs().max() < 0.5  # each source stands elsewhere
    one, many = (
        mixed(*clicks(12, 2), room_s=room_s, eq_db=0.0, silence_db=-80.0) for room_s in ((0.3, 0.3), (0.05, 0.6))
    )

    def halfway(found):  # the time in which half of the reverberant energy has come: (I, M, C)
        return (
            (found.sources[..., 1_501:].square().cumsum(-1) * 2 > found.sources[..., 1_501:].square().sum(-1, True))
            .float()
            .argmax(-1)
        )

    apart = (halfway(many)[..., 0] - halfway(many)[..., 1]).abs().float().mean()
    assert halfway(many).float().std() > 2 * halfway(one).float().std()
    assert apart < 0.5 * halfway(many)[..., 0].float().std()


def test_nothing_is_learned_through_the_mixing():
    waveforms, lengths = talkers(4, 300)
    assert not mixed(waveforms.requires_grad_(), lengths).mixture.requires_grad


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sir_db": (5, 0)}, "sir_db: 5 is more than 0; give the lower end first"),
        ({"gain_db": (-3, 1)}, "gain_db: a peak 1 dB over full scale would clip"),
        ({"room_s": (0.0, 0.3)}, "room_s: no room decays within 0 s"),
        ({"sources": 1}, "sources: "),
    ],
)
def test_what_cannot_be_drawn_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        MixConfig.parse(values)
