"""The six tasks of Audio-MAE (Huang et al. 2022, arXiv:2207.06405), by probes; `auricle finetune` trains encoders."""

from __future__ import annotations

from functools import partial

from auricle.evaluation.tasks.task import Task

_audioset = partial(
    Task,
    corpus="audioset",
    target="labels",
    kind="labels",
    split="split",
    licence="labels CC BY 4.0; the videos are their owners'",
    citation="Gemmeke et al. 2017, Audio Set: an ontology and human-labeled dataset for audio events, ICASSP",
    leaks="videos disappear: every copy holds other clips; dev is cut out of train",
)
_commands = partial(
    Task,
    kind="classes",
    split="split",
    licence="CC BY 4.0",
    citation="Warden 2018, Speech Commands, arXiv:1804.03209",
)

AUDIO_MAE = (
    _audioset(
        name="audioset-20k",
        options={"subsets": ("balanced_train", "eval")},
        measures="which of 527 sounds are heard, learned from 22 thousand clips",
    ),
    _audioset(name="audioset-2m", measures="which of 527 sounds are heard, learned from two million clips"),
    Task(
        name="esc50",
        corpus="esc50",
        target="category",
        kind="classes",
        split="folds",
        unit="source",
        measures="which of fifty everyday sounds is heard",
        licence="CC BY-NC 3.0",
        citation="Piczak 2015, ESC: dataset for environmental sound classification, ACM Multimedia",
    ),
    _commands(
        name="speech-commands-v1",
        corpus="speech_commands_v1",
        target="keyword",
        measures="which of ten commands is said, another word, or none",
    ),
    _commands(
        name="speech-commands-v2",
        corpus="speech_commands_v2",
        target="word",
        measures="which of 35 words is said",
        unit="speaker",
    ),
    Task(
        name="voxceleb1-speaker",
        corpus="voxceleb1",
        target="speaker",
        kind="classes",
        split="split",
        unit="video",
        measures="who of 1,251 celebrities is speaking",
        licence="CC BY 4.0",
        citation="Nagrani et al. 2017, VoxCeleb: a large-scale speaker identification dataset, Interspeech",
    ),
)
