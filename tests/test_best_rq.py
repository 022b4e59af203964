"""BEST-RQ and its quantizer against their definition, written out in float64."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import soundfile
import torch
from tiny import loads_as_saved, resumes_as_one, two_processes_are_one
from torch import Tensor

import auricle.methods.best_rq as module
from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.checkpoint import load, save
from auricle.errors import ConfigError
from auricle.methods import preset, run_from_yaml
from auricle.methods.best_rq import BestRq, BestRqRun
from auricle.nn.masking import Spans
from auricle.nn.quantizer import RandomProjectionQuantizer

SMALL = {"dim": 32, "heads": 4, "ffn": 64, "layers": 2, "front_end": {"n_mels": 20}}
STILL = {"position_jitter": 0}


def small(name: str = "best_rq_music_tiny", encoder: dict | None = None, **objective: object) -> BestRqRun:
    """A preset at toy size."""
    run = edit(
        preset(name),
        encoder=SMALL,
        objective={"codes": 24, "code_dim": 5, "codebooks": 3, "span": 6, "count_batches": 2},
    )
    return edit(run, encoder=encoder or {}, objective=objective)  # type: ignore[return-value]


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise whose level goes up and down."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([int(16000 * s) for s in seconds])
    waveforms = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        level = 1 + 0.9 * torch.sin(2 * math.pi * 3 * torch.arange(length) / 16000 + torch.rand(1, generator=generator))
        waveforms[row, :length] = 0.05 * level * torch.randn(length, generator=generator)
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)))


# ---------------------------------------------------------------------------------------------------- the quantizer


def nearest(quantizer: RandomProjectionQuantizer, x: Tensor) -> list[list[int]]:
    """Labels of x (N, F) as the paper words them: the code nearest to the normalised projection, frame by frame."""
    found = []
    for frame in x.double():
        row = []
        for projection, codes in zip(quantizer.projection.double(), quantizer.codes.double(), strict=True):
            projected = frame @ projection
            row.append(int((codes - projected / projected.norm()).norm(dim=1).argmin()))
        found.append(row)
    return found


@pytest.mark.parametrize("codebooks", [1, 3])
def test_labels_are_the_nearest_codes(codebooks, monkeypatch):
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(40, codes=50, code_dim=7, codebooks=codebooks)
    x = torch.randn(2, 60, 40)
    labels = quantizer(x)
    assert labels.shape == (2, 60, codebooks)
    assert labels.flatten(0, 1).tolist() == nearest(quantizer, x.flatten(0, 1))
    monkeypatch.setattr("auricle.nn.quantizer._ROWS", 32)
    assert torch.equal(quantizer(x), labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(x), labels)
    assert torch.equal(quantizer(5 * x), labels)  # by angle


def test_the_quantizer_is_drawn_once_and_stored():
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(60, codes=4000, code_dim=12, codebooks=2)
    assert not list(quantizer.parameters())
    assert set(quantizer.state_dict()) == {"projection", "codes"}
    limit = math.sqrt(6 / (60 + 12))  # Xavier, uniform
    assert limit * 0.99 < quantizer.projection.abs().max() < limit
    assert quantizer.projection.var().item() == pytest.approx(2 / (60 + 12), rel=0.1)
    torch.testing.assert_close(quantizer.codes.norm(dim=2), torch.ones(2, 4000))
    assert (quantizer.codes.mean(1) * math.sqrt(12 * 4000)).abs().max() < 5  # uniform on the sphere
    assert not torch.equal(quantizer.codes[0], quantizer.codes[1])
    assert not torch.equal(quantizer.projection[0], quantizer.projection[1])


def test_normalised_frames_use_the_codes_and_others_do_not():
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(80, codes=64)
    x = torch.randn(4000, 80)
    assert len(quantizer(x).unique()) == 64
    assert len(quantizer(x - 8).unique()) < 10  # log energies as they come


# ---------------------------------------------------------------------------------------------------------- the loss

CASES = {
    "tiny": small(),
    "base": small("best_rq_base"),
    "one codebook": small(codebooks=1),
    "by the utterance": small("best_rq_tiny"),
    "post-norm, single frames": small(encoder={"norm": "post", "front_end": {"stack": 1}}, noise_std=0.0),
}
every = pytest.mark.parametrize("run", CASES.values(), ids=CASES)


def recorded(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> list:
    """What this function or method returns from now on."""
    function, results = getattr(target, name), []

    def spy(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(target, name, spy)
    return results


def reference(model: BestRq, batch: Batch, masked: Tensor, spans: Tensor, counts: list[Counter]) -> dict[str, float]:
    """Everything a second way, in float64: step by step, each clip alone, counts from a dictionary."""
    model = model.double()
    config, found = model.config, []
    for row, samples in enumerate(batch.lengths.tolist()):
        features, lengths = model.encoder.features(
            batch.waveforms[row : row + 1, :samples].double(), batch.lengths[row : row + 1]
        )
        steps = int(lengths[0])
        states = model.encoder.encode(masked[row : row + 1, :steps].double(), lengths).hidden_states[-1][0]
        for step in range(steps):
            if not spans[row, step]:
                continue
            logits = (model.head.weight @ states[step] + model.head.bias).view(config.codebooks, config.codes)
            for book, label in enumerate(nearest(model.quantizer, features[0, step : step + 1])[0]):
                total = sum(counts[book].values()) + config.codes
                found.append(
                    {
                        "loss": -logits[book].log_softmax(0)[label].item(),
                        "masked_accuracy": float(logits[book].argmax() == label),
                        "trivial": -math.log((counts[book][label] + 1) / total),
                        "trivial_accuracy": float(label == counts[book].most_common(1)[0][0]),
                    }
                )
    means = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
    return means | {"count": len(found) / config.codebooks}


@every
def test_loss_is_the_reference(run, monkeypatch):
    torch.manual_seed(0)
    model, batch = run.build().eval(), batch_of(1.5, 1.0, 0.6)
    heard = [batch_of(1.1, 0.4, seed=5), batch_of(0.7, seed=6)]
    model.prepare(heard + heard)
    counts = [Counter() for _ in range(run.objective.codebooks)]
    for each in heard:
        x, lengths = model.encoder.features(each.waveforms, each.lengths)
        for clip, length in zip(x, lengths.tolist(), strict=True):
            for labels in nearest(model.quantizer, clip[:length]):
                for book, label in zip(counts, labels, strict=True):
                    book[label] += 1
    assert [dict(sorted(book.items())) for book in counts] == [
        {code: count for code, count in enumerate(row) if count} for row in model.label_counts.tolist()
    ]
    for weight in model.parameters():  # away from where it begins: biases and norms have a say
        weight.data.add_(0.1 * torch.randn_like(weight))
    guesses = recorded(monkeypatch, model, "_guess")
    spans = recorded(monkeypatch, module, "draw_spans")
    step = model(batch)
    wanted = reference(model, batch, guesses[0].masked, spans[0].mask(guesses[0].masked.shape[1]), counts)
    frequency = [[(book[code] + 1) / (sum(book.values()) + 24) for code in range(24)] for book in counts]
    perplexities = [math.exp(-sum(p * math.log(p) for p in book)) for book in frequency]
    wanted["label_perplexity"] = sum(perplexities) / len(perplexities)
    got = {"loss": step.loss, "count": step.count, **step.metrics}
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert value.item() == pytest.approx(wanted[name], rel=2e-5, abs=1e-5), name


@every
def test_spans_are_hidden_by_noise_and_nothing_else_is(run):
    torch.manual_seed(0)
    model, batch = run.build().train(), batch_of(*[2.0] * 30, 1.3, 0.5)
    x, lengths = model.encoder.features(batch.waveforms, batch.lengths)
    guess = model._guess(batch)
    hidden = torch.zeros_like(x[..., 0], dtype=torch.bool)
    for row in range(len(x)):
        hidden[row, guess.hidden[row, guess.valid[row]]] = True
    share, span = run.objective.mask_fraction, run.objective.span
    assert hidden.sum(1).tolist() == [span * round(share * n / span) for n in lengths.tolist()]
    assert torch.equal(guess.masked[~hidden], x[~hidden])
    noise = guess.masked[hidden]
    assert noise.mean().abs() < 0.01
    assert noise.std().item() == pytest.approx(run.objective.noise_std, rel=0.03)
    for row, clip in zip(guess.labels, guess.hidden, strict=True):  # of what was there before the noise
        assert row.shape == (len(clip), run.objective.codebooks)
    picked = x[0, guess.hidden[0]]
    assert guess.labels[0].tolist() == nearest(model.quantizer, picked)


def test_the_loss_does_not_hear_what_is_hidden(monkeypatch):
    """Only the labels know of it."""
    torch.manual_seed(0)
    model, batch = small().build().eval(), batch_of(1.0, 0.7)
    x, lengths = model.encoder.features(batch.waveforms, batch.lengths)
    torch.manual_seed(1)
    first = model._guess(batch)
    changed = x.clone()
    for row in range(2):
        changed[row, first.hidden[row, first.valid[row]]] = torch.randn(x.shape[2])
    monkeypatch.setattr(model.encoder, "features", lambda *_: (changed, lengths))
    torch.manual_seed(1)
    second = model._guess(batch)
    assert torch.equal(first.logits, second.logits)
    assert not torch.equal(first.labels, second.labels)


@every
def test_gradients_reach_every_parameter(run):
    torch.manual_seed(0)
    model = run.build().train()
    step = model(batch_of(1.5, 1.0))
    assert set(step.metrics) == {"masked_accuracy"}
    step.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_unheard_of_labels_cost_what_chance_costs():
    model = small().build().eval()
    assert model(batch_of(1.0)).metrics["trivial"].item() == pytest.approx(math.log(24), rel=1e-6)
    assert model(batch_of(1.0)).metrics["label_perplexity"].item() == pytest.approx(24, rel=1e-5)


def test_counting_ends_after_so_many_batches():
    model, taken = small().build(), []

    def endless():
        while True:
            taken.append(batch_of(0.5, seed=len(taken)))
            yield taken[-1]

    model.prepare(endless())
    assert len(taken) == 2 + 2
    assert model.label_counts.sum(1).tolist() == [2 * 25] * 3


def test_the_encoder_is_given_its_statistics(tmp_path):
    torch.manual_seed(0)
    model = small().build()
    heard = [batch_of(1.0, 0.6, seed=1), batch_of(0.8, seed=2)]
    model.prepare(heard + heard)
    features = (model.encoder.features(each.waveforms, each.lengths) for each in heard)
    frames = torch.cat([clip[:length] for x, lengths in features for clip, length in zip(x, lengths, strict=True)])
    torch.testing.assert_close(frames.mean(0), torch.zeros(40), rtol=0, atol=1e-4)
    torch.testing.assert_close(frames.std(0, correction=0), torch.ones(40), rtol=0, atol=1e-3)
    muffled = batch_of(0.5)
    muffled.waveforms[:, 1:] += muffled.waveforms[:, :-1].clone()  # all the clip long
    plain, other = (model.encoder.features(each.waveforms, each.lengths)[0] for each in (batch_of(0.5), muffled))
    assert (plain.mean(1) - other.mean(1)).abs().max() > 0.5  # is heard
    save(model.encoder, tmp_path / "encoder", seed=0)
    assert torch.equal(load(tmp_path / "encoder").features(muffled.waveforms, muffled.lengths)[0], other)


def test_a_clip_too_short_to_mask_has_no_say():
    model = small().build().eval()
    step = model(batch_of(0.05))
    assert (step.loss, step.count) == (0, 0)


def test_bfloat16_follows_float32(monkeypatch):
    torch.manual_seed(0)
    model, batch = small(codebooks=2).build().train(), batch_of(1.0, 0.8)
    guesses = recorded(monkeypatch, model, "_guess")
    torch.manual_seed(1)
    exact = model(batch).loss
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert torch.equal(guesses[0].labels, guesses[1].labels)
    assert step.loss.dtype == torch.float32
    assert step.loss.item() == pytest.approx(exact.item(), rel=0.01)


def test_pictures():
    torch.manual_seed(0)
    model, batch = small(codes=100).build().eval(), batch_of(0.7, 1.0)
    model.prepare([batch_of(3.0, 3.0)] * 4)
    pictures = model.visualize(batch)
    hidden = 6 * round(0.4 * 35 / 6)
    assert {name: tuple(picture.shape) for name, picture in pictures.items()} == {
        "features": (70, 20),
        "masked": (70, 20),
        "labels": (hidden, 64),
        "probability": (hidden, 64),
    }
    assert (pictures["labels"].sum(1) <= 1).all()
    assert pictures["labels"].sum(0)[:16].sum() > pictures["labels"].sum(0)[48:].sum()  # the frequent ones come first


def test_saved_and_loaded_it_is_the_same(tmp_path):
    loads_as_saved(small().build().encoder, batch_of(0.5, 0.3), tmp_path)


def test_the_quantizer_and_its_counts_come_back_when_a_run_goes_on(tmp_path):
    (tmp_path / "audio").mkdir()
    for i, clip in enumerate(batch_of(*[0.5 + 0.05 * i for i in range(10)]).waveforms):
        soundfile.write(tmp_path / f"audio/{i}.wav", clip.numpy(), 16000)
    train = {"steps": 4, "valid_every": 4, "checkpoint_every": 2, "log_every": 2, "precision": "fp32", "device": "cpu"}
    run = edit(small(count_batches=3), data={"batch_seconds": 3.0}, train=train)
    resumes_as_one(run, [tmp_path / "audio"], tmp_path)


def chimes(count: int, seed: int) -> Batch:
    """A second each of five tones that swell five times, one after the other, from a random phase on."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(16000) / 16000
    phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
    waveforms = 0.001 * torch.randn(count, 16000, generator=generator)
    for tone, hertz in enumerate((300, 700, 1500, 3000, 5500)):
        level = torch.exp(1.5 * torch.sin(2 * math.pi * (5 * time + tone / 5) + phase))
        waveforms += 0.02 * level * torch.sin(2 * math.pi * hertz * time)
    return Batch(waveforms, torch.full((count,), 16000), [""] * count, torch.zeros(count))


def test_training_learns_what_frequencies_cannot_know():
    torch.manual_seed(0)
    encoder = {"dim": 128, "ffn": 256, "position_jitter": 0}
    model = small(encoder=encoder, codebooks=2, span=3, mask_fraction=0.3).build()
    model.prepare([chimes(16, seed=0)] * 4)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for number in range(150):
        optimizer.zero_grad()
        model(chimes(8, seed=number)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        held_out = model.eval()(chimes(16, seed=1000))
    assert held_out.loss < 0.7 * held_out.metrics["trivial"]
    assert held_out.metrics["masked_accuracy"] > held_out.metrics["trivial_accuracy"] + 0.2


# ---------------------------------------------------------------------------------------- batches, processes, configs


def gradient(model: BestRq, batches: list[Batch], wrapped: torch.nn.Module | None = None) -> Tensor:
    for batch in batches:
        step = (wrapped or model)(batch)
        (step.loss * step.count).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def rows(batch: Batch, which: list[int]) -> Batch:
    return Batch(batch.waveforms[which], batch.lengths[which], [], batch.starts[which])


def hide_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans at the same place in every clip: draws are of a batch at once, so they would differ."""

    def draw_spans(lengths: Tensor, frames: int, **_: object) -> Spans:
        return Spans(torch.full((len(lengths), 1), 4), lengths[:, None] > 10, torch.full((len(lengths), 1), 6))

    monkeypatch.setattr(module, "draw_spans", draw_spans)


def test_losses_of_micro_batches_add_up(monkeypatch):
    hide_the_first(monkeypatch)
    torch.manual_seed(0)
    model, batch = small(encoder=STILL, noise_std=0.0).build().train(), batch_of(1.5, 1.2, 0.9)
    whole = gradient(model, [batch])
    model.zero_grad()
    torch.testing.assert_close(gradient(model, [rows(batch, [0]), rows(batch, [1, 2])]), whole, rtol=1e-3, atol=1e-4)


def part_of_two(patch: pytest.MonkeyPatch, rank: int) -> tuple[BestRq, Batch]:
    hide_the_first(patch)
    torch.manual_seed(rank)  # rank 0's weights and quantizer are all that counts
    model = small(encoder=STILL, noise_std=0.0).build().train()
    return model, rows(batch_of(1.5, 1.2, 0.9), [[0], [1, 2]][rank])


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
    two_processes_are_one(part_of_two, tmp_path, rtol=1e-3)


@pytest.mark.parametrize("name", ["best_rq_tiny", "best_rq_music_tiny", "best_rq_base"])
def test_presets_go_through_yaml(name):
    run = preset(name)
    values = {"format": 1, "auricle": "0.1.0", "method": run.method} | run.model_dump(mode="json")
    assert run_from_yaml(values) == run


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": {"front_end": {"normalize": "none"}}}, "encoder.standardize"),
        ({"encoder": {"standardize": True}}, "standardize: front_end.normalize 'utterance'"),
        ({"objective": {"codebook": 2}}, "did you mean 'codebooks'|objective.codebooks"),
        ({"objective": {"mask_fraction": 0}}, "mask_fraction"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_from_yaml({"method": "best_rq"} | values, "config.yaml")
    assert "\n" not in str(error.value)
