"""One model in several processes: a copy in each, whose gradients are averaged (DDP), or a shard in each (FSDP)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from auricle.methods.base import Method, RunConfig


def copy_or_shard(method: Method, sharding: str, processes: int) -> nn.Module:
    """The module to call in training; every process begins with the weights of rank 0.

    Under `fsdp` it is `method` itself: its weights become shards, gathered a unit at a time. A unit is a member of a
    `ModuleList` (a block of a stack), and all that is in none.
    """
    if sharding == "none":  # copies rank 0's buffers before each step, as a resume would
        return DistributedDataParallel(method, find_unused_parameters=method.skips_weights)
    for value in method.state_dict().values():
        torch.distributed.broadcast(value, 0)
    mesh = init_device_mesh(method.encoder.device.type, (processes,))
    stacks = [module for module in method.modules() if isinstance(module, nn.ModuleList)]
    for unit in [unit for stack in stacks for unit in stack]:
        fully_shard(unit, mesh=mesh)
    fully_shard(method, mesh=mesh)
    return method


@contextlib.contextmanager
def synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients travel between processes once a step, with the `last` micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def unsharded(method: Method) -> Iterator[None]:
    """Inside, parts of a sharded method may be called on their own; every process takes part."""
    units = [module for module in method.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    yield
    for unit in units:
        unit.set_reshard_after_forward(unit is not units[0], recurse=False)  # the first is the method itself
        unit.reshard()


def whole(method: Method, run: RunConfig) -> Method:
    """The method with whole weights: itself, or when sharded a copy. Every process takes part."""
    if not isinstance(method, FSDPModule):
        return method
    weights = {name: gathered(value) for name, value in method.state_dict().items()}
    copy = run.build()
    copy.load_state_dict(weights)
    return copy


def gathered(tensor: Tensor) -> Tensor:
    """A tensor whole: itself, or all its shards. Every process takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, weight: Tensor) -> Tensor:
    """A moment's `value`, whole, as it lies beside `weight`: on its device, in its memory layout or its shards."""
    if value.shape != weight.shape:  # a count of steps
        return value.to(weight.device)
    if isinstance(weight, DTensor):
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return torch.empty_like(weight).detach().copy_(value)
