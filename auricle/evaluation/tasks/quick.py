"""Tasks on the recordings that ship with the package: minutes of audio, seconds to run, wide intervals."""

from __future__ import annotations

from auricle.evaluation.tasks.task import Task

QUICK = (
    Task(
        name="quick-phones",
        corpus="bundled",
        where={"corpus": "synth_phones"},
        target="phones",
        kind="classes",
        level="frame",
        split="split",
        measures="which phone is being spoken, every 10 ms, in voices unheard in training",
        licence="Apache-2.0",
        leaks="synthetic speech: each voice says a phone in few ways, so scores are higher than on people; two test "
        "voices, so the interval speaks of clips, not of other voices",
    ),
    Task(
        name="quick-speaker",
        corpus="bundled",
        where={"corpus": "speechocean762"},
        target="speaker",
        kind="classes",
        split="split",
        measures="who of 60 people is speaking",
        licence="CC BY 4.0",
        citation="Zhang et al. 2021, speechocean762: an open-source non-native English speech corpus, Interspeech",
        leaks="a person's recordings share microphone and room",
    ),
    Task(
        name="quick-digit",
        corpus="bundled",
        where={"corpus": "fsdd"},
        target="digit",
        kind="classes",
        split="split",
        measures="which digit is said, by four people heard in training",
        licence="CC BY-SA 4.0",
        citation="Jackson et al., Free Spoken Digit Dataset, github.com/Jakobovski/free-spoken-digit-dataset",
        leaks="the same four people in train and test, and each says a digit alike every time",
    ),
    Task(
        name="quick-keyword",
        corpus="bundled",
        where={"corpus": "wakewords"},
        target="keyword",
        kind="classes",
        split="split",
        measures="which of six wake words is said",
        licence="Apache-2.0",
        leaks="recordings of a word share speakers that the data do not name",
    ),
    Task(
        name="quick-sound",
        corpus="bundled",
        where={"corpus": "esc10"},
        target="category",
        kind="classes",
        split="split",
        unit="source",
        measures="which of ten everyday sounds is heard",
        licence="CC BY 3.0 and CC0, by clip",
        citation="Piczak 2015, ESC: dataset for environmental sound classification, ACM Multimedia",
    ),
    Task(
        name="quick-instrument",
        corpus="bundled",
        where={"corpus": "notes"},
        target="instrument",
        kind="classes",
        split="split",
        measures="which of twelve instruments plays a note",
        licence="Apache-2.0, rendered with an MIT sound font",
        leaks="rendered from one sound font: an instrument sounds alike in train and test",
    ),
)
