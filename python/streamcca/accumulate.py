"""Moments of activations that are there already: arrays, files, batches, dask arrays."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from streamcca.errors import InputError
from streamcca.moments import Moments, NonFinite, Precision
from streamcca.sources import accumulate_arrays, accumulate_batches, pair_of
from streamcca.views import Pairs


def accumulate(
    data: Any,
    *,
    pairs: Pairs = "all",
    precision: Precision = "auto",
    nonfinite: NonFinite = "raise",
    threads: int | None = None,
    progress: Any = "auto",
) -> Moments:
    """Return the moments of arrays, files of any size, batches or dask arrays.

    Parameters
    ----------
    data
        A mapping from view to rows: arrays (n, width) in memory, memory maps, paths of ``.npy`` files of any size,
        or dask arrays with equal chunks of rows. One of these alone is view ``'x'``. Or an iterable of batches, each
        a mapping from view to rows, or a pair of arrays for the views ``'x'`` and ``'y'``.
    pairs, precision, nonfinite, threads
        As in `Moments`.
    progress : 'auto' or bool
        Progress bar on stderr for files and iterables; 'auto' shows it on a terminal. dask has bars of its own.

    Returns
    -------
    Moments

    Raises
    ------
    InputError, DTypeError, NonFiniteError, MissingFileError, StateFileError
        The data cannot be used.

    Notes
    -----
    Of dask arrays each block of rows becomes moments in a task of its own, on one thread, wherever the scheduler runs
    it; the moments are merged two by two. The result depends on how the rows are cut into blocks, within rounding,
    but not on the scheduler. A block needs as many rows as the views are wide, at least, to be worth its moments.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((1000, 3))
    >>> accumulate({"a": x, "b": x[:, :2]})
    Moments(n=1000, views={'a': 3, 'b': 2}, pairs=3, precision='float64')
    >>> accumulate({"a": batch, "b": batch[:, :2]} for batch in np.split(x, 10))
    Moments(n=1000, views={'a': 3, 'b': 2}, pairs=3, precision='float64')
    """
    options: dict[str, Any] = {"pairs": pairs, "precision": precision, "nonfinite": nonfinite, "threads": threads}
    if hasattr(data, "shape") or isinstance(data, str | os.PathLike):
        data = {"x": data}
    if isinstance(data, Mapping):
        if not data:
            raise InputError("data: got an empty mapping, expected rows for at least one view")
        if any(_is_dask(array) for array in data.values()):
            return _accumulate_dask(data, **options)
        return accumulate_arrays(data, progress, **options)
    if isinstance(data, Iterable):
        return accumulate_batches(data, _views_of, progress, **options)
    raise InputError(
        f"data: got {type(data).__name__}, expected an array, a path, a mapping from view to one of these, or an "
        "iterable of batches"
    )


def _views_of(i: int, batch: Any) -> Mapping[str, Any]:
    return batch if isinstance(batch, Mapping) else pair_of(i, batch)


# ---------------------------------------------------------------------- dask


def _is_dask(array: Any) -> bool:
    dask_array = sys.modules.get("dask.array")  # whoever holds such an array has imported it
    return dask_array is not None and isinstance(array, dask_array.Array)


def _accumulate_dask(arrays: Mapping[str, Any], *, threads: int | None, **options: Any) -> Moments:
    dask: Any = importlib.import_module("dask")
    _check_chunks(arrays)
    views = {name: array.shape[1] for name, array in arrays.items()}
    result = Moments(views, threads=threads, **options)
    # One thread a task, as the scheduler runs as many of them as there are cores.
    of_block = dask.delayed(_moments_of_block)
    columns = [array.rechunk({1: -1}).to_delayed()[:, 0] for array in arrays.values()]
    parts = [of_block(views, {"threads": 1, **options}, list(blocks)) for blocks in zip(*columns, strict=True)]
    merge = dask.delayed(_merged)
    while len(parts) > 1:
        parts = [merge(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    result.merge(*dask.compute(*parts))
    return result


def _check_chunks(arrays: Mapping[str, Any]) -> None:
    """Refuse what cannot be taken block by block."""
    first_name, first = next(iter(arrays.items()))
    for name, array in arrays.items():
        if not _is_dask(array):
            other = next(other for other, candidate in arrays.items() if _is_dask(candidate))
            raise InputError(
                f"view {name!r}: got {type(array).__name__}, expected a dask array as in view {other!r}; use "
                "dask.array.from_array with the same chunks of rows"
            )
        if array.ndim != 2 or np.isnan(array.shape[1]):
            raise InputError(
                f"view {name!r}: got a dask array of shape {array.shape}, expected rows as (n, width) of known width"
            )
        # Blocks of unknown numbers of rows are looked at when they are there.
        known = not np.isnan([*array.chunks[0], *first.chunks[0]]).any()
        if len(array.chunks[0]) != len(first.chunks[0]) or (known and array.chunks[0] != first.chunks[0]):
            raise InputError(
                f"view {name!r}: got chunks of {_some(array.chunks[0])} rows, expected {_some(first.chunks[0])} as in "
                f"view {first_name!r}; rechunk one like the other: array.rechunk({{0: other.chunks[0]}})"
            )


def _some(chunks: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, chunks[:6]))}{f', ... {len(chunks)} in all' if len(chunks) > 6 else ''})"


def _moments_of_block(views: dict[str, int], options: dict[str, Any], blocks: list[Any]) -> Moments:
    moments = Moments(views, **options)
    moments.update(dict(zip(views, blocks, strict=True)))
    return moments


def _merged(first: Moments, second: Moments | None = None) -> Moments:
    # A copy, since a scheduler may keep the result of a task, or run a task again.
    merged = first.copy()
    if second is not None:
        merged.merge(second)
    return merged
