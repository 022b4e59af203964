"""AdamW with decay groups, the learning rate's course, precision, and updates that never leave the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from auricle.methods.base import TrainConfig
from auricle.training.parallel import gathered

FLOOR = 0.01
"""Where `tri_stage` begins and ends, as a share of the peak."""


def build_optimizer(
    model: nn.Module, train: TrainConfig, scales: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.AdamW:
    """Fused AdamW over the trainable weights; biases, norms and other 1-D weights do not decay.

    `scales` multiply the learning rate of the weights they name.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():  # names a shared weight once
        if weight.requires_grad:
            decays = weight.ndim > 1 and not name.endswith("bias")
            groups.setdefault((not decays, scales.get(name, 1.0)), []).append(weight)
    return torch.optim.AdamW(
        [
            {"params": groups[key], "weight_decay": train.weight_decay * (not key[0]), "scale": key[1]}
            for key in sorted(groups)
        ],
        lr=train.lr,
        betas=train.betas,
        eps=train.eps,
        fused=True,
    )


def learning_rate(step: int, train: TrainConfig) -> float:
    """Rate of update `step`, counted from 1: a rise to the peak, then what `train.schedule` says.

    A fall to 0 gets there just after the last step, so that every update moves the weights. `tri_stage` is fairseq's:
    from `FLOOR` of the peak up to it, the peak, and exponentially down to `FLOOR` of it.
    """
    rising = round(train.warmup * train.steps)
    done, left = step - 1 - rising, train.steps - rising
    if train.schedule == "tri_stage":
        held = round(train.hold * train.steps)
        if done < 0:
            return train.lr * (FLOOR + (1 - FLOOR) * (step - 1) / rising)
        return train.lr * math.pow(FLOOR, max(0, done - held) / max(1, left - held))
    if done < 0:
        return train.lr * step / rising
    shape = {"linear": 1 - done / left, "cosine": (1 + math.cos(math.pi * done / left)) / 2, "constant": 1.0}
    return train.lr * shape[train.schedule]


def autocast_dtype(train: TrainConfig, device: torch.device) -> torch.dtype | None:
    """bfloat16 when asked for, or under `auto` where the hardware multiplies it natively; None for plain float32."""
    if train.precision != "auto":
        return torch.bfloat16 if train.precision == "bf16" else None
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if native else None


def update(
    optimizer: torch.optim.AdamW, step: int, train: TrainConfig, loss: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """One step on gradients of `loss` () summed over `count` () items: mean, clipping, schedule, gate.

    All of it happens inside the fused kernel, which divides the gradients by `grad_scale` and, where `found_inf` is 1,
    leaves weights and moments as they are: the host never waits to learn whether the gradient was finite. Returns the
    mean gradient's norm () before clipping, and whether the update was gated ().
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = gathered(get_total_norm(gradients)) / count
    gated = ~(norm.isfinite() & loss.isfinite())
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, train) * group["scale"]
    excess = 1.0 if train.clip_norm is None else (norm / train.clip_norm).clamp(min=1)
    optimizer.grad_scale = (count * excess).float()  # type: ignore[attr-defined]
    optimizer.found_inf = gated.float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    return norm, gated
