"""A contender's process: `python -m benchmarks.worker JOB FOLDER`, then one command a line on stdin, one answer each.

Commands: ``run`` (seconds of one run), ``peak TYPE THREADS`` (multiply-add peak in GFLOP/s, measured now with the
instruction set of this process), ``blas`` (the BLAS libraries and the kernels they chose), ``answer`` (mean correlation
and both ranks, of jobs that have them).
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.jobs import JOBS
from streamcca import _backend

_PEAK_SECONDS = 0.05
_REST = 0.03  # OpenMP's threads spin after the peak, and would get in the way of other threads
_AT_LEAST = 0.1  # seconds of work behind one timing; what is not slow runs once uncounted before it


def _blas() -> list[dict[str, Any]]:
    from threadpoolctl import threadpool_info

    if "torch" in sys.modules:  # its BLAS is linked in, where threadpoolctl cannot see it
        import torch

        # One word of the build settings; the rest holds paths of the machine that built the wheel.
        blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
        return [{"internal_api": blas.group(1) if blas else "unknown", "num_threads": torch.get_num_threads()}]
    keys = ("internal_api", "version", "architecture", "num_threads")
    return [{key: info[key] for key in keys if key in info} for info in threadpool_info() if info["user_api"] == "blas"]


def _timed(run: Any, repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _answer(answer: Any) -> tuple[float, int, int]:
    """Return mean and ranks of a result of streamcca or of a rival's (mean, rank, rank)."""
    if isinstance(answer, tuple):
        return float(answer[0]), int(answer[1]), int(answer[2])
    return answer.mean, answer.rank_x, answer.rank_y


def main() -> None:
    """Load the rows, warm up, then obey."""
    job, folder = sys.argv[1:]
    run = JOBS[job](Path(folder))
    start = time.perf_counter()
    answer = run()
    cold = time.perf_counter() - start
    warm = cold <= 1
    repeats = math.ceil(_AT_LEAST / min(_timed(run) for _ in range(3))) if warm else 1

    def seconds() -> float:
        if warm:
            run()
        return _timed(run, repeats)

    def peak(arguments: str) -> float:
        dtype, threads = arguments.split()
        gflops = _backend.peak_gflops(dtype, _PEAK_SECONDS, int(threads))
        time.sleep(_REST)
        return gflops

    verbs: dict[str, Any] = {
        "run": lambda _: seconds(),
        "peak": peak,
        "blas": lambda _: _blas(),
        "answer": lambda _: _answer(answer),
    }
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        verb, _, argument = line.strip().partition(" ")
        print(json.dumps(verbs[verb](argument)), flush=True)


if __name__ == "__main__":
    main()
