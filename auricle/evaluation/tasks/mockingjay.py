"""Mockingjay's three tasks (Liu et al. 2020, arXiv:1910.12638): phones, of ever fewer labels; speakers; sentiment.

Phones are those of the split that its authors' later code and README use, from the CPC authors: 41 of them, a hundred
hours. Speaker recognition keeps the authors' rule, but their own list of utterances cannot be had again.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from auricle.evaluation.tasks.task import Task

HEADS = {
    "linear": "by a linear layer",
    "1hidden": "by one hidden layer",
    "mlp": "by two hidden layers, as in the paper's code",
}
SHARES = (1.0, 0.1, 0.01, 0.001)
LEVELS: dict[str, Literal["clip", "frame"]] = {"utterance": "clip", "frame": "frame"}

_librispeech = partial(
    Task,
    corpus="librispeech",
    kind="classes",
    licence="CC BY 4.0",
    citation="Panayotov et al. 2015, LibriSpeech: an ASR corpus based on public domain audio books, ICASSP",
)

MOCKINGJAY = (
    *(
        _librispeech(
            name=f"mockingjay-phones-{head}" + (f"-{100 * share:g}%" if share < 1 else ""),
            options={"cpc": "{root}/cpc_split"},
            target="phones",
            level="frame",
            split="split",
            unit="speaker",
            labels=share,
            frames=300_000,
            protocol=f"mockingjay-{head}",
            measures=f"which of 41 phones is spoken, {how}, from {100 * share:g} % of the training utterances",
            leaks="the split is by utterance: speakers are in train and test",
        )
        for head, how in HEADS.items()
        for share in SHARES
    ),
    *(
        _librispeech(
            name=f"mockingjay-speaker-{level}",
            options={"mockingjay": True},
            target="speaker",
            level=LEVELS[level],
            column="mockingjay_split",
            protocol="mockingjay-linear",
            measures=f"who is reading, by {level}",
            leaks="utterances of one chapter, read in one sitting, are in train and test",
        )
        for level in LEVELS
    ),
    Task(
        name="mockingjay-sentiment",
        corpus="cmu_mosei",
        options={"standard": False},
        target="sentiment",
        kind="classes",
        column="mockingjay_split",
        unit="video",
        protocol="mockingjay-linear",
        measures="whether what is said, and how, is positive or negative, in videos unheard in training",
        licence="for research; the videos are their owners'",
        citation="Zadeh et al. 2018, CMU-MOSEI, ACL",
    ),
)
