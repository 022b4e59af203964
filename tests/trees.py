"""Small trees of corpora in their official layouts, whose labels are planted in the audio, and encoders to hear them.

A clip is faint noise, and a pure tone for its class, its `slot`; a tone each where it has several. All tones are whole
periods of `HOP` samples, so that each is one bin of a frame's spectrum: `Planted` hears which tones there are, and so
scores 1 wherever a task and its splits are wired up rightly.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
from test_corpora_sound import write_segments
from test_corpora_speech import speech_commands, write_lines
from torch import Tensor

from auricle.data.corpora import crema_d as crema_d_reader
from auricle.data.corpora import savee as savee_reader
from auricle.data.corpora.esc50 import HUMAN
from auricle.data.corpora.speech_commands import COMMANDS, NOISES, WORDS
from auricle.encoders.base import Frames

RATE, HOP = 16_000, 160
SLOTS = 70
"""Tones there are, 100 Hz apart from 300 Hz on."""
SHORT = 16
"""Frames of most clips: fbank and mfcc need two or three."""


# ------------------------------------------------------------------------------------------------------------ encoders


class Planted:
    """Anybody's callable, as `trees:Planted`: one layer of noise, and one of 1 where a tone sounds, 0 elsewhere."""

    sample_rate, hop, offset, min_samples, pads_safely, slots = RATE, HOP, HOP / 2, HOP, True, SLOTS

    def __init__(self) -> None:
        self.heard: list[int] = []
        """Clips of each call."""

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        self.heard.append(len(waveforms))
        hop = self.hop
        frames = waveforms[:, : waveforms.shape[1] // hop * hop].unflatten(1, (-1, hop))  # (B, T, hop)
        noise = torch.sin(1e5 * frames[..., : self.slots])  # of a sample the last digits alone count
        return Frames([noise, self.tones(frames, noise)], torch.div(lengths, hop, rounding_mode="floor"))

    def tones(self, frames: Tensor, noise: Tensor) -> Tensor:
        """What layer 1 tells of frames (B, T, HOP)."""
        return (torch.fft.rfft(frames)[..., 3 : 3 + SLOTS].abs() > 2).float()


class Deaf(Planted):
    """`trees:Deaf` hears noise alone."""

    def tones(self, frames: Tensor, noise: Tensor) -> Tensor:
        return -noise


# --------------------------------------------------------------------------------------------------------------- audio


def sound(tones: Sequence[Iterable[int]], seed: int) -> np.ndarray:
    """A frame for each of `tones`, the slots that sound in it, over noise of that seed."""
    time = np.arange(len(tones) * HOP) / RATE
    samples = 0.005 * np.random.default_rng(seed).standard_normal(len(time))
    for number, slots in enumerate(tones):
        frame = slice(number * HOP, (number + 1) * HOP)
        for slot in slots:
            samples[frame] += 0.1 * np.sin(2 * np.pi * 100 * (3 + slot) * time[frame])
    return samples


def write_tones(path: Path, *slots: int, frames: int = SHORT) -> None:
    """A clip in which these tones sound from begin to end; noise is of its own."""
    write_frames(path, [slots] * frames)


def write_frames(path: Path, tones: Sequence[Iterable[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(tones, zlib.crc32("/".join(path.parts[-3:]).encode())), RATE)


# ------------------------------------------------------------------------------------------------------------- corpora


def speech_commands_tree(root: Path, version: str) -> None:
    """Words are told apart, silence by its having no tone. One speaker says each command, and "bed", four times, and
    a second one says each word of the test list.
    """
    speech_commands(root, version)
    words = sorted(WORDS[version])
    for command, take in product((*sorted(COMMANDS), "bed"), range(1, 4)):
        (root / command / f"0a7c2a8d_nohash_{take}.wav").touch()
    with (root / "testing_list.txt").open("a", encoding="utf-8") as file:
        for word in words:
            (root / word / "c0ffee01_nohash_0.wav").touch()
            file.write(f"{word}/c0ffee01_nohash_0.wav\n")
    archive = root.parent / f"speech_commands_test_set_{version}"
    for path in [*root.glob("*/*.wav"), *archive.glob("*/*.wav")]:
        word = path.name.split("_")[0] if path.parent.name == "_unknown_" else path.parent.name
        if word in words:
            write_tones(path, words.index(word))
        else:
            write_tones(path, frames=325 if path.stem in NOISES else 100)


def voxceleb1_tree(root: Path) -> None:
    """Five people in 22 videos each, of which twelve are train."""
    lines = []
    for (number, speaker), (video, part) in product(
        enumerate(("id10001", "id10269", "id10270", "id10309", "id11251")), enumerate(12 * "1" + 4 * "2" + 6 * "3")
    ):
        clip = f"{speaker}/video_{number}_{video}/00001.wav"
        lines.append(f"{part} {clip}")
        write_tones(root / "wav" / clip, number)
    write_lines(root / "iden_split.txt", *lines)


def voxforge_tree(root: Path) -> None:
    """Six people a language, who are shuffled together."""
    for (number, language), person, take in product(enumerate(("de", "en", "es", "fr", "it", "ru")), range(6), (1, 2)):
        archive = f"{language}{person}-20110102-abc"
        write_tones(root / language / archive / "wav" / f"a000{take}.wav", number)


def crema_d_tree(root: Path) -> None:
    """An emotion a person; of the first one all, three times."""
    emotions = list(crema_d_reader.EMOTIONS)
    for number, person in enumerate(crema_d_reader.SPEAKERS):
        write_tones(root / "AudioWAV" / f"{person}_IEO_{emotions[number % 6]}_HI.wav", number % 6)
    for (number, emotion), sentence in product(enumerate(emotions), ("TIE", "IOM", "IWW")):
        write_tones(root / "AudioWAV" / f"1001_{sentence}_{emotion}_XX.wav", number)


def savee_tree(root: Path) -> None:
    for speaker, (number, (code, count)) in product(savee_reader.SPEAKERS, enumerate(savee_reader.SENTENCES.items())):
        for take in range(1, count + 1):
            write_tones(root / "AudioData" / speaker / f"{code}{take:02}.wav", number, frames=8)


def dementiabank_tree(root: Path) -> None:
    for (number, group), person, visit in product(enumerate(("Control", "Dementia")), range(12), range(2)):
        write_tones(root / "Pitt" / group / "cookie" / f"{100 * number + person:03}-{visit}.wav", number)


def mask_tree(root: Path) -> None:
    lines = ["file_name,label"]
    for part, (number, label), clip in product(("train", "devel", "test"), enumerate(("clear", "mask")), range(12)):
        name = f"{part}_{2 * clip + number:05}.wav"
        lines.append(f"{name},{label}")
        write_tones(root / "wav" / name, number)
    write_lines(root / "lab" / "labels.csv", *lines)


def esc50_tree(root: Path) -> None:
    """A clip a class and fold."""
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold, target in product(range(1, 6), range(50)):
        category = HUMAN[target - 20] if 20 <= target < 30 else f"sound_{target}"
        name = f"{fold}-{1000 * fold + target}-A-{target}.wav"
        lines.append(f"{name},{fold},{target},{category},{target < 10},{1000 * fold + target},A")
        write_tones(root / "audio" / name, target)
    write_lines(root / "meta" / "esc50.csv", *lines)


def audioset_tree(root: Path) -> None:
    """Five of the 527 classes, one or two a clip."""
    mids = [f"/m/{number}" for number in range(527)]
    classes = [f"{number},{mid},Sound {number}" for number, mid in enumerate(mids)]
    write_lines(root / "class_labels_indices.csv", "index,mid,display_name", *classes)
    for subset, count in (("balanced_train", 25), ("unbalanced_train", 20), ("eval", 20)):
        rows = []
        for clip in range(count):
            labels = sorted({clip % 5, clip // 5 % 5})
            name = f"{subset[:4]}_{clip:06}"
            rows.append(f'{name}, 30.000, 40.000, "{",".join(mids[label] for label in labels)}"')
            write_tones(root / subset / f"Y{name}.wav", *labels)
        write_segments(root / f"{subset}_segments.csv", *rows)


def cmu_mosei_tree(root: Path) -> None:
    """Forty videos, in each a positive and a negative second."""
    lines = [",file,index,start,end,label2a,label2b,label6,label7,split"]
    for video in range(40):
        first = video % 2
        for index, sign in enumerate((1, -1) if first else (-1, 1)):
            lines.append(f"{len(lines)},v{video:02},{index},{index}.0,{index + 1}.0,1,{sign},{sign},{sign},{video % 4}")
        tones = [[first]] * 100 + [[1 - first]] * 100
        write_frames(root / "Raw/Audio/Full/WAV_16000" / f"v{video:02}.wav", tones)
    write_lines(root / "CMU_MOSEI_Labels.csv", *lines)


def fluent_tree(root: Path) -> None:
    """Everybody has each intent four times."""
    intents = ["activate,lights,kitchen", "activate,lights,none", "deactivate,lights,none", "increase,volume,none"]
    for part, people in (("train", "abc"), ("valid", "de"), ("test", "fg")):
        lines = [",path,speakerId,transcription,action,object,location"]
        for speaker, (number, intent), take in product(people, enumerate(intents), range(4)):
            path = f"wavs/speakers/{speaker}/{part}-{speaker}-{number}-{take}.wav"
            lines.append(f"{len(lines) - 1},{path},{speaker},Words,{intent}")
            write_tones(root / path, number)
        write_lines(root / "data" / f"{part}_data.csv", *lines)


def iemocap_tree(root: Path) -> None:
    """Four turns a session and emotion, and one of which nobody agreed."""
    for session in range(1, 6):
        place, dialogue = root / f"Session{session}", f"Ses0{session}F_impro01"
        turns = [*product(enumerate(("neu", "exc", "sad", "ang")), range(4)), ((9, "xxx"), 0)]
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for turn, ((number, emotion), _) in enumerate(turns):
            name = f"{dialogue}_{'FM'[turn % 2]}{turn:03}"
            lines += [f"[{turn}.0000 - {turn + 1}.0000]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]", ""]
            write_tones(place / "sentences" / "wav" / dialogue / f"{name}.wav", number)
        write_lines(place / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", *lines)


LEXICON = {"AB": ("AA1", "B"), "BOOK": ("B", "UW0", "K"), "SACK": ("S", "AA1", "K"), "OOZE": ("UW0", "S")}
PHONES = ("AA1", "B", "K", "S", "UW0")
"""Their tones are slots 0 to 4; in the split of the CPC authors they are numbers 1 to 5, and silence is 0."""
VOICES = {"103": 20, "26": 21}
"""Speakers of train-clean-100, and the slots of their voices, which sound all the time. Others have none."""


def librispeech_tree(root: Path) -> None:
    """124 utterances of each of two speakers to train on, as many as Mockingjay's task asks for, and some by others.

    All say the same four words in any order, so that a single utterance has every phone. Beside the corpus lie the
    lists of the CPC split, and the lexicon.
    """
    rng, aligned = np.random.default_rng(0), []
    people = [("train-clean-100", name, 124) for name in VOICES]
    people += [("dev-clean", name, 5) for name in ("84", "174")]
    people += [("test-clean", name, 5) for name in ("61", "121", "237")]
    for subset, speaker, count in people:
        folder, lines = root / "LibriSpeech" / subset / speaker / "7", []
        for take in range(count):
            words = rng.permutation(list(LEXICON)).tolist()
            codes = [0]
            for phone in (phone for word in words for phone in LEXICON[word]):
                codes += [PHONES.index(phone) + 1] * int(rng.integers(2, 4)) + [0]
            voice = [VOICES[speaker]] if speaker in VOICES else []
            name = f"{speaker}-7-{take:04}"
            write_frames(folder / f"{name}.flac", [[code - 1] * (code > 0) + voice for code in codes])
            lines.append(f"{name} {' '.join(words)}")
            aligned += [f"{name} {' '.join(map(str, codes))}"] if voice else []
        write_lines(folder / f"{speaker}-7.trans.txt", *lines)
    write_lines(root / "LibriSpeech" / "SPEAKERS.TXT", "; the speakers", "103 | F | train-clean-100 | 25.05 | Savage")
    names = [line.split()[0] for line in aligned]
    split = root.parent / "cpc_split"
    write_lines(split / "train_split.txt", *(name for name in names if int(name[-2:]) % 4))
    write_lines(split / "test_split.txt", *(name for name in names if not int(name[-2:]) % 4))
    write_lines(split / "converted_aligned_phones.txt", *aligned)
    write_lines(
        root.parent / "librispeech-lexicon.txt", *(f"{word}\t{' '.join(phones)}" for word, phones in LEXICON.items())
    )


TREES = {
    "voxforge": voxforge_tree,
    "voxceleb1": voxceleb1_tree,
    "crema_d": crema_d_tree,
    "savee": savee_tree,
    "dementiabank": dementiabank_tree,
    "mask": mask_tree,
    "esc50": esc50_tree,
    "audioset": audioset_tree,
    "cmu_mosei": cmu_mosei_tree,
    "fluent_speech_commands": fluent_tree,
    "iemocap": iemocap_tree,
    "librispeech": librispeech_tree,
}
"""Corpus to what writes it into the folder of its name."""


def write_corpora(root: Path) -> Path:
    """All corpora of the suites in `root`, each in the folder of its name. Some 1,600 clips of 0.1 s and more."""
    for name, write in TREES.items():
        write(root / name)
    for number in (1, 2):
        version = f"v0.0{number}"
        speech_commands_tree(root / f"speech_commands_v{number}" / f"speech_commands_{version}", version)
    (root / "esc50_human").symlink_to(root / "esc50")
    return root


if __name__ == "__main__":
    import sys

    write_corpora(Path(sys.argv[1]))
