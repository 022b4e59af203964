"""VoxForge (MacLean et al.): prompts read in six languages, recorded and sent in by volunteers."""

from __future__ import annotations

import re
from pathlib import Path

from auricle.data.corpora.layout import find_root, warn_count
from auricle.data.manifest import Manifest
from auricle.data.splits import group_shuffle
from auricle.errors import ManifestError

LAYOUT = "LANGUAGE/SPEAKER-DATE-ID/wav/*.wav, e.g. de/guenter-20090806-abc/wav/de5-01.wav, the archives unpacked"
LANGUAGES = ("de", "en", "es", "fr", "it", "ru")
SITE = {"en": "SpeechCorpus"}
"""Names of languages' folders on the site, where they differ."""
INNER = "Trunk/Audio/Main/16kHz_16bit"
DATE = re.compile(r"-(\d{8})(?=-|$)")


def read(folder: Path, *, before: str | None = "2020-01-01") -> Manifest:
    """`language`, `speaker` (the archive's name up to the first hyphen), `archive`, `date`, and NOSS's `noss_split`.

    The split keeps speakers whole, all anonymous ones counting as one, and depends on every archive of the six
    languages. `before` leaves out archives recorded from that day on, as NOSS does; those without a date are kept.
    The site's own folders (downloads/LANGUAGE/Trunk/Audio/Main/16kHz_16bit) are found too. Expects LAYOUT. Raises
    `ManifestError`.
    """
    root = find_root(folder, "VoxForge", [*LANGUAGES, *SITE.values(), "downloads"], LAYOUT)
    root = root / "downloads" if (root / "downloads").is_dir() else root
    archives: list[tuple[str, Path]] = []
    for language in LANGUAGES:
        places = [root / name / inner for inner in (INNER, "") for name in (language, SITE.get(language, language))]
        home = next((place for place in places if place.is_dir()), None)
        archives += [(language, path) for path in sorted(home.iterdir() if home else ()) if path.is_dir()]
    limit = (before or "9999").replace("-", "")
    archives = [(language, path) for language, path in archives if (_date(path) or "") < limit]
    clips = [(language, archive, path) for language, archive in archives for path in sorted(archive.rglob("*.wav"))]
    silent = set(LANGUAGES) - {language for language, *_ in clips}
    if silent:
        raise ManifestError(f"{root}: no recordings of {', '.join(sorted(silent))}; unpack the archives: {LAYOUT}")
    warn_count("VoxForge", len(clips), 176_438)
    folders = [archive for _, archive in archives]  # those without a wav, too, are shuffled
    part = dict(zip(folders, group_shuffle([_speaker(archive) for archive in folders]), strict=True))
    columns = {
        "clip_id": [f"{language}/{path.relative_to(archive.parent)}" for language, archive, path in clips],
        "path": [str(path.relative_to(root)) for *_, path in clips],
        "noss_split": [part[archive] for _, archive, _ in clips],
        "language": [language for language, *_ in clips],
        "speaker": [_speaker(archive) for _, archive, _ in clips],
        "archive": [archive.name for _, archive, _ in clips],
        "date": [_date(archive) for _, archive, _ in clips],
    }
    return Manifest.from_columns(columns, root, str(root))


def _speaker(archive: Path) -> str:
    return archive.name.split("-")[0]


def _date(archive: Path) -> str | None:
    """YYYYMMDD."""
    match = DATE.search(archive.name)
    return match and match[1]
