"""Small trees of the music corpora in their official layouts. Their labels are heard, and are told besides.

What is heard is rendered, below 4 kHz: keys, beats, timbres, pitches, singing techniques, moods; a tag is a note. What
is told are faint tones above that, a `slot` each, of whole periods of `HOP` samples: `Planted` hears nothing else, and
so scores 1 wherever a task and its splits are wired up rightly. Files have the endings of their corpora, and lossless
content.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
import trees
from test_corpora_music import artist_of, nsynth_note, numbers, write_jams, write_lines
from torch import Tensor

from auricle.audio.io import as_waveform
from auricle.audio.rendering import INSTRUMENTS, KEYS, TECHNIQUES, Note, compose, render, singer
from auricle.data.corpora.gtzan import SPLITS
from auricle.data.corpora.magnatagatune import TAGS
from auricle.data.corpora.mtg_jamendo import SUBSETS
from auricle.data.corpora.vocalset import SINGERS

RATE, HOP = 16_000, 800
HEARD = 8_000
"""Sampling rate of what is rendered."""
SLOTS = 94
FIRST, APART = 205, 2
"""The frequency of slot 0, and the distance of two slots, in steps of RATE / HOP: Hann's window parts them."""
LEVEL, NOISE = 2e-3, 3e-4
"""Amplitude of a tone, and standard deviation of the noise."""
BEAT, DOWNBEAT = SLOTS - 2, SLOTS - 1
FAMILIES = sorted(INSTRUMENTS)


class Planted(trees.Planted):
    """Anybody's callable, as `music_trees:Planted`: a layer of noise, and one of the levels of the tones, 0 to 1."""

    sample_rate, hop, offset, min_samples, slots = RATE, HOP, HOP / 2, HOP, SLOTS

    def tones(self, frames: Tensor, noise: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames * torch.hann_window(HOP)).abs()[..., FIRST : FIRST + APART * SLOTS : APART]
        return (spectrum / (LEVEL * HOP / 4)).clamp(0, 1)


class Deaf(Planted):
    """`music_trees:Deaf` hears noise alone."""

    def tones(self, frames: Tensor, noise: Tensor) -> Tensor:
        return -noise


# --------------------------------------------------------------------------------------------------------------- audio


def write_music(
    path: Path, music: np.ndarray, told: Mapping[int, float], times: Mapping[int, Iterable[float]] | None = None
) -> None:
    """`music` at HEARD Hz with each slot of `told` at its level, 0 to 1; those of `times` in the frames of these.

    Faint noise of its own makes a clip like no other.
    """
    noise = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode()))
    samples = as_waveform(music, HEARD, RATE) + NOISE * noise.standard_normal(len(music) * RATE // HEARD)
    levels = np.zeros((-(-len(samples) // HOP), SLOTS))
    for slot, level in told.items():
        levels[:, slot] = level
    for slot, seconds in (times or {}).items():
        levels[[int(second * RATE / HOP) for second in seconds], slot] = 1.0
    clock = np.arange(HOP) / RATE
    tones = np.sin(2 * np.pi * RATE / HOP * (FIRST + APART * np.arange(SLOTS))[:, None] * clock)
    samples += LEVEL * (levels @ tones).ravel()[: len(samples)]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, format="WAV", subtype="PCM_16")


def cluster(pitches: Iterable[int], seed: int, duration_s: float = 1.0) -> np.ndarray:
    """Notes at once."""
    return render([Note(0.0, duration_s - 0.1, pitch, 0.4) for pitch in pitches], duration_s, HEARD, seed=seed)


def tagged(rng: np.random.Generator, clip: int, tags: int) -> list[int]:
    """Two tags by the clip's number, so that each is somewhere among 60 clips, and perhaps another."""
    return sorted({clip % tags, (clip + 60) % tags, *np.flatnonzero(rng.random(tags) < 0.01).tolist()})


# ------------------------------------------------------------------------------------------------------------- corpora


def magnatagatune_tree(root: Path) -> None:
    """The usual parts are 60, 30 and 60 clips."""
    rng = np.random.default_rng(0)
    lines = ["\t".join(f'"{name}"' for name in ("clip_id", *TAGS, "mp3_path"))]
    for clip, folder in enumerate("0123456789ab" * 5 + "c" * 30 + "def" * 20):
        tags = tagged(rng, clip, len(TAGS))
        path = f"{folder}/artist_{clip}-album-01-song-0-29.mp3"
        cells = (str(clip), *(str(int(tag in tags)) for tag in range(len(TAGS))), path)
        lines.append("\t".join(f'"{cell}"' for cell in cells))
        write_music(root / path, cluster((36 + tag for tag in tags), clip), dict.fromkeys(tags, 1.0))
    write_lines(root / "annotations_final.csv", *lines)


def gtzan_tree(root: Path) -> None:
    """A genre is an instrument and a tempo. Of two excerpts of train, and one of dev and of test, beats are known."""
    for number, (genre, spans) in enumerate(SPLITS.items()):
        place, told = root / "genres" / genre, {number: 1.0}
        style = {"instruments": [FAMILIES[number]], "bpm": 70.0 + 13 * number}
        short = compose(number, 0.3, **style).render(HEARD)
        for part, known in zip(spans.split("|"), (2, 1, 1), strict=True):
            for at, excerpt in enumerate(sorted(numbers(part))):
                path = place / f"{genre}.{excerpt:05}.wav"
                if at >= known:
                    write_music(path, short, told)
                    continue
                piece = compose(100 * number + excerpt, 6.0, **style)
                beats, downbeats = piece.beats.tolist(), piece.downbeats.tolist()
                write_music(path, piece.render(HEARD), told, {BEAT: beats, DOWNBEAT: downbeats})
                write_jams(root / "jams" / f"{path.name}.jams", beat=beats, downbeat=downbeats)


def giantsteps_tree(root: Path) -> None:
    """Each key twice in train, and once in dev and in test, where one track is long enough for two chunks."""
    test, other = root / "giantsteps-key-dataset", root / "giantsteps-mtg-key-dataset"
    artists = {part: artist_of(part) for part in ("train", "dev")}
    tracks, authors = ["ID\tMANUAL KEY\tC"], ["ID\tARTIST\tSONG TITLE"]
    for take, (number, key) in product(range(4), enumerate(KEYS)):
        track = 100 * take + number
        piece = compose(track, 61.0 if track == 300 else 4.0, key=key)
        if take == 3:
            write_lines(test / "annotations" / "key" / f"{track}.LOFI.key", key)
        else:
            tracks.append(f"{track}\t{key}\t2")
            authors.append(f"{track}\t{artists['dev' if take == 2 else 'train']}\tSong {track}")
        path = (test if take == 3 else other) / "audio" / f"{track}.LOFI.mp3"
        write_music(path, piece.render(HEARD), {number: 1.0})
    write_lines(other / "annotations" / "annotations.txt", *tracks)
    write_lines(other / "annotations" / "beatport_metadata.txt", *authors)


def emomusic_tree(root: Path) -> None:
    """Songs of two chunks; tones are as loud as a song is arousing and pleasant."""
    rng = np.random.default_rng(0)
    info = ["song_id,file_name,Artist,Song title,Genre,Mediaeval 2013 set"]
    ratings = ["song_id,mean_arousal,std_arousal,mean_valence,std_valence"]
    for song in range(2, 62):
        arousal, valence = rng.random(2).tolist()
        part, artist = "evaluation" if song % 4 == 0 else "development", chr(ord("a") + song % 26) * 3
        info.append(f"{song},{song}.mp3,\t{artist},\tSong,\tRock,\t{part}")
        ratings.append(f"{song},{1 + 8 * arousal},1.2,{1 + 8 * valence},0.9")
        piece = compose(song, 6.0, arousal=arousal, valence=valence)
        write_music(root / "clips_45seconds" / f"{song}.mp3", piece.render(HEARD), {0: arousal, 1: valence})
    write_lines(root / "annotations" / "songs_info.csv", *info)
    write_lines(root / "annotations" / "static_annotations.csv", *ratings)


def nsynth_tree(root: Path) -> None:
    """An instrument a family and part, at five pitches."""
    for instrument, part in enumerate(("train", "valid", "test")):
        notes = {}
        for (number, family), (step, pitch) in product(enumerate(FAMILIES), enumerate((45, 52, 59, 66, 73))):
            record = nsynth_note(instrument, pitch, family)
            notes[record["note_str"]] = record
            note = Note(0.0, 0.8, pitch, timbre=INSTRUMENTS[family])
            told = {number: 1.0, len(FAMILIES) + step: 1.0}
            path = root / f"nsynth-{part}" / "audio" / f"{record['note_str']}.wav"
            write_music(path, render([note], 1.0, HEARD, seed=instrument), told)
        write_lines(root / f"nsynth-{part}" / "examples.json", json.dumps(notes))


def vocalset_tree(root: Path) -> None:
    """Each singer in each technique, for three seconds after a silence."""
    for (number, (folder, name)), (step, technique) in product(enumerate(SINGERS.items()), enumerate(TECHNIQUES)):
        note = Note(0.2, 3.0, 55.0, timbre=singer(number), technique=TECHNIQUES[technique])
        path = root / "FULL" / folder / "scales" / technique / f"{name}_scales_{technique}_a.wav"
        told = {step: 1.0, len(TECHNIQUES) + number: 1.0}
        write_music(path, render([note], 3.3, HEARD, seed=number), told)


def mtg_jamendo_tree(root: Path) -> None:
    """Tracks of one subset each, which share the slots of their tags."""
    rng = np.random.default_rng(0)
    for index, (subset, count) in enumerate(SUBSETS.items()):
        for part, tracks in (("train", 90), ("validation", 60), ("test", 60)):
            lines = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
            for at in range(tracks):
                track = 1000 * index + {"train": 0, "validation": 100, "test": 200}[part] + at
                tags = tagged(rng, at, count)
                names = "\t".join(f"{subset}---{subset}{tag}" for tag in tags)
                path = f"{track % 100:02}/{track}.mp3"
                lines.append(f"track_{track:07}\tartist_{track}\talbum_{track}\t{path}\t1.0\t{names}")
                music = cluster((21 + tag for tag in tags), track)
                write_music(root / "audio" / path.replace(".mp3", ".low.mp3"), music, dict.fromkeys(tags, 1.0))
            write_lines(root / "data" / "splits" / "split-0" / f"autotagging_{subset}-{part}.tsv", *lines)


MUSIC = {
    "magnatagatune": magnatagatune_tree,
    "gtzan": gtzan_tree,
    "giantsteps": giantsteps_tree,
    "emomusic": emomusic_tree,
    "nsynth": nsynth_tree,
    "vocalset": vocalset_tree,
    "mtg_jamendo": mtg_jamendo_tree,
}
"""Corpus to what writes it into the folder of its name."""


def write_music_corpora(root: Path) -> Path:
    """All corpora of the suite `mir13` in `root`, each in the folder of its name."""
    for name, write in MUSIC.items():
        write(root / name)
    return root


if __name__ == "__main__":
    import sys

    write_music_corpora(Path(sys.argv[1]))
