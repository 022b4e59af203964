"""Every suite from files in official layouts to tables, with four encoders; their labels are planted in the audio.

The grids are cut short, not the protocols: forests of few trees, one draw a person, few steps of heads.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_hear import write_task
from trees import RATE, Planted, sound, write_corpora, write_tones

from auricle import cli
from auricle.config import edit
from auricle.data.corpora import find_corpus
from auricle.data.splits import personal
from auricle.encoders.base import Encoder
from auricle.encoders.external import wrap
from auricle.errors import AuricleError
from auricle.evaluation.probes import heads
from auricle.evaluation.probes.hear import HearConfig, HearProber
from auricle.evaluation.recognition.ctc import CtcConfig
from auricle.evaluation.results import Result, read_results
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks import SUITES, TASKS

ENCODERS = ("trees:Planted", "trees:Deaf", "fbank", "mfcc")
PLANTED, DEAF = ENCODERS[:2]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained takes seconds."""

    def fit_heads(kind: Any, train: Any, dev: Any, config: Any, **options: Any) -> heads.Fitted:
        lrs = (1e-1,) if "bottleneck" in config.heads else (1e-2,)
        return heads.fit_heads(kind, train, dev, edit(config, lrs=lrs, max_steps=400, patience=8), **options)

    hear = HearConfig(hidden=32, points=2, max_epochs=120)
    speech = CtcConfig(lrs=(3e-2,), max_steps=60, eval_every=20)
    monkeypatch.setattr("auricle.evaluation.probes.presets.fit_heads", fit_heads)
    monkeypatch.setattr("auricle.evaluation.probes.estimators.TREES", 3)
    monkeypatch.setattr("auricle.evaluation.prepare.personal", functools.partial(personal, repeats=1))
    monkeypatch.setattr("auricle.evaluation.probes.hear.hear", lambda config: HearProber(hear, config))
    monkeypatch.setattr("auricle.evaluation.recognition.ctc.CtcConfig", lambda seeds: edit(speech, seeds=seeds))


def run(encoders: Sequence[str | Encoder] | Encoder, output: Path, **options: Any) -> list[Result]:
    options = {"seeds": (0,), "device": "cpu", "progress": False} | options
    return evaluate(encoders, output=output, **options)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["noss", "noss-personal", "mockingjay", "audio-mae", "superb-linear"])
def test_a_suite_of_corpora_from_files_to_tables(suite: str, corpora: Path, tmp_path: Path) -> None:
    results = run(ENCODERS, tmp_path / "out", suite=suite, corpora=corpora)
    told = {(result.encoder, result.task): result for result in results}
    assert set(told) == {(encoder, name) for encoder in ENCODERS for name in SUITES[suite]}
    for name in SUITES[suite]:
        planted, deaf = told[PLANTED, name], told[DEAF, name]
        if planted.protocol == "superb":  # it learns slowly
            assert planted.score > 0.7 > 0.4 > deaf.score, name
        else:
            assert planted.score == (planted.metric != "per"), name
        assert planted.skipped == 0
        assert deaf.score > 0.5 if deaf.metric == "per" else deaf.score < 0.8, name
    assert np.mean([told[DEAF, name].score - told[DEAF, name].chance for name in SUITES[suite]]) < 0.1
    assert_told(results, tmp_path / "out")


def assert_told(results: list[Result], output: Path) -> None:
    """They are on disk, and in every kind of table."""
    assert sorted(result.model_dump_json() for result in read_results(output)) == sorted(
        result.model_dump_json() for result in results
    )
    for ending in ("txt", "md", "csv", "tex"):
        file = output.parent / f"table.{ending}"
        assert cli.main(["report", str(output), "--output", str(file)]) == 0
        text = file.read_text(encoding="utf-8").replace("\\", "")  # of LaTeX's %
        assert all(result.task in text and result.encoder in text for result in results), ending


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["noss", "mockingjay", "audio-mae", "superb-linear"])
def test_one_more_task_encodes_nothing_again(suite: str, corpora: Path, tmp_path: Path) -> None:
    """Of each suite a task by clip; then the same clips to be probed in another way, by an encoder loaded anew."""
    name = {"mockingjay": "mockingjay-sentiment", "noss": "noss-savee"}.get(suite, SUITES[suite][-2])
    more = replace(TASKS[name], name="more", protocol="knn")
    first = wrap(Planted(), "planted")
    (one,) = run(first, tmp_path, tasks=[name], corpora=corpora)
    heard = len(first.thing.heard)
    assert heard > 1
    second = wrap(Planted(), "planted")
    again, other = run(second, tmp_path, tasks=[TASKS[name], more], corpora=corpora)
    assert len(second.thing.heard) == 1  # on being wrapped
    assert again == one
    assert (other.score, other.seconds_encode) == (1, 0)


def test_a_suite_of_hears_folders(tmp_path: Path) -> None:
    """Scenes of three classes and events of two, in HEAR's layout."""
    parts = ("train", "valid", "test")
    scenes = {part: {f"{clip}.wav": [f"c{clip % 3}"] for clip in range(6)} for part in parts}
    events = {
        part: {f"{clip}.wav": [{"label": f"e{n}", "start": 200 * n, "end": 200 * n + 100} for n in range(2)]
               for clip in range(3)}
        for part in parts
    }  # fmt: skip
    place = write_task(tmp_path / "tasks" / "scenes", scenes, ["c0", "c1", "c2"])
    for part, clip in ((part, clip) for part in parts for clip in range(6)):
        write_tones(place / str(RATE) / part / f"{clip}.wav", clip % 3, frames=50)
    about = {"embedding_type": "event", "prediction_type": "multilabel", "evaluation": ["event_onset_200ms_fms"]}
    place = write_task(tmp_path / "tasks" / "events", events, ["e0", "e1"], **about)
    for seed, (part, clip) in enumerate((part, clip) for part in parts for clip in range(3)):
        tones = [[frame // 20] * (frame < 40 and frame % 20 < 10) for frame in range(50)]
        soundfile.write(place / str(RATE) / part / f"{clip}.wav", sound(tones, seed), RATE)
    results = run(ENCODERS, tmp_path / "out", suite=f"hear:{tmp_path / 'tasks'}")
    told = {(result.encoder, result.task): result.score for result in results}
    assert told[PLANTED, "hear-scenes"] == 1
    assert told[PLANTED, "hear-events"] > told[DEAF, "hear-events"]
    assert told[DEAF, "hear-scenes"] < 0.8
    assert_told(results, tmp_path / "out")


@pytest.mark.slow
def test_verification_of_planted_voices(corpora: Path, tmp_path: Path) -> None:
    """Alone a voice is one tone, and under another talker one of two."""
    data = find_corpus("voxceleb1", corpora)
    results = run(ENCODERS, tmp_path / "out", suite="verification", data=data, trial_count=50, layers="last")
    told = {(result.encoder, result.task): result.score for result in results}
    assert {encoder for encoder, _ in told} == set(ENCODERS)
    assert len(results) == len(ENCODERS) * len(SUITES["verification"])
    clean = {encoder: score for (encoder, task), score in told.items() if "mix" not in task}
    assert clean[PLANTED] == 0
    assert clean[DEAF] > 0.2
    assert_told(results, tmp_path / "out")


# ----------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("recipe", "missing"),
    [
        ("noss/mfcc", []),
        ("mockingjay/phones-mfcc", []),
        ("audio-mae/spc-1", []),
        ("mae-ast/patch", ["librispeech"]),
        ("music2vec/music2vec-vanilla", ["music", "gtzan", "emomusic", "nsynth", "vocalset", "magnatagatune"]),
        ("csc/voxceleb1-o", ["voxceleb1"]),
    ],
)
def test_recipes_say_what_is_missing(
    recipe: str, missing: list[str], corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("auricle.cli.recipes.device", lambda _: None)  # nothing is timed
    command = ["evaluate", "--recipe", recipe, "--corpora", str(corpora), "--output", str(tmp_path), "--dry-run"]
    assert cli.main(command) == (2 if missing else 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0].rstrip(":") for line in lines if ": MISSING (" in line] == missing
    assert not list(tmp_path.iterdir())


def damaged(corpora: Path, root: Path, name: str) -> Path:
    """A copy of one corpus, to spoil, in a root of its own."""
    shutil.copytree(corpora / name, root / name)
    return root / name


def test_a_missing_corpus_is_named_with_its_source(corpora: Path, tmp_path: Path) -> None:
    damaged(corpora, tmp_path, "mask")
    with pytest.raises(AuricleError, match=r"lacks voxforge, .*, esc50 .*without them: --tasks noss-mask$") as caught:
        run("fbank", tmp_path / "out", suite="noss", corpora=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(AuricleError, match=r"voxforge nor voxforge.parquet; get VoxForge .*https://"):
        run("fbank", tmp_path / "out", tasks=["noss-voxforge"], corpora=tmp_path)
    (tmp_path / "voxforge").mkdir()
    with pytest.raises(AuricleError, match="not VoxForge; expected LANGUAGE/SPEAKER"):
        run("fbank", tmp_path / "out", tasks=["noss-voxforge"], corpora=tmp_path)


def test_another_version_of_a_corpus_is_refused(corpora: Path, tmp_path: Path) -> None:
    shutil.copytree(corpora / "speech_commands_v1", tmp_path / "speech_commands_v2")
    with pytest.raises(AuricleError, match=r"this is Speech Commands v0.01, not v0.02"):
        run("fbank", tmp_path / "out", tasks=["noss-speech-commands"], corpora=tmp_path)


def test_a_class_absent_from_train_is_named(corpora: Path, tmp_path: Path) -> None:
    labels = damaged(corpora, tmp_path, "mask") / "lab" / "labels.csv"
    lines = [line for line in labels.read_text().splitlines() if not line.startswith("train") or "clear" in line]
    labels.write_text("\n".join(lines) + "\n")
    with pytest.raises(AuricleError, match=r"noss-mask: .*class 'mask' of 'mask' is in test but not in train"):
        run("fbank", tmp_path / "out", tasks=["noss-mask"], corpora=tmp_path)


def test_unreadable_audio_is_left_out_and_told(corpora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = sorted((damaged(corpora, tmp_path, "mask") / "wav").glob("test_*.wav"))
    clips[0].write_bytes(b"no audio")
    clips[1].write_bytes(clips[1].read_bytes()[:100])
    (result,) = run("trees:Planted", tmp_path / "out", tasks=["noss-mask"], corpora=tmp_path)
    assert result.score >= 0.8
    assert (result.n_test, result.skipped) == (len(clips) - 1, 1)
    assert "could not embed 1 clips" in caplog.text
