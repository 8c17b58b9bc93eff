"""Two .npy files far larger than the memory allowed: peak resident set, and speed next to rows in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.data import layers
from benchmarks.jobs import VARIANCE, svcca_of_covariance

_BLOCK = 62_500
_PEAK_BAR = 512 << 20
_SPEED_BAR = 0.6


def _write(path: Path, block: np.ndarray[Any, Any], repeats: int) -> None:
    """Write the block again and again: its SVCCA is that of the block, which can be computed in memory."""
    header = {"descr": block.dtype.str, "fortran_order": False, "shape": (repeats * len(block), block.shape[1])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(repeats):
            block.tofile(file)


_FROM_FILES = """
import json, sys, time, warnings
from streamcca import svcca
from streamcca._memory import peak_resident
warnings.simplefilter("ignore")
start = time.perf_counter()
r = svcca(sys.argv[1], sys.argv[2], variance=float(sys.argv[3]), progress=False)
print(json.dumps([time.perf_counter() - start, peak_resident(), r.mean, r.error_bound, r.rank_x, r.rank_y]))
"""

_IN_MEMORY = """
import json, statistics, sys, time
import numpy as np
from streamcca import Moments
rows, width = int(sys.argv[3]), int(sys.argv[4])
def load(path):
    return np.fromfile(path, dtype=np.float32, offset=128, count=rows * width).reshape(rows, width)
x, y = load(sys.argv[1]), load(sys.argv[2])
m = Moments({"x": width, "y": width})
m.update(x=x, y=y)
seconds = []
for _ in range(5):
    start = time.perf_counter()
    m.update(x=x, y=y)
    seconds.append(time.perf_counter() - start)
print(json.dumps(statistics.median(seconds)))
"""

_READ = """
import sys, time
start, buffer = time.perf_counter(), bytearray(8 << 20)
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer): pass
print(time.perf_counter() - start)
"""


def _child(code: str, *arguments: object) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def _check(answer: Any, exact: tuple[float, int, int]) -> None:
    _, _, mean, bound, *ranks = answer
    if tuple(ranks) != exact[1:] or not abs(mean - exact[0]) <= min(bound, 1e-6):
        raise SystemExit(f"files: got mean {mean} with ranks {ranks}, expected {exact}")


def run_files(folder: Path, repeats: int, width: int, rounds: int, block_rows: int = _BLOCK) -> dict[str, Any]:
    """Write the files, compare them, and set the time against the kernel's on rows in memory."""
    paths = folder / "x.npy", folder / "y.npy"
    blocks = layers(block_rows, width, "float32")
    exact = svcca_of_covariance(np.cov(np.hstack(blocks), rowvar=False), width)
    for path, block in zip(paths, blocks, strict=True):
        _write(path, block, repeats)
    del blocks
    rows = repeats * block_rows
    reads, files, memory = [], [], []
    for _ in range(rounds):
        reads.append(_child(_READ, *paths))  # also brings the files into the page cache, as far as they fit
        files.append(_child(_FROM_FILES, *paths, VARIANCE))
        _check(files[-1], exact)
        memory.append(_child(_IN_MEMORY, *paths, block_rows, width))
    seconds = median(f[0] for f in files)
    return {
        "case": f"files, 2 x ({rows} x {width} float32)",
        "checked": f"mean {files[0][2]:.6f}, error {abs(files[0][2] - exact[0]):.1e} against float64, "
        f"bound {files[0][3]:.1e}",
        "seconds": seconds,
        "peak_bytes": max(f[1] for f in files),
        "bytes": sum(path.stat().st_size for path in paths),
        "speed_of_memory": median(m * repeats / f[0] for m, f in zip(memory, files, strict=True)),
        "read_seconds": median(reads),
        "raw": {"files": files, "memory": memory, "reads": reads},
    }


def format_files(result: dict[str, Any], bars: bool) -> str:
    """Lay the result out; the bars are for the full size only."""

    def bar(wanted: str, reached: bool) -> str:
        return f"  wanted {wanted}: {'reached' if reached else 'MISSED'}" if bars else ""

    peak, speed, size = result["peak_bytes"], result["speed_of_memory"], result["bytes"] / 2**30
    return "\n".join(
        [
            result["case"],
            f"  correct: {result['checked']}",
            f"  {size:.1f} GiB in {result['seconds']:.1f} s, reading alone {result['read_seconds']:.1f} s",
            f"  peak resident {peak / 2**20:.0f} MiB" + bar(f"under {_PEAK_BAR >> 20} MiB", peak < _PEAK_BAR),
            f"  {speed:.0%} of the speed of the kernel on rows in memory"
            + bar(f"{_SPEED_BAR:.0%}", speed >= _SPEED_BAR),
        ]
    )
