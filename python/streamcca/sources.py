"""Activations in, moments out: arrays, memory maps, files larger than memory, iterables of batches."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from streamcca._backend import BLOCK_ROWS
from streamcca.errors import DTypeError, InputError, MissingFileError, StateFileError
from streamcca.moments import Moments

# Large enough for sequential reads at full speed, small enough to be read from the cache a moment later.
_CHUNK_BYTES = 8 << 20


class RowSource(Protocol):
    """Rows that are read in chunks."""

    name: str
    rows: int
    width: int
    row_bytes: int

    def read(self, first: int, count: int) -> Any:
        """Return rows [first, first + count); valid until the next call."""


class ArraySource:
    """An array in memory, read whole; a memory map, read in chunks whose pages are given back."""

    def __init__(self, array: Any, name: str) -> None:
        self.name = name
        self.array = array
        # What has no shape is no array, and refused by the update.
        shape = getattr(array, "shape", None)
        if shape is None:
            shape = (len(array) if hasattr(array, "__len__") else 0, 1)
        if len(shape) != 2:
            raise InputError(
                f"view {name!r}: got an array of shape {tuple(shape)}, expected rows as (n, width); reshape it to two "
                "dimensions, rows first"
            )
        self.rows, self.width = int(shape[0]), int(shape[1])
        self.row_bytes = self.width * int(getattr(getattr(array, "dtype", None), "itemsize", 8))
        self._last: Any = None

    @property
    def mapped(self) -> bool:
        """Whether pages of a file are behind the array."""
        # Results of arithmetic on a map are np.memmap too, but in memory.
        return isinstance(self.array, np.memmap) and getattr(self.array, "_mmap", None) is not None

    def read(self, first: int, count: int) -> Any:
        """Return a slice, and drop the pages of the one before; an array in memory is returned whole."""
        if not self.mapped:
            return self.array if count == self.rows else self.array[first : first + count]
        if self._last is not None:
            _drop_pages(self._last)
        self._last = self.array[first : first + count]
        return self._last


def _drop_pages(chunk: np.memmap[Any, Any]) -> None:
    """Give the pages of a chunk back; otherwise a mapped file ends up in the resident set as a whole.

    Safe for shared mappings only: in a copy-on-write map it would throw away the caller's changes.
    """
    if chunk.mode == "c" or not chunk.size:
        return
    mapped: mmap.mmap = chunk._mmap  # type: ignore[attr-defined]
    base = np.frombuffer(mapped, dtype=np.uint8)
    lowest, highest = np.lib.array_utils.byte_bounds(chunk)
    start = (lowest - base.ctypes.data) // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, start, min(highest - base.ctypes.data, base.size) - start)


class NpyFile:
    """A ``.npy`` file of any size, read by chunks into one buffer.

    Not a memory map: a truncated file gives a sentence instead of SIGBUS, and the resident set stays small.

    Raises
    ------
    MissingFileError, StateFileError, DTypeError, InputError
        The file is missing; damaged, truncated or not .npy; of a type or shape that cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        self.path = Path(path)
        self.name = name
        if not self.path.exists():
            raise MissingFileError(errno.ENOENT, f"view {name!r}: there is no file {self.path}")
        if not self.path.is_file():
            raise StateFileError(f"view {name!r}: {self.path} is not a file; expected one written by numpy.save")
        self._file = self.path.open("rb")
        try:
            shape, self._fortran, self._dtype = self._read_header()
            self._check(shape)
        except BaseException:
            self._file.close()
            raise
        self.rows, self.width = shape
        self.row_bytes = self.width * self._dtype.itemsize
        self._buffer = np.empty((0, self.width), dtype=self._dtype)

    def _read_header(self) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        try:
            version = np.lib.format.read_magic(self._file)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            return reader[version](self._file)
        except (ValueError, KeyError) as error:
            raise StateFileError(
                f"view {self.name!r}: {self.path} is not a readable .npy file ({error}); write it with numpy.save"
            ) from None

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2:
            raise InputError(
                f"view {self.name!r}: {self.path} holds an array of shape {shape}, expected rows as (n, width)"
            )
        if self._dtype.kind != "f" or self._dtype.itemsize not in (2, 4, 8):
            raise DTypeError(
                f"view {self.name!r}: {self.path} holds {self._dtype}, expected float16, float32 or float64; "
                "convert it first"
            )
        self._start = self._file.tell()
        need = self._start + shape[0] * shape[1] * self._dtype.itemsize
        size = os.fstat(self._file.fileno()).st_size
        if size != need:
            state = "truncated" if size < need else "longer than its header says"
            raise StateFileError(
                f"view {self.name!r}: {self.path} is {state} ({size} bytes, expected {need}); write it again"
            )

    def read(self, first: int, count: int) -> Any:
        """Read rows into the buffer and return it."""
        if self._fortran:
            columns = np.memmap(self.path, self._dtype, "r", self._start, (self.rows, self.width), "F")
            return self._native(np.array(columns[first : first + count]))
        if len(self._buffer) < count:
            self._buffer = np.empty((count, self.width), dtype=self._dtype)
        view = self._buffer[:count].reshape(-1).view(np.uint8).data
        self._file.seek(self._start + first * self.row_bytes)
        done = 0
        while done < len(view):
            got = self._file.readinto(view[done:])
            if not got:
                raise StateFileError(f"view {self.name!r}: {self.path} became shorter while it was read")
            done += got
        return self._native(self._buffer[:count])

    def read_columns(self, first: int, count: int) -> np.ndarray[Any, Any]:
        """Read some columns of all rows."""
        result = np.empty((self.rows, count), self._dtype)
        if self._fortran:
            columns = np.memmap(self.path, self._dtype, "r", self._start, (self.rows, self.width), "F")
            result[:] = columns[:, first : first + count]
            return self._native(result)
        size, descriptor = self._dtype.itemsize, self._file.fileno()
        for row, target in enumerate(result):
            part = target.view(np.uint8).data
            if os.preadv(descriptor, [part], self._start + row * self.row_bytes + first * size) != len(part):
                raise StateFileError(f"view {self.name!r}: {self.path} became shorter while it was read")
        return self._native(result)

    def _native(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return rows if self._dtype.isnative else rows.astype(self._dtype.newbyteorder("="))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_source(data: Any, name: str) -> RowSource:
    """Return a source of rows for an array, a memory map or a path."""
    return NpyFile(data, name) if isinstance(data, str | os.PathLike) else ArraySource(data, name)


def progress_wanted(progress: Any) -> bool:
    """Whether to show how far a job is: if asked for, or, with 'auto', on a terminal."""
    if progress not in (True, False, "auto"):
        raise InputError(f"progress: got {progress!r}, expected True, False or 'auto'")
    return sys.stderr.isatty() if progress == "auto" else bool(progress)


def progress_bar(progress: Any, total: int | None, unit: str, description: str) -> Any:
    """Return a tqdm bar on stderr; silent without a terminal unless asked for, or if tqdm is absent."""
    wanted = progress_wanted(progress)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if wanted and progress != "auto":
            raise ImportError("progress=True needs tqdm; install streamcca[cli]") from None
        return _NoBar()
    return tqdm(total=total, unit=unit, unit_scale=True, desc=description, disable=not wanted, file=sys.stderr)


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def _chunks(sources: list[RowSource], rows: int) -> Iterator[tuple[int, int]]:
    if not any(isinstance(s, NpyFile) or (isinstance(s, ArraySource) and s.mapped) for s in sources):
        yield 0, rows
        return
    step = max(BLOCK_ROWS, _CHUNK_BYTES // max(1, *(s.row_bytes for s in sources)) // BLOCK_ROWS * BLOCK_ROWS)
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


class Accumulates(Protocol):
    """What takes the rows of named views batch by batch: `Moments`, or what stands in for them."""

    @property
    def rows(self) -> int:
        """Number of rows of weight above zero."""

    @property
    def views(self) -> dict[str, int]:
        """Name and width of each view."""

    def update(self, batch: Mapping[str, Any], /) -> None:
        """Add one batch."""


A = TypeVar("A", bound=Accumulates)


def _stream_sources(make: Callable[..., A], sources: list[RowSource], progress: Any, **options: Any) -> A:
    """Stream aligned sources into what `make` makes of their widths and the options."""
    rows = sources[0].rows
    for source in sources:
        if source.rows != rows:
            raise InputError(
                f"view {source.name!r}: got {source.rows} rows, expected {rows} as in view {sources[0].name!r}; every "
                "view must see the same rows in the same order"
            )
    moments = make({source.name: source.width for source in sources}, **options)
    with progress_bar(progress, rows, "row", "accumulate") as bar:
        for first, count in _chunks(sources, rows):
            moments.update({source.name: source.read(first, count) for source in sources})
            bar.update(count)
    return moments


def _stream_arrays(make: Callable[..., A], arrays: Mapping[str, Any], progress: Any, **options: Any) -> A:
    sources: list[RowSource] = []
    try:
        for name, array in arrays.items():
            sources.append(open_source(array, name))
        return _stream_sources(make, sources, progress, **options)
    finally:
        for source in sources:
            if isinstance(source, NpyFile):
                source.close()


def _stream_batches(
    make: Callable[..., A],
    batches: Iterable[Any],
    views_of: Callable[[int, Any], Mapping[str, Any]],
    progress: Any,
    **options: Any,
) -> A:
    moments: A | None = None
    with progress_bar(progress, None, "row", "accumulate") as bar:
        for i, batch in enumerate(batches):
            views = views_of(i, batch)
            if moments is None:
                moments = make({name: ArraySource(array, name).width for name, array in views.items()}, **options)
            moments.update(views)
            bar.update(len(next(iter(views.values()))))
    if moments is None:
        raise InputError("the iterable of batches is empty; expected at least one batch of rows")
    return moments


def accumulate_sources(sources: list[RowSource], progress: Any, **options: Any) -> Moments:
    """Stream aligned sources into the moments of all their pairs."""
    return _stream_sources(Moments, sources, progress, **options)


def accumulate_arrays(arrays: Mapping[str, Any], progress: Any, **options: Any) -> Moments:
    """Stream aligned arrays, memory maps or files, one for each view; files are closed again."""
    return _stream_arrays(Moments, arrays, progress, **options)


def accumulate_batches(
    batches: Iterable[Any], views_of: Callable[[int, Any], Mapping[str, Any]], progress: Any, **options: Any
) -> Moments:
    """Stream batches, which `views_of` turns into mappings from view to rows."""
    return _stream_batches(Moments, batches, views_of, progress, **options)


def pair_of(i: int, batch: Any) -> Mapping[str, Any]:
    """Return the views of a batch that is a pair of arrays."""
    if isinstance(batch, Mapping) or not hasattr(batch, "__len__") or len(batch) != 2:
        raise InputError(f"batch {i}: got {type(batch).__name__}, expected a pair (x, y) of arrays")
    return dict(zip("xy", batch, strict=True))


def accumulate_pair(make: Callable[..., A], data: tuple[Any, ...], progress: Any, **options: Any) -> A:
    """Stream two arrays or files, or an iterable of pairs of batches, as the views 'x' and 'y' of what `make` makes."""
    if (
        len(data) == 1
        and not hasattr(data[0], "shape")
        and isinstance(data[0], Iterable)
        and not isinstance(data[0], str)
    ):
        moments = _stream_batches(make, data[0], pair_of, progress, **options)
    elif len(data) == 2:
        moments = _stream_arrays(make, dict(zip("xy", data, strict=True)), progress, **options)
    else:
        raise InputError(
            "data: expected (moments, 'a', 'b'), two arrays or .npy paths (X, Y), or one iterable of (x, y) batches"
        )
    if moments.rows == 0:
        raise InputError("the data hold no rows; expected at least 2")
    return moments


def moments_of(
    data: tuple[Any, ...],
    *,
    precision: Any = "auto",
    nonfinite: Any = "raise",
    threads: int | None = None,
    progress: Any = "auto",
) -> tuple[Moments, str, str]:
    """Return moments and the two view names, for everything that the measures accept as data."""
    if data and isinstance(data[0], Moments):
        return two_views(data[0], data[1:])
    options = {"precision": precision, "nonfinite": nonfinite, "threads": threads}
    return accumulate_pair(Moments, data, progress, **options), "x", "y"


def two_views(moments: A, names: tuple[Any, ...]) -> tuple[A, str, str]:
    """Return moments and the names of two of their views; names may be left out where there are just two."""
    if not names and len(moments.views) == 2:
        names = tuple(moments.views)
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise InputError(f"name two of the views {', '.join(map(repr, moments.views))}: measure(moments, 'a', 'b')")
    return moments, names[0], names[1]
