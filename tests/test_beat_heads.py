"""Beats from audio to tables: every beat is marked by one loud sample, which an encoder hears at any hop."""

import logging
import shutil
from typing import ClassVar

import mir_eval
import numpy as np
import pytest
import soundfile
import torch

from auricle import cli
from auricle.audio.rendering import compose
from auricle.config import Config
from auricle.data.manifest import Manifest
from auricle.encoders.base import Encoder, Frames
from auricle.errors import AuricleError, ConfigError
from auricle.evaluation.beats import BEAT_METRICS, annotated
from auricle.evaluation.metrics import scorer
from auricle.evaluation.probes import beats as beats_module
from auricle.evaluation.recognition.frames import Utterances
from auricle.evaluation.results import read_results, table
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks import SUITES, TASKS, Task
from auricle.evaluation.tasks.custom import custom_task

RATE, SECONDS = 8000, 10.0
PARTS = ["train"] * 6 + ["dev"] * 2 + ["test"] * 4
BPM = (84, 131, 97, 118, 75, 145, 90, 126, 140, 104, 81, 122)
MARK, DOWN = 0.9, 0.97
"""Samples at beats, and at downbeats; the music stays below 0.5."""
OTHERS = {name for name in BEAT_METRICS if name != "beat_f1_mean"}
PEAKS = {"beat_f1_mean by peaks", "downbeat_f1_mean by peaks"}


class Marks(Encoder):
    """Layer 0 is noise; layer 1 says whether a frame holds a mark, and layer 2 whether it is a downbeat's."""

    family: ClassVar[str] = "marks"

    class Options(Config):
        hop_s: float = 0.02
        deaf: bool = False

    def __init__(self, name="marks", **options):
        super().__init__()
        self.config, self.name = self.Options(**options), name
        self.sample_rate, self.hop, self.dims = RATE, round(self.config.hop_s * RATE), (3, 3, 3)
        self.offset = self.hop / 2
        self.heard = 0

    def features(self, waveforms, lengths):
        self.heard += len(waveforms)
        frames = waveforms[:, : waveforms.shape[1] // self.hop * self.hop].unflatten(1, (-1, self.hop))
        return frames.abs().amax(2) * (not self.config.deaf), torch.div(lengths, self.hop, rounding_mode="floor")

    def encode(self, x, lengths, *, layers=None):
        noise = torch.sin(1e4 * torch.arange(x.shape[1] * 3)).view(-1, 3).expand(len(x), -1, -1)
        beat, down = (x > 0.8).float(), (x > 0.94).float()
        states = [
            noise,
            torch.stack([beat, noise[..., 0], noise[..., 1]], 2),
            torch.stack([beat, down, beat - down], 2),
        ]
        return Frames([states[layer] for layer in (range(3) if layers is None else layers)], lengths)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """What is trained takes seconds."""
    few = {"batch": 256, "max_epochs": 12, "hidden": 16, "lrs": (1e-3, 1e-2)}
    monkeypatch.setattr(beats_module, "TRAINING", few)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Twelve pieces of several tempi, and their beats as intervals without length."""
    folder, clips = tmp_path_factory.mktemp("music"), []
    for seed, bpm in enumerate(BPM):
        piece = compose(seed, SECONDS, bpm=bpm, voices=1)
        samples = 0.4 * piece.render(RATE)
        samples[np.round(piece.beats * RATE).astype(int)] = MARK
        samples[np.round(piece.downbeats * RATE).astype(int)] = DOWN
        soundfile.write(folder / f"{seed:02}.wav", samples, RATE)
        clips.append(points(piece.beats, "beat") + points(piece.downbeats, "downbeat"))
    return Manifest.from_columns(
        {"path": [f"{clip:02}.wav" for clip in range(12)], "split": PARTS, "beats": clips}, folder
    )


def points(times, label):
    return [{"start_s": float(time), "end_s": float(time), "label": label} for time in times]


def run(encoders, data, output, **options):
    options = {"metric": "beat_f1_mean", "layers": (2,), "seeds": (0,), "device": "cpu", "progress": False} | options
    return evaluate(encoders, data=data, target="beats", output=output, **options)


def answered(result):
    return [row for row in result.predictions().to_pylist() if row["split"] == "test"]


# ------------------------------------------------------------------------------------------------------------ the whole


@pytest.mark.parametrize("hop_s", [0.01, 0.02, 0.04])
def test_beats_that_frames_tell_return_at_any_hop(music, tmp_path, hop_s):
    (result,) = run(Marks(hop_s=hop_s), music, tmp_path, layers="all")
    assert result.score > 0.97
    assert result.name == "data-beats@marble-v1"
    assert set(result.further) == OTHERS | PEAKS
    assert all(result.further[name].value > 0.95 for name in OTHERS)
    assert result.further["beat_f1_mean by peaks"].value > 0.9
    assert result.chosen[0].layer in (1, 2, "sum")
    assert {choice.layer for choice in result.grid} == {0, 1, 2, "sum"}
    assert (result.level, result.kind, result.n_test, result.units) == ("frame", "classes", 4, 4)
    assert result.chance < 0.6


def test_who_hears_no_beats_scores_little_more_than_beats_of_another_clip(music, tmp_path):
    (result,) = run(Marks(deaf=True), music, tmp_path)
    assert result.score < 0.6
    rows = np.random.default_rng(0).permutation(12)
    mixed = music.with_column("beats", [music.column("beats")[row] for row in rows])
    (shuffled,) = run(Marks(), mixed, tmp_path)
    assert shuffled.score < 0.7
    assert shuffled.further["downbeat_f1_mean"].value < 0.5


def test_scores_are_mir_evals_of_the_times_that_are_told(music, tmp_path):
    (result,) = run([Marks()], music, tmp_path, layers=(0, 1))  # which do not tell downbeats
    rows = answered(result)
    for row in rows:
        beats, downbeats = annotated(music.column("beats")[music.column("clip_id").index(row["clip_id"])])
        np.testing.assert_allclose(row["reference_s"], beats)
        np.testing.assert_allclose(row["reference_downbeats_s"], downbeats)
        assert set(row["estimated_downbeats_s"]) <= set(row["estimated_s"])
    for name, kind in (("beat_f1_mean", "s"), ("downbeat_f1_mean", "downbeats_s")):
        both = [[mir_eval.beat.trim_beats(np.array(row[f"{side}_{kind}"])) for side in ("reference", "estimated")]
                for row in rows]  # fmt: skip
        scores = [mir_eval.beat.f_measure(*sides) for sides in both]
        told = result.score if name == "beat_f1_mean" else result.further[name].value
        assert told == pytest.approx(np.mean(scores))
    (back,) = read_results(tmp_path)
    again = scorer(back.metric, back.outcomes())(np.ones((1, back.units)))[0]
    assert again == pytest.approx(result.score) == pytest.approx(np.mean(result.seeds))
    assert result.low <= result.score <= result.high
    assert "beat f1 mean %" in table([back])


@pytest.mark.parametrize("metric", ["downbeat_f1_mean", "beat_f1_pooled", "downbeat_f1_marble"])
def test_any_of_the_metrics_can_be_the_score(music, tmp_path, metric):
    (result,) = run(Marks(), music, tmp_path, metric=metric, protocol="marble-linear", seeds=(0, 1))
    assert result.score > 0.9
    assert set(result.further) == {*BEAT_METRICS, *PEAKS} - {metric}
    again = scorer(metric, result.outcomes())(np.ones((1, result.units)))[0]
    assert again == pytest.approx(result.score)


def test_selection_never_sees_test(music, tmp_path):
    """Neither other annotations of test nor other sounds there change what is chosen, nor what is answered."""
    other = [clip if part != "test" else points([1.0, 7.3, 9.9], "downbeat")
             for clip, part in zip(music.column("beats"), PARTS, strict=True)]  # fmt: skip
    (one,) = run(Marks(), music, tmp_path / "one", layers=(0, 1))
    (two,) = run(Marks(), music.with_column("beats", other), tmp_path / "two", layers=(0, 1))
    assert one.score != two.score
    assert (one.chosen, one.grid, one.dev) == (two.chosen, two.grid, two.dev)
    assert [row["estimated_s"] for row in answered(one)] == [row["estimated_s"] for row in answered(two)]


def test_frames_of_test_are_asked_for_last_and_those_of_train_are_few(music, tmp_path, monkeypatch):
    asked, lessons, batches, train_grid = [], [], Utterances.batches, beats_module.train_grid
    monkeypatch.setattr(Utterances, "batches", lambda self, rows: asked.append(rows.tolist()) or batches(self, rows))
    monkeypatch.setattr(beats_module, "train_grid", lambda *args: lessons.append(args[0]) or train_grid(*args))
    task = Task("few", "beats", "classes", "made", metric="beat_f1_mean", level="frame", frames=600, protocol="marble")
    monkeypatch.setattr("auricle.evaluation.prepare.find_corpus", lambda corpus, root: music)
    for hop_s, targets in ((0.02, {0, 0.25, 0.5, 1}), (0.04, {0, 0.5, 1})):  # 80 ms are outside the window
        evaluate(
            Marks(hop_s=hop_s), tasks=[task], layers=(2,), seeds=(0, 1), output=tmp_path, device="cpu", progress=False
        )
        rows = {part: [row for row in range(12) if PARTS[row] == part] for part in PARTS}
        assert asked == [rows["train"], rows["dev"], rows["dev"], rows["dev"], rows["dev"], rows["test"]]
        (lesson,) = lessons
        assert 500 < len(lesson.goals) <= 606
        assert len(next(iter(lesson.dev.values()))) <= 122
        assert set(lesson.goals.unique().tolist()) == targets
        asked.clear()
        lessons.clear()


def test_the_choice_is_by_the_beats_of_dev_among_the_least_losses(music, tmp_path):
    (result,) = run(Marks(), music, tmp_path, layers="all")
    finals = [choice for choice in result.grid if choice.dev is not None]
    assert sorted(str(choice.layer) for choice in finals) == ["0", "1", "2", "sum"]
    for final in finals:
        rivals = [choice for choice in result.grid if choice.layer == final.layer]
        assert final == min(rivals, key=lambda choice: float(choice.detail.split()[-1]))
    assert result.chosen[0].dev == max(choice.dev for choice in finals) == result.dev


# ------------------------------------------------------------------------------------------ what is done once, or not


def test_another_seed_or_metric_encodes_nothing(music, tmp_path):
    encoder = Marks()
    (first,) = run(encoder, music, tmp_path)
    assert encoder.heard == 6 + 12  # train for its mean, then all
    assert run(encoder, music, tmp_path) == [first]
    (second,) = run(encoder, music, tmp_path, seeds=(1,))
    assert (second.seconds_encode, encoder.heard) == (0, 18)
    run(encoder, music, tmp_path, cache=None, overwrite="always")
    assert encoder.heard == 36


def test_frames_that_are_too_many_to_stay_go(music, tmp_path, monkeypatch):
    run(Marks(), music, tmp_path / "few")
    assert len(list(tmp_path.glob("few/.cache/*/utterances/*"))) == 2
    monkeypatch.setattr("auricle.evaluation.recognition.frames.KEPT", 1000)
    run(Marks(), music, tmp_path / "many")
    assert not list(tmp_path.glob("many/.cache/*/utterances/*"))


def test_an_interrupted_run_encodes_nothing_again(music, tmp_path, monkeypatch):
    encoder = Marks()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(beats_module, "train_grid", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(encoder, music, tmp_path)
    heard = encoder.heard
    assert run(encoder, music, tmp_path)[0].score > 0.9
    assert encoder.heard == heard


def test_frames_too_far_apart_are_not_applicable_and_others_go_on(music, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        results = run([Marks("slow", hop_s=0.08), Marks("quick")], music, tmp_path)
    assert [result.encoder for result in results] == ["quick"]
    (line,) = [record.getMessage() for record in caplog.records if "not applicable" in record.getMessage()]
    assert "slow" in line
    assert "80 ms" in line
    assert "\n" not in line
    assert len(read_results(tmp_path)) == 1
    assert run(Marks("slow", hop_s=0.08), music, tmp_path) == []
    assert table([]) == "no results"


def test_baselines_hear_drums(music, tmp_path):
    for result in run(["fbank", "mfcc"], music, tmp_path, layers="all", protocol="marble-linear"):
        assert result.score > 0.9
        assert len(answered(result)) == 4


# ----------------------------------------------------------------------------------------------------- what is given


def test_beats_alone_are_tracked_without_downbeats(music, tmp_path):
    beats = [[one for one in clip if one["label"] == "beat"] for clip in music.column("beats")]
    (result,) = run(Marks(), music.with_column("beats", beats), tmp_path)
    assert result.score > 0.97
    assert set(result.further) == {"beat_f1_pooled", "beat_f1_marble", "beat_f1_mean by peaks"}
    assert not any(row["estimated_downbeats_s"] for row in answered(result))
    with pytest.raises(AuricleError, match="no clip of train has a downbeat"):
        run(Marks(), music.with_column("beats", beats), tmp_path, metric="downbeat_f1_mean")


def test_clips_without_downbeats_say_nothing_of_them(music, tmp_path):
    some = [
        [one for one in clip if row % 4 or one["label"] == "beat"] for row, clip in enumerate(music.column("beats"))
    ]
    (result,) = run(Marks(), music.with_column("beats", some), tmp_path, metric="downbeat_f1_mean")
    assert result.score > 0.95
    assert sorted(row["total"] for row in answered(result)) == [0, 1, 1, 1]


def test_a_clip_that_cannot_be_heard_has_no_beats(music, tmp_path):
    paths = music.column("path")
    folder = tmp_path / "audio"
    folder.mkdir()
    for path in paths[:-1]:
        shutil.copy(path, folder)
    soundfile.write(folder / "11.wav", np.zeros(round(SECONDS * RATE)), RATE)
    columns = {name: music.column(name) for name in ("split", "beats")}
    broken = Manifest.from_columns(columns | {"path": [f"{clip:02}.wav" for clip in range(12)]}, folder)
    (result,) = run(Marks(), broken, tmp_path / "out")
    assert result.skipped == 1
    rows = {row["clip_id"]: row for row in answered(result)}
    assert (rows["11.wav"]["correct"], rows["11.wav"]["estimated_s"]) == (0, [])
    assert result.score == pytest.approx(0.75, abs=0.03)


def test_folds_track_every_clip(music, tmp_path):
    data = Manifest.from_columns(
        {"path": music.column("path"), "fold": [row % 3 for row in range(12)], "beats": music.column("beats")},
        tmp_path,
    )
    (result,) = run(Marks(), data, tmp_path, protocol="marble-linear")
    assert (result.n_test, len(result.chosen)) == (12, 3)
    assert result.score > 0.9


def test_what_some_folds_cannot_tell_is_not_told_of_all(music, tmp_path):
    clips = [
        [one for one in clip if row % 3 != 1 or one["label"] == "beat"]
        for row, clip in enumerate(music.column("beats"))
    ]
    folds = [row % 3 for row in range(12)]  # no downbeats in fold 1
    data = Manifest.from_columns({"path": music.column("path"), "fold": folds, "beats": clips}, tmp_path)
    (result,) = run(Marks(), data, tmp_path, protocol="marble-linear")
    assert result.score > 0.9
    assert "beat_f1_pooled" in result.further
    assert not any(name.startswith("downbeat") for name in result.further)


def test_annotations_by_hand():
    beats, downbeats = annotated(points([2.0, 1.0, 3.0], "beat") + points([1.001, 4.0], "downbeat"))
    np.testing.assert_allclose(beats, [1, 2, 3, 4])
    np.testing.assert_allclose(downbeats, [1.001, 4])
    assert [len(part) for part in annotated([])] == [0, 0]
    assert annotated(points([0.5], "downbeat"))[0].tolist() == [0.5]


def test_files_of_times_and_places_in_the_bar(music, tmp_path):
    (tmp_path / "00.tsv").write_text("0.16\t4\n0.62\t1\n1.1\t2\n1.55\t3\n2\t1\n")
    (tmp_path / "music.csv").write_text(f"path,beats_tsv\n{music.row(0)['path']},00.tsv\n")
    beats, downbeats = annotated(Manifest.open(tmp_path / "music.csv").column("beats")[0])
    assert (beats.tolist(), downbeats.tolist()) == ([0.16, 0.62, 1.1, 1.55, 2.0], [0.62, 2.0])
    with pytest.raises(AuricleError, match=r"found '0', .* places in the bar from 1 on"):
        annotated(points([0.5], "0"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "auricle"}, "protocol auricle knows no beats; choose marble"),
        ({"protocol": "knn"}, "protocol knn knows no beats"),
        ({"lrs": (1e-4,)}, "learning rates of its own"),
        ({"heads": ("linear", "mlp")}, "heads and learning rates of its own"),
        ({"metric": "beat_f1"}, "did you mean"),
        ({"level": "clip"}, "needs one label a clip"),
    ],
)
def test_what_is_not_for_beats_is_refused_before_anything_is_encoded(music, tmp_path, options, words):
    encoder = Marks()
    with pytest.raises(AuricleError, match=words) as caught:
        run(encoder, music, tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert encoder.heard == 0


def test_a_suite_leaves_out_what_the_protocol_cannot_answer(caplog):
    from auricle.evaluation.run import _answerable
    from auricle.evaluation.tasks import suite_tasks

    whole = suite_tasks("mir13")
    names = {record.name for record in whole}
    assert len(names) == 13
    assert {record.name for record in _answerable(whole, None)} == names
    assert {record.name for record in _answerable(whole, "marble-linear")} == names
    assert not caplog.messages
    assert names - {record.name for record in _answerable(whole, "knn")} == {"gtzan-beats", "emomusic"}
    assert len(caplog.messages) == 2


def test_columns_that_hold_no_beats_are_refused(music, tmp_path):
    clips = music.column("beats")
    kicks = [*clips[:3], points([1.0], "kick"), *clips[4:]]
    silent = [[] if part == "dev" else clip for clip, part in zip(clips, PARTS, strict=True)]
    early = [[beat for beat in clip if beat["start_s"] < 5] for clip in clips]
    for values, words in (
        (kicks, r"clip 03\.wav: found 'kick'"),
        (["beat"] * 12, "scores intervals, not column 'beats'"),
        (silent, "no clip of dev has a beat$"),
        (early, "no clip of dev has a beat after its first 5 s, .* metric beat_f1_marble counts them"),
    ):
        with pytest.raises(AuricleError, match=words):
            run(Marks(), music.with_column("beats", values), tmp_path)


def test_layers_of_several_widths_are_refused_where_asked_for(music, tmp_path):
    class Uneven(Marks):
        family = "uneven"

        def __init__(self):
            super().__init__("uneven")
            self.dims = (1, 3, 3)

        def encode(self, x, lengths, *, layers=None):
            states = super().encode(x, lengths).hidden_states
            states[0] = states[0][..., :1]
            return Frames([states[layer] for layer in (range(3) if layers is None else layers)], lengths)

    with pytest.raises(ConfigError, match="differ in width"):
        run(Uneven(), music, tmp_path, layers=(0, 1))
    (result,) = run(Uneven(), music, tmp_path, layers="all")
    assert {choice.layer for choice in result.grid} == {1, 2, "sum"}


def test_the_task_of_the_suite_and_the_command_line(music, tmp_path, capsys):
    assert SUITES["mir13"][-1] == "gtzan-beats"
    record = TASKS["gtzan-beats"]
    assert (record.level, record.metric, record.protocol, record.target) == ("frame", "beat_f1_mean", "marble", "beats")
    assert len(SUITES["mir13"]) == 13
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    music.save(corpora / "gtzan.parquet")
    (result,) = evaluate(
        Marks(), tasks=["gtzan-beats"], corpora=corpora, seeds=(0,), output=tmp_path, device="cpu", progress=False
    )
    assert result.name == "gtzan-beats@marble-v1"
    assert result.score > 0.97
    assert custom_task(music, "beats", name="x", metric="beat_f1_pooled").protocol == "marble"
    music.save(tmp_path / "mine.parquet")
    words = ["evaluate", "fbank", "--data", str(tmp_path / "mine.parquet"), "--target", "beats", "--metric"]
    assert cli.main([*words, "beat_f1_mean", "--seeds", "0", "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
