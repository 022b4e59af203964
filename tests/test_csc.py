"""CSC against its definition, written out in float64; who is told from whom; supervision that is never forgotten."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace

import pytest
import soundfile
import torch
import torch.nn.functional as F
from test_training import lines, quiet
from tiny import learn
from torch import Tensor

from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.checkpoint import load, save
from auricle.errors import ConfigError
from auricle.evaluation.results import read_results, table
from auricle.evaluation.run import evaluate
from auricle.methods import preset
from auricle.methods.contrast import Clusters, Contrast, ContrastConfig
from auricle.methods.csc import Csc, CscRun
from auricle.nn.kmeans import KMeansConfig
from auricle.nn.mixtures import Mixtures
from auricle.training.loop import resume

RATE = 8000
TOY = {
    "encoder": {
        **{"trunk": "mel", "sample_rate": RATE, "n_mels": 20, "dim": 16, "heads": 2, "ffn": 32, "embedding": 8},
        **{"shared_blocks": 1, "separation_blocks": 1, "speaker_blocks": 1, "dropout": 0.0},
    },
    "objective": {"crop_s": 0.25, "crops": 3, "alpha": 4.0},
}
GALR = {"trunk": "galr", "window": 16, "segment": 16, "low": 4, "hidden": 8}
TABLE = {"supervision": "speaker", "vectors": "table", "identities": 5}
PSEUDO = {"supervision": "pseudo", "clusters": {"clusters": 3, "rows": 12, "batches": 5, "inits": 2}, "refresh": 2}


def small(encoder: dict | None = None, **objective: object) -> CscRun:
    run = edit(preset("csc_tiny"), **TOY)
    return edit(run, encoder=encoder or {}, objective=objective)  # type: ignore[return-value]


def voices(count: int, seed: int, crops: int = 3, seconds: float = 0.25) -> Batch:
    """Recordings of `count` talkers, two a pitch and formant of their own if `count` is 16: harmonics in bursts."""
    generator = torch.Generator().manual_seed(seed)
    who = torch.randperm(16, generator=generator)[:count]
    time = torch.arange(int(crops * seconds * RATE)) / RATE
    hz = 90 * 1.09 ** who[:, None, None]
    order = torch.arange(1, 25)[:, None]
    drift = 1 + 0.02 * torch.randn(count, 1, 1, generator=generator)
    envelope = (-(((order * hz) - (500 + 150 * (who * 7 % 16))[:, None, None]) ** 2) / 3e5).exp() + 0.05
    phase = 2 * math.pi * torch.rand(count, 24, 1, generator=generator)
    sound = (envelope * torch.sin(2 * math.pi * order * hz * drift * time + phase)).sum(1)  # (I, S)
    bursts = torch.rand(count, len(time) // 400 + 1, generator=generator).repeat_interleave(400, 1)[:, : len(time)]
    sound = sound * (0.3 + bursts) + 0.01 * torch.randn(sound.shape, generator=generator)
    waveforms = (0.1 * sound).view(count * crops, -1)
    ids = [str(i) for i in range(count) for _ in range(crops)]
    labels = {"speaker": who.repeat_interleave(crops), "path": torch.arange(count).repeat_interleave(crops)}
    return Batch(waveforms, torch.full((count * crops,), waveforms.shape[1]), ids, torch.zeros(count * crops), labels)


def listened(monkeypatch: pytest.MonkeyPatch) -> list:
    """What `Csc._hear` returns from now on."""
    hear, results = Csc._hear, []

    def spy(*args):
        results.append(hear(*args))
        return results[-1]

    monkeypatch.setattr(Csc, "_hear", spy)
    return results


# -------------------------------------------------------------------------------------- the loss, by its definition


def by_hand_si_snr(estimate: Tensor, source: Tensor) -> Tensor:
    estimate, source = estimate - estimate.mean(), source - source.mean()
    part = (estimate @ source) / (source @ source) * source
    return 10 * torch.log10((part @ part) / ((estimate - part) @ (estimate - part)))


def cost(query: Tensor, others: list[Tensor], own: int, alpha: Tensor) -> Tensor:
    exponents = torch.stack([-alpha * (query - other).square().sum() for other in others])
    return exponents.logsumexp(0) - exponents[own]


def reference(model: Csc, heard: object, speakers: list[int] | None, in_batch: bool) -> dict[str, float]:
    """Mean attended and bottom-up loss, one query after another, and separation over all orders."""
    model = model.double()
    contrast, mixed, z = model.contrast, heard.mixed, heard.z.double()
    recordings, conditions, talking, _ = z.shape
    alpha, attended, bottom_up = contrast.vectors.alpha, [], []

    def unit(x: Tensor) -> Tensor:
        return x / x.norm()

    def gathered(i: int, m: int, leave_one_out: bool) -> Tensor:
        among = [k for k in range(conditions) if not (leave_one_out and k == m)]
        if contrast.attention is None:
            return unit(sum(z[i, k, 0] for k in among))
        part = contrast.attention
        seen = [z[i, k, 0] for k in among]
        if part.scope == "batch":
            seen = [*z[:, :, 0].flatten(0, 1), *z[:, :, 1:].flatten(0, 2)]
        q = part.query.weight @ z[i, m, 0]
        shares = torch.stack([q @ (part.key.weight @ other) / math.sqrt(len(q)) for other in seen]).softmax(0)
        return unit(sum(share * (part.value.weight @ other) for share, other in zip(shares, seen, strict=True)))

    def told(query: Tensor, i: int, bank: list[Tensor]) -> Tensor:
        who = speakers or list(range(recordings))
        others = [bank[k] for k in range(recordings) if who[k] != who[i]]
        same = [bank[k] for k in range(recordings) if who[k] == who[i]]
        return torch.stack([cost(query, [vector, *others], 0, alpha) for vector in same]).mean()

    for i, m in itertools.product(range(recordings), range(conditions)):
        if in_batch:
            attended.append(told(gathered(i, m, True), i, [z[k, m, 0] for k in range(recordings)]))
        else:
            e = [unit(row) for row in contrast.vectors.e]
            attended.append(cost(gathered(i, m, False), e, speakers[i], alpha))
        for c in range(talking):
            who = i if c == 0 else int(mixed.interferer[i, m, c - 1])
            crop = m if c == 0 else int(mixed.crop[i, m, c - 1])
            if in_batch:
                bottom_up.append(told(z[i, m, c], who, [gathered(k, crop, True) for k in range(recordings)]))
            else:
                bottom_up.append(cost(z[i, m, c], e, speakers[who], alpha))
    gains = []
    estimates = heard.estimates.double() if heard.estimates is not None else mixed.mixture.double().flatten(0, 1)
    for estimate, source in zip(estimates, mixed.sources.double().flatten(0, 1), strict=True):
        if heard.estimates is not None:
            orders = itertools.permutations(range(talking))
            every = [torch.stack([by_hand_si_snr(estimate[k], source[j]) for j, k in enumerate(o)]) for o in orders]
            gains.append(max(scores.mean() for scores in every))
    return {
        "contrastive": torch.stack(attended).mean().item(),
        "bottom_up": torch.stack(bottom_up).mean().item(),
        "si_snr": torch.stack(gains).mean().item() if gains else 0.0,
    }


CASES = {
    "none": (small(), None),
    "galr": (small(GALR), None),
    "mean": (small(attention="none", crops=2, separation=0.5), None),
    "speaker": (small(supervision="speaker"), [1, 4, 1, 0]),
    "table": (small(**TABLE), [1, 4, 1, 0]),
    "average": (small(**TABLE | {"vectors": "ema"}), [1, 4, 1, 0]),
    "attention over all": (small(**TABLE, attention="batch"), [1, 4, 1, 0]),
    "one crop": (small(**TABLE, crops=1), [1, 4, 1, 0]),
    "not separated": (small(separation=0.0), None),
}


@pytest.mark.parametrize(("run", "speakers"), CASES.values(), ids=CASES)
def test_loss_is_the_reference(run, speakers, monkeypatch):
    torch.manual_seed(0)
    model, crops, heard = run.build().train(), run.objective.crops, listened(monkeypatch)
    with torch.no_grad():
        for weight in [*model.contrast.parameters(), *model.encoder.masks.parameters()]:
            weight += 0.1 * torch.randn_like(weight)  # attention that prefers, masks that separate
    batch = voices(4, 0, crops)
    batch = replace(
        batch, labels={run.objective.column: torch.tensor(speakers or [0, 1, 2, 3]).repeat_interleave(crops)}
    )
    step = model(batch)
    config = run.objective
    wanted = reference(model, heard[0], speakers, config.vectors == "inbatch")
    assert step.count == 4 * crops
    for name in ("contrastive", "bottom_up"):
        assert step.metrics[name].item() == pytest.approx(wanted[name], abs=1e-4)
    loss = config.contrastive * wanted["contrastive"] + config.bottom_up * wanted["bottom_up"]
    loss -= config.separation * wanted["si_snr"]
    assert step.loss.item() == pytest.approx(loss, abs=1e-3)
    if speakers is not None:
        mixed = heard[0].mixed
        assert all(speakers[i] != speakers[int(mixed.interferer[i, m, 0])] for i in range(4) for m in range(crops))


@pytest.mark.parametrize(("run", "speakers"), CASES.values(), ids=CASES)
def test_gradients_reach_every_trained_parameter(run, speakers):
    torch.manual_seed(0)
    model, crops = run.build().train(), run.objective.crops
    labels = torch.tensor(speakers or [0, 1, 2, 3]).repeat_interleave(crops)
    model(replace(voices(4, 0, crops), labels={run.objective.column: labels})).loss.backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    expected = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    if crops == 1:  # a single condition gets all attention, whatever asks
        expected |= {"contrast.attention.query.weight", "contrast.attention.key.weight"}
    assert without == expected
    unused = ("encoder.separation", "encoder.masks", "encoder.front.synthesis")
    assert all(name.startswith(unused) for name in expected) or crops == 1
    assert bool(expected) == (run.objective.separation == 0 or crops == 1)


def test_equal_embeddings_cost_what_guessing_does_and_ring():
    torch.manual_seed(0)
    model = small().build().eval()
    model.encoder.who.weight.data.zero_()
    model.encoder.who.bias.data.fill_(1.0)
    step = model(voices(5, 0))
    for name in ("contrastive", "bottom_up", "contrastive_trivial"):
        assert step.metrics[name].item() == pytest.approx(math.log(5), abs=1e-5)
    assert step.metrics["information"].item() == pytest.approx(0, abs=1e-5)
    assert step.metrics["embedding_spread"].item() == pytest.approx(0, abs=1e-5)
    assert list(model.alarms({name: float(value) for name, value in step.metrics.items()})) == ["collapse"]


def test_the_trivial_loss_is_that_of_the_mixture_and_of_guessing(monkeypatch):
    torch.manual_seed(0)
    model, heard = small().build().eval(), listened(monkeypatch)
    model.encoder.masks.weight.data.zero_()  # then every stream is half the mixture
    model.encoder.who.weight.data.zero_()
    model.encoder.who.bias.data.fill_(1.0)
    step = model(voices(5, 0))
    assert step.loss.item() == pytest.approx(step.metrics["trivial"].item(), abs=1e-3)
    assert step.metrics["si_snr_improvement"].item() == pytest.approx(0, abs=1e-3)
    mixed = heard[0].mixed
    before = [
        by_hand_si_snr(mixed.mixture[i, m].double(), mixed.sources[i, m, c].double())
        for i, m, c in itertools.product(range(5), range(3), range(2))
    ]
    wanted = 10 * math.log(5) - torch.stack(before).mean().item()
    assert step.metrics["trivial"].item() == pytest.approx(wanted, abs=1e-3)


def test_alarms_tell_what_learned_nothing():
    model = small().build()
    good = {"embedding_spread": 0.9, "contrastive_trivial": 2.0, "contrastive": 1.5, "information": 0.5}
    assert model.alarms(good) == {}
    bad = model.alarms(good | {"contrastive": 2.1, "information": -0.1})
    assert bad == {"no information": "telling talkers by their embeddings costs 2.1 nats, guessing 2: train longer, "
                   "or on more of them"}  # fmt: skip
    alone = good | {"contrastive_trivial": 0.0, "contrastive": 0.0, "information": 0.0}  # one crop: nothing to tell
    assert model.alarms(alone) == {}


def test_what_is_silent_or_alone_counts_for_nothing():
    torch.manual_seed(0)
    model, batch = small().build().eval(), voices(4, 0)
    silent = batch.waveforms.clone()
    silent[3:4] = 0  # the first crop of the second recording
    step = model(replace(batch, waveforms=silent))
    assert step.count == 9
    assert step.metrics["contrastive_trivial"].item() == pytest.approx(math.log(3), abs=1e-6)
    labels = {name: codes[:3] for name, codes in batch.labels.items()}
    alone = replace(batch, waveforms=batch.waveforms[:3], lengths=batch.lengths[:3], labels=labels)
    step = model.train()(alone)
    assert step.count == 0
    (step.loss * step.count).backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


def test_nothing_favours_a_recordings_own_vector_but_the_talker():
    """Embeddings drawn alike for all cost guessing at least: no talker is found who is not there."""
    torch.manual_seed(0)
    contrast = Contrast(8, ContrastConfig()).eval()
    recordings, information = 16, []
    for number in range(200):
        z = F.normalize(torch.randn(recordings, 2, 2, 8, generator=torch.Generator().manual_seed(number)), dim=-1)
        other = (torch.arange(recordings)[:, None, None].expand(-1, 2, 1) + 1) % recordings
        usable = torch.ones(recordings, 2, dtype=torch.bool)
        mixed = Mixtures(z[..., 0, 0], z, z[..., :1, 0], other, torch.zeros_like(other), usable)
        told = contrast(z, mixed, torch.arange(recordings))
        assert torch.equal(told.chance, torch.full((recordings, 2), math.log(recordings)))
        information.append((told.attended_right.mean() + told.bottom_up_right.mean()) / 2)
        assert (told.chance - told.attended).mean() < 0
        assert (told.chance - told.bottom_up).mean() < 0
    assert torch.stack(information).mean().item() == pytest.approx(1 / recordings, abs=0.01)


def test_separation_comes_first_where_asked():
    torch.manual_seed(0)
    model, batch = small(separation_first=2).build().train(), voices(4, 0)
    weights = [weight for name, weight in model.named_parameters() if "speaker" in name or "contrast" in name]
    for step in (1, 2, 3):
        model.zero_grad()
        model(batch).loss.backward()
        assert any(weight.grad.any() for weight in weights) == (step == 3)
        model.on_optimizer_step(step)


# ---------------------------------------------------------------------------------------------- labels, clusters


def test_labels_are_read_only_where_they_are_asked_for():
    assert small().build().needs.columns == ("path",)  # the recordings themselves
    assert small(**PSEUDO).build().needs.columns == ("path",)
    assert small(supervision="session").build().needs.columns == ("session",)
    needs = small(supervision="speaker", label_column="voice").build().needs
    assert (needs.columns, needs.crops, needs.disjoint, needs.columns_optional) == (("voice",), 3, True, False)
    assert needs.min_clips == 2
    batch = voices(4, 0)
    for run in (small(), small(**PSEUDO)):
        run.build().train()(replace(batch, labels={"path": batch.labels["path"]}))
    with pytest.raises(KeyError):
        small(supervision="speaker").build().train()(replace(batch, labels={"path": batch.labels["path"]}))


def test_clips_of_one_recording_are_told_from_others_not_from_each_other(monkeypatch):
    torch.manual_seed(0)
    model, batch, heard = small().build().eval(), voices(4, 0), listened(monkeypatch)
    step = model(replace(batch, labels={"path": torch.tensor([0, 1, 1, 2]).repeat_interleave(3)}))
    wanted = (2 * math.log(4) + 2 * math.log(3)) / 4
    assert step.metrics["contrastive_trivial"].item() == pytest.approx(wanted, abs=1e-6)
    assert not set(heard[0].mixed.interferer[1].flatten().tolist()) & {1, 2}


def test_more_labels_than_the_table_has_rows_are_told():
    torch.manual_seed(0)
    model, batch = small(**TABLE).build().train(), voices(4, 0)
    model(replace(batch, labels={"speaker": torch.tensor([0, 4, 2, 1]).repeat_interleave(3)}))
    model.on_optimizer_step(1)
    model(replace(batch, labels={"speaker": torch.tensor([0, 7, 2, 1]).repeat_interleave(3)}))
    with pytest.raises(ConfigError, match="5 are fewer than the values of column 'speaker', 8 or more"):
        model.on_optimizer_step(100)


def test_clusters_are_the_talkers_and_made_anew():
    torch.manual_seed(0)
    model = small(**PSEUDO, vectors="table").build().train()
    clusters, vectors = model.contrast.clusters, model.contrast.vectors
    assert isinstance(clusters, Clusters)
    model.prepare(voices(4, seed) for seed in itertools.count())
    assert clusters.recent.norm(dim=1).tolist() == pytest.approx([1.0] * 12, abs=1e-5)
    assert torch.equal(vectors.e, F.normalize(clusters.centroids, dim=1))
    before, recent = clusters.centroids.clone(), clusters.recent.clone()
    for step in (1, 2):
        model(voices(4, 50 + step)).loss.backward()
        assert torch.equal(clusters.centroids, before)
        model.on_optimizer_step(step)
    assert torch.equal(clusters.recent[:4], recent[8:])
    assert not torch.equal(clusters.centroids, before)
    assert torch.equal(vectors.e, F.normalize(clusters.centroids, dim=1))
    model.eval()(voices(4, 9))
    assert torch.equal(clusters.recent[:4], recent[8:])  # held-out recordings are not kept


def test_clusters_find_planted_talkers():
    torch.manual_seed(0)
    clusters = Clusters(6, KMeansConfig(clusters=3, rows=60, batches=20, inits=5)).train()
    centres = torch.eye(6)[:3]
    who = torch.arange(60) % 3
    z = F.normalize(centres[who][:, None] + 0.1 * torch.randn(60, 2, 6), dim=-1)
    clusters.begin(iter([z]))
    found = clusters(z)
    assert len({(a, b) for a, b in zip(who.tolist(), found.tolist(), strict=True)}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"vectors": "table"}}, "'table' needs labels or clusters"),
        ({"objective": {"vectors": "ema", "supervision": "speaker"}}, "identities: 'ema' needs to know how many"),
        ({"objective": {"attention": "batch"}}, "'batch' would hear"),
        ({"objective": {"crops": 1}}, "crops: 'inbatch' compares conditions"),
        ({"objective": {"mix": {"sources": 3}}}, "encoder.sources: 2 streams for objective.mix.sources, 3 talkers"),
        ({"objective": {"supervision": "speakers"}}, "supervision"),
    ],
)
def test_impossible_runs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        edit(preset("csc_galr_base"), **changes)


# -------------------------------------------------------------------------------------------------------- learning


def test_training_tells_unheard_recordings_of_talkers_apart_and_separates():
    torch.manual_seed(0)
    run = small({"dim": 32, "ffn": 64}, crops=2)
    model = run.build()
    step = learn(model, lambda count, seed: voices(count, seed, crops=2), 60, 3e-3)
    assert step.metrics["contrastive"] < 0.6 * math.log(16)
    assert step.metrics["contrastive"] < step.metrics["contrastive_trivial"]
    assert step.metrics["si_snr_improvement"] > 0
    assert step.loss < step.metrics["trivial"]
    with torch.no_grad():  # the control: crops of different talkers pass for one recording's
        batch = voices(16, 1000, crops=2)
        rows = batch.waveforms.view(16, 2, -1)
        mixed_up = torch.stack([rows[:, 0], rows[:, 1].roll(1, 0)], 1).flatten(0, 1)
        step = model(replace(batch, waveforms=mixed_up))
    assert step.metrics["information"] < 0
    assert step.metrics["accuracy"] < 0.2


def test_bfloat16_follows_float32():
    torch.manual_seed(0)
    model, batch = small().build().train(), voices(4, 0)
    torch.manual_seed(1)
    exact = model(batch).loss
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert step.loss.dtype == torch.float32
    assert step.loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_pictures():
    torch.manual_seed(0)
    pictures = small().build().eval().visualize(voices(3, 0))
    assert {name: tuple(picture.shape) for name, picture in pictures.items()} == {
        **dict.fromkeys(("mixture", "target", "estimate"), (16, 129)),
        "attention": (3, 3),
    }
    torch.testing.assert_close(pictures["attention"].sum(1), torch.ones(3))
    assert "estimate" not in small(separation=0.0).build().eval().visualize(voices(3, 0))


def test_sounds_are_those_of_the_first_mixture():
    torch.manual_seed(0)
    model = small().build().eval()
    torch.manual_seed(1)
    sounds = model.listen(voices(3, 0))
    assert set(sounds) == {"mixture", *(f"talker-{n}{end}" for n in (1, 2) for end in ("", "-separated"))}
    torch.testing.assert_close(sounds["talker-1"] + sounds["talker-2"], sounds["mixture"])
    for number in (1, 2):
        talker, separated = sounds[f"talker-{number}"], sounds[f"talker-{number}-separated"]
        assert separated.abs().max() == pytest.approx(talker.abs().max())
    assert set(small(separation=0.0).build().eval().listen(voices(3, 0))) == {"mixture", "talker-1", "talker-2"}


# ------------------------------------------------------------------------------------------------ runs on the disk


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    rows = ["path,speaker"]
    for take in range(2):
        batch = voices(16, take, crops=3)
        for row, (sound, who) in enumerate(
            zip(batch.waveforms.view(16, -1), batch.labels["speaker"][::3].tolist(), strict=True)
        ):
            soundfile.write(folder / f"{take}-{row}.wav", sound.numpy(), RATE)
            rows.append(f"{take}-{row}.wav,s{who}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.csv"


TRAIN = {"steps": 6, "valid_every": 6, "checkpoint_every": 3, "log_every": 3, "precision": "fp32", "device": "cpu"}


@pytest.mark.parametrize(
    "objective",
    [PSEUDO | {"vectors": "table"}, TABLE | {"vectors": "ema", "identities": 16, "momentum": 0.5}],
    ids=["clusters", "averages"],
)
def test_a_run_goes_on_bit_for_bit_and_says_what_told_it(objective, corpus, tmp_path):
    run = edit(small(crops=2, **objective), train=TRAIN, data={"batch_seconds": 3.0, "valid_fraction": 0.1})
    quiet(run, corpus, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000006")
    resume(tmp_path / "cut", progress=False)
    for name in ("model.safetensors", "objective.safetensors", "optimizer.safetensors"):
        whole, cut = (tmp_path / side / "checkpoints/step-00000006" / name for side in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()
    told = json.loads((tmp_path / "whole/checkpoints/step-00000006/config.json").read_text())["supervision"]
    encoder = load(tmp_path / "whole")
    assert told == encoder.supervision == objective["supervision"]
    (*_, last) = lines(tmp_path / "whole", "valid")
    assert {"si_snr_improvement", "information", "contrastive_trivial"} <= last.keys()


def test_results_say_what_told_the_encoder(corpus, tmp_path):
    torch.manual_seed(0)
    for supervision in ("none", "speaker"):
        model = small(supervision=supervision).build()
        save(model.encoder, tmp_path / supervision, seed=0)
    save(load(tmp_path / "speaker"), tmp_path / "again")
    assert load(tmp_path / "again").supervision == "speaker"
    encoders = [tmp_path / "none", tmp_path / "speaker", f"untrained:{tmp_path / 'none'}", "fbank"]
    results = evaluate(
        encoders, tasks=["verification-clean"], data=corpus, target="speaker", output=tmp_path / "results",
        layers="last", progress=False,
    )  # fmt: skip
    assert [result.supervision for result in results] == ["none", "speaker", "", ""]
    assert sorted(result.supervision for result in read_results(tmp_path / "results")) == ["", "", "none", "speaker"]
    text = table(results)
    assert "speaker [supervision: speaker]" in text
    assert "none [supervision: none]" in text
    assert "supervision" in table(results, "csv").splitlines()[0].split(",")


# ----------------------------------------------------------------------------------------------- several processes


def part_of_the_contrast(rank: int, folder: str, sizes: list[int]) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=len(sizes))
    torch.manual_seed(0)
    contrast = Contrast(4, ContrastConfig()).train()
    z = planted(sizes)[rank].requires_grad_()
    told = contrast(F.normalize(z, dim=-1), around(len(z), 0), torch.arange(len(z)) + sum(sizes[:rank]))
    (told.attended.sum() + told.bottom_up.sum()).backward()
    kept = Contrast(4, ContrastConfig(supervision="speaker", vectors="ema", identities=3, momentum=0.5)).train()
    kept(F.normalize(z.detach(), dim=-1), around(len(z), 0), torch.arange(len(z)) % 3)
    kept.follow(1)
    torch.save([z.grad, told.chance, kept.vectors.e], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def planted(sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 2, 4, generator=generator) for size in sizes]


def around(recordings: int, first: int) -> Mixtures:
    """Each recording is interfered with by the next one's second crop."""
    other = first + (torch.arange(recordings)[:, None, None].expand(-1, 3, 1) + 1) % recordings
    nothing = torch.zeros(recordings, 3)
    return Mixtures(nothing, nothing, nothing, other, torch.ones_like(other), torch.ones(recordings, 3) > 0)


@pytest.mark.slow
def test_processes_tell_talkers_apart_in_the_batch_of_all(tmp_path):
    sizes = [3, 5]
    torch.multiprocessing.spawn(part_of_the_contrast, (str(tmp_path), sizes), nprocs=len(sizes))
    whole = [part.clone().requires_grad_() for part in planted(sizes)]
    parts = [around(3, 0), around(5, 3)]
    mixed = Mixtures(*(torch.cat(values) for values in zip(*parts, strict=True)))
    torch.manual_seed(0)
    contrast = Contrast(4, ContrastConfig()).double().train()
    told = contrast(F.normalize(torch.cat(whole).double(), dim=-1), mixed, torch.arange(8))
    (told.attended.sum() + told.bottom_up.sum()).backward()
    kept = Contrast(4, ContrastConfig(supervision="speaker", vectors="ema", identities=3, momentum=0.5)).train()
    talkers = torch.cat([torch.arange(size) % 3 for size in sizes])
    kept(F.normalize(torch.cat(whole).detach(), dim=-1), mixed, talkers)
    kept.follow(1)
    for rank, part in enumerate(whole):
        gradient, chance, e = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(gradient, part.grad, atol=1e-5, rtol=1e-4)
        assert torch.equal(chance, torch.full_like(chance, math.log(8)))
        torch.testing.assert_close(e, kept.vectors.e, atol=1e-5, rtol=1e-4)
