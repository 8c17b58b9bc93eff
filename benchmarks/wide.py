"""Layers too wide, or rows too many, for memory: minutes, memory and disk of the routes on rows made on the fly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_MEMORY_BAR, _DISK_BAR = 6 << 30, 40e9
_AGREE_BAR, _SPEED_BAR = 1e-5, 0.8
_RULES: dict[str, dict[str, Any]] = {"99 % of the variance": {"variance": 0.99}, "rank 50": {"rank": 50}}
# Rows of a batch, and columns that are made at a time.
_BATCH, _COLUMNS = 64, 1 << 16


class WideRows:
    """Two views of a flattened convolution: 200 directions with deviations 1/i, half of them shared, plus noise.

    float16, made again at every pass from the number of the batch. The second view has the first one's basis with its
    neurons in the opposite order, so that one basis is in memory.
    """

    def __init__(self, rows: int, width: int, directions: int = 200, seed: int = 0) -> None:
        self.rows, self.width, self.seed = rows, width, seed
        rng = np.random.default_rng(seed)
        self._scale = (100 / np.arange(1, directions + 1.0)).astype(np.float32)
        self._basis = rng.standard_normal((directions, width), dtype=np.float32)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self.batches(0)

    def batches(self, first: int) -> Iterator[tuple[Any, Any]]:
        """Make the rows from number `first` on."""
        for number in range(first // _BATCH, -(-self.rows // _BATCH)):
            skip = max(0, first - number * _BATCH)
            count = min(_BATCH, self.rows - number * _BATCH)
            x, y = self._make(number)
            yield x[skip:count], y[skip:count]

    def _make(self, number: int) -> tuple[Any, Any]:
        rng = np.random.default_rng([self.seed, 1, number])
        latent = rng.standard_normal((2, _BATCH, len(self._scale)), dtype=np.float32)
        latent[1, :, ::2] = latent[0, :, ::2]
        views = [np.empty((_BATCH, self.width), np.float16) for _ in range(2)]
        workers = [
            threading.Thread(
                target=self._fill, args=(view, z * self._scale, np.random.default_rng([i, number]), i == 1)
            )
            for i, (view, z) in enumerate(zip(views, latent, strict=True))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return views[0], views[1]

    def _fill(self, view: Any, scores: Any, rng: np.random.Generator, backwards: bool) -> None:
        for first in range(0, self.width, _COLUMNS):
            part = scores @ self._basis[:, first : first + _COLUMNS]
            part += 2 * rng.random(part.shape, dtype=np.float32) - 1
            last = self.width - first
            place = slice(last - part.shape[1], last) if backwards else slice(first, first + part.shape[1])
            view[:, place] = part[:, ::-1] if backwards else part


def _route(strategy: Any, rows: int, width: int, folder: str) -> dict[str, Any]:
    """Run one route in this process; the rows themselves are part of its memory, and of its time."""
    import warnings

    import streamcca as sc
    from streamcca._memory import peak_resident

    data = WideRows(rows, width)
    start = time.perf_counter()
    for _ in data:
        pass
    making = time.perf_counter() - start
    results, minutes, disk = {}, {}, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        start = time.perf_counter()
        grams = sc.gram(data, folder=folder, keep=True) if strategy == "gram" else None
        shared = time.perf_counter() - start
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        for rule, options in _RULES.items():
            start = time.perf_counter()
            r = sc.svcca(grams, **options) if grams else sc.svcca(data, strategy=strategy, **options)
            minutes[rule] = (time.perf_counter() - start) / 60
            results[rule] = {"mean": r.mean, "error_bound": r.error_bound, "ranks": [r.rank_x, r.rank_y]}
    return {
        "strategy": strategy,
        "results": results,
        "minutes_shared": shared / 60,
        "minutes": minutes,
        "minutes_making_rows_once": making / 60,
        "peak_memory": peak_resident(),
        "disk": disk,
    }


def run_wide(rows: int = 10_000, width: int = 64 * 112 * 112, folder: Path | None = None) -> dict[str, Any]:
    """Compare two views too wide for a covariance by Gram matrices, and by sketch and replay, in a process each."""
    routes = []
    for strategy in ("sketch", "gram"):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            arguments = [strategy, str(rows), str(width), place]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.wide", *arguments], check=True, stdout=subprocess.PIPE, text=True
            )
            routes.append(json.loads(done.stdout.splitlines()[-1]))
            # An hour at full size: what is known so far is worth seeing.
            print(done.stdout.splitlines()[-1], file=sys.stderr, flush=True)
    case = f"two views of {rows} x {width} float16, made on the fly, {_BATCH} rows at a time"
    return {"case": case, "n": rows, "width": width, "routes": routes, "bars": _bars(routes)}


def _bars(routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bars = []
    for route in routes:
        for key, limit, unit in (("peak_memory", _MEMORY_BAR, "memory"), ("disk", _DISK_BAR, "disk")):
            text = f"{route[key] / 1e9:.1f} GB"
            bar = f"{route['strategy']} <= {limit / 1e9:.1f} GB of {unit}"
            bars.append(
                {"bar": bar, "wanted": limit, "measured": route[key], "reached": route[key] <= limit, "text": text}
            )
    for rule in _RULES:
        means = [route["results"][rule]["mean"] for route in routes]
        apart = abs(means[0] - means[1])
        bar = f"{rule}: the routes agree to {_AGREE_BAR:g} in the mean"
        reached = apart <= _AGREE_BAR
        bars.append({"bar": bar, "wanted": _AGREE_BAR, "measured": apart, "reached": reached, "text": f"{apart:.1e}"})
    return bars


def run_long(rows: int = 50_000_000, width: int = 64, batch: int = 1 << 18) -> dict[str, Any]:
    """Run `_long` in a process whose BLAS, which makes and checks the rows, has one thread.

    Its threads would spin for 0.1 s after each product and keep a core from the kernels: 29 instead of 87 %.
    """
    command = [sys.executable, "-m", "benchmarks.wide", "long", str(rows), str(width), str(batch)]
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _long(rows: int, width: int, batch: int) -> dict[str, Any]:
    """Stream rows made on the fly, against the speed on rows in memory; check against float64 sums of the same rows."""
    import streamcca as sc
    from streamcca._memory import peak_resident, reset_peak

    rng = np.random.default_rng(0)
    mix = rng.standard_normal((width, width), dtype=np.float32) / np.sqrt(width, dtype=np.float32)
    many = rng.standard_normal((1 << 22 if rows > 1 << 22 else rows, width), dtype=np.float32)
    speeds = []
    for _ in range(4):
        inside = sc.Moments({"x": width})
        start = time.perf_counter()
        inside.update(x=many)
        speeds.append(len(many) / (time.perf_counter() - start))
    del many
    total, sums, squares = 0.0, np.zeros(width), np.zeros((width, width))
    moments, early, done = sc.Moments({"x": width}), None, 0
    reset_peak()
    while done < rows:
        count = min(batch, rows - done)
        x = rng.standard_normal((count, width), dtype=np.float32) @ mix + 3
        start = time.perf_counter()
        moments.update(x=x)
        total += time.perf_counter() - start
        wide = x.astype(np.float64) - 3
        sums += wide.sum(axis=0)
        squares += wide.T @ wide
        done += count
        if early is None and done >= min(rows, 32 * batch):
            early = peak_resident()
    truth = (squares - np.outer(sums, sums) / rows) / (rows - 1)
    deviations = np.sqrt(np.diag(truth))
    error = float(np.abs((moments.covariance("x") - truth) / np.outer(deviations, deviations)).max())
    share = rows / total / float(np.median(speeds[1:]))
    grown = peak_resident() - (early or 0)
    bar = f"{_SPEED_BAR:.0%} of the speed on rows in memory"
    return {
        "case": f"{rows} x {width} float32 rows made on the fly, {batch} at a time",
        "n": rows,
        "width": width,
        "rows_per_second": rows / total,
        "rows_per_second_in_memory": float(np.median(speeds[1:])),
        "largest_error": error,
        "grown": grown,
        "bars": [
            {
                "bar": bar,
                "wanted": _SPEED_BAR,
                "measured": share,
                "reached": share >= _SPEED_BAR,
                "text": f"{share:.0%}",
            }
        ],
    }


def format_wide(result: dict[str, Any]) -> str:
    """Lay one case out."""
    lines = [result["case"]]
    for route in result.get("routes", ()):
        lines.append(
            f"  {route['strategy']:<8} {route['minutes_shared']:>6.1f} min for both rules; peak "
            f"{route['peak_memory'] / 2**30:.2f} GiB, disk {route['disk'] / 1e9:.1f} GB (making the rows once takes "
            f"{route['minutes_making_rows_once']:.1f} min)"
        )
        for rule, found in route["results"].items():
            lines.append(
                f"    {rule:<22} {found['mean']:.8f} +- {found['error_bound']:.1e}, ranks {found['ranks']}, "
                f"{route['minutes'][rule]:.1f} min"
            )
    if "rows_per_second" in result:
        lines.append(
            f"  {result['rows_per_second'] / 1e6:.1f} million rows a second, "
            f"{result['rows_per_second_in_memory'] / 1e6:.1f} in memory; largest error "
            f"{result['largest_error']:.1e} deviations; memory grew by {result['grown'] / 2**20:.1f} MiB"
        )
    lines += [f"  {'reached' if bar['reached'] else 'MISSED'}: {bar['bar']}: {bar['text']}" for bar in result["bars"]]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "long":
        print(json.dumps(_long(*map(int, sys.argv[2:]))))
    else:
        print(json.dumps(_route(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
