from __future__ import annotations

import math

import pytest
import torch
from tiny import learn
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders import checkpoint
from auricle.encoders.mae_ast import MaeAstEncoder
from auricle.errors import ConfigError
from auricle.methods import mae_ast as module
from auricle.methods import preset
from auricle.methods.mae_ast import MaeAst, MaeAstRun, band_means
from auricle.nn.chunks import chunk_tokens
from auricle.nn.losses import info_nce
from auricle.nn.patches import Tokens, random_tokens
from auricle.nn.transformer import Transformer

SMALL = {"dim": 32, "heads": 4, "ffn": 64, "layers": 2}


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise whose level goes up and down."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([int(16000 * s) for s in seconds])
    waveforms = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        time = torch.arange(length) / 16000
        level = 1 + 0.9 * torch.sin(2 * math.pi * 3 * time + torch.rand(1, generator=generator) * 6)
        waveforms[row, :length] = 0.05 * level * torch.randn(length, generator=generator)
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)))


def small(name: str, encoder: dict | None = None, **objective: object) -> MaeAstRun:
    """A preset at toy size."""
    run = edit(edit(preset(name), encoder=SMALL), encoder=encoder or {}, objective=objective)
    assert isinstance(run, MaeAstRun)
    return run


CASES = {
    "tiny": small("mae_ast_tiny"),
    "patches, chunks": small("mae_ast_patch_base"),
    "frames": small("mae_ast_frame_small"),
    "patches, random, side by side": small("mae_ast_patch_base", {"join": "concat", "norm": "pre"}, mask="random"),
    "frames in runs": small("mae_ast_frame_base", mask="chunk", reconstruction=1.0, contrastive=0.5, temperature=3.0),
}
every = pytest.mark.parametrize("run", CASES.values(), ids=CASES)


# ------------------------------------------------------------------------------------------------------------ the loss


def plain_stack(stack: Transformer, norm: str) -> nn.Sequential:
    """The same Transformer by PyTorch's own modules, in float64."""
    layers: list[nn.Module] = []
    for block in stack.blocks:
        dim = block.qkv.in_features
        layer = nn.TransformerEncoderLayer(
            dim, block.heads, block.ffn_in.out_features, 0.0, "gelu", 1e-5, True, norm_first=norm == "pre"
        )
        parts = {
            "self_attn.in_proj_": block.qkv,
            "self_attn.out_proj.": block.attention_out,
            "linear1.": block.ffn_in,
            "linear2.": block.ffn_out,
            "norm1.": block.attention_norm,
            "norm2.": block.ffn_norm,
        }
        layer.load_state_dict(
            {name + key: part.state_dict()[key] for name, part in parts.items() for key in part.state_dict()}
        )
        layers.append(layer)
    layers.append(stack.final_norm)
    return nn.Sequential(*layers).double().eval()


def codes(length: int, dim: int) -> Tensor:
    table = torch.zeros(length, dim, dtype=torch.float64)
    for t in range(length):
        for pair in range(dim // 2):
            angle = t / 10000 ** (2 * pair / dim)
            table[t, 2 * pair], table[t, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return table


def reference(model: MaeAst, batch: Batch, seen: Tokens, hidden: Tokens) -> dict[str, float]:
    """Loss and trivial level a second way: clip by clip, token by token, PyTorch's Transformer, float64."""
    model, encoder, norm = model.double(), model.encoder, model.encoder.config.norm
    stack, decoder = plain_stack(encoder.transformer, norm), plain_stack(model.decoder, norm)
    (p_t, p_f), bands = encoder.patch, encoder.config.bands
    squares, surprises, guesses, chances = [], [], [], []
    for row, samples in enumerate(batch.lengths.tolist()):
        waveform = batch.waveforms[row : row + 1, :samples].double()
        fbank = encoder.front_end.spectrogram(waveform, torch.tensor([samples]))[0][0]  # (T, 128)
        fbank = 0.5 * (fbank - encoder.mean) / (encoder.variance + 1e-5).sqrt()
        tokens = [
            fbank[t * p_t : (t + 1) * p_t, f * p_f : (f + 1) * p_f].flatten()
            for t in range(len(fbank) // p_t)
            for f in range(bands)
        ]
        position = codes(len(tokens), encoder.config.dim)
        shown = seen.index[row, : seen.counts[row]].tolist()
        covered = hidden.index[row, : hidden.counts[row]].tolist()
        assert sorted(shown + covered) == list(range(len(tokens)))
        x = torch.stack([encoder.norm(encoder.project(tokens[k]) + position[k]) for k in shown])
        states = dict(zip(shown, stack(x[None])[0], strict=True))
        x = torch.stack([model.norm(states.get(k, model.hidden_embedding) + position[k]) for k in range(len(tokens))])
        decoded = decoder(x[None])[0]
        for k in covered:
            squares.append((model.rebuild(decoded[k]) - tokens[k]).square().mean())
            logits = torch.stack([model.recognise(decoded[k]) @ tokens[other] for other in covered])
            logits = logits / model.config.temperature
            surprises.append(-logits.log_softmax(0)[covered.index(k)])
            alike = [tokens[other].view(p_t, p_f) for other in shown if other % bands == k % bands]
            guess = torch.cat(alike).mean(0).repeat(p_t) if alike else torch.zeros(p_t * p_f)
            guesses.append((guess - tokens[k]).square().mean())
            chances.append(torch.tensor(math.log(len(covered))))
    terms = [torch.stack(values).mean().item() for values in (squares, surprises, guesses, chances)]
    names = ["mse", "info_nce", "trivial_mse", "trivial_info_nce"]
    weights = model.config.reconstruction, model.config.contrastive
    found = dict(zip(names, terms, strict=True))
    found["loss"] = weights[0] * terms[0] + weights[1] * terms[1]
    found["trivial"] = weights[0] * terms[2] + weights[1] * terms[3]
    return found | {"count": len(squares)}


def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Tokens]:
    """What `select` returns from now on: seen and hidden tokens in turn."""
    results, select = [], module.select

    def spy(*args):
        results.append(select(*args))
        return results[-1]

    monkeypatch.setattr(module, "select", spy)
    return results


@every
def test_loss_is_the_reference(run, monkeypatch):
    torch.manual_seed(0)
    model, batch = run.build().eval(), batch_of(1.5, 1.0, 0.6)
    with torch.no_grad():
        for weight in model.parameters():  # away from where it begins: biases and norms have a say
            weight.add_(0.1 * torch.randn_like(weight))
        model.prepare([batch])
        tokens = chosen(monkeypatch)
        step = model(batch)
        found = reference(model, batch, *tokens)
    got = {"loss": step.loss, "count": step.count, **step.metrics}
    assert got.keys() == found.keys()
    for name, value in got.items():
        assert value.item() == pytest.approx(found[name], rel=2e-5, abs=1e-5), name


def test_info_nce_counts_the_candidates_of_its_own_clip():
    generator = torch.Generator().manual_seed(0)
    prediction, wanted = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    losses = [
        F.cross_entropy(prediction[row, :n].double() @ wanted[row, :n].double().T, torch.arange(n), reduction="sum")
        for row, n in ((0, 5), (1, 3))
    ]
    assert info_nce(prediction, wanted, valid).item() == pytest.approx(sum(losses).item() / 8, rel=1e-6)
    chance = (5 * math.log(5) + 3 * math.log(3)) / 8
    assert info_nce(prediction * 0, wanted, valid).item() == pytest.approx(chance, rel=1e-6)
    assert info_nce(prediction, wanted, valid & False) == 0
    with torch.autocast("cpu", torch.bfloat16):  # logits stay in float32
        assert torch.equal(info_nce(prediction, wanted, valid), info_nce(prediction.clone(), wanted, valid))
        assert info_nce(prediction, wanted, valid).item() == pytest.approx(sum(losses).item() / 8, rel=1e-6)


@every
def test_losses_of_micro_batches_add_up(run, monkeypatch):
    """What makes accumulation and several processes exact; masks fixed, since they are drawn for a batch at once."""

    def every_fourth(counts: Tensor, total: int, *_: object) -> Tensor:
        place = torch.arange(total)
        return (place % 4 == 3) & (place < counts[:, None])

    monkeypatch.setattr(module, "random_tokens", every_fourth)
    monkeypatch.setattr(module, "chunk_tokens", lambda counts, steps, bands, *_: every_fourth(counts, steps * bands))
    torch.manual_seed(0)
    model = edit(run, encoder={"dropout": 0.0, "attention_dropout": 0.0}).build().double().train()
    batch = batch_of(1.5, 1.2, 0.9)
    batch = Batch(batch.waveforms.double(), batch.lengths, batch.clip_ids, batch.starts)
    parts = [Batch(batch.waveforms[rows], batch.lengths[rows], [], batch.starts[rows]) for rows in ([0], [1, 2])]

    def gradient(batches: list[Batch]) -> Tensor:
        model.zero_grad()
        steps = [model(each) for each in batches]
        sum(step.loss * step.count for step in steps).backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters()]) / sum(step.count for step in steps)

    torch.testing.assert_close(gradient(parts), gradient([batch]), rtol=1e-6, atol=1e-7)


def test_trivial_level_of_planted_signals():
    run = small("mae_ast_patch_base", mask="random")
    model, steps = run.build().eval(), 12
    still = torch.randn(128).expand(2, steps, 16, 128).flatten(2)  # each band at its own level, all the time
    lengths = torch.tensor([steps, 7])

    def metrics(x: Tensor) -> dict[str, float]:
        model.encoder.features = lambda *_: (x, lengths)  # type: ignore[method-assign]
        torch.manual_seed(1)
        return {name: value.item() for name, value in model(batch_of(1.0, 1.0)).metrics.items()}

    hidden = [72, 42]  # of 96 and 56 tokens
    found = metrics(still)
    assert found["trivial_mse"] < 1e-10  # the mean is all there is to know
    assert found["trivial_info_nce"] == pytest.approx(sum(n * math.log(n) for n in hidden) / sum(hidden), rel=1e-6)
    assert found["trivial"] == pytest.approx(10 * found["trivial_mse"] + found["trivial_info_nce"])
    flicker = still + (torch.arange(16) % 2 * 2.0 - 1).repeat_interleave(128)
    assert metrics(flicker)["trivial_mse"] == pytest.approx(1.0, rel=1e-5)


def test_band_means_skip_hidden_and_padded_tokens():
    tokens = torch.full((1, 6, 4), torch.nan)  # two bands of two channels, patches of two frames
    tokens[0, 0], tokens[0, 4], tokens[0, 1] = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [0, 1, 0, 1]])
    seen = Tokens(torch.tensor([[0, 1, 4, 1]]), torch.tensor([3]))
    expected = torch.tensor([[4.0, 5, 4, 5], [0, 1, 0, 1]])
    assert torch.equal(band_means(tokens, seen, 2, (2, 2))[0], expected)
    only = Tokens(torch.tensor([[0]]), torch.tensor([1]))
    assert torch.equal(band_means(tokens, only, 2, (2, 2))[0, 1], torch.zeros(4))


@every
def test_nothing_hidden_leaks(run, monkeypatch):
    torch.manual_seed(0)
    model, batch = run.build().eval(), batch_of(1.4, 0.9)
    x, lengths = model.encoder.features(batch.waveforms, batch.lengths)
    tokens = chosen(monkeypatch)

    def rebuilt(x: Tensor) -> Tensor:
        model.encoder.features = lambda *_: (x, lengths)  # type: ignore[method-assign]
        torch.manual_seed(1)
        with torch.no_grad():
            return model._guess(batch).rebuilt

    first = rebuilt(x)
    _, hidden = tokens[:2]
    (p_t, p_f), bands = model.encoder.patch, run.encoder.bands
    changed = x.view(2, -1, p_t, bands, p_f).clone()
    for row in range(2):
        for k in hidden.index[row, : hidden.counts[row]].tolist():
            changed[row, k // bands, :, k % bands] = 100.0
    assert torch.equal(rebuilt(changed.view_as(x)), first)
    seen = tokens[0].index[0, 0].item()
    changed[0, seen // bands, :, seen % bands] += 1.0
    assert not torch.equal(rebuilt(changed.view_as(x)), first)


# -------------------------------------------------------------------------------------------------------------- masks


def grids(kept: Tensor, counts: Tensor, bands: int) -> list[Tensor]:
    """For each clip its grid (steps, bands) of hidden tokens."""
    return [~row[:count].view(-1, bands) for row, count in zip(kept, counts.tolist(), strict=True)]


def outside_squares(hidden: Tensor, side: int) -> int:
    """Hidden tokens of a grid that no wholly hidden square of this side, cut at the edges, covers."""
    padded = F.pad(hidden.float(), (side - 1,) * 4, value=1.0)[None, None]
    whole = -F.max_pool2d(-padded, side, 1)  # 1 where the square that begins there is hidden
    covered = F.max_pool2d(whole, side, 1)[0, 0] > 0
    return int((hidden & ~covered).sum())


@pytest.mark.parametrize("side", [3, 4, 5])
def test_chunks_are_squares_and_exactly_so_many_tokens(side):
    torch.manual_seed(side)
    counts = torch.tensor([62, 31, 9, 1, 0] * 20) * 8
    kept = chunk_tokens(counts, 62, 8, 0.75, (side, side))
    expected = [max(1, int(n * 0.25)) if n else 0 for n in counts.tolist()]
    assert kept.sum(1).tolist() == expected
    assert not kept[torch.arange(62 * 8) >= counts[:, None]].any()
    alone = random_tokens(counts, 62 * 8, 0.75)
    chunks = [outside_squares(grid, side) for grid in grids(kept, counts, 8) if len(grid)]
    scattered = [outside_squares(grid, side) for grid in grids(alone, counts, 8) if len(grid)]
    assert max(chunks) < side**2  # the last chunk is cut to size
    assert scattered[0] > 100  # (the check tells one from the other)


def test_chunks_cover_every_token_alike():
    torch.manual_seed(0)
    counts = torch.full((4000,), 15 * 8)
    share = (~chunk_tokens(counts, 20, 8, 0.5, (3, 5)))[:, : 15 * 8].float().mean(0)
    assert (share - 0.5).abs().max() < 6 * math.sqrt(0.25 / 4000)


def test_frame_tokens_are_hidden_in_runs_of_every_length():
    torch.manual_seed(0)
    counts = torch.full((600,), 10)
    longest = []
    for grid in grids(chunk_tokens(counts, 10, 1, 0.5, (3, 5)), counts, 1):  # five tokens: 5, 4 + 1 or 3 + 2 apart
        runs = "".join(str(int(value)) for value in grid[:, 0]).split("0")
        longest.append(max(map(len, runs)))
    assert {3, 4, 5} <= set(longest) <= {2, 3, 4, 5}  # 2: a chunk cut at the edge


# ------------------------------------------------------------------------------------------------------------ encoder


def test_tokens_are_patches_in_order_of_time():
    encoder = CASES["patches, chunks"].build().encoder
    frame, band = torch.arange(32.0)[:, None], torch.arange(128.0)
    fbank = 1000 * frame + band  # (32, 128)
    tokens, counts = encoder.tokens(fbank.view(1, 2, 16 * 128), torch.tensor([2]))
    assert tokens.shape == (1, 16, 256)
    assert counts.tolist() == [16]
    assert tokens[0, 11].tolist() == fbank[16:32, 48:64].flatten().tolist()  # step 1, band 3
    frames = CASES["frames"].build().encoder
    assert torch.equal(frames.tokens(fbank.view(1, 16, 256), torch.tensor([16]))[0][0, 3], fbank[6:8].flatten())
    assert (encoder.hop, frames.hop) == (2560, 320)
    assert (encoder.offset, frames.offset) == (200 + 7.5 * 160, 200 + 80)


@every
def test_statistics_are_those_of_true_frames(run):
    model = run.build()
    batches = [batch_of(1.5, 0.7, seed=1), batch_of(1.1, seed=2)]
    model.prepare(iter(batches * 99))
    assert model.config.fit_batches < 198  # an endless stream ends there
    values = []
    for batch in batches:
        for row, samples in enumerate(batch.lengths.tolist()):
            spectra = model.encoder.front_end.spectrogram(
                batch.waveforms[row : row + 1, :samples], torch.tensor([samples])
            )[0][0]
            values.append(spectra[: len(spectra) // model.encoder.patch[0] * model.encoder.patch[0]].flatten())
    values = torch.cat(values).double()
    assert model.encoder.mean.item() == pytest.approx(values.mean().item(), abs=1e-4)
    assert model.encoder.variance.item() == pytest.approx(values.var(correction=0).item(), rel=1e-4)
    x, lengths = model.encoder.features(batches[0].waveforms, batches[0].lengths)
    assert not x[1, lengths[1] :].any()
    before = model.encoder.state_dict()["mean"].clone()
    model.train()(batches[0])
    assert torch.equal(model.encoder.mean, before)


@every
def test_a_clip_alone_is_the_same_in_a_batch(run):
    torch.manual_seed(0)
    model = MaeAstEncoder(edit(run.encoder, chunk_frames=20)).eval()
    batch = batch_of(4.0, 0.2, 1.9, 0.02)
    with torch.no_grad():
        together = model(batch.waveforms, batch.lengths)
        for row, samples in enumerate(batch.lengths.tolist()):
            alone = model(batch.waveforms[row : row + 1, :samples], batch.lengths[row : row + 1])
            count = int(alone.lengths[0])
            assert together.lengths[row] == count
            for layer, (one, many) in enumerate(zip(alone.hidden_states, together.hidden_states, strict=True)):
                assert one.shape[2] == model.dims[layer]
                torch.testing.assert_close(one[0, :count], many[row, :count], atol=1e-4, rtol=0)
    frames = model.frames(batch.waveforms[0], 16000)  # some windows at a time
    torch.testing.assert_close(frames, together.hidden_states[-1][0, : len(frames)], atol=1e-5, rtol=0)


@every
def test_all_tokens_visible_is_the_whole(run):
    torch.manual_seed(0)
    model, batch, bands = MaeAstEncoder(run.encoder).eval(), batch_of(1.0, 0.7), run.encoder.bands
    with torch.no_grad():
        x, lengths = model.features(batch.waveforms, batch.lengths)
        index = torch.arange(x.shape[1] * bands).expand(2, -1)
        tokens = model.encode(x, lengths, visible=Tokens(index, lengths * bands))
        frames = model.encode(x, lengths)
    assert torch.equal(tokens.lengths, lengths * bands)
    for token, frame in zip(tokens.hidden_states, frames.hidden_states, strict=True):
        steps = token.view(2, -1, bands, run.encoder.dim)
        joined = steps.flatten(2) if run.encoder.join == "concat" else steps.mean(2)
        for row, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(joined[row, :length], frame[row, :length], atol=1e-5, rtol=0)


def test_a_saved_encoder_gives_the_same_numbers(tmp_path):
    torch.manual_seed(0)
    model, batch = CASES["patches, chunks"].build().eval(), batch_of(1.0)
    model.prepare([batch])
    checkpoint.save(model.encoder, tmp_path / "encoder")
    loaded = checkpoint.load(tmp_path / "encoder")
    assert loaded.fingerprint() == model.encoder.fingerprint()
    with torch.no_grad():
        ours, theirs = (each(batch.waveforms, batch.lengths).hidden_states[-1] for each in (model.encoder, loaded))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "encoder", "rest"),
    [("mae_ast_patch_base", 85_253_376, 14_571_776), ("mae_ast_frame_small", 42_726_144, 14_571_776)],
)
def test_sizes_are_the_originals(name, encoder, rest):
    model = preset(name).build()
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.parameters()) - encoder == rest


# ----------------------------------------------------------------------------------------------------------- training


@every
def test_gradients_reach_every_parameter(run):
    torch.manual_seed(0)
    model = run.build().train()
    step = model(batch_of(1.5, 1.0))
    assert set(step.metrics) == {"mse", "info_nce"}
    step.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_bfloat16_follows_float32():
    model = small("mae_ast_patch_base", {"dropout": 0.0, "attention_dropout": 0.0}).build().train()
    batch = batch_of(1.0, 0.8)
    torch.manual_seed(1)
    exact = model(batch).loss
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert step.loss.dtype == torch.float32
    assert step.loss.item() == pytest.approx(exact.item(), rel=0.01)


@every
def test_a_clip_too_short_to_mask_has_no_say(run):
    torch.manual_seed(0)
    model = run.build().train()
    step = model(batch_of(0.02))
    assert (step.loss, step.count) == (0, 0)
    step.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every
def test_pictures(run):
    torch.manual_seed(0)
    pictures = run.build().eval().visualize(batch_of(0.7, 1.0))
    frames = (1 + (11200 - 400) // 160) // run.encoder.front_end.stack * run.encoder.front_end.stack
    assert set(pictures) == {"target", "masked", "reconstruction"}
    assert all(picture.shape == (frames, 128) and picture.isfinite().all() for picture in pictures.values())
    kept = pictures["masked"] != 0
    assert 0.2 < kept.float().mean() < 0.35
    assert torch.equal(pictures["reconstruction"][kept], pictures["target"][kept])


def beats(count: int, seed: int) -> Batch:
    """A second each of pulses that swell once, from a random phase on: one hidden number a frame, its level."""
    phase = 2 * math.pi * torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))
    time = torch.arange(16000)
    swell = torch.exp(2 * torch.sin(2 * math.pi * time / 16000 + phase) - 3)
    waveforms = swell * (time % 160 == 0)
    return Batch(waveforms, torch.full((count,), 16000), [str(i) for i in range(count)], torch.zeros(count))


def test_training_learns_what_the_mean_cannot_know():
    torch.manual_seed(0)
    model = small("mae_ast_tiny", {"dim": 64, "ffn": 128}, mask_ratio=0.5).build()
    model.prepare([beats(16, seed=0)])
    metrics = learn(model, beats, 120, 3e-3, clips=8).metrics
    assert metrics["mse"] < 0.5 * metrics["trivial_mse"]
    assert metrics["info_nce"] < metrics["trivial_info_nce"] - 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"bands": 7}}, "no multiple of 7"),
        ({"encoder": {"front_end": {"normalize": "utterance"}}}, "front_end.normalize"),
        ({"objective": {"chunk_min": 6}}, "chunk_max"),
        ({"objective": {"reconstruction": 0, "contrastive": 0}}, "more than 0"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        edit(preset("mae_ast_patch_base"), **changes)
