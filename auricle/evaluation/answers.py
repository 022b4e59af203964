"""From embeddings to answers: fit heads on train, choose them on dev, and only then look at test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from auricle.embedding.extract import grid_times
from auricle.errors import EvaluationError
from auricle.evaluation.beats import BEAT_METRICS
from auricle.evaluation.embedder import ByLayer, Embedder
from auricle.evaluation.events import EVENT_METRICS
from auricle.evaluation.metrics import Outcomes
from auricle.evaluation.music import KEY_METRIC, key_credit
from auricle.evaluation.prepare import UNLABELLED, Prepared
from auricle.evaluation.probes.heads import Examples, Trial
from auricle.evaluation.probes.protocols import Probe, Prober
from auricle.evaluation.tasks.mir13 import MusicTask

DEV_FRAMES = 5_000
"""Most frames a probe is chosen on: drawn at random from all labelled ones, the same for every encoder."""
CHUNK_FRAMES = 30_000
"""Test frames encoded at once, about."""
MAPPED = 500
"""Most clips on a map."""


class Heads(Protocol):
    """Trained heads of S seeds, on an encoder's layers: `Fitted` ones, or one trained with its encoder."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers `predict` reads."""

    def predict(self, layers: ByLayer, groups: Tensor | None = None) -> Tensor:
        """Probabilities (S, N, K) or values (S, N), on the CPU, from embeddings (N, D) by layer and speakers (N,)."""

    def view(self, layers: ByLayer) -> Tensor:
        """What the first seed's head sees of them, (N, D)."""


@dataclass(frozen=True)
class Answers:
    """What the heads of S seeds answered on n clips."""

    rows: NDArray[np.int64]
    """(n,) in the manifest."""
    correct: NDArray[np.float64]
    """(S, n) right answers: 0 or 1 for classes, the share of right labels, NaN for values, a count for frames."""
    total: NDArray[np.float64]
    """(n,) answers: 1, or the frames; (S, n) where that depends on what is answered."""
    outputs: NDArray[np.float64] | None = None
    """(S, n, K) probabilities of classes or labels, (S, n) values; None for frames."""
    times: Mapping[str, Sequence[NDArray[np.float64]]] = field(default_factory=dict)
    """Further columns of the predictions: n lists of seconds each."""


@dataclass(frozen=True)
class Fold:
    """One assignment's heads and answers."""

    fitted: Probe
    dev: Answers
    test: Answers
    skipped: int
    others: list[tuple[Trial, Answers]]
    """What every row of the grid answers on test, without probabilities of classes; none where it is not known."""
    beside: Mapping[str, Answers] = field(default_factory=dict)
    """The test answers as other metrics count them, by what these are called: each Σ correct / Σ total."""


def answer(embedder: Embedder, ready: Prepared, prober: Prober) -> list[Fold]:
    """Fit, choose and answer every assignment. Raises `EvaluationError` where no clip of a part can be embedded."""
    if ready.task.scored_by in EVENT_METRICS:
        from auricle.evaluation.probes.events import answer_events  # which imports this module

        return answer_events(embedder, ready, prober)
    if ready.task.scored_by in BEAT_METRICS:
        from auricle.evaluation.probes.beats import answer_beats  # which imports this module

        return answer_beats(embedder, ready, prober)
    if isinstance(ready.task, MusicTask) and ready.task.level == "clip":
        from auricle.evaluation.probes.tracks import answer_tracks  # which imports this module

        return answer_tracks(embedder, ready, prober)
    if ready.task.level == "frame":
        return [_answer_frames(embedder, ready, assignment, prober) for assignment in ready.assignments]
    present, layers = embedder.clips(ready.manifest)
    return [_answer_clips(embedder, ready, assignment, prober, present, layers) for assignment in ready.assignments]


def _answer_clips(
    embedder: Embedder,
    ready: Prepared,
    assignment: NDArray[np.str_],
    prober: Prober,
    present: NDArray[np.bool_],
    layers: ByLayer,
) -> Fold:
    place = np.cumsum(present) - 1  # of a clip in `layers`

    def examples(part: str) -> Examples:
        rows = np.flatnonzero((assignment == part) & present)
        refuse_none(rows, part, embedder, ready)
        taken = torch.from_numpy(place[rows])
        targets = torch.from_numpy(ready.targets[rows])
        return Examples({layer: x[taken] for layer, x in layers.items()}, targets, _groups(ready, rows))

    train = examples("train")
    device = str(embedder.encoder.device)
    balanced = ready.task.scored_by == "balanced_accuracy"
    fitted = prober.fit(ready.task.kind, train, examples("dev"), balanced=balanced, device=device)
    targets = train.targets.numpy()
    dev, test = (clip_answers(embedder, ready, assignment, part, fitted, targets) for part in ("dev", "test"))
    others = []
    if tests := getattr(fitted, "tests", None):
        heard = np.flatnonzero((assignment == "test") & present)
        seen = {layer: x[torch.from_numpy(place[heard])] for layer, x in layers.items()}
        found: Iterable[tuple[Trial, Tensor]] = tests(seen, _groups(ready, heard))
        for trial, outputs in found:
            answers = complete(ready, test.rows, present[test.rows], outputs, targets)
            others.append((trial, answers if ready.task.kind != "classes" else replace(answers, outputs=None)))
    if ready.task.personal:  # every draw of every speaker counts alike, however many clips it tests
        test = _shared(test)
        others = [(trial, _shared(answers)) for trial, answers in others]
    return Fold(fitted, dev, test, int((~present).sum()), others)


def _groups(ready: Prepared, rows: NDArray[np.int64]) -> Tensor | None:
    return None if ready.groups is None else torch.from_numpy(ready.groups[rows])


def _shared(answers: Answers) -> Answers:
    """The same answers, which count as one together."""
    count = len(answers.rows)
    return replace(answers, correct=answers.correct / count, total=answers.total / count)


def clip_answers(
    embedder: Embedder,
    ready: Prepared,
    assignment: NDArray[np.str_],
    part: str,
    heads: Heads,
    train: NDArray[np.generic],
) -> Answers:
    """What heads answer on a part's clips; `train` targets tell what to say of one that cannot be embedded.

    Raises `EvaluationError` where none can.
    """
    rows = np.flatnonzero(assignment == part)
    present, layers = embedder.clips(ready.manifest.select(rows))
    refuse_none(np.flatnonzero(present), part, embedder, ready)
    heard = heads.predict({layer: layers[layer] for layer in heads.layers}, _groups(ready, rows[present]))
    return complete(ready, rows, present, heard, train)


def complete(
    ready: Prepared, rows: NDArray[np.int64], present: NDArray[np.bool_], found: Tensor, train: NDArray[np.generic]
) -> Answers:
    """Predictions (S, n, K) of the clips that are present, and for the others the best constant answer."""
    heard = found.double().numpy()
    outputs = np.empty((len(heard), len(rows), *heard.shape[2:]))
    outputs[:, present] = heard
    outputs[:, ~present] = _constant(ready, train, heard.shape[2:])
    return Answers(rows, _correct(ready, outputs, ready.targets[rows]), np.ones(len(rows)), outputs)


def _constant(ready: Prepared, train: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The best answer without hearing the clip: the commonest class, the share of each label, the mean value."""
    if ready.task.kind != "classes":
        return np.asarray(train.mean(0), np.float64)
    guess = np.zeros(shape)
    guess[np.bincount(train.astype(np.int64)).argmax()] = 1.0
    return guess


def _correct(ready: Prepared, outputs: NDArray[np.float64], targets: NDArray[Any]) -> NDArray[np.float64]:
    if ready.task.scored_by == KEY_METRIC:
        return np.asarray(key_credit(ready.classes)[targets, outputs.argmax(2)])
    if ready.task.kind == "classes":
        return np.asarray(outputs.argmax(2) == targets, np.float64)
    if ready.task.kind == "labels":
        right: NDArray[np.float64] = ((outputs > 0.5) == (targets > 0)).mean(2)
        return right
    return np.full(outputs.shape[:2], np.nan)  # of several values too


def _answer_frames(embedder: Embedder, ready: Prepared, assignment: NDArray[np.str_], prober: Prober) -> Fold:
    skipped: set[int] = set()

    def examples(part: str, most: int, known: NDArray[np.int64] | None = None) -> Examples:
        rows = np.flatnonzero(assignment == part)
        points = _drawn([np.flatnonzero(ready.targets[row] != UNLABELLED) for row in rows], most)
        values, codes, _ = _frames_at(embedder, ready, rows, points, skipped)
        refuse_none(codes, part, embedder, ready)
        learnable = np.ones(len(codes), bool) if known is None else np.isin(codes, known)
        kept = torch.from_numpy(np.flatnonzero(learnable))
        return Examples({layer: x[kept] for layer, x in values.items()}, torch.from_numpy(codes)[kept])

    train = examples("train", ready.task.frames)
    known, counts = np.unique(train.targets.numpy(), return_counts=True)
    dev = examples("dev", DEV_FRAMES, known)
    fitted = prober.fit("classes", train, dev, balanced=False, device=str(embedder.encoder.device))
    del train, dev
    commonest = int(known[counts.argmax()])
    dev_answers, test_answers = (
        frame_answers(embedder, ready, assignment, part, fitted, commonest, skipped) for part in ("dev", "test")
    )
    return Fold(fitted, dev_answers, test_answers, len(skipped), [])


def frame_answers(
    embedder: Embedder,
    ready: Prepared,
    assignment: NDArray[np.str_],
    part: str,
    heads: Heads,
    commonest: int,
    skipped: set[int],
) -> Answers:
    """What heads answer at the labelled grid points of a part's clips, counted by clip.

    A clip that cannot be embedded goes to `skipped` and gets the `commonest` class of train.
    """
    rows = np.flatnonzero(assignment == part)
    points = {row: np.flatnonzero(ready.targets[row] != UNLABELLED) for row in rows.tolist()}
    rows = rows[[len(points[row]) > 0 for row in rows.tolist()]]
    total = np.array([len(points[row]) for row in rows.tolist()], np.float64)
    correct = np.array([[(ready.targets[row] == commonest).sum() for row in rows]], np.float64)
    chunk = np.cumsum(total) // CHUNK_FRAMES
    for _, group in groupby(range(len(rows)), key=lambda index: chunk[index]):
        some = rows[list(group)]
        values, codes, clip = _frames_at(embedder, ready, some, [points[row] for row in some.tolist()], skipped, heads)
        if not len(codes):
            continue
        hits = heads.predict(values).argmax(2).numpy() == codes
        if len(correct) < len(hits):
            correct = np.repeat(correct, len(hits), 0)
        for row in np.unique(clip):
            correct[:, np.searchsorted(rows, row)] = hits[:, clip == row].sum(1)
    return Answers(rows, correct, total)


def _frames_at(
    embedder: Embedder,
    ready: Prepared,
    rows: NDArray[np.int64],
    points: list[NDArray[np.int64]],
    skipped: set[int],
    heads: Heads | None = None,
) -> tuple[ByLayer, NDArray[np.int64], NDArray[np.int64]]:
    """Frames by layer (those of `heads`) at grid points of clips, their codes and clips.

    Clips without points are not encoded; those that cannot be go to `skipped`.
    """
    kept = [index for index, point in enumerate(points) if len(point)]
    times = [grid_times(ready.manifest.durations[rows[index]])[points[index]] for index in kept]
    clip, values = embedder.frames(ready.manifest.select(rows[kept]), times, heads.layers if heads else None)
    present = np.unique(clip)
    skipped.update(int(rows[kept[index]]) for index in set(range(len(kept))) - set(present.tolist()))
    codes = [ready.targets[rows[kept[index]]][points[kept[index]]] for index in present]
    return values, np.concatenate([np.empty(0, np.int64), *codes]), rows[np.asarray(kept, np.int64)[clip]]


def _drawn(points: list[NDArray[np.int64]], most: int) -> list[NDArray[np.int64]]:
    """At most `most` of all points, at random under a fixed seed, those of a clip still in order."""
    clip = np.repeat(np.arange(len(points)), [len(point) for point in points])
    if len(clip) <= most:
        return points
    kept = np.zeros(len(clip), bool)
    kept[np.random.default_rng(0).choice(len(clip), most, replace=False)] = True
    whole = np.concatenate(points)
    return [whole[kept & (clip == index)] for index in range(len(points))]


def refuse_none(found: NDArray[np.int64], part: str, embedder: Embedder, ready: Prepared) -> None:
    """Raise `EvaluationError` where no clip (or frame) of a part was `found`."""
    if not len(found):
        raise EvaluationError(
            f"task {ready.task.name}: {embedder.name} could embed none of the clips in {part}; the log says why"
        )


def of_seed(answers: Answers, seed: int) -> Answers:
    """The answers of one seed; what was chosen in a fold may know fewer seeds than in others, or only one."""
    row = [seed % len(answers.correct)]
    outputs = None if answers.outputs is None else answers.outputs[row]
    total = answers.total if answers.total.ndim == 1 else answers.total[row]
    return replace(answers, correct=answers.correct[row], total=total, outputs=outputs)


def outcomes(ready: Prepared, answers: list[Answers]) -> Outcomes:
    """Answers on test, as metrics take them."""
    rows = np.concatenate([part.rows for part in answers])
    unit = np.unique([ready.units[row] for row in rows], return_inverse=True)[1]
    correct = np.concatenate([part.correct.mean(0) for part in answers])
    total = np.concatenate([np.atleast_2d(part.total).mean(0) for part in answers])
    target = correct if ready.task.level == "frame" else ready.targets[rows]
    outputs = [part.outputs for part in answers if part.outputs is not None]
    # folds of classes may know different numbers of them; only rankings and values need outputs
    joined = np.concatenate(outputs, 1) if outputs and ready.task.kind != "classes" else None
    return Outcomes(unit, target, correct, total, joined)


def table(ready: Prepared, part: str, answers: Answers) -> pa.Table:
    """Answers as rows of predictions, without the map."""
    rows = ready.manifest.select(answers.rows).table.select(["clip_id", "path", "start_s", "duration_s"])
    texts = [ready.texts[row] for row in answers.rows] if ready.texts else [None] * len(rows)
    correct = answers.correct.mean(0)
    columns = {
        "split": pa.array([part] * len(rows), pa.string()),
        "unit": pa.array([ready.units[row] for row in answers.rows], pa.string()),
        "target": pa.array(texts, pa.string()),
        "prediction": pa.array(_predictions(ready, answers), pa.string()),
        "correct": pa.array(correct, pa.float64(), mask=np.isnan(correct)),
        "total": pa.array(np.atleast_2d(answers.total).mean(0), pa.float64()),
        "outputs": pa.array(_flat(ready, answers), pa.list_(pa.float64())),
        **{name: pa.array(clips, pa.list_(pa.float64())) for name, clips in answers.times.items()},
    }
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def _predictions(ready: Prepared, answers: Answers) -> list[str | None]:
    """The answer of all seeds' mean, for people."""
    if answers.outputs is None:
        return [None] * len(answers.rows)
    mean = answers.outputs.mean(0)
    if ready.task.kind == "values":
        return [";".join(f"{value:.6g}" for value in np.atleast_1d(values)) for values in mean]
    if ready.task.kind == "classes":
        return [ready.classes[code] for code in mean.argmax(1)]
    return [";".join(name for name, hit in zip(ready.classes, row, strict=True) if hit) for row in mean > 0.5]


def _flat(ready: Prepared, answers: Answers) -> list[list[float] | None]:
    """Outputs of labels and values, seed after seed."""
    if answers.outputs is None or ready.task.kind == "classes":
        return [None] * len(answers.rows)
    return list(answers.outputs.swapaxes(0, 1).reshape(len(answers.rows), -1))


def _clips(embedder: Embedder, ready: Prepared, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], ByLayer]:
    """Which of some clips could be embedded, and their vectors; of clips that are cut, the means of their chunks."""
    if not isinstance(ready.task, MusicTask):
        return embedder.clips(ready.manifest.select(rows))
    from auricle.evaluation.probes.tracks import hear_tracks  # which imports this module

    heard = hear_tracks(embedder, ready)
    present = np.isin(rows, heard.rows)
    place = torch.from_numpy(np.searchsorted(heard.rows, rows[present]))
    return present, {layer: x[place] for layer, x in heard.means().items()}


def with_map(predictions: pa.Table, embedder: Embedder, ready: Prepared, heads: Heads) -> pa.Table:
    """The table with `map_x`, `map_y`: a t-SNE (started from PCA) of what the chosen head sees of at most 500 clips."""
    xy = np.full((len(predictions), 2), np.nan)
    if ready.task.level == "clip":
        order = {clip_id: row for row, clip_id in enumerate(ready.manifest.column("clip_id"))}
        rows = np.array([order[clip_id] for clip_id in predictions["clip_id"].to_pylist()])
        present, layers = _clips(embedder, ready, rows)
        shown = np.flatnonzero(present)
        shown = shown[np.unique(np.linspace(0, len(shown) - 1, MAPPED).astype(int))] if len(shown) > MAPPED else shown
        taken = torch.from_numpy((np.cumsum(present) - 1)[shown])
        seen = heads.view({layer: layers[layer][taken] for layer in heads.layers}).numpy() if len(shown) else shown
        if len(np.unique(seen, axis=0)) > 4:  # t-SNE does not survive clips that are all alike
            perplexity = min(30.0, (len(shown) - 1) / 3)
            xy[shown] = TSNE(init="pca", perplexity=perplexity, max_iter=300, random_state=0).fit_transform(seen)
    for name, column in zip(("map_x", "map_y"), xy.T, strict=True):
        predictions = predictions.append_column(name, pa.array(column, pa.float64(), mask=np.isnan(column)))
    return predictions
