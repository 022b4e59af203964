"""How long things take to start: the import, the command line's help, and a sampler over a million clips.

    python benchmarks/startup.py --rows 1000000 --rounds 5

Each figure is of a fresh Python process, from its start to its end, imports included; the bare interpreter stands
beside them. The manifest names a few FLAC files of 15 s over and over, with log-normal lengths.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import machine, measure, show_times, write_json

BARE, IMPORT, HELP, SAMPLER = "python alone", "import auricle", "auricle --help", "open and first batch"
CODE = {
    BARE: "pass",
    IMPORT: "import sys, auricle; assert 'torch' not in sys.modules, 'importing auricle imports torch'",
    HELP: "import sys, auricle.cli; sys.argv = ['auricle', '--help']; auricle.cli.main()",
}
TARGETS = {BARE: "", IMPORT: "0.3 s", HELP: "0.5 s", SAMPLER: "5 s"}
RATE, FILES, FILE_S = 16000, 8, 15.0
SAMPLE = """
import json, resource, sys, time
begun = time.perf_counter()
from auricle.data.batching import DataConfig, DataNeeds
from auricle.data.dataset import hold_out, training_batches
from auricle.data.manifest import Manifest
imported = time.perf_counter()
manifest = Manifest.open([sys.argv[1]])
opened = time.perf_counter()
heard, _ = hold_out(manifest, 0.05, seed=0)
next(training_batches(manifest.select(heard), DataNeeds(16000, crop_s=15.0, min_s=2.0), DataConfig(), seed=0))
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"import_s": imported - begun, "open_s": opened - imported, "sampler_s": done - opened, "mb": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="clips in the manifest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        make_manifest(path, args.rows)
        parts: list[dict[str, float]] = []
        rows = {name: lambda code=code: run(code) for name, code in CODE.items()}
        rows[SAMPLER] = lambda: parts.append(json.loads(run(SAMPLE, str(path))))
        times = measure(rows, args.rounds)
    show_times(times, "s", target=TARGETS)
    steps = {name: float(np.median([part[name] for part in parts])) for name in parts[0]}
    print(f"\n{args.rows} rows: import {steps['import_s']:.2f} s, open {steps['open_s']:.2f} s, ", end="")
    print(f"first batch {steps['sampler_s']:.2f} s; at most {steps['mb']:.0f} MB resident, target 1024")
    write_json(args.json, "startup", **machine(1), rows=args.rows, rounds=args.rounds, times_s=times, sampler=steps)


def run(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def make_manifest(path: Path, rows: int) -> None:
    import pyarrow as pa
    import soundfile

    from auricle.data.manifest import Manifest

    rng = np.random.default_rng(0)
    for number in range(FILES):
        waveform = 0.1 * rng.standard_normal(int(FILE_S * RATE))
        soundfile.write(path.parent / f"{number}.flac", waveform, RATE)
    columns = {
        "clip_id": pa.array([f"speaker-{number % 997}/chapter/utterance-{number}" for number in range(rows)]),
        "path": pa.array([str(path.parent / f"{number % FILES}.flac") for number in range(rows)]),
        "start_s": pa.array(np.zeros(rows)),
        "duration_s": pa.array(rng.lognormal(math.log(6.0), 0.6, rows).clip(0.5, FILE_S)),
        "sample_rate": pa.array(np.full(rows, RATE)),
    }
    empty = Manifest.open([path.parent]).table.schema
    Manifest(pa.table(columns).select(empty.names).cast(empty)).save(path)


if __name__ == "__main__":
    main()
