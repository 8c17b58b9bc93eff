"""Rows projected on the kept directions of their view: what a second pass over the rows is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from streamcca._backend import FloatArray
from streamcca.subspace import Truncated

if TYPE_CHECKING:
    from torch import Tensor

# Rows are widened to float64 for the product, this many bytes of them at a time.
_CHUNK_BYTES = 32 << 20


class Projector:
    """Takes the rows (n, d) of each view to their coordinates (n, k) in its kept directions, in float64.

    The mean is taken out in float64 first, so that a large offset costs no digits; after that rounding is that of a
    float64 product of numbers of the size of the deviations, far below what formed the covariance.
    """

    def __init__(self, truncated: Mapping[str, Truncated], means: Mapping[str, FloatArray]) -> None:
        import torch

        self._means = {name: torch.from_numpy(means[name].copy()) for name in truncated}
        self._matrices = {name: torch.from_numpy(x.native.projection) for name, x in truncated.items()}

    @property
    def ranks(self) -> dict[str, int]:
        """Kept directions of each view."""
        return {name: int(matrix.shape[1]) for name, matrix in self._matrices.items()}

    def __call__(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project one batch of every view."""
        return {name: self._project(name, x) for name, x in rows.items()}

    def _project(self, name: str, rows: Tensor) -> Tensor:
        mean, matrix = self._means[name].to(rows.device), self._matrices[name].to(rows.device)
        result = rows.new_empty((len(rows), matrix.shape[1]), dtype=matrix.dtype)
        step = max(1, _CHUNK_BYTES // (8 * len(mean)))
        for i in range(0, len(rows), step):
            result[i : i + step] = (rows[i : i + step].double() - mean) @ matrix
        return result
