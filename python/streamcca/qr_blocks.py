"""Blocks of rows for a QR factorization: rows to float64, their shift, the reflections that take them into a factor."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.arrays import AnyArray, Library, brought, library_of
from streamcca.passes import widened

_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}


def block_depth(width: int, on_device: bool = False) -> int:
    """Rows of a block, for a total width.

    Measured with SciPy's OpenBLAS (2 cores, AVX2): up to 256 columns 512 rows are up to 1.3 times as fast as 256, above
    they are slower, since block and triangle then compete for the cache. On a device, whose reflections do not spare
    the triangle, as many rows as columns (not measured). Part of the
    format of saved states.
    """
    if on_device:
        return max(1024, -(-width // 256) * 256)
    return 512 if width < 256 else 256


def qr_cost(widths: list[int], n: int | None = None, on_device: bool = False) -> tuple[int, float]:
    """Return what `QRMoments` and `qr_compare` of such views take: bytes at the peak, and operations for each row.

    Parameters
    ----------
    widths : list of int
        Width of each view.
    n : int, optional
        Number of rows, over which the final decompositions of all views are spread; by default they are not counted.
    on_device : bool
        Bytes of a device, where rows gather and are folded.
    """
    width, size = sum(widths), sum(widths) + 1
    depth = block_depth(width, on_device)
    # The factor before and after a batch, and what LAPACK works on. Rows: a batch's, two buffers, the block that is
    # folded in, and twice as many while the shift is chosen.
    update = 3 * size * size + 6 * depth * size
    if on_device:  # and what QR works on: both again
        return 8 * (update + 2 * (size + depth) * size), 0.0
    # The factor twice, what is kept of both views, and what their decomposition has at once (measured: 0.9 of this).
    two = sorted(widths)[-2:]
    compare = 2 * size * size + sum(w * width + w * w for w in two) + 4 * two[-1] * width + 10 * two[-1] ** 2
    operations = 2.0 * size * size
    if n:
        operations += sum(20.0 * w * w * width + 34.0 * w**3 for w in widths) / n
    return 8 * max(update, compare), operations


def zero_matrix(shape: Any, library: Library = np) -> FloatArray:
    """Return float64 zeros, columns first."""
    array: FloatArray = library.zeros(shape, order="F")
    return array


# ---------------------------------------------------------------------- rows of a batch


Opened = tuple[AnyArray, str]  # bits, and the name of their type


def opened(array: Any, library: Library = np) -> Opened:
    """Return rows that a native check has let in as an array of a library, where they lie; bfloat16 as its words."""
    if not isinstance(array, np.ndarray) and not hasattr(array, "detach") and library is np:
        try:
            array = np.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError):  # a type that NumPy does not know: bfloat16
            from torch.utils.dlpack import from_dlpack

            array = from_dlpack(array)
    if hasattr(array, "detach"):
        array = array.detach().resolve_neg()
        if str(array.dtype) == "torch.bfloat16":
            import torch

            return brought(array.view(torch.int16), library).view(np.uint16), "bfloat16"
    array = brought(array, library)
    return array, str(array.dtype.newbyteorder("="))


def unit_of(rows: Opened) -> float:
    """Return the unit roundoff of the type of opened rows."""
    return _ROUNDOFF.get(rows[1], 2.0**-53)


def _copy_rows(rows: Opened, first: int, target: FloatArray) -> None:
    """Copy rows from `first` on, as many as `target` holds; of (samples, m, d) every (sample, m) is a row."""
    bits, dtype = rows
    last = first + len(target)
    if bits.ndim == 2:
        target[:] = widened(bits[first:last], dtype, np.float64)
        return
    inside = bits.shape[1]
    begin = first // inside
    samples = widened(bits[begin : -(-last // inside)], dtype, np.float64)
    target[:] = samples.reshape(-1, samples.shape[2])[first - begin * inside : last - begin * inside]


def rows_of(
    arrays: list[Opened], weights: FloatArray | None, nonfinite: str, count: int
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield the rows of a batch that count, all views side by side in float64, and the roots of their weights.

    At most `count` rows at a time; what is yielded is valid until the next one. Rows of weight zero are left out, and
    with `nonfinite` 'skip' those that hold NaN or infinity in any view.
    """
    lead = arrays[0][0]
    total = lead.shape[0] if lead.ndim == 2 else lead.shape[0] * lead.shape[1]
    edges = [0, *accumulate(bits.shape[-1] for bits, _ in arrays)]
    library = library_of(lead)
    buffer = library.empty((min(count, total), edges[-1]))
    for first in range(0, total, count):
        rows = buffer[: min(count, total - first)]
        for array, begin, end in zip(arrays, edges[:-1], edges[1:], strict=True):
            _copy_rows(array, first, rows[:, begin:end])
        if weights is None:
            roots = library.ones(len(rows))
        else:
            roots = library.asarray(np.sqrt(weights[first : first + len(rows)]))
        keep = roots > 0
        if nonfinite == "skip":
            keep &= np.isfinite(rows).all(axis=1)
        yield (rows, roots) if bool(keep.all()) else (rows[keep], roots[keep])


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
    block: FloatArray = library_of(rows).empty((len(rows), rows.shape[1] + 1), order="F")
    block[:, 0] = roots
    np.subtract(rows, shift, out=block[:, 1:])
    if not bool((roots == 1).all()):
        block[:, 1:] *= roots[:, None]
    return block


def fold(factor: FloatArray | None, block: FloatArray, *, triangular: bool = False, spoil: bool = False) -> FloatArray:
    """Return the upper triangular factor of [factor; block]; `block` is used up, `factor` only with `spoil`.

    LAPACK's dtpqrt, which spares the zeros of `factor`, and with `triangular` those of a triangular `block`. Against
    dgeqrf of the stack it was 1.4 to 4 times as fast (32 to 2048 columns, 256 to 2048 rows). On a device, where there
    is none, that of the stack.
    """
    size = block.shape[1]
    library = library_of(block)
    if library is not np:
        stack = block if factor is None else np.concatenate([factor, block])
        upper = library.linalg.qr(stack, mode="r")
        whole = zero_matrix((size, size), library)
        whole[: len(upper)] = upper
        return whole
    from scipy.linalg.lapack import dtpqrt

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
