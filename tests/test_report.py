"""The page is checked against the folders it was made from, with an HTML parser of the standard library."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from safetensors.numpy import save_file

from auricle.errors import AuricleError
from auricle.evaluation.results import Result, write_result
from auricle.report.build import build_report

RATE = 8000
HOSTILE = "</script><img src=x onerror=alert(1)>"


# ------------------------------------------------------------------------------------------- a synthetic run and results


def write_run(folder: Path, lines: Sequence[dict[str, Any]] | None = None, pictures: int = 3) -> Path:
    """A run folder with logs, pictures, clips and weights."""
    from matplotlib.image import imsave

    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    config = "format: 1\nauricle: 0.1.0\nmethod: mockingjay\npreset: mockingjay-tiny\ntrain:\n  steps: 400\n"
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines or log_lines()))
    for index in range(pictures):
        imsave(folder / "pictures" / f"step-{100 * (index + 1):08d}.png", rng.random((60, 200)), cmap="magma")
    pq.write_table(pa.table({"clip_id": ["a", "b"], "duration_s": [1800.0, 5400.0]}), folder / "manifest.parquet")
    checkpoint = folder / "checkpoints" / "step-00000400"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    save_file({"w": np.zeros((30, 4), np.float32), "b": np.zeros(5, np.float32)}, checkpoint / "model.safetensors")
    return folder


def log_lines() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    lines: list[dict[str, Any]] = [{"step": 0, "split": "session", "format": 1, "auricle": "0.1.0", "device": "cpu"}]
    for step in range(10, 401, 10):
        loss = 0.6 + 0.8 * np.exp(-step / 90) + 0.02 * rng.standard_normal()
        rate = 5e-4 * min(step / 50, 1 - (step - 50) / 350)
        train = {"loss": round(loss, 5), "lr": rate, "audio_s": 50.0 * step, "audio_s_per_s": 220 + rng.normal(0, 9)}
        lines.append({"step": step, "split": "train", **train, "skipped": 2})
        if step % 50 == 0:
            held = {"loss": round(0.62 + 0.8 * np.exp(-step / 90), 5), "trivial": 0.913}
            lines.append({"step": step, "split": "valid", **held})
    lines.append({"step": 400, "split": "alarm", "name": "throughput", "message": "fell to half of its best"})
    return lines


def write_clips(folder: Path, labels: Sequence[str], seconds: float = 0.4, suffix: str = ".wav") -> list[str]:
    """Recordings of a tone each, its pitch given by the label."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, label in enumerate(labels):
        time = np.arange(round(seconds * RATE)) / RATE
        noise = np.random.default_rng(index).normal(0, 0.05, len(time))
        paths.append(str(folder / f"clip{index:03d}{suffix}"))
        soundfile.write(paths[-1], 0.4 * np.sin(2 * np.pi * (250 + 90 * (ord(label[0]) % 9)) * time) + noise, RATE)
    return paths


def write_scores(
    folder: Path, encoder: str, right: Sequence[bool], targets: Sequence[str], paths: Sequence[str], **changes: Any
) -> Result:
    """The result of an encoder that is `right` where told, on clips of 0.4 s."""
    rng = np.random.default_rng(len(encoder))
    classes = sorted(set(targets))
    wrong = {name: classes[(place + 1) % len(classes)] for place, name in enumerate(classes)}
    values: dict[str, Any] = {
        "encoder": encoder, "fingerprint": f"{abs(hash(encoder)) % 16**8:08x}", "task": "tones", "protocol": "auricle",
        "version": 1, "kind": "classes", "level": "clip", "target": "pitch", "classes": classes, "metric": "accuracy",
        "score": float(np.mean(right)), "low": float(np.mean(right)) - 0.0611, "high": float(np.mean(right)) + 0.0433,
        "seeds": [float(np.mean(right))], "dev": 0.5, "chosen": [{"head": "linear", "layer": 1, "lr": 1e-3, "dev": 0.5}],
        "grid": [], "chance": 1 / len(classes), "split": "column split", "split_hash": "5e1f", "unit": "clip",
        "units": len(targets), "n_train": 99, "n_dev": 9, "n_test": len(targets), "skipped": 0, "transductive": False,
        "seconds_encode": 1.0, "seconds_probe": 2.0, "settings": "c0ffee", "versions": {"torch": "2.13"},
    }  # fmt: skip
    values |= changes
    centre = {name: 4 * rng.standard_normal(2) for name in classes}
    places = np.array([centre[target] + rng.standard_normal(2) for target in targets])
    table = pa.table(
        {
            "clip_id": [f"{Path(path).stem}" for path in paths],
            "path": list(paths),
            "start_s": [0.0] * len(paths),
            "duration_s": [soundfile.info(path).duration if Path(path).exists() else 1.0 for path in paths],
            "split": ["test"] * len(paths),
            "unit": [f"{index}" for index in range(len(paths))],
            "target": list(targets),
            "prediction": [target if hit else wrong[target] for target, hit in zip(targets, right, strict=True)],
            "correct": np.array(right, float),
            "total": np.ones(len(paths)),
            "map_x": places[:, 0],
            "map_y": places[:, 1],
        }
    )
    return write_result(Result.parse(values), table, folder)


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, Path]:
    """A run, and results of it and of two baselines on 40 clips of four pitches."""
    targets = [name for name in ("alto", "bass", "cello", "drum") for _ in range(10)]
    paths = write_clips(tmp_path / "audio", targets)
    run, results = write_run(tmp_path / "mine"), tmp_path / "results"
    for encoder, mistakes in ((str(run), 2), ("fbank", 18), ("mfcc", 3)):
        write_scores(results, encoder, [index >= mistakes for index in range(40)], targets, paths)
    return run, results


class Page(HTMLParser):
    """What a browser would find: elements, their text, and the data of the script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())
        self.data = json.loads(self.scripts["data"])
        self.sounds = json.loads(self.scripts["sounds"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = (dict(attrs).get("id") or "code") if tag == "script" else tag if tag == "style" else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data
        else:
            self.text += data + " "


@pytest.fixture
def page(tree: tuple[Path, Path], tmp_path: Path) -> Page:
    return Page(build_report(tree, tmp_path / "out" / "report.html"))
