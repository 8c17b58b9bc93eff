"""What comes with the rows of a batch: the names of its views, row ids, weights, how many rows are valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.views import unknown_name

Ids = dict[str, np.ndarray[Any, Any]]


def check_names(given: Mapping[str, Any], views: Mapping[str, int]) -> None:
    """Refuse a batch that lacks a view, or has one that nobody declared."""
    missing = [name for name in views if name not in given]
    if missing:
        raise InputError(
            f"update: got no rows for view {missing[0]!r}; every batch must hold all views "
            f"({', '.join(map(repr, views))})"
        )
    for name in given:
        check_name(name, views)


def check_name(name: object, views: Mapping[str, int]) -> None:
    """Refuse a view that nobody declared."""
    if not isinstance(name, str) or name not in views:
        raise InputError(unknown_name("view", name, views))


def checked_weights(weights: Any) -> FloatArray | None:
    """Return row weights as float64, from anything that is a vector of real numbers."""
    if weights is None:
        return None
    if hasattr(weights, "detach"):  # torch: NumPy knows no bfloat16 and no autograd
        weights = weights.detach().double().cpu()
    try:
        array = np.asarray(weights)
    except (TypeError, ValueError) as error:
        raise InputError(f"weights: {error}; pass one number a row") from None
    if array.dtype.kind not in "fiub" or array.ndim != 1:
        raise InputError(f"weights: got {array.dtype} of shape {array.shape}, expected one real number a row")
    return array.astype(np.float64)


def _row_count(array: Any) -> int:
    """Rows of an array (n, d), or (samples, m, d)."""
    shape = tuple(getattr(array, "shape", ()))
    return int(shape[0] * shape[1]) if len(shape) == 3 else len(array)


def checked_ids(ids: Any, given: Mapping[str, Any], views: Mapping[str, int]) -> Ids:
    """Return the row ids of each view as int64, or refuse them if views disagree on a row."""
    if ids is None:
        return {}
    per_view = ids if isinstance(ids, Mapping) else dict.fromkeys(views, ids)
    result: Ids = {}
    for name, values in per_view.items():
        check_name(name, views)
        array, rows = np.asarray(values), _row_count(given[name])
        if array.dtype.kind not in "iu" or array.shape != (rows,):
            raise InputError(
                f"ids of view {name!r}: got {array.dtype} of shape {array.shape}, expected one integer for "
                f"each of the {rows} rows"
            )
        result[name] = np.ascontiguousarray(array, dtype="<i8")
        first = next(iter(result))
        if not np.array_equal(result[name], result[first]):
            row = int(np.flatnonzero(result[name] != result[first])[0])
            raise InputError(
                f"ids of views {first!r} and {name!r} differ first in row {row} of the batch "
                f"({result[first][row]} and {result[name][row]}); give both views the same samples in the same order "
                "(one loader, or shuffle=False)"
            )
    return result


def first_rows(
    count: Any, given: Mapping[str, Any], weights: FloatArray | None, ids: Ids
) -> tuple[Mapping[str, Any], FloatArray | None, Ids]:
    """Cut a batch, its weights and its ids to the first `count` rows."""
    for name, array in given.items():
        if not hasattr(array, "__len__") or not hasattr(array, "__getitem__"):
            raise InputError(
                f"valid_rows: view {name!r} is {type(array).__name__}, expected an array that can be cut to fewer rows"
            )
        if len(getattr(array, "shape", ())) == 3:
            raise InputError(f"valid_rows: view {name!r} has rows in samples, expected rows as (n, width); flatten it")
    lengths = {len(array) for array in given.values()}
    if len(lengths) > 1:  # nothing is cut, so that the update finds it out
        return given, weights, ids
    (rows,) = lengths
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 0 <= count <= rows:
        raise InputError(
            f"valid_rows: got {count!r}, expected an integer from 0 to {rows}, the number of rows in this batch; the "
            "rows after the first valid_rows are taken for padding"
        )
    if weights is not None and len(weights) != rows:
        raise InputError(
            f"weights: got {len(weights)} values for {rows} rows; pass one weight a row, also where valid_rows ends"
        )
    return (
        {name: array[:count] for name, array in given.items()},
        None if weights is None else weights[:count],
        {name: array[:count] for name, array in ids.items()},
    )
