"""A teacher that follows: closed forms, and what is copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from auricle.nn.ema import Ema, ramp


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"positions": nn.Linear(3, 3), "body": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3)})


def wander(module: nn.Module) -> dict[str, np.ndarray]:
    with torch.no_grad():
        for value in module.state_dict().values():
            value += torch.randn(value.shape).to(value.dtype) + 1
    return {name: value.numpy().astype(np.float64).copy() for name, value in module.state_dict().items()}


def test_three_steps_are_the_closed_form():
    source = student()
    teacher = Ema(source, copied=("positions",))
    states = [{name: value.numpy().astype(np.float64).copy() for name, value in source.state_dict().items()}]
    decays = (0.9, 0.99, 0.5)
    for decay in decays:
        states.append(wander(source))
        teacher.follow(source, decay)
    a, b, c = decays
    weights = (a * b * c, (1 - a) * b * c, (1 - b) * c, 1 - c)
    for name, value in teacher.module.state_dict().items():
        if name.startswith("positions") or "running" in name or "tracked" in name:
            np.testing.assert_array_equal(value, states[-1][name])  # weights and buffers taken over
        else:
            wanted = sum(weight * state[name] for weight, state in zip(weights, states, strict=True))
            np.testing.assert_allclose(value, wanted, rtol=2e-6, atol=1e-6)
    teacher.copy(source)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in teacher.module.state_dict().items())


def test_the_average_is_float32_whatever_the_source():
    source = nn.Linear(4, 4).bfloat16()
    teacher = Ema(source)
    for _ in range(200):  # each step moves bfloat16 weights near 1 by less than they resolve
        with torch.no_grad():
            source.weight.fill_(1.0)
            teacher.module.weight.fill_(0.5) if _ == 0 else None
        teacher.follow(source, 0.999)
    assert teacher.module.weight.dtype == torch.float32
    assert teacher.module.weight.mean().item() == pytest.approx(1 - 0.5 * 0.999**200, rel=1e-5)


def test_it_stays_in_evaluation_mode_and_out_of_the_graph():
    source = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    teacher = Ema(source)
    nn.ModuleList([teacher]).train()
    x = torch.randn(2, 4, requires_grad=True)
    out = teacher(x)
    assert torch.equal(out, source[0](x))  # no dropout
    assert not out.requires_grad
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert source[0].weight.requires_grad
    assert source.training


def test_the_decay_ramps_in_a_line():
    found = [ramp(step, 0.999, 0.9999, 30_000) for step in (0, 15_000, 30_000, 400_000)]
    assert found == pytest.approx([0.999, 0.99945, 0.9999, 0.9999], abs=1e-12)
