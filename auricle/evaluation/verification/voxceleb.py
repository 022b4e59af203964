"""VoxCeleb1's official trial lists, by name: O (40 test speakers), E (all) and H (hard), original and cleaned.

Nagrani, Chung, Zisserman 2017, VoxCeleb: a large-scale speaker identification dataset, Interspeech; E and H: Chung,
Nagrani, Zisserman 2018, VoxCeleb2: deep speaker recognition, Interspeech. Scores on the original and on the cleaned
list of a letter do not compare. E and H hold speakers of VoxCeleb1's dev part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from auricle.data.corpora.layout import refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ConfigError, ManifestError, unknown
from auricle.evaluation.verification.trials import Trials, parse_trials


@dataclass(frozen=True)
class OfficialList:
    """A trial list as published."""

    file: str
    trials: int
    targets: int | None
    """None where the number is not published."""


LISTS = {
    "voxceleb1-o": OfficialList("veri_test.txt", 37_720, 18_860),
    "voxceleb1-o-cleaned": OfficialList("veri_test2.txt", 37_611, 18_802),
    "voxceleb1-e": OfficialList("list_test_all.txt", 581_480, 290_743),
    "voxceleb1-e-cleaned": OfficialList("list_test_all2.txt", 579_818, None),
    "voxceleb1-h": OfficialList("list_test_hard.txt", 552_536, 276_270),
    "voxceleb1-h-cleaned": OfficialList("list_test_hard2.txt", 550_894, 275_488),
}
"""Name to list. All end as `id10270/5r0dWxy17C8/00001.wav`: speaker, video, utterance."""


def read_voxceleb(folder: Path | str, name: str) -> tuple[Manifest, Trials]:
    """The clips of a list, with a column `speaker`, and its trials.

    The list lies in `folder` or a folder in it, the recordings as the official archives unpack (`wav/id.../...wav`)
    there, or at most two folders down. A list of another length than published is warned of: scores would not compare.
    Raises `ConfigError` for an unknown name; `ManifestError` where the list or recordings are missing, naming them.
    """
    if name not in LISTS:
        raise ConfigError(unknown("trial list", name, LISTS))
    folder, official = Path(folder).absolute(), LISTS[name]
    found = sorted(path for depth in ("", "*/") for path in folder.glob(f"{depth}{official.file}"))
    if not found:
        raise ManifestError(f"{folder}: the list {official.file} of {name} is not there; put it into this folder")
    labels, names = parse_trials(found[0])
    warn_count(name, len(labels), official.trials)
    if official.targets is not None and len(labels) == official.trials:
        warn_count(f"{name}, target trials", int(labels.sum()), official.targets)
    clips = list(dict.fromkeys(clip for pair in names for clip in pair))
    roots = [folder, *sorted(path for depth in ("wav", "*/wav", "*/*/wav") for path in folder.glob(depth))]
    places = [next((root / clip for root in roots if (root / clip).is_file()), None) for clip in clips]
    missing = [clip for clip, place in zip(clips, places, strict=True) if place is None]
    refuse_missing(f"the recordings of {name}", folder, missing, len(clips))
    speakers = [clip.split("/")[0] for clip in clips]
    columns = {"clip_id": clips, "path": [str(place) for place in places], "speaker": speakers}
    manifest = Manifest.from_columns(columns, folder, str(found[0]))
    if manifest.skipped:
        raise ManifestError(f"{manifest.skipped[0].path}: cannot be read ({manifest.skipped[0].reason}); get it again")
    row_of = {clip: row for row, clip in enumerate(manifest.column("clip_id"))}
    rows = np.array([[row_of[clip] for clip in pair] for pair in names], np.int64)
    return manifest, Trials(rows[:, 0], rows[:, 1], labels)
