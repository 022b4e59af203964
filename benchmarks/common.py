"""What the benchmarks share: rows that take turns, their table, and the machine they ran on."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Times = Mapping[str, NDArray[np.float64]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` counts the processor seconds of this process alone: with one thread, other work on the machine hardly shows."""


def measure(
    rows: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[int], object] = lambda number: None,
    clock: str = "wall",
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each row in each round; the rows take turns, so that a busy machine slows all alike.

    `clock` is a key of CLOCKS. `before(number)` prepares round 0, 1, ... untimed; round 0 is also run once before the
    clock starts.
    """
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in rows}
    before(0)
    for row in rows.values():
        row()
    for number in range(rounds):
        before(number)
        for name, row in rows.items():
            begun = now()
            row()
            times[name].append(now() - begun)
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: Times, slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is than `slow`, round by round: median, lowest, highest."""
    ratios = times[slow] / times[fast]
    return {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())}


def wait_for(device: torch.device) -> None:
    """Return when a GPU has done what it was told; the clock of a row stops after this."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_peak(dtype: torch.dtype, device: torch.device, clock: str) -> float:
    """Tflop/s of square matrix products, the best of several, by the faster of the libraries behind PyTorch.

    On a CPU `matmul` may call MKL; a convolution over single points is the same product and calls oneDNN.
    """
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    image, kernel = a.view(1, size, 1, size).permute(0, 3, 1, 2), b.view(size, size, 1, 1)
    rows: dict[str, Callable[[], Tensor]] = {"matmul": lambda: a @ b, "conv": lambda: F.conv2d(image, kernel)}

    def timed(product: Callable[[], Tensor]) -> None:
        product()
        wait_for(device)

    with torch.no_grad():
        times = measure({name: lambda row=row: timed(row) for name, row in rows.items()}, 5, clock=clock)
    return 2 * size**3 / min(seconds.min() for seconds in times.values()) / 1e12


def show_times(times: Times, unit: str = "ms", **columns: Mapping[str, str]) -> None:
    """A line a row: median, lowest and highest time, and more columns of ready-made cells."""
    scale = {"s": 1.0, "ms": 1e3}[unit]
    width = max(len(name) for name in times) + 2
    print(f"\n{'':{width}}" + "".join(f"{f'{head} {unit}':>11}" for head in ("median", "min", "max")), end="")
    print("".join(f"{head.replace('_', ' '):>16}" for head in columns))
    for name, values in times.items():
        figures = (np.median(values), values.min(), values.max())
        print(f"{name:{width}}" + "".join(f"{scale * figure:11.4g}" for figure in figures), end="")
        print("".join(f"{cells[name]:>16}" for cells in columns.values()))


def show_ratio(label: str, found: Mapping[str, float], target: str) -> None:
    """One line: the ratio, its range over the rounds and, where there is a target, what it should be."""
    print(f"{label}: {found['median']:.2f} (from {found['min']:.2f} to {found['max']:.2f})", end="")
    print(f"; target {target}" if target else "")


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):  # not a Linux, or not an x86
        model = platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu": model, "capability": capability, "threads": threads, "torch": torch.__version__}


def write_json(path: Path | None, benchmark: str, **figures: Any) -> None:
    """The figures in a file, if one was asked for; arrays become lists."""
    if path:
        text = json.dumps({"benchmark": benchmark, **figures}, indent=2, default=lambda value: value.tolist())
        path.write_text(text + "\n", encoding="utf-8")
