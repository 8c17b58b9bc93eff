"""Debiased CKA in one pass over the rows: from moments, and sums over single rows beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from streamcca.errors import InputError
from streamcca.moments import Moments
from streamcca.passes import PairPasses
from streamcca.row_sums import RowSums
from streamcca.similarity.covariances import SAFETY
from streamcca.similarity.grams import check_debiased


def watched(data: tuple[Any, ...], sums: RowSums) -> tuple[Any, ...]:
    """Let `sums` see every batch on its way; arrays and files become batches."""
    passes = PairPasses(data)

    def batches() -> Iterator[tuple[Any, Any]]:
        try:
            for x, y in passes.batches():
                sums.add(x, y)
                yield x, y
        finally:
            passes.close()

    return (batches(),)


def debiased_cka(m: Moments, a: str, b: str, sums: RowSums) -> tuple[float, float]:
    """Return debiased CKA of two views, and its error bound."""
    n = m.rows
    if n < 4:
        raise InputError(f"debiased: got {n} rows, expected at least 4")
    means = (m.mean(a), m.mean(b))
    x, y = sums.offsets(means)
    about = {
        (0, 0): m._covariance(a, a, ddof=0)[0] * n + n * np.outer(x, x),
        (1, 1): m._covariance(b, b, ddof=0)[0] * n + n * np.outer(y, y),
        (0, 1): m.covariance(a, b, ddof=0) * n + n * np.outer(x, y),
    }
    hsic = {pair: sums.hsic(about[pair], means, *pair, n) for pair in about}
    for i, view in ((0, a), (1, b)):
        check_debiased(hsic[i, i] * n * (n - 3), float(np.vdot(about[i, i], about[i, i])), view, n)
    size = np.sqrt(hsic[0, 0] * hsic[1, 1])
    value = hsic[0, 1] / size
    # Rounding of the products enters through |C|^2 alone; the other sums are float64.
    rounding = {v: m._covariance(v, v, ddof=0)[1] for v in (a, b)}
    noise = {}
    for (i, j), c in about.items():
        (ei, _, ri), (ej, _, rj) = rounding[(a, b)[i]], rounding[(a, b)[j]]
        twice = np.sqrt(2) if i == j else 1.0
        noise[i, j] = 2 * twice * max(ei, ej) * n * np.sqrt(ri @ c**2 @ rj) / (n * (n - 3))
    own = [value * noise[i, i] / (2 * hsic[i, i]) for i in (0, 1)]
    bound = SAFETY * float(np.sqrt((noise[0, 1] / size) ** 2 + own[0] ** 2 + own[1] ** 2))
    float64 = {pair: sums.rounding(about[pair], means, *pair, n) for pair in about}
    bound += float64[0, 1] / size + sum(abs(value) * float64[i, i] / (2 * hsic[i, i]) for i in (0, 1))
    return float(value), bound + 16 * 2.0**-53 * float(np.sqrt(n))
