"""Blocks of rows for a QR factorization: rows to float64, their shift, the reflections that take them into a factor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from streamcca._backend import FloatArray

_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}


def block_depth(width: int) -> int:
    """Rows of a block, for a total width.

    Measured with SciPy's OpenBLAS (2 cores, AVX2): up to 256 columns 512 rows are up to 1.3 times as fast as 256, above
    they are slower, since block and triangle then compete for the cache. Part of the format of saved states.
    """
    return 512 if width < 256 else 256


# ---------------------------------------------------------------------- rows of a batch


def opened(array: Any) -> Any:
    """Return rows that a native check has let in as a NumPy array or a tensor, where they lie."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):
        return array.detach()
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError):  # a type that NumPy does not know: bfloat16
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(array)


def unit_of(array: Any) -> float:
    """Return the unit roundoff of the type of opened rows."""
    return _ROUNDOFF.get(str(array.dtype).removeprefix("torch."), 2.0**-53)


def _as_numpy(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        return part
    return (part.double() if unit_of(part) == _ROUNDOFF["bfloat16"] else part).numpy()


def _copy_rows(array: Any, first: int, target: FloatArray) -> None:
    """Copy rows from `first` on, as many as `target` holds; of (samples, m, d) every (sample, m) is a row."""
    last = first + len(target)
    if array.ndim == 2:
        target[:] = _as_numpy(array[first:last])
        return
    inside = array.shape[1]
    begin = first // inside
    samples = _as_numpy(array[begin : -(-last // inside)])
    target[:] = samples.reshape(-1, samples.shape[2])[first - begin * inside : last - begin * inside]


def rows_of(
    arrays: list[Any], weights: FloatArray | None, nonfinite: str, count: int
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield the rows of a batch that count, all views side by side in float64, and the roots of their weights.

    At most `count` rows at a time; what is yielded is valid until the next one. Rows of weight zero are left out, and
    with `nonfinite` 'skip' those that hold NaN or infinity in any view.
    """
    total = arrays[0].shape[0] if arrays[0].ndim == 2 else arrays[0].shape[0] * arrays[0].shape[1]
    widths = [array.shape[-1] for array in arrays]
    edges = np.cumsum([0, *widths])
    buffer = np.empty((min(count, total), edges[-1]))
    for first in range(0, total, count):
        rows = buffer[: min(count, total - first)]
        for array, begin, end in zip(arrays, edges[:-1], edges[1:], strict=True):
            _copy_rows(array, first, rows[:, begin:end])
        roots = np.ones(len(rows)) if weights is None else np.sqrt(weights[first : first + len(rows)])
        keep = roots > 0
        if nonfinite == "skip":
            keep &= np.isfinite(rows).all(axis=1)
        yield (rows, roots) if keep.all() else (rows[keep], roots[keep])


# ---------------------------------------------------------------------- blocks


def shift_of(rows: FloatArray, roots: FloatArray) -> FloatArray:
    """Return a constant for each column near its mean, on a grid of 1/16 of its deviation.

    On so coarse a grid the difference of a value far from zero and its shift is exact. A constant column is its own
    shift, and becomes exactly zero; one with values that are not finite has none.
    """
    weights = roots**2
    with np.errstate(invalid="ignore", over="ignore"):
        mean = weights @ rows / weights.sum()
        spread = np.sqrt(weights @ (rows - mean) ** 2 / weights.sum())
        lowest, highest = rows.min(axis=0), rows.max(axis=0)
        grid = np.exp2(np.floor(np.log2(np.where(spread > 0, spread, 1.0))) - 4)
        shift = np.where(lowest == highest, lowest, np.rint(mean / grid) * grid)
        # A spread below the rounding of the mean would put the shift anywhere between the values, which does no harm.
        return np.where(np.isfinite(shift), shift, 0.0)


def centered_block(rows: FloatArray, roots: FloatArray, shift: FloatArray) -> FloatArray:
    """Return rows less the shift behind a column of ones, all times the roots of the weights, as LAPACK wants them."""
    block = np.empty((len(rows), rows.shape[1] + 1), order="F")
    block[:, 0] = roots
    np.subtract(rows, shift, out=block[:, 1:])
    if not (roots == 1).all():
        block[:, 1:] *= roots[:, None]
    return block


def fold(factor: FloatArray | None, block: FloatArray, *, triangular: bool = False, spoil: bool = False) -> FloatArray:
    """Return the upper triangular factor of [factor; block]; `block` is used up, `factor` only with `spoil`.

    LAPACK's dtpqrt, which spares the zeros of `factor`, and with `triangular` those of a triangular `block`. Against
    dgeqrf of the stack it was 1.4 to 4 times as fast (32 to 2048 columns, 256 to 2048 rows).
    """
    from scipy.linalg.lapack import dtpqrt

    size = block.shape[1]
    if factor is None:
        factor, spoil = np.zeros((size, size), order="F"), True
    panel = min(size, 16 if size < 200 else 32)
    zeros = size if triangular else 0
    result: FloatArray = dtpqrt(zeros, panel, factor, block, overwrite_a=spoil, overwrite_b=True)[0]
    return result


def moved(factor: FloatArray, step: FloatArray) -> FloatArray:
    """Return the factor of rows x - shift + step, given that of x - shift: what has the column of ones in it moves."""
    result = factor.copy(order="F")
    result[0, 1:] += result[0, 0] * step
    return result
