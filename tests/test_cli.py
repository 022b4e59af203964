"""The command line as a person uses it, on recordings the test makes; its surface is frozen here on purpose."""

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf

import auricle
from auricle import cli

SMALL = [
    *("--encoder.dim", "32", "--encoder.layers", "1", "--encoder.ffn", "64", "--objective.crop-s", "1"),
    *("--data.batch-seconds", "6", "--train.precision", "fp32", "--train.log-every", "2", "--train.valid-every", "4"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """24 clips of a low or a high tone in noise, and a CSV that names them."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    lines = ["file,pitch,take"]
    for take in range(24):
        pitch, hz = ("low", 300) if take % 2 else ("high", 1500)
        time = np.arange(16000) / 16000
        wave = 0.3 * np.sin(2 * np.pi * hz * rng.uniform(0.8, 1.2) * time) + 0.05 * rng.standard_normal(16000)
        sf.write(folder / f"{take}.wav", wave, 16000)
        lines.append(f"{take}.wav,{pitch},{take}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A run of eight steps."""
    folder = tmp_path_factory.mktemp("runs") / "mj"
    args = ["pretrain", "mockingjay-tiny", "--data", str(corpus), "--output", str(folder), "--train.steps", "8", *SMALL]
    assert cli.main(args) == 0
    return folder


def test_from_recordings_to_a_page(corpus, run, tmp_path, capsys):
    assert cli.main(["embed", str(run), "--data", str(corpus), "--output", str(tmp_path / "emb"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 24
    results = tmp_path / "results"
    labels = ["--data", str(corpus / "labels.csv"), "--target", "pitch", "--output", str(results)]
    assert cli.main(["evaluate", str(run), "fbank", f"untrained:{run}", *labels, "--json"]) == 0
    scores = {row["encoder"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(scores) == {str(run), "fbank", f"untrained:{run}"}
    assert scores["fbank"]["score"] > 0.75  # the two pitches lie bands apart; chance is a half
    page = tmp_path / "report.html"
    assert cli.main(["report", str(run), str(results), "--output", str(page)]) == 0
    assert "pitch" in page.read_text(encoding="utf-8")


def test_a_missing_file_is_told_on_a_line_of_its_own(corpus, tmp_path, capsys):
    text = (corpus / "labels.csv").read_text(encoding="utf-8")
    names = [line.partition(",") for line in text.splitlines()]
    rows = ["path,pitch,take", *(f"{corpus / name},{rest}" for name, _, rest in names[1:])]
    rows.append(f"{corpus / 'gone.wav'},low,24")
    short = tmp_path / "short.wav"
    sf.write(short, np.zeros(10), 16000)
    rows.append(f"{short},low,25")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    labels = ["--data", str(tmp_path / "labels.csv"), "--target", "pitch", "--output", str(tmp_path / "results")]
    assert cli.main(["evaluate", "fbank", *labels, "--protocol", "knn"]) == 0
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert any(line.startswith("unusable files that are left out: 1") and "gone.wav" in line for line in lines)
    assert any(line.startswith("fbank could not embed 1 clips") for line in lines)  # not behind the progress bar


def test_one_held_out_clip_raises_no_alarm_of_collapse(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if line["split"] == "alarm" and "collapse" in line["name"]]
    assert [line["step"] for line in lines if line["split"] == "valid"] == [0, 4, 8]


def test_layers_are_chosen_by_number(corpus, run, tmp_path):
    assert cli.main(["embed", str(run), "--data", str(corpus), "--output", str(tmp_path), "--layers", "0,1"]) == 0
    names = pq.read_schema(next(tmp_path.glob("*.parquet"))).names
    assert {"layer_0", "layer_1", "clip_id"} <= set(names)


def test_a_resolved_config_starts_the_same_run(corpus, run, tmp_path):
    again = tmp_path / "again"
    config = ["--config", str(run / "config.yaml")]
    assert cli.main(["pretrain", *config, "--data", str(corpus), "--output", str(again)]) == 0
    weights = [folder / "checkpoints" / "step-00000008" / "model.safetensors" for folder in (run, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_preset_then_yaml_then_command_line(corpus, tmp_path):
    (tmp_path / "my.yaml").write_text("train: {steps: 3, lr: 0.002}\nencoder: {layers: 2}\n", encoding="utf-8")
    args = ["pretrain", "mockingjay-tiny", "--config", str(tmp_path / "my.yaml"), "--data", str(corpus), *SMALL]
    assert cli.main([*args, "--output", str(tmp_path / "run"), "--train.steps", "2"]) == 0
    stored = auricle.config.read_yaml(tmp_path / "run" / "config.yaml")
    assert stored["train"]["steps"] == 2  # the command line over the file
    assert stored["train"]["lr"] == 0.002  # the file over the preset
    assert stored["encoder"]["layers"] == 1  # SMALL, on the command line
    assert stored["train"]["clip_norm"] == 1.0  # the preset


def test_a_finished_run_resumes_to_nothing(run, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert cli.main(["pretrain", "--resume", str(run)]) == 0
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["evalute", "x"], "did you mean 'evaluate'"),
        (["pretrain", "mockingjay-tiy"], "did you mean 'mockingjay-tiny'"),
        (["pretrain", "mockingjay-tiny", "--data", "/no/such", "--output", "x"], "/no/such"),
        (["pretrain", "--resume", "/no/such"], "/no/such"),
        (["embed", "fbankk", "--data", "/no/such", "--output", "x"], "did you mean 'fbank'"),
        (["embed", "fbank", "--data", "/no/such", "--output", "x", "--layers", "lasst"], "did you mean 'last'"),
        (["evaluate", "fbank", "--suite", "quik"], "did you mean 'quick'"),
        (["report", "/no/such"], "/no/such"),
        (["report", ".", "--output", "page.pdf"], "page.pdf: ends neither in .html"),
        (["prepare", "librispech", "/no/such", "--output", "x"], "did you mean 'librispeech'"),
        (["prepare", "fsdd", "/no/such", "--output", "x", "--cpc", "y"], "takes no option 'cpc'"),
        (["check", "no_such_module:Thing"], "no_such_module"),
    ],
)
def test_mistakes_are_told_in_one_line(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize("args", [["--train.stepz", "3"], ["--train.steps", "many"], ["--train.steps", "0"]])
def test_wrong_options_fail_before_any_work(args, corpus, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", "mockingjay-tiny", "--data", str(corpus), "--output", str(tmp_path / "run"), *args])
    assert stop.value.code == 2
    assert "steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_names_for_every_list(capsys):
    for what, name in {"presets": "mockingjay-base", "encoders": "fbank", "tasks": "quick-phones", "suites": "quick",
                       "corpora": "librispeech", "protocols": "knn", "papers": "noss/trill-layer19",
                       "recipes": "audio-mae"}.items():  # fmt: skip
        assert cli.main(["list", what, "--json"]) == 0
        assert name in json.loads(capsys.readouterr().out)


def test_tasks_of_a_suite_say_what_they_need(capsys):
    assert cli.main(["list", "tasks", "--suite", "noss", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)
    assert all(name.startswith("noss-") for name in tasks)
    assert " h http" in tasks["noss-savee"]
    assert cli.main(["list", "suites", "--json"]) == 0
    assert set(tasks) <= set(json.loads(capsys.readouterr().out)["noss"].split(" (")[0].split(", "))
    assert cli.main(["list", "corpora", "--suite", "noss"]) == 2


def test_check_passes_a_baseline_and_names_faults(capsys):
    assert cli.main(["check", "fbank"]) == 0
    assert "keeps every promise" in capsys.readouterr().out


def test_importing_and_helping_need_no_torch():
    code = """
import sys, auricle, auricle.cli
auricle.cli.main(["--help"])
auricle.cli.main(["list", "tasks"])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_are_these():
    assert auricle.__all__ == [
        "__version__", "load", "pretrain", "resume", "preset", "embed", "evaluate", "finetune", "predict", "export",
        "check", "build_report", "Encoder", "Frames", "Manifest", "AuricleError",
    ]  # fmt: skip
    assert all(getattr(auricle, name) is not None for name in auricle.__all__)


def test_options_are_these(capsys):
    """A new option is a decision: change this list in the same commit."""
    wanted = {
        "demo": {"output", "seconds", "seed"},
        "embed": {"data", "output", "level", "layers", "pool", "dtype", "precision", "batch-seconds", "workers",
                  "max-skipped", "device", "json"},
        "evaluate": {"recipe", "dry-run", "suite", "tasks", "corpora", "protocol", "data", "target", "level", "metric",
                     "split", "group", "unit", "speaker", "pool", "heads", "layers", "seeds", "trials", "trial-count",
                     "as-norm", "center", "output", "overwrite", "cache", "device", "json"},
        "finetune": {"data", "target", "output", "level", "metric", "split", "fold", "group", "unit", "json", "blocks",
                     "head", "hidden", "epochs", "batch", "batch-seconds", "crop-s", "lr", "layer-decay", "warmup",
                     "schedule", "betas", "weight-decay", "clip-norm", "mixup", "mixup-beta", "time-mask",
                     "frequency-mask", "noise", "roll", "drop-time", "drop-frequency", "drop-path", "loss", "balanced",
                     "valid-every", "patience", "seed",
                     "precision", "device", "workers", "max-skipped", "recipe"},
        "predict": {"data", "output", "batch-seconds", "workers", "device"},
        "export": {"format", "output", "layers"},
        "report": {"output"},
        "list": {"suite", "json"},
        "check": set(),
        "prepare": {"output", "subsets", "alignments", "cpc", "options"},
    }  # fmt: skip
    assert set(wanted) | {"pretrain"} == set(cli.VERBS)
    for verb, options in wanted.items():
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        told = set(re.findall(r"(?<=[ |]--)[a-z][a-z-]*", capsys.readouterr().out))
        assert {option for option in told if not option.startswith("no-")} - {"help"} == options, verb
