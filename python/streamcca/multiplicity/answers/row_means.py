"""Means over rows that come in blocks, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from streamcca._backend import FloatArray


class RowMeans:
    """Means of named statistics over rows: counts, means and sums of squares, merged block by block (Chan et al.)."""

    def __init__(self) -> None:
        self._state: dict[str, tuple[int, float, float]] = {}

    def add(self, values: Mapping[str, FloatArray]) -> None:
        """Take one value a row of each statistic."""
        for name, rows in values.items():
            self.add_one(name, rows)

    def add_one(self, name: str, rows: FloatArray) -> None:
        """Take the next rows of one statistic."""
        n, mean, squares = self._state.get(name, (0, 0.0, 0.0))
        more = len(rows)
        new = float(np.mean(rows))
        delta = new - mean
        total = n + more
        self._state[name] = (
            total,
            mean + delta * more / total,
            squares + float(np.sum((rows - new) ** 2)) + delta**2 * n * more / total,
        )

    @property
    def means(self) -> dict[str, float]:
        """Mean of each statistic."""
        return {name: mean for name, (_, mean, _) in self._state.items()}

    @property
    def standard_errors(self) -> dict[str, float | None]:
        """Standard deviation over rows (ddof 1) over the root of their number; None for a single row."""
        return {
            name: math.sqrt(squares / (n - 1) / n) if n > 1 else None for name, (n, _, squares) in self._state.items()
        }
