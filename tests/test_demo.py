from __future__ import annotations

import numpy as np
import pytest

from auricle import demo
from auricle.config import edit
from auricle.data.corpora import read_corpus
from auricle.errors import ConfigError
from auricle.evaluation.results import read_results
from auricle.evaluation.run import evaluate
from auricle.methods import preset


@pytest.fixture
def short(monkeypatch):
    """The tour on the bundled digits alone, with toy networks and hardly any training."""
    recordings = read_corpus("bundled")
    digits = recordings.select(np.array(recordings.column("corpus")) == "fsdd")
    small = {"dim": 32, "heads": 4, "ffn": 64, "layers": 1}

    def evaluate_digits(encoders, *, suite, **options):
        assert suite == "quick"
        return evaluate(encoders, tasks=["quick-digit"], progress=False, **options)

    monkeypatch.setattr(demo, "read_corpus", lambda name: digits)
    monkeypatch.setattr(demo, "preset", lambda name: edit(preset(name), encoder=small))
    monkeypatch.setattr(demo, "evaluate", evaluate_digits)
    monkeypatch.setattr(demo, "LEAST_S", 0.5)


def test_tour_pretrains_two_methods_and_sets_them_beside_twins_and_baselines(short, tmp_path, capsys):
    output = tmp_path / "demo"
    page = demo.tour(output, seconds=1.0)
    results = read_results(output / "results")
    names = {result.encoder for result in results}
    trained = {str(output / name) for name in demo.PRESETS}
    assert names == {"fbank", "mfcc", *trained, *(f"untrained:{name}" for name in trained)}
    text, shown = page.read_text(), capsys.readouterr().out
    for name in demo.PRESETS:
        assert name in text
        assert name in shown
        assert list((output / "embeddings" / name).glob("*.parquet"))
    assert "mockingjay-tiny does not beat apc-tiny" in shown or "mockingjay-tiny beats apc-tiny" in shown
    demo._make_room(output)  # another demo may take its place
    assert not any(output.iterdir())


def test_other_things_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds other things"):
        demo.tour(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "x"
