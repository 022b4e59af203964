"""The questions of the suite `polyphony` have one answer whatever the number of voices, and only the notes tell it."""

import hashlib
import inspect
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auricle import cli
from auricle.audio import polyphony as scores
from auricle.audio import rendering
from auricle.audio.polyphony import ABOVE, LOWEST, REGISTERS, VOICES, canon, chord
from auricle.audio.rendering import KEYS, SCALES, TONICS, frequency
from auricle.data.corpora import find_corpus, polyphony
from auricle.data.corpora.polyphony import CANONS, CHORDS, LEVEL, SAMPLE_RATE, pieces, write_clips
from auricle.errors import ManifestError
from auricle.evaluation.music import key_credit
from auricle.evaluation.probes.heads import Examples, ProbeConfig
from auricle.evaluation.probes.protocols import prober
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks import SUITES, TASKS

FEW = {"train": 2, "dev": 1, "test": 1}
ROUNDS = {"pitch": CHORDS, "key": CANONS}
NUMBERS = range(1, VOICES + 1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder of rendered clips in which few pieces have been rendered."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AURICLE_CACHE", str(folder))
        patch.setattr(polyphony, "CHORDS", FEW)
        patch.setattr(polyphony, "CANONS", {"train": 1, "dev": 1, "test": 1})
        find_corpus("polyphony")
    return folder


@pytest.fixture
def clips(cache, monkeypatch):
    monkeypatch.setenv("AURICLE_CACHE", str(cache))
    return find_corpus("polyphony").table.to_pylist()


# ------------------------------------------------------------------------------------------------------------- scores


def test_the_lowest_note_is_the_one_asked_for_and_the_others_do_not_know_it():
    for seed in range(50):
        one, other = chord(seed, 48), chord(seed, 59)
        assert one[0][0].pitch == 48 == min(voice[0].pitch for voice in one)
        assert one[1:] == other[1:]
        assert len({voice[0].pitch for voice in one}) == VOICES
        assert {voice[0].pitch for voice in one[1:]} <= set(ABOVE)


def test_the_voices_of_a_canon_sing_the_same_notes_and_never_meet():
    heard = {}
    for seed, key in enumerate(KEYS):
        voices = canon(seed, key)
        tunes = [[note.pitch for note in voice] for voice in voices]
        assert len({tuple(sorted(tune)) for tune in tunes}) == 1
        assert all(len(set(moment)) == VOICES for moment in zip(*tunes, strict=True))
        assert len({(note.duration_s, note.timbre) for voice in voices for note in voice}) == 1
        heard[frozenset(pitch % 12 for pitch in tunes[0])] = key
        tonic, mode = key.split()
        natural = {(TONICS.index(tonic) + step) % 12 for step in SCALES[mode]}
        assert len(natural - {pitch % 12 for pitch in tunes[0]}) == (mode == "minor")
    assert len(heard) == 24  # which notes there are tells the key


def features(kind, voices, without_first=False):
    """(N, 128) which pitches sound at all; (N,) labels and (N,) parts of all pieces of the suite."""
    found, labels, parts = [], [], []
    for piece in pieces(kind, ROUNDS[kind]):
        row = np.zeros(128, np.float32)
        for voice in piece.voices[without_first:voices]:
            row[[note.pitch for note in voice]] = 1
        found.append(row)
        labels.append([*map(str, LOWEST), *KEYS].index(piece.label))
        parts.append(piece.split)
    return np.array(found), np.array(labels) - min(labels), np.array(parts)


def score(kind, x, labels, parts):
    """On test, by the protocol of the tasks with one rate and seed."""
    config = ProbeConfig(lrs=(1e-2,), seeds=(0,))
    train, dev = (
        Examples({0: torch.from_numpy(x[parts == part])}, torch.from_numpy(labels[parts == part]))
        for part in ("train", "dev")
    )
    fitted = prober("auricle", config).fit("classes", train, dev, balanced=False, device="cpu")
    told = fitted.predict({0: torch.from_numpy(x[parts == "test"])})[0].argmax(1).numpy()
    true = labels[parts == "test"]
    return (told == true).mean() if kind == "pitch" else key_credit(KEYS)[true, told].mean()


@pytest.mark.parametrize("kind", ["pitch", "key"])
def test_who_knows_the_pitches_that_sound_is_right_with_any_number_of_voices(kind):
    for voices in NUMBERS:
        x, labels, parts = features(kind, voices)
        if kind == "key":  # in any octave
            x = x[:, :120].reshape(-1, 10, 12).max(1)
        assert score(kind, x, labels, parts) == 1, voices


def test_who_knows_all_notes_but_the_lowest_can_only_guess():
    for voices in (2, 6):
        assert score("pitch", *features("pitch", voices, without_first=True)) < 0.2  # of 96 clips, chance 1 in 12


@pytest.mark.parametrize("kind", ["pitch", "key"])
def test_shuffled_labels_score_chance(kind):
    x, labels, parts = features(kind, 3)
    assert score(kind, x, np.random.default_rng(0).permutation(labels), parts) < 0.2


# -------------------------------------------------------------------------------------------------------------- clips


def test_labels_are_equally_frequent_in_every_part_whatever_the_voices(clips):
    for kind, rounds in ROUNDS.items():
        counts = Counter((piece.split, piece.label) for piece in pieces(kind, rounds))
        assert set(counts) == {(part, str(label)) for part in rounds for label in (LOWEST if kind == "pitch" else KEYS)}
        assert all(counts[part, label] == rounds[part] for part, label in counts)
    for voices in NUMBERS:
        some = [clip for clip in clips if clip["voices"] == voices]
        assert set(Counter((clip["split"], clip["pitch"]) for clip in some if clip["pitch"]).values()) == {1, 2}
        assert set(Counter((clip["split"], clip["key"]) for clip in some if clip["key"]).values()) == {1}
        assert {clip["piece"] for clip in some} == {clip["piece"] for clip in clips}


def test_pieces_and_timbres_of_test_are_unheard_in_training(clips):
    assert max(Counter(piece for piece, _ in {(clip["piece"], clip["split"]) for clip in clips}).values()) == 1
    assert len({hashlib.sha256(Path(clip["path"]).read_bytes()).digest() for clip in clips}) == len(clips)
    where = {}
    for kind, rounds in ROUNDS.items():
        for piece in pieces(kind, rounds):
            for voice in piece.voices:
                where.setdefault((kind, voice[0].timbre), set()).add(piece.split)
    assert all(len(parts) == 1 for parts in where.values())


def test_loudness_tells_nothing(clips):
    for clip in clips:
        samples, rate = soundfile.read(clip["path"])
        assert rate == SAMPLE_RATE
        assert np.sqrt(np.square(samples).mean()) == pytest.approx(LEVEL, rel=1e-3)
        assert np.abs(samples).max() < 0.95


def test_the_answer_is_in_the_sound_with_any_number_of_voices(clips):
    """Under the others' fundamentals there is but the one of a chord; in a canon's octave there are seven and no more.

    Both by spectra, of whole chords and of the seven moments of a canon.
    """
    hz = np.fft.rfftfreq(2**15, 1 / SAMPLE_RATE)
    for clip in (clip for clip in clips if clip["voices"] in (1, 3, 6)):
        samples, _ = soundfile.read(clip["path"])
        moments = samples.reshape(1 if clip["pitch"] else 7, -1)
        power = np.square(np.abs(np.fft.rfft(moments * np.hanning(moments.shape[1]), 2**15))).sum(0)
        at = {pitch: power[np.abs(hz - frequency(pitch)) < 2].max() for pitch in range(48, 84)}
        if clip["pitch"]:
            assert max(LOWEST, key=at.get) == clip["pitch"]
            continue
        loudest = [max(at[base + step] for step in range(12)) for base in REGISTERS]
        base = next(base for base, level in zip(REGISTERS, loudest, strict=True) if level > 0.1 * max(loudest))
        seven = {pitch % 12 for pitch in sorted(range(base, base + 12), key=at.get)[5:]}
        piece = int(clip["piece"].removeprefix("key-"))
        assert seven == {note.pitch % 12 for note in canon(piece, clip["key"])[0]}, clip["clip_id"]


# ----------------------------------------------------------------------------------------------------------- the cache


def test_rendering_is_a_function_of_the_seed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_clips(tmp_path / name, {"train": 1}, {})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == VOICES * 12 + 1
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    one, same = (next(pieces("key", {"train": 1})).render() for _ in range(2))
    np.testing.assert_array_equal(one, same)


def test_clips_are_rendered_once_and_wherever_asked(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(polyphony, "write_clips", lambda *args: pytest.fail("rendered again"))
    monkeypatch.setenv("AURICLE_CACHE", str(cache))
    assert len(find_corpus("polyphony")) == VOICES * (48 + 72)
    monkeypatch.delenv("AURICLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert polyphony.cache_folder() == tmp_path / "xdg" / "auricle"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert polyphony.cache_folder() == tmp_path / ".cache" / "auricle"


def test_clips_of_other_code_are_not_taken_for_those_of_this(monkeypatch, tmp_path):
    monkeypatch.setenv("AURICLE_CACHE", str(tmp_path))
    monkeypatch.setattr(polyphony, "write_clips", lambda folder, *rounds: write_clips(folder, {"train": 1}, {}))
    one, source = find_corpus("polyphony"), inspect.getsource
    for module in (rendering, scores, polyphony):
        with monkeypatch.context() as patch:
            patch.setattr(inspect, "getsource", lambda asked, new=module: source(asked) + "#" * (asked is new))
            other = find_corpus("polyphony")
        assert set(one.column("path")).isdisjoint(other.column("path"))
        assert one.content_hash() != other.content_hash()  # and results of the one are none of the other
    assert find_corpus("polyphony").content_hash() == one.content_hash()


def test_an_interrupted_rendering_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(folder, *rounds):
        write_clips(folder, {"train": 1}, {})
        raise KeyboardInterrupt

    monkeypatch.setenv("AURICLE_CACHE", str(tmp_path))
    monkeypatch.setattr(polyphony, "write_clips", interrupted)
    with pytest.raises(KeyboardInterrupt):
        polyphony.read()
    assert not list(tmp_path.iterdir())


def test_of_two_processes_the_first_to_finish_counts(monkeypatch, tmp_path):
    def overtaken(folder, *rounds):
        for place in (folder, folder.parents[1] / folder.name):
            place.mkdir(exist_ok=True)
            write_clips(place, {"train": 1}, {})

    monkeypatch.setenv("AURICLE_CACHE", str(tmp_path))
    monkeypatch.setattr(polyphony, "write_clips", overtaken)
    assert len(polyphony.read()) == 12 * VOICES
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_told_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AURICLE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ManifestError, match="set AURICLE_CACHE to another folder") as caught:
        polyphony.read()
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- the suite


def test_the_suite_needs_neither_data_nor_corpora(cache, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("AURICLE_CACHE", str(cache))
    assert SUITES["polyphony"] == tuple(f"polyphony-{kind}-{voices}" for kind in ROUNDS for voices in NUMBERS)
    names = ["polyphony-pitch-1", "polyphony-pitch-6", "polyphony-key-4"]
    results = evaluate("fbank", tasks=names, output=tmp_path, seeds=(0,), device="cpu", progress=False)
    assert [result.task for result in results] == names
    assert [result.chance for result in results] == [pytest.approx(1 / 12)] * 3  # (1 + 0.5 + 0.3 + 0.2) / 24
    assert [(result.n_train, result.n_test, result.units) for result in results] == [(24, 12, 12)] * 2 + [(24, 24, 24)]
    assert [result.unit for result in results] == ["piece"] * 3
    assert results[0].score > 0.5  # one note, of an octave, of two timbres each
    assert all(TASKS[result.task].scored_by == result.metric for result in results)
    keys = find_corpus("polyphony")
    keys = keys.select([row["voices"] == 4 and row["key"] is not None for row in keys.table.to_pylist()])
    (own,) = evaluate(
        "fbank", data=keys, target="key", metric="weighted_key", output=tmp_path, seeds=(0,), device="cpu",
        progress=False,
    )  # fmt: skip
    assert (own.score, own.chance) == (results[2].score, results[2].chance)  # near misses are credited there, too
    credit = key_credit(own.classes)
    rows = own.predictions().to_pylist()
    told = [credit[own.classes.index(row["target"]), own.classes.index(row["prediction"])] for row in rows]
    assert [row["correct"] for row in rows] == told
    assert set(told) & {0.2, 0.3, 0.5}
    assert cli.main(["list", "corpora"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("polyphony")]
    assert "rendered by auricle, no download" in line
