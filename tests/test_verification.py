"""Verification from recordings to tables: voices are pure tones, so that what an encoder ought to answer is known."""

import json
import logging
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from auricle import cli
from auricle.audio.io import read
from auricle.audio.mixing import active_power, mix
from auricle.config import Config
from auricle.data.manifest import Manifest
from auricle.encoders.base import Encoder, Frames
from auricle.errors import AudioError, ConfigError, EvaluationError, ManifestError
from auricle.evaluation.results import read_results, table
from auricle.evaluation.run import evaluate
from auricle.evaluation.verification.interference import draw_interferers, write_mixtures
from auricle.evaluation.verification.run import difference
from auricle.evaluation.verification.scoring import as_norm, cohort_statistics, cosines, nearest_stream, unit
from auricle.evaluation.verification.setup import prepare_trials
from auricle.evaluation.verification.trials import draw_trials, read_trials
from auricle.evaluation.verification.voxceleb import LISTS, OfficialList, read_voxceleb
from auricle.report.build import build_report

RATE, HOP, PEOPLE, CLIPS = 8000, 400, 15, 4
TASKS = ["verification-clean", "verification-clean-mix+5dB", "verification-mix-mix+0dB"]


class Tones(Encoder):
    """Layer 0 is noise that depends on the clip's length; layer 1 is one-hot of the voice, a wrong one in mixtures."""

    family: ClassVar[str] = "tones"

    class Options(Config):
        deaf: bool = False

    def __init__(self, name="tones", **options):
        super().__init__()
        self.config, self.name = self.Options(**options), name
        self.sample_rate, self.hop, self.offset, self.dims = RATE, HOP, HOP / 2, (4, PEOPLE)
        self.heard = 0

    def features(self, waveforms, lengths):
        self.heard += len(waveforms)
        frames = torch.nn.functional.pad(waveforms, (0, -waveforms.shape[1] % HOP)).unfold(1, HOP, HOP)  # (B, T, HOP)
        power = torch.fft.rfft(frames).abs().square()[:, :, 10 : 10 + 2 * PEOPLE : 2]  # tones lie 40 Hz apart
        return power * (0 if self.config.deaf else 1), torch.div(lengths, HOP, rounding_mode="floor")

    def encode(self, x, lengths, *, layers=None):
        noise = torch.sin(lengths[:, None, None] * torch.arange(1, 5) * 12.9898).expand(-1, x.shape[1], -1)
        place = (x * torch.arange(PEOPLE)).sum(2) / x.sum(2).clamp_min(1e-9)  # between the voices of a mixture
        voice = torch.nn.functional.one_hot(place.round().long(), PEOPLE).float()
        states = [noise, voice]
        return Frames([states[layer] for layer in (range(2) if layers is None else layers)], lengths)


class Separating(Tones):
    """Tells the voices in a mixture by their tones."""

    def streams(self, waveforms, lengths):
        power = self.features(waveforms, lengths)[0].sum(1)  # (B, PEOPLE)
        values, voices = power.topk(2)
        return torch.nn.functional.one_hot(voices, PEOPLE) * (values > 0.01 * values[:, :1])[..., None].float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each of 15 people says a tone four times, at any loudness and of any length; a manifest names them."""
    place = tmp_path_factory.mktemp("voices")
    rng = np.random.default_rng(0)
    lines = ["file,speaker,take"]
    for person in range(PEOPLE):
        for take in range(CLIPS):
            time = np.arange(HOP * rng.integers(6, 14)) / RATE
            tone = rng.uniform(0.05, 0.4) * np.sin(2 * np.pi * (200 + 40 * person) * time)
            soundfile.write(place / f"{person}-{take}.wav", tone, RATE, subtype="FLOAT")
            lines.append(f"{person}-{take}.wav,p{person:02},{take}")
    (place / "voices.csv").write_text("\n".join(lines), encoding="utf-8")
    return place


def run(encoders, data, output, **options):
    options = {"tasks": TASKS, "trial_count": 40} | options
    return evaluate(encoders, data=data, output=output, progress=False, device="cpu", **options)


def talkers(manifest):
    return np.unique(manifest.column("speaker"), return_inverse=True)[1]


# ------------------------------------------------------------------------------------------------------------ the whole


def test_an_encoder_that_hears_who_speaks_makes_no_errors_where_only_one_does(folder, tmp_path):
    clean, _, both = run(Tones(), folder / "voices.csv", tmp_path)
    assert (clean.task, clean.metric, clean.level) == ("voices-speaker-clean", "eer", "trial")
    assert (clean.score, clean.low, clean.high, clean.chance) == (0, 0, 0, 0.5)
    assert clean.chosen[0].layer == 1  # layer 0 is noise, and dev says so
    assert clean.grid[0].dev > 0.2
    assert clean.n_test == 80
    assert clean.units == 12  # of 15, three are dev
    assert both.score > 0.2  # its embedding of a mixture is of neither voice
    assert set(clean.further) == {"min_dcf_0.01", "min_dcf_0.05"}


def test_true_speakers_in_the_streams_make_no_errors_where_two_talk(folder, tmp_path):
    results = run([Separating(), Tones(), Separating("deaf", deaf=True)], folder / "voices.csv", tmp_path)
    for result in results[:3]:
        assert (result.score, result.high) == (0, 0)
        assert result.further["min_dcf_0.05"].value == 0
    for result in results[1:3]:
        assert result.further["oracle_stream"].value == 0
        assert result.further["no_separation"].value > 0.2
        assert result.further["gain_by_separation"].low > 0
    for own, deaf in zip(results[:3], results[6:], strict=True):
        assert deaf.score == 0.5
        assert own.split_hash == deaf.split_hash
        assert difference(own, deaf).low > 0
        assert difference(deaf, own).high < 0
    told = table(results)
    assert "oracle stream" in told
    assert "minDCF 0.01" in told
    assert "50.0" in told.split("chance")[1]
    with pytest.raises(EvaluationError, match="other trials"):
        difference(results[0], results[1])


def test_every_trial_stands_in_the_table_and_conditions_share_them(folder, tmp_path):
    results = run(Separating(), folder / "voices.csv", tmp_path)
    clean, one, both = (result.predictions().to_pylist() for result in results)
    for trials in (one, both):
        assert [(row["enrol"], row["test"]) for row in trials] == [(row["enrol"], row["test"]) for row in clean]
    assert {row["test_interferer"] for row in clean} == {None}
    assert {row["enrol_interferer"] for row in one} == {None}
    speaker = dict(
        zip(*(Manifest.open(folder / "voices.csv").column(name) for name in ("clip_id", "speaker")), strict=True)
    )
    for row in both:
        present = [row["enrol_speaker"], row["test_speaker"]]
        present += [speaker[row["enrol_interferer"]], speaker[row["test_interferer"]]]
        assert len(set(present)) == (3 if row["target"] else 4)
        assert row["target"] == (present[0] == present[1])


def test_results_are_found_again_and_clips_are_embedded_once(folder, tmp_path):
    encoder = Tones()
    first = run(encoder, folder / "voices.csv", tmp_path)
    trials = first[0].predictions().to_pylist()
    used = len({row[side] for row in trials for side in ("enrol", "test")})
    assert encoder.heard == used * 3 + 12  # clean, at two ratios, and dev
    assert run(encoder, folder / "voices.csv", tmp_path) == first
    assert encoder.heard == used * 3 + 12
    other = run(encoder, folder / "voices.csv", tmp_path, split_seed=1)
    assert other[0].split_hash != first[0].split_hash
    assert [result.score for result in read_results(tmp_path)] == [
        result.score for result in sorted(other, key=lambda r: r.file)
    ]


def test_other_trials_of_the_same_clips_encode_nothing_again(folder, tmp_path):
    first, again = Tones(), Tones()
    run(first, folder / "voices.csv", tmp_path, trial_count=0)
    assert first.heard
    results = run(again, folder / "voices.csv", tmp_path, trial_count=30)
    assert [result.n_test for result in results] == [60] * 3
    assert again.heard == 0
    assert {result.seconds_encode for result in results} == {0}
    alone = run(again, folder / "voices.csv", tmp_path, trial_count=30, cache=None, overwrite="always")
    assert again.heard > 0
    assert [one.score for one in alone] == [one.score for one in results]


def test_an_own_split_is_kept_and_normalising_leaves_a_perfect_score(folder, tmp_path):
    data = Manifest.open(folder / "voices.csv")
    data = data.with_column("split", ["test" if person < 6 else "train" for person in talkers(data)])
    (result,) = run(Tones(), data, tmp_path, tasks=TASKS[:1], as_norm=5, center=True, trial_count=0)
    assert result.score == 0
    assert result.units == 6
    assert result.n_test == 6 * CLIPS * (6 * CLIPS - 1) // 2  # all pairs
    assert "AS-norm by the nearest 5 of 36 utterances" in result.split
    assert "subtracted" in result.split
    scores = result.predictions()["score"].to_numpy()
    assert scores.max() > 1.5  # no cosine


def test_a_clip_that_cannot_be_embedded_is_counted_and_answers_nothing(folder, tmp_path, caplog):
    data = Manifest.open(folder / "voices.csv")
    (tmp_path / "short").mkdir()
    soundfile.write(tmp_path / "short" / "s.wav", np.zeros(HOP - 1), RATE)
    data = Manifest.open([data, Manifest.from_columns({"path": ["s.wav"], "speaker": ["p00"]}, tmp_path / "short")])
    with caplog.at_level(logging.WARNING):
        (result,) = run(Tones(), data, tmp_path / "out", tasks=TASKS[:1], trial_count=0, layers=[1])
    assert result.skipped == 1
    assert result.score > 0
    assert result.dev is None
    assert "could not embed 1" in caplog.text


def test_the_command_and_the_page(folder, tmp_path, capsys):
    args = ["evaluate", "fbank", "mfcc", "--suite", "verification", "--data", str(folder / "voices.csv")]
    assert cli.main([*args, "--trial-count", "30", "--output", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 * 9
    assert {row["task"] for row in rows} >= {"voices-speaker-clean", "voices-speaker-mix-mix-5dB"}
    page = build_report([tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('class="det"') == 9
    assert page.count('class="spread"') == 18
    assert "equal error rate in %" in page
    damaged = next(tmp_path.rglob("*clean@*.parquet"))
    pq.write_table(pq.read_table(damaged).drop_columns(["score"]), damaged)
    with pytest.raises(EvaluationError, match="score is missing"):
        build_report([tmp_path], tmp_path / "page.html")


def test_a_trial_file_is_scored_as_it_stands(folder, tmp_path, capsys):
    lines = ["1 0-0.wav 0-1.wav", "0 0-0.wav 1-0.wav", "1 1-0.wav 1-2.wav", "0 1-1.wav 2-0.wav"]
    (tmp_path / "my.txt").write_text("\n".join(lines), encoding="utf-8")
    (result,) = run(Tones(), folder / "voices.csv", tmp_path / "out", tasks=TASKS[:1], trials=tmp_path / "my.txt")
    assert (result.task, result.score, result.n_test) == ("my", 0, 4)
    assert result.chosen[0].layer == 1  # chosen on the twelve speakers who are in no trial
    with pytest.raises(EvaluationError, match="verification-clean alone"):
        run(Tones(), folder / "voices.csv", tmp_path, trials=tmp_path / "my.txt")
    (tmp_path / "my.txt").write_text("0 0-0.wav 0-1.wav\n1 0-0.wav 1-0.wav", encoding="utf-8")
    with pytest.raises(EvaluationError, match="2 of 2 labels contradict column 'speaker'"):
        run(Tones(), folder / "voices.csv", tmp_path, tasks=TASKS[:1], trials=tmp_path / "my.txt")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "speakr"}, ManifestError, "did you mean 'speaker'"),
        ({"layers": [0, "sum"]}, ConfigError, "sum of layers"),
        ({"layers": [7]}, ConfigError, "not among"),
        ({"as_norm": 500}, EvaluationError, "between 2 and the 12 clips"),
        ({"tasks": ["verification-clean", "quick-digit"]}, EvaluationError, "one after another"),
        ({"unit": "take"}, EvaluationError, "verification: knows no unit"),
        ({"protocol": "knn", "heads": ("mlp",)}, EvaluationError, "verification: knows no protocol and no heads"),
        ({"trials": "no-such.txt", "tasks": TASKS[:1]}, ManifestError, "no-such.txt"),
    ],
)
def test_mistakes_are_told(folder, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        run(Tones(), folder / "voices.csv", tmp_path, **options)


def test_trials_need_the_suite_and_a_choice_needs_other_speakers(folder, tmp_path):
    with pytest.raises(EvaluationError, match="task verification-clean"):
        evaluate(Tones(), data=folder / "voices.csv", target="speaker", trials="x.txt", output=tmp_path)
    lines = [f"{int(one == two)} {one}-0.wav {two}-1.wav" for one in range(PEOPLE) for two in range(PEOPLE)]
    (tmp_path / "all.txt").write_text("\n".join(lines), encoding="utf-8")
    options = {"tasks": TASKS[:1], "trials": tmp_path / "all.txt"}
    with pytest.raises(ConfigError, match="--layers last"):
        run(Tones(), folder / "voices.csv", tmp_path, **options)
    assert run(Tones(), folder / "voices.csv", tmp_path, layers="last", **options)[0].score == 0
    with pytest.raises(EvaluationError, match="speakers who are in no trial"):
        run(Tones(), folder / "voices.csv", tmp_path / "new", layers="last", center=True, **options)


def test_an_encoder_without_streams_says_so():
    assert Separating().has_streams
    assert not Tones().has_streams
    with pytest.raises(NotImplementedError, match="does not tell talkers apart"):
        Tones().streams(torch.zeros(1, RATE), torch.tensor([RATE]))


class Sick(Separating):
    """Its streams of short clips are not finite."""

    def streams(self, waveforms, lengths):
        sick = (lengths < 7 * HOP)[:, None, None]
        return super().streams(waveforms, lengths).masked_fill(sick, torch.nan)


def test_streams_that_are_not_finite_are_skipped(folder, tmp_path, caplog):
    data = Manifest.open(folder / "voices.csv")
    with caplog.at_level(logging.WARNING):
        (result,) = run(Sick(), data, tmp_path, tasks=TASKS[:1], trial_count=0)
    short = np.round(data.durations * RATE) < 7 * HOP
    tested = {row[f"{side}"] for row in result.predictions().to_pylist() for side in ("enrol", "test")}
    ids = np.array(data.column("clip_id"))
    assert result.skipped == sum(clip in tested for clip in ids[short]) > 0
    assert "NaN or infinity" in caplog.text
    assert result.score < 0.5


# --------------------------------------------------------------------------------------------------------------- trials


@pytest.mark.parametrize("seed", range(5))
def test_drawn_trials_are_distinct_true_and_balanced(seed):
    speakers = np.random.default_rng(seed).integers(8, size=50)
    rows = np.flatnonzero(speakers < 7)
    trials = draw_trials(rows, speakers, 60, seed)
    assert trials.target.sum() == 60 == (~trials.target).sum()
    assert ((speakers[trials.enrol] == speakers[trials.test]) == trials.target).all()
    pairs = {frozenset(pair) for pair in zip(trials.enrol.tolist(), trials.test.tolist(), strict=True)}
    assert len(pairs) == 120
    assert all(len(pair) == 2 for pair in pairs)
    assert set(trials.rows.tolist()) <= set(rows.tolist())
    assert len(np.unique(speakers[trials.enrol[trials.target]])) == 7  # not the first few speakers alone
    again, other = draw_trials(rows, speakers, 60, seed), draw_trials(rows, speakers, 60, seed + 1)
    ids = [str(row) for row in range(50)]
    assert trials.hash(ids) == again.hash(ids) != other.hash(ids)


@pytest.mark.parametrize("size", [3, 5, 6, 9])
def test_all_pairs_are_all_pairs(size):
    speakers = np.array([*range(size - 1), 0])
    trials = draw_trials(np.arange(size), speakers, None, 0)
    assert len(trials) == size * (size - 1) // 2
    assert len({frozenset(pair) for pair in zip(trials.enrol.tolist(), trials.test.tolist(), strict=True)}) == len(
        trials
    )


def test_too_little_for_trials_is_refused():
    with pytest.raises(EvaluationError, match="no target trial"):
        draw_trials(np.arange(3), np.arange(3), 5, 0)
    with pytest.raises(EvaluationError, match="no non-target trial"):
        draw_trials(np.arange(3), np.zeros(3, int), 5, 0)
    with pytest.raises(EvaluationError, match="3 speakers are too few"):
        draw_interferers(np.arange(6), np.repeat(np.arange(3), 2), 0)


@pytest.mark.parametrize("seed", range(5))
def test_no_two_talkers_of_a_trial_of_mixtures_are_one(seed):
    speakers = np.repeat(np.arange(6), 5)
    rows = np.flatnonzero(speakers < 5)
    interferers = draw_interferers(rows, speakers, seed)
    assert (interferers[speakers == 5] == -1).all()
    assert np.isin(interferers[rows], rows).all()
    assert (speakers[interferers[rows]] != speakers[rows]).all()
    voices = np.where(interferers < 0, -1, speakers[interferers])
    trials = draw_trials(rows, speakers, None, seed, voices)
    brute = 0
    for one in rows:
        for two in rows[rows > one]:
            present = {speakers[one], speakers[two], voices[one], voices[two]}
            brute += len(present) == (3 if speakers[one] == speakers[two] else 4)
    assert len(trials) == brute > 0
    for one, two, target in zip(trials.enrol, trials.test, trials.target, strict=True):
        assert len({speakers[one], speakers[two], voices[one], voices[two]}) == (3 if target else 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 a.wav", "line 1: expected"),
        ("1 0-0.wav 0-1.wav\nyes 0-0.wav 1-0.wav", "line 2: expected"),
        ("1 0-0.wav 0-1.wav", "both kinds"),
        ("1 0-0.wav 0-1.wav\n0 0-0.wav nobody.wav", "1 of 3 clips are not in the manifest .nobody.wav"),
    ],
)
def test_damaged_trial_files_are_told(folder, tmp_path, text, words):
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    with pytest.raises(EvaluationError, match=words):
        read_trials(tmp_path / "t.txt", Manifest.open(folder / "voices.csv"))


def test_a_trial_file_names_clips_by_id_or_path(folder, tmp_path):
    manifest = Manifest.open(folder / "voices.csv")
    ids, paths = manifest.column("clip_id"), manifest.column("path")
    text = f"target {ids[0]} {paths[1]}\nnontarget {folder.name}/0-0.wav 1-0.wav\n"
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    trials = read_trials(tmp_path / "t.txt", manifest)
    assert (trials.enrol.tolist(), trials.test.tolist(), trials.target.tolist()) == ([0, 0], [1, CLIPS], [True, False])


# ------------------------------------------------------------------------------------------------------------- VoxCeleb


@pytest.fixture
def voxceleb(tmp_path):
    """VoxCeleb1 in its official layout, very small: dev and test archives, and the list of E."""
    names = {"dev": ["id10001/1zcIwhmdeo4/00001.wav", "id10001/7gWzIy6yIIk/00001.wav"],
             "test": ["id10270/5r0dWxy17C8/00001.wav", "id10270/5r0dWxy17C8/00002.wav"]}  # fmt: skip
    for part, clips in names.items():
        for place, clip in enumerate(clips):
            path = tmp_path / part / "wav" / clip
            path.parent.mkdir(parents=True, exist_ok=True)
            tone = np.sin(2 * np.pi * (200 + 40 * (part == "dev")) * np.arange(HOP * (6 + place)) / RATE)
            soundfile.write(path, 0.3 * tone, RATE)
    one, two = names["dev"], names["test"]
    lines = [f"1 {one[0]} {one[1]}", f"0 {one[0]} {two[0]}", f"1 {two[0]} {two[1]}", f"0 {one[1]} {two[1]}"]
    (tmp_path / "list_test_all2.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_voxceleb_lists_are_read_by_name(voxceleb, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        manifest, trials = read_voxceleb(voxceleb, "voxceleb1-e-cleaned")
    assert "found 4 clips, the corpus has 579818" in caplog.text.replace(",", ",")
    assert sorted(set(manifest.column("speaker"))) == ["id10001", "id10270"]
    assert len(manifest) == len(trials) == 4
    options = {"tasks": TASKS[:1], "trials": "voxceleb1-e-cleaned", "layers": "last"}
    (result,) = run(Tones(), voxceleb, tmp_path / "out", **options)
    assert (result.task, result.score, result.units) == ("voxceleb1-e-cleaned", 0, 2)
    assert "of 2 speakers; list voxceleb1-e-cleaned" in result.split  # drawn by no seed


def test_a_folder_may_be_named_from_where_one_stands(voxceleb, monkeypatch):
    monkeypatch.chdir(voxceleb.parent)
    manifest, _ = read_voxceleb(voxceleb.name, "voxceleb1-e-cleaned")
    assert all(path.startswith(f"{voxceleb}/") for path in manifest.column("path"))


def test_a_complete_list_is_as_long_as_published(voxceleb, monkeypatch, caplog):
    monkeypatch.setitem(LISTS, "voxceleb1-e-cleaned", OfficialList("list_test_all2.txt", 4, 2))
    with caplog.at_level(logging.WARNING):
        read_voxceleb(voxceleb, "voxceleb1-e-cleaned")
    assert not caplog.text
    monkeypatch.setitem(LISTS, "voxceleb1-e-cleaned", OfficialList("list_test_all2.txt", 4, 3))
    with caplog.at_level(logging.WARNING):
        read_voxceleb(voxceleb, "voxceleb1-e-cleaned")
    assert "target trials" in caplog.text


def test_published_sizes():
    sizes = {name: (found.file, found.trials, found.targets) for name, found in LISTS.items()}
    assert sizes == {
        "voxceleb1-o": ("veri_test.txt", 37_720, 18_860),
        "voxceleb1-o-cleaned": ("veri_test2.txt", 37_611, 18_802),
        "voxceleb1-h": ("list_test_hard.txt", 552_536, 276_270),
        "voxceleb1-h-cleaned": ("list_test_hard2.txt", 550_894, 275_488),
        "voxceleb1-e": ("list_test_all.txt", 581_480, 290_743),
        "voxceleb1-e-cleaned": ("list_test_all2.txt", 579_818, None),
    }


def test_what_voxceleb_lacks_is_named(voxceleb):
    with pytest.raises(ConfigError, match="did you mean 'voxceleb1-o'"):
        read_voxceleb(voxceleb, "voxceleb1-0")
    with pytest.raises(ManifestError, match=r"veri_test2.txt of voxceleb1-o-cleaned"):
        read_voxceleb(voxceleb, "voxceleb1-o-cleaned")
    (voxceleb / "test/wav/id10270/5r0dWxy17C8/00002.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 4 .* are missing .id10270/5r0dWxy17C8/00002.wav"):
        read_voxceleb(voxceleb, "voxceleb1-e-cleaned")
    (voxceleb / "test/wav/id10270/5r0dWxy17C8/00002.wav").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"00002\.wav: cannot be read"):
        read_voxceleb(voxceleb, "voxceleb1-e-cleaned")


# -------------------------------------------------------------------------------------------------------------- scoring


def slow_best(one, two):
    return max(float(a @ b) for a in one for b in two)


def test_cosines_are_the_best_pair_of_streams():
    rng = np.random.default_rng(0)
    enrol, test = unit(rng.normal(size=(6, 2, 5))), unit(rng.normal(size=(7, 3, 5)))
    pairs = rng.integers(6, size=(40, 2))
    got = cosines(enrol, test, pairs)
    np.testing.assert_allclose(got, [slow_best(enrol[a], test[b]) for a, b in pairs], atol=1e-6)
    np.testing.assert_allclose(cosines(enrol, test[:, ::-1], pairs), got)  # streams come in no order
    enrol[2] = np.nan
    assert (np.isnan(cosines(enrol, test, pairs)) == (pairs[:, 0] == 2)).all()


def test_the_oracle_takes_the_stream_nearest_to_the_clean_recording():
    rng = np.random.default_rng(0)
    clean = unit(rng.normal(size=(5, 2, 8)))
    mixed = unit(np.stack([rng.normal(size=(5, 8)), clean[:, 1] + 0.1 * rng.normal(size=(5, 8))], 1))
    np.testing.assert_array_equal(nearest_stream(mixed, clean)[:, 0], mixed[:, 1])


@pytest.mark.parametrize("top", [2, 4, 9])
def test_as_norm_is_its_slow_definition(top):
    rng = np.random.default_rng(top)
    voices, cohort = unit(rng.normal(size=(6, 2, 5))), unit(rng.normal(size=(9, 2, 5)))
    pairs = rng.integers(6, size=(30, 2))
    statistics = cohort_statistics(voices, cohort, top)
    got = as_norm(cosines(voices, voices, pairs), pairs, statistics, statistics)
    for (enrol, test), score in zip(pairs, got, strict=True):
        parts = []
        for side in (enrol, test):
            nearest = sorted((slow_best(voices[side], other) for other in cohort), reverse=True)[:top]
            parts.append((slow_best(voices[enrol], voices[test]) - np.mean(nearest)) / np.std(nearest))
        assert score == pytest.approx(np.mean(parts), abs=1e-4)


def test_unit_subtracts_before_it_divides():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4, 1, 6)).astype(np.float32)
    mean = vectors.mean((0, 1))
    expected = (vectors - mean) / np.linalg.norm(vectors - mean, axis=2, keepdims=True)
    np.testing.assert_allclose(unit(vectors, mean), expected, atol=1e-6)
    assert (unit(np.zeros((1, 1, 3))) == 0).all()


# --------------------------------------------------------------------------------------------------------------- mixing


@pytest.mark.parametrize("sir", [-5.0, 0.0, 5.0, 10.0])
@pytest.mark.parametrize("length", [1_000, 9_000])
def test_the_ratio_of_a_mixture_is_exact(sir, length):
    rng = np.random.default_rng(0)
    target, interferer = 0.3 * rng.normal(size=5_000), 0.01 * rng.normal(size=length)
    target[1_000:3_000] = 0  # a pause counts for nothing
    mixed = mix(target, interferer, sir, RATE)
    powers = [active_power(part, RATE) for part in (mixed.target, mixed.interferer)]
    assert 10 * np.log10(powers[0] / powers[1]) == pytest.approx(sir, abs=1e-9)
    np.testing.assert_allclose(mixed.target + mixed.interferer, mixed.mixture, atol=1e-12)
    assert np.abs(mixed.mixture).max() <= 1
    scale = mixed.target[0] / target[0]
    np.testing.assert_allclose(mixed.target, scale * target, atol=1e-12)
    assert mix(target.astype(np.float32), interferer, sir, RATE).mixture.dtype == np.float32


def test_active_power_leaves_out_pauses_and_scales_as_power_does():
    rng = np.random.default_rng(0)
    voice = rng.normal(size=4_000)
    padded = np.concatenate([voice, np.zeros(8_000)])
    assert active_power(voice, RATE) == pytest.approx(np.square(voice).mean())
    assert active_power(padded, RATE) == pytest.approx(active_power(voice, RATE))
    assert active_power(3 * padded, RATE) == pytest.approx(9 * active_power(padded, RATE))
    assert active_power(np.zeros(100), RATE) == active_power(np.zeros(0), RATE) == 0
    with pytest.raises(AudioError, match="interferer is silent"):
        mix(voice, np.zeros(50), 0, RATE)


def test_mixtures_are_made_of_the_clips_they_name(folder, tmp_path, caplog):
    manifest = Manifest.open(folder / "voices.csv")
    interferers = draw_interferers(np.arange(len(manifest)), talkers(manifest), 0)
    made, rows = write_mixtures(manifest, np.array([3, 9]), interferers, 5.0, RATE, tmp_path)
    assert rows.tolist() == [3, 9]
    paths = manifest.column("path")
    for path, row in zip(made.column("path"), rows, strict=True):
        parts = [read(paths[clip]).astype(np.float64) for clip in (row, interferers[row])]
        np.testing.assert_allclose(read(path), mix(*parts, 5.0, RATE).mixture, atol=1e-6)
    parts = {"path": paths[:2], "start_s": [0.1, 0.05], "end_s": [0.2, 0.25]}
    made, _ = write_mixtures(Manifest.from_columns(parts, folder), np.array([0]), np.array([1, 0]), 0.0, RATE, tmp_path)
    one, two = (read(path, RATE, start, 800).astype(np.float64) for path, start in zip(paths, (800, 400), strict=False))
    np.testing.assert_allclose(read(made.column("path")[0]), mix(one, two, 0.0, RATE).mixture, atol=1e-6)
    soundfile.write(tmp_path / "silent.wav", np.zeros(4000), RATE)
    silent = Manifest.open([manifest, tmp_path / "silent.wav"])
    last = len(silent) - 1
    with caplog.at_level(logging.WARNING):
        assert write_mixtures(silent, np.array([3, last]), np.append(interferers, 0), 5.0, RATE, tmp_path)[1] == [3]
    assert "target is silent" in caplog.text
    with pytest.raises(EvaluationError, match="no mixture could be made"):
        write_mixtures(silent, np.array([last]), np.append(interferers, 0), 5.0, RATE, tmp_path)


def test_the_setup_says_what_it_compares(folder):
    ready = prepare_trials(folder / "voices.csv", {}, count=20, mixtures=True, seed=3)
    assert ready.rule.startswith("20 target and 20 non-target trials of ")
    assert not set(ready.speakers[ready.dev]) & set(ready.speakers[ready.trials.rows])
    assert ready.hash != prepare_trials(folder / "voices.csv", {}, count=20, seed=3).hash
