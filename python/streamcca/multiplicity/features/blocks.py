"""Feature matrices read in blocks of rows: several arrays side by side, some of their columns, never copied whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcca._backend import FloatArray
from streamcca.errors import DTypeError, InputError, NonFiniteError
from streamcca.sources import ArraySource

IntArray = npt.NDArray[np.int64]

# Of float64 rows formed at once. It depends on nothing but the width, so that the bits of a probe do not depend on
# whether its rows were kept between evaluations.
_BLOCK_BYTES = 4 << 20
_MOST_BLOCK_ROWS = 4096


class Features:
    """Features of the same rows from one or more arrays, side by side, read in blocks as float64.

    Parameters
    ----------
    arrays : sequence of arrays (n, d_i)
        In memory or memory-mapped; integer, boolean or floating. Their columns are numbered through.
    columns : array (m,) of int, optional
        Which of the sum(d_i) columns, in which order; all by default.

    Raises
    ------
    InputError, DTypeError
        An array is not (n, d), numbers of rows differ, a column does not exist or is named twice.

    Examples
    --------
    >>> import numpy as np
    >>> both = Features([np.zeros((4, 2)), np.ones((4, 3), np.float32)])
    >>> both
    Features(n=4, width=5)
    >>> both.select([4, 0]).read(0, 1)
    array([[1., 0.]])
    """

    def __init__(self, arrays: Sequence[Any], columns: Any = None) -> None:
        if not arrays:
            raise InputError("features: got no array, expected at least one of shape (n, width)")
        self._arrays = [_checked(array) for array in arrays]
        self._sources = [ArraySource(array, f"features {i}") for i, array in enumerate(self._arrays)]
        self.n = self._sources[0].rows
        for source in self._sources:
            if source.rows != self.n:
                raise InputError(
                    f"{source.name}: got {source.rows} rows, expected {self.n} as in features 0; every array must hold "
                    "the same rows in the same order"
                )
        self.widths = tuple(source.width for source in self._sources)
        if self.n < 1 or min(self.widths) < 1:
            raise InputError(
                f"features: got {self.n} rows of widths {self.widths}, expected at least one row and column"
            )
        self.columns: IntArray | None = None if columns is None else checked_columns(columns, sum(self.widths))
        self.width = sum(self.widths) if self.columns is None else len(self.columns)

    @classmethod
    def of(cls, features: Any) -> Features:
        """Return what the functions of this package take as features: an array, a tuple of arrays, or `Features`."""
        if isinstance(features, cls):
            return features
        if isinstance(features, tuple | list) and features and all(np.ndim(array) == 2 for array in features):
            return cls(features)
        return cls([features])

    def select(self, columns: Any) -> Features:
        """Return only these columns, counted among those of this object."""
        chosen = checked_columns(columns, self.width)
        return Features(self._arrays, chosen if self.columns is None else self.columns[chosen])

    def beside(self, other: Features) -> Features:
        """Return the columns of both, these first."""
        left, right = (np.arange(x.width) if x.columns is None else x.columns for x in (self, other))
        return Features([*self._arrays, *other._arrays], np.concatenate([left, right + sum(self.widths)]))

    def read(self, first: int, stop: int) -> FloatArray:
        """Return rows [first, stop) as a new float64 array (stop - first, width)."""
        out = np.empty((stop - first, self.width))
        start = 0
        for source in self._sources:
            part = source.read(first, stop - first)
            if self.columns is None:
                out[:, start : start + source.width] = part
            else:
                inside = np.flatnonzero((self.columns >= start) & (self.columns < start + source.width))
                out[:, inside] = np.asarray(part)[:, self.columns[inside] - start]
            start += source.width
        return out

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """Yield all rows in blocks whose size depends on the width alone."""
        step = max(16, min(_MOST_BLOCK_ROWS, _BLOCK_BYTES // (8 * self.width)))
        for first in range(0, self.n, step):
            stop = min(self.n, first + step)
            yield slice(first, stop), self.read(first, stop)

    def __repr__(self) -> str:
        return f"Features(n={self.n}, width={self.width})"


def _checked(array: Any) -> Any:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        array = np.asarray(array)
    if len(array.shape) == 2 and np.asarray(array[:0]).dtype.kind not in "fiub":
        raise DTypeError(f"features: got elements of {array.dtype}, expected real numbers; convert them to float32")
    return array


def checked_columns(columns: Any, width: int) -> IntArray:
    """Return indices of columns, each named once, or refuse them."""
    indices = np.asarray(columns)
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
        raise InputError(
            f"columns: got an array of shape {indices.shape} of {indices.dtype}, expected a list of column numbers"
        )
    if indices.min() < 0 or indices.max() >= width or len(np.unique(indices)) != len(indices):
        raise InputError(
            f"columns: got {indices.min()} to {indices.max()}, expected different numbers from 0 to {width - 1}"
        )
    return indices.astype(np.int64)


def column_statistics(features: Features, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the weighted mean and standard deviation (divisor: sum of weights) of each column, in one pass.

    Deviations are taken from the first row, so that a constant column has a deviation of exactly zero, and blocks are
    merged by the pairwise update of Chan, Golub & LeVeque (1983).

    Raises
    ------
    NonFiniteError
        A feature is NaN or infinite.
    """
    origin = features.read(0, 1)[0]
    check_finite(origin[None], 0)
    total, mean, moment = 0.0, np.zeros(features.width), np.zeros(features.width)
    for rows, block in features.blocks():
        check_finite(block, rows.start)
        block -= origin
        weight = weights[rows]
        mass = float(weight.sum())
        if mass == 0.0:
            continue
        block_mean = weight @ block / mass
        delta = block_mean - mean
        block -= block_mean
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            np.square(block, out=block)
            moment += weight @ block + delta**2 * (total * mass / (total + mass))
        total += mass
        mean += delta * (mass / total)
    if not np.isfinite(moment).all():
        raise NonFiniteError(
            f"features: column {int(np.argmin(np.isfinite(moment)))} holds numbers whose squares are infinite, "
            "expected less than 1e150; scale it"
        )
    return mean + origin, np.sqrt(moment / total)


def check_finite(block: FloatArray, first: int) -> None:
    """Refuse a block of rows that holds NaN or infinity, and say where."""
    finite = np.isfinite(block)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise NonFiniteError(
            f"features: row {first + row}, column {column} is {block[row, column]}, expected finite numbers; leave the "
            "row out, or find out why the model gave it"
        )
