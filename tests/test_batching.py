"""Several crops of a clip: side by side, apart where they must be, and enough clips to mix."""

import itertools
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
from auricle.data.dataset import fixed_batches, training_batches
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

RATE = 4_000
THREE = DataNeeds(RATE, crop_s=0.25, crops=3, disjoint=True, min_clips=2)
CONFIG = DataConfig(batch_seconds=3.0)  # four clips


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Thirty recordings of 0.3 to 2.5 s, each of a speaker out of five."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for index in range(30):
        soundfile.write(folder / f"{index:02d}.wav", rng.uniform(-0.5, 0.5, rng.integers(1_200, 10_000)), RATE)
    manifest = Manifest.open(folder)
    return manifest.with_column("speaker", [row % 5 for row in range(30)])


def take(n, *args, **options):
    return list(itertools.islice(training_batches(*args, **options), n))


def an_epoch(manifest, needs, config=CONFIG, seed=0):
    batches = training_batches(manifest, needs, config, seed=seed)
    return list(itertools.takewhile(lambda batch: batch.epoch == 0, batches))


def same(one, two):
    return one.clip_ids == two.clip_ids and all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in ("waveforms", "lengths", "starts")
    )


def clips(batch, crops):
    """Of each clip its name, its label or None, and its crops' starts, after a look at the rows being side by side."""
    names = batch.clip_ids[::crops]
    assert batch.clip_ids == [name for name in names for _ in range(crops)]
    assert len(set(names)) == len(names)
    return dict(zip(names, batch.starts.view(-1, crops).tolist(), strict=True))


@pytest.mark.parametrize("align", [1, 300])
def test_disjoint_crops_stand_side_by_side_and_apart(manifest, align):
    needs = replace(THREE, align=align, columns=("speaker",))
    apart = -(-1_000 // align) * align
    assert needs.min_s == 3 * apart / RATE
    lengths = dict(zip(manifest.column("clip_id"), np.round(manifest.durations * RATE), strict=True))
    long = [name for name in lengths if lengths[name] >= 3 * apart]
    assert 0 < len(long) < 30
    speakers = dict(zip(lengths, manifest.column("speaker"), strict=True))
    for batches in (an_epoch(manifest, needs), list(fixed_batches(manifest, needs, CONFIG))):
        assert sorted(name for batch in batches for name in clips(batch, 3)) == long
        assert all(batch.waveforms.shape[1] == 1_000 and (batch.lengths == 1_000).all() for batch in batches)
        assert max(batch.waveforms.numel() for batch in batches) == 3 * RATE  # the budget counts all crops
        assert not any(batch.skipped for batch in batches)
        for batch in batches:
            for name, starts in clips(batch, 3).items():
                assert starts[0] >= 0
                assert (np.diff(starts) >= 1_000).all()
                assert starts[-1] + 1_000 <= lengths[name]
                assert not any(start % align for start in starts)
            for name, start, waveform in zip(batch.clip_ids, batch.starts.tolist(), batch.waveforms, strict=True):
                path = manifest.column("path")[manifest.column("clip_id").index(name)]
                np.testing.assert_array_equal(waveform, read(path, RATE)[start : start + 1_000])
            codes = batch.labels["speaker"].tolist()
            assert [codes[0] == code for code in codes] == [
                speakers[batch.clip_ids[0]] == speakers[name] for name in batch.clip_ids
            ]


def test_disjoint_crops_lie_anywhere(tmp_path):
    """Two crops in a clip of 2.5 crops: the gaps before, between and behind them are each a third of what is over."""
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-1, 1, 2_500), RATE)
    manifest, needs = Manifest.open(tmp_path), replace(THREE, crops=2, min_s=0.0)
    starts = torch.stack([batch.starts for batch in take(600, manifest, needs, CONFIG, seed=0)]).double()
    before, between, behind = starts[:, 0], starts[:, 1] - starts[:, 0] - 1_000, 1_500 - starts[:, 1]
    for gap in (before, between, behind):
        assert gap.min() >= 0
        assert gap.max() > 400
        # The gaps are the spacings of two uniform points: mean 1/3, standard deviation 1/sqrt(18) of the whole.
        assert abs(float(gap.mean()) - 500 / 3) < 4 * 500 / np.sqrt(18 * 600)


def test_crops_that_may_overlap_are_drawn_apart_and_of_any_clip(manifest):
    needs = replace(THREE, disjoint=False, min_s=0.0)
    batches = an_epoch(manifest, needs)
    found = {name: starts for batch in batches for name, starts in clips(batch, 3).items()}
    lengths = dict(zip(manifest.column("clip_id"), np.round(manifest.durations * RATE), strict=True))
    assert found.keys() == lengths.keys()
    assert all(0 <= start <= lengths[name] - min(1_000, lengths[name]) for name in found for start in found[name])
    assert any(np.diff(sorted(starts)).min() < 1_000 for starts in found.values())
    assert any(starts != sorted(starts) for starts in found.values())
    fixed = {
        name: starts for batch in fixed_batches(manifest, needs, CONFIG) for name, starts in clips(batch, 3).items()
    }
    longest = max(lengths, key=lengths.get)
    np.testing.assert_allclose(fixed[longest], (lengths[longest] - 1_000) * np.array([1, 3, 5]) / 6, atol=1)


def test_a_single_disjoint_crop_is_a_whole_one(manifest):
    batches = an_epoch(manifest, replace(THREE, crops=1, min_s=0.0))
    assert all((batch.lengths == 1_000).all() for batch in batches)
    plain = an_epoch(manifest, DataNeeds(RATE, crop_s=0.25, min_s=0.25, min_clips=2))
    assert all(map(same, batches, plain))


def test_no_held_out_clip_is_measured_alone(manifest):
    clips = sum(len(batch.clip_ids) for batch in fixed_batches(manifest, THREE, CONFIG)) // 3
    budget = DataConfig(batch_seconds=0.75 * (clips - 1))  # all but one
    assert [len(batch.clip_ids) // 3 for batch in fixed_batches(manifest, THREE, budget)] == [clips - 2, 2]


def test_resuming_and_ranks_see_the_same_crops(manifest):
    whole = take(30, manifest, THREE, CONFIG, seed=1)
    assert whole[-1].epoch >= 2
    for start in (1, 7, 23):
        assert all(map(same, take(30 - start, manifest, THREE, CONFIG, seed=1, start=start), whole[start:]))
    for rank in range(2):
        assert all(map(same, take(15, manifest, THREE, CONFIG, seed=1, rank=rank, world=2), whole[rank::2]))
    assert not all(map(same, take(30, manifest, THREE, CONFIG, seed=2), whole))


@pytest.mark.slow
def test_crops_do_not_depend_on_workers(manifest):
    there = take(12, manifest, THREE, DataConfig(batch_seconds=3.0, workers=2), seed=3)
    assert all(map(same, take(12, manifest, THREE, CONFIG, seed=3), there))


def test_a_clip_that_fails_has_no_rows_and_is_one_skip(manifest, tmp_path):
    """Its header promises more than the file holds: only the last of the crops cannot be read."""
    table = manifest.table.slice(0, 4).drop_columns(["speaker"]).to_pydict()
    soundfile.write(tmp_path / "short.wav", np.full(2_200, 0.5), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(4_000), RATE)
    for name in ("short", "silent"):
        added = {"clip_id": name, "path": str(tmp_path / f"{name}.wav"), "start_s": 0.0, "duration_s": 1.0}
        for column in table:
            table[column].append(added.get(column, RATE))
    broken = Manifest(pa.table(table))
    wanted = {name for name, s in zip(table["clip_id"][:4], table["duration_s"], strict=False) if s >= 0.75}
    assert wanted
    for batches in (an_epoch(broken, THREE), list(fixed_batches(broken, THREE, CONFIG))):
        assert {name for batch in batches for name in clips(batch, 3)} == wanted
        skipped = [skip for batch in batches for skip in batch.skipped]
        assert {skip.clip_id for skip in skipped} == {"short", "silent"}
        assert len(skipped) == 2
        assert {skip.reason.split()[0] for skip in skipped} == {"ends", "is"}


def test_clips_too_short_for_so_many_crops_are_refused_with_advice(manifest):
    with pytest.raises(
        ManifestError, match=r"as long as the 4 s that this method needs; ask for fewer or shorter crops"
    ):
        training_batches(manifest, DataNeeds(RATE, 1.0, crops=4, disjoint=True), CONFIG, seed=0)


def test_paths_tell_recordings_apart(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(4_000, 0.5), RATE)
    soundfile.write(tmp_path / "b.wav", np.full(4_000, 0.5), RATE)
    rows = [f"{tmp_path}/{name}.wav,{start},{start + 0.25}" for start in (0.0, 0.25, 0.5) for name in "ab"]
    (tmp_path / "m.csv").write_text("\n".join(["path,start_s,end_s", *rows]))
    manifest = Manifest.open(tmp_path / "m.csv")
    (batch,) = fixed_batches(manifest, DataNeeds(RATE, 0.25, columns=("path",)), CONFIG)
    path_of = dict(zip(manifest.column("clip_id"), manifest.column("path"), strict=True))
    pairs = set(zip(batch.labels["path"].tolist(), (path_of[name] for name in batch.clip_ids), strict=True))
    assert len(pairs) == 2
    assert len({code for code, _ in pairs}) == 2


@given(
    st.lists(st.floats(0.1, 9), min_size=1, max_size=40).map(np.array),
    st.floats(0.1, 30),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 9),
)
def test_batches_hold_so_many_clips_at_least(durations, budget, least, crops, seed):
    needs = DataNeeds(RATE, 4.0, crops=crops, min_clips=least)
    groups = np.random.default_rng(seed).integers(0, 2, len(durations))
    for kinds in (None, groups):
        batches = plan_epoch(durations, needs, budget, seed, 0, kinds)
        assert sorted(row for batch in batches for row in batch) == list(range(len(durations)))
        for batch in batches:
            there = len(durations) if kinds is None else (kinds == kinds[batch[0]]).sum()
            assert len(batch) >= min(least, there)
            size = len(batch) * crops * min(4.0, durations[batch].max())
            assert size <= budget * (1 + 1e-6) or len(batch) < 2 * least  # no more over budget than it must be


def test_a_rest_too_small_for_a_batch_is_made_up_from_the_one_before():
    sizes = [len(batch) for batch in plan_buckets(np.ones(13), 4.0, least=2)]
    assert sizes == [4, 4, 3, 2]
    assert [len(batch) for batch in plan_buckets(np.ones(13), 4.0)] == [4, 4, 4, 1]
