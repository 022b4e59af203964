"""Scores for one question: how much harder do pitch and key get to hear, the more voices sound at once?

A score is a tuple of voices, each a tuple of notes in a timbre of its own. More voices are the same score with voices
added, and what is asked has the same answer whatever their number, to be read off the pitches that sound.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from auricle.audio.rendering import INSTRUMENTS, SCALES, TONICS, Note, Timbre

Voice = tuple[Note, ...]

VOICES = 6
"""Of a score; a piece with fewer takes the first ones."""
LOWEST = range(48, 60)
"""MIDI numbers of the lowest note of a chord: an octave, as every pitch class is to be told once."""
ABOVE = range(60, 84)
"""Of the others."""
REGISTERS = (48, 60, 72)
"""Lowest C of the octave that a canon moves in."""
RATIO = 1.25
"""By which formants of a timbre may be higher or lower than its family's."""


def chord(seed: int, pitch: int, duration_s: float = 0.8) -> tuple[Voice, ...]:
    """The note of this pitch, one of LOWEST, and then five others that know nothing of it, of five pitches of ABOVE.

    So the lowest note alone tells `pitch`: a listener to all the others can but guess, and one who hears it is never
    wrong, since its fundamental is beneath all else.
    """
    rng = np.random.default_rng(seed)
    others = rng.permutation(np.array(ABOVE))[: VOICES - 1].tolist()
    return tuple((Note(0.0, duration_s, tone, timbre=_timbre(rng)),) for tone in (pitch, *others))


def canon(seed: int, key: str, duration_s: float = 2.1) -> tuple[Voice, ...]:
    """A tune of the seven notes of a key such as "Eb minor", once each, that six voices sing in a round, one timbre.

    Every voice is ahead of the others by notes of its own, so that no two meet. Whatever their number, the same notes
    are heard, each as long, and which seven tells the key: minor has the raised seventh, and shares its notes with no
    major key.
    """
    rng = np.random.default_rng(seed)
    tonic, mode = key.split()
    steps = (*SCALES[mode][:6], 11)
    tune = rng.choice(REGISTERS) + rng.permutation((TONICS.index(tonic) + np.array(steps)) % 12)
    length, timbre = duration_s / len(tune), _timbre(rng)

    def voice(ahead: int) -> Voice:
        tones = np.roll(tune, -ahead).tolist()
        return tuple(Note(length * at, 0.9 * length, tone, timbre=timbre) for at, tone in enumerate(tones))

    return tuple(voice(ahead) for ahead in rng.permutation(len(tune))[:VOICES].tolist())


def _timbre(rng: np.random.Generator) -> Timbre:
    """A sustained instrument like no other of its family."""
    families = [timbre for _, timbre in sorted(INSTRUMENTS.items()) if timbre.decay_s is None]
    family = families[rng.integers(len(families))]
    formants = tuple(float(formant * RATIO ** rng.uniform(-1, 1)) for formant in family.formants)
    return replace(family, tilt_db=family.tilt_db + float(rng.uniform(-3, 3)), formants=formants)
