"""Batches: what is in them, in which order, and what happens to clips that cannot be read."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from auricle.audio.io import read
from auricle.data.batching import DataConfig, DataNeeds, plan_buckets, plan_epoch
from auricle.data.dataset import AHEAD, clip_batches, fixed_batches, hold_out, training_batches
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

RATE = 4_000
NEEDS = DataNeeds(sample_rate=RATE, crop_s=1.0)
CONFIG = DataConfig(batch_seconds=4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty recordings of 0.3 to 2.5 s at 8 kHz."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for index in range(30):
        samples = rng.integers(2_400, 20_000)
        soundfile.write(folder / f"{index:02d}.flac", rng.uniform(-0.5, 0.5, samples), 8_000)
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return Manifest.open(folder)


def same(one, two):
    return (
        one.clip_ids == two.clip_ids
        and (one.epoch, one.seed, one.skipped) == (two.epoch, two.seed, two.skipped)
        and all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("waveforms", "lengths", "starts"))
    )


def take(n, *args, **options):
    return list(itertools.islice(training_batches(*args, **options), n))


def an_epoch(manifest, needs=NEEDS, config=CONFIG, seed=0, epoch=0):
    batches = training_batches(manifest, needs, config, seed=seed)
    batches = itertools.dropwhile(lambda batch: batch.epoch < epoch, batches)
    return list(itertools.takewhile(lambda batch: batch.epoch == epoch, batches))


lengths_and_budget = st.tuples(
    st.lists(st.floats(0.01, 30), max_size=60).map(np.array), st.floats(0.5, 60), st.integers(0, 3)
)


@given(lengths_and_budget, st.floats(0.1, 20))
def test_every_clip_is_in_one_batch_within_the_budget(drawn, crop_s):
    durations, budget, seed = drawn
    needs = DataNeeds(16_000, crop_s)
    batches = plan_epoch(durations, needs, budget, seed, epoch=2)
    assert sorted(row for batch in batches for row in batch) == list(range(len(durations)))
    for batch in batches:
        longest = min(crop_s, durations[batch].max())
        assert len(batch) == 1 or len(batch) * longest <= budget * (1 + 1e-6)
    again = plan_epoch(durations, needs, budget, seed, epoch=2)
    assert all((one == two).all() for one, two in zip(batches, again, strict=True))


def test_buckets_waste_little_and_differ_by_epoch():
    durations = np.random.default_rng(0).lognormal(1.5, 0.7, 5_000)
    needs = DataNeeds(16_000, 10.0)
    crops = np.minimum(durations, 10.0)
    plans = [plan_epoch(durations, needs, 120.0, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for plan in plans:
        padded = sum(len(batch) * crops[batch].max() for batch in plan)
        assert crops.sum() / padded > 0.85
        assert crops.sum() / (120.0 * len(plan)) > 0.8  # and the batches are full
        mean_lengths = [crops[batch].mean() for batch in plan]
        assert abs(np.corrcoef(mean_lengths, np.arange(len(plan)))[0, 1]) < 0.3  # not in order of length
    companions = [{frozenset(batch.tolist()) for batch in plan} for plan in plans]
    assert not companions[0] & companions[1]
    assert not companions[0] & companions[2]


def test_a_million_clips_are_planned_in_seconds():
    durations = np.random.default_rng(0).lognormal(1.5, 0.7, 1_000_000)
    start = time.process_time()
    plan_epoch(durations, DataNeeds(16_000, 10.0), 120.0, 0, 0)
    assert time.process_time() - start < 4


def test_a_batch_is_crops_of_the_clips(manifest):
    batches = an_epoch(manifest)
    for epoch in range(3):
        names = [name for batch in an_epoch(manifest, epoch=epoch) for name in batch.clip_ids]
        assert sorted(names) == manifest.column("clip_id")
    row_of = {name: row for row, name in enumerate(manifest.column("clip_id"))}
    for batch in batches:
        assert batch.waveforms.dtype == torch.float32
        assert batch.waveforms.shape == (len(batch.clip_ids), batch.lengths.max())
        assert batch.waveforms.numel() <= 4.0 * RATE + len(batch.clip_ids)
        for waveform, length, start, name in zip(
            batch.waveforms, batch.lengths.tolist(), batch.starts.tolist(), batch.clip_ids, strict=True
        ):
            whole = read(manifest.row(row_of[name])["path"], RATE)
            assert length == min(RATE, len(whole))
            np.testing.assert_allclose(waveform[:length], whole[start : start + length], atol=1e-5)
            assert not waveform[length:].any()


def test_crops_lie_anywhere_and_differ_by_epoch(folder):
    soundfile.write(folder.parent / "long.wav", np.random.default_rng(0).uniform(-1, 1, 10 * RATE), RATE)
    manifest = Manifest.open(folder.parent / "long.wav")
    starts = [int(batch.starts[0]) for batch in take(200, manifest, NEEDS, CONFIG, seed=0)]
    assert min(starts) >= 0
    assert max(starts) <= 9 * RATE
    counts = np.histogram(starts, bins=9, range=(0, 9 * RATE))[0]
    assert counts.min() > 8  # 22 expected in each ninth


def test_aligned_crops_start_at_multiples_and_still_lie_anywhere(manifest):
    needs, config = replace(NEEDS, align=300), CONFIG
    aligned, free = take(30, manifest, needs, config, seed=0), take(30, manifest, NEEDS, CONFIG, seed=0)
    starts = torch.cat([batch.starts for batch in aligned])
    assert (starts % 300 == 0).all()
    assert len(set(starts.tolist())) > 10
    for one, two in zip(aligned, free, strict=True):
        assert one.clip_ids == two.clip_ids
        assert ((two.starts - one.starts >= 0) & (two.starts - one.starts < 300)).all()
        assert torch.equal(one.lengths, two.lengths)
    for batch in [*aligned[:5], *fixed_batches(manifest, needs, config)]:
        for name, start, length, waveform in zip(
            batch.clip_ids, batch.starts.tolist(), batch.lengths.tolist(), batch.waveforms, strict=True
        ):
            assert start % 300 == 0
            path = manifest.column("path")[manifest.column("clip_id").index(name)]
            wanted = read(path, RATE)[start : start + length]
            np.testing.assert_allclose(waveform[:length].numpy(), wanted, atol=1e-6)


@pytest.mark.slow
def test_order_and_crops_do_not_depend_on_workers(manifest):
    state = torch.get_rng_state()
    here = take(20, manifest, NEEDS, CONFIG, seed=3)
    there = take(20, manifest, NEEDS, DataConfig(batch_seconds=4.0, workers=2), seed=3)
    assert all(map(same, here, there))
    assert torch.equal(torch.get_rng_state(), state)  # and torch's generator is not drawn from


class AtOnce(ThreadPoolExecutor):
    """Does what is submitted before it returns."""

    def submit(self, do, /, *args, **options):
        done = super().submit(do, *args, **options)
        wait([done])
        return done


def test_so_many_batches_are_read_ahead_and_no_more(manifest, monkeypatch):
    decoded = []

    def counted(path, *args):
        decoded.append(path)
        return read(path, *args)

    monkeypatch.setattr("auricle.data.dataset.read", counted)
    monkeypatch.setattr("auricle.data.dataset.ThreadPoolExecutor", AtOnce)
    batches = training_batches(manifest, NEEDS, DataConfig(batch_seconds=1e-3), seed=0)  # a clip a batch
    for _ in range(3):
        next(batches)
    batches.close()
    assert len(decoded) == 3 + AHEAD


def test_reading_ahead_ends_with_its_reader_and_draws_nothing(manifest):
    state = torch.get_rng_state()
    batches = training_batches(manifest, NEEDS, CONFIG, seed=0)
    next(batches)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("auricle-reader")]
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("auricle-reader")]
    assert torch.equal(torch.get_rng_state(), state)


def test_resuming_goes_on_where_it_stopped(manifest):
    whole = take(40, manifest, NEEDS, CONFIG, seed=1)
    assert whole[-1].epoch >= 2
    for start in (0, 7, len(an_epoch(manifest, seed=1)), 33):
        assert all(map(same, take(40 - start, manifest, NEEDS, CONFIG, seed=1, start=start), whole[start:]))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_out(manifest, world):
    whole = take(30, manifest, NEEDS, CONFIG, seed=1)
    for rank in range(world):
        mine = take(30 // world, manifest, NEEDS, CONFIG, seed=1, rank=rank, world=world)
        assert all(map(same, mine, whole[rank::world]))
        resumed = take(3, manifest, NEEDS, CONFIG, seed=1, rank=rank, world=world, start=5)
        assert all(map(same, resumed, mine[5:8]))


def test_a_clips_crop_does_not_depend_on_the_batch_it_is_in(manifest):
    small, large = (
        {
            (batch.epoch, name): int(start)
            for batch in take(60, manifest, NEEDS, DataConfig(batch_seconds=seconds), seed=0)
            for name, start in zip(batch.clip_ids, batch.starts, strict=True)
        }
        for seconds in (2.0, 8.0)
    )
    shared = small.keys() & large.keys()
    assert len(shared) > 60
    assert all(small[key] == large[key] for key in shared)


def test_bad_clips_are_skipped_with_a_reason(folder, tmp_path):
    good = folder / "00.flac"
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(3 * RATE), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "cut short.wav", np.ones(100) / 2, RATE)
    quiet = np.zeros(3 * RATE)
    quiet[-10:] = 0.5
    soundfile.write(tmp_path / "mostly silent.wav", quiet, RATE)
    names = ["gone.wav", "text.wav", "silent.wav", "nan.wav", "cut short.wav", "mostly silent.wav"]
    n = len(names) + 1
    manifest = Manifest(
        pa.table(
            {
                "clip_id": ["good", *names],
                "path": [str(good), *(str(tmp_path / name) for name in names)],
                "start_s": np.zeros(n),
                "duration_s": [0.4, 1.0, 1.0, 3.0, 1.0, 0.5, 3.0],
                "sample_rate": np.full(n, RATE),
            }
        )
    )
    needs = DataNeeds(RATE, crop_s=1.0, min_s=0.1)
    reasons = {
        "gone.wav": "No such file",
        "text.wav": "not audio",
        "silent.wav": "is silent",
        "nan.wav": "NaN",
        "cut short.wav": "ends after 0.025 of 0.5 s",
    }
    for batches in (an_epoch(manifest, needs), list(fixed_batches(manifest, needs, CONFIG))):
        skipped = {skip.clip_id: skip for batch in batches for skip in batch.skipped}
        assert skipped.keys() == reasons.keys()
        for name, reason in reasons.items():
            assert reason in skipped[name].reason
            assert skipped[name].path not in skipped[name].reason
        kept = [name for batch in batches for name in batch.clip_ids]
        assert sorted(kept) == ["good", "mostly silent.wav"]
    only_bad = list(fixed_batches(manifest.select([1]), needs, CONFIG))
    assert only_bad[0].waveforms.shape == (0, 0)
    assert only_bad[0].lengths.shape == only_bad[0].starts.shape == (0,)


def test_clips_too_short_for_the_method_are_left_out_and_no_skips(manifest):
    needs = DataNeeds(RATE, crop_s=1.0, min_s=1.0)
    long = [name for name, s in zip(manifest.column("clip_id"), manifest.durations, strict=True) if s >= 1]
    assert 0 < len(long) < len(manifest)
    for batches in (an_epoch(manifest, needs), an_epoch(manifest, needs, epoch=2)):
        assert sorted(name for batch in batches for name in batch.clip_ids) == long
        assert not any(batch.skipped for batch in batches)
    fixed = list(fixed_batches(manifest, needs, CONFIG))
    assert sorted(name for batch in fixed for name in batch.clip_ids) == long
    assert not any(batch.skipped for batch in fixed)
    with pytest.raises(ManifestError, match=r"none of the 30 clips is as long as the 50 s .* lower objective\.min_s"):
        training_batches(manifest, DataNeeds(RATE, 60.0, min_s=50.0), CONFIG, seed=0)


def test_fixed_batches_are_central_crops_of_all(manifest):
    batches = list(fixed_batches(manifest, NEEDS, CONFIG))
    assert all(map(same, batches, fixed_batches(manifest, NEEDS, CONFIG)))
    found = {name: int(start) for batch in batches for name, start in zip(batch.clip_ids, batch.starts, strict=True)}
    for name, duration in zip(manifest.column("clip_id"), manifest.durations, strict=True):
        assert found[name] == pytest.approx(max(0, (duration - 1) / 2 * RATE), abs=1)


@pytest.mark.parametrize("equal_lengths", [False, True])
def test_clip_batches_are_whole_clips_beside_their_rows(manifest, equal_lengths):
    rows = [3, 4, 5, 20, 21, 22, 3]
    repeated = Manifest(pa.concat_tables([manifest.table, manifest.table]))
    rows += [row + 30 for row in rows[:-1]]
    seen = []
    for numbers, batch in clip_batches(repeated, RATE, 6.0, rows=rows, equal_lengths=equal_lengths):
        assert [repeated.row(int(number))["clip_id"] for number in numbers] == batch.clip_ids
        assert len(batch.clip_ids) == 1 or batch.waveforms.numel() <= 6.0 * RATE
        assert not equal_lengths or (batch.lengths == batch.waveforms.shape[1]).all()
        for number, waveform, length in zip(numbers, batch.waveforms, batch.lengths.tolist(), strict=True):
            np.testing.assert_array_equal(waveform[:length], read(repeated.row(int(number))["path"], RATE))
            assert not waveform[length:].any()
        seen += numbers.tolist()
    assert sorted(seen) == sorted(rows)


def test_segments_are_read_from_their_place(folder, tmp_path):
    path = folder / "07.flac"
    rows = [f"{path},{start},{start + 0.2}" for start in (0.0, 0.05, 0.1)]
    (tmp_path / "m.csv").write_text("\n".join(["path,start_s,end_s", *rows]))
    manifest = Manifest.open(tmp_path / "m.csv")
    whole = read(path, RATE)
    for numbers, batch in clip_batches(manifest, RATE, 10.0):
        for number, waveform in zip(numbers, batch.waveforms, strict=True):
            first = round(0.05 * number * RATE)
            np.testing.assert_allclose(waveform, whole[first : first + RATE // 5], atol=1e-4)
        assert batch.starts.tolist() == [0, 0, 0]


def test_headers_that_lie_still_give_equal_lengths(folder, tmp_path):
    for name, held in (("a", 4_000), ("b", 4_000), ("c", 3_000)):
        path = tmp_path / f"{name}.mp3"
        soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 16_000)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * held // 4_000])  # a header of an mp3 is believed by the probe
    manifest = Manifest.open(tmp_path)
    assert len(set(manifest.durations)) == 1
    batches = list(clip_batches(manifest, 16_000, 100.0, equal_lengths=True))
    assert sorted(len(numbers) for numbers, _ in batches) == [1, 2]
    assert all((batch.lengths == batch.waveforms.shape[1]).all() for _, batch in batches)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.floats(0, 0.5), st.integers(0, 5))
def test_whole_recordings_are_held_out(recordings, fraction, seed):
    n = len(recordings)
    columns = {"clip_id": [str(row) for row in range(n)], "path": [f"/{name}.wav" for name in recordings]}
    train, valid = hold_out(Manifest(pa.table(columns)), fraction, seed)
    assert not {recordings[row] for row in train} & {recordings[row] for row in valid}
    if fraction == 0 or len(set(recordings)) == 1:
        assert (len(train), len(valid)) == (n, 0)
        return
    assert len(train) >= 1
    assert 1 <= len(valid) <= max(1, round(fraction * n))
    again = hold_out(Manifest(pa.table(columns)), fraction, seed)
    assert (train.tolist(), valid.tolist()) == (again[0].tolist(), again[1].tolist())


def test_no_more_is_held_out_than_tells():
    columns = {"clip_id": [str(row) for row in range(10_000)], "path": [f"/{row}.wav" for row in range(10_000)]}
    train, valid = hold_out(Manifest(pa.table(columns)), 0.05, 0)
    assert (len(train), len(valid)) == (9_800, 200)


def test_a_clip_longer_than_the_budget_goes_alone():
    assert [batch.tolist() for batch in plan_buckets(np.array([1.0, 50.0, 1.0]), 2.0)] == [[1], [0, 2]]


VOICES = ["ann", "bob", None, "cy", "ann", "bob"] * 5
LABELLED = replace(NEEDS, columns=("room", "voice"), columns_optional=True)
GROUPED = replace(LABELLED, group_by="voice")


@pytest.fixture(scope="module")
def labelled(manifest):
    rooms = [row % 4 for row in range(len(manifest))]
    return manifest.with_column("voice", VOICES).with_column("room", rooms)


def test_labels_come_as_codes(labelled):
    voice_of = dict(zip(labelled.column("clip_id"), zip(VOICES, labelled.column("room"), strict=True), strict=True))
    for batches in (an_epoch(labelled, LABELLED), list(fixed_batches(labelled, LABELLED, CONFIG))):
        codes = {"voice": {}, "room": {}}
        for batch in batches:
            assert set(batch.labels) == {"voice", "room"}
            for name, *found in zip(batch.clip_ids, batch.labels["voice"], batch.labels["room"], strict=True):
                for column, value, code in zip(codes, voice_of[name], found, strict=True):
                    assert codes[column].setdefault(value, int(code)) == code  # one code a value
        assert codes["voice"].pop(None) == -1
        assert sorted(codes["voice"].values()) == [0, 1, 2]
        assert sorted(codes["room"].values()) == [0, 1, 2, 3]
    assert an_epoch(labelled)[0].labels == {}


def test_batches_hold_clips_of_one_group(labelled):
    voice_of = dict(zip(labelled.column("clip_id"), VOICES, strict=True))
    for batches in (an_epoch(labelled, GROUPED), list(fixed_batches(labelled, GROUPED, CONFIG))):
        assert sorted(name for batch in batches for name in batch.clip_ids) == labelled.column("clip_id")
        assert all(len({voice_of[name] for name in batch.clip_ids}) == 1 for batch in batches)
        assert max(len(batch.clip_ids) for batch in batches) > 2
        voices = [voice_of[batch.clip_ids[0]] for batch in batches]
        assert all(voices.count(voice) > 1 for voice in set(voices))  # within the budget of seconds
    whole = take(40, labelled, GROUPED, CONFIG, seed=1)
    voices = [voice_of[batch.clip_ids[0]] for batch in whole]
    assert voices != sorted(voices, key=str)  # groups in random order
    for start in (7, 33):
        assert all(map(same, take(40 - start, labelled, GROUPED, CONFIG, seed=1, start=start), whole[start:]))
    mine = take(20, labelled, GROUPED, CONFIG, seed=1, rank=1, world=2)
    assert all(map(same, mine, whole[1::2]))
    assert all(
        torch.equal(one.labels["voice"], two.labels["voice"]) for one, two in zip(mine, whole[1::2], strict=True)
    )


@given(lengths_and_budget, st.integers(1, 4))
def test_a_plan_of_groups_is_a_plan_of_each(drawn, kinds):
    durations, budget, seed = drawn
    groups = np.random.default_rng(seed).integers(-1, kinds, len(durations))
    needs = DataNeeds(16_000, 5.0)
    batches = plan_epoch(durations, needs, budget, seed, 1, groups)
    assert sorted(row for batch in batches for row in batch) == list(range(len(durations)))
    for batch in batches:
        assert len(set(groups[batch])) == 1
        assert len(batch) == 1 or len(batch) * min(5.0, durations[batch].max()) <= budget * (1 + 1e-6)
    alike = plan_epoch(durations, needs, budget, seed, 1, np.zeros(len(durations), np.int64))
    plain = plan_epoch(durations, needs, budget, seed, 1)
    assert all((one == two).all() for one, two in zip(alike, plain, strict=True))


def test_labels_that_are_needed_must_be_there(labelled):
    strict = replace(GROUPED, columns_optional=False)
    with pytest.raises(ManifestError, match=r"column 'voice': 5 of 30 clips have no value in it"):
        training_batches(labelled, strict, CONFIG, seed=0)
    known = labelled.select([voice is not None for voice in VOICES])
    assert next(training_batches(known, strict, CONFIG, seed=0)).labels["voice"].min() >= 0
    missing = replace(strict, columns=("speaker",), group_by="speaker")
    with pytest.raises(ManifestError, match=r"unknown column 'speaker'; known: room, voice \(this run's objective"):
        training_batches(labelled, missing, CONFIG, seed=0)
    lenient = replace(missing, columns_optional=True)
    assert next(training_batches(labelled, lenient, CONFIG, seed=0)).labels["speaker"].unique().tolist() == [-1]
    times = labelled.with_column("voice", [[{"start_s": 0.0, "end_s": 0.1, "label": "a"}]] * 30)
    with pytest.raises(ManifestError, match="column 'voice': holds list"):
        training_batches(times, strict, CONFIG, seed=0)
