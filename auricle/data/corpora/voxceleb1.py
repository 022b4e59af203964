"""VoxCeleb1 (Nagrani et al. 2017) for speaker identification: celebrities in interviews, 1,251 speakers."""

from __future__ import annotations

from pathlib import Path

from auricle.data.corpora.layout import find_root, logger, read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "iden_split.txt and wav/id10001/1zcIwhmdeo4/00001.wav, or dev/wav/... and test/wav/..."
PARTS = {"1": "train", "2": "dev", "3": "test"}
TEST_SPEAKERS = frozenset(f"id{number}" for number in range(10270, 10310))
"""The 40 speakers of verification's test part, in an archive of their own, vox1_test_wav.zip."""


def read(folder: Path) -> Manifest:
    """`speaker`, `video`, and the official identification `split` of iden_split.txt, all speakers in every part.

    A copy without the archive of the 40 test speakers is read, with a warning: it has 1,211 speakers, and its scores do
    not compare. Expects LAYOUT. Raises `ManifestError`, also for any other recording that is missing.
    """
    root = find_root(folder, "VoxCeleb1", ["iden_split.txt"], LAYOUT)
    split = {}
    for line in read_lines(root / "iden_split.txt"):
        number, _, clip = line.strip().partition(" ")
        if number not in PARTS or clip.count("/") != 2:
            raise ManifestError(f"{root / 'iden_split.txt'}: '{line}' is not '1 SPEAKER/VIDEO/UTTERANCE.wav'")
        split[clip] = PARTS[number]
    warn_count("VoxCeleb1", len(split), 153_516)
    homes = sorted(path for depth in ("wav", "*/wav") for path in root.glob(depth))
    places = {clip: path for home in homes for clip in split if (path := home / clip).is_file()}
    heard = {_speaker(clip) for clip in places}
    absent = [clip for clip in split if clip not in places]
    lost = [clip for clip in absent if _speaker(clip) in heard or _speaker(clip) not in TEST_SPEAKERS]
    refuse_missing("the recordings", root, lost, len(split))
    if absent:
        told = "%s: %d of %d recordings are missing (vox1_test_wav.zip); %d speakers remain, scores will not compare"
        logger.warning(told, root, len(absent), len(split), len(heard))
    clips = [clip for clip in split if clip in places]
    columns = {
        "clip_id": [clip.removesuffix(".wav") for clip in clips],
        "path": [str(places[clip].relative_to(root)) for clip in clips],
        "split": [split[clip] for clip in clips],
        "speaker": [_speaker(clip) for clip in clips],
        "video": [clip.split("/")[1] for clip in clips],
    }
    return Manifest.from_columns(columns, root, str(root))


def _speaker(clip: str) -> str:
    return clip.split("/")[0]
