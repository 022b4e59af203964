"""Events from frames, and their scores: sed_eval's numbers, closed forms, and slow matching by trying all pairs."""

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from auricle.config import Config, edit
from auricle.data.manifest import Manifest
from auricle.encoders.base import Encoder, Frames
from auricle.errors import EvaluationError
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.events import (
    EVENT_METRICS,
    Event,
    OnsetF1,
    PostProcessing,
    SegmentErrors,
    event_score,
    find_events,
)
from auricle.evaluation.metrics import LOWER_IS_BETTER, METRICS, chance
from auricle.evaluation.prepare import prepare
from auricle.evaluation.probes.events import answer_events, frame_times, present
from auricle.evaluation.probes.heads import ProbeConfig
from auricle.evaluation.probes.hear import HearConfig, HearProber
from auricle.evaluation.probes.protocols import prober
from auricle.evaluation.scores import beside, scored
from auricle.evaluation.tasks.task import Task

SED_EVAL = """{"clips": [
{"reference": [],
 "estimated": [["b", 9.005, 9.793], ["c", 0.688, 0.819]]},
{"reference": [["c", 0.551, 0.824], ["b", 0.816, 0.918], ["b", 0.862, 0.952], ["a", 5.372, 6.136], ["a", 5.538, 6.239],
  ["a", 3.768, 3.843], ["b", 8.155, 8.67], ["c", 5.137, 5.521], ["a", 7.753, 7.895]],
 "estimated": [["c", 0.706, 1.005], ["b", 0.668, 0.924], ["b", 0.963, 1.04], ["a", 5.381, 6.217], ["a", 5.465, 6.421],
  ["a", 3.696, 3.852], ["b", 8.328, 8.742], ["c", 5.211, 5.643], ["a", 7.637, 8.001]]},
{"reference": [["c", 4.504, 4.601], ["b", 6.946, 7.73], ["b", 9.434, 9.79], ["c", 3.665, 4.094]],
 "estimated": [["b", 6.862, 7.736], ["b", 9.22, 10.057], ["c", 3.586, 4.187], ["c", 7.783, 8.132]]},
{"reference": [["c", 9.371, 10.0], ["a", 9.098, 9.216], ["c", 1.437, 1.732], ["c", 4.607, 4.842], ["a", 2.678, 3.192],
  ["c", 3.508, 3.904]],
 "estimated": [["c", 9.26, 10.271], ["c", 9.133, 9.407], ["c", 1.408, 1.786], ["c", 4.664, 4.997], ["a", 2.71, 3.267],
  ["c", 3.625, 4.1], ["b", 6.027, 6.758]]},
{"reference": [["b", 1.167, 2.359], ["b", 4.427, 4.815], ["c", 1.369, 1.793], ["c", 2.515, 2.725], ["c", 0.219, 0.666],
  ["a", 6.556, 7.471], ["c", 2.832, 3.871]],
 "estimated": [["b", 1.118, 2.449], ["b", 4.446, 4.991], ["c", 1.603, 1.83], ["a", 6.444, 7.492], ["c", 2.815, 4.023],
  ["c", 4.249, 5.435], ["b", 9.073, 9.188]]},
{"reference": [["a", 2.155, 2.574]],
 "estimated": [["c", 2.229, 2.767], ["a", 7.597, 8.602], ["b", 1.139, 2.082]]}],
"scores": {"onset_f1_200ms": 0.677966101694915, "onset_f1_50ms": 0.203389830508475,
 "onset_offset_f1_50ms": 0.169491525423729, "segment_error_rate": 0.666666666666667}}"""
"""Random clips of three labels (reference, estimated), and what sed_eval 0.2.1 says of them: overall `f_measure` of
`EventBasedMetrics` (onsets at collars of 0.2 and 0.05 s; onset and offset at 0.05 s or 20 % of the length), overall
`error_rate` of `SegmentBasedMetrics` at 1 s."""


def test_scores_are_sed_evals():
    said = json.loads(SED_EVAL)
    code = {"a": 0, "b": 1, "c": 2}
    sides = [
        [[Event(code[label], start, end) for label, start, end in clip[side]] for clip in said["clips"]]
        for side in ("reference", "estimated")
    ]
    assert set(said["scores"]) == set(EVENT_METRICS)
    for metric, score in said["scores"].items():
        assert event_score(metric, *sides) == pytest.approx(score, abs=1e-12)


def test_metrics_are_in_the_table_with_the_score_of_silence():
    truth = [[Event(0, 1.0, 2.5)], [Event(1, 0.2, 0.4), Event(0, 3.0, 3.5)]]
    for metric in EVENT_METRICS:
        assert METRICS[metric] == "classes"
        assert chance(metric, np.zeros(3)) == event_score(metric, truth, [[], []])
        assert event_score(metric, truth, truth) == (0.0 if metric in LOWER_IS_BETTER else 1.0)
        assert event_score(metric, [[]], [[]]) == 0.0
    assert "segment_error_rate" in LOWER_IS_BETTER


def test_onset_f1_in_closed_form():
    truth = [Event(0, 1.0, 2.0), Event(0, 1.3, 2.0), Event(1, 5.0, 6.0)]
    found = [Event(0, 1.15, 1.2), Event(1, 5.21, 6.0), Event(0, 5.0, 6.0)]
    assert OnsetF1(0.2)(truth, found) == (2, 6)  # one onset in reach of two, one late, one of another label
    assert OnsetF1(0.22)(truth, found) == (4, 6)
    assert OnsetF1(0.2, 0.5)(truth, found) == (0, 6)  # its end is 0.8 s early
    assert OnsetF1(0.2, 0.8)(truth, found) == (2, 6)


def brute(reference, estimated, collar):
    """The most pairs that fit, by trying every order."""
    few, many = sorted((reference, estimated), key=len)
    return max(
        sum(a.label == b.label and abs(a.start_s - b.start_s) <= collar for a, b in zip(few, order, strict=False))
        for order in permutations(many, len(few))
    )


some_events = st.lists(
    st.builds(lambda label, start: Event(label, start / 8, start / 8 + 1), st.integers(0, 1), st.integers(0, 12)),
    max_size=5,
)


@given(some_events, some_events)
def test_the_matching_is_the_largest(reference, estimated):
    assert OnsetF1(0.25)(reference, estimated).correct == 2 * brute(reference, estimated, 0.25)


@given(some_events, some_events)
def test_segment_errors_are_those_of_a_grid_of_cells(reference, estimated):
    rolls = np.zeros((2, 4, 2), int)
    for roll, events in zip(rolls, (reference, estimated), strict=True):
        for event in events:
            roll[int(np.floor(event.start_s)) : int(np.ceil(event.end_s)), event.label] = 1
    ref, sys, both = rolls[0].sum(1), rolls[1].sum(1), (rolls[0] & rolls[1]).sum(1)
    errors = np.minimum(ref, sys) - both + np.maximum(0, ref - sys) + np.maximum(0, sys - ref)
    assert SegmentErrors()(reference, estimated) == (errors.sum(), ref.sum())


TIMES = (np.arange(40) + 0.5) * 0.05
PLAIN = PostProcessing(median_s=0.0, shortest_s=0.0)


def answers(*spans, labels=2, height=0.9):
    """Probabilities of 40 frames, high in spans (label, first, last)."""
    values = np.full((40, labels), 0.1)
    for label, first, last in spans:
        values[first : last + 1, label] = height
    return values


def test_consecutive_frames_are_one_event_from_centre_to_centre():
    found = find_events(answers((1, 3, 7), (0, 10, 10), (1, 38, 39), (0, 0, 1)), TIMES, PLAIN)
    expected = [(0, 0.025, 0.075), (1, 0.175, 0.375), (0, 0.525, 0.525), (1, 1.925, 1.975)]
    assert [event.label for event in found] == [label for label, *_ in expected]
    np.testing.assert_allclose([event[1:] for event in found], [times for _, *times in expected], atol=1e-12)
    assert find_events(answers((0, 3, 7), height=0.5), TIMES, PLAIN) == []  # above the threshold, not at it
    assert find_events(np.zeros((0, 2)), np.zeros(0), PostProcessing()) == []


def test_short_events_are_dropped_and_gaps_are_filtered_away():
    values = answers((0, 2, 12), (0, 20, 22), (0, 30, 32))
    values[7, 0] = 0.0
    assert len(find_events(values, TIMES, PLAIN)) == 4
    kept = find_events(values, TIMES, PostProcessing(median_s=0.0, shortest_s=0.1))
    assert len(kept) == 4  # 0.1 s is not too short
    assert len(find_events(values, TIMES, PostProcessing(median_s=0.0, shortest_s=0.15))) == 2
    smooth = find_events(values, TIMES, PostProcessing(median_s=0.25, shortest_s=0.125))
    assert [(event.start_s, event.end_s) for event in smooth] == [pytest.approx((TIMES[2], TIMES[12]))]


def test_frames_are_labelled_by_the_events_that_hold_them():
    events = [Event(0, 0.125, 0.225), Event(1, 0.15, 0.16), Event(0, 0.21, 0.3)]
    np.testing.assert_array_equal(
        present(TIMES[:8], events, 3).T,
        [[0, 0, 1, 1, 1, 1, 0, 0], [0] * 8, [0] * 8],  # a centre on either edge is inside
    )


# ---------------------------------------------------------------------------------------------- from audio to scores


class Tones(Encoder):
    """How loud two tones are in windows of 20 ms; layer 0 hears nothing."""

    family = "tones"

    def __init__(self):
        super().__init__()
        self.config, self.name, self.sample_rate, self.hop, self.offset = Config(), "tones", 8000, 160, 80.0
        self.dims = (2, 2)

    def forward(self, waveforms, lengths, layers=None):
        windows = waveforms.unfold(1, 160, 160)
        time = torch.arange(160) / 8000
        waves = torch.exp(-2j * torch.pi * time[:, None] * torch.tensor([500.0, 1500.0]))
        loud = (windows.to(waves.dtype) @ waves).abs() / 20
        states = [torch.zeros_like(loud), loud]
        return Frames([states[i] for i in (range(2) if layers is None else layers)], lengths // 160)


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """24 clips of 3 s with tones of 300 to 700 ms in a little noise, and what is heard when."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    events = []
    for clip in range(24):
        wave, found = 0.01 * rng.standard_normal(24_000), []
        for label, hertz in (("low", 500), ("high", 1500)):
            start, length = rng.integers(0, 16_000), rng.integers(2400, 5600)
            time = np.arange(length) / 8000
            wave[start : start + length] += 0.3 * np.sin(2 * np.pi * hertz * time)
            found.append({"start_s": start / 8000, "end_s": (start + length) / 8000, "label": label})
        soundfile.write(folder / f"{clip:02}.wav", wave, 8000)
        events.append(sorted(found, key=lambda event: event["start_s"]))
    return folder, events


def ready(tones, metric="onset_f1_50ms", protocol="hear", **columns):
    folder, events = tones
    basic = {"path": [f"{clip:02}.wav" for clip in range(24)], "split": ["train"] * 12 + ["dev"] * 6 + ["test"] * 6}
    chosen = basic | columns
    task = Task(
        name="tones", target="events", kind="classes", level="frame", metric=metric, protocol=protocol,
        split="folds" if "fold" in chosen else "split",
    )  # fmt: skip
    manifest = Manifest.from_columns({key: value for key, value in chosen.items() if value is not None}, folder)
    return prepare(task, manifest.with_column("events", [*events]))


SMALL = HearConfig(hidden=16, max_epochs=30, points=2, batch=256, lrs=(1e-2,), hidden_layers=(1,))


def small(layers="all", **changes):
    return HearProber(edit(SMALL, **changes), ProbeConfig(layers=layers, seeds=(0,)))


def score(task, folds):
    return scored(
        task, [fold.test for fold in folds], encoder="tones", fingerprint="0", dev=0.0, chosen=[], grid=[], skipped=0,
        seconds_encode=0.0, seconds_probe=0.0, settings="",
    )  # fmt: skip


def test_planted_events_are_found_and_silence_finds_none(tones):
    task = ready(tones)
    result = score(task, answer_events(Embedder(Tones(), "mean", 60.0), task, small()))
    assert result.score > 0.95
    assert result.low <= result.score <= result.high
    assert result.chance == 0.0
    deaf = answer_events(Embedder(Tones(), "mean", 60.0), task, small(layers=(0,)))
    assert score(task, deaf).score < 0.1
    errors = ready(tones, metric="segment_error_rate")
    found = score(errors, answer_events(Embedder(Tones(), "mean", 60.0), errors, small()))
    assert found.score < 0.1
    assert found.chance == 1.0


def test_further_metrics_are_told_of_the_same_answers(tones):
    task = ready(tones)
    also = ("segment_error_rate", "onset_offset_f1_50ms")
    more = prepare(replace(task.task, options={"events": {"also": also}}), task.manifest)
    (plain,), (fold,) = (answer_events(Embedder(Tones(), "mean", 60.0), one, small()) for one in (task, more))
    np.testing.assert_array_equal(plain.test.correct, fold.test.correct)
    told = beside(more, [fold])
    assert list(told) == list(also)
    assert told["segment_error_rate"].value < 0.1
    assert 0.5 < told["onset_offset_f1_50ms"].value <= score(more, [fold]).score


def test_one_kind_of_event_is_enough(tones):
    folder, events = tones
    task = ready((folder, [[event for event in clip if event["label"] == "high"] for clip in events]))
    assert task.classes == ["high"]
    (fold,) = answer_events(Embedder(Tones(), "mean", 60.0), task, small())
    assert score(task, [fold]).score > 0.95
    with pytest.raises(EvaluationError, match="needs frames of an event in train"):
        ready((folder, [[]] * 18 + events[18:]))


def test_counts_add_up_and_the_best_way_on_dev_serves_test(tones):
    task = ready(tones)
    (fold,) = answer_events(Embedder(Tones(), "mean", 60.0), task, small())
    assert fold.test.rows.tolist() == list(range(18, 24))
    assert (fold.test.total >= 2).all()  # two events annotated in each
    assert fold.test.correct.shape == (1, 6)
    long = replace(task.task, options={"events": {"shortest_s": (2.0, 0.125), "median_s": (0.1,)}})
    other = prepare(long, task.manifest)
    (same,) = answer_events(Embedder(Tones(), "mean", 60.0), other, small())
    assert float(same.test.correct.sum() / same.test.total.sum()) > 0.9  # events of 2 s there are none, and dev knows
    (none,) = answer_events(
        Embedder(Tones(), "mean", 60.0),
        prepare(replace(long, options={"events": {"shortest_s": (2.0,)}}), task.manifest),
        small(),
    )
    assert none.test.correct.sum() == 0


def test_selection_never_sees_test(tones):
    folder, events = tones
    wrong = [*events[:18], *([{"start_s": 0.0, "end_s": 3.0, "label": "low"}] for _ in range(6))]
    (honest,), (lied,) = (
        answer_events(Embedder(Tones(), "mean", 60.0), task, small(points=2))
        for task in (ready(tones), ready((folder, wrong)))
    )
    assert honest.fitted.trials == lied.fitted.trials
    assert honest.test.correct.sum() > lied.test.correct.sum()


def test_folds_are_each_tested_once_and_later_ones_train_the_choice_alone(tones):
    task = ready(tones, split=None, fold=[f"fold{clip % 3:02}" for clip in range(24)])
    folds = answer_events(Embedder(Tones(), "mean", 60.0), task, small(points=2, max_epochs=10))
    assert sorted(np.concatenate([fold.test.rows for fold in folds]).tolist()) == list(range(24))
    assert [len(fold.fitted.trials) for fold in folds] == [2, 1, 1]
    assert len({fold.fitted.choice.detail for fold in folds}) == 1


def test_the_mean_over_folds_is_told_beside_the_score_of_all_clips(tones):
    task = ready(tones, split=None, fold=["fold00"] * 4 + ["fold01"] * 8 + ["fold02"] * 12)
    folds = [
        replace(fold, test=replace(fold.test, correct=share * fold.test.total[None]))
        for fold, share in zip(
            answer_events(Embedder(Tones(), "mean", 60.0), task, small(max_epochs=1)), (1.0, 0.5, 0.0), strict=True
        )
    ]
    told = beside(task, folds)["mean over folds"]
    assert (told.low, told.value, told.high) == pytest.approx((0.5, 0.5, 0.5))
    assert score(task, folds).score == pytest.approx(1 / 3, abs=0.05)  # the large fold counts for more


def test_choosing_by_loss(tones):
    task = ready(tones)
    by_loss = replace(task.task, options={"events": {"by_loss": True, "check_every": 1}})
    (fold,) = answer_events(Embedder(Tones(), "mean", 60.0), prepare(by_loss, task.manifest), small())
    assert all(trial.dev[0] < 0 for trial in fold.fitted.trials)  # less a loss
    assert float(fold.test.correct.sum() / fold.test.total.sum()) > 0.9


def test_a_clip_that_cannot_be_heard_has_no_events(tones):
    folder, events = tones
    soundfile.write(folder / "short.wav", np.zeros(100), 8000)
    task = ready(
        (folder, events), path=[*(f"{clip:02}.wav" for clip in range(23)), "short.wav"], clip_id=[*map(str, range(24))]
    )
    (fold,) = answer_events(Embedder(Tones(), "mean", 60.0), task, small())
    assert fold.skipped == 1
    assert fold.test.correct[0, -1] == 0
    assert fold.test.total[-1] == 2


def test_columns_without_intervals_are_refused(tones):
    task = ready(tones)
    manifest = task.manifest.with_column("loud", [["yes", "no"][clip % 2] for clip in range(24)])
    clips = prepare(replace(task.task, target="loud", level="clip"), manifest)
    with pytest.raises(EvaluationError, match="'loud' holds none"):
        answer_events(Embedder(Tones(), "mean", 60.0), clips, small())


def test_other_protocols_are_refused(tones):
    task = ready(tones, protocol="auricle")
    with pytest.raises(EvaluationError, match="knows no events; choose hear"):
        answer_events(Embedder(Tones(), "mean", 60.0), task, prober("auricle", ProbeConfig()))


def test_frames_lie_before_the_end():
    encoder = Tones()
    np.testing.assert_allclose(frame_times(encoder, 0.06), [0.01, 0.03, 0.05])
    np.testing.assert_allclose(frame_times(encoder, 0.051), [0.01, 0.03, 0.05])
    np.testing.assert_allclose(frame_times(encoder, 0.05), [0.01, 0.03])
    np.testing.assert_allclose(frame_times(encoder, 0.001), [0.01])
