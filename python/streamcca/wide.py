"""Products of matrices with few rows and very many columns: what the sketch and its replay are made of.

Rows are directions or samples, columns are neurons; a matrix may lie in several parts, one below the other. Nothing
here has the size of neurons times neurons. Where the rows are on a CUDA device they stay there, as arrays of CuPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.arrays import AnyArray, device_name, library_of, to_host
from streamcca.errors import NonFiniteError
from streamcca.moments import Moments

# Columns that are worked on at a time: some hundred rows of them fit the caches of two cores.
TILE = 8192
# From this width on, float32 matrices are multiplied in float32: errors of a Gram matrix fall with the square root of
# the blocks that are summed in float64, and are below 2e-8 there (docs/numerics.md). Narrower ones cost little.
_WIDE = 1 << 16
_SAMPLED = 64  # one column in so many is multiplied a second time, to see the rounding of the others
_SAFETY = 3.0


def tiles(width: int) -> Iterator[slice]:
    """Cut the columns."""
    for first in range(0, width, TILE):
        yield slice(first, min(first + TILE, width))


def unit_roundoff(dtype: Any) -> float:
    """Return 2^-24 for float32, 2^-53 for float64."""
    return float(np.finfo(dtype).eps) / 2


def products_of(dtype: Any, width: int) -> str:
    """Type in which Gram matrices of so many columns are formed."""
    return "float32" if np.dtype(dtype) == np.float32 and width >= _WIDE else "float64"


def gram(parts: Sequence[AnyArray], threads: int | None = None) -> tuple[FloatArray, float]:
    """Return A A' of the rows of all parts, and a bound of the norm of its rounding error.

    The columns are the rows of `Moments`, whose kernels were the fastest here: 512 x 100,000 float32 at 111 GFLOP/s
    with float32 products and 62 with float64 ones, where numpy's had 96 and dsyrk of widened tiles 41 (two cores).
    """
    parts = [part for part in parts if len(part)]
    width = parts[0].shape[1]
    precision: Any = products_of(parts[0].dtype, width)
    names = [str(i) for i in range(len(parts))]
    moments = Moments(
        {name: len(part) for name, part in zip(names, parts, strict=True)},
        precision=precision,
        device=device_name(parts[0]),
        threads=threads,
    )
    for tile in tiles(width):
        moments.update({name: part[:, tile].T for name, part in zip(names, parts, strict=True)})
    means = [moments.mean(name) for name in names]
    rows, relative, raw = [], 0.0, 0.0
    largest = 0.0
    for i, a in enumerate(names):
        row = []
        for j, b in enumerate(names):
            covariance, rounding = moments._covariance(a, b, 0)
            row.append(covariance + np.outer(means[i], means[j]))
            if i == j:
                relative = max(relative, rounding[0])
                raw, largest = raw + float(rounding[2].sum()), max(largest, float(rounding[2].max()))
        rows.append(row)
    # Entries have independent errors of deviation relative * sqrt(raw_i raw_j): the norm of such a matrix, three times.
    return np.block(rows) * width, _SAFETY * 2 * relative * (largest * raw) ** 0.5 * width


def combine(coefficients: FloatArray, parts: Sequence[AnyArray], out: AnyArray) -> float:
    """Write coefficients @ (the rows of all parts) to the first rows of `out`, which may be one of the parts.

    Returns the Frobenius norm of what rounding did: certain for float64 products (one rounding of the result), measured
    on one column of 64 and taken twice for wide float32 matrices.
    """
    parts = [part for part in parts if len(part)]
    width, count = parts[0].shape[1], len(coefficients)
    narrow = products_of(parts[0].dtype, width) == "float32"
    library = library_of(out)
    exact_factors = library.asarray(coefficients)
    factors = exact_factors.astype(np.float32) if narrow else exact_factors
    seen: Any = 0.0
    for tile in tiles(width):
        stacked = np.concatenate([part[:, tile] for part in parts], axis=0)
        if narrow:
            result = factors @ stacked
            exact = exact_factors @ stacked[:, ::_SAMPLED].astype(np.float64)
            seen += np.square(result[:, ::_SAMPLED] - exact).sum() * 4 * _SAMPLED
        else:
            result = factors @ stacked.astype(np.float64)
            seen += unit_roundoff(out.dtype) ** 2 * np.square(result).sum()
        out[:count, tile] = result
    return math.sqrt(float(seen))


def orthonormalize(parts: Sequence[AnyArray], tolerance: float) -> list[AnyArray]:
    """Replace the rows of all parts by an orthonormal basis of what they span; return the parts that hold it.

    Directions that are less than `tolerance` of their rows' lengths beside the others are left out, and those that
    a Gram matrix cannot tell from rounding. Rounds of a symmetric Gram factor: the first leaves errors of the
    square of the condition, the second mostly none.
    """
    used = [part for part in parts if len(part)]
    for _ in range(4):
        inner, _ = gram(used)
        if np.abs(inner - np.eye(len(inner))).max() < 4 * unit_roundoff(used[0].dtype):
            break
        length = np.sqrt(np.maximum(np.diag(inner), 0))
        scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
        values, vectors = np.linalg.eigh(inner * np.outer(scale, scale))
        values, vectors = values[::-1], vectors[:, ::-1]
        left = int(np.count_nonzero(values > max(tolerance**2, 2.0**-50) * len(values) * max(values[0], 1e-300)))
        combine_in_place((vectors[:, :left] / np.sqrt(values[:left])).T * scale, used)
        used = first_rows(used, left)
    return used


def deflate(rows: AnyArray, parts: Sequence[AnyArray], tolerance: float) -> AnyArray:
    """Take what an orthonormal basis holds out of rows, in place, and return the rest of each, of unit length.

    Rows of which less than `tolerance` of their length is left are rounding, and left out. Without this, products with
    the covariance, which all lean to its first directions, look dependent in float32 long before they are.
    """
    for limit in (tolerance, 0.5):  # the second round removes what the first one's rounding left of the basis
        before = _lengths(rows)
        inside, first = project(rows, parts), 0
        for part in parts:
            add_outer(rows, -inside[:, first : first + len(part)].T, part)
            first += len(part)
        after = _lengths(rows)
        kept = np.flatnonzero(after > limit * before)
        for i, j in enumerate(kept):
            np.multiply(rows[j], 1 / after[j], out=rows[i])
        rows = rows[: len(kept)]
    return rows


def _lengths(rows: AnyArray) -> FloatArray:
    squares = library_of(rows).zeros(len(rows))
    for tile in tiles(rows.shape[1]):
        squares += np.square(rows[:, tile].astype(np.float64)).sum(axis=1)
    return np.sqrt(to_host(squares))


def first_rows(parts: Sequence[AnyArray], count: int) -> list[AnyArray]:
    """Return the first rows of a matrix in parts."""
    result = []
    for part in parts:
        if count > 0:
            result.append(part[:count])
        count -= len(part)
    return result


def combine_in_place(coefficients: FloatArray, parts: Sequence[AnyArray]) -> None:
    """As `combine`, into the parts themselves."""
    factors = library_of(parts[0]).asarray(coefficients)
    for tile in tiles(parts[0].shape[1]):
        result = factors @ np.concatenate([part[:, tile] for part in parts], axis=0).astype(np.float64)
        first = 0
        for part in parts:
            count = max(0, min(len(part), len(result) - first))
            part[:count, tile] = result[first : first + count]
            first += count


def project(rows: AnyArray, parts: Sequence[AnyArray]) -> FloatArray:
    """Return rows @ (the rows of all parts)', float64: products in the rows' type, sums of tiles in float64."""
    result: FloatArray = library_of(rows).zeros((len(rows), sum(len(part) for part in parts)))
    for tile in tiles(rows.shape[1]):
        some = rows[:, tile]
        first = 0
        for part in parts:
            result[:, first : first + len(part)] += some @ part[:, tile].T
            first += len(part)
    return result


def add_outer(total: AnyArray, coordinates: FloatArray, rows: AnyArray) -> None:
    """Add coordinates' @ rows, (count, columns), to the first rows of `total`; in the rows' type."""
    factors = coordinates.T.astype(rows.dtype)
    for tile in tiles(rows.shape[1]):
        total[: len(factors), tile] += factors @ rows[:, tile]


def check_finite(values: AnyArray, dtype: Any, where: str) -> None:
    """Refuse rows that hold what is no number in `dtype`.

    Raises
    ------
    NonFiniteError
    """
    limit = float(np.finfo(dtype).max)
    narrower = values.dtype.itemsize > np.dtype(dtype).itemsize
    if not values.size or (
        bool(np.isfinite(values.sum(axis=1, dtype=np.float64)).all())
        and not (narrower and bool(np.abs(values).max().astype(np.float64) > limit))
    ):
        return
    bad = np.flatnonzero(~(to_host(np.abs(values).max(axis=1)).astype(np.float64) <= limit))
    if len(bad):  # else finite numbers whose sum is not
        raise NonFiniteError(
            f"{where}: row {bad[0]} of the batch holds NaN, infinity or what {np.dtype(dtype)} cannot hold; leave it "
            "out, nothing of the batch was counted"
        )


def expand(parts: Sequence[AnyArray], coefficients: FloatArray) -> FloatArray:
    """Return (the rows of all parts)' @ coefficients, (columns, m) in float64, on the CPU."""
    result, factors = np.empty((parts[0].shape[1], coefficients.shape[1])), library_of(parts[0]).asarray(coefficients)
    for tile in tiles(len(result)):
        some = np.concatenate([part[:, tile] for part in parts], axis=0).astype(np.float64)
        result[tile] = to_host(some.T @ factors)
    return result
