"""What moments on a CUDA device cost, beside torch: python -m benchmarks.cuda [--quick] [--json FILE].

Needs a GPU and torch; answers are checked before anything is timed. It has never been run on one (docs/cuda.md).
Where the kernels are emulated, --quick runs all of it on CPU memory, to see that it runs; those times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamcca as sc
from streamcca import devices

Result = dict[str, Any]


class Clock:
    """Times on the device, from before the first launch until the last one is done."""

    def __init__(self, device: str) -> None:
        self._device = device

    def wait(self) -> None:
        """Wait for the device."""
        if self._device != "cpu":
            torch.cuda.synchronize()

    def median(self, job: Callable[[], object], rounds: int) -> float:
        """Seconds of a job, after one that is not counted."""
        times = []
        for _ in range(rounds + 1):
            self.wait()
            start = time.perf_counter()
            job()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])


def memory(device: str) -> str:
    """Where torch makes rows for moments on a device: in CPU memory where that is emulated."""
    return "cpu" if devices._extension().EMULATED else device


def _rows(n: int, d: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(0)
    parts = [torch.randn(min(16384, n - i), d, generator=generator, device=device) for i in range(0, n, 16384)]
    return torch.cat([part.to(dtype) for part in parts])


def _check(moments: sc.Moments, x: torch.Tensor) -> float:
    """Largest error of 64 neurons against float64, in units of their deviations; beyond the bound it is refused."""
    picked = torch.linspace(0, x.shape[1] - 1, 64).long().unique()
    y = x[:, picked.to(x.device)].double()
    y = y - y.mean(0)
    exact = (y.T @ y / (len(y) - 1)).cpu().numpy()
    found, (relative, _, raw) = moments._covariance("x", "x")
    index = picked.numpy()
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    error = np.abs(found[np.ix_(index, index)] - exact)
    bound = 8 * max(relative, 2.0**-24 if moments.precision == "float32" else 2.0**-52)
    if not (error <= bound * np.sqrt(np.outer(raw[index], raw[index]))).all():
        raise SystemExit(f"wrong answer: {x.dtype}, {tuple(x.shape)}, error {(error / scale).max():.1e}")
    return float((error / scale).max())


def _filled(x: torch.Tensor, device: str, batch: int) -> sc.Moments:
    moments = sc.Moments({"x": x.shape[1]}, device=device)
    for first in range(0, len(x), batch):
        moments.update(x=x[first : first + batch])
    return moments


def product(n: int, d: int, dtype: torch.dtype, device: str, rounds: int) -> Result:
    """One large batch, beside torch's product of the whole matrix in the same type (float32: without TF32)."""
    clock, x = Clock(memory(device)), _rows(n, d, dtype, memory(device))
    moments = _filled(x, device, n)
    error = _check(moments, x)
    moments.reset()  # the memory stays
    ours = clock.median(lambda: moments.update(x=x), rounds)
    torch.backends.cuda.matmul.allow_tf32 = False
    theirs = clock.median(lambda: torch.mm(x.T, x), rounds)
    square = torch.ones(min(n, 8192), min(n, 8192), dtype=dtype, device=x.device)
    peak = 2 * len(square) ** 3 / clock.median(lambda: torch.mm(square, square), rounds)
    # Half of the square is formed, and half of it counted.
    flops = n * d * (d + 1) / ours
    return {
        "case": f"{n} x {d} {str(dtype)[6:]}",
        "error": error,
        "seconds": ours,
        "of peak": flops / peak,
        "torch / ours": theirs / ours,
    }


def staging(n: int, d: int, device: str, rounds: int) -> Result:
    """Batches of 256 rows beside one large one, and whether launching them waits."""
    clock, x = Clock(memory(device)), _rows(n, d, torch.bfloat16, memory(device))
    moments = _filled(x, device, 256)
    error = _check(moments, x)
    large = clock.median(lambda: moments.update(x=x), rounds)
    launched: list[float] = []

    def small() -> None:
        start = time.perf_counter()
        for first in range(0, n, 256):
            moments.update(x=x[first : first + 256])
        launched.append(time.perf_counter() - start)

    seconds = clock.median(small, rounds)
    return {
        "case": f"{n} x {d} bfloat16 by 256",
        "error": error,
        "seconds": seconds,
        "of large": large / seconds,
        "launched in": statistics.median(launched) / seconds,  # near 1: the host is what costs, or it waits
    }


def main() -> None:
    """Run all cases, and print one line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes: to see that it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    device = str(devices.checked_device("cuda"))
    rounds = arguments.rounds or (1 if arguments.quick else 9)
    print(f"{devices._extension().device_name(0)}, torch {torch.__version__}")
    n, widths = (600, (60, 130)) if arguments.quick else (262_144, (4096, 8192))
    results = []
    cases = [partial(product, n, d, torch.bfloat16, device, rounds) for d in widths]
    cases += [partial(product, n, widths[0], t, device, rounds) for t in (torch.float16, torch.float32, torch.float64)]
    cases += [partial(staging, n, d, device, rounds) for d in ((20, 40) if arguments.quick else (512, 1024))]
    for case in cases:
        results.append(case())
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in results[-1].items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
