"""Average precision of multi-label scores: 11-point interpolated (VOC 2007), and the area under the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamcca._backend import FloatArray
from streamcca.errors import DTypeError, InputError, NonFiniteError
from streamcca.views import check_option

Points = Literal["eleven", "area"]


@dataclass(frozen=True, repr=False)
class AveragePrecision:
    """Average precision of each class, and its mean.

    Attributes
    ----------
    kind : {'eleven', 'area'}
    mean : float
        Over the classes that have positive rows.
    per_class : tuple of float or None
        None for a class without a positive row, of which there is no recall.
    positives : tuple of int
    n, classes : int
    """

    kind: Points
    mean: float
    per_class: tuple[float | None, ...]
    positives: tuple[int, ...]
    n: int
    classes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {**vars(self), "per_class": list(self.per_class), "positives": list(self.positives)}

    def __repr__(self) -> str:
        """Return one line."""
        points = "11 points" if self.kind == "eleven" else "area"
        return f"AveragePrecision({self.mean:.4f}, {points}, {self.classes} classes, n = {self.n})"


def average_precision(labels: ArrayLike, scores: ArrayLike, kind: Points = "eleven") -> AveragePrecision:
    """Mean over classes of the average precision of scores.

    Parameters
    ----------
    labels : array_like (N, K) of bool or of 0 and 1; or (N,) of int
        Which classes each row has; or its only class.
    scores : array_like (N, K)
        Larger for rows that are more likely to have the class, such as logits.
    kind : {'eleven', 'area'}
        'eleven': mean over t = 0, 0.1, ..., 1 of the largest precision at a recall of at least t (PASCAL VOC 2007;
        Everingham et al. 2010, section 4.2), as arXiv 2110.12899 uses it. 'area': sum of (R_k - R_(k-1)) P_k over the
        thresholds, that of `sklearn.metrics.average_precision_score`.

    Returns
    -------
    AveragePrecision

    Raises
    ------
    InputError
        If shapes do not fit, no class has a positive row, or a label is neither 0 nor 1.

    Notes
    -----
    Rows of equal scores count together, as in scikit-learn: precision and recall are formed at each distinct score.
    (The VOC development kit takes tied rows one by one, in the order of the file.) Recalls are compared with t in whole
    numbers, 10 * hits >= 10 t * positives, so that 3 of 10 does reach 0.3.

    Examples
    --------
    >>> round(average_precision([[1], [0], [1], [0]], [[0.9], [0.8], [0.7], [0.1]]).mean, 6)  # (6 * 1 + 5 * 2/3) / 11
    0.848485
    >>> round(average_precision([[1], [0], [1], [0]], [[0.9], [0.8], [0.7], [0.1]], "area").mean, 6)
    0.833333
    """
    check_option("kind", kind, ("eleven", "area"))
    ranked = np.asarray(scores)
    if ranked.dtype.kind not in "fiu":
        raise DTypeError(f"scores: got {ranked.dtype}, expected real numbers")
    if ranked.ndim != 2 or 0 in ranked.shape:
        raise InputError(f"scores: got shape {ranked.shape}, expected (rows, classes)")
    if not np.isfinite(ranked).all():
        raise NonFiniteError("scores: some are NaN or infinite; expected finite numbers")
    truth = _truth(labels, *ranked.shape)
    positives = np.count_nonzero(truth, axis=0)
    if not positives.any():
        raise InputError("labels: no class has a positive row; expected at least one")
    form = _eleven if kind == "eleven" else _area
    per_class = tuple(
        form(*_curve(truth[:, k], ranked[:, k]), int(positives[k])) if positives[k] else None
        for k in range(ranked.shape[1])
    )
    return AveragePrecision(
        kind=kind,
        mean=float(np.mean([value for value in per_class if value is not None])),
        per_class=per_class,
        positives=tuple(int(count) for count in positives),
        n=len(ranked),
        classes=ranked.shape[1],
    )


def _truth(labels: ArrayLike, n: int, classes: int) -> NDArray[np.bool_]:
    array = np.asarray(labels)
    if array.dtype.kind not in "biu":
        raise DTypeError(f"labels: got {array.dtype}, expected booleans, or integers")
    if array.shape == (n,) and array.dtype.kind in "iu":
        if array.min() < 0 or array.max() >= classes:
            raise InputError(f"labels: got {array.min()} to {array.max()}, expected classes 0 to {classes - 1}")
        single: NDArray[np.bool_] = array[:, None] == np.arange(classes)
        return single
    if array.shape != (n, classes):
        raise InputError(f"labels: got shape {array.shape}, expected ({n}, {classes}), or ({n},) classes")
    if array.min() < 0 or array.max() > 1:
        raise InputError(f"labels: got {array.min()} to {array.max()}, expected 0 or 1 for each row and class")
    return array.astype(np.bool_)


def _curve(truth: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positive rows, and all rows, at or above each distinct score, from the largest down."""
    order = np.argsort(scores, kind="stable")[::-1]
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return np.cumsum(truth[order])[ends], ends + 1


def _area(hits: NDArray[np.int64], rows: NDArray[np.int64], positives: int) -> float:
    return float(np.sum(np.diff(hits, prepend=0) * (hits / rows)) / positives)


def _eleven(hits: NDArray[np.int64], rows: NDArray[np.int64], positives: int) -> float:
    precision: FloatArray = hits / rows
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or above
    # The last recall is 1, so that each t is reached.
    first = np.searchsorted(10 * hits, np.arange(11) * positives)
    return float(np.sum(best[first]) / 11)
