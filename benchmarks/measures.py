"""What other measures, and intervals, cost beyond SVCCA of the same rows."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

Method = Literal["jackknife", "bootstrap"]
_METHODS: tuple[Method, ...] = ("jackknife", "bootstrap")
_ALL_BAR, _INTERVAL_BAR = 1.5, 1.3


def _batches(layers: int, width: int, rows: int, batch: int) -> Iterator[dict[str, Any]]:
    """Rows of two models with so many layers each, that share 64 signals; the same batch again and again."""
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((batch, 64), dtype=np.float32)
    views = {}
    for model in "ab":
        for layer in range(layers):
            mixed = signals @ rng.standard_normal((64, width), dtype=np.float32)
            views[f"{model}{layer}"] = mixed + (1 + layer) * rng.standard_normal((batch, width), dtype=np.float32)
    for first in range(0, rows, batch):
        count = min(batch, rows - first)
        yield {name: part[:count] for name, part in views.items()}


def _median(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each job; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def _bar(text: str, limit: float, measured: float) -> dict[str, Any]:
    return {
        "bar": text,
        "wanted": limit,
        "measured": measured,
        "reached": measured <= limit,
        "text": f"{measured:.2f} times",
    }


def run_grid(layers: int = 10, width: int = 256, rows: int = 200_000, rounds: int = 3) -> dict[str, Any]:
    """Compare every layer of one model with every one of another: SVCCA alone, and all measures of moments."""
    import streamcca as sc

    names = [name for name, declared in sc.MEASURES.items() if "moments" in declared.sources]
    a, b = ([f"{model}{layer}" for layer in range(layers)] for model in "ab")
    pairs = [(name, name) for name in a + b] + [(x, y) for x in a for y in b]

    def of(measures: list[str]) -> Any:
        m = sc.accumulate(_batches(layers, width, rows, 4096), pairs=pairs)
        return sc.similarity_matrix(m, measures, a, b)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        found = of(names)
        seconds = _median({"svcca": lambda: of(["svcca"]), "all": lambda: of(names)}, rounds)
        m = sc.accumulate(_batches(layers, width, rows, 4096), pairs=pairs)
        apart = _median({name: functools.partial(sc.similarity_matrix, m, name, a, b) for name in names}, 1)
    return {
        "case": f"{layers} x {layers} layers of {width} float32 neurons, {rows} rows, {len(names)} measures",
        "n": rows,
        "width": width,
        "seconds": seconds,
        "seconds_of_each": apart,
        "means": {name: float(matrix.matrix.mean()) for name, matrix in found.items()},
        "bars": [_bar("all measures of moments <= 1.5 x SVCCA", _ALL_BAR, seconds["all"] / seconds["svcca"])],
    }


def run_intervals(
    width: int = 512, rows: int = 200_000, rounds: int = 5, methods: Sequence[Method] = _METHODS
) -> dict[str, Any]:
    """Compare two layers: the number alone, and with its interval."""
    import streamcca as sc

    batch = next(_batches(1, width, rows, rows))
    x, y = batch["a0"], batch["b0"]
    seconds, bars = {}, []
    for name in ("svcca", "cka", "procrustes"):
        for method in methods:
            times = _median(
                {
                    "plain": functools.partial(sc.similarity, name, x, y),
                    "interval": functools.partial(sc.interval, name, x, y, method=method),
                },
                rounds,
            )
            seconds[f"{name}, {method}"] = times
            bars.append(
                _bar(
                    f"{name} with its {method} interval <= 1.3 x without",
                    _INTERVAL_BAR,
                    times["interval"] / times["plain"],
                )
            )
    return {
        "case": f"two layers of {width} float32 neurons, {rows} rows, 32 parts",
        "n": rows,
        "width": width,
        "seconds": seconds,
        "bars": bars,
    }


def format_measures(result: dict[str, Any]) -> str:
    """Lay one case out."""
    lines = [result["case"]]
    for name, seconds in result["seconds"].items():
        text = (
            f"{seconds:.2f} s"
            if isinstance(seconds, float)
            else ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items())
        )
        lines.append(f"  {name:<22} {text}")
    if "seconds_of_each" in result:
        each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result["seconds_of_each"].items())
        lines.append(f"  seconds of each measure by itself, after the pass: {each}")
    lines += [f"  {'reached' if bar['reached'] else 'MISSED'}: {bar['bar']}: {bar['text']}" for bar in result["bars"]]
    return "\n".join(lines)
