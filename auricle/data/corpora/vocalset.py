"""VocalSet (Wilkins et al. 2018): 20 professionals singing scales, arpeggios and songs in 17 techniques, alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from auricle.audio.io import probe
from auricle.audio.io import read as read_audio
from auricle.audio.mixing import onset
from auricle.data.corpora.layout import find_root, refuse_missing
from auricle.data.manifest import Manifest
from auricle.data.splits import group_shuffle
from auricle.errors import AudioError

LAYOUT = "FULL/female1/arpeggios/belt/*.wav and so on; in version 1.2 data_by_singer/ instead of FULL/"
TECHNIQUES = frozenset(
    ["belt", "breathy", "inhaled", "lip_trill", "spoken", "straight", "trill", "trillo", "vibrato", "vocal_fry"]
)
"""The ten of the paper's experiment, as in train_singers_technique.txt."""
OTHERS = frozenset(["fast_forte", "fast_piano", "forte", "messa", "pp", "slow_forte", "slow_piano"])
SINGERS = {f"female{number}": f"f{number}" for number in range(1, 10)} | {
    f"male{number}": f"m{number}" for number in range(1, 12)
}
"""Folder to singer."""
TESTED = frozenset(["f2", "f8", "m3", "m5", "m10"])
"""The singers of test_singers_technique.txt; the other fifteen are to be trained on."""
STRAYS = frozenset(
    f"vibrato/{name}.wav"
    for name in ("f2_scales_vibrato_a(1)", "caro_vibrato", "dona_vibrato", "row_vibrato", "slow_vibrato_arps")
)
"""A copy, and files that the paper's table 2 does not know; MARBLE leaves them out."""


def read(folder: Path) -> Manifest:
    """`technique` (ten; unknown for the others), `technique17`, `singer`, `context`, `split` and `singer_split`.

    In `split`, for the technique, test is the five official singers; in `singer_split` singers are on all sides.
    The rest follows MARBLE's shares, not its draw, which was never published: recordings 60:40 in train and dev, and
    48:32:20 for the singer, shuffled under seed 0. How many recordings there are officially is not known, so the count
    is not checked, but that each singer is there.

    The clips are recordings from the first sound on, which MARBLE cuts into chunks of 3 s and scores one by one. As
    there, silence is cut off before the first sound alone, not at the end nor between; but the sound begins with the
    first window of 20 ms whose power is within 40 dB of the loudest one's, where MARBLE has the voice activity detector
    of SoX (torchaudio's `vad`). Every recording is read for it: `auricle prepare` keeps the manifest for the next time.

    Expects LAYOUT. Raises `ManifestError`.
    """
    marks = [f"{place}/female1" for place in ("FULL", "data_by_singer")]
    root = find_root(folder, "VocalSet", marks, LAYOUT)
    place = root / "FULL" if (root / "FULL").is_dir() else root / "data_by_singer"
    paths = [
        path
        for path in sorted(place.glob("*/*/*/*.wav"))
        if path.parts[-4] in SINGERS
        and path.parts[-2] in TECHNIQUES | OTHERS
        and not path.name.startswith(".")
        and "/".join(path.parts[-2:]) not in STRAYS
    ]
    silent = sorted(set(SINGERS) - {path.parts[-4] for path in paths})
    refuse_missing("the singers", place, silent, len(SINGERS))
    names = [path.relative_to(place).with_suffix("").as_posix() for path in paths]
    singers = [SINGERS[path.parts[-4]] for path in paths]
    techniques = [path.parts[-2] for path in paths]
    with ThreadPoolExecutor() as pool:
        starts = list(pool.map(_sound_begins, paths))
    learned = group_shuffle(names, (0.6, 0.4, 0.0))
    columns = {
        "clip_id": names,
        "path": [str(path.absolute()) for path in paths],
        "start_s": starts,
        "split": ["test" if singer in TESTED else part for singer, part in zip(singers, learned, strict=True)],
        "singer_split": group_shuffle(names, (0.48, 0.32, 0.2)),
        "technique": [name if name in TECHNIQUES else None for name in techniques],
        "technique17": techniques,
        "singer": singers,
        "context": [path.parts[-3] for path in paths],
    }
    return Manifest.from_columns(columns, place, str(root))


def _sound_begins(path: Path) -> float:
    """Seconds; 0 for what is silent, or cannot be read, which the manifest tells."""
    try:
        info, waveform = probe(path), read_audio(path)
    except AudioError:
        return 0.0
    return onset(waveform, info.sample_rate) / info.sample_rate
