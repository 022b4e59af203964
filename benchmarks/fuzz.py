"""Damaged audio files and manifests: each must give finite audio, or a manifest, or one AuricleError of one line.

    python benchmarks/fuzz.py                             # 2000 mutants of the bundled recordings
    python benchmarks/fuzz.py ~/recordings -n 5000 --seed 1

Real recordings, cut to two seconds at most and written anew in many formats, are damaged in one to three ways; so are
manifests of them, by byte and by cell. Each mutant is tried in another process, with 4 GB of memory and 20 seconds, so
that a crash or a hang of a decoder counts too. Those that fail are kept, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import csv
import datetime
import decimal
import io
import itertools
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

import auricle.data
from auricle.audio.io import probe, read
from auricle.data.batching import DataConfig, DataNeeds
from auricle.data.dataset import training_batches
from auricle.data.manifest import Manifest
from auricle.data.sources import find_audio
from auricle.data.splits import split
from auricle.errors import AudioError, AuricleError, ManifestError

FORMATS = {
    "wav": ("PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"),
    "flac": ("PCM_16", "PCM_24"),
    "ogg": ("VORBIS", "OPUS"),
    "mp3": ("MPEG_LAYER_III",),
    "aiff": ("PCM_16", "FLOAT"),
    "au": ("PCM_16", "ULAW"),
    "caf": ("PCM_16", "FLOAT"),
}
MANIFESTS = ("csv", "tsv", "jsonl", "parquet")
NUMBERS = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = ["", " ", "nan", "inf", "-1", "1e400", "-0.0", "None", "null", "true", "0x10", "1_000", "１２", "007", "9" * 30]
TEXTS += [
    "a,b",
    '"',
    "'",
    "[1]",
    "{}",
    "..",
    "/",
    "a.wav",
    "missing.flac",
    "x" * 9999,
    "a\nb",
    "\u202eé\u0301",
    "p.tsv",
]
VALUES = [
    None,
    True,
    -1,
    2**62,
    2**70,
    -1.5,
    float("nan"),
    float("inf"),
    1e308,
    b"\xff",
    [],
    [None],
    [1, "a"],
    {},
    {"a": 1},
]
VALUES += [
    [[0, 1, "a"]],
    [[1, 0, "a"]],
    [["a", 1]],
    [[0.1, "b"]],
    [{"start": 0, "end": 9, "label": None}],
    {"start": 1},
]
TYPES = [pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.large_string(), pa.binary()]
TYPES += [
    pa.string_view(),
    pa.binary_view(),
    pa.timestamp("us"),
    pa.date32(),
    pa.time64("us"),
    pa.duration("s"),
    pa.decimal128(20, 3),
]
TYPES += [pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string()), pa.large_list(pa.int64()), pa.list_(pa.null())]
TYPES += [pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.list_(pa.float32(), 2)]


# ------------------------------------------------------------------------------------------------ mutants


def damaged(content: bytes, other: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Bytes with one fault, and its name."""
    data = bytearray(content)
    place = int(rng.integers(len(data) + 1))
    length = int(2 ** rng.uniform(0, 12))
    fault = str(rng.choice(["bits", "header bits", "header number", "cut", "zeros", "noise", "hole", "echo", "splice"]))
    if fault in ("bits", "header bits") and data:
        end = len(data) if fault == "bits" else min(len(data), 128)
        for _ in range(int(2 ** rng.uniform(0, 6))):
            data[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    elif fault == "header number":
        at, size = int(rng.integers(0, 120)), int(rng.choice([2, 4, 8]))
        number = int(rng.choice(NUMBERS)) % 2 ** (8 * size)
        data[at : at + size] = number.to_bytes(size, str(rng.choice(["little", "big"])))  # type: ignore[arg-type]
    elif fault == "cut":
        data = data[:place]
    elif fault == "zeros":
        data[place : place + length] = bytes(min(length, len(data) - place))
    elif fault == "noise":
        data[place : place + length] = rng.bytes(length)
    elif fault == "hole":
        del data[place : place + length]
    elif fault == "echo":
        data[place:place] = data[place : place + length] * int(rng.integers(1, 4))
    else:
        data = data[:place] + other[int(rng.integers(len(other) + 1)) :]
    return bytes(data), fault


def recording(sources: list[Path], folder: Path, rng: np.random.Generator) -> Path:
    """A real recording in some format, of at most two seconds."""
    source = sources[int(rng.integers(len(sources)))]
    audio, rate = soundfile.read(source, frames=int(rng.integers(1, 2 * 16_000)), always_2d=True)
    while True:
        suffix = str(rng.choice(list(FORMATS), p=[0.25, 0.2, 0.2, 0.2, 0.05, 0.05, 0.05]))
        subtype = str(rng.choice(FORMATS[suffix]))
        channels = int(rng.choice([1, 1, 2, 3] if suffix != "mp3" else [1, 2]))
        path = folder / f"a.{suffix}"
        try:
            soundfile.write(path, np.repeat(audio[:, :1], channels, 1), int(rng.choice([rate, 8_000, 48_000])), subtype)
        except soundfile.LibsndfileError:  # this rate or width does not go with this format
            continue
        return path


def try_audio(sources: list[Path], folder: Path, rng: np.random.Generator) -> tuple[str, str, str]:
    """Kind, fault and outcome of one damaged recording. Whatever should not be is raised."""
    path, other = recording(sources, folder, rng), recording(sources, folder / "other", rng)
    content, faults = path.read_bytes(), []
    for _ in range(int(rng.choice([0, 1, 1, 1, 2, 3]))):
        content, fault = damaged(content, other.read_bytes(), rng)
        faults.append(fault)
    kind = path.suffix[1:]
    path.unlink()
    if not faults or rng.random() < 0.1:
        path = path.with_suffix(f".{rng.choice([*FORMATS, 'm4a', 'raw', 'w64', 'sph'])}")
        faults.append("extension")
    path.write_bytes(content)
    outcomes = []
    for rate, start, length in ((16_000, 0, None), (22_050, int(rng.integers(40_000)), int(rng.integers(1, 20_000)))):
        try:
            info = probe(path)
            assert info.num_samples > 0
            assert info.channels > 0
            waveform = read(path, rate, start, length)
            assert waveform.dtype == np.float32
            assert waveform.ndim == 1
            assert 1 <= len(waveform) <= (length or len(waveform))
            assert np.isfinite(waveform).all()
            outcomes.append("audio")
        except AudioError as error:
            outcomes.append(reason(error, path))
    return kind, faults[0] if len(faults) == 1 else "several", outcomes[0]


def try_manifest(sources: list[Path], folder: Path, rng: np.random.Generator) -> tuple[str, str, str]:
    """Kind, fault and outcome of one damaged manifest."""
    suffix, rows = str(rng.choice(MANIFESTS)), int(rng.integers(1, 12))
    audio = [str(sources[int(index)]) for index in rng.integers(len(sources), size=rows)]
    table: dict[str, list[object]] = {"path": [*audio]}
    table["start_s"], table["end_s"] = [0.0] * rows, [0.2 + 0.1 * row for row in range(rows)]
    table["word"] = [["yes", "no, or", 'a "b"', "é"][row % 4] for row in range(rows)]
    table["score"], table["digit"] = [row / 3 for row in range(rows)], [row % 3 for row in range(rows)]
    table["split"] = [["train", "dev", "test"][row % 3] for row in range(rows)]
    (folder / "p.tsv").write_text("0\t0.05\ta\n0.05\t0.1\tb\n")
    if suffix in ("csv", "tsv"):
        table["phones_tsv"] = ["p.tsv"] * rows
    else:
        table["phones"] = [[{"start_s": 0.0, "end_s": 0.1, "label": "a"}]] * rows
    if rng.random() < 0.5:
        table["clip_id"] = [f"clip {row}" for row in range(rows)]
    fault = str(rng.choice(["cells", "columns", "types", "lines", "encoding", "bytes"]))
    columns = list(table)
    if fault in ("cells", "columns"):
        for _ in range(int(rng.integers(1, 4))):
            name = columns[int(rng.integers(len(columns)))]
            value = _pick(TEXTS if suffix in ("csv", "tsv") or rng.random() < 0.5 else VALUES, rng)
            if fault == "cells":
                table[name][int(rng.integers(rows))] = value
            elif rng.random() < 0.3:
                table[str(_pick(TEXTS, rng))] = table.pop(name, [None] * rows)
                columns = list(table)
            elif rng.random() < 0.3:
                table.pop(name, None)
                columns = list(table) or ["path"]
            else:
                table[name] = [value] * rows
    path = folder / f"m.{suffix}"
    content = _written(table, suffix, _pick(TYPES, rng) if fault == "types" else None, rng)
    if content is None:
        return suffix, "none", "no such file can be written"
    if fault == "lines" and suffix != "parquet":
        lines = content.splitlines(keepends=True)
        at = int(rng.integers(len(lines)))
        lines[at] = _pick(
            [b"", lines[at] * 2, b"\r\n", b"\n\n", b",,,,,\n", lines[at][: len(lines[at]) // 2], b'"'], rng
        )
        content = b"".join(lines).replace(b"\n", _pick([b"\n", b"\r\n", b"\r"], rng))
    elif fault == "encoding" and suffix != "parquet":
        content = content.decode().encode(_pick(["utf-8-sig", "utf-16", "utf-32", "cp1252"], rng), errors="replace")
    elif fault == "bytes" or (suffix == "parquet" and fault in ("lines", "encoding")):
        content, _ = damaged(content, content, rng)
    path.write_bytes(content)
    try:
        outcome = use(path, rng)
    except ManifestError as error:
        outcome = reason(error, path)
    return suffix, fault, outcome


def use(path: Path, rng: np.random.Generator) -> str:
    """Open a manifest and do with it what a run would."""
    manifest = Manifest.open(path)
    ids = manifest.column("clip_id")
    assert len(ids) == len(set(ids)) == len(manifest) > 0
    assert np.isfinite(manifest.durations).all()
    assert (manifest.durations > 0).all()
    for name in manifest.labels:
        manifest.column(name)
    manifest.save(path.with_name("saved.parquet"))
    assert Manifest.open(path.with_name("saved.parquet")).content_hash() == manifest.content_hash()
    next(training_batches(manifest, DataNeeds(16_000, 0.5), DataConfig(batch_seconds=2.0), seed=0))
    names: list[str | None] = [None, *manifest.table.column_names]
    try:
        split(manifest, _pick(names, rng), _pick(names, rng))
    except ManifestError as error:
        reason(error, path)
        return "manifest, no split"
    return "manifest"


def _pick(choices: list, rng: np.random.Generator):
    return choices[int(rng.integers(len(choices)))]


def _written(table: dict[str, list], suffix: str, kind: pa.DataType | None, rng: np.random.Generator) -> bytes | None:
    if suffix in ("csv", "tsv"):
        text = io.StringIO()
        rows = [list(table), *itertools.zip_longest(*table.values())]
        csv.writer(text, delimiter="," if suffix == "csv" else "\t").writerows(rows)
        return text.getvalue().encode()
    if suffix == "jsonl":
        rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        return "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()
    sink, columns = io.BytesIO(), {}
    try:
        for name, values in table.items():
            columns[name] = pa.array(values)
        if kind is not None:
            name = _pick(list(columns), rng)
            columns[name] = _of_type(kind, len(columns[name]), rng)
        pq.write_table(pa.table(columns), sink)
    except (pa.ArrowException, TypeError, OverflowError):
        return None
    return sink.getvalue()


def _of_type(kind: pa.DataType, rows: int, rng: np.random.Generator) -> pa.Array:
    now = datetime.datetime(2020, 1, 2, 3, 4, 5)
    kinds = [
        1,
        0.5,
        "a",
        b"a",
        True,
        now,
        now.date(),
        now.time(),
        datetime.timedelta(seconds=1),
        decimal.Decimal("1.5"),
    ]
    kinds += [["a"], [1], [0.5, 1.5], {"a": 1}, [("a", 1)], np.float16(1)]
    for value in [*kinds, None]:
        try:
            return pa.array([value if rng.random() < 0.9 else None for _ in range(rows)], kind)
        except (pa.ArrowException, TypeError, ValueError):
            continue
    raise AssertionError(kind)


def reason(error: AuricleError, path: Path) -> str:
    """The kind of an error: its line without what differs from file to file. It must be one line and no essay."""
    line = str(error)
    assert "\n" not in line, line
    assert "\r" not in line, line
    assert 10 < len(line) < 20_000, line
    line = re.sub(r"\([^)]*\)+", "", line.replace(f"{path}: ", ""))
    line = re.sub(r"'[^']*'", "…", re.sub(r"[-+]?\d[\d.e+-]*", "#", line))
    return f"{type(error).__name__}: {' '.join(line.split())[:60]}"


# ------------------------------------------------------------------------------------------------ the run


def attempt(number: int, seed: int, sources: list[Path], folder: Path) -> tuple[str, str, str]:
    """Mutant `number`: its kind, fault, outcome; `FAILED` with the traceback for what should not be."""
    place = folder / str(number)
    (place / "other").mkdir(parents=True)
    rng = np.random.default_rng([seed, number])
    what = try_manifest if rng.random() < 0.4 else try_audio
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = what(sources, place, rng)
    except Exception as error:  # the one place where anything may come: it is what we look for
        last = traceback.extract_tb(error.__traceback__)[-1]
        place_of = next(
            (f for f in reversed(traceback.extract_tb(error.__traceback__)) if "auricle" in f.filename), last
        )
        return (
            what.__name__,
            "FAILED",
            f"{type(error).__name__} at {Path(place_of.filename).name}:{place_of.lineno}: {error}",
        )
    shutil.rmtree(place)
    return result


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bundled = Path(auricle.data.__file__).parents[1] / "recordings"
    parser.add_argument("data", nargs="?", type=Path, default=bundled, help="folder of recordings")
    parser.add_argument("-n", type=int, default=2000, help="mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the counts here too")
    args = parser.parse_args()
    sources = [args.data.absolute() / name for name in sorted(find_audio(args.data))]
    folder = Path(tempfile.mkdtemp(prefix="auricle-fuzz-"))
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    failures, pool = [], None
    for number in range(args.first, args.first + args.n):
        pool = pool or ProcessPoolExecutor(1, initializer=_limit)
        try:
            result = pool.submit(attempt, number, args.seed, sources, folder).result(timeout=20)
        except (BrokenProcessPool, TimeoutError) as error:
            for process in list(pool._processes.values()):
                process.kill()
            pool.shutdown()
            pool, result = None, ("?", "FAILED", f"{type(error).__name__}: the decoder crashed or hung")
        counts[result] += 1
        if result[1] == "FAILED":
            failures.append((number, result[2]))
    if pool:
        pool.shutdown()

    outcomes = collections.Counter()
    for (kind, _, outcome), count in counts.items():
        outcomes[kind, outcome] += count
    print(f"{args.n} mutants of {len(sources)} recordings, seed {args.seed}\n")
    for (kind, outcome), count in sorted(outcomes.items(), key=lambda item: (item[0][0], -item[1])):
        print(f"{kind:10}{count:7}  {outcome}")
    print(f"\n{len(failures)} failures" + (f", kept in {folder}" if failures else ""))
    for number, line in failures:
        print(f"  {number}: {line}")
    if args.json:
        rows = [
            {"kind": kind, "fault": fault, "outcome": outcome, "count": count}
            for (kind, fault, outcome), count in counts.items()
        ]
        args.json.write_text(
            json.dumps(
                {"benchmark": "fuzz", "mutants": args.n, "seed": args.seed, "rows": rows, "failures": failures},
                indent=1,
            )
        )
    if not failures:
        shutil.rmtree(folder)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
