"""Speech Commands (Warden 2018), versions 0.01 and 0.02: single English words of a second, and background noise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from auricle.audio.io import probe
from auricle.data.corpora.layout import find_root, logger, read_lines, refuse_missing, warn_count
from auricle.data.manifest import Manifest
from auricle.errors import ManifestError

LAYOUT = "validation_list.txt, testing_list.txt, _background_noise_/*.wav and WORD/*_nohash_*.wav"
COMMANDS = frozenset(["down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes"])
DIGITS = frozenset(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
OTHERS = frozenset(["bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"])
NEW = frozenset(["backward", "follow", "forward", "learn", "visual"])
WORDS = {"v0.01": COMMANDS | DIGITS | OTHERS, "v0.02": COMMANDS | DIGITS | OTHERS | NEW}
CLIPS, TEST_SET = {"v0.01": 64_721, "v0.02": 105_829}, {"v0.01": 3_081, "v0.02": 4_890}
NOISES = ("doing_the_dishes", "dude_miaowing", "exercise_bike", "pink_noise", "running_tap", "white_noise")
DEV_NOISE = "running_tap"
TEST_FOLDERS = {name: name for name in sorted(COMMANDS)} | {"_unknown_": "unknown", "_silence_": "silence"}
"""Folders of the test set's archive to keywords."""
SPEAKER = re.compile(r"([0-9a-f]+)_nohash_")
COLUMNS = ("path", "clip_id", "start_s", "duration_s", "split", "word", "keyword", "speaker")


def read_v1(folder: Path) -> Manifest:
    """Version 0.01: `word` of 30, `keyword` of 12, `speaker` and the official `split`; else as `read_v2`."""
    return _read(folder, "v0.01")


def read_v2(folder: Path) -> Manifest:
    """Version 0.02: `word` of 35, `keyword` of 12, `speaker`, and the official `split` by the two lists.

    `keyword` is one of ten commands, "unknown" (all other words) or "silence". Its test part is the archive
    speech_commands_test_set_v0.02, unpacked under that name in `folder` or beside the words; those clips have no
    `word`, and the words of testing_list.txt no `keyword`. Without the archive they have one, but there is no silence
    to test, which is warned of. Silence to train on is cut from the noises as TensorFlow Datasets (and so NOSS) does:
    a second every half, running_tap being dev. Expects LAYOUT. Raises `ManifestError`, also for the other version.
    """
    return _read(folder, "v0.02")


def _read(folder: Path, version: str) -> Manifest:
    title, inner = f"Speech Commands {version}", folder / f"speech_commands_{version}"
    root = find_root(inner if inner.is_dir() else folder, title, ["validation_list.txt"], LAYOUT)
    found = {word for word in WORDS["v0.02"] if (root / word).is_dir()}
    held = "v0.02" if found & NEW else "v0.01"
    if found and held != version:
        raise ManifestError(f"{root}: by its words this is Speech Commands {held}, not {version}; get that version")
    refuse_missing("the words", root, sorted(WORDS[version] - found), len(WORDS[version]))
    archive = f"speech_commands_test_set_{version}"
    places = (place / archive for place in (folder, root, root.parent))
    tested = next((place for place in places if place.is_dir()), None)
    rows = [*_words(root, version, tested is None), *_silence(root)]
    if tested is None:
        logger.warning("%s: %s is not there: no silence is tested; keyword scores will not compare", root, archive)
    else:
        rows += _test_set(tested, version)
    return Manifest.from_columns({name: [row.get(name) for row in rows] for name in COLUMNS}, root, str(root))


def _words(root: Path, version: str, tested: bool) -> Iterator[dict[str, Any]]:
    """Rows of the words; keywords of the test part only if they are `tested`."""
    dev, test = (frozenset(read_lines(root / f"{name}_list.txt")) for name in ("validation", "testing"))
    clips = sorted(f"{word}/{path.name}" for word in WORDS[version] for path in (root / word).glob("*.wav"))
    refuse_missing("the clips of the lists", root, sorted((dev | test) - set(clips)), len(dev | test))
    warn_count(f"Speech Commands {version}", len(clips), CLIPS[version])
    for clip in clips:
        word = clip.split("/")[0]
        split = "dev" if clip in dev else "test" if clip in test else "train"
        keyword = (word if word in COMMANDS else "unknown") if tested or split != "test" else None
        row = {"clip_id": clip, "split": split, "word": word, "keyword": keyword}
        yield {"path": clip, "speaker": _speaker(clip), **row}


def _silence(root: Path) -> Iterator[dict[str, Any]]:
    """Rows of seconds of noise."""
    paths = {name: f"_background_noise_/{name}.wav" for name in NOISES}
    absent = [path for path in paths.values() if not (root / path).is_file()]
    refuse_missing("the noises", root, absent, len(NOISES))
    for name, path in paths.items():
        info = probe(root / path)
        split = "dev" if name == DEV_NOISE else "train"
        for start in range(0, info.num_samples - info.sample_rate, info.sample_rate // 2):
            start_s = start / info.sample_rate
            row = {"clip_id": f"{name}@{start_s:g}", "start_s": start_s, "duration_s": 1.0, "keyword": "silence"}
            yield {"path": path, "split": split, **row}


def _test_set(folder: Path, version: str) -> Iterator[dict[str, Any]]:
    """Rows of the archive of 12 classes."""
    clips = [path for name in TEST_FOLDERS for path in sorted((folder / name).glob("*.wav"))]
    absent = set(TEST_FOLDERS) - {path.parent.name for path in clips}
    refuse_missing("the classes of the test set", folder, sorted(absent), len(TEST_FOLDERS))
    warn_count(f"Speech Commands {version}, test set", len(clips), TEST_SET[version])
    for path in clips:
        name = path.parent.name
        row = {"clip_id": f"test_set/{name}/{path.name}", "split": "test", "keyword": TEST_FOLDERS[name]}
        yield {"path": str(path.absolute()), "speaker": _speaker(path.name), **row}


def _speaker(name: str) -> str | None:
    match = SPEAKER.search(name)
    return match and match[1]
