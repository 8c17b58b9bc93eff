"""Labels, weights and split of a probe's rows, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import DTypeError, InputError
from streamcca.multiplicity.features.blocks import IntArray


def checked_labels(labels: Any, n: int, multilabel: bool, classes: int | None) -> tuple[Any, int]:
    """Return labels as int64 (n,), or bool (n, C), and the number of classes, or refuse them."""
    values = np.asarray(labels)
    expected = "(n, C) of 0 and 1" if multilabel else "(n,) of class numbers"
    if values.ndim != (2 if multilabel else 1) or len(values) != n:
        raise InputError(f"labels: got shape {values.shape} for {n} rows of features, expected {expected}")
    if values.dtype.kind not in "iub":
        raise DTypeError(f"labels: got {values.dtype}, expected integers, {expected}; convert them with astype(int)")
    if multilabel:
        if values.max(initial=0) > 1 or values.min(initial=0) < 0:
            raise InputError(f"labels: got values from {values.min()} to {values.max()}, expected 0 and 1")
        found = values.shape[1]
        if found < 1 or classes not in (None, found):
            raise InputError(f"labels: got {found} columns, expected {classes or 'at least 1'}, one for each class")
        return values.astype(bool), found
    values = values.astype(np.int64)
    most = int(values.max(initial=-1))
    count = most + 1 if classes is None else classes
    if count < 2 or most >= count or values.min(initial=0) < 0:
        raise InputError(
            f"labels: got classes {values.min(initial=0)} to {most}, expected numbers from 0 to C - 1 with C "
            f"{'at least 2' if classes is None else f'= {classes}'}"
        )
    return values, count


def checked_weights(weights: Any, n: int) -> FloatArray:
    """Return weights of n rows, all 1 by default."""
    if weights is None:
        return np.ones(n)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise InputError(
            f"weights: got shape {values.shape}, expected {n} finite numbers, one for each row, none negative and not "
            "all zero"
        )
    return values


def check_present(targets: Any, mass: FloatArray, classes: int, multilabel: bool) -> None:
    """Refuse a class that no training row has: its logit would have no lowest loss."""
    if multilabel:
        yes = mass @ targets
        lacking = np.flatnonzero((mass @ ~targets == 0) | (yes == 0))
        if len(lacking):
            which = "no" if yes[lacking[0]] == 0 else "every"
            raise InputError(
                f"labels: {which} training row has label {lacking[0]} (and so for {len(lacking)} of {classes} labels); "
                "expected rows with and without each: leave these labels out"
            )
        return
    lacking = np.flatnonzero(np.bincount(targets, mass, classes) == 0)
    if len(lacking):
        raise InputError(
            f"labels: no training row has class {lacking[0]} (and so for {len(lacking)} of {classes} classes); "
            f"expected rows of each: number the classes that there are from 0 to {classes - len(lacking) - 1}"
        )


def held_out(targets: Any, mass: FloatArray, classes: int, multilabel: bool, share: float, seed: int) -> IntArray:
    """Return the rows (sorted) that a seeded split holds out; every class keeps rows to be fitted."""
    if isinstance(share, bool) or not 0 < share < 1:
        raise InputError(f"validation: got {share!r}, expected a share of the rows above 0 and below 1")
    generator = np.random.default_rng(seed)
    counted = np.flatnonzero(mass > 0)
    if multilabel:
        out = _held_out_of_labels(targets, generator.permutation(counted), int(share * len(counted)))
    else:
        out = []
        for label in range(classes):
            rows = generator.permutation(counted[targets[counted] == label])
            out.extend(rows[: min(len(rows) - 1, round(share * len(rows)))])
    if not len(out):
        raise InputError(
            f"validation: a share of {share:g} of {len(counted)} rows leaves none to hold out; expected more rows, or "
            "give l2= a number"
        )
    return np.sort(np.asarray(out, dtype=np.int64))


def _held_out_of_labels(targets: Any, order: IntArray, wanted: int) -> list[int]:
    """Take rows in this order, but none that is the last with, or the last without, a label."""
    yes = targets[order].sum(axis=0)
    no = len(order) - yes
    out: list[int] = []
    for row in order:
        if len(out) == wanted:
            break
        has = targets[row]
        if (yes - has > 0).all() and (no - ~has > 0).all():
            yes, no = yes - has, no - ~has
            out.append(int(row))
    return out
