"""The Gram route: layers of any width on up to some 50,000 rows, from one n x n matrix a view."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamcca._backend import FloatArray, Rounding
from streamcca._memory import check_memory
from streamcca.arrays import AnyArray
from streamcca.devices import can_follow, checked_device, to_device
from streamcca.errors import InputError, NonFiniteError
from streamcca.moments import Moments, Precision
from streamcca.passes import PairPasses, widened
from streamcca.sources import progress_bar
from streamcca.spool import TILE, ColumnTiles, SourceTiles, Spool, count_tiles, segment_bytes, tiles_of
from streamcca.store import remove_unfinished
from streamcca.views import check_option, unknown_name

# Seconds between two copies of an unfinished matrix on disk: writing one of 10,000 rows takes about one.
_SAVE_EVERY = 60.0
# Rows by which a state, in strips, is longer than its triangle, and its blocks, at most.
_STRIP = 2048
_REMEDY = "use fewer rows, or strategy='sketch', whose memory does not grow with them"


@dataclass(frozen=True, eq=False)
class ViewGram:
    """One view's matrix Xc Xc' / (n - 1), float64, with the errors that its products had."""

    width: int
    matrix: FloatArray = field(repr=False)
    rounding: Rounding = field(repr=False)
    precision: str


@dataclass(frozen=True, eq=False)
class Gram:
    """Inner products of all rows of each view with each other, columns centered: what the Gram route keeps of the data.

    Attributes
    ----------
    views : dict of str to int
        Name and width of each view.
    n : int
        Number of rows.
    precision : str
        Type in which products were formed.
    """

    _views: dict[str, ViewGram]

    @property
    def views(self) -> dict[str, int]:
        """Name and width of each view."""
        return {name: view.width for name, view in self._views.items()}

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(next(iter(self._views.values())).matrix)

    @property
    def precision(self) -> str:
        """Type in which products were formed: the coarser one, if the views differ."""
        return min(view.precision for view in self._views.values())

    def view(self, name: str) -> ViewGram:
        """Return what belongs to one view."""
        if name not in self._views:
            raise InputError(unknown_name("view", name, list(self._views)))
        return self._views[name]

    def matrix(self, name: str) -> FloatArray:
        """Return Xc Xc' / (n - 1) of one view, (n, n) in float64: its eigenvalues are those of the covariance."""
        return self.view(name).matrix

    def __repr__(self) -> str:
        views = ", ".join(f"{name!r}: {width}" for name, width in self.views.items())
        return f"Gram(n={self.n}, views={{{views}}}, precision={self.precision!r})"


def gram(
    *data: Any,
    folder: str | os.PathLike[str] | None = None,
    keep: bool = False,
    precision: Precision = "auto",
    threads: int | None = None,
    progress: bool | Literal["auto"] = "auto",
    device: str | None = None,
) -> Gram:
    """Form the n x n Gram matrices of two views of any width, in little memory.

    Arrays and row-major files are read in column tiles where they lie. Rows of an iterable are written to disk once, as
    they come (float16 and bfloat16 stay so), and read back a tile at a time. Each tile of all rows is centered in
    float64, and its product added by the kernel of `Moments`: n (n + 1) operations for each column.

    Parameters
    ----------
    *data
        ``(X, Y)``, arrays (n, d) or ``.npy`` paths; or ``(batches,)``, an iterable of pairs of arrays.
    folder : path, optional
        Where rows and unfinished matrices go. A job that was killed goes on there when it is started again with the
        same folder and data, and ends with the same bits. By default a temporary folder, and nothing to go on with.
    keep : bool
        Leave the files in `folder` when done: the next call returns at once. By default they are removed.
    precision, threads
        As in `Moments`.
    progress : 'auto' or bool
        Progress bars on stderr.
    device : None, 'cpu', 'cuda' or 'cuda:1'
        Where the products are formed: by default where two arrays are. Tiles go to a CUDA device one by one (by
        torch, or CuPy); the matrices come back.

    Returns
    -------
    Gram

    Raises
    ------
    InputError, DTypeError, NonFiniteError
        The data cannot be used.
    MemoryLimitError
        n x n does not fit into the memory that is available.
    StorageError
        The disk is too small for the rows; said before the first is written where their number is known.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((50, 3000))
    >>> gram(x, x[:, :2000])
    Gram(n=50, views={'x': 3000, 'y': 2000}, precision='float64')
    """
    check_option("precision", precision, ("auto", "float32", "float64"))
    checked_device(device)
    if keep and folder is None:
        raise InputError("keep: got True without a folder=, expected the folder to keep the rows in")
    passes = PairPasses(data)
    if device is None and passes.sources and can_follow(getattr(passes.sources[0], "array", None)):
        device = "cuda"
    place: AbstractContextManager[Any] = nullcontext(folder)
    if folder is None and not passes.sources:
        import tempfile  # loads OpenSSL

        place = tempfile.TemporaryDirectory(prefix="streamcca-spool-")
    try:
        with place as where:
            home = None if where is None else Path(where)
            if passes.rows is not None:
                _check_fits(passes.rows, [])
            spool, views = _open_tiles(passes, home, progress)
            options = {"precision": precision, "threads": threads, "progress": progress, "device": device}
            result = _form(views, home, options)
            if home is not None and not keep:
                remove_files(home, spool)
            return result
    finally:
        passes.close()


def _open_tiles(passes: PairPasses, folder: Path | None, progress: Any) -> tuple[Spool | None, dict[str, ColumnTiles]]:
    if passes.sources:
        return None, {name: SourceTiles(source) for name, source in zip("xy", passes.sources, strict=True)}
    assert folder is not None  # noqa: S101 - `gram` makes one for iterables
    spool = Spool(folder)
    spool.write(passes, progress)
    return spool, {name: spool.tiles(name) for name in "xy"}


def _form(views: Mapping[str, ColumnTiles], folder: Path | None, options: Mapping[str, Any]) -> Gram:
    return Gram({name: form_view(name, view, folder, **options) for name, view in views.items()})


def form_view(
    name: str,
    view: ColumnTiles,
    folder: Path | None,
    *,
    precision: Precision,
    threads: int | None,
    progress: Any,
    device: str | None = None,
) -> ViewGram:
    """Form one view's matrix from its tiles; an unfinished one waits in `folder`, if there is one."""
    if view.rows < 2:
        raise InputError(f"the data hold {view.rows} row{'s' * (view.rows != 1)}; expected at least 2")
    _check_fits(view.rows, [view.width])
    path = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{_fingerprint(view, name, precision):08x}.gram"
        remove_unfinished(folder, path.name)
    if path is not None and path.exists():
        moments = Moments.load(path, threads, device)
    else:
        moments = Moments({name: view.rows}, precision=precision, threads=threads, device=device or "cpu")
    _accumulate(moments, name, view, path, device, progress)
    return ViewGram(view.width, *_about_zero(moments, name), moments.precision)


def _accumulate(
    moments: Moments, name: str, view: ColumnTiles, path: Path | None, device: str | None, progress: Any
) -> None:
    """Sum the products of a view's columns: rows of `Moments` whose neurons are the samples."""
    saved, done = time.monotonic(), moments.rows
    with progress_bar(progress, view.width, "column", f"gram {name}") as bar:
        bar.update(done)
        for _, bits, dtype in tiles_of(view, -(-done // TILE)):
            centered = to_device(_centered(bits, dtype, moments.precision, name), device)
            moments.update({name: centered.T})
            done += bits.shape[1]
            bar.update(bits.shape[1])
            if path is not None and (time.monotonic() - saved > _SAVE_EVERY or done == view.width):
                moments.save(path)
                saved = time.monotonic()


def _fingerprint(view: ColumnTiles, name: str, precision: str) -> int:
    """Tell the data of an unfinished matrix from others: their shape, and the bits of the first and the last tile."""
    check = zlib.crc32(f"{name} {view.rows} {view.width} {precision}".encode())
    for tile in dict.fromkeys((0, count_tiles(view.width) - 1)):
        bits, dtype = view.read(tile)
        check = zlib.crc32(np.ascontiguousarray(bits).view(np.uint8).data, zlib.crc32(dtype.encode(), check))
    return check


def _centered(bits: AnyArray, dtype: str, precision: str, name: str) -> AnyArray:
    """Return a tile less the means of its columns: the difference in float64, then in the type of the products."""
    values = widened(bits, dtype, np.float64)
    means = values.mean(axis=0)
    if not np.isfinite(means).all():
        row = int(np.argmax(~np.isfinite(values).all(axis=1)))
        raise NonFiniteError(
            f"view {name!r}: row {row} holds NaN, infinity, or a number too large to average; the Gram route needs "
            "finite rows: leave that row out of both views"
        )
    values -= means
    single = precision == "float32" or (precision == "auto" and dtype != "float64")
    return values.astype(np.float32) if single else values


def _about_zero(moments: Moments, name: str) -> tuple[FloatArray, Rounding]:
    """Take moments of the columns about their mean back to moments about zero, over n - 1."""
    matrix, (relative, rows, raw) = moments._covariance(name, name, ddof=0)
    mean, scale = moments.mean(name), moments.rows / (len(matrix) - 1)
    for first in range(0, len(mean), TILE):
        part = matrix[first : first + TILE]
        part += np.outer(mean[first : first + TILE], mean)
        part *= scale
    return matrix, (relative, rows, raw * scale)


def _check_fits(rows: int, widths: list[int]) -> None:
    check_memory(gram_bytes(rows, widths), f"Gram matrices of {rows} rows", _REMEDY)


def gram_bytes(rows: int, widths: list[int], row_bytes: list[int] | None = None) -> int:
    """Return the memory that the route takes: segments of the spool, then matrices and what truncation needs.

    Two finished matrices, the covariance and its copies in the solver; or one matrix, the sums of the other and a tile.
    """
    square = 8 * rows * rows
    tile = rows * min(TILE, max(widths, default=TILE)) * (8 + 8 + 4)
    # Half of a square and some tiles: asking the kernel would take it a loop over all tiles of a plan for 10^9 rows.
    summing = square + square // 2 + 8 * _STRIP * rows + square + tile
    deciding = 2 * square + 3 * square
    return max(segment_bytes(row_bytes) if row_bytes else 0, summing, deciding)


def gram_flops(rows: int, widths: list[int]) -> float:
    """Return the multiplications and additions of the products."""
    return float(rows) * (rows + 1) * sum(widths)


def remove_files(folder: Path, spool: Spool | None) -> None:
    """Delete unfinished matrices and spooled rows, and the folder if nothing else is in it."""
    for path in folder.glob("????????.gram"):
        path.unlink()
    remove_unfinished(folder, "????????.gram")
    if spool is not None:
        spool.remove()
    elif folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
