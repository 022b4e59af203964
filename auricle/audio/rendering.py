"""A small music renderer with everything known about what it plays: notes, singers, drums, and whole pieces.

Notes are sums of harmonics under an envelope. That is enough for what music models are asked (pitch, instrument,
singing technique, key, chords, beats, mood), sounds like no recording, and so is for tests and for questions with one
thing varied at a time, not for ranking models. All is a function of its arguments and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from auricle.errors import AudioError, unknown

Array = NDArray[np.float64]
PARTIALS = 40
"""Harmonics of a note at most."""
RELEASE_S = 0.04
LEVEL = 0.1
"""Root mean square of a steady note of velocity 1."""
VOICES = 5
"""Voices of a piece at most."""

TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)
"""The 24 keys by name, with flats."""
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = ((0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4), (0, 4, 5, 3))
"""Degrees of the triads, a bar each; the last bar of a piece is the tonic's."""


@dataclass(frozen=True)
class Timbre:
    """How a note sounds."""

    tilt_db: float = -9.0
    """Of harmonics, dB an octave."""
    even: float = 1.0
    """Gain of even harmonics; reeds and flutes have weak ones."""
    formants: tuple[float, ...] = ()
    """Resonances, Hz; each lifts the harmonics about it."""
    attack_s: float = 0.01
    decay_s: float | None = None
    """In which the level falls to 1 / e; none for a sustained tone."""
    noise: float = 0.0
    """Level of breath, relative to the tone."""


INSTRUMENTS = {
    "bass": Timbre(tilt_db=-12, decay_s=1.2),
    "brass": Timbre(tilt_db=-4, formants=(1200.0,), attack_s=0.06),
    "flute": Timbre(tilt_db=-16, even=0.6, attack_s=0.08, noise=0.08),
    "guitar": Timbre(tilt_db=-7, decay_s=0.7),
    "keyboard": Timbre(tilt_db=-9, decay_s=1.0),
    "mallet": Timbre(tilt_db=-18, even=0.1, attack_s=0.003, decay_s=0.25),
    "organ": Timbre(tilt_db=-6, attack_s=0.02),
    "reed": Timbre(tilt_db=-5, even=0.15, formants=(1500.0,), attack_s=0.04),
    "string": Timbre(tilt_db=-6, formants=(500.0, 2500.0), attack_s=0.1),
    "synth_lead": Timbre(tilt_db=-3),
    "vocal": Timbre(tilt_db=-10, formants=(700.0, 1200.0, 2800.0), attack_s=0.06, noise=0.01),
}
"""The eleven families of NSynth."""


@dataclass(frozen=True)
class Technique:
    """What a singer does to a note, over and above its timbre."""

    vibrato_hz: float = 0.0
    vibrato_semitones: float = 0.0
    """To either side."""
    trill: bool = False
    """Leaps between the pitch and one so much above it, instead of gliding to either side."""
    tremolo_hz: float = 0.0
    tremolo: float = 0.0
    """The share of the level that the tremolo takes away at its lowest."""
    tilt_db: float = 0.0
    """Added to the timbre's."""
    noise: float = 0.0
    """Added to the timbre's."""
    voiced: float = 1.0
    """Level of the tone itself."""
    octave: int = 0
    glide_semitones: float = 0.0
    """From start to end."""
    jitter_semitones: float = 0.0
    """Of slow random changes of pitch, standard deviation."""


TECHNIQUES = {
    "belt": Technique(tilt_db=4.0, vibrato_hz=5.5, vibrato_semitones=0.15),
    "breathy": Technique(tilt_db=-4.0, noise=0.6),
    "inhaled": Technique(voiced=0.25, noise=1.0, jitter_semitones=0.5),
    "lip_trill": Technique(tilt_db=-6.0, tremolo_hz=25.0, tremolo=0.8),
    "spoken": Technique(glide_semitones=-5.0, jitter_semitones=1.0),
    "straight": Technique(),
    "trill": Technique(vibrato_hz=6.0, vibrato_semitones=2.0, trill=True),
    "trillo": Technique(tremolo_hz=7.0, tremolo=1.0),
    "vibrato": Technique(vibrato_hz=5.5, vibrato_semitones=0.6),
    "vocal_fry": Technique(octave=-2, jitter_semitones=0.7, tremolo_hz=32.0, tremolo=0.5),
}
"""The ten of VocalSet's experiment."""
DRUMS = ("kick", "snare", "hat")


@dataclass(frozen=True)
class Note:
    """One pitch from `start_s` for `duration_s`, seconds; the release, 40 ms, comes after."""

    start_s: float
    duration_s: float
    pitch: float
    """MIDI number, 69 for A of 440 Hz; fractions are cents."""
    velocity: float = 0.7
    """0 to 1; the level in proportion."""
    timbre: Timbre = INSTRUMENTS["keyboard"]
    technique: Technique = TECHNIQUES["straight"]


@dataclass(frozen=True)
class Hit:
    """A stroke of a drum."""

    start_s: float
    drum: str
    velocity: float = 0.7


class Span(NamedTuple):
    """A label from `start_s` to `end_s`, seconds."""

    start_s: float
    end_s: float
    label: str


def frequency(pitch: float) -> float:
    """Hz of a MIDI number."""
    return float(440.0 * 2 ** ((pitch - 69) / 12))


def singer(seed: int) -> Timbre:
    """A voice of its own: length of the vocal tract, effort and breath are drawn by the seed."""
    rng = np.random.default_rng(seed)
    vocal, tract = INSTRUMENTS["vocal"], rng.uniform(0.8, 1.25)
    formants = tuple(float(tract * formant * rng.uniform(0.95, 1.05)) for formant in vocal.formants)
    return replace(vocal, formants=formants, tilt_db=float(rng.uniform(-14, -7)), noise=float(rng.uniform(0, 0.04)))


def render(
    notes: Sequence[Note], duration_s: float, sample_rate: int = 16_000, hits: Sequence[Hit] = (), seed: int = 0
) -> NDArray[np.float32]:
    """(S,) samples of notes and strokes, in [-1, 1]: scaled down as a whole where they would be louder.

    The seed is that of noises and of random pitch. What lasts beyond the end is cut. Raises `AudioError` for an unknown
    drum, for a pitch at half the sampling rate or above, and for what starts before 0.
    """
    mixed = np.zeros(round(duration_s * sample_rate))
    events: list[Note | Hit] = [*notes, *hits]
    for number, event in enumerate(events):
        rng = np.random.default_rng([seed, number])
        sound = _tone(event, sample_rate, rng) if isinstance(event, Note) else _stroke(event, sample_rate, rng)
        start = round(event.start_s * sample_rate)
        if start < 0:
            raise AudioError(f"rendering: a sound starts at {event.start_s} s; shift it to 0 or later")
        sound = sound[: max(0, len(mixed) - start)]
        mixed[start : start + len(sound)] += sound
    return (mixed / max(1.0, float(np.abs(mixed).max(initial=0.0)))).astype(np.float32)


@dataclass(frozen=True)
class Piece:
    """What is played, and all that is true of it."""

    notes: tuple[Note, ...]
    hits: tuple[Hit, ...]
    duration_s: float
    key: str
    """One of `KEYS`."""
    bpm: float
    bar: int
    """Beats in it."""
    beats: Array
    """(N,) seconds; the first is a downbeat."""
    chords: tuple[Span, ...]
    """Triads, named as `KEYS` are."""
    instruments: tuple[str, ...]
    """Of the voices, the melody's first, then from the bass upwards."""
    valence: float
    """0 to 1; heard as the mode (major from 0.5) and the brightness."""
    arousal: float
    """0 to 1; heard as the tempo and the loudness."""
    seed: int

    @property
    def place(self) -> NDArray[np.int64]:
        """(N,) of the beats in the bar, 1 for a downbeat."""
        return np.arange(len(self.beats)) % self.bar + 1

    @property
    def downbeats(self) -> Array:
        """(M,) seconds."""
        return self.beats[:: self.bar]

    def render(self, sample_rate: int = 16_000) -> NDArray[np.float32]:
        """(S,) samples."""
        return render(self.notes, self.duration_s, sample_rate, self.hits, self.seed)


def compose(
    seed: int,
    duration_s: float = 30.0,
    *,
    key: str | None = None,
    bpm: float | None = None,
    bar: int = 4,
    voices: int = 4,
    drums: bool = True,
    instruments: Sequence[str] | None = None,
    valence: float | None = None,
    arousal: float | None = None,
) -> Piece:
    """A piece in one key and tempo: a melody, a bass on the roots of triads a bar long, up to three voices between.

    What is None is drawn by the seed; the mode and the tempo follow from `valence` and `arousal`, or these from a `key`
    and `bpm` asked for. More voices are the same piece with notes added: one is the melody alone, two have the bass.
    Raises `AudioError` for unknown names and numbers out of range.
    """
    if not 1 <= voices <= VOICES:
        raise AudioError(f"rendering: {voices} voices; a piece has 1 to {VOICES}")
    if bar < 1 or (bpm is not None and bpm <= 0):
        raise AudioError(f"rendering: a bar of {bar} beats at {bpm} bpm; both need to be positive")
    rng = np.random.default_rng(seed)
    drawn = rng.random(2)
    if key is not None and key not in KEYS:
        raise AudioError(unknown("key", key, KEYS))
    if valence is None:  # of the mode asked for, if one was
        valence = float(drawn[0]) if key is None else (float(drawn[0]) + key.endswith("major")) / 2
    if arousal is None:
        arousal = float(drawn[1]) if bpm is None else float(np.clip(np.log(bpm / 60) / np.log(3), 0, 1))
    if not (0 <= valence <= 1 and 0 <= arousal <= 1):
        raise AudioError(f"rendering: valence {valence} and arousal {arousal}; both lie between 0 and 1")
    tonic, names = TONICS[rng.integers(12)], rng.permutation(sorted(INSTRUMENTS))[:voices]
    progression, first_s = PROGRESSIONS[rng.integers(len(PROGRESSIONS))], float(rng.uniform(0.05, 0.4))
    names = names if instruments is None else np.resize(np.array(instruments), voices)
    for name in names:
        if name not in INSTRUMENTS:
            raise AudioError(unknown("instrument", str(name), INSTRUMENTS))
    key = key or f"{tonic} {'major' if valence >= 0.5 else 'minor'}"
    bpm = bpm or 60.0 * 3.0**arousal  # 60 to 180
    bright = {name: replace(INSTRUMENTS[name], tilt_db=INSTRUMENTS[name].tilt_db + 6 * valence - 3) for name in names}
    level, beat_s = 0.2 + 0.5 * arousal, 60 / bpm
    beats = np.arange(first_s, duration_s - 0.01, beat_s)
    notes, hits, chords = [], [], []
    for at, start in enumerate(beats.tolist()):
        number, step = divmod(at, bar)
        degree = 0 if (number + 1) * bar >= len(beats) else progression[number % len(progression)]
        triad = _triad(key, degree)
        if drums:
            hits.append(Hit(start, "kick" if step == 0 else "snare" if step % 2 else "hat", level))
        if step == 0:
            end = float(beats[at + bar]) if at + bar < len(beats) else duration_s
            chords.append(Span(start, end, _chord_name(triad)))
            held = [36 + triad[0] % 12, *(48 + (triad[part] % 12) for part in (1, 2, 0))][: voices - 1]
            for pitch, name in zip(held, names[1:], strict=True):
                notes.append(Note(start, 0.95 * (end - start), pitch, level, bright[name]))
        tune = triad[0] if step == 0 else triad[rng.integers(3)]
        notes.append(Note(start, 0.9 * beat_s, 72 + tune % 12, level, bright[names[0]]))
    return Piece(
        notes=tuple(notes),
        hits=tuple(hits),
        duration_s=duration_s,
        key=key,
        bpm=bpm,
        bar=bar,
        beats=beats,
        chords=tuple(chords),
        instruments=tuple(str(name) for name in names),
        valence=valence,
        arousal=arousal,
        seed=seed,
    )


def _triad(key: str, degree: int) -> list[int]:
    """Semitones above C of a scale's triad; the fifth's third is raised in minor, as is its use."""
    tonic, mode = key.split()
    scale = SCALES[mode]
    tones = [scale[(degree + step) % 7] + 12 * ((degree + step) // 7) for step in (0, 2, 4)]
    if mode == "minor" and degree == 4:
        tones[1] += 1
    return [TONICS.index(tonic) + tone for tone in tones]


def _chord_name(triad: Sequence[int]) -> str:
    return f"{TONICS[triad[0] % 12]} {'major' if triad[1] - triad[0] == 4 else 'minor'}"


def _tone(note: Note, sample_rate: int, rng: np.random.Generator) -> Array:
    """(S,) samples of a note and its release."""
    timbre, technique = note.timbre, note.technique
    clock = np.arange(round((note.duration_s + RELEASE_S) * sample_rate)) / sample_rate
    hz = frequency(note.pitch + 12 * technique.octave)
    if hz >= sample_rate / 2:
        raise AudioError(f"rendering: pitch {note.pitch} is {hz:.0f} Hz, too high for {sample_rate} samples a second")
    swing = np.sin(2 * np.pi * technique.vibrato_hz * clock)
    bend = technique.vibrato_semitones * ((swing > 0) if technique.trill else swing)
    bend = bend + technique.glide_semitones * clock / max(note.duration_s, RELEASE_S)
    if technique.jitter_semitones:
        knots = np.arange(0, clock[-1] + 0.1, 0.05)  # a new pitch 20 times a second
        bend = bend + np.interp(clock, knots, rng.normal(0, technique.jitter_semitones, len(knots)))
    phase = 2 * np.pi * hz * np.cumsum(2 ** (bend / 12)) / sample_rate
    highest = hz * 2 ** (float(bend.max()) / 12)
    gains = _gains(timbre, technique.tilt_db, hz, min(PARTIALS, int(sample_rate / 2.05 / highest)))
    tone = technique.voiced * harmonics(gains, phase)
    noise = timbre.noise + technique.noise
    sound = LEVEL * (tone + noise * rng.normal(size=len(clock))) / np.sqrt(technique.voiced**2 + noise**2)
    tremolo = 1 - technique.tremolo * (0.5 - 0.5 * np.cos(2 * np.pi * technique.tremolo_hz * clock))
    played: Array = note.velocity * sound * tremolo * _envelope(timbre, note.duration_s, clock)
    return played


def _gains(timbre: Timbre, tilt_db: float, hz: float, count: int) -> Array:
    """(K,) of the harmonics, whose sum has a root mean square of 1."""
    order = np.arange(1, max(1, count) + 1)
    level = (timbre.tilt_db + tilt_db) * np.log2(order)
    for formant in timbre.formants:
        level = level + 12 * np.exp(-(((order * hz - formant) / (0.2 * formant)) ** 2))
    gains = 10 ** (level / 20) * np.where(order % 2 == 0, timbre.even, 1.0)
    scaled: Array = gains * np.sqrt(2 / np.square(gains).sum())
    return scaled


def harmonics(gains: Array, phase: Array) -> Array:
    """(S,) Σ gains[k − 1] sin(k phase) of phases (S,), radians, by Clenshaw's recurrence: one sine and cosine."""
    twice = 2 * np.cos(phase)
    above, here = np.zeros_like(phase), np.zeros_like(phase)
    for gain in gains[::-1]:
        above, here = here, gain + twice * here - above
    summed: Array = here * np.sin(phase)
    return summed


def _envelope(timbre: Timbre, duration_s: float, clock: Array) -> Array:
    """(S,) attack, decay, and a release after the note."""
    envelope = np.minimum(1.0, clock / timbre.attack_s)
    if timbre.decay_s is not None:
        envelope = envelope * np.exp(-clock / timbre.decay_s)
    faded: Array = envelope * np.clip((duration_s + RELEASE_S - clock) / RELEASE_S, 0, 1)
    return faded


def _stroke(hit: Hit, sample_rate: int, rng: np.random.Generator) -> Array:
    """(S,) samples of a drum."""
    if hit.drum not in DRUMS:
        raise AudioError(unknown("drum", hit.drum, DRUMS))
    clock = np.arange(round(0.25 * sample_rate)) / sample_rate
    noise = rng.normal(size=len(clock))
    if hit.drum == "kick":  # a pitch that falls from 150 to 50 Hz
        sound = 0.4 * np.sin(2 * np.pi * (50 * clock + 3 * (1 - np.exp(-clock / 0.03)))) * np.exp(-clock / 0.07)
    elif hit.drum == "snare":
        sound = 0.15 * noise * np.exp(-clock / 0.05)
    else:
        sound = 0.1 * np.diff(noise, prepend=0.0) * np.exp(-clock / 0.02)
    stroke: Array = hit.velocity * sound
    return stroke
