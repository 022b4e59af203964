"""What has been encoded once is never encoded again, and never mistaken for something else."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from loudness import RATE, Loudness, manifest, run, write_clips

from auricle.data.manifest import Manifest
from auricle.embedding.extract import grid_times
from auricle.errors import EvaluationError
from auricle.evaluation import cache, embedder
from auricle.evaluation.cache import Cache
from auricle.evaluation.embedder import Embedder


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Twelve clips, each of three stretches of different loudness, with two columns of intervals."""
    folder, rng = tmp_path_factory.mktemp("sequences"), np.random.default_rng(0)
    steps = rng.integers(1, 6, size=(12, 3))
    for clip, levels in enumerate(steps):
        soundfile.write(folder / f"{clip:02}.wav", np.repeat(levels / 10, 1600), RATE, subtype="FLOAT")

    def intervals(name):
        return [
            [{"start_s": part / 10, "end_s": (part + 1) / 10, "label": name(step)} for part, step in enumerate(levels)]
            for levels in steps
        ]

    columns = {
        "path": [f"{clip:02}.wav" for clip in range(12)],
        "split": ["train"] * 6 + ["dev"] * 3 + ["test"] * 3,
        "phones": intervals(lambda step: f"p{step}"),
        "loud": intervals(lambda step: "soft" if step < 3 else "loud"),
    }
    return Manifest.from_columns(columns, folder)


def test_another_task_head_or_seed_and_another_start_encode_nothing(audio, tmp_path):
    data = manifest(audio, half=["soft" if clip % 6 < 3 else "loud" for clip in range(60)])
    first, again = Loudness(), Loudness()
    (one,) = run(first, data, "loud", tmp_path)
    assert first.calls > 0
    for target, options in (("half", {}), ("loud", {"heads": ("mlp",)}), ("loud", {"seeds": (7,)})):
        (result,) = run(again, data, target, tmp_path, overwrite="always", **options)
        assert result.seconds_encode == 0
    (two,) = run(again, data, "loud", tmp_path / "elsewhere", cache=tmp_path / ".cache")
    assert again.calls == 0
    assert (two.score, two.grid) == (one.score, one.grid)
    assert two.predictions().drop_columns(["map_x", "map_y"]) == one.predictions().drop_columns(["map_x", "map_y"])
    run(again, data, "loud", tmp_path / "elsewhere", cache=None, overwrite="always")
    assert again.calls == first.calls


@pytest.mark.parametrize("pool", ["mean", "meanstd"])
def test_vectors_too_many_to_hold_are_read_again_and_the_same(audio, tmp_path, monkeypatch, pool):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    paths = [*manifest(audio).column("path")[:9], str(tmp_path / "broken.wav"), str(tmp_path / "missing.wav")]
    table = manifest(audio).select(np.arange(11)).table
    data = Manifest(table.set_column(table.column_names.index("path"), "path", [paths]))
    plain, kept = (Embedder(Loudness(), pool, 60.0, cache=place) for place in (None, Cache(tmp_path, "one")))
    (present, layers), encoder = plain.clips(data), kept.encoder
    monkeypatch.setattr(embedder, "HELD", 0)
    for _ in range(2):
        again, read = kept.clips(data)
        assert again.tolist() == present.tolist() == [True] * 9 + [False] * 2
        assert read.keys() == layers.keys()
        assert all(torch.equal(read[layer], x) for layer, x in layers.items())
        assert not kept._vectors
        calls, encoder.calls = encoder.calls, 0
    assert calls == 0


def test_the_same_audio_elsewhere_is_known_and_other_audio_under_its_name_is_not(audio, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(audio, copy)
    run(Loudness(), manifest(audio), "loud", tmp_path)
    moved = Loudness()
    run(moved, manifest(copy), "loud", tmp_path, overwrite="always")
    assert moved.calls == 0
    soundfile.write(copy / "07.wav", np.full(soundfile.info(copy / "07.wav").frames, 0.55), RATE, subtype="FLOAT")
    run(moved, manifest(copy), "loud", tmp_path, overwrite="always")
    assert moved.calls == 1


def test_other_encoders_and_other_pooling_share_nothing(audio, tmp_path):
    run(Loudness(), manifest(audio), "loud", tmp_path)
    for encoder, options in ((Loudness(hop=320), {}), (Loudness(), {"pool": "meanstd"})):
        run(encoder, manifest(audio), "loud", tmp_path, overwrite="always", **options)
        assert encoder.calls > 0


def test_layers_not_asked_for_are_neither_kept_nor_missed(audio, tmp_path):
    data = manifest(audio)
    (last,) = run(Loudness(), data, "loud", tmp_path, layers="last")
    again = Loudness()
    (number,) = run(again, data, "loud", tmp_path, layers=(-1,), overwrite="always")
    assert again.calls == 0
    assert (number.grid, number.score) == (last.grid, last.score) == (number.grid, 1)
    assert {trial.layer for trial in last.grid} == {1}
    shards = [pq.read_schema(path).names for path in (tmp_path / ".cache").rglob("*.parquet")]
    assert shards == [["key", "reason", "layer_1"]]
    (every,) = run(again, data, "loud", tmp_path, overwrite="always")
    assert again.calls > 0
    assert {trial.layer for trial in every.grid} == {0, 1}
    again.calls = 0
    run(again, data, "loud", tmp_path, layers=(0,), overwrite="always")
    assert again.calls == 0


def test_an_interrupted_evaluation_goes_on(audio, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder, "CHUNK_S", 2.0)  # the clips have some 15 s
    whole, broken, after = Loudness(), Loudness(), Loudness()
    run(whole, manifest(audio), "loud", tmp_path / "whole")

    def interrupted(waveforms, lengths, features=broken.features):
        if broken.calls == 4:
            raise KeyboardInterrupt
        return features(waveforms, lengths)

    broken.features = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(broken, manifest(audio), "loud", tmp_path)
    (result,) = run(after, manifest(audio), "loud", tmp_path)
    assert 0 < after.calls <= whole.calls - 4 < whole.calls
    assert result.score == 1


def test_frames_serve_other_labels_heads_and_seeds(sequences, tmp_path):
    first, again = Loudness(), Loudness()
    (one,) = run(first, sequences, "phones", tmp_path)
    for target, options in (("loud", {}), ("phones", {"seeds": (5,)}), ("phones", {"layers": (0,)})):
        run(again, sequences, target, tmp_path, overwrite="always", **options)
    assert again.calls == 0
    (plain,) = run(Loudness(), sequences, "phones", tmp_path / "plain", cache=None)
    assert (plain.score, plain.grid) == (one.score, one.grid)


@pytest.mark.parametrize("limit", [0, 15_000, 2**30])
def test_frames_are_those_of_the_encoder_whatever_is_kept(sequences, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(cache, "FRAMES", limit)
    monkeypatch.setattr(embedder, "FRAMES", limit)
    monkeypatch.setattr(embedder, "CHUNK_BYTES", 3000)
    times = [grid_times(duration)[row::3] for row, duration in enumerate(sequences.durations)]
    clip, plain = Embedder(Loudness(), "mean", 9.0).frames(sequences, times)
    for calls in ([True], [limit == 0]):  # the second time, only what there was no room for
        encoder = Loudness()
        listener = Embedder(encoder, "mean", 9.0, cache=Cache(tmp_path, encoder.fingerprint()))
        found, frames = listener.frames(sequences, times)
        assert (encoder.calls > 0) == calls[0]
        assert found.tolist() == clip.tolist()
        for layer, values in plain.items():
            assert (frames[layer] == values).all()


def test_clips_that_cannot_be_embedded_are_remembered_with_the_reason(audio, tmp_path, caplog):
    folder = tmp_path / "audio"
    shutil.copytree(audio, folder)
    soundfile.write(folder / "58.wav", np.full(150, 0.5), RATE, subtype="FLOAT")
    (folder / "57.wav").write_bytes(b"RIFF")
    data = manifest(audio)
    paths = [str(folder / f"{clip:02}.wav") for clip in range(60)]
    data = Manifest(data.table.set_column(data.table.column_names.index("path"), "path", [paths]))
    encoder = Loudness(offset=200)
    for calls in (True, False):
        (result,) = run(encoder, data, "loud", tmp_path, overwrite="always")
        assert result.skipped == 2
        assert (encoder.calls > 0) == calls
        encoder.calls = 0
        assert "could not embed 2 clips" in caplog.text
        caplog.clear()


def test_damaged_and_newer_shards_are_one_line(audio, tmp_path):
    run(Loudness(), manifest(audio), "loud", tmp_path)
    (shard,) = (tmp_path / ".cache").rglob("*.parquet")
    described = pq.read_table(shard).replace_schema_metadata({"format": "99"})
    pq.write_table(described, shard)
    with pytest.raises(EvaluationError, match="newer auricle"):
        run(Loudness(), manifest(audio), "loud", tmp_path, overwrite="always")
    shard.write_bytes(b"PAR1")
    with pytest.raises(EvaluationError, match="delete it"):
        run(Loudness(), manifest(audio), "loud", tmp_path, overwrite="always")
