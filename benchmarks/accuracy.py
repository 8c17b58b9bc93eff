"""What each precision costs and gives: errors of covariances against exact arithmetic, and the time of the pass."""

from __future__ import annotations

import time
from fractions import Fraction
from statistics import median
from typing import Any, Literal

import numpy as np

from streamcca import Moments

Precision = Literal["float32", "float64"]
_ENTRIES = 48
_OFFSET = 2.0
# Rows, products.
_TYPES: tuple[tuple[str, Precision], ...] = (
    ("float16", "float32"),
    ("float32", "float32"),
    ("float32", "float64"),
    ("float64", "float64"),
)
# Rows are multiples of this power of two, so that scaled they are integers and their sums exact.
_SCALE = 2**110


def _integers(column: Any) -> list[int]:
    scaled = [Fraction(float(value)) * _SCALE for value in column]
    assert all(value.denominator == 1 for value in scaled)
    return [value.numerator for value in scaled]


def exact_covariance(x: Any, y: Any) -> Fraction:
    """Covariance of two columns in exact arithmetic."""
    a, b, n = _integers(x), _integers(y), len(x)
    products = sum(p * q for p, q in zip(a, b, strict=True))
    return Fraction(n * products - sum(a) * sum(b), n * (n - 1) * _SCALE**2)


def _measure(x: Any, precision: Precision, rounds: int) -> tuple[Moments, float]:
    moments = Moments({"x": x.shape[1]}, precision=precision)
    seconds = []
    for _ in range(rounds + 1):
        moments.reset()
        start = time.perf_counter()
        moments.update(x=x)
        seconds.append(time.perf_counter() - start)
    return moments, median(seconds[1:])


def run_accuracy(rows: int, width: int, rounds: int) -> list[dict[str, Any]]:
    """Errors of some entries, off and on the diagonal, in units of the two neurons' deviations."""
    rng = np.random.default_rng(0)
    source = rng.standard_normal((rows, width)) + _OFFSET
    pairs = rng.integers(0, width, size=(_ENTRIES, 2))
    pairs[: _ENTRIES // 4, 1] = pairs[: _ENTRIES // 4, 0]
    results = []
    for dtype, precision in _TYPES:
        x = source.astype(dtype)
        moments, seconds = _measure(x, precision, rounds)
        covariance = moments.covariance("x")
        deviation = np.sqrt(np.diag(covariance))
        errors = [
            abs(float(Fraction(float(covariance[i, j])) - exact_covariance(x[:, i], x[:, j])))
            / float(deviation[i] * deviation[j])
            for i, j in pairs.tolist()
        ]
        results.append(
            {
                "case": f"{rows} x {width} {dtype}, {precision} products",
                "largest": max(errors),
                "rms": float(np.sqrt(np.mean(np.square(errors)))),
                "seconds": seconds,
            }
        )
        print(format_accuracy(results[-1]), flush=True)
    return results


def format_accuracy(result: dict[str, Any]) -> str:
    """One line."""
    errors = f"largest error {result['largest']:.1e}, rms {result['rms']:.1e}"
    return f"{result['case']:<48} {errors}, {result['seconds'] * 1e3:.0f} ms"
