"""MARBLE's grid against one head at a time in plain PyTorch, chunks and recordings, and planted answers."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from loudness import RATE, Loudness
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score, roc_auc_score
from torch.nn import functional

from auricle.data.manifest import Manifest
from auricle.errors import EvaluationError
from auricle.evaluation.answers import outcomes
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.probes import grouped, tracks
from auricle.evaluation.probes.grouped import MarbleConfig
from auricle.evaluation.probes.heads import Examples, ProbeConfig
from auricle.evaluation.probes.marble import MarbleProber, dev_measure, marble, marble_linear
from auricle.evaluation.probes.presets import auricle
from auricle.evaluation.probes.tracks import JOINS, answer_tracks, chunked, prepare_music
from auricle.evaluation.tasks.mir13 import Chunks, MusicTask

SMALL = MarbleConfig(lrs=(1e-2, 5e-2), hidden=8, batch=16, max_epochs=15, plateau=1, patience=3)


def data(kind, n, layers=4, dim=6, seed=0):
    """Noisy examples whose target depends on the first channels of layer 2."""
    rng = torch.Generator().manual_seed(seed)
    states = {index: torch.randn(n, dim, generator=rng) + 0.3 for index in range(layers)}
    goal = states[2][:, :3] + 0.7 * torch.randn(n, 3, generator=rng)
    targets = {"classes": goal.argmax(1), "labels": (goal > 0).float(), "values": 100 + 7 * goal[:, :2]}[kind]
    return Examples(states, targets)


# ------------------------------------------------------------------------------------------------- the grid

LOSSES = {
    "classes": functional.cross_entropy,
    "labels": functional.binary_cross_entropy_with_logits,
    "values": functional.mse_loss,
}
SCORES = {
    "classes": lambda z, y: accuracy_score(y, z.argmax(1)),
    "labels": lambda z, y: roc_auc_score(y, z),
    "values": lambda z, y: r2_score(y, z),
}


class Head(torch.nn.Module):
    """One probe of torch's own modules, with the initial weights and dropped units of the grid."""

    def __init__(self, layers, dim, outputs, config, seed):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        sizes = [dim, config.hidden, outputs] if config.head == "mlp" else [dim, outputs]
        self.lines = torch.nn.ModuleList(map(torch.nn.Linear, sizes, sizes[1:]))
        with torch.no_grad():
            for line in self.lines:
                for weight in (line.weight, line.bias):
                    shape = weight.shape if weight.dim() == 2 else (*weight.shape, 1)
                    weight.copy_(((torch.rand(shape, generator=rng) * 2 - 1) / line.in_features**0.5).view_as(weight))
        self.mix = torch.nn.Parameter(torch.randn(layers, 1, generator=rng)[:, 0])
        self.drops, self.config = torch.Generator().manual_seed(seed), config

    def forward(self, x):
        x = (self.mix.softmax(0)[:, None] * x).sum(1)
        for line in self.lines[:-1]:
            x = line(x).relu()
            if self.training and self.config.dropout:
                drawn = torch.rand(self.config.hidden, len(x), generator=self.drops).T
                x = x * (drawn >= self.config.dropout) / (1 - self.config.dropout)
        return self.lines[-1](x)


def one_at_a_time(kind, train, dev, test, layers, lr, config, seed):
    """The best dev score and the logits on test of one head, trained alone."""
    x, x_dev, x_test = (torch.stack([part.layers[layer] for layer in layers], 1) for part in (train, dev, test))
    y, y_dev = train.targets, dev.targets
    if kind == "values":
        mean, std = train.targets.mean(0), train.targets.std(0, correction=0)
        y, y_dev = (y - mean) / std, (y_dev - mean) / std
    head = Head(len(layers), x.shape[2], 3 if kind != "values" else 2, config, seed)
    optimizer = torch.optim.Adam(head.parameters(), lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, config.plateau)
    order, best, kept, stale = torch.Generator().manual_seed(seed), -np.inf, None, 0
    for _ in range(config.max_epochs):
        head.train()
        for rows in torch.randperm(len(x), generator=order).split(config.batch):
            optimizer.zero_grad()
            LOSSES[kind](head(x[rows]), y[rows]).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            score = SCORES[kind](head(x_dev), y_dev)
            schedule.step(score)
            stale = 0 if score > best else stale + 1
            if score > best:
                best, kept = score, head(x_test)
        if stale == config.patience:
            break
    return best, kept


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_a_grid_equals_its_heads_trained_one_at_a_time(kind, head):
    train, dev, test = (data(kind, n, seed=seed) for seed, n in enumerate((70, 60, 40)))
    config = SMALL.model_copy(update={"head": head})
    fitted = MarbleProber(config, ProbeConfig(seeds=(3, 4))).fit(kind, train, dev, balanced=False, device="cpu")
    read = {0: (0,), 1: (1,), 2: (2,), 3: (3,), "sum": (1, 2, 3)}
    assert [(trial.layer, trial.lr) for trial in fitted.trials] == [(layer, lr) for layer in read for lr in config.lrs]
    for trial in fitted.trials:
        score, _ = one_at_a_time(kind, train, dev, test, read[trial.layer], trial.lr, config, 3)
        assert trial.dev[0] == pytest.approx(score, abs=1e-4)
    assert fitted.choice in fitted.trials
    assert fitted.choice.dev[0] == max(trial.dev[0] for trial in fitted.trials)
    logits = fitted.logits({layer: test.layers[layer] for layer in fitted.layers})
    for place, seed in enumerate((3, 4)):  # the other seeds repeat the choice
        score, wanted = one_at_a_time(kind, train, dev, test, read[fitted.choice.layer], fitted.choice.lr, config, seed)
        assert fitted.choice.dev[place] == pytest.approx(score, abs=1e-4)
        torch.testing.assert_close(logits[place].T, wanted, rtol=1e-4, atol=1e-4)
    answers = fitted.predict(test.layers)
    if kind == "values":
        scaled = logits.mT * train.targets.std(0, correction=0) + train.targets.mean(0)
        torch.testing.assert_close(answers, scaled)
    else:
        torch.testing.assert_close(answers, logits.mT.softmax(-1) if kind == "classes" else logits.mT.sigmoid())


def test_heads_do_not_depend_on_their_neighbours(monkeypatch):
    train, dev = data("classes", 80), data("classes", 50, seed=1)

    def trials(config=SMALL, **probe):
        probe = ProbeConfig(seeds=(0,), **probe)
        fitted = MarbleProber(config, probe).fit("classes", train, dev, balanced=False, device="cpu")
        return {(trial.layer, trial.lr): trial.dev[0] for trial in fitted.trials}

    together = trials()
    monkeypatch.setitem(grouped.GROUP_BYTES, "cpu", 1)  # every head by itself
    assert trials() == pytest.approx(together, abs=1e-6)
    alone = trials(SMALL.model_copy(update={"lrs": (5e-2,)}), layers=(1,))
    assert alone == pytest.approx({(1, 5e-2): together[1, 5e-2]}, abs=1e-6)


def test_layers_of_several_widths_are_tried():
    train, dev = (data("classes", 80, seed=seed) for seed in (0, 1))
    for part in (train, dev):
        part.layers[0] = part.layers[0][:, :2]
    fitted = MarbleProber(SMALL, ProbeConfig()).fit("classes", train, dev, balanced=False, device="cpu")
    assert {trial.layer for trial in fitted.trials} == {0, 1, 2, 3, "sum"}
    assert fitted.choice.layer in (2, "sum")


def test_the_layer_that_holds_the_answer_is_chosen():
    fitted = marble_linear(ProbeConfig(seeds=(0,), layers=(0, 1, 2, 3))).fit(
        "classes", data("classes", 300), data("classes", 200, seed=1), balanced=False, device="cpu"
    )
    assert fitted.choice.layer == 2
    assert fitted.layers == (2,)
    torch.testing.assert_close(fitted.view({2: torch.ones(3, 6)}), torch.ones(3, 6))


def test_the_sum_is_chosen_where_layers_hold_parts_of_the_answer_and_never_reads_layer_0():
    rng = torch.Generator().manual_seed(0)

    def examples(n):
        parts = {index: torch.randn(n, 1, generator=rng) for index in range(1, 4)}
        return Examples({0: torch.zeros(n, 1), **parts}, (parts[1] + parts[2] > 0)[:, 0].long())

    config = MarbleConfig(head="linear", lrs=(3e-2,))
    fitted = MarbleProber(config, ProbeConfig(seeds=(0,))).fit(
        "classes", examples(500), examples(300), balanced=False, device="cpu"
    )
    assert fitted.choice.layer == "sum"
    assert fitted.layers == (1, 2, 3)
    assert fitted.networks[0].mix.softmax(0)[2] < 0.1  # the layer of noise
    assert fitted.choice.dev[0] > 0.95


def test_the_grid_is_marbles():
    trials = marble(ProbeConfig(seeds=(0,))).config
    assert (trials.hidden, trials.dropout, trials.batch, trials.max_epochs) == (512, 0.2, 64, 100)
    x = {index: torch.randn(8, 2) for index in range(13)}
    probe = ProbeConfig(seeds=(0,))
    points = [point for group in grouped.groups(x, probe, trials, 2) for row in group.points for point in row]
    assert len(points) == len(set(points)) == 84


def test_dev_scores_are_those_of_scikit_learn():
    rng = torch.Generator().manual_seed(1)
    z, y = torch.randn(2, 3, 50, generator=rng), torch.randint(3, (50,), generator=rng)
    z[..., :20] = 0  # ties
    for balanced, metric in ((False, accuracy_score), (True, balanced_accuracy_score)):
        found = dev_measure("classes", y, balanced)(z)
        assert found.tolist() == pytest.approx([metric(y, one.argmax(0)) for one in z])
    hits = (torch.rand(50, 3, generator=rng) > 0.7).float()
    assert dev_measure("labels", hits)(z).tolist() == pytest.approx([roc_auc_score(hits, one.T) for one in z])
    absent = torch.cat([hits, torch.zeros(50, 1), torch.ones(50, 1)], 1)  # labels without an area are left out
    more = torch.cat([z, torch.randn(2, 2, 50, generator=rng)], 1)
    assert dev_measure("labels", absent)(more).tolist() == pytest.approx(dev_measure("labels", hits)(z).tolist())
    values = torch.randn(50, 3, generator=rng)
    assert dev_measure("values", values)(z).tolist() == pytest.approx([r2_score(values, one.T) for one in z], abs=1e-5)


def test_divergence_loses_and_total_divergence_is_one_line():
    train = data("classes", 50)
    fitted = MarbleProber(SMALL.model_copy(update={"lrs": (1e38, 1e-2)}), ProbeConfig(seeds=(0,))).fit(
        "classes", train, train, balanced=False, device="cpu"
    )
    assert fitted.choice.lr == 1e-2
    broken = Examples({0: torch.full((50, 2), torch.nan)}, train.targets)
    with pytest.raises(EvaluationError, match="finite dev score"):
        MarbleProber(SMALL, ProbeConfig()).fit("classes", broken, broken, balanced=False, device="cpu")


# ------------------------------------------------------------------------------------------ chunks and recordings


@pytest.mark.parametrize(
    ("duration", "chunks", "wanted"),
    [
        (29.0, None, [(0, 29)]),
        (95.0, Chunks(30), [(0, 30), (30, 30), (60, 30), (90, 5)]),
        (90.5, Chunks(30), [(0, 30), (30, 30), (60, 30)]),
        (120.0, Chunks(30, tail_s=30), [(0, 30), (30, 30), (60, 30), (90, 30)]),
        (119.0, Chunks(30, tail_s=30), [(0, 30), (30, 30), (60, 30)]),
        (119.9995, Chunks(30, tail_s=30), [(0, 30), (30, 30), (60, 30), (90, 29.9995)]),
        (45.0, Chunks(5, most_s=30), [(start, 5) for start in range(0, 30, 5)]),
        (0.4, Chunks(5), [(0, 0.4)]),
        (2.0, Chunks(3, tail_s=3), [(0, 2)]),
    ],
)
def test_recordings_are_cut_by_the_rules(duration, chunks, wanted):
    columns = {
        "clip_id": ["a", "b"], "path": ["/x/a.wav", "/x/b.wav"], "start_s": [0.0, 10.0],
        "duration_s": [duration, duration], "sample_rate": [16_000] * 2, "split": ["train"] * 2, "key": ["C", "D"],
    }  # fmt: skip
    cut = chunked(Manifest(pa.table(columns)), chunks)
    count = len(wanted)
    assert cut.column("track") == ["a"] * count + ["b"] * count
    assert cut.column("key") == ["C"] * count + ["D"] * count
    assert cut.column("clip_id") == [f"{name}#{number}" for name in "ab" for number in range(count)]
    found = np.array([cut.column("start_s"), cut.durations]).T
    np.testing.assert_allclose(found[:count], wanted, atol=1e-9)
    np.testing.assert_allclose(found[count:] - [10, 0], wanted, atol=1e-9)


def test_chunks_are_joined_as_a_slow_loop_does():
    rng = torch.Generator().manual_seed(0)
    logits, track = torch.randn(2, 4, 9, generator=rng), torch.tensor([0, 0, 2, 1, 1, 1, 2, 2, 2])
    for head in range(2):
        for place in range(3):
            chunks = logits[head][:, track == place].T.double()  # (n, K)
            votes = torch.bincount(chunks.argmax(1), minlength=4)
            answers = {name: join(logits, track, 3)[head, :, place].double() for name, join in JOINS.items()}
            torch.testing.assert_close(answers["mean logit"], chunks.mean(0), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(answers["max logit"], chunks.amax(0), rtol=1e-5, atol=1e-5)
            mean = chunks.softmax(1).mean(0)
            torch.testing.assert_close(answers["mean probability"].exp(), mean, rtol=1e-5, atol=1e-5)
            winners = (votes == votes.max()).nonzero()[:, 0].tolist()
            assert answers["majority"].argmax() == max(winners, key=lambda code: float(mean[code]))


LENGTH = 0.2
"""Seconds of a chunk."""


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """90 recordings of two or three chunks: most chunks have their recording's loudness, one in some has another's."""
    folder, rng = tmp_path_factory.mktemp("songs"), np.random.default_rng(0)
    for song in range(90):
        levels = [(1 + song % 3) / 10] * (2 + song % 2)
        if song % 2:
            levels[song % 3] = (1 + (song + 1) % 3) / 10
        waves = [np.full(round(LENGTH * RATE), level) for level in levels]
        soundfile.write(
            folder / f"{song:02}.wav", np.concatenate(waves) + rng.normal(0, 1e-4, sum(map(len, waves))), RATE
        )
    return folder


KEYS = ["C major", "G major", "A minor"]


def song_columns(**columns):
    number = np.arange(90)
    basic = {
        "path": [f"{song:02}.wav" for song in number],
        "split": ["train"] * 42 + ["dev"] * 24 + ["test"] * 24,
        "key": [KEYS[song % 3] for song in number],
        "arousal": (number % 3).astype(float).tolist(),
        "valence": (-2.0 * (number % 3 == 1) + 5).tolist(),
        "tags": [["all", f"tag {song % 3}"] if song % 5 else [f"tag {song % 3}"] for song in number],
    }
    return basic | columns


TASKS = {
    "key": MusicTask("key", "key", "classes", metric="accuracy", split="split", protocol="marble"),
    "emotion": MusicTask("emotion", "arousal", "values", split="split", protocol="marble", also=("valence",)),
    "tags": MusicTask("tags", "tags", "labels", metric="roc_auc", split="split", protocol="marble"),
}
QUICK = {"lrs": (1e-2, 5e-2), "hidden": 16, "max_epochs": 30}


def fold_of(songs, task, prober=None, encoder=None, **columns):
    task = replace(task, training=QUICK, chunks=task.chunks or Chunks(LENGTH, tail_s=LENGTH))
    ready = prepare_music(task, Manifest.from_columns(song_columns(**columns), songs))
    embedder = Embedder(encoder or Loudness(), "mean", 60.0)
    (fold,) = answer_tracks(embedder, ready, prober or marble(ProbeConfig(seeds=(0,))))
    return ready, fold


def test_a_perfect_feature_scores_one_by_recordings(songs):
    encoder = Loudness()
    ready, fold = fold_of(songs, TASKS["key"], encoder=encoder)
    assert fold.fitted.choice.dev == (1.0,)
    assert fold.fitted.choice.layer == 1
    np.testing.assert_array_equal(fold.test.correct, 1)  # recordings of three chunks, one of which misleads
    assert len(fold.test.rows) == 24
    assert fold.test.outputs.shape == (1, 24, 3)
    assert fold.skipped == 0
    chunks = answer_by_chunks(fold, encoder, ready)
    assert chunks < 0.95


def answer_by_chunks(fold, encoder, ready):
    """Accuracy of the same probe on chunks one by one."""
    heard = tracks.hear_tracks(Embedder(encoder, "mean", 60.0), ready)
    answers = fold.fitted.predict(heard.layers)[0].argmax(1).numpy()
    return (answers == ready.targets[heard.rows][heard.track.numpy()]).mean()


def test_several_values_and_labels_return(songs):
    ready, fold = fold_of(songs, TASKS["emotion"])
    assert ready.classes == ["arousal", "valence"]
    assert fold.test.outputs.shape == (1, 24, 2)
    for column in range(2):
        assert r2_score(ready.targets[fold.test.rows, column], fold.test.outputs[0, :, column]) > 0.6  # some chunks lie
    ready, fold = fold_of(songs, TASKS["tags"])
    shown = [code for code, name in enumerate(ready.classes) if name != "all"]
    targets, outputs = ready.targets[fold.test.rows], fold.test.outputs[0]
    assert roc_auc_score(targets[:, shown], outputs[:, shown]) > 0.99
    assert outcomes(ready, [fold.test]).outputs.shape == (1, 24, 4)


def test_shuffled_labels_score_chance(songs):
    rng = np.random.default_rng(0)
    _, fold = fold_of(songs, TASKS["key"], key=rng.permutation([KEYS[song % 3] for song in range(90)]).tolist())
    assert fold.test.correct.mean() < 0.6


def test_nothing_of_test_is_seen_before_the_choice(songs):
    keys = [KEYS[song % 3] for song in range(90)]
    asked = []

    class Spy(MarbleProber):
        def search(self, kind, train, dev, measure, device):
            asked.append((train, dev))
            return super().search(kind, train, dev, measure, device)

    prober = Spy(MarbleConfig(), ProbeConfig(seeds=(0,)))
    _, first = fold_of(songs, TASKS["key"], prober)
    other = keys[:66] + [KEYS[(song + 1) % 3] for song in range(66, 90)]
    _, second = fold_of(songs, TASKS["key"], prober, key=other)
    assert first.fitted.trials == second.fitted.trials
    np.testing.assert_array_equal(first.test.outputs, second.test.outputs)
    assert second.test.correct.max() == 0
    counts = [2 + song % 2 for song in range(90)]
    for train, dev in asked:
        assert len(train.targets) == sum(counts[:42])
        assert len(dev[1]) == sum(counts[42:66])


def test_keys_are_joined_in_the_way_that_is_best_on_dev(songs):
    ready, fold = fold_of(songs, replace(TASKS["key"], metric="weighted_key"))
    assert fold.fitted.choice.detail in JOINS
    assert fold.fitted.choice.dev == (1.0,)
    np.testing.assert_array_equal(fold.test.correct, 1)
    wrong = [KEYS[(song + (song >= 66)) % 3] for song in range(90)]  # test tells C where G is written, and so on
    ready, fold = fold_of(songs, replace(TASKS["key"], metric="weighted_key"), key=wrong)
    credits = {("C major", "A minor"): 0.3, ("G major", "C major"): 0.0, ("A minor", "G major"): 0.0}
    told = [ready.classes[code] for code in fold.test.outputs[0].argmax(1)]
    truth = [ready.classes[code] for code in ready.targets[fold.test.rows]]
    wanted = [credits.get((true, guess), 0.0) for true, guess in zip(truth, told, strict=True)]
    np.testing.assert_allclose(fold.test.correct[0], wanted)


def test_other_protocols_answer_by_recordings_too(songs):
    prober = auricle(ProbeConfig(lrs=(1e-2,), seeds=(0,), max_steps=200))
    _, fold = fold_of(songs, TASKS["key"], prober)
    np.testing.assert_array_equal(fold.test.correct, 1)
    assert fold.test.outputs.shape == (1, 24, 3)
    with pytest.raises(EvaluationError, match="learns one value"):
        fold_of(songs, replace(TASKS["emotion"], protocol="knn"), prober)


def test_chunks_may_be_scored_apart(songs):
    task = replace(TASKS["key"], chunks=Chunks(LENGTH, tail_s=LENGTH, apart=True), unit="track")
    ready, fold = fold_of(songs, task)
    assert len(fold.test.rows) == sum(2 + song % 2 for song in range(66, 90))
    assert len(set(ready.units)) == 90
    assert 0.6 < fold.test.correct.mean() < 0.95


def test_every_chunk_is_encoded_once_and_lost_recordings_are_counted(songs, tmp_path):
    for path in songs.glob("*.wav"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data, encoder = Manifest.from_columns(song_columns(), tmp_path), Loudness()
    for song in (3, 50, 80):
        (tmp_path / f"{song:02}.wav").unlink()
    embedder, calls = Embedder(encoder, "mean", 60.0), []
    for task in (TASKS["key"], TASKS["tags"]):
        ready = prepare_music(replace(task, training=QUICK, chunks=Chunks(LENGTH, tail_s=LENGTH)), data)
        (fold,) = answer_tracks(embedder, ready, marble(ProbeConfig(seeds=(0,))))
        assert fold.skipped == 3
        assert len(fold.test.rows) == 24
        calls.append(encoder.calls)
    assert calls[0] == calls[1]
