"""Rows of two views, read as often as wanted and from any row on: what the routes for wide layers stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from streamcca.arrays import AnyArray, Library, brought
from streamcca.errors import DTypeError, InputError
from streamcca.sources import ArraySource, NpyFile, RowSource, open_source, pair_of

# What is read of a file at a time: rows of a wide layer have megabytes each.
_CHUNK_BYTES = 64 << 20


def bits_of(array: Any, where: str, library: Library = np) -> tuple[AnyArray, str]:
    """Return rows as an array of NumPy, or CuPy, and the name of their type; bfloat16, which both lack, as uint16.

    Raises
    ------
    DTypeError, InputError
        The type is no floating-point type of at most 8 bytes; the array is not two-dimensional.
    """
    if hasattr(array, "detach"):  # torch
        array = array.detach().resolve_neg()
        if str(array.dtype) == "torch.bfloat16":
            import torch

            words = brought(array.contiguous().view(torch.int16), library).view(np.uint16)
            return _two_dimensional(words, where), "bfloat16"
    array = _two_dimensional(brought(array, library), where)
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise DTypeError(
            f"{where}: got {array.dtype}, expected float16, bfloat16, float32 or float64; convert it first"
        )
    return array, str(array.dtype.newbyteorder("="))


def _two_dimensional(array: AnyArray, where: str) -> AnyArray:
    if array.ndim != 2:
        raise InputError(
            f"{where}: got an array of shape {array.shape}, expected rows as (n, width); reshape it to two dimensions, "
            "rows first"
        )
    return array


def values_of(rows: Any, where: str, library: Library = np) -> AnyArray:
    """Return rows as numbers of NumPy, or CuPy; bfloat16 as float32."""
    bits, name = bits_of(rows, where, library)
    return widened(bits, name, np.float32) if name == "bfloat16" else bits


def widened(bits: AnyArray, dtype: str, to: Any) -> AnyArray:
    """Return the values of `bits_of` as a new array of float32 or float64; exact where `to` is at least as wide."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(to)
    return bits.astype(to)


class PairPasses:
    """Rows of two views, in the same order at every pass.

    Parameters
    ----------
    data : (X, Y) or (batches,)
        Two arrays, memory maps or ``.npy`` paths; or an iterable of pairs, which can be read again if it is no
        iterator. An iterable may have a method ``batches(first_row)`` that starts at any row (else rows are read and
        passed over), and an attribute ``rows``, their number.

    Attributes
    ----------
    rows : int or None
        Number of rows; None for iterables that do not say, until a pass has ended.
    """

    def __init__(self, data: tuple[Any, ...]) -> None:
        self.rows: int | None = None
        self._sources: list[RowSource] = []
        self._iterable: Any = None
        if len(data) == 1 and isinstance(data[0], Iterable) and not hasattr(data[0], "shape"):
            self._iterable = data[0]
            self.rows = getattr(self._iterable, "rows", None)
        elif len(data) == 2:
            try:
                self._sources = [open_source(array, name) for array, name in zip(data, "xy", strict=True)]
            except BaseException:
                self.close()
                raise
            x, y = self._sources
            self.rows = x.rows
            if x.rows != y.rows:
                self.close()
                raise InputError(
                    f"view 'y': got {y.rows} rows, expected {x.rows} as in view 'x'; every view must see the same rows "
                    "in the same order"
                )
        else:
            raise InputError("data: expected two arrays or .npy paths (X, Y), or one iterable of (x, y) batches")

    @property
    def sources(self) -> list[RowSource]:
        """The two arrays or files; empty for iterables."""
        return list(self._sources)

    @property
    def repeatable(self) -> bool:
        """Whether the rows can be read a second time."""
        return not isinstance(self._iterable, Iterator)

    @property
    def starts_anywhere(self) -> bool:
        """Whether a pass can start at any row without reading those before."""
        return self._iterable is None or hasattr(self._iterable, "batches")

    def batches(self, first: int = 0) -> Iterator[tuple[Any, Any]]:
        """Start a pass: pairs of (rows, width) arrays of any number of rows, from row `first` on.

        An array that was read from a file is valid until the next one.
        """
        return self._read(first) if self._iterable is None else self._iterate(first)

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            if isinstance(source, NpyFile):
                source.close()

    def _read(self, first: int) -> Iterator[tuple[Any, Any]]:
        assert self.rows is not None  # noqa: S101 - sources know their rows
        step = max(1, _CHUNK_BYTES // max(1, *(source.row_bytes for source in self._sources)))
        for start in range(first, self.rows, step):
            count = min(step, self.rows - start)
            x, y = (_slice(source, start, count) for source in self._sources)
            yield x, y

    def _iterate(self, first: int) -> Iterator[tuple[Any, Any]]:
        start: Callable[[int], Iterable[Any]] | None = getattr(self._iterable, "batches", None)
        position = first if start else 0
        for i, batch in enumerate(start(first) if start else self._iterable):
            x, y = pair_of(i, batch).values()
            if len(x) != len(y):
                raise InputError(f"batch {i}: view 'y' has {len(y)} rows, expected {len(x)} as in view 'x'")
            skip = max(0, first - position)
            position += len(x)
            if skip < len(x):
                yield (x[skip:], y[skip:]) if skip else (x, y)
        self.rows = position


def _slice(source: RowSource, first: int, count: int) -> Any:
    # An array in memory hands out the whole if asked for all of it, else a view.
    return source.array[first : first + count] if isinstance(source, ArraySource) else source.read(first, count)
