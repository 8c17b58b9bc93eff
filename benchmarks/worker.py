"""A contender's process: `python -m benchmarks.worker JOB FOLDER`, then one command a line on stdin, one answer each.

Commands: ``run`` (seconds of one run), ``peak TYPE`` (multiply-add peak in GFLOP/s, measured now), ``blas`` (the BLAS
libraries and the kernels they chose), ``memory`` (peak resident bytes).
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.jobs import JOBS

_PEAK_SECONDS = 0.15
_AT_LEAST = 0.1  # seconds of work behind one timing; shorter jobs are repeated, after one that is not counted


def _blas() -> list[dict[str, Any]]:
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture", "num_threads")
    return [{key: info[key] for key in keys if key in info} for info in threadpool_info() if info["user_api"] == "blas"]


def _timed(run: Any, repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _answer(command: str, run: Any, repeats: int) -> Any:
    verb, _, argument = command.partition(" ")
    if verb == "run":
        if repeats > 1:
            run()
        return _timed(run, repeats)
    if verb == "peak":
        from streamcca import _backend

        return _backend.peak_gflops(argument, _PEAK_SECONDS)
    if verb == "blas":
        return _blas()
    if verb == "memory":
        from streamcca._memory import peak_resident

        return peak_resident()
    raise ValueError(command)


def main() -> None:
    """Load the rows, warm up once, then obey."""
    job, folder = sys.argv[1:]
    run = JOBS[job](Path(folder))
    run()
    repeats = math.ceil(_AT_LEAST / _timed(run))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(line.strip(), run, repeats)), flush=True)


if __name__ == "__main__":
    main()
