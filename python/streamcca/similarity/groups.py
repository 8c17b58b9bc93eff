"""Moments of disjoint parts of the rows, kept apart: their differences say how far a number can be trusted."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from streamcca._backend import BLOCK_ROWS, FloatArray, state_bytes
from streamcca._memory import check_memory
from streamcca.batches import checked_weights
from streamcca.errors import InputError, NonFiniteError
from streamcca.moments import Moments, NonFinite, Precision
from streamcca.passes import bits_of, widened
from streamcca.sources import NpyFile, RowSource, open_source, pair_of, progress_bar, progress_wanted
from streamcca.views import Pairs, checked_views, pair_list

# Bytes of rows that are read from a file at a time.
_CHUNK_BYTES = 16 << 20
# Fewer parts say too little of how much they differ.
FEWEST = 8


class GroupMoments:
    """Moments of parts of the rows, for intervals; together they are the moments of all rows.

    Rows that belong together (the positions of an image, the tokens of a text) must not be in different parts: their
    dependence would be overlooked. Each batch goes to the next part as a whole, so that a batch should hold whole
    samples; with ``groups=`` rows go by the number of their group.

    Parameters
    ----------
    views, pairs, precision, nonfinite, threads
        As in `Moments`.
    parts : int
        Number of parts, at least 8. Intervals take the quantiles of Student's law with one degree of freedom less.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> g = GroupMoments({"a": 3, "b": 2})
    >>> for _ in range(64):
    ...     g.update(a=rng.standard_normal((50, 3)), b=rng.standard_normal((50, 2)))
    >>> g
    GroupMoments(n=3200, views={'a': 3, 'b': 2}, parts=32)
    """

    def __init__(
        self,
        views: Mapping[str, int],
        pairs: Pairs = "all",
        *,
        parts: int = 32,
        precision: Precision = "auto",
        nonfinite: NonFinite = "raise",
        threads: int | None = None,
    ) -> None:
        if isinstance(parts, bool) or not isinstance(parts, int) or not FEWEST <= parts <= 1024:
            raise InputError(f"parts: got {parts!r}, expected a number from {FEWEST} to 1024")
        known = checked_views(views)
        index = {name: i for i, name in enumerate(known)}
        indices = [(index[a], index[b]) for a, b in pair_list(list(known), pairs)]
        check_memory(
            (parts + 1) * state_bytes(list(known.values()), indices),
            f"moments of {parts} parts of the rows, {len(known)} views and {len(indices)} pairs",
            f"ask for fewer parts= (at least {FEWEST}) or fewer pairs=, or keep fewer neurons",
        )
        self._options: dict[str, Any] = {"pairs": pairs, "nonfinite": nonfinite, "threads": threads}
        self._parts = [Moments(known, precision=precision, **self._options) for _ in range(parts)]
        self._next = 0
        self._total: Moments | None = None

    def update(
        self,
        batch: Mapping[str, Any] | None = None,
        /,
        *,
        weights: Any = None,
        groups: Any = None,
        **arrays: Any,
    ) -> None:
        """Add one batch, to the next part, or each row to the part of its group.

        Parameters
        ----------
        batch, weights
            As in `Moments.update`.
        groups : array (n,) of int, optional
            Number of the group of each row; equal numbers stay together, also in later batches.

        Raises
        ------
        InputError, DTypeError, NonFiniteError
            The batch is refused as a whole and all parts are unchanged.
        """
        given = {**(batch or {}), **arrays}
        if groups is None:
            self._add(self._next, given, weights)
            self._next = (self._next + 1) % len(self._parts)
            return
        weights = checked_weights(weights)
        _check_lengths(given, weights)
        if weights is not None and not (np.isfinite(weights) & (weights >= 0)).all():
            raise InputError("weights: got a negative, infinite or NaN weight, expected finite numbers >= 0")
        if self._options["nonfinite"] == "raise":
            _check_finite(given)
        part = _part_of(groups, len(next(iter(given.values()))), len(self._parts))
        for number in np.unique(part):
            rows = np.flatnonzero(part == number)
            own = None if weights is None else weights[rows]
            self._add(int(number), {name: array[rows] for name, array in given.items()}, own)

    def _add(self, part: int, batch: Mapping[str, Any], weights: Any = None) -> None:
        self._total = None
        self._parts[part].update(batch, weights=weights)

    @property
    def parts(self) -> list[Moments]:
        """Moments of the parts that have rows."""
        return [part for part in self._parts if part.rows]

    @property
    def total(self) -> Moments:
        """Moments of all rows; do not update them."""
        if self._total is None:
            self._total = merged(self.parts or self._parts[:1])
        return self._total

    @property
    def views(self) -> dict[str, int]:
        """Name and width of each view."""
        return self._parts[0].views

    @property
    def n(self) -> int | float:
        """Number of rows; with weights, their sum."""
        return sum(part.n for part in self._parts)

    @property
    def rows(self) -> int:
        """Number of rows of weight above zero."""
        return sum(part.rows for part in self._parts)

    def __repr__(self) -> str:
        views = ", ".join(f"{name!r}: {width}" for name, width in self.views.items())
        return f"GroupMoments(n={self.n}, views={{{views}}}, parts={len(self.parts)})"


def merged(parts: list[Moments]) -> Moments:
    """Return the moments of all rows of several moments, which stay as they are."""
    result = parts[0].copy()
    for part in parts[1:]:
        result.merge(part)
    return result


def second_moments(part: Moments, total: Moments, a: str, b: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the covariance of a part about its own means, and how far these lie from those of all rows.

    Kept apart since the second moments about the common means are needed in inner products only.
    """
    return part.covariance(a, b, ddof=0), part.mean(a) - total.mean(a), part.mean(b) - total.mean(b)


def _check_lengths(given: Mapping[str, Any], weights: Any) -> None:
    """Refuse what cutting by groups would make fit."""
    rows: int | None = None
    for name, array in {**given, **({} if weights is None else {"weights": weights})}.items():
        if not hasattr(array, "shape"):
            raise InputError(f"{name}: got {type(array).__name__}, expected an array of rows")
        rows = len(array) if rows is None else rows
        if len(array) != rows:
            raise InputError(f"{name}: got {len(array)} rows, expected {rows} as in view {next(iter(given))!r}")
    if not given:
        raise InputError("update: got no views")


def _check_finite(given: Mapping[str, Any]) -> None:
    """Refuse a batch before its first rows are counted: what one part refuses others would have taken."""
    for name, array in given.items():
        flat = array.reshape(-1, array.shape[-1]) if len(array.shape) == 3 else array
        bits, dtype = bits_of(flat, f"view {name!r}")
        wrong = ~np.isfinite(widened(bits, dtype, np.float64))
        if wrong.any():
            place = np.argwhere(wrong)[0]
            raise NonFiniteError(
                f"view {name!r}, row {place[0]} of the batch, column {place[-1]}: got NaN or infinity, expected a "
                "finite number; mend the rows, or construct GroupMoments with nonfinite='skip'"
            )


def _part_of(groups: Any, rows: int, parts: int) -> np.ndarray[Any, Any]:
    numbers = np.asarray(groups)
    if numbers.shape != (rows,) or numbers.dtype.kind not in "iu":
        raise InputError(
            f"groups: got an array {numbers.shape} of {numbers.dtype}, expected ({rows},) integers, one for each row"
        )
    # Knuth's multiplicative hash: neighbors part ways, and a group has the same part in every batch.
    return (numbers.astype(np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)) * np.uint64(parts) >> np.uint64(32)


# ---------------------------------------------------------------------- data that are there already


def group_moments(
    *data: Any,
    groups: Any = None,
    parts: int = 32,
    precision: Precision = "auto",
    nonfinite: NonFinite = "raise",
    threads: int | None = None,
    progress: Any = "auto",
) -> GroupMoments:
    """Return the moments of parts of two views, for intervals.

    Parameters
    ----------
    *data
        ``(X, Y)``: arrays (n, d), memory maps, or ``.npy`` paths, cut into runs of rows; arrays (samples, m, d), cut
        between samples. Or ``(batches,)``: an iterable of pairs, each batch to the next part as a whole.
    groups : int or array (n,) of int, optional
        Which rows belong together: so many in a row each, or the number of each row's group. Of neighboring rows that
        depend on each other only those at a cut are torn apart, so that it may be left out where groups are runs of
        rows that are short against n / `parts`.
    parts, precision, nonfinite, threads
        As in `GroupMoments`.
    progress : 'auto' or bool
        Progress bar on stderr.

    Returns
    -------
    GroupMoments
        With the views 'x' and 'y'.

    Raises
    ------
    InputError, DTypeError, NonFiniteError, MemoryLimitError
    """
    options: dict[str, Any] = {"parts": parts, "precision": precision, "nonfinite": nonfinite, "threads": threads}
    if len(data) == 1 and isinstance(data[0], Iterable) and not hasattr(data[0], "shape"):
        return _of_batches(data[0], groups, progress, options)
    if len(data) != 2:
        raise InputError("data: expected two arrays or .npy paths (X, Y), or one iterable of (x, y) batches")
    if all(getattr(array, "ndim", 2) == 3 for array in data):
        return _of_samples(data, groups, options)
    return _of_sources(data, groups, progress, options)


def _of_batches(batches: Iterable[Any], groups: Any, progress: Any, options: dict[str, Any]) -> GroupMoments:
    if groups is not None:
        raise InputError("groups: batches go to parts as a whole; use GroupMoments.update(..., groups=) to split them")
    result: GroupMoments | None = None
    with progress_bar(progress, None, "row", "accumulate") as bar:
        for i, batch in enumerate(batches):
            views = pair_of(i, batch)
            result = result or GroupMoments({name: int(array.shape[-1]) for name, array in views.items()}, **options)
            result.update(views)
            bar.update(len(views["x"]))
    if result is None:
        raise InputError("the iterable of batches is empty; expected at least one batch of rows")
    return result


def _of_samples(data: tuple[Any, ...], groups: Any, options: dict[str, Any]) -> GroupMoments:
    if groups is not None:
        raise InputError("groups: the rows of (samples, m, d) arrays are grouped by sample already; leave it out")
    x, y = data
    if x.shape[:2] != y.shape[:2]:
        raise InputError(f"view 'y': got {tuple(y.shape)}, expected samples and rows as in view 'x', {tuple(x.shape)}")
    result = GroupMoments({"x": int(x.shape[2]), "y": int(y.shape[2])}, **options)
    for part, (first, last) in enumerate(_runs(len(x), 1, options["parts"])):
        result._add(part, {"x": x[first:last], "y": y[first:last]})
    return result


def _runs(rows: int, step: int, parts: int) -> list[tuple[int, int]]:
    """Cut rows into runs of whole groups, as equal as can be; fewer of them if there are fewer groups."""
    count = -(-rows // step)
    cuts = [min(rows, step * (count * i // parts)) for i in range(parts + 1)]
    return [(first, last) for first, last in itertools.pairwise(cuts) if last > first]


def _of_sources(data: tuple[Any, ...], groups: Any, progress: Any, options: dict[str, Any]) -> GroupMoments:
    progress_wanted(progress)
    sources: list[RowSource] = []
    try:
        for array, name in zip(data, "xy", strict=True):
            sources.append(open_source(array, name))
        rows = sources[0].rows
        if sources[1].rows != rows:
            raise InputError(f"view 'y': got {sources[1].rows} rows, expected {rows} as in view 'x'")
        by_number = groups is not None and not isinstance(groups, int | float | np.number)
        if by_number:
            _part_of(groups, rows, options["parts"])
        result = GroupMoments({source.name: source.width for source in sources}, **options)
        step = max(BLOCK_ROWS, _CHUNK_BYTES // max(1, *(source.row_bytes for source in sources)))
        in_memory = not any(isinstance(array, str | os.PathLike | np.memmap) for array in data)
        runs = [(0, rows)] if by_number else _runs(rows, _size(groups), options["parts"])
        with progress_bar(progress, rows, "row", "accumulate") as bar:
            for part, (first, last) in enumerate(runs):
                for start in range(first, last, last - first if in_memory else step):
                    count = min(last - start, last - first if in_memory else step)
                    views = {source.name: source.read(start, count) for source in sources}
                    if by_number:
                        result.update(views, groups=np.asarray(groups)[start : start + count])
                    else:
                        result._add(part, views)
                    bar.update(count)
        return result
    finally:
        for source in sources:
            if isinstance(source, NpyFile):
                source.close()


def _size(groups: Any) -> int:
    if groups is None:
        return 1
    if isinstance(groups, bool) or not isinstance(groups, int | np.integer) or groups < 1:
        raise InputError(
            f"groups: got {groups!r}, expected a number of rows of at least 1, or an array of group numbers"
        )
    return int(groups)
