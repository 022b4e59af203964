"""`evaluate` for phone recognition: encode, train heads by CTC, and tell phone error rates."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from auricle.encoders.base import Encoder, choose_layers
from auricle.encoders.checkpoint import load
from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.answers import Answers, table
from auricle.evaluation.cache import Cache
from auricle.evaluation.prepare import Prepared
from auricle.evaluation.probes.heads import Layer
from auricle.evaluation.recognition.ctc import CtcConfig, Fitted, fit, transcribe
from auricle.evaluation.recognition.edits import edit_distances
from auricle.evaluation.recognition.frames import Utterances
from auricle.evaluation.results import Result, write_result
from auricle.evaluation.run import TOLD, Overwrite, find_result
from auricle.evaluation.scores import choice_of, scored


def recognise(
    encoders: Sequence[str | Path | Encoder],
    prepared: Sequence[Prepared],
    config: CtcConfig,
    *,
    layers: str | Sequence[Layer] = "all",
    output: Path | str = "results",
    overwrite: Overwrite = "only-missing",
    cache: Path | str | None = "auto",
    device: torch.device,
    batch_seconds: float = 120.0,
    progress: bool = True,
) -> list[Result]:
    """Phone error rates of frozen encoders on the utterances of `prepare_speech`.

    A head sees the encoder's own frames, of all layers as wide as the last, or of those of `layers`, summed with
    learned weights (see `Recogniser`); the learning rate is chosen on dev. In the table of predictions, `total` counts
    the phones of a reference and `correct` is that less the edits, which may be below 0; `prediction` is the first
    seed's. A clip that cannot be embedded is answered by no phone at all. Other arguments and errors as `evaluate`.
    """
    results = []
    with tqdm(total=len(encoders) * len(prepared), unit="score", desc="evaluate", disable=not progress) as bar:
        for name in encoders:
            encoder = name.to(device) if isinstance(name, Encoder) else load(name, device)
            fingerprint, chosen = encoder.fingerprint(), summed_layers(encoder, layers)
            kept = None if cache is None else Cache(Path(output) / ".cache" if cache == "auto" else cache, fingerprint)
            for ready in prepared:
                title = encoder.name or encoder.family
                bar.set_postfix_str(f"{title} {ready.task.name}")
                settings = _settings(ready, config, layers)
                result = find_result(output, title, fingerprint, ready.task, settings, overwrite)
                if result is None:
                    train = np.flatnonzero(ready.assignments[0] == "train")
                    source = Utterances(
                        encoder, ready.manifest, chosen, train, output=Path(output), cache=kept,
                        batch_seconds=batch_seconds,
                    )  # fmt: skip
                    result = _evaluate(source, title, fingerprint, ready, config, settings, output)
                results.append(result)
                bar.update()
    return results


def summed_layers(encoder: Encoder, layers: str | Sequence[Layer]) -> list[int]:
    """The layers that heads sum: those asked for, or of `all` those as wide as the last. Raises `ConfigError`."""
    if layers == "all" or list(layers) == ["sum"]:
        return [layer for layer, dim in enumerate(encoder.dims) if dim == encoder.dims[-1]]
    asked = layers if isinstance(layers, str) else [int(layer) for layer in layers if layer != "sum"]
    if asked == "mean":
        raise ConfigError("layers: phone recognition learns the weights of layers, and takes no mean")
    chosen = choose_layers(asked, encoder.dims, encoder.outputs)
    if len({encoder.dims[layer] for layer in chosen}) > 1:
        raise ConfigError(f"layers: those asked for have widths {[encoder.dims[layer] for layer in chosen]}, no sum")
    return chosen


def _evaluate(
    source: Utterances,
    encoder: str,
    fingerprint: str,
    ready: Prepared,
    config: CtcConfig,
    settings: str,
    output: Path | str,
) -> Result:
    """Train the heads on one encoder's frames, and write the result."""
    started, encoded = time.monotonic(), source.seconds
    train, dev, test = (np.flatnonzero(ready.assignments[0] == part) for part in ("train", "dev", "test"))
    fitted = fit(source, ready.targets, train, dev, len(ready.classes) + 1, config)
    tables = {part: _answers(ready, source, fitted, rows) for part, rows in (("test", test), ("dev", dev))}
    answers = tables["test"][0]
    if not set(test.tolist()) - set(source.skipped):
        raise EvaluationError(
            f"task {ready.task.name}: {encoder} could embed none of the clips in test "
            f"(the first: {source.skipped[int(test[0])]})"
        )
    probed, encoded = time.monotonic() - started, source.seconds - encoded
    result = scored(
        ready,
        [answers],
        encoder=encoder,
        fingerprint=fingerprint,
        supervision=source.encoder.supervision,
        dev=float(np.mean(fitted.choice.dev)),
        chosen=[choice_of(fitted.choice)],
        grid=[choice_of(trial) for trial in fitted.trials],
        skipped=len(source.skipped),
        seconds_encode=source.seconds,
        seconds_probe=probed - encoded,
        settings=settings,
    )
    result = write_result(result, pa.concat_tables([_table(ready, part, *tables[part]) for part in tables]), output)
    source.release()
    return result


def _answers(ready: Prepared, source: Utterances, fitted: Fitted, rows: np.ndarray) -> tuple[Answers, list[str]]:
    """Phones less edits by seed, and what the first seed's head heard."""
    references = ready.targets[rows]
    silence = np.empty(0, np.int64)
    total = np.array([len(reference) for reference in references], np.float64)
    correct, texts = [], list[str]()
    for found in transcribe(fitted.heads, source, rows):
        hypotheses = [found.get(row, silence) for row in rows.tolist()]
        correct.append(total - edit_distances(hypotheses, references))
        texts = texts or [" ".join(ready.classes[code] for code in hypothesis) for hypothesis in hypotheses]
    return Answers(rows, np.stack(correct), total), texts


def _table(ready: Prepared, part: str, answers: Answers, texts: list[str]) -> pa.Table:
    """A row a clip, without places on a map: there is no embedding of clips."""
    rows = table(ready, part, answers)
    rows = rows.set_column(rows.schema.get_field_index("prediction"), "prediction", pa.array(texts, pa.string()))
    for name in ("map_x", "map_y"):
        rows = rows.append_column(name, pa.nulls(len(rows), pa.float64()))
    return rows


def _settings(ready: Prepared, config: CtcConfig, layers: str | Sequence[Layer]) -> str:
    """Hash of all that decides a score besides the encoder."""
    record = {key: value for key, value in asdict(ready.task).items() if key not in TOLD}
    asked = layers if isinstance(layers, str) else list(layers)
    clips = [ready.manifest.content_hash(), ready.manifest.files_hash(), ready.split_hash, ready.texts]
    parts = [record, config.model_dump(mode="json"), asked, clips]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
