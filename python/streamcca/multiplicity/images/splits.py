"""Rows of a set, drawn so that every class keeps its share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamcca.errors import InputError

Labels = NDArray[np.int64]

# Of a source that has no test set of its own: 599 of the 1797 digits, where an accuracy's standard error is below 2 %.
TEST_SHARE = 1 / 3


def check_seed(seed: object, what: str) -> None:
    """Refuse what is not a whole number of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"{what}: got {seed!r}, expected a whole number of at least 0")


def check_share(share: object, what: str, *, zero: bool, one: bool) -> None:
    """Refuse what is not a share; `zero` and `one` say whether the ends are shares."""
    number = isinstance(share, int | float | np.number) and not isinstance(share, bool)
    if not number or not 0 <= share <= 1 or (share == 0 and not zero) or (share == 1 and not one):  # type: ignore[operator]
        ends = "from 0" if zero else "above 0", "to 1" if one else "and below 1"
        raise InputError(f"{what}: got {share!r}, expected a number {' '.join(ends)}")


def _shares(counts: Labels, total: int, spare: int) -> Labels:
    """Divide `total` over classes in proportion to their counts: at least 1 each, at most their count less `spare`.

    Largest remainders, ties to the lower class; whole numbers throughout, so that no machine rounds otherwise.
    """
    exact = counts * total
    shares = exact // counts.sum()
    order = np.argsort(-(exact % counts.sum()), kind="stable")
    shares[order[: total - int(shares.sum())]] += 1
    shares = np.clip(shares, 1, counts - spare)
    while (
        excess := int(shares.sum()) - total
    ) != 0:  # the clip moved a few: the largest class with room gives or takes
        room = (
            np.where(shares > 1, shares, -1) if excess > 0 else np.where(shares < counts - spare, counts - shares, -1)
        )
        shares[int(np.argmax(room))] -= 1 if excess > 0 else -1
    result: Labels = shares
    return result


def draw_rows(labels: Labels, total: int, seed: int, spare: int) -> Labels:
    """Draw `total` indices, classes in proportion, ascending."""
    classes, counts = np.unique(labels, return_counts=True)
    shares = _shares(counts.astype(np.int64), total, spare)
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:share] for label, share in zip(classes, shares, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def subset_rows(labels: Labels, share: float, seed: int) -> Labels:
    """Return a random share of the rows, every class in proportion and none lost, ascending.

    Parameters
    ----------
    labels
        (N,), int64.
    share
        Above 0, at most 1; `round(share * N)` rows are kept.
    seed
        Seed of the draw.

    Raises
    ------
    InputError
        A share outside (0, 1], or so small that a class would be lost.

    Examples
    --------
    >>> from streamcca.multiplicity.images.splits import subset_rows
    >>> subset_rows(np.array([0, 0, 1, 1]), 0.5, seed=1).shape
    (2,)
    """
    check_seed(seed, "subset: seed")
    check_share(share, "subset: share", zero=False, one=True)
    total, classes = round(share * len(labels)), len(np.unique(labels))
    if total < classes:
        raise InputError(f"subset: a share of {share:g} is {total} rows, too few for {classes} classes")
    return draw_rows(labels, total, seed, spare=0)


def noisy_labels(labels: Labels, share: float, classes: int, seed: int) -> Labels:
    """Return labels of which exactly `round(share * N)` are replaced by another class.

    Rows are drawn without replacement, the new class uniformly among the others. With the same seed, the rows replaced
    at a smaller share are among those replaced at a larger one, by the same classes.

    Parameters
    ----------
    labels
        (N,), int64, from 0 to `classes - 1`; not modified.
    share
        From 0 to 1.
    classes
        Number of classes, at least 2.
    seed
        Seed of the draws.

    Raises
    ------
    InputError
        A share outside [0, 1], fewer than two classes, or a label outside them.

    Examples
    --------
    >>> from streamcca.multiplicity.images.splits import noisy_labels
    >>> int((noisy_labels(np.zeros(10, dtype=np.int64), 0.3, classes=4, seed=0) != 0).sum())
    3
    """
    check_seed(seed, "noisy_labels: seed")
    check_share(share, "noisy_labels: share", zero=True, one=True)
    if classes < 2:
        raise InputError(f"noisy_labels: got classes={classes}, expected at least 2")
    if labels.ndim != 1 or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise InputError(f"noisy_labels: expected labels (N,) from 0 to {classes - 1}, got others")
    rng = np.random.default_rng(seed)
    rows, others = rng.permutation(len(labels)), rng.integers(1, classes, len(labels))
    replaced = rows[: round(share * len(labels))]
    result = labels.copy()
    result[replaced] = (labels[replaced] + others[replaced]) % classes
    return result


def split_rows(
    labels: Labels,
    *,
    test_share: float | None = None,
    test_count: int | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> tuple[Labels, Labels]:
    """Split rows into training and test rows, every class in proportion.

    Parameters
    ----------
    labels
        (N,), every class at least twice.
    test_share, test_count
        How much goes to the test set, as a share of the rows (rounded) or as a count; a third where neither is given.
    seed
        Seed of the draw.
    classes
        Names of labels 0, 1, ..., for messages.

    Returns
    -------
    tuple of Labels
        Indices of training and of test rows, ascending; every class is in both.

    Raises
    ------
    InputError
        A class with one row, or a share or count that leaves a class without a training or without a test row.

    Examples
    --------
    >>> from streamcca.multiplicity.images.splits import split_rows
    >>> train, test = split_rows(np.array([0, 0, 0, 0, 1, 1, 1, 1]), test_share=0.25)
    >>> len(train), len(test)
    (6, 2)
    """
    check_seed(seed, "seed")
    if test_share is not None and test_count is not None:
        raise InputError(f"got test_share={test_share} and test_count={test_count}, expected one of them")
    present, counts = np.unique(labels, return_counts=True)
    if len(labels) and counts.min() < 2:
        alone = int(present[np.argmin(counts)])
        name = classes[alone] if classes else str(alone)
        raise InputError(
            f"class {name!r} has one image, which cannot be both in training and in test; add images or leave it out"
        )
    if test_share is not None:
        check_share(test_share, "test_share", zero=False, one=False)
        test_count = round(test_share * len(labels))
    elif test_count is None:  # what nobody asked for gives way: a few rows of many classes
        test_count = max(len(present), round(TEST_SHARE * len(labels)))
    check_seed(test_count, "test_count")
    if not len(present) <= test_count <= len(labels) - len(present):
        raise InputError(
            f"the test set would have {test_count} of {len(labels)} images, expected {len(present)} to "
            f"{len(labels) - len(present)}, so that each of the {len(present)} classes is in both sets"
        )
    test = draw_rows(labels, test_count, seed, spare=1)
    return np.setdiff1d(np.arange(len(labels)), test), test
