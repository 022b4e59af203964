"""NSynth (Engel et al. 2017): 305,979 single notes of 4 s, of 1,006 sampled instruments."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from auricle.data.corpora.layout import find_root, read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "nsynth-train, nsynth-valid and nsynth-test, each with examples.json and audio/*.wav (nsynth-*.jsonwav.tar.gz)"
PARTS = {"train": "train", "valid": "dev", "test": "test"}
NOTES = {"train": 289_205, "valid": 12_678, "test": 4_096}
FIELDS = {
    "instrument_family": ("instrument_family_str", str),
    "instrument_source": ("instrument_source_str", str),
    "instrument": ("instrument_str", str),
    "pitch": ("pitch", int),
    "velocity": ("velocity", int),
    "qualities": ("qualities_str", list),
}
"""Column to a note's field and its type."""


def read(folder: Path) -> Manifest:
    """`instrument_family` (11), `pitch` (MIDI number), and the official `split`; train has instruments of its own.

    Beside them `velocity` (MIDI), `qualities` (a list of ten at most), `instrument_source` and `instrument`. Expects
    LAYOUT. Raises `ManifestError`.
    """
    root = find_root(folder, "NSynth", [f"nsynth-{name}/examples.json" for name in NOTES], LAYOUT)
    columns: dict[str, list[Any]] = {name: [] for name in ("clip_id", "path", "split", *FIELDS)}
    for name, part in PARTS.items():
        notes = _notes(root / f"nsynth-{name}" / "examples.json")
        place = f"nsynth-{name}/audio"
        present = set(os.listdir(root / place)) if (root / place).is_dir() else set[str]()
        missing = [f"{place}/{note}.wav" for note in notes if f"{note}.wav" not in present]
        refuse_missing("the notes", root, missing, len(notes))
        warn_count(f"NSynth {name}", len(notes), NOTES[name])
        columns["clip_id"] += notes
        columns["path"] += [f"{place}/{note}.wav" for note in notes]
        columns["split"] += [part] * len(notes)
        for column, (field, _) in FIELDS.items():
            columns[column] += [note[field] for note in notes.values()]
    return Manifest.from_columns(columns, root, str(root))


def _notes(path: Path) -> dict[str, dict[str, Any]]:
    """A part's notes by name. Raises `ManifestError` where the file is not NSynth's."""
    try:
        notes: Any = json.loads("\n".join(read_lines(path)))
    except ValueError as error:
        raise ManifestError(f"{path}: is not JSON ({error}); get the corpus again") from None
    if not isinstance(notes, dict) or not notes:
        raise ManifestError(f"{path}: is not a table of notes; get the corpus again")
    for name, note in notes.items():
        for field, kind in FIELDS.values():
            if not isinstance(note, dict) or not isinstance(note.get(field), kind):
                raise ManifestError(f"{path}: note '{name}' has no '{field}'; get the corpus again")
    return notes
