"""Phone recognition from recordings to tables: phones are pure tones, so that what ought to be heard is known."""

import json
import logging
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from auricle import cli
from auricle.config import Config, edit
from auricle.data.manifest import Manifest
from auricle.encoders.base import Encoder, Frames
from auricle.errors import ConfigError, EvaluationError, ManifestError
from auricle.evaluation.cache import Cache
from auricle.evaluation.metrics import paired_bootstrap, scorer
from auricle.evaluation.recognition import ctc as ctc_module
from auricle.evaluation.recognition import frames as frames_module
from auricle.evaluation.recognition.ctc import CtcConfig, Recogniser, ctc_loss, greedy
from auricle.evaluation.recognition.edits import edit_distances
from auricle.evaluation.recognition.frames import Utterances
from auricle.evaluation.recognition.run import recognise, summed_layers
from auricle.evaluation.recognition.setup import prepare_speech
from auricle.evaluation.results import read_results, table
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks import TASKS
from auricle.report.build import build_report

RATE, HOP = 16000, 160
PHONES = ["AA1", "B", "K", "S", "UW0"]
LEXICON = "AB AA1 B\nAB B AA1\nBOOK B UW0 K\nSACK\tS AA1 K\nOOZE UW0 S\n"
WORDS = {"AB": ("AA1", "B"), "BOOK": ("B", "UW0", "K"), "SACK": ("S", "AA1", "K"), "OOZE": ("UW0", "S")}
TRAIN, DEV, TEST = "train-clean-100", "dev-clean", "test-clean"
QUICK = CtcConfig(lrs=(3e-2,), seeds=(0,), max_steps=45, eval_every=15)
TWO = edit(QUICK, lrs=(1e-3, 3e-2))


class Tones(Encoder):
    """Layer 0 is noise that depends on the time; layer 1 is one-hot of the tone, zeros in silence."""

    family: ClassVar[str] = "tones"

    class Options(Config):
        hop: int = HOP
        deaf: bool = False

    def __init__(self, name="tones", **options):
        super().__init__()
        self.config, self.name = self.Options(**options), name
        self.sample_rate, self.hop, self.offset, self.dims = RATE, self.config.hop, self.config.hop / 2, (5, 5)
        self.heard = 0

    def features(self, waveforms, lengths):
        self.heard += len(waveforms)
        hop = self.hop
        frames = torch.nn.functional.pad(waveforms, (0, -waveforms.shape[1] % hop)).unfold(1, hop, hop)  # (B, T, hop)
        power = torch.fft.rfft(frames[..., :HOP]).abs().square()[:, :, 10:20:2]  # tones lie 200 Hz apart
        return power * (0 if self.config.deaf else 1), torch.div(lengths, hop, rounding_mode="floor")

    def encode(self, x, lengths, *, layers=None):
        noise = torch.sin(torch.arange(x.shape[1] * 5) * 12.9898).view(-1, 5).expand(len(x), -1, -1)
        states = [noise, (x > 1).float()]
        return Frames([states[layer] for layer in (range(2) if layers is None else layers)], lengths)


class Sick(Tones):
    """Frames of clips of the greatest length in a batch are NaN; equal lengths alone."""

    pads_safely = False

    def encode(self, x, lengths, *, layers=None):
        found = super().encode(x, lengths, layers=layers)
        states = [torch.where((lengths % 7 == 0)[:, None, None], torch.nan, state) for state in found.hidden_states]
        return Frames(states, lengths)


def speak(phones, rng):
    """Each phone is a tone of 2 to 4 frames, with silence around it."""
    parts = [np.zeros(HOP * rng.integers(1, 3))]
    for phone in phones:
        time = np.arange(HOP * rng.integers(2, 5)) / RATE
        parts += [0.3 * np.sin(2 * np.pi * (1000 + 200 * PHONES.index(phone)) * time), np.zeros(HOP)]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """LibriSpeech as it is unpacked: eight people of train, two of dev, three of test, five utterances each."""
    root, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    people = dict.fromkeys(range(10, 18), TRAIN) | dict.fromkeys((20, 21), DEV) | dict.fromkeys((30, 31, 32), TEST)
    for person, subset in people.items():
        folder = root / "librispeech" / "LibriSpeech" / subset / str(person) / "7"
        folder.mkdir(parents=True)
        lines = []
        for take in range(5):
            words = rng.choice(list(WORDS), 3)
            name = f"{person}-7-{take:04}"
            soundfile.write(folder / f"{name}.flac", speak([p for word in words for p in WORDS[word]], rng), RATE)
            lines.append(f"{name} {' '.join(words)}")
        (folder / f"{person}-7.trans.txt").write_text("\n".join(lines), encoding="utf-8")
    (root / "librispeech-lexicon.txt").write_text(LEXICON, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def ready(corpora):
    return prepare_speech(TASKS["superb-pr"], corpora=corpora)


@pytest.fixture(scope="module")
def both(ready, tmp_path_factory):
    """Results of an encoder that hears the tones, and of one that does not."""
    return run([Tones(), Tones("deaf", deaf=True)], ready, tmp_path_factory.mktemp("both"))


@pytest.fixture
def data(ready, tmp_path):
    """The same recordings as somebody's own: a column of phones, and who speaks."""
    path = tmp_path / "mine.parquet"
    columns = {"phones": ready.texts, "speaker": ready.manifest.column("speaker")}
    manifest = ready.manifest
    for name, values in columns.items():
        manifest = manifest.with_column(name, values)
    manifest.save(path)
    return path


def run(encoders, ready, output, config=QUICK, **options):
    options = {"output": output, "device": torch.device("cpu"), "progress": False} | options
    return recognise(encoders, [ready], config, **options)


# ------------------------------------------------------------------------------------------------------------ the whole


def test_four_encoders_end_to_end_and_only_the_one_that_hears_makes_no_errors(corpora, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("auricle.evaluation.recognition.ctc.CtcConfig", lambda seeds: edit(TWO, seeds=seeds))
    encoders = [Tones(), Tones("deaf", deaf=True), Tones("slow", hop=2560), "fbank"]
    results = evaluate(
        encoders, tasks=["superb-pr"], corpora=corpora, seeds=(0,), output=tmp_path, device="cpu", progress=False
    )
    good, deaf, slow, fbank = results
    assert (good.name, good.metric, good.level, good.kind) == ("superb-pr@superb-ctc-v1", "per", "clip", "classes")
    assert (good.score, good.low, good.high, good.seeds, good.dev) == (0, 0, 0, [0], 0)
    assert good.chance == 1
    assert (good.unit, good.units) == ("speaker", 3)
    assert (good.n_train, good.n_dev, good.n_test, good.skipped) == (40, 10, 15, 0)
    assert good.classes == PHONES
    assert {choice.lr for choice in good.grid} == set(TWO.lrs)
    assert "librispeech-lexicon.txt" in good.split
    assert deaf.score > 0.7
    assert slow.score > 0.5  # some 3 frames for 8 phones
    assert "slow: 40 of 40 utterances of train have more phones than frames" in caplog.text
    assert fbank.score < deaf.score
    assert fbank.grid[0].dev > fbank.grid[1].dev == fbank.dev  # the lower rate has not got far
    told = table(results)
    assert "superb-pr" in told
    assert next(line.split()[-1] for line in told.splitlines() if line.startswith("chance")) == "100.0"
    again = read_results(tmp_path)
    assert {result.encoder: result.score for result in again} == {result.encoder: result.score for result in results}
    build_report([tmp_path], tmp_path / "report.html")
    assert "superb-pr" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_scores_and_pairs_come_from_the_counts_of_each_utterance(both):
    good, deaf = both
    rows = [row for row in deaf.predictions().to_pylist() if row["split"] == "test"]
    errors = sum(row["total"] - row["correct"] for row in rows)
    assert deaf.score == pytest.approx(errors / sum(row["total"] for row in rows))
    assert all(row["total"] == len(row["target"].split()) for row in rows)
    assert {row["unit"] for row in rows} == {"30", "31", "32"}
    for row in good.predictions().to_pylist():
        assert row["prediction"] == row["target"]
        assert row["map_x"] is None
    one, other = good.outcomes(), deaf.outcomes()
    gap = paired_bootstrap(scorer("per", one), scorer("per", other), one.units, lower_is_better=True)
    assert gap.mean == pytest.approx(deaf.score - good.score)
    assert gap.significant
    first = [row for row in rows if row["unit"] == "30"]  # the score of one speaker alone, by weights
    alone = scorer("per", other)(np.array([[1.0, 0.0, 0.0]]))[0]
    assert alone == pytest.approx(sum(r["total"] - r["correct"] for r in first) / sum(r["total"] for r in first))


def test_shuffled_transcripts_cannot_be_learned(data, tmp_path):
    manifest = Manifest.open(data)
    phones = np.random.default_rng(1).permutation(manifest.column("phones")).tolist()
    shuffled = prepare_speech(TASKS["superb-pr"], manifest.with_column("phones", phones))
    (result,) = run([Tones()], shuffled, tmp_path)
    assert result.score > 0.5


def test_another_seed_or_rate_encodes_nothing_and_a_result_that_is_there_is_kept(ready, tmp_path):
    encoder = Tones()
    (first,) = run([encoder], ready, tmp_path)
    heard = encoder.heard
    assert heard == 40 + 65  # a sample of train for its mean, then all
    assert run([encoder], ready, tmp_path)[0] == first
    (second,) = run([encoder], ready, tmp_path, edit(QUICK, seeds=(5,)))
    assert encoder.heard == heard
    assert second.settings != first.settings
    assert second.seconds_encode == 0
    assert second.score == 0
    with pytest.raises(EvaluationError, match="other options"):
        run([encoder], ready, tmp_path, overwrite="never")
    run([encoder], ready, tmp_path, cache=None)
    assert encoder.heard == 2 * heard


@pytest.mark.parametrize("kept", [frames_module.KEPT, 0])
def test_interrupted_training_goes_on_from_the_frames_that_are_there(ready, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(frames_module, "KEPT", kept)
    (whole,) = run([Tones()], ready, tmp_path / "whole")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    encoder = Tones()
    with monkeypatch.context() as patched:
        patched.setattr(ctc_module, "_measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run([encoder], ready, tmp_path / "out")
    heard = encoder.heard
    assert heard > 0
    (result,) = run([encoder], ready, tmp_path / "out")
    assert encoder.heard == heard
    assert (result.score, result.grid) == (whole.score, whole.grid)
    left = sorted(path.suffix for path in (tmp_path / "out").rglob("utterances/*"))
    assert left == ([".f16", ".json"] if kept else [])  # many frames go with the result


def test_runs_repeat_to_the_digit(ready, tmp_path):
    few = edit(TWO, max_steps=10, eval_every=5)
    scores = [
        run(["fbank"], ready, tmp_path / name, few)[0].model_dump(include={"score", "seeds", "grid"}) for name in "ab"
    ]
    assert scores[0] == scores[1]


def test_clips_that_cannot_be_heard_count_as_deletions(ready, tmp_path):
    lengths = np.round(ready.manifest.durations * RATE / HOP)
    sick = (lengths % 7 == 0) & (ready.assignments[0] == "test")
    assert sick.any()
    (result,) = run([Sick()], ready, tmp_path)
    lost = sum(len(ready.targets[row]) for row in np.flatnonzero(sick))
    phones = sum(len(ready.targets[row]) for row in np.flatnonzero(ready.assignments[0] == "test"))
    assert result.score == pytest.approx(lost / phones)
    assert result.skipped == (lengths % 7 == 0).sum()
    with pytest.raises(EvaluationError, match=r"could embed none of 40 utterances of train .*shorter than one frame"):
        run([Tones(hop=RATE * 9)], ready, tmp_path)
    for part in ("dev", "test"):
        rest = np.where(ready.assignments[0] == part, "unused", ready.assignments[0])
        lost = replace(ready, assignments=[np.where(sick, part, rest)])
        with pytest.raises(EvaluationError, match=f"could embed none of .* in {part} .*NaN"):
            run([Sick()], lost, tmp_path / part)


# -------------------------------------------------------------------------------------------------------- what is given


def test_a_manifest_of_ones_own_names_phones_or_words(data, corpora, tmp_path):
    phones = prepare_speech(TASKS["superb-pr"], data)
    assert (phones.task.name, phones.task.target, phones.unit, len(phones.manifest)) == (
        "mine-phones", "phones", "speaker", 65,
    )  # fmt: skip
    words = prepare_speech(TASKS["superb-pr"], data, "text", corpora=corpora)
    assert words.texts == phones.texts
    assert "lexicon" not in phones.rule
    (result,) = run([Tones()], phones, tmp_path / "out")
    assert (result.name, result.score) == ("mine-phones@superb-ctc-v1", 0)
    whole = Manifest.open(data)
    made = prepare_speech(TASKS["superb-pr"], Manifest(whole.table.drop_columns(["split"]), []))
    people = [{made.units[row] for row in np.flatnonzero(made.assignments[0] == name)} for name in ("train", "test")]
    assert not people[0] & people[1]
    bare = Manifest(whole.table.drop_columns(["split", "speaker"]), [])
    made = prepare_speech(TASKS["superb-pr"], bare)
    assert made.unit == "clip"
    assert {name: int((made.assignments[0] == name).sum()) for name in ("train", "dev", "test")} == {
        "train": 39, "dev": 13, "test": 13,
    }  # fmt: skip


def test_the_command_line_takes_ones_own_phones_and_refuses_what_does_not_fit(data, tmp_path, monkeypatch, capsys):
    few = edit(QUICK, max_steps=5, eval_every=5)
    monkeypatch.setattr("auricle.evaluation.recognition.ctc.CtcConfig", lambda seeds: edit(few, seeds=seeds))
    command = ["evaluate", "fbank", "--tasks", "superb-pr", "--data", str(data), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--device", "cpu"]) == 0
    assert "mine-phones" in capsys.readouterr().out
    for option in (["--protocol", "knn"], ["--level", "clip"], ["--metric", "accuracy"], ["--target", "phone"]):
        assert cli.main([*command, *option]) == 2
    with pytest.raises(EvaluationError, match="alone"):
        evaluate("fbank", tasks=["superb-pr", "superb-ks"], data=data, output=tmp_path)


def test_words_outside_the_lexicon_are_named_and_their_utterances_left_out(corpora, data, tmp_path, caplog):
    (tmp_path / "librispeech-lexicon.txt").write_text(LEXICON.replace("OOZE", "OUSE"), encoding="utf-8")
    whole = Manifest.open(data)
    without = sum("OOZE" not in text for text in whole.column("text"))
    with caplog.at_level(logging.WARNING):
        ready = prepare_speech(TASKS["superb-pr"], data, "text", corpora=tmp_path)
    assert 0 < len(ready.manifest) == without < 65
    told = f"{65 - without} of 65 utterances left out for words outside the lexicon (1): OOZE"
    assert told in caplog.text
    assert told in ready.rule
    (tmp_path / "librispeech-lexicon-more.txt").write_text("ooze UW0 S\nAB K\n", encoding="utf-8")
    both = prepare_speech(TASKS["superb-pr"], data, "text", corpora=tmp_path)
    assert len(both.manifest) == 65
    assert "by librispeech-lexicon-more.txt and librispeech-lexicon.txt" in both.rule
    row = whole.column("text").index(next(text for text in whole.column("text") if text.startswith("AB")))
    assert both.texts[row].startswith("K ")  # the first pronunciation that is found counts


def test_only_the_tasks_subsets_are_taken_from_a_manifest_of_more(corpora, ready, tmp_path):
    subsets = ready.manifest.column("subset")
    other = [name if row % 5 else "train-other-500" for row, name in enumerate(subsets)]
    ready.manifest.with_column("subset", other).save(tmp_path / "librispeech.parquet")
    (tmp_path / "librispeech-lexicon.txt").write_text(LEXICON, encoding="utf-8")
    assert len(prepare_speech(TASKS["superb-pr"], corpora=tmp_path).manifest) == 52
    ready.manifest.select(np.arange(50)).save(tmp_path / "librispeech.parquet")
    with pytest.raises(ManifestError, match="librispeech is without test-clean"):
        prepare_speech(TASKS["superb-pr"], corpora=tmp_path)


def test_what_is_missing_is_told_in_a_line(corpora, data, tmp_path):
    task, manifest = TASKS["superb-pr"], Manifest.open(data)
    cases = [
        (lambda: prepare_speech(task, data, "text"), ManifestError, "no librispeech-lexicon.*openslr.org"),
        (lambda: prepare_speech(task, None, "text", corpora=corpora), EvaluationError, "your own data"),
        (lambda: prepare_speech(task, data, "phone"), ManifestError, "did you mean 'phones'"),
        (lambda: prepare_speech(task, data, unit="voice"), ManifestError, "unknown column 'voice'"),
        (lambda: prepare_speech(task, manifest.with_column("phones", [1] * 65), "phones"), ManifestError, "not text"),
        (lambda: prepare_speech(task, manifest.with_column("phones", [" "] * 65)), EvaluationError, "of no utterance"),
    ]
    (tmp_path / "librispeech-lexicon.txt").write_text("AB\n", encoding="utf-8")
    cases.append((lambda: prepare_speech(task, data, "text", corpora=tmp_path), ManifestError, "'AB' has no phones"))
    for call, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_layers_that_are_summed_are_alike_in_width():
    encoder = Tones()
    encoder.dims = (3, 5, 5)
    assert summed_layers(encoder, "all") == summed_layers(encoder, ["sum"]) == [1, 2]
    assert summed_layers(encoder, "last") == [2]
    assert summed_layers(encoder, [0]) == [0]
    assert summed_layers(encoder, [-1, 1]) == [2, 1]
    for layers, words in (([0, 1], "no sum"), ("mean", "no mean"), ([4], "not among")):
        with pytest.raises(ConfigError, match=words):
            summed_layers(encoder, layers)


# --------------------------------------------------------------------------------------------------------------- frames


def test_frames_are_the_same_kept_beside_the_results_or_encoded_anew(ready, tmp_path, monkeypatch):
    train = np.flatnonzero(ready.assignments[0] == "train")

    def source(where, cache=None):
        encoder = Tones()
        return encoder, Utterances(encoder, ready.manifest, [0, 1], train, output=where, cache=cache, batch_seconds=2)

    _, kept = source(tmp_path, Cache(tmp_path / "cache", "f"))
    _, beside = source(tmp_path)
    monkeypatch.setattr(frames_module, "DISK", 0.0)
    anew_encoder, anew = source(tmp_path)
    rows = np.array([3, 60, 17, 22, 41])
    found = []
    for utterances in (kept, beside, anew):
        clips = {}
        for some, frames, lengths in utterances.batches(rows):
            assert frames.shape[1] == lengths.max()
            clips |= {row: frame[:length] for row, frame, length in zip(some.tolist(), frames, lengths, strict=True)}
        found.append(clips)
    heard = anew_encoder.heard
    list(anew.batches(rows))
    assert anew_encoder.heard == heard + 5
    for row in rows.tolist():
        count = int(np.round(ready.manifest.durations[row] * RATE / HOP))
        assert found[0][row].shape == (count, 2, 5)
        for clips in found:
            torch.testing.assert_close(clips[row], found[2][row], atol=2e-3, rtol=1e-3)  # float16 against float32
    everything = torch.cat([clip[:length] for _, batch, lengths in anew.batches(train)
                            for clip, length in zip(batch, lengths, strict=True)])  # fmt: skip
    torch.testing.assert_close(everything.mean(0), torch.zeros(2, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(everything.std(0, correction=0), torch.ones(2, 5), atol=1e-4, rtol=0)
    assert [path.suffix for path in sorted((tmp_path / "cache" / "f" / "utterances").iterdir())] == [".f16", ".json"]
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]  # what lay beside the results had no name


def test_a_place_that_cannot_be_written_is_told(ready, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written"):
        run([Tones()], ready, tmp_path / "file" / "out", cache=None)


def test_damaged_frames_are_told(ready, tmp_path):
    train = np.flatnonzero(ready.assignments[0] == "train")
    cache = Cache(tmp_path, "f")
    Utterances(Tones(), ready.manifest, [1], train, output=tmp_path, cache=cache)
    (index,) = (tmp_path / "f" / "utterances").glob("*.json")
    record = json.loads(index.read_text(encoding="utf-8"))
    for text in (json.dumps(record | {"places": record["places"][:-1]}), "{", "{}"):
        index.write_text(text, encoding="utf-8")
        with pytest.raises(EvaluationError, match=r"cannot be read .*delete it"):
            Utterances(Tones(), ready.manifest, [1], train, output=tmp_path, cache=cache)


# ---------------------------------------------------------------------------------------------------------- CTC and PER


def slow_distance(a, b):
    """The table of Levenshtein, cell by cell."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (one != other)))
    return row[-1]


SEQUENCES = st.lists(st.integers(0, 3), max_size=12)


@given(st.lists(st.tuples(SEQUENCES, SEQUENCES), min_size=1, max_size=8))
def test_edit_distances_are_those_of_the_plain_table(pairs):
    one, other = ([np.array(sequence, np.int64) for sequence in side] for side in zip(*pairs, strict=True))
    distances = edit_distances(one, other)
    assert distances.tolist() == [slow_distance(a, b) for a, b in pairs]
    assert distances.tolist() == edit_distances(other, one).tolist()
    for (a, b), distance in zip(pairs, distances, strict=True):
        assert abs(len(a) - len(b)) <= distance <= max(len(a), len(b))
        assert (distance == 0) == (a == b)


def test_edit_distances_in_blocks_and_of_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    one, other = ([rng.integers(4, size=rng.integers(0, 30)) for _ in range(40)] for _ in range(2))
    whole = edit_distances(one, other)
    monkeypatch.setattr("auricle.evaluation.recognition.edits.CELLS", 100)
    assert edit_distances(one, other).tolist() == whole.tolist()
    assert edit_distances([], []).tolist() == []


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=10), min_size=1, max_size=5), st.integers(0, 4))
def test_greedy_decoding_drops_repeats_then_blanks_whatever_the_padding(clips, extra):
    width = max(map(len, clips)) + extra
    labels = torch.full((len(clips), width), 2)  # past the end, anything
    for row, clip in enumerate(clips):
        labels[row, : len(clip)] = torch.tensor(clip)
    log_probs = torch.nn.functional.one_hot(labels, 4).float().log_softmax(-1)
    for found, clip in zip(greedy(log_probs, torch.tensor([len(c) for c in clips])), clips, strict=True):
        runs = [label for place, label in enumerate(clip) if place == 0 or label != clip[place - 1]]
        assert found.tolist() == [label - 1 for label in runs if label]


def test_the_loss_is_torchs_and_neither_padding_nor_company_changes_it():
    torch.manual_seed(0)
    head = Recogniser(2, 6, 8, 5)
    frames, lengths = torch.randn(3, 12, 2, 6), torch.tensor([12, 9, 3])
    targets = [np.array([0, 1, 1, 3]), np.array([2, 2]), np.array([0, 0, 0])]  # the last needs 5 frames and has 3
    losses = ctc_loss(head(frames), lengths, targets)
    padded = torch.zeros(3, 4, dtype=torch.int64)
    for row, target in enumerate(targets):
        padded[row, : len(target)] = torch.from_numpy(target + 1)
    theirs = torch.nn.CTCLoss(blank=0, zero_infinity=True)(
        head(frames).transpose(0, 1), padded, lengths, torch.tensor([4, 2, 3])
    )
    torch.testing.assert_close(losses.mean(), theirs)
    assert losses[2] == 0
    assert (losses[:2] > 0).all()
    longer = torch.cat([frames, torch.full((3, 5, 2, 6), 1e3)], 1)
    torch.testing.assert_close(ctc_loss(head(longer), lengths, targets), losses)
    alone = [ctc_loss(head(frames[row : row + 1]), lengths[row : row + 1], targets[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(torch.cat(alone), losses)
    for row, found in enumerate(greedy(head(longer), lengths)):
        assert found.tolist() == greedy(head(frames[row : row + 1, : lengths[row]]), lengths[row : row + 1])[0].tolist()


def test_a_head_sums_layers_by_softmax_then_maps_twice():
    torch.manual_seed(0)
    head = Recogniser(3, 4, 6, 5)
    assert torch.equal(head.weights, torch.zeros(3))
    with torch.no_grad():
        head.weights.copy_(torch.tensor([0.0, 1.0, -2.0]))
    frames = torch.randn(2, 7, 3, 4)
    share = np.exp([0.0, 1.0, -2.0]) / np.exp([0.0, 1.0, -2.0]).sum()
    summed = sum(float(weight) * frames[:, :, layer] for layer, weight in enumerate(share))
    logits = (summed @ head.project.weight.T + head.project.bias) @ head.classify.weight.T + head.classify.bias
    torch.testing.assert_close(head(frames), logits - logits.logsumexp(-1, keepdim=True))
