"""The thirteen music tasks of music2vec and musicHuBERT (Ma et al. 2023, ISMIR), as in MARBLE (Yuan et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from auricle.data.corpora import CORPORA
from auricle.evaluation.tasks.task import Task


@dataclass(frozen=True)
class Chunks:
    """How recordings are cut into pieces without overlap."""

    length_s: float
    most_s: float = math.inf
    """What a recording has after this is left out."""
    tail_s: float = 1.0
    """A shorter last piece is left out, unless it is the only one."""
    apart: bool = False
    """Each piece is scored by itself, instead of with the others of its recording."""


@dataclass(frozen=True)
class MusicTask(Task):
    """A task whose recordings may be cut into chunks."""

    chunks: Chunks | None = None
    """None for whole recordings."""
    also: tuple[str, ...] = ()
    """Further columns of values, predicted by the same head; the score is the mean over all."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What is other than usual in `MarbleConfig`."""


_JAMENDO: dict[str, Any] = {
    "corpus": "mtg_jamendo",
    "kind": "labels",
    "metric": "roc_auc",
    "split": "split",
    "unit": "artist",
    "protocol": "marble",
    "chunks": Chunks(30.0),
    "licence": CORPORA["mtg_jamendo"].licence,
    "citation": "Bogdanov et al. 2019, The MTG-Jamendo dataset for automatic music tagging, ICML workshop",
}
_NSYNTH: dict[str, Any] = {
    "corpus": "nsynth",
    "kind": "classes",
    "split": "split",
    "unit": "instrument",
    "protocol": "marble",
    "training": {"max_epochs": 50},
    "licence": CORPORA["nsynth"].licence,
    "citation": "Engel et al. 2017, Neural audio synthesis of musical notes with WaveNet autoencoders, ICML",
}
_VOCALSET: dict[str, Any] = {
    "corpus": "vocalset",
    "kind": "classes",
    "split": "split",
    "protocol": "marble",
    "chunks": Chunks(3.0, tail_s=3.0, apart=True),
    "licence": CORPORA["vocalset"].licence,
    "citation": "Wilkins et al. 2018, VocalSet: a singing voice dataset, ISMIR",
}
_GTZAN: dict[str, Any] = {
    "corpus": "gtzan",
    "split": "split",
    "licence": CORPORA["gtzan"].licence,
    "citation": "Tzanetakis and Cook 2002, Musical genre classification of audio signals, IEEE TSAP",
}
MIR13: tuple[Task, ...] = (
    MusicTask(
        name="mtt-tags",
        corpus="magnatagatune",
        target="tags",
        kind="labels",
        metric="roc_auc",
        split="split",
        unit="song",
        protocol="marble",
        measures="which of fifty tags the players of a game gave to 29 s of music",
        licence=CORPORA["magnatagatune"].licence,
        citation="Law et al. 2009, Evaluation of algorithms using games: the case of music tagging, ISMIR",
    ),
    MusicTask(
        **_GTZAN,
        name="gtzan-genre",
        target="genre",
        kind="classes",
        protocol="marble",
        training={"plateau": 6, "patience": 20},
        measures="which of ten genres 30 s of music are, by artists unheard in training",
        leaks="290 excerpts in test: mind the interval",
    ),
    MusicTask(
        name="giantsteps-key",
        corpus="giantsteps",
        target="key",
        kind="classes",
        metric="weighted_key",
        split="split",
        protocol="marble",
        chunks=Chunks(30.0, tail_s=30.0),
        training={"plateau": 5, "patience": 20},
        measures="which of 24 keys two minutes of electronic dance music are in, near misses credited in part",
        licence=CORPORA["giantsteps"].licence,
        citation="Knees et al. 2015, Two data sets for tempo estimation and key detection, ISMIR",
    ),
    MusicTask(
        name="emomusic",
        corpus="emomusic",
        target="arousal",
        also=("valence",),
        kind="values",
        metric="r2",
        split="split",
        protocol="marble",
        chunks=Chunks(5.0, most_s=30.0),
        training={"plateau": 5, "patience": 20},
        measures="how arousing and how pleasant crowds found a piece, the mean of both R²",
        licence=CORPORA["emomusic"].licence,
        citation="Soleymani et al. 2013, 1000 songs for emotional analysis of music, CrowdMM",
    ),
    MusicTask(
        **_NSYNTH,
        name="nsynth-instrument",
        target="instrument_family",
        measures="which of eleven families of instruments a single note is from, by instruments unheard in training",
    ),
    MusicTask(
        **_NSYNTH,
        name="nsynth-pitch",
        target="pitch",
        measures="the MIDI number of a single note, of instruments unheard in training",
    ),
    MusicTask(
        **_VOCALSET,
        name="vocalset-technique",
        target="technique",
        unit="singer",
        training={"plateau": 5},
        measures="which of ten singing techniques 3 s are, by singers unheard in training",
        leaks="only five singers in test",
    ),
    MusicTask(
        **_VOCALSET,
        name="vocalset-singer",
        target="singer",
        column="singer_split",
        unit="track",
        training={"plateau": 5, "patience": 20},
        measures="which of twenty singers sings 3 s",
    ),
    MusicTask(
        **_JAMENDO,
        name="jamendo-instrument",
        target="instrument",
        measures="which of forty instruments artists tagged a track with, by artists unheard in training",
    ),
    MusicTask(
        **_JAMENDO,
        name="jamendo-mood",
        target="moodtheme",
        measures="which of 56 moods and themes artists tagged a track with, by artists unheard in training",
    ),
    MusicTask(
        **_JAMENDO,
        name="jamendo-genre",
        target="genre",
        measures="which of 87 genres artists tagged a track with, by artists unheard in training",
    ),
    MusicTask(
        **_JAMENDO,
        name="jamendo-top50",
        target="top50tags",
        measures="which of the fifty commonest tags of all kinds a track has, by artists unheard in training",
    ),
    MusicTask(
        name="gtzan-beats",
        corpus="gtzan",
        target="beats",
        kind="classes",
        level="frame",
        metric="beat_f1_mean",
        split="split",
        frames=50_000,
        protocol="marble",
        measures="where the beats of 30 s of music are, within 70 ms; downbeats are told beside them",
        licence=CORPORA["gtzan"].licence,
        citation="Marchand, Fresnel and Peeters 2015, GTZAN-Rhythm: extending the GTZAN test-set with beat, downbeat "
        "and swing annotations, ISMIR late-breaking",
    ),
)
