"""Real scores on music: keys, beats, pitches and instruments of a folder of labelled corpora, with intervals.

    python benchmarks/music.py DATA [ENCODER ...] [--tasks keys beats] [--seeds 0 1 2] [--unheard] [--json FILE]

DATA holds the rendered corpora `music_generated` and `music_notes_rendered`, each with a `manifest.csv`. Encoders are
what `auricle evaluate` takes, such as `RUN untrained:RUN`; the baselines come after them. Where a run stands beside its
twin, the paired difference is told as well. All clips are tested once, in five folds with the next as dev. `--unheard`
leaves out the half of each corpus that runs of `quality.py` have heard in pre-training.

Keys are the task to look at. A style of the pieces has its own instruments, tempo and metre, so that instruments are
told by the style and beats in part by the tempo's range; single notes of one sound font are easy. Notes are tested
on what is unheard in training: pitches of other instruments, instruments at other pitches.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine, write_json
from quality import difference, half, mean_score

from auricle.data.manifest import Manifest
from auricle.evaluation.results import Result
from auricle.evaluation.run import evaluate

BASELINES = ("fbank", "fbank-context", "mfcc", "chroma")
Corpus = Callable[[str], Manifest]
"""The clips of a corpus by its name."""


def keys(corpus: Corpus) -> tuple[Manifest, dict[str, Any]]:
    """Which of 24 keys a piece of 8 s is in, near misses credited in part; a linear head."""
    return corpus("music_generated"), {"target": "key", "metric": "weighted_key"}


def beats(corpus: Corpus) -> tuple[Manifest, dict[str, Any]]:
    """Where beats are within 70 ms, mean F over pieces; MARBLE's linear head by frame, and a bar pointer."""
    manifest = corpus("music_generated")
    points = [
        [beat | {"label": "downbeat" if beat["label"] == "1" else "beat"} for beat in piece]
        for piece in manifest.column("beats")
    ]
    options = {"target": "beats", "metric": "beat_f1_mean", "protocol": "marble-linear"}
    return manifest.with_column("beats", points), options


def pitches(corpus: Corpus) -> tuple[Manifest, dict[str, Any]]:
    """Which of eighteen pitches a note has, of instruments unheard in training; a linear head."""
    return corpus("music_notes_rendered"), {"target": "midi", "metric": "accuracy", "group": "instrument"}


def instruments(corpus: Corpus) -> tuple[Manifest, dict[str, Any]]:
    """Which of twelve instruments plays a note, at pitches unheard in training; a linear head."""
    return corpus("music_notes_rendered"), {"target": "instrument", "metric": "accuracy", "group": "midi"}


def ensembles(corpus: Corpus) -> tuple[Manifest, dict[str, Any]]:
    """Which instruments play in a piece, mean average precision; a linear head. The style tells."""
    return corpus("music_generated"), {"target": "instruments", "metric": "map"}


TASKS = {"keys": keys, "beats": beats, "pitches": pitches, "instruments": instruments, "ensembles": ensembles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("encoders", nargs="*", help="what `auricle evaluate` takes; the baselines come after them")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the heads")
    parser.add_argument("--unheard", action="store_true", help="the half that `quality.py` keeps from pre-training")
    parser.add_argument("--output", type=Path, default=Path("runs/music"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("auricle").setLevel(logging.ERROR)

    def corpus(name: str) -> Manifest:
        return half(args.data, name, heard=False) if args.unheard else Manifest.open(args.data / name / "manifest.csv")

    figures: dict[str, Any] = {
        "machine": machine(torch.get_num_threads()),
        "unheard": args.unheard,
        "seeds": args.seeds,
    }
    for name in args.tasks:
        manifest, options = TASKS[name](corpus)
        results = evaluate(
            [*args.encoders, *BASELINES], data=manifest, split="folds", seeds=args.seeds, output=args.output / name,
            cache=args.output / ".cache", progress=False, **options,
        )  # fmt: skip
        figures[name] = tell(f"{name}: {TASKS[name].__doc__}", results)
        write_json(args.json, "music", **figures)


def tell(title: str, results: Sequence[Result]) -> dict[str, Any]:
    """A task's table, a row an encoder, and the differences between runs and their twins."""
    print(f"\n{title}")
    told: dict[str, Any] = {"metric": results[0].metric, "chance": results[0].chance, "rows": {}, "differences": {}}
    for row in results:
        heard = "; heard its test clips in pre-training" if row.transductive else ""
        layers = ", ".join(sorted({str(choice.layer) for choice in row.chosen}))
        beside = "".join(
            f"; {name} {100 * found.value:.1f}" for name, found in row.further.items() if "beat_f1_mean" in name
        )
        print(
            f"  {row.encoder:40} {100 * row.score:5.1f} % ({100 * row.low:.1f} to {100 * row.high:.1f})   "
            f"layers {layers}; {row.seconds_encode:.0f} + {row.seconds_probe:.0f} s{beside}{heard}",
            flush=True,
        )
        told["rows"][row.encoder] = row.model_dump(
            mode="json", include={"score", "low", "high", "seeds", "n_test", "further", "transductive"}
        )
    print(f"  {'chance':40} {100 * results[0].chance:5.1f} %")
    by_name = {row.encoder: row for row in results}
    for name, row in by_name.items():
        if twin := by_name.get(f"untrained:{name}"):
            print(f"  {name}:")
            told["differences"][name] = difference(mean_score([row]), mean_score([twin]), row.outcomes().units)
    return told


if __name__ == "__main__":
    main()
