"""How often intervals cover the number of the population that the rows were drawn from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

_LOW, _HIGH = 0.92, 0.98
_BIAS_BAR, _PLAIN_OFF = 0.01, 0.05
# Below so many effective rows for each direction kept on both sides a correction has little to stand on.
_ENOUGH = 3


class Population:
    """Two Gaussian views with known population correlations; rows alone, or in groups that share half the variance."""

    def __init__(self, rho: Any, group: int = 1, decay: float = 0.3) -> None:
        rng = np.random.default_rng(7)
        self.rho, self.group, width = np.asarray(rho), group, len(rho)
        self.mix = [
            np.arange(1, width + 1)[:, None] ** -decay * np.linalg.qr(rng.standard_normal((width,) * 2))[0]
            for _ in "xy"
        ]
        self.x, self.y = (m.T @ m for m in self.mix)
        self.cross = (self.mix[0].T * self.rho) @ self.mix[1]

    def _unit(self, rng: np.random.Generator, n: int) -> Any:
        width = len(self.rho)
        if self.group == 1:
            return rng.standard_normal((n, width))
        shared = np.repeat(rng.standard_normal((-(-n // self.group), width)), self.group, axis=0)[:n]
        return (shared + rng.standard_normal((n, width))) / math.sqrt(2)

    def draw(self, n: int, seed: int) -> tuple[Any, Any]:
        """Return n rows of both views."""
        rng = np.random.default_rng(seed)
        x = self._unit(rng, n)
        y = self.rho * x + np.sqrt(1 - self.rho**2) * self._unit(rng, n)
        return x @ self.mix[0], y @ self.mix[1]

    def truth(self, name: str) -> float:
        """Return the population's number."""
        values = {
            "cca": lambda: self.rho.mean(),
            "yanai": lambda: (self.rho**2).mean(),
            "cka": lambda: np.sum(self.cross**2) / np.linalg.norm(self.x) / np.linalg.norm(self.y),
            "procrustes": lambda: (
                np.linalg.svd(self.cross, compute_uv=False).sum() / np.sqrt(np.trace(self.x) * np.trace(self.y))
            ),
            "regression_y": lambda: np.trace(self.cross.T @ np.linalg.solve(self.x, self.cross)) / np.trace(self.y),
        }
        return float(values[name]())


def _cases() -> Iterator[tuple[int, int, int]]:
    for n in (200, 2000, 20_000):
        for k in (5, 20, 100):
            for group in (1, 49):
                # Groups of 49 that share half of the variance: 13 rows count for one. Intervals need 8 parts at least.
                effective = n / (13 if group > 1 else 1)
                if effective >= _ENOUGH * 2 * k and n >= 16 * group:
                    yield n, k, group


def run_coverage(measures: tuple[str, ...] = ("cca", "yanai", "cka"), repetitions: int = 500) -> list[dict[str, Any]]:
    """Draw samples, form intervals, count those that cover; a result for each number of rows, directions and group."""
    import streamcca as sc

    results = []
    for n, k, group in _cases():
        population = Population(np.linspace(0.9, 0.3, k), group)
        found: dict[str, list[Any]] = {name: [] for name in measures}
        for seed in range(repetitions):
            x, y = population.draw(n, seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sc.SampleSizeWarning)
                g = sc.group_moments(x, y, groups=group)
                for name in measures:
                    found[name].append(sc.interval(name, g))
        results.append(_result(population, n, k, group, found))
        print(format_coverage(results[-1]), flush=True)
    return results


def _result(population: Population, n: int, k: int, group: int, found: dict[str, list[Any]]) -> dict[str, Any]:
    rows, bars = {}, []
    for name, intervals in found.items():
        truth = population.truth(name)
        plain, estimate = (float(np.mean([getattr(i, key) for i in intervals])) for key in ("plain", "estimate"))
        covered = float(np.mean([truth in i for i in intervals]))
        rows[name] = {
            "truth": truth,
            "plain": plain,
            "estimate": estimate,
            "scatter": float(np.std([i.estimate for i in intervals])),
            "standard_error": float(np.mean([i.standard_error for i in intervals])),
            "covered": covered,
            "effective_rows": float(np.mean([i.effective_rows for i in intervals])),
        }
        bars.append(
            {
                "bar": f"{name}: 95 % intervals cover {_LOW:.0%} to {_HIGH:.0%}",
                "wanted": _LOW,
                "measured": covered,
                "reached": _LOW <= covered <= _HIGH,
                "text": f"{covered:.1%}",
            }
        )
        if abs(plain - truth) > _PLAIN_OFF:
            off = abs(estimate - truth)
            text = f"{off:.4f}, plain {abs(plain - truth):.3f}"
            bar = f"{name}: corrected mean within {_BIAS_BAR:g}"
            bars.append({"bar": bar, "wanted": _BIAS_BAR, "measured": off, "reached": off <= _BIAS_BAR, "text": text})
    count = len(next(iter(found.values())))
    case = f"{n} rows, {k} + {k} directions, {'independent' if group == 1 else f'groups of {group}'}, {count} samples"
    return {"case": case, "n": n, "width": k, "group": group, "measures": rows, "bars": bars}


def format_coverage(result: dict[str, Any]) -> str:
    """Lay one case out."""
    lines = [result["case"]]
    for name, row in result["measures"].items():
        lines.append(
            f"  {name:<6} {row['truth']:.4f}; these rows {row['plain']:.4f}, corrected {row['estimate']:.4f} (scatter "
            f"{row['scatter']:.4f}, standard error {row['standard_error']:.4f}), covered {row['covered']:.1%}, "
            f"{row['effective_rows']:.0f} effective rows"
        )
    lines += [f"  {'reached' if bar['reached'] else 'MISSED'}: {bar['bar']}: {bar['text']}" for bar in result["bars"]]
    return "\n".join(lines)
