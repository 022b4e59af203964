"""The training room: optimisation against closed forms and plain torch, gating, alarms, logs, the user's mistakes."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from safetensors.torch import load_file
from tiny import TinyMethod, tiny_run, write_corpus
from torch import nn

from auricle.config import edit
from auricle.data.batching import Batch, Skip
from auricle.encoders import FAMILIES
from auricle.encoders.checkpoint import load as load_encoder
from auricle.errors import AuricleError, CheckpointError, ConfigError, ManifestError, TooManySkipsError, TrainingError
from auricle.methods import METHODS, PRESETS
from auricle.methods.base import TrainConfig
from auricle.training import folder, optim
from auricle.training import loop as loop_module
from auricle.training.logs import RunLog
from auricle.training.loop import TrainingInterrupted, pretrain, resume
from auricle.training.processes import Processes


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(FAMILIES, "tiny", "tiny:TinyEncoder")
    monkeypatch.setitem(METHODS, "tiny", "tiny:TinyRun")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


def quiet(run, sources, output, **options):
    return pretrain(run, [sources], output, progress=False, **options)


def lines(output: Path, split: str | None = None, name: str = "metrics.jsonl") -> list[dict]:
    found = [json.loads(text) for text in (output / name).read_text().splitlines()]
    return [line for line in found if split in (None, line.get("split"))]


# ----------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_learning_rate_is_the_closed_form(schedule, warmup):
    steps, peak = 200, 3e-4
    train = TrainConfig(steps=steps, lr=peak, warmup=warmup, schedule=schedule)
    rising = int(warmup * steps)
    up = peak * np.arange(1, rising + 1) / max(1, rising)
    left = np.linspace(1, 0, steps - rising, endpoint=False)  # the share of the fall still to come
    down = peak * {"linear": left, "cosine": np.sin(left * np.pi / 2) ** 2, "constant": np.ones_like(left)}[schedule]
    found = [optim.learning_rate(step, train) for step in range(1, steps + 1)]
    np.testing.assert_allclose(found, np.concatenate([up, down]), rtol=1e-12)
    assert max(found) == peak
    assert min(found) > 0


def test_tri_stage_is_fairseqs():
    train = TrainConfig(steps=1000, lr=5e-4, warmup=0.03, hold=0.9, schedule="tri_stage")
    wanted = {  # update → rate, by hand: 30 updates of rise, 900 at the peak, 70 of decay by exp(-ln(100) / 70) each
        1: 5e-6,
        16: 5e-6 + 4.95e-4 / 2,
        31: 5e-4,
        930: 5e-4,
        931: 5e-4,
        932: 5e-4 * math.exp(-math.log(100) / 70),
        966: 5e-5,  # half-way in the logarithm
        1000: 5e-6 * math.exp(math.log(100) / 70),
    }
    assert {step: optim.learning_rate(step, train) for step in wanted} == pytest.approx(wanted, rel=1e-12)
    assert optim.learning_rate(400_000, edit(train, steps=400_000)) == pytest.approx(5e-6, rel=2e-4)
    bare = edit(train, warmup=0.0, hold=1.0)
    assert {optim.learning_rate(step, bare) for step in (1, 500, 1000)} == {5e-4}
    with pytest.raises(ConfigError, match="hold"):
        edit(train, warmup=0.2)


def test_only_matrices_decay_and_shared_weights_are_counted_once():
    method = TinyMethod(tiny_run())
    optimizer = optim.build_optimizer(method, TrainConfig(lr=0.1, weight_decay=0.5))
    before = {name: weight.detach().clone() for name, weight in method.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
    for weight in method.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in method.named_parameters():
        factor = 0.95 if name in ("encoder.project.weight", "tied") else 1.0  # 1 - lr · decay
        torch.testing.assert_close(weight.detach(), before[name] * factor)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6, None])
def test_update_is_plain_adamw_on_the_clipped_mean(clip_norm):
    torch.manual_seed(0)
    train = TrainConfig(steps=10, lr=0.01, warmup=0.5, clip_norm=clip_norm, weight_decay=0.1)
    ours, plain = nn.Linear(5, 4).double(), nn.Linear(5, 4).double()
    plain.load_state_dict(ours.state_dict())
    optimizer = optim.build_optimizer(ours, train)
    reference = torch.optim.AdamW(
        [{"params": [plain.weight], "weight_decay": 0.1}, {"params": [plain.bias], "weight_decay": 0.0}], foreach=False
    )
    for step in range(1, 5):
        gradients = [torch.randn_like(weight) for weight in plain.parameters()]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for weight, twin, gradient in zip(plain.parameters(), ours.parameters(), gradients, strict=True):
            weight.grad = gradient * min(1.0, (clip_norm or math.inf) / norm)
            twin.grad = gradient * 37
        for group in reference.param_groups:
            group["lr"] = optim.learning_rate(step, train)
        reference.step()
        found, gated = optim.update(optimizer, step, train, torch.tensor(1.0), torch.tensor(37.0, dtype=torch.float64))
        assert float(found) == pytest.approx(norm)
        assert not gated
    for weight, twin in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(twin, weight, rtol=1e-6, atol=1e-7)  # the kernel's scale is float32


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)])
def test_a_non_finite_update_moves_nothing_bit_for_bit(loss, gradient, first):
    train, model = TrainConfig(), nn.Linear(5, 4)
    optimizer = optim.build_optimizer(model, train)

    def step(loss, gradient):
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, gradient)
        return optim.update(optimizer, 1, train, torch.tensor(loss), torch.tensor(3.0))[1]

    def everything():
        moments = [value for weight in model.parameters() for value in optimizer.state[weight].values()]
        return [tensor.clone() for tensor in [*model.parameters(), *moments]]

    if not first:
        assert not step(1.0, 1.0)
    before = everything()
    assert step(loss, gradient)
    if first:  # the moments are born at 0 with the first call
        assert not any(tensor.any() for tensor in everything()[2:])
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=False))
    assert not step(1.0, 1.0)  # control: it goes on from there
    assert not any(torch.equal(a, b) for a, b in zip(before, everything(), strict=False))


def test_precision_auto_is_bf16_where_the_cpu_has_it():
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("needs /proc/cpuinfo as its oracle")
    native = bool({"avx512_bf16", "amx_tile"} & set(info.read_text().split()))
    cpu = torch.device("cpu")
    assert optim.autocast_dtype(TrainConfig(precision="auto"), cpu) == (torch.bfloat16 if native else None)
    assert optim.autocast_dtype(TrainConfig(precision="bf16"), cpu) == torch.bfloat16
    assert optim.autocast_dtype(TrainConfig(precision="fp32"), cpu) is None


# --------------------------------------------------------------------------------------------- one loop, its steps


def a_batch(rng, lengths) -> Batch:
    waveforms = torch.zeros(len(lengths), max(lengths), dtype=torch.float64)
    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = torch.from_numpy(rng.standard_normal(length))
    return Batch(waveforms, torch.tensor(lengths), [str(i) for i in range(len(lengths))], torch.zeros(len(lengths)))


def test_ragged_micro_batches_give_the_gradient_of_one_big_batch(corpus, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    parts = [a_batch(rng, lengths) for lengths in ([800, 400], [4000], [160, 240, 320, 1600])]
    width = max(part.waveforms.shape[1] for part in parts)
    padded = [nn.functional.pad(part.waveforms, (0, width - part.waveforms.shape[1])) for part in parts]
    whole = Batch(torch.cat(padded), torch.cat([p.lengths for p in parts]), ["x"] * 7, torch.zeros(7))
    seen = []

    def spy(optimizer, step, train, loss, count):
        seen.append([weight.grad / count for group in optimizer.param_groups for weight in group["params"]])
        return torch.tensor(1.0), torch.tensor(False)

    monkeypatch.setattr(optim, "update", spy)
    for name, batches in (("parts", parts), ("whole", [whole])):
        run = tiny_run(train={"steps": 1, "accumulate": len(batches)}, objective={"dropout": 0.0})
        monkeypatch.setattr(loop_module, "training_batches", lambda *_, batches=batches, **__: (b for b in batches))
        monkeypatch.setattr(tiny.TinyRun, "build", lambda self: TinyMethod(self).double())
        monkeypatch.setattr(TinyMethod, "prepare", lambda self, batches: self.scale.fill_(1.0))
        monkeypatch.setattr(loop_module, "fixed_batches", lambda *_: iter(()))
        quiet(run, corpus, tmp_path / name)
    assert len(seen) == 2
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in seen[0]) > 1e-3


def test_a_run_learns_and_leaves_a_loadable_encoder(corpus, tmp_path):
    run = tiny_run(train={"steps": 60, "valid_every": 20, "schedule": "constant"}, objective={"pictures": True})
    out = quiet(run, corpus, tmp_path / "run")
    valid = lines(out, "valid")
    assert [line["step"] for line in valid] == [0, 20, 40, 60]
    assert valid[-1]["loss"] < valid[-1]["trivial"] < valid[0]["loss"]
    assert len({line["trivial"] for line in valid}) == 1  # the same crops each time
    train = lines(out, "train")
    assert [line["step"] for line in train] == list(range(4, 61, 4))
    assert all(line["gated"] == line["skipped"] == 0 and line["audio_s_per_s"] > 0 for line in train)
    assert train[0]["lr"] == optim.learning_rate(4, run.train)
    encoder = load_encoder(out)
    stored = load_file(out / "checkpoints/step-00000060/model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in encoder.state_dict().items())
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000054", "step-00000060"]
    assert [path.name for path in sorted((out / "pictures").iterdir())][-1] == "step-00000060.png"
    assert [path.name for path in sorted((out / "sounds").iterdir())][-1] == "step-00000060-clip.flac"
    twin = load_encoder(f"untrained:{out}")
    torch.manual_seed(run.train.seed)
    assert torch.equal(twin.project.weight, run.build().encoder.project.weight)
    assert str(out) in (out / "README.md").read_text()


def test_tensorboard_says_what_metrics_say(corpus, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = quiet(tiny_run(train={"steps": 12}), corpus, tmp_path / "run")
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    for split in ("train", "valid"):
        shown = [(event.step, event.value) for event in board.Scalars(f"{split}/loss")]
        assert shown == [(line["step"], pytest.approx(line["loss"])) for line in lines(out, split)]


def test_a_seed_decides_everything(corpus, tmp_path):
    finals = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = quiet(tiny_run(train={"steps": 6, "seed": seed}), corpus, tmp_path / name)
        finals.append((out / "checkpoints/step-00000006/model.safetensors").read_bytes())
    assert finals[0] == finals[1] != finals[2]


def test_gated_updates_are_counted_and_leave_the_held_out_loss_as_it_was(corpus, tmp_path):
    run = tiny_run(train={"steps": 9, "valid_every": 5}, objective={"sick": [1, 2, 3, 4, 5]})
    out = quiet(run, corpus, tmp_path / "run")
    first, after_sick, last = lines(out, "valid")
    assert first["loss"] == after_sick["loss"] > last["loss"]
    train = lines(out, "train")
    assert [line["gated"] for line in train] == [4, 5, 5]
    assert train[0]["loss"] is None
    assert train[1]["loss"] == pytest.approx(first["loss"], rel=0.5)


def test_ten_gated_in_a_row_stop_the_run_and_keep_the_checkpoint(corpus, tmp_path):
    sick = tiny_run(objective={"sick": list(range(8, 18))}, train={"log_every": 100, "steps": 30})
    with pytest.raises(TrainingError, match="10 non-finite updates in a row") as error:
        quiet(sick, corpus, tmp_path / "run")
    assert "\n" not in str(error.value)
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000012"]
    nine = tiny_run(objective={"sick": list(range(8, 17))}, train={"log_every": 100, "steps": 30})
    quiet(nine, corpus, tmp_path / "nine")


def test_a_preset_by_name_with_edits(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny_test", "tiny:TinyRun")
    edits = {"train": {"steps": 3, "precision": "fp32"}, "encoder": {"dim": 5}, "data": {"batch_seconds": 3.0}}
    named = pretrain("tiny-test", corpus, tmp_path / "named", progress=False, **edits)
    built = quiet(edit(tiny.TinyRun(), **edits), corpus, tmp_path / "built")
    final = "checkpoints/step-00000003/model.safetensors"
    assert (named / final).read_bytes() == (built / final).read_bytes()
    assert load_encoder(named).dims[-1] == 5
    for name, wrong, words in (
        ("tiny-tst", {}, "did you mean 'tiny-test'"),
        ("tiny-test", {"trian": {"steps": 3}}, "did you mean 'train'"),
        ("tiny-test", {"train": {"stepz": 3}}, "did you mean 'train.steps'"),
    ):
        with pytest.raises(ConfigError, match=words):
            pretrain(name, corpus, tmp_path / "wrong", **wrong)
    assert not (tmp_path / "wrong").exists()


def test_a_second_process_is_kept_out(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "LOCK_PATIENCE_S", 0)
    out = quiet(tiny_run(train={"stop_after_s": 1e-6}), corpus, tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", other, str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        for start in (lambda: quiet(tiny_run(), corpus, out, resume=True), lambda: resume(out, progress=False)):
            with pytest.raises(CheckpointError, match="another process is training this run") as error:
                start()
            assert "\n" not in str(error.value)
        holder.kill()
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    resume(out, progress=False)  # the lock died with its holder


def test_a_probe_of_a_label_column(corpus, tmp_path):
    names = sorted(path.name for path in corpus.iterdir())
    rows = [f"{corpus / name},{('low', 'mid', 'high')[i % 3]}" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,pitch", *rows]))
    run = tiny_run(train={"steps": 30, "probe": "pitch"}, data={"valid_fraction": 0.6})
    out = quiet(run, tmp_path / "labels.csv", tmp_path / "run")
    blind = quiet(edit(run, train={"probe": None}), tmp_path / "labels.csv", tmp_path / "blind")
    valid = lines(out, "valid")
    assert len(valid) == 4
    assert all(0 <= line[f"probe_pitch_{layer}"] <= 1 for line in valid for layer in (0, 1))
    final = "checkpoints/step-00000030/model.safetensors"
    assert (out / final).read_bytes() == (blind / final).read_bytes()  # labels do not reach training
    with pytest.raises(ConfigError, match="did you mean 'pitch'"):
        quiet(edit(run, train={"probe": "pich"}), tmp_path / "labels.csv", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_probe_sees_an_encoder_at_rest(corpus, tmp_path):
    modes = []

    def probe(encoder):
        modes.append((encoder.training, torch.is_grad_enabled()))
        torch.rand(7)  # draws of a probe must not reach training
        return {"accuracy": 0.5}

    with_probe = quiet(tiny_run(train={"steps": 10}), corpus, tmp_path / "a", probe=probe)
    without = quiet(tiny_run(train={"steps": 10}), corpus, tmp_path / "b")
    assert modes == [(False, False)] * 2
    assert [line["probe_accuracy"] for line in lines(with_probe, "valid")] == [0.5, 0.5]
    final = "checkpoints/step-00000010/model.safetensors"
    assert (with_probe / final).read_bytes() == (without / final).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_so(corpus, tmp_path, monkeypatch, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(
        TinyMethod, "on_optimizer_step", lambda self, step: os.kill(os.getpid(), number) if step == 7 else None
    )
    with pytest.raises(TrainingInterrupted, match="after step 7 of 30") as error:
        quiet(tiny_run(), corpus, tmp_path / "run")
    assert error.value.exit_code == 130
    assert (tmp_path / "run/checkpoints/step-00000007").is_dir()
    assert signal.getsignal(number) is before


def test_stop_after_s_saves_and_returns(corpus, tmp_path):
    out = quiet(tiny_run(train={"stop_after_s": 1e-6}), corpus, tmp_path / "run")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000001"]


# ------------------------------------------------------------------------------------------ bad input and bad places


def spoil(corpus: Path, where: Path, bad: int) -> Path:
    """A copy of the corpus whose last `bad` clips are digital silence, which is found out only by listening."""
    import shutil

    shutil.copytree(corpus, where)
    for path in sorted(where.iterdir())[-bad:]:
        soundfile.write(path, np.zeros(4000), tiny.RATE)
    return where


def test_unusable_clips_are_recorded_once(corpus, tmp_path):
    spoiled = spoil(corpus, tmp_path / "spoiled", 2)
    out = quiet(tiny_run(data={"max_skipped": 0.1}, train={"steps": 60}), spoiled, tmp_path / "run")
    skips = lines(out, name="skipped.jsonl")
    assert sorted(Path(line["path"]).name for line in skips) == ["22.wav", "23.wav"]
    assert all(line["reason"] and line["format"] == 1 and line["step"] >= 0 for line in skips)
    assert lines(out, "train")[-1]["skipped"] == 2


def test_too_many_unusable_clips_end_the_run_after_saving(corpus, tmp_path):
    spoiled = spoil(corpus, tmp_path / "spoiled", 12)
    with pytest.raises(TooManySkipsError, match="of 24 clips are unusable") as error:
        quiet(tiny_run(data={"max_skipped": 0.2}, train={"checkpoint_every": 100}), spoiled, tmp_path / "run")
    assert error.value.exit_code == 3
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1


def test_a_corpus_of_nothing_usable_is_refused_not_searched_for_ever(corpus, tmp_path):
    spoiled = spoil(corpus, tmp_path / "spoiled", 24)
    with pytest.raises(TooManySkipsError, match="none of the"):
        quiet(tiny_run(data={"max_skipped": 1.0}), spoiled, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError):
        quiet(tiny_run(), tmp_path / "empty", tmp_path / "run2")
    assert not (tmp_path / "run2").exists()


def test_clips_too_short_for_the_method_are_recorded_and_no_skips(tmp_path, caplog):
    """A third of the corpus is shorter than `min_s`; silence in all the others still ends the search."""
    audio = write_corpus(tmp_path / "audio")
    for number in range(12):
        soundfile.write(audio / f"short-{number}.wav", np.full(300, 0.1), tiny.RATE)
    out = quiet(tiny_run(data={"max_skipped": 0.0, "valid_fraction": 0.0}), audio, tmp_path / "run")
    assert [line["too_short"] for line in lines(out, "session")] == [12]
    assert lines(out, "train")[-1]["skipped"] == 0
    assert [record.message for record in caplog.records if "shorter than objective.min_s" in record.message] == [
        "12 of 36 clips are shorter than objective.min_s = 0.05 s, and are left out"
    ]
    for path in audio.glob("[0-9]*.wav"):
        soundfile.write(path, np.zeros(soundfile.info(path).frames), tiny.RATE)
    with pytest.raises(TooManySkipsError):
        quiet(tiny_run(data={"max_skipped": 0.0, "valid_fraction": 0.0}), audio, tmp_path / "silent")
    for path in audio.glob("[0-9]*.wav"):
        path.unlink()
    with pytest.raises(ManifestError, match=r"none of the 12 clips is as long as .* lower objective\.min_s"):
        quiet(tiny_run(data={"valid_fraction": 0.0}), audio, tmp_path / "short")


def test_files_unreadable_at_the_start_count_too(corpus, tmp_path):
    import shutil

    mixed = shutil.copytree(corpus, tmp_path / "mixed")
    (mixed / "broken.wav").write_bytes(b"not audio")
    with pytest.raises(TooManySkipsError, match="1 of 25 clips"):
        quiet(tiny_run(), mixed, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    out = quiet(tiny_run(data={"max_skipped": 0.05}, train={"steps": 4}), mixed, tmp_path / "run")
    assert [line["step"] for line in lines(out, name="skipped.jsonl")] == [-1]


def test_a_taken_folder_is_refused_in_one_line_and_left_alone(corpus, tmp_path):
    run = tiny_run(train={"steps": 2})
    out = quiet(run, corpus, tmp_path / "run")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    plain = tmp_path / "file"
    plain.write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place, message in ((out, "holds a run already"), (full, "not an empty folder"), (plain, "not an empty folder")):
        with pytest.raises(CheckpointError, match=message) as error:
            quiet(run, corpus, place)
        assert "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_places_that_cannot_be_written_are_one_line(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuricleError, match="Not a directory"):
        quiet(tiny_run(), corpus, tmp_path / "file" / "run")


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(corpus, tmp_path, monkeypatch):
    out = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, step):
        if step == 8:  # from here no file may grow past 100 bytes: what a full disk does to a checkpoint
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    monkeypatch.setattr(TinyMethod, "on_optimizer_step", fill)
    try:
        with pytest.raises(AuricleError, match="the newest checkpoint is kept") as error:
            quiet(tiny_run(train={"log_every": 30, "valid_every": 30}), corpus, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    tiny.register()
    quiet(tiny_run(train={"log_every": 30, "valid_every": 30}), corpus, out, resume=True)
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000024", "step-00000030"]


def test_an_absent_device_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    for device in ("cuda:0", "nonsense"):
        with pytest.raises(ConfigError, match=device):
            Processes(TrainConfig(device=device))


def test_sharding_alone_is_one_line():
    with pytest.raises(ConfigError, match="needs several processes"):
        Processes(TrainConfig(sharding="fsdp", device="cpu"))
    with pytest.raises(ConfigError, match="exclude each other"):
        TrainConfig.parse({"sharding": "fsdp", "compile": True})


def test_logs_are_cut_back_and_survive_a_torn_line(tmp_path):
    log = RunLog(tmp_path, -1)
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": 1.0 / step})
        log.skip(step, Skip(f"clip {step}", "/data/ü\u2028.wav", "silent"))
        log.picture(step, {"x": torch.rand(4, 5)})
        log.sound(step, {"talker-1": torch.full((80,), step / 4)}, 8000)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "spl')
    log = RunLog(tmp_path, 2)
    log.skip(4, Skip("clip 1", "", ""))
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert [line["clip_id"] for line in lines(tmp_path, name="skipped.jsonl")] == ["clip 1", "clip 2"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["step-00000001.png", "step-00000002.png"]
    sounds = sorted((tmp_path / "sounds").iterdir())
    assert [path.name for path in sounds] == ["step-00000001-talker-1.flac", "step-00000002-talker-1.flac"]
    heard, rate = soundfile.read(sounds[1])
    assert rate == 8000
    np.testing.assert_allclose(heard, 0.5, atol=1e-4)


def test_an_alarm_reaches_the_log(corpus, tmp_path, caplog):
    out = quiet(tiny_run(train={"steps": 20, "lr": 1e-6}), corpus, tmp_path / "run")
    (alarm,) = [line for line in lines(out, "alarm") if line["name"] == "trivial"]
    assert alarm["step"] == 10
    assert "learned nothing" in alarm["message"]
    assert "learned nothing" in caplog.text
