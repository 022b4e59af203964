"""NOSS, the non-semantic speech benchmark, and its tasks learned one speaker at a time.

Shor et al. 2020, arXiv:2002.12764; the later tasks are those of FRILL (arXiv:2011.04609). Splits and estimators are as
in their published code; its VoxCeleb is a subset that was never named, so that nobody's scores on it compare.
"""

from __future__ import annotations

from dataclasses import replace

from auricle.evaluation.tasks.task import Task

NOSS = (
    Task(
        name="noss-voxforge",
        corpus="voxforge",
        target="language",
        kind="classes",
        column="noss_split",
        unit="speaker",
        speaker="speaker",
        protocol="noss",
        measures="which of six languages is spoken, by people unheard in training",
        licence="GPL 3.0",
        citation="MacLean et al., VoxForge, voxforge.org",
        leaks="a language's recordings may share microphones; anonymous speakers count as one",
    ),
    Task(
        name="noss-voxceleb1",
        corpus="voxceleb1",
        target="speaker",
        kind="classes",
        split="split",
        protocol="noss",
        measures="who of 1,251 celebrities is speaking",
        licence="CC BY 4.0",
        citation="Nagrani et al. 2017, VoxCeleb: a large-scale speaker identification dataset, Interspeech",
        leaks="all speakers are in every part, by design",
    ),
    Task(
        name="noss-speech-commands",
        corpus="speech_commands_v2",
        target="keyword",
        kind="classes",
        split="split",
        speaker="speaker",
        protocol="noss",
        measures="which of ten commands is said, another word, or none",
        licence="CC BY 4.0",
        citation="Warden 2018, Speech Commands, arXiv:1804.03209",
    ),
    Task(
        name="noss-crema-d",
        corpus="crema_d",
        target="emotion",
        kind="classes",
        column="noss_split",
        unit="speaker",
        speaker="speaker",
        protocol="noss",
        measures="which of six emotions is acted, by people unheard in training",
        licence="ODbL 1.0",
        citation="Cao et al. 2014, CREMA-D, IEEE Transactions on Affective Computing",
        leaks="all say the same twelve sentences",
    ),
    Task(
        name="noss-savee",
        corpus="savee",
        target="emotion",
        kind="classes",
        column="noss_split",
        speaker="speaker",
        protocol="noss",
        measures="which of seven emotions is acted, by one man unheard in training",
        licence="research only",
        citation="Haq and Jackson 2009, Speaker-dependent audio-visual emotion recognition, AVSP",
        leaks="two speakers in train, one on dev, one on test: the interval speaks of clips, not of other people",
    ),
    Task(
        name="noss-dementiabank",
        corpus="dementiabank",
        target="diagnosis",
        kind="classes",
        column="noss_split",
        unit="speaker",
        speaker="speaker",
        protocol="noss",
        measures="whether a person who describes a picture has dementia",
        licence="members of DementiaBank only",
        citation="Becker et al. 1994, The natural history of Alzheimer's disease, Archives of Neurology",
        leaks="the interviewer is heard too; the groups differ in age",
    ),
    Task(
        name="noss-mask",
        corpus="mask",
        target="mask",
        kind="classes",
        metric="balanced_accuracy",
        split="split",
        protocol="noss",
        measures="whether the speaker wears a surgical mask",
        licence="research only",
        citation="Schuller et al. 2020, the Interspeech 2020 ComParE challenge",
        leaks="seconds of one recording stand beside each other in a part",
    ),
    Task(
        name="noss-esc50-human",
        corpus="esc50",
        options={"human": True},
        target="category",
        kind="classes",
        split="folds",
        unit="source",
        protocol="noss",
        measures="which of ten sounds that people make",
        licence="CC BY-NC 3.0",
        citation="Piczak 2015, ESC: dataset for environmental sound classification, ACM Multimedia",
    ),
)
"""The six tasks, and two later ones."""

_LEARNED_ALONE = {
    "noss-speech-commands": "which of ten commands is said, another word, or none",
    "noss-crema-d": "which of six emotions is acted",
    "noss-savee": "which of seven emotions is acted",
}
NOSS_PERSONAL = tuple(
    replace(
        record,
        name=f"{record.name}-personal",
        measures=f"{_LEARNED_ALONE[record.name]}, learned from the speaker's own clips",
        column=None,
        split="auto",
        unit=None,
        personal=True,
        leaks="a speaker's clips share microphone and room",
    )
    for record in NOSS
    if record.name in _LEARNED_ALONE
)
"""One speaker at a time. Which clips the paper trains and tests on is not published; `Task.personal` draws its own."""
