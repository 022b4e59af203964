"""The processes and the device of a run; `torchrun` and `accelerate launch` start several."""

from __future__ import annotations

import atexit
import signal
from datetime import timedelta
from types import FrameType
from typing import Any, Self

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from auricle.errors import ConfigError
from auricle.methods.base import TrainConfig


class Processes:
    """This process among those of the run: `rank` of `count`, on `device`. Alone, nothing is exchanged.

    Raises `ConfigError` for a device that is not there, and for sharding without others to share with.
    """

    def __init__(self, train: TrainConfig) -> None:
        # A fit of rank 0 before the first step may take long, and the others wait.
        self._state = PartialState(cpu=train.device == "cpu", timeout=timedelta(hours=2))
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.main = self.rank == 0
        self.device: torch.device = self._state.device
        if train.device != "auto" and self.count == 1:
            self.device = _device(train.device)
        if train.sharding == "fsdp" and self.count == 1:
            raise ConfigError("train.sharding: 'fsdp' needs several processes: start it with torchrun")
        # Votes go through the hosts' memory, so that they never wait for a device.
        self._hosts: Any = None
        if self.count > 1:
            self._hosts = torch.distributed.new_group(backend="gloo")
            atexit.register(_part)

    def vote(self, value: int) -> int:
        """The largest value that any process holds."""
        if self.count == 1:
            return value
        ballot = torch.tensor(value)
        torch.distributed.all_reduce(ballot, torch.distributed.ReduceOp.MAX, group=self._hosts)
        return int(ballot)

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order of ranks."""
        return list(gather_object(items)) if self.count > 1 else items

    def wait(self) -> None:
        """Go on when all processes are here."""
        self._state.wait_for_everyone()


class Signals:
    """While inside, SIGINT and SIGTERM set `received` instead of ending the process; a second one ends it as ever."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        except ValueError:  # only the main thread may: elsewhere the caller's own handling stays
            self._before = {}
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self.__exit__()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _part() -> None:
    """Join the groups' threads: an interpreter that ends with them running aborts now and then."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ConfigError(f"train.device: '{name}' cannot be used here ({str(error).splitlines()[0]})") from None
    return device
