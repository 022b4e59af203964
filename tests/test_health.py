"""Alarms: each planted cause rings its own bell, and health rings none."""

from __future__ import annotations

import json
import math

import pytest
import torch

from auricle.training.health import Monitor, Vitals, effective_rank, spread


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_effective_rank_counts_equal_directions(rank):
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(64, 20, dtype=torch.float64))
    left = torch.linalg.qr(left - left.mean(0))[0][:, :rank]
    left = left - left.mean(0)
    right, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))
    assert effective_rank(left @ right[:rank] + 5) == pytest.approx(rank, rel=0.02)


def test_collapsed_embeddings_have_rank_and_spread_zero():
    same = torch.full((10, 4), 3.3)
    assert effective_rank(same) == 0
    assert spread(same) == pytest.approx(0, abs=1e-12)
    assert spread(torch.tensor([[1.0], [-1.0]])) == pytest.approx(1)
    assert spread(torch.tensor([[3.0], [1.0]])) == pytest.approx(1 / 5)  # variance 1, mean square 5


HEALTHY = {"done": 0.1, "loss": 1.0, "trivial": 2.0, "ranks": [8.0, 8.0], "spreads": [0.5, 0.5], "speed": 100.0}


@pytest.mark.parametrize(
    ("name", "history", "sick"),
    [
        ("divergence", [{"loss": 1.0}, {"loss": 0.5}], {"loss": 0.8}),
        ("divergence", [{"loss": -1.0}, {"loss": -9.0}], {"loss": -4.0}),
        ("divergence", [{}], {"loss": math.nan}),
        ("trivial", [{"loss": 3.0}], {"done": 0.6}),
        ("collapse of layer 1", [{}], {"ranks": [8.0, 2.0]}),
        ("collapse of layer 0", [{}], {"spreads": [1e-6, 0.5]}),
        ("stalled data", [{}], {"waiting": 0.7}),
        ("throughput", [{}, {"speed": 120.0}], {"speed": 50.0}),
        ("probe phones", [{"probe": {"phones": 0.64}}], {"probe": {"phones": 0.36}}),
    ],
)
def test_each_alarm_rings_once_for_its_cause_alone(name, history, sick):
    monitor = Monitor()
    for vitals in history:
        assert monitor.check(Vitals(**HEALTHY | vitals)) == {}
    healthy = Vitals(**HEALTHY | history[-1])
    assert monitor.check(healthy) == {}
    resumed = Monitor(**json.loads(json.dumps(vars(monitor))))
    assert list(monitor.check(Vitals(**HEALTHY | history[-1] | sick))) == [name]
    assert monitor.check(Vitals(**HEALTHY | history[-1] | sick)) == {}  # goes on: not repeated
    assert monitor.check(healthy) == {}
    assert list(monitor.check(Vitals(**HEALTHY | history[-1] | sick))) == [name]  # anew
    assert list(resumed.check(Vitals(**HEALTHY | history[-1] | sick))) == [name]
