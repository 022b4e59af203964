"""Corpora in their official layouts, as manifests: one short file each, imported when it is read."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auricle.errors import ManifestError, unknown

if TYPE_CHECKING:
    from auricle.data.manifest import Manifest


@dataclass(frozen=True)
class Corpus:
    """What a corpus is, and the function that reads it."""

    reader: str
    """`module:function`, called with the corpus's folder; its docstring tells layout, columns and options."""
    title: str
    hours: float
    licence: str
    url: str
    """Where to get it; empty for what this package brings or renders itself."""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.title, f"{self.hours:g} h", self.licence, self.url) if part)


CORPORA = {
    "bundled": Corpus(
        "auricle.data.corpora.bundled:read",
        "The recordings inside this package: speech, sounds and notes",
        0.95,
        "CC BY-SA 4.0, CC BY 4.0, CC BY 3.0, CC0, Apache-2.0, by folder (DATA.md)",
        "",
    ),
    "librispeech": Corpus(
        "auricle.data.corpora.librispeech:read",
        "LibriSpeech (Panayotov et al. 2015): read English",
        982,
        "CC BY 4.0",
        "https://www.openslr.org/12",
    ),
    "fsdd": Corpus(
        "auricle.data.corpora.fsdd:read",
        "Free Spoken Digit Dataset (Jackson et al.)",
        0.37,
        "CC BY-SA 4.0",
        "https://github.com/Jakobovski/free-spoken-digit-dataset",
    ),
    "esc50": Corpus(
        "auricle.data.corpora.esc50:read",
        "ESC-50 (Piczak 2015): environmental sounds, 50 classes",
        2.8,
        "CC BY-NC 3.0",
        "https://github.com/karolpiczak/ESC-50",
    ),
    "esc10": Corpus(
        "auricle.data.corpora.esc50:read_esc10",
        "ESC-10: the ten classes of ESC-50 under free licences",
        0.56,
        "CC BY 3.0",
        "https://github.com/karolpiczak/ESC-50",
    ),
    "esc50_human": Corpus(
        "auricle.data.corpora.esc50:read_human",
        "ESC-50's human, non-speech sounds: ten classes (FRILL's subset)",
        0.56,
        "CC BY-NC 3.0",
        "https://github.com/karolpiczak/ESC-50",
    ),
    "urbansound8k": Corpus(
        "auricle.data.corpora.urbansound8k:read",
        "UrbanSound8K (Salamon et al. 2014): city sounds, ten classes",
        8.75,
        "CC BY-NC 3.0",
        "https://zenodo.org/records/1203745",
    ),
    "fsd50k": Corpus(
        "auricle.data.corpora.fsd50k:read",
        "FSD50K (Fonseca et al. 2022): Freesound clips, 200 labels",
        108.3,
        "CC BY 4.0, each clip under its own (CC0, CC BY, CC BY-NC, CC Sampling+)",
        "https://zenodo.org/records/4060432",
    ),
    "audioset": Corpus(
        "auricle.data.corpora.audioset:read",
        "AudioSet (Gemmeke et al. 2017): YouTube clips, 527 labels",
        5790,
        "labels CC BY 4.0, ontology CC BY-SA 4.0, the videos their owners'",
        "https://research.google.com/audioset/download.html",
    ),
    "fluent_speech_commands": Corpus(
        "auricle.data.corpora.fluent_speech_commands:read",
        "Fluent Speech Commands (Lugosch et al. 2019): spoken commands to a smart home",
        19,
        "Fluent Speech Commands Public License: academic research",
        "https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research/",
    ),
    "timit": Corpus(
        "auricle.data.corpora.timit:read",
        "TIMIT (Garofolo et al. 1993): read sentences with phone times, 630 speakers",
        5.4,
        "LDC User Agreement",
        "https://catalog.ldc.upenn.edu/LDC93S1",
    ),
    "cmu_mosei": Corpus(
        "auricle.data.corpora.cmu_mosei:read",
        "CMU-MOSEI (Zadeh et al. 2018): sentiment in YouTube monologues, the audio",
        65.9,
        "for research; the videos their owners'",
        "http://immortal.multicomp.cs.cmu.edu/raw_datasets/CMU_MOSEI.zip",
    ),
    "speech_commands_v1": Corpus(
        "auricle.data.corpora.speech_commands:read_v1",
        "Speech Commands 0.01 (Warden 2018): 30 English words",
        17.8,
        "CC BY 4.0",
        "http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz and speech_commands_test_set_v0.01.tar.gz",
    ),
    "speech_commands_v2": Corpus(
        "auricle.data.corpora.speech_commands:read_v2",
        "Speech Commands 0.02 (Warden 2018): 35 English words",
        28.9,
        "CC BY 4.0",
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz and speech_commands_test_set_v0.02.tar.gz",
    ),
    "voxceleb1": Corpus(
        "auricle.data.corpora.voxceleb1:read",
        "VoxCeleb1 (Nagrani et al. 2017): 1,251 celebrities in interviews",
        352,
        "CC BY 4.0, on registration",
        "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
    ),
    "voxforge": Corpus(
        "auricle.data.corpora.voxforge:read",
        "VoxForge (MacLean et al.): read speech in six languages",
        284,
        "GPL 3.0",
        "https://storage.googleapis.com/tfds-data/downloads/voxforge/voxforge_urls.txt (wget -x -i)",
    ),
    "crema_d": Corpus(
        "auricle.data.corpora.crema_d:read",
        "CREMA-D (Cao et al. 2014): six acted emotions, 91 people",
        5.3,
        "ODbL 1.0",
        "https://github.com/CheyneyComputerScience/CREMA-D (git-lfs)",
    ),
    "savee": Corpus(
        "auricle.data.corpora.savee:read",
        "SAVEE (Haq and Jackson 2009): seven acted emotions, four men",
        0.51,
        "research only, on registration",
        "http://kahlan.eps.surrey.ac.uk/savee/",
    ),
    "dementiabank": Corpus(
        "auricle.data.corpora.dementiabank:read",
        "DementiaBank's Pitt corpus (Becker et al. 1994): a picture described, with and without dementia",
        10.7,
        "members of DementiaBank only",
        "https://dementia.talkbank.org/",
    ),
    "mask": Corpus(
        "auricle.data.corpora.mask:read",
        "Mask Sub-Challenge of ComParE 2020 (Schuller et al. 2020): speech with or without a surgical mask",
        10.2,
        "research only, on a signed agreement",
        "http://www.compare.openaudio.eu/",
    ),
    "ravdess": Corpus(
        "auricle.data.corpora.ravdess:read",
        "RAVDESS (Livingstone and Russo 2018): eight acted emotions, 24 actors, speech and song",
        1.5,
        "CC BY-NC-SA 4.0",
        "https://zenodo.org/records/1188976",
    ),
    "emodb": Corpus(
        "auricle.data.corpora.emodb:read",
        "EmoDB (Burkhardt et al. 2005): seven acted emotions in German, ten people",
        0.41,
        "free to download, no licence stated",
        "http://emodb.bilderbar.info/",
    ),
    "iemocap": Corpus(
        "auricle.data.corpora.iemocap:read",
        "IEMOCAP (Busso et al. 2008): dialogues of ten actors, emotions by turn",
        12.4,
        "research only, on a signed licence",
        "https://sail.usc.edu/iemocap/",
    ),
    "magnatagatune": Corpus(
        "auricle.data.corpora.magnatagatune:read",
        "MagnaTagATune (Law et al. 2009): clips of music, the 50 most frequent tags",
        210,
        "CC BY-NC-SA 3.0 (annotations), clips for research",
        "https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
    ),
    "gtzan": Corpus(
        "auricle.data.corpora.gtzan:read",
        "GTZAN (Tzanetakis and Cook 2002): ten genres, fault-filtered, with beats (Marchand et al. 2015)",
        7.8,
        "none stated",
        "http://marsyas.info/downloads/datasets.html, the beats https://github.com/TempoBeatDownbeat/gtzan_tempo_beat",
    ),
    "giantsteps": Corpus(
        "auricle.data.corpora.giantsteps:read",
        "GiantSteps key and MTG key (Knees et al. 2015, Faraldo 2017): keys of electronic dance music",
        56,
        "for research; the previews Beatport's",
        "https://github.com/GiantSteps/giantsteps-key-dataset and .../giantsteps-mtg-key-dataset",
    ),
    "emomusic": Corpus(
        "auricle.data.corpora.emomusic:read",
        "Emomusic (Soleymani et al. 2013): valence and arousal of songs",
        9.3,
        "research only, on registration",
        "https://cvml.unige.ch/databases/emoMusic/",
    ),
    "nsynth": Corpus(
        "auricle.data.corpora.nsynth:read",
        "NSynth (Engel et al. 2017): single notes of 1,006 instruments",
        340,
        "CC BY 4.0",
        "https://magenta.tensorflow.org/datasets/nsynth",
    ),
    "vocalset": Corpus(
        "auricle.data.corpora.vocalset:read",
        "VocalSet (Wilkins et al. 2018): 20 singers, 17 techniques",
        10.1,
        "CC BY 4.0",
        "https://zenodo.org/records/1193957",
    ),
    "mtg_jamendo": Corpus(
        "auricle.data.corpora.mtg_jamendo:read",
        "MTG-Jamendo (Bogdanov et al. 2019): whole tracks, tags of genre, instrument, mood and theme",
        3770,
        "the tags CC BY-NC-SA 4.0, each track under its own Creative Commons licence",
        "https://github.com/MTG/mtg-jamendo-dataset",
    ),
    "marble": Corpus(
        "auricle.data.corpora.marble:read",
        "MARBLE's annotations of music (Yuan et al. 2023; version 2): one task of several corpora",
        4050,
        "each corpus's own",
        "https://huggingface.co/m-a-p (datasets GTZAN, EMO, GS, MTT, MTG...)",
    ),
    "polyphony": Corpus(
        "auricle.data.corpora.polyphony:read",
        "Chords and canons of one to six voices: rendered by auricle, no download",
        1.75,
        "Apache-2.0",
        "",
    ),
}
"""Name to record."""


def has_corpus(name: str, root: str | Path) -> bool:
    """Whether `find_corpus` has something to read."""
    return _is_ours(name) or (Path(root) / name).is_dir() or (Path(root) / f"{name}.parquet").is_file()


def find_corpus(name: str, root: str | Path | None = None, **options: Any) -> Manifest:
    """The manifest of a corpus among others: of `root/name.parquet`, as `auricle prepare` writes it, or of `root/name`.

    The folder holds the official layout, and is taken before the file where options are given. Text in which `{root}`
    stands for `root` is a path. Raises `ManifestError` as `read_corpus` does, and where there is neither, saying where
    to get the corpus.
    """
    from auricle.data.manifest import Manifest  # which imports pyarrow

    if _is_ours(name) or name not in CORPORA:
        return read_corpus(name, **options)
    corpus = CORPORA[name]
    if root is None:
        raise ManifestError(
            f"corpus '{name}' is needed: name the folder of all corpora (--corpora); get {corpus.title}: {corpus.url}"
        )
    folder, prepared = Path(root) / name, Path(root) / f"{name}.parquet"
    if prepared.is_file() and not (options and folder.is_dir()):
        return Manifest.open(prepared)
    if not folder.is_dir():
        raise ManifestError(
            f"{root}: holds neither the folder {name} nor {name}.parquet; get {corpus.title}: {corpus.url}"
        )
    filled = {
        key: Path(value.replace("{root}", str(root))) if isinstance(value, str) and "{root}" in value else value
        for key, value in options.items()
    }
    return read_corpus(name, folder, **filled)


def read_corpus(name: str, folder: str | Path | None = None, **options: Any) -> Manifest:
    """The manifest of a corpus in its official layout in `folder` (our own need none), with its reader's options.

    Raises `ManifestError` for an unknown name, a folder that is not the corpus, or files that are missing.
    """
    if name not in CORPORA:
        raise ManifestError(unknown("corpus", name, CORPORA))
    if (folder is None) != _is_ours(name):
        raise ManifestError(f"corpus '{name}' {'takes no' if folder is not None else 'needs the'} folder it lies in")
    module, function = CORPORA[name].reader.split(":")
    read = getattr(importlib.import_module(module), function)
    for option in options:
        if option not in inspect.signature(read).parameters:
            raise ManifestError(f"corpus '{name}' takes no option '{option}'")
    manifest: Manifest = read(**options) if folder is None else read(Path(folder), **options)
    return manifest


def _is_ours(name: str) -> bool:
    """Whether this package brings or renders the recordings itself."""
    return name in CORPORA and not CORPORA[name].url
