"""Recordings to embeddings: values, the frame grid, what lies on disk, interruption, refusals, bad input."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import auricle
from auricle.config import Config
from auricle.data.manifest import Manifest
from auricle.embedding import extract, store
from auricle.embedding.extract import embed, encode_clips, encode_frames, grid_times, nearest_frames
from auricle.encoders.base import Encoder, Frames
from auricle.errors import ConfigError, TooManySkipsError
from auricle.methods.base import TrainConfig
from auricle.training.optim import autocast_dtype

RATE = 4000


class Windows(Encoder):
    """Whole frames of `hop` samples. Layer 0 is each frame's centre in seconds, layer 1 a random projection."""

    family = "windows"

    def __init__(self, hop=100, seed=0, offset=None, pads_safely=True):
        super().__init__()
        self.config, self.sample_rate, self.hop, self.name = Config(), RATE, hop, f"windows-{seed}"
        self.offset = hop / 2 if offset is None else offset
        self.pads_safely = pads_safely
        self.dims = (1, 3)
        weight = torch.randn(hop, 3, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)
        self.calls = 0

    def forward(self, waveforms, lengths, layers=None):
        assert self.pads_safely or len(lengths.unique()) == 1
        assert not self.training
        self.calls += 1
        count = waveforms.shape[1] // self.hop
        frames = waveforms[:, : count * self.hop].unflatten(1, (count, self.hop))
        centres = (self.offset + self.hop * torch.arange(count)) / self.sample_rate
        states = [centres[None, :, None].expand(len(waveforms), -1, -1), frames @ self.weight]
        chosen = range(2) if layers is None else layers
        return Frames([states[layer] for layer in chosen], lengths // self.hop)


class Interrupted(Windows):
    """Stands for a process that dies in its sixth batch."""

    def forward(self, waveforms, lengths, layers=None):
        if self.calls == 5:
            raise KeyboardInterrupt
        return super().forward(waveforms, lengths, layers)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve recordings of 0.15 to 0.9 s and a manifest with labels."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    lines = ["path,species,score"]
    for number in range(12):
        soundfile.write(
            folder / f"{number:02d}.wav", rng.normal(0, 0.1, rng.integers(600, 3600)), RATE, subtype="FLOAT"
        )
        lines.append(f"{number:02d}.wav,{'owl' if number % 3 else 'wren'},{number / 4}")
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def manifest(corpus):
    return Manifest.open(corpus)


def reference(manifest, hop=100, seed=0):
    """Layer 1 of `Windows` clip by clip, in float64 from soundfile."""
    weight = Windows(hop, seed).weight.detach().double().numpy()
    for path in manifest.column("path"):
        samples = soundfile.read(path, dtype="float64")[0]
        yield samples[: len(samples) // hop * hop].reshape(-1, hop) @ weight


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parts(folder):
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


def quiet(*args, **options):
    return embed(*args, **{"progress": False, "batch_seconds": 1.0, "shard_clips": 4} | options)


# ------------------------------------------------------------------------------------------------ values


def test_clip_vectors_are_the_means_of_the_frames(manifest, tmp_path):
    summary = quiet(Windows(), manifest, tmp_path / "e")
    table = pq.read_table(tmp_path / "e")  # the folder as it is, records and all
    expected = np.stack([frames.mean(0) for frames in reference(manifest)])
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-6)
    assert (summary.clips, summary.skipped, summary.shards, summary.reused) == (12, 0, 3, 0)
    assert summary.audio_s == pytest.approx(manifest.durations.sum())
    assert "12 clips" in str(summary)
    assert (tmp_path / "e/_auricle/skipped.jsonl").read_text() == ""


def test_the_table_carries_the_manifest_and_says_what_it_is(manifest, tmp_path):
    encoder = Windows(hop=160, offset=70)
    quiet(encoder, manifest, tmp_path / "e", layers="all", pool="meanstd", dtype="float16")
    table = store.read(tmp_path / "e").to_table()
    for name in ("clip_id", "path", "start_s", "duration_s", "species", "score"):
        assert table[name].to_pylist() == manifest.column(name)
    assert table.schema.field("layer_0").type == pa.list_(pa.float16(), 2)
    assert table.schema.field("layer_1").type == pa.list_(pa.float16(), 6)
    told = store.metadata(table.schema)
    assert (told["format"], told["auricle"], told["encoder"]) == (1, auricle.__version__, "windows-0")
    assert told["fingerprint"] == encoder.fingerprint()
    assert (told["layers"], told["pool"], told["hop_s"], told["offset_s"]) == ("all", "meanstd", 0.04, 0.0175)
    expected = np.stack([np.concatenate([f.mean(0), f.std(0)]) for f in reference(manifest, 160)])
    np.testing.assert_allclose(np.stack(table["layer_1"].to_numpy()), expected, atol=2e-3)


def test_frames_are_stored_whole(manifest, tmp_path):
    quiet(Windows(), manifest, tmp_path / "e", level="frames", layers=[-1, 0])
    table = store.read(tmp_path / "e").to_table()
    assert table.schema.field("layer_1").type == pa.list_(pa.list_(pa.float32(), 3))
    for row, expected in enumerate(reference(manifest)):
        np.testing.assert_allclose(table["layer_1"][row].as_py(), expected, atol=1e-6)
        centres = (np.arange(len(expected)) + 0.5) * 100 / RATE
        np.testing.assert_allclose(np.ravel(table["layer_0"][row].as_py()), centres, atol=1e-6)


def test_in_memory_equals_on_disk(manifest, tmp_path):
    quiet(Windows(), manifest, tmp_path / "e", layers="all")
    table = store.read(tmp_path / "e").to_table()
    memory = encode_clips(Windows(), manifest, batch_seconds=1.0)
    assert memory.rows.tolist() == list(range(12))
    assert not memory.skipped
    assert [values.shape for values in memory.values] == [(12, 1), (12, 3)]  # widths differ: a list
    for layer, values in enumerate(memory.values):
        np.testing.assert_allclose(values, np.stack(table[f"layer_{layer}"].to_numpy()), atol=1e-6)
    assert encode_clips(Windows(), manifest, layers=[1, 1], pool="meanstd").values.shape == (12, 2, 6)


def test_encoders_that_padding_disturbs_are_fed_equal_lengths(manifest):
    np.testing.assert_allclose(
        encode_clips(Windows(pads_safely=False), manifest, layers="last").values[:, 0],
        [frames.mean(0) for frames in reference(manifest)],
        atol=1e-6,
    )


def test_the_mean_of_layers_needs_one_width(manifest, tmp_path):
    with pytest.raises(ConfigError, match=r"widths \[1, 3\]"):
        quiet(Windows(), manifest, tmp_path / "e", layers="mean")


# ------------------------------------------------------------------------------------------- frame grid


@given(st.integers(0, 30_000))
def test_the_grid_lies_inside_the_clip(tenth_ms):
    duration = Fraction(tenth_ms, 10_000)
    exact = [Fraction(2 * i + 1, 200) for i in range(400) if Fraction(2 * i + 1, 200) < duration]
    np.testing.assert_allclose(grid_times(float(duration)), [float(time) for time in exact], atol=1e-12)


@given(st.integers(1, 3000), st.integers(-500, 3000), st.integers(1, 40))
def test_the_nearest_frame_is_nearest(hop, offset, count):
    encoder = Windows(hop=hop, offset=offset)
    times = grid_times(1.0)
    centres = (offset + hop * np.arange(count)) / RATE
    distance = np.abs(times[:, None] - centres)
    chosen = distance[np.arange(len(times)), nearest_frames(times, encoder, count)]
    np.testing.assert_allclose(chosen, distance.min(1), atol=1e-12)


@pytest.mark.parametrize(("hop", "offset"), [(20, 10), (40, 20), (100, 50), (100, 0), (77, 91)])
def test_sampled_frames_are_centred_within_half_a_hop(manifest, hop, offset):
    out = encode_frames(Windows(hop=hop, offset=offset), manifest, layers=[0], batch_seconds=1.0)
    assert out.values.shape == (len(out.time), 1, 1)
    for row, duration in enumerate(manifest.durations):
        np.testing.assert_allclose(out.time[out.clip == row], grid_times(duration))
    last = np.array([(offset + hop * (round(d * RATE) // hop - 1)) / RATE for d in manifest.durations])
    inside = (out.time > offset / RATE) & (out.time < last[out.clip])
    assert inside.sum() > 0.6 * len(inside)
    assert np.abs(out.values[:, 0, 0] - out.time)[inside].max() <= hop / RATE / 2 + 1e-6
    np.testing.assert_allclose(out.values[out.time >= last[out.clip], 0, 0], last[out.clip][out.time >= last[out.clip]])


def test_frames_at_given_times(manifest):
    times = [np.array([0.1, 0.02, 5.0]) if row == 3 else np.empty(0) for row in range(12)]
    out = encode_frames(Windows(), manifest, layers="last", times=times, dtype="float16")
    frames = list(reference(manifest))[3]
    assert out.clip.tolist() == [3, 3, 3]
    assert out.values.dtype == np.float16
    np.testing.assert_allclose(out.values[:, 0], frames[[4, 0, -1]], atol=1e-3)


# ------------------------------------------------------------------------------------- shards and resume


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60), st.integers(1, 8))
def test_shards_cover_the_rows_in_order_within_their_bounds(sizes, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "SHARD_BYTES", 150)
        shards = extract._shards(np.array(sizes, float), most)
    assert [row for shard in shards for row in shard] == list(range(len(sizes)))
    assert all(1 <= len(shard) <= most for shard in shards)
    assert all(sum(sizes[row] for row in shard) <= 150 for shard in shards)


def test_an_interrupted_start_is_finished_bit_for_bit(manifest, tmp_path):
    quiet(Windows(), manifest, tmp_path / "whole", level="frames")
    for shards in (1, 2):  # each start goes on where the one before died
        with pytest.raises(KeyboardInterrupt):
            quiet(Interrupted(), manifest, tmp_path / "e", level="frames")
        before = parts(tmp_path / "e")
        assert len(before) == shards
        with pytest.raises(ConfigError, match=f"{3 - shards} of 3 shards are missing"):
            store.read(tmp_path / "e")
    encoder = Windows()
    summary = quiet(encoder, manifest, tmp_path / "e", level="frames")
    assert summary.reused == len(before)
    assert summary.clips == 12
    assert files(tmp_path / "e") == files(tmp_path / "whole")
    calls = encoder.calls
    assert quiet(encoder, manifest, tmp_path / "e", level="frames").reused == 3
    assert encoder.calls == calls


def test_a_damaged_or_missing_shard_is_written_anew(manifest, tmp_path):
    quiet(Windows(), manifest, tmp_path)
    whole = files(tmp_path)
    (tmp_path / "part-00000.parquet").unlink()
    (tmp_path / "part-00001.parquet").write_bytes(
        b"x" + whole[(tmp_path / "part-00001.parquet").relative_to(tmp_path)][1:]
    )
    (tmp_path / "_auricle/part-00002.json").write_text('{"rows": 4')
    assert quiet(Windows(), manifest, tmp_path).reused == 0
    assert files(tmp_path) == whole


def test_a_full_disk_is_one_line_and_leaves_the_rest_usable(manifest, tmp_path, monkeypatch):
    write_table = pq.write_table

    def full(table, file, **options):
        if (tmp_path / "e/part-00000.parquet").exists():
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(table, file, **options)

    quiet(Windows(), manifest, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(store.pq, "write_table", full)
        with pytest.raises(ConfigError, match=r"part-00001.parquet: cannot be written \(No space left on device\)"):
            quiet(Windows(), manifest, tmp_path / "e")
    assert not list(tmp_path.glob("e/.*.unfinished"))
    assert quiet(Windows(), manifest, tmp_path / "e").reused == 1
    assert files(tmp_path / "e") == files(tmp_path / "whole")


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_embedding import Manifest, Windows, quiet
print("started", flush=True)
quiet(Windows(), Manifest.open({corpus!r}), {output!r}, level="frames", shard_clips=1)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_folder_is_finished_bit_for_bit(corpus, manifest, tmp_path):
    quiet(Windows(), manifest, tmp_path / "whole", level="frames", shard_clips=1)
    code = KILLED.format(tests=os.path.dirname(__file__), corpus=str(corpus), output=str(tmp_path / "e"))
    for wanted in (0, 2, 3, 7, 11):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        process.stdout.readline()
        while process.poll() is None and len(list((tmp_path / "e").glob("part-*"))) < wanted:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    quiet(Windows(), manifest, tmp_path / "e", level="frames", shard_clips=1)
    assert files(tmp_path / "e") == files(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": Windows(seed=1)}, "fingerprint"),
        ({"layers": "all"}, "layers"),
        ({"pool": "meanstd"}, "pool"),
        ({"level": "frames"}, "level"),
        ({"dtype": "float16"}, "dtype"),
        ({"precision": "bf16"}, "precision = fp32, now bf16"),
        ({"shard_clips": 5}, "shard"),
        ({"batch_seconds": 2.0}, "batch_seconds"),
        ({"rows": [0, 2, 1]}, "manifest"),
    ],
)
def test_a_folder_of_other_embeddings_is_refused_undamaged(manifest, tmp_path, changed, message):
    manifest = manifest.select([0, 1, 2])
    quiet(Windows(), manifest, tmp_path)
    before = files(tmp_path)
    encoder, rows = changed.pop("encoder", Windows()), changed.pop("rows", [0, 1, 2])
    with pytest.raises(ConfigError, match=message) as error:
        quiet(encoder, manifest.select(rows), tmp_path, **changed)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == before


def test_overwrite_begins_anew(manifest, tmp_path):
    quiet(Windows(), manifest, tmp_path / "e", shard_clips=2)
    quiet(Windows(seed=1), manifest, tmp_path / "e", overwrite=True)
    quiet(Windows(seed=1), manifest, tmp_path / "fresh")
    assert files(tmp_path / "e") == files(tmp_path / "fresh")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_refused(manifest, tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("x")
    for output in (tmp_path, tmp_path / "thesis.txt", tmp_path / "thesis.txt/e"):
        with pytest.raises(ConfigError) as error:
            quiet(Windows(), manifest, output, overwrite=overwrite)
        assert "\n" not in str(error.value)
    assert files(tmp_path).keys() == {(tmp_path / "thesis.txt").relative_to(tmp_path)}


def test_two_processes_do_not_share_a_folder(manifest, tmp_path):
    (tmp_path / "_auricle").mkdir()
    with filelock.FileLock(tmp_path / "_auricle/lock"), pytest.raises(ConfigError, match="another process"):
        quiet(Windows(), manifest, tmp_path)
    assert quiet(Windows(), manifest, tmp_path).clips == 12


def test_a_newer_format_is_refused(manifest, tmp_path):
    quiet(Windows(), manifest, tmp_path)
    plan = json.loads((tmp_path / "_auricle/plan.json").read_text())
    (tmp_path / "_auricle/plan.json").write_text(json.dumps(plan | {"format": 2, "auricle": "9.0"}))
    for action in (lambda: store.read(tmp_path), lambda: quiet(Windows(), manifest, tmp_path)):
        with pytest.raises(ConfigError, match=r"newer auricle \(9.0\)"):
            action()


def test_a_label_named_like_the_embedding_is_refused(manifest, tmp_path):
    with pytest.raises(ConfigError, match="'embedding'"):
        quiet(Windows(), manifest.with_column("embedding", [0] * 12), tmp_path)
    with pytest.raises(ConfigError, match="twice"):
        quiet(Windows(), manifest, tmp_path, layers=[1, -1])


# --------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def bad(tmp_path):
    """Two sound clips, and one each that is no audio, silent, shorter than a frame, and embedded as NaN."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, samples in {
        "a": rng.normal(0, 0.1, 900),
        "b-silent": np.zeros(900),
        "c-short": rng.normal(0, 0.1, 60),
        "d-nan": np.full(900, 0.5),
        "f": rng.normal(0, 0.1, 900),
    }.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    (folder / "e-text.wav").write_text("this is no audio")
    return folder


class Fragile(Windows):
    """Makes NaN of a constant."""

    def forward(self, waveforms, lengths, layers=None):
        out = super().forward(waveforms, lengths, layers)
        constant = (waveforms[:, :50] == 0.5).all(1)
        return Frames(
            [state.masked_fill(constant[:, None, None], torch.nan) for state in out.hidden_states], out.lengths
        )


REASONS = {"b-silent": "silent", "c-short": "shorter than one frame", "d-nan": "NaN", "e-text": ""}


def test_what_cannot_be_used_is_skipped_and_said(bad, tmp_path):
    for level in ("clip", "frames"):
        summary = quiet(Fragile(), bad, tmp_path / level, level=level)
        assert (summary.clips, summary.skipped) == (2, 4)
        skips = [json.loads(line) for line in (tmp_path / level / "_auricle/skipped.jsonl").read_text().splitlines()]
        reasons = {skip["clip_id"].removesuffix(".wav"): skip["reason"] for skip in skips}
        assert reasons.keys() == REASONS.keys()
        assert all(reason and REASONS[clip] in reason for clip, reason in reasons.items())
        kept = store.read(tmp_path / level).to_table()["clip_id"].to_pylist()
        assert kept == ["a.wav", "f.wav"]
        assert quiet(Fragile(), bad, tmp_path / level, level=level).skipped == 4


def test_skips_in_memory(bad):
    manifest = Manifest.open(bad)
    clips = encode_clips(Fragile(), manifest, layers="last")
    names = manifest.column("clip_id")
    assert [names[row] for row in clips.rows] == ["a.wav", "f.wav"]
    assert clips.values.shape == (2, 1, 3)
    assert {skip.clip_id for skip in clips.skipped} == {"b-silent.wav", "c-short.wav", "d-nan.wav"}
    frames = encode_frames(Fragile(), manifest, layers="last")
    assert {names[row] for row in frames.clip} == {"a.wav", "f.wav"}
    assert len(frames.values) == len(frames.clip) == len(frames.time) == 2 * len(grid_times(900 / RATE))
    assert np.isfinite(frames.values).all()


def test_too_many_skips_fail_after_the_rest_is_done(bad, tmp_path):
    with pytest.raises(TooManySkipsError, match="4 of 6 clips") as error:
        quiet(Fragile(), bad, tmp_path / "e", max_skipped=0.5)
    assert error.value.exit_code == 3
    assert store.read(tmp_path / "e").count_rows() == 2
    assert quiet(Fragile(), bad, tmp_path / "e", max_skipped=4 / 6).clips == 2


def test_values_beyond_float16_are_skipped_not_stored_as_infinity(manifest, tmp_path):
    encoder = Windows()
    with torch.no_grad():
        encoder.weight[:, 0] = 1e6
    assert quiet(encoder, manifest, tmp_path / "half", dtype="float16", level="frames").skipped == 12
    assert quiet(encoder, manifest, tmp_path / "single").skipped == 0


def test_bf16_computes_in_bfloat16_and_stores_what_is_asked(manifest, tmp_path):
    """Products of bfloat16: each value is within their rounding of the exact one, and not within float32's."""
    encoder = Windows()
    quiet(encoder, manifest, tmp_path / "bf16", precision="bf16", level="frames")
    quiet(encoder, manifest, tmp_path / "half", precision="bf16", level="frames", dtype="float16")
    table = store.read(tmp_path / "bf16").to_table()
    assert table.schema.field("frames").type == pa.list_(pa.list_(pa.float32(), 3))
    assert store.metadata(table.schema)["precision"] == "bf16"
    half = store.read(tmp_path / "half").to_table()
    assert half.schema.field("frames").type == pa.list_(pa.list_(pa.float16(), 3))
    errors = []
    for row, expected in enumerate(reference(manifest)):
        found = np.array(table["frames"][row].as_py())
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        np.testing.assert_array_equal(half["frames"][row].as_py(), found.astype(np.float16))
    assert 2**-12 < np.mean(errors) < 2**-7  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("pool", ["mean", "meanstd"])
def test_frames_of_bf16_are_pooled_in_float32(manifest, pool):
    """Layer 0 is made without products, so that nothing of it may be rounded."""
    exact, found = (
        encode_clips(Windows(), manifest, layers=[0], pool=pool, precision=name).values for name in ("fp32", "bf16")
    )
    np.testing.assert_array_equal(found, exact)


def test_auto_is_the_precision_that_it_settles_on(manifest, tmp_path):
    settled = "fp32" if autocast_dtype(TrainConfig(precision="auto"), torch.device("cpu")) is None else "bf16"
    quiet(Windows(), manifest, tmp_path, precision="auto")
    assert quiet(Windows(), manifest, tmp_path, precision=settled).reused == 3


def test_an_encoder_in_training_is_used_in_evaluation_mode_and_given_back(manifest):
    encoder = Windows().train()
    encode_clips(encoder, manifest)
    assert encoder.training
