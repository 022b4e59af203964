"""Recipes of published rows: each is whole and can be parsed; a dry run tells what is there; a run goes on."""

import json
import shlex

import numpy as np
import pytest
import soundfile as sf
import yaml

from auricle import cli
from auricle.cli import recipes
from auricle.cli.recipe_plan import Plan, _Prospect
from auricle.cli.recipes import evaluate_recipe, run_recipe
from auricle.encoders.checkpoint import load
from auricle.errors import ConfigError, EvaluationError
from auricle.evaluation.metrics import METRICS
from auricle.evaluation.recipes import CORPORA, PROVENANCE, Recipe, load_recipe, measure, recipe_names
from auricle.evaluation.tasks import TASKS
from auricle.methods import preset_names

PAPERS = {"mockingjay", "noss", "audio-mae", "mae-ast", "music2vec", "csc"}
CLASSES = ("dog", "rain")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of corpora: ESC-50's layout with 20 clips of half a second, and a CSV of six with words."""
    root = tmp_path_factory.mktemp("corpora")
    rng, lines = np.random.default_rng(0), ["filename,fold,target,category,esc10,src_file,take"]
    (root / "esc50" / "audio").mkdir(parents=True)
    (root / "esc50" / "meta").mkdir()
    for clip in range(20):
        kind = CLASSES[clip % 2]
        wave = np.sin(2 * np.pi * (300 + 900 * (clip % 2)) * np.arange(8000) / 16000) + rng.standard_normal(8000)
        sf.write(root / "esc50" / "audio" / f"{clip}.wav", 0.1 * wave, 16000)
        lines.append(f"{clip}.wav,{clip % 10 // 2 + 1},{clip % 2},{kind},False,{clip},A")
    (root / "esc50" / "meta" / "esc50.csv").write_text("\n".join(lines), encoding="utf-8")
    rows = [f"esc50/audio/{clip}.wav,{CLASSES[clip % 2]}" for clip in range(6)]
    (root / "own.csv").write_text("\n".join(["path,word", *rows]), encoding="utf-8")
    return root


TINY = (
    "--encoder.dim 32 --encoder.layers 1 --encoder.ffn 64 --objective.crop-s 0.4 --objective.min-s 0.1 "
    "--data.batch-seconds 4 --train.steps 2 --train.precision fp32"
)
QUICK = "--seeds 0 --layers last"
OWN = {
    "paper": "nobody 2020",
    "row": "twenty clips",
    "corpora": [{"corpus": "esc50"}, {"file": "own.csv", "columns": ["word"], "about": "make it"}],
    "encoders": ["{runs}/mj", "untrained:{runs}/mj"],
    "commands": [
        "auricle prepare esc50 {corpora}/esc50 --output {runs}/esc50.parquet",
        f"auricle pretrain mockingjay-tiny {TINY} --data {{runs}}/esc50.parquet --output {{runs}}/mj",
        f"auricle evaluate {{encoders}} --data {{corpora}}/own.csv --target word {QUICK} --output {{output}}/words",
        f"auricle evaluate {{encoders}} --tasks esc50 --corpora {{corpora}} {QUICK} --output {{output}}/sounds",
    ],
    "expected": [{"task": "esc50", "value": 94.1, "metric": "accuracy", "source": "table", "provenance": "paper"}],
    "cost": {"cpu_hours": 0.1, "basis": "a guess"},
}


def written(folder, **changes):
    """A recipe of one's own in a file."""
    path = folder / "own-row.yaml"
    path.write_text(yaml.safe_dump(OWN | changes), encoding="utf-8")
    return path


@pytest.fixture
def started(monkeypatch):
    """Commands that a real run starts; they run in this process."""
    commands = []

    def run(words):
        commands.append(words)
        return cli.main(words)

    monkeypatch.setattr(recipes, "_run", run)
    return commands


# ------------------------------------------------------------------------------------------------ those we ship


def test_all_papers_have_recipes():
    assert {name.split("/")[0] for name in recipe_names()} == PAPERS
    tasks = {task for name in recipe_names() for task in words_of(load_recipe(name), "--tasks")}
    assert {"superb-ks", "noss-mask", "mockingjay-phones-1hidden", "verification-clean"} <= tasks <= TASKS.keys()


def words_of(recipe, option):
    """The values of an option in all of a recipe's commands."""
    for command in recipe.commands:
        words = shlex.split(command)
        if option in words:
            for word in words[words.index(option) + 1 :]:
                if word.startswith("--"):
                    break
                yield word


@pytest.fixture
def stand_in(monkeypatch):
    """Recipes parse a second iteration by opening the first: a small network will do; encoders need not be there."""
    monkeypatch.setattr(_Prospect, "_check_encoders", lambda *_: None)
    build = _Prospect._encoder

    def small(self, name):
        config = {"dim": 96, "layers": 6, "heads": 2, "ffn": 96, "channels": 8}
        if name in self.runs:
            from auricle.config import edit

            self.runs[name] = edit(self.runs[name], encoder=config)
        return build(self, name)

    monkeypatch.setattr(_Prospect, "_encoder", small)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_whole(name, stand_in, tmp_path):
    recipe = load_recipe(name)
    plan = Plan(recipe, tmp_path / "corpora", tmp_path / "out")
    plan.look(plan.commands)  # every command can be parsed, and reads only what the recipe lists
    assert len(plan.steps) == len(plan.commands) >= len(recipe.commands)
    assert plan.problems  # there is no corpus
    listed = {str(one) for one in recipe.corpora}
    assert {label.split(" (voxceleb1-o")[0] for label in plan.found} == listed  # and reads all of it
    assert {str(one.corpus) for one in recipe.corpora} <= {*CORPORA, ""}
    assert all(one.about for one in recipe.corpora if one.file)
    for words in plan.commands:
        if words[0] == "pretrain":
            assert words[1] in preset_names()
    assert not any("{" in word for words in plan.commands for word in words)
    for encoder in recipe.encoders:  # is made by an earlier command, or is there anyway
        made = {words[words.index("--output") + 1] for words in plan.commands if words[0] == "pretrain"}
        filled = encoder.replace("{runs}", str(tmp_path / "out" / "runs")).removeprefix("untrained:")
        assert filled in made or filled in ("fbank", "mfcc") or filled.startswith("hf:")
    assert "\n" not in str(recipe)


@pytest.mark.parametrize("name", recipe_names())
def test_expected_numbers_say_where_they_were_read(name):
    recipe = load_recipe(name)
    if recipe.expected is None:
        assert "No number is expected" in recipe.note
        return
    columns = set(words_of(recipe, "--target"))
    for one in recipe.expected:
        assert one.metric in METRICS
        assert 0 < one.value < 100
        assert one.source
        assert one.provenance in PROVENANCE
        assert one.task in TASKS or any(one.task.endswith(f"-{column}") for column in columns)
        if one.task in TASKS and one.task != "noss-mask":
            assert one.metric == TASKS[one.task].scored_by


def test_numbers_that_specialists_know():
    audio_mae = {row: load_recipe(f"audio-mae/{row}").expected[0].value for row in ("esc-50", "as-20k", "spc-2", "sid")}
    assert audio_mae == {"esc-50": 94.1, "as-20k": 37.0, "spc-2": 98.3, "sid": 94.8}
    assert [one.value for one in load_recipe("mockingjay/phones-base-100h").expected] == [64.3, 76.8]
    assert load_recipe("csc/mixtures-galr").expected is None


# -------------------------------------------------------------------------------------------------- what is refused


def test_unknown_names_are_told_with_the_near_miss():
    with pytest.raises(ConfigError, match="did you mean 'audio-mae/esc-50'"):
        load_recipe("audio-mae/esc50")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpora": [{"corpus": "esc51"}]}, "unknown corpus 'esc51'; did you mean 'esc50'"),
        ({"corpora": [{"about": "?"}]}, "either corpus or file"),
        ({"expected": None}, "note"),
        ({"cost": {"basis": "?"}}, "either gpu_hours or cpu_hours"),
        ({"commands": ["rm -rf /"]}, "none of auricle prepare"),
        ({"format": 2}, "newer"),
        ({"price": 3}, "unknown option 'price'"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_command_with_a_mistake_is_named(root, tmp_path):
    wrong = [OWN["commands"][0], "auricle evaluate fbank --tasks esc50 --corpra {corpora}"]
    with pytest.raises(ConfigError, match=r"evaluate fbank --tasks esc50 --corpra.*--corpora") as caught:
        run_recipe(written(tmp_path, commands=wrong), corpora=root, output=tmp_path, dry_run=True)
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("auricle evaluate fbank --tasks quick-digit --corpora {corpora}", "reads corpus bundled .*does not list"),
        ("auricle evaluate fbank --data {corpora}/other.csv --target word", "reads .*other.csv, and does not list"),
        ("auricle evaluate fbank --data {corpora}/own.csv --target mood", "has no column 'mood'"),
        ("auricle evaluate fbnk --data {corpora}/own.csv --target word", "did you mean 'fbank'"),
    ],
)
def test_what_a_command_reads_is_checked(root, tmp_path, command, message):
    plan = run_recipe(written(tmp_path, commands=[command]), corpora=root, output=tmp_path, dry_run=True)
    with pytest.raises(EvaluationError, match=message):
        raise EvaluationError(plan.complaint)


# ------------------------------------------------------------------------------------------------------ a dry run


def test_a_dry_run_counts_and_estimates_and_does_nothing(root, tmp_path, started):
    plan = run_recipe(written(tmp_path), corpora=root, output=tmp_path / "out", dry_run=True)
    assert not plan.problems
    assert not started
    assert not (tmp_path / "out").exists()
    found = plan.found["esc50"]
    assert (len(found.manifest), found.hours, found.longest_s) == (20, pytest.approx(10 / 3600), 0.5)
    assert len(plan.found["own.csv"].manifest) == 6
    prepare, pretrain, words, sounds = plan.steps
    assert prepare.seconds is None
    assert min(pretrain.seconds, words.seconds, sounds.seconds) > 0
    assert sounds.seconds / words.seconds == pytest.approx(20 / 6)  # the same encoders on 10 and on 3 seconds
    per_second = sounds.seconds / (2 * 10)  # of either of two alike encoders
    assert pretrain.seconds == pytest.approx(3 * 2 * 4 * per_second)  # two steps of four seconds
    width = 2 * 32
    assert sounds.memory >= 20 * width * 4
    assert sounds.memory - words.memory == 14 * width * 4
    text = str(plan)
    assert "esc50: 20 clips, 0.00 h, the longest 0.5 s" in text
    assert "accuracy 94.1 (table; read in the paper)" in text


def test_attention_and_width_are_the_networks_own(tmp_path):
    from auricle.methods import preset

    encoder = preset("mockingjay-tiny").build().encoder.eval()
    speed = measure(encoder, 1.0)
    assert speed.width == sum(encoder.dims)
    frames = 4 * encoder.sample_rate / encoder.hop
    assert speed.memory(0, 4.0) == 4 * encoder.config.heads * frames**2
    assert speed.memory(7, 0.0) == 4 * 7 * sum(encoder.dims)
    longest = encoder.config.chunk_frames  # windows of so many frames
    assert speed.memory(0, 1e6) == 4 * encoder.config.heads * longest**2
    assert measure(load("fbank"), 1.0).heads == 0


def test_what_is_missing_is_told_in_one_line_and_nothing_begins(root, tmp_path, started, capsys):
    corpora = [*OWN["corpora"], {"corpus": "savee"}, {"file": "gone.csv", "about": "ask us"}]
    commands = [
        *OWN["commands"],
        "auricle evaluate fbank --tasks noss-savee --corpora {corpora}",
        "auricle evaluate fbank --data {corpora}/gone.csv --target word",
    ]
    path = written(tmp_path, corpora=corpora, commands=commands)
    plan = run_recipe(path, corpora=root, output=tmp_path, dry_run=True)
    assert len(plan.problems) == 2
    assert "\n" not in plan.complaint
    assert "savee" in plan.complaint
    assert "gone.csv" in plan.complaint
    assert "kahlan.eps.surrey.ac.uk" in str(plan)  # where to get it
    assert "gone.csv: no such file or folder; ask us" in str(plan)
    assert "esc50: 20 clips" in str(plan)
    with pytest.raises(EvaluationError, match="savee"):
        run_recipe(path, corpora=root, output=tmp_path)
    assert not started
    options = ["--recipe", str(path), "--corpora", str(root), "--dry-run"]
    with pytest.raises(EvaluationError, match=r"gone.csv"):
        evaluate_recipe(options)
    assert "MISSING" in capsys.readouterr().out


def test_a_recipe_of_the_package_names_its_missing_corpora(root):
    plan = run_recipe("audio-mae/esc-50", corpora=root, dry_run=True, encoders=["fbank"])
    assert not plan.problems  # of one's own encoders nothing is pre-trained, and AudioSet is not needed
    assert [words[0] for words in plan.commands] == ["prepare", *["finetune"] * 5]
    plan = run_recipe("noss/personal", corpora=root, dry_run=True, encoders=["fbank", "mfcc"])
    assert [words[:3] for words in plan.commands] == [["evaluate", "fbank", "mfcc"]]
    assert {line.split(": ")[1].split()[3] for line in plan.problems} == {"folder"}
    assert {"savee", "crema_d", "speech_commands_v2"} == {one.label for one in plan.found.values() if one.problem}


def test_a_damaged_corpus_is_missing_too(root, tmp_path):
    other = tmp_path / "other"
    (other / "esc50").mkdir(parents=True)
    plan = run_recipe(written(tmp_path), corpora=other, output=tmp_path, dry_run=True)
    assert any("expected meta/esc50.csv" in line for line in plan.problems)


def test_a_second_iteration_is_parsed_with_a_stand_in_of_the_first(root, tmp_path):
    tiny = "--encoder.dim 32 --encoder.layers 2 --encoder.ffn 32 --encoder.channels 8"
    commands = [
        OWN["commands"][0],
        f"auricle pretrain musichubert-tiny {tiny} --data {{runs}}/esc50.parquet --output {{runs}}/mj",
        f"auricle pretrain musichubert-tiny-iter2 {tiny} --quantizer {{runs}}/mj "
        "--data {runs}/esc50.parquet --output {runs}/second",
        *OWN["commands"][2:],
    ]
    plan = run_recipe(written(tmp_path, commands=commands), corpora=root, output=tmp_path / "out", dry_run=True)
    assert not plan.problems
    assert not (tmp_path / "out").exists()


def test_placeholders_repeat_commands_by_encoder():
    recipe = Recipe.parse({"name": "x", **OWN, "commands": ["auricle finetune {encoder} --output {output}/{name}"]})
    steps = recipe.steps(corpora="c d", runs="r", output="o")
    assert steps == [
        ["finetune", "r/mj", "--output", "o/mj"],
        ["finetune", "untrained:r/mj", "--output", "o/untrained-mj"],
    ]


# ------------------------------------------------------------------------------------------------------ a real run


def test_a_run_makes_every_step_once_and_shows_the_reported_number(root, tmp_path, started, capsys):
    path, output = written(tmp_path), tmp_path / "out"
    options = ["--recipe", str(path), "--corpora", str(root), "--output", str(output)]
    assert evaluate_recipe(options) == 0
    assert [words[0] for words in started] == ["prepare", "pretrain", "evaluate", "evaluate"]
    text = capsys.readouterr().out
    assert "reported: esc50: accuracy 94.1 (table; read in the paper)" in text
    assert str(output / "runs" / "mj") in text
    assert len(list((output / "own-row").rglob("*@*-v*.json"))) == 4  # two encoders on two tasks
    started.clear()
    assert evaluate_recipe(options) == 0
    assert not started  # all is done


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [(130, KeyboardInterrupt, None), (3, EvaluationError, r"step 2 of 4: .*failed \(exit code 3\)")],
)
def test_a_run_that_ended_early_goes_on(root, tmp_path, started, monkeypatch, code, error, message):
    path, output = written(tmp_path), tmp_path / "out"
    finish = recipes._run

    def end_early(words):
        ended = finish(words)  # with the run folder there
        return code if words[0] == "pretrain" and "--resume" not in words else ended

    monkeypatch.setattr(recipes, "_run", end_early)
    with pytest.raises(error, match=message):
        run_recipe(path, corpora=root, output=output)
    run_recipe(path, corpora=root, output=output)
    verbs = [words[:2] for words in started]
    assert [verb for verb, _ in verbs] == ["prepare", "pretrain", "pretrain", "evaluate", "evaluate"]
    assert verbs[2] == ["pretrain", "--resume"]


def test_a_step_is_a_process_with_an_exit_code(capfd):
    assert recipes._run(["list", "paperz"]) == 2
    assert "papers" in capfd.readouterr().err


def test_a_run_of_another_command_is_not_gone_on_with(root, tmp_path, started):
    run_recipe(written(tmp_path), corpora=root, output=tmp_path / "out")
    longer = [command.replace("--train.steps 2", "--train.steps 3") for command in OWN["commands"]]
    with pytest.raises(ConfigError, match=r"runs/mj: was begun by .*--train.steps 2"):
        run_recipe(written(tmp_path, commands=longer), corpora=root, output=tmp_path / "out")


def test_a_damaged_ledger_is_told(root, tmp_path, started):
    (tmp_path / "steps.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="damaged"):
        run_recipe(written(tmp_path), corpora=root, output=tmp_path)
    (tmp_path / "steps.json").write_text(json.dumps({"format": 9, "auricle": "9", "steps": {}}), encoding="utf-8")
    with pytest.raises(ConfigError, match="newer"):
        run_recipe(written(tmp_path), corpora=root, output=tmp_path)
