"""The suite `mir13` from files in official layouts to tables: planted answers, baselines, tiny networks of the papers.

The grid is cut short, not the protocol: one learning rate, and small heads in small minibatches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import music_trees
import numpy as np
import pytest
import torch
from test_suites import assert_told

from auricle import cli
from auricle.config import edit
from auricle.data.corpora import find_corpus
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import save
from auricle.encoders.external import wrap
from auricle.encoders.waveform import WaveformEncoder
from auricle.evaluation.probes.grouped import MarbleConfig
from auricle.evaluation.results import Result
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks import SUITES, TASKS
from auricle.methods import preset

PLANTED, DEAF = "music_trees:Planted", "music_trees:Deaf"
NETWORKS = {"music2vec": "music2vec_vanilla", "musichubert": "musichubert_k500"}
"""Name to the preset whose encoder is made tiny."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return music_trees.write_music_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(autouse=True)
def brief(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained takes seconds; that of networks, which are to answer something, least."""
    epochs = 15 if "network" in request.node.name else 60
    short = {"lrs": (5e-3,), "max_epochs": epochs, "hidden": 128, "batch": 8, "patience": 20}
    monkeypatch.setattr("auricle.evaluation.probes.marble.MarbleConfig", lambda **own: MarbleConfig(**own | short))


def run(encoders: Sequence[str | Encoder], output: Path, corpora: Path, **options: Any) -> list[Result]:
    return evaluate(encoders, output=output, corpora=corpora, seeds=(0,), device="cpu", progress=False, **options)


def by_task(results: list[Result]) -> dict[str, dict[str, Result]]:
    """By encoder, and by task, of which none is missing."""
    told: dict[str, dict[str, Result]] = {}
    for result in results:
        told.setdefault(result.encoder, {})[result.task] = result
    assert all(set(found) == set(SUITES["mir13"]) for found in told.values())
    return told


def test_planted_answers_are_found_and_noise_answers_nothing(corpora: Path, tmp_path: Path) -> None:
    results = run([PLANTED, DEAF], tmp_path / "out", corpora, suite="mir13")
    told = by_task(results)
    for name, planted in told[PLANTED].items():
        deaf = told[DEAF][name]
        if planted.metric in ("accuracy", "weighted_key"):
            assert planted.score == 1, name
        else:  # of some tags there are two examples, and values are learned as nearly as heads can
            assert planted.score > 0.95, name
        assert planted.skipped == deaf.skipped == 0
        assert deaf.score < deaf.chance + 0.25 * (1 - deaf.chance), name
    above = [deaf.score - deaf.chance for deaf in told[DEAF].values()]
    assert -0.1 < np.mean(above) < 0.05
    assert_told(results, tmp_path / "out")
    assert cli.main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "report.html")]) == 0
    assert all(name in (tmp_path / "report.html").read_text(encoding="utf-8") for name in SUITES["mir13"])


def test_baselines_hear_what_is_rendered(corpora: Path, tmp_path: Path) -> None:
    """Keys are heard by pitch classes alone; timbre and mood by the cepstra, and not by pitch classes."""
    results = run(["fbank", "mfcc", "chroma"], tmp_path / "out", corpora, suite="mir13")
    told = {
        encoder: {name: found.score for name, found in tasks.items()} for encoder, tasks in by_task(results).items()
    }
    keys = {encoder: scores["giantsteps-key"] for encoder, scores in told.items()}
    assert keys["chroma"] > 0.5 > 0.3 > max(keys["fbank"], keys["mfcc"])
    for name in ("nsynth-instrument", "emomusic"):
        assert told["mfcc"][name] > 0.5 > told["chroma"][name], name
    assert min(scores["nsynth-pitch"] for scores in told.values()) > 0.9
    assert_told(results, tmp_path / "out")


def tiny(name: str, folder: Path) -> Path:
    """An encoder of a paper's design in a checkpoint folder, its weights another than its twin's."""
    config = preset(NETWORKS[name]).encoder
    torch.manual_seed(0)
    encoder = WaveformEncoder(edit(config, dim=24, layers=2, heads=2, ffn=48, channels=12, position_groups=4))
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 0.1 * torch.randn_like(weight)
    save(encoder, folder, seed=0)
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_twin_answer_every_task(name: str, corpora: Path, tmp_path: Path) -> None:
    folder = tiny(name, tmp_path / name)
    results = run([str(folder), f"untrained:{folder}"], tmp_path / "out", corpora, suite="mir13")
    network, twin = by_task(results).values()
    assert network["gtzan-genre"].fingerprint != twin["gtzan-genre"].fingerprint
    for found in (network, twin):
        assert all(np.isfinite(result.score) and not result.skipped for result in found.values())
        assert found["gtzan-genre"].score > 0.3  # even random convolutions tell ten instruments apart
    assert_told(results, tmp_path / "out")


def test_shuffled_labels_are_not_learned(corpora: Path, tmp_path: Path) -> None:
    """The encoder still leaks what was played; labels are dealt out anew, values and lists as a whole."""
    rng, columns = np.random.default_rng(0), {"nsynth": ["instrument_family", "pitch"], "giantsteps": ["key"]}
    columns |= {"emomusic": ["arousal", "valence"], "magnatagatune": ["tags"]}
    for corpus, names in columns.items():
        manifest = find_corpus(corpus, corpora)
        for name in names:
            values, parts = manifest.column(name), np.array(manifest.column("split"))
            order = np.arange(len(manifest))
            for part in set(parts):  # so that every class stays on all sides
                order[parts == part] = rng.permutation(order[parts == part])
            manifest = manifest.with_column(name, [values[row] for row in order])
        manifest.save(tmp_path / f"{corpus}.parquet")
    names = ["nsynth-instrument", "nsynth-pitch", "giantsteps-key", "emomusic", "mtt-tags"]
    for result in run([PLANTED], tmp_path / "out", tmp_path, tasks=names):
        assert result.score < result.chance + 0.25 * (1 - result.chance), result.task


@pytest.mark.parametrize("task", ["giantsteps-key", "vocalset-technique", "gtzan-genre"])
def test_one_more_task_encodes_nothing_again(task: str, corpora: Path, tmp_path: Path) -> None:
    """The same clips, whole, in chunks that are joined, and in chunks by themselves."""
    more = replace(TASKS[task], name="more", protocol="marble-linear")
    first = wrap(music_trees.Planted(), "planted")
    (one,) = run([first], tmp_path, corpora, tasks=[task])
    assert len(first.thing.heard) > 1
    second = wrap(music_trees.Planted(), "planted")
    again, other = run([second], tmp_path, corpora, tasks=[TASKS[task], more])
    assert len(second.thing.heard) == 1  # on being wrapped
    assert again == one
    assert other.score > 0.9
    assert other.seconds_encode == 0
