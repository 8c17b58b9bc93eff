"""Whether two models err on the same rows, and who is surer where (arXiv 2110.12899; Geirhos et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from streamcca._backend import FloatArray
from streamcca.errors import DTypeError, InputError
from streamcca.multiplicity.answers.intervals import Interval, or_none, percentiles, wilson
from streamcca.multiplicity.answers.predictions import BoolArray
from streamcca.multiplicity.checks import checked_level

OUTCOMES = ("both right", "only a", "only b", "both wrong")


@dataclass(frozen=True, repr=False)
class ErrorInconsistency:
    """How often exactly one of two models is right, beside what their accuracies allow and what chance would give.

    Attributes
    ----------
    n : int
    both_right, only_a, only_b, both_wrong : int
        Rows.
    accuracy_a, accuracy_b : float
    inconsistency : float
        (only_a + only_b) / n. Two wrong answers count as consistent, whether equal or not.
    interval : (float, float)
        Of the inconsistency, Wilson's.
    lower_bound, upper_bound : float
        |a1 - a2| and min(a1 + a2, 2 - a1 - a2): what the accuracies allow.
    independent : float
        a1 (1 - a2) + a2 (1 - a1): what models would show that err independently of each other.
    kappa : float or None
        Geirhos' error consistency: (1 - inconsistency - c) / (1 - c) with c = 1 - independent; Cohen's kappa of being
        right. 1: err alike, 0: err independently. None if both models are right, or wrong, everywhere.
    kappa_interval : (float, float) or None
    level : float
    """

    n: int
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    accuracy_a: float
    accuracy_b: float
    inconsistency: float
    interval: Interval
    lower_bound: float
    upper_bound: float
    independent: float
    kappa: float | None
    kappa_interval: Interval | None
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        pairs = {
            "interval": list(self.interval),
            "kappa_interval": None if self.kappa_interval is None else list(self.kappa_interval),
        }
        return {**vars(self), **pairs}

    def __repr__(self) -> str:
        """Return one line."""
        kappa = "none" if self.kappa is None else f"{self.kappa:.3f}"
        return (
            f"ErrorInconsistency({self.inconsistency:.4f} [{self.interval[0]:.4f}, {self.interval[1]:.4f}], "
            f"independent {self.independent:.4f}, kappa {kappa}, accuracies {self.accuracy_a:.4f} and "
            f"{self.accuracy_b:.4f}, n = {self.n})"
        )


def error_inconsistency(
    correct_a: ArrayLike, correct_b: ArrayLike, level: float = 0.95, *, draws: int = 4000, seed: int = 0
) -> ErrorInconsistency:
    """Compare on which rows two models are right.

    Parameters
    ----------
    correct_a, correct_b : array_like (N,) of bool
        Whether each model is right, such as rows of `Predictions.correct`.
    level : float
        Of the intervals.
    draws, seed : int
        Of the interval of kappa.

    Returns
    -------
    ErrorInconsistency

    Raises
    ------
    InputError, DTypeError
        If these are not two equally long vectors of booleans, or the level is none.

    Notes
    -----
    Gontijo-Lopes, Dauphin and Cubuk (arXiv 2110.12899); kappa: Geirhos, Meding and Wichmann (2020). The
    interval of kappa is ours: quantiles of kappa under the posterior of the 2 x 2 shares, Dirichlet with Jeffreys'
    prior (half a row more in each cell). Chosen by its coverage at a level of 95 % (1000 to 2000 tables each), beside
    that of the delta method (Fleiss, Cohen and Everitt 1969) and the percentile bootstrap, which shrink to a point
    where errors are few:

    ========================================  =========  ======  =========
    both accuracies, kappa, n                 posterior  delta   bootstrap
    ========================================  =========  ======  =========
    0.97, 0.95, 500                           0.950      0.762   0.759
    0.95, 0.90, 200                           0.945      0.841   0.834
    0.97, 0.30, 500                           0.929      0.892   0.907
    0.80, 0.50, 200                           0.935      0.938   0.939
    0.97, 0.60, 5000                          0.943      0.946   0.943
    ========================================  =========  ======  =========

    Rows are taken as independent. Kappa compares pairs of other accuracies more fairly than the inconsistency does,
    whose bounds depend on them.

    Examples
    --------
    >>> found = error_inconsistency([True, True, False, True], [True, False, True, True])
    >>> found.inconsistency, found.lower_bound, found.upper_bound, round(found.kappa, 4)
    (0.5, 0.0, 0.5, -0.3333)
    """
    level = checked_level(level)
    a, b = _checked_correct("correct_a", correct_a), _checked_correct("correct_b", correct_b)
    if len(a) != len(b):
        raise InputError(f"error_inconsistency: got {len(a)} and {len(b)} rows, expected the same rows for both models")
    n = len(a)
    both, only_a = int(np.count_nonzero(a & b)), int(np.count_nonzero(a & ~b))
    only_b, neither = int(np.count_nonzero(b & ~a)), int(np.count_nonzero(~(a | b)))
    right_a, right_b = both + only_a, both + only_b
    shares = np.random.default_rng(seed).dirichlet(np.array([both, only_a, only_b, neither]) + 0.5, size=draws)
    kappa = or_none(_kappa(np.array([both, only_a, only_b, neither], dtype=np.float64)))
    return ErrorInconsistency(
        n=n,
        both_right=both,
        only_a=only_a,
        only_b=only_b,
        both_wrong=neither,
        accuracy_a=right_a / n,
        accuracy_b=right_b / n,
        inconsistency=(only_a + only_b) / n,
        interval=wilson(only_a + only_b, n, level),
        lower_bound=abs(right_a - right_b) / n,
        upper_bound=min(right_a + right_b, 2 * n - right_a - right_b) / n,
        independent=(right_a * (n - right_b) + right_b * (n - right_a)) / n**2,
        kappa=kappa,
        kappa_interval=None if kappa is None else percentiles(_kappa(shares), level),
        level=level,
    )


def _kappa(cells: FloatArray) -> FloatArray:
    """Return Cohen's kappa of cells (..., 4): both right, only a, only b, both wrong; NaN where it is undefined."""
    both, only_a, only_b, neither = np.moveaxis(cells, -1, 0)
    # (p_o - p_e) / (1 - p_e), both multiplied by n^2: small differences are formed without cancellation.
    beyond = 2 * (both * neither - only_a * only_b)
    rest = (both + only_a) * (only_a + neither) + (both + only_b) * (only_b + neither)
    kappa: FloatArray = np.where(rest > 0, beyond / np.where(rest > 0, rest, 1), np.nan)
    return kappa


def _checked_correct(name: str, correct: ArrayLike) -> BoolArray:
    array = np.asarray(correct)
    if array.dtype != np.bool_:
        raise DTypeError(f"{name}: got {array.dtype}, expected booleans: whether the model is right on each row")
    if array.ndim != 1 or not len(array):
        raise InputError(f"{name}: got shape {array.shape}, expected (rows,) with at least one row")
    return array


# ---------------------------------------------------------------------- specialization


@dataclass(frozen=True, eq=False, repr=False)
class Specialization:
    """Which of two models is surer, and where.

    Attributes
    ----------
    n : int
    edges : array (bins + 1,)
        Of the histogram, in degrees, from -45 to 45.
    counts : mapping of str to array (bins,)
        Rows by angle, for each of 'both right', 'only a', 'only b', 'both wrong'. A bin holds its left edge, the last
        both.
    means : mapping of str to float or None
        Mean angle for each outcome; None where there are no rows.
    rows : mapping of str to int
    mean : float
        Mean angle of all rows; positive: a is surer.
    class_means : tuple of float or None; or None
        Mean angle of the rows of each true class, where labels were given.
    class_rows : tuple of int, or None
    """

    n: int
    edges: FloatArray
    counts: Mapping[str, np.ndarray[Any, Any]]
    means: Mapping[str, float | None]
    rows: Mapping[str, int]
    mean: float
    class_means: tuple[float | None, ...] | None = field(default=None)
    class_rows: tuple[int, ...] | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            **vars(self),
            "edges": self.edges.tolist(),
            "counts": {key: counts.tolist() for key, counts in self.counts.items()},
            "means": dict(self.means),
            "rows": dict(self.rows),
            "class_means": None if self.class_means is None else list(self.class_means),
            "class_rows": None if self.class_rows is None else list(self.class_rows),
        }

    def __repr__(self) -> str:
        """Return one line."""
        told = ", ".join(f"{key} {mean:+.2f}" for key, mean in self.means.items() if mean is not None)
        return f"Specialization(mean angle {self.mean:+.2f} degrees; {told}; n = {self.n})"


def specialization(
    prob_a: ArrayLike,
    prob_b: ArrayLike,
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    bins: int = 36,
) -> Specialization:
    """Say which of two models is surer on each row: the angle in the plane of their confidences.

    theta = atan2(confidence of a, confidence of b) - 45 degrees, the confidence being the largest (calibrated)
    probability: 0 where both are equally sure, positive where a is surer.

    Parameters
    ----------
    prob_a, prob_b : array_like (N, C), or (N,)
        Probabilities of all classes, or the largest.
    correct_a, correct_b : array_like (N,) of bool
    labels : array_like (N,) of int, optional
        True classes, for means over the rows of each.
    bins : int
        Of the histogram; 2.5 degrees each by default.

    Returns
    -------
    Specialization

    Notes
    -----
    arXiv 2110.12899 draws the angle without a formula in the text known to us: this one is ours.

    Examples
    --------
    >>> found = specialization([0.9, 0.5], [0.9, 1.0], [True, False], [True, True])
    >>> round(found.means["both right"], 6) + 0, round(found.means["only b"], 2), found.means["only a"]
    (0.0, -18.43, None)
    """
    a, b = _checked_correct("correct_a", correct_a), _checked_correct("correct_b", correct_b)
    first, second = _confidences("prob_a", prob_a, len(a)), _confidences("prob_b", prob_b, len(a))
    if len(b) != len(a):
        raise InputError(f"specialization: got {len(a)} and {len(b)} rows, expected the same rows for both models")
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise InputError(f"bins: got {bins!r}, expected a number of bins, at least 1")
    theta = np.degrees(np.arctan2(first, second)) - 45
    edges = np.linspace(-45, 45, bins + 1)
    parts = {"both right": a & b, "only a": a & ~b, "only b": b & ~a, "both wrong": ~(a | b)}
    class_means, class_rows = (None, None) if labels is None else _by_class(theta, labels)
    return Specialization(
        n=len(a),
        edges=edges,
        counts={key: np.histogram(theta[part], edges)[0] for key, part in parts.items()},
        means={key: float(theta[part].mean()) if part.any() else None for key, part in parts.items()},
        rows={key: int(np.count_nonzero(part)) for key, part in parts.items()},
        mean=float(theta.mean()),
        class_means=class_means,
        class_rows=class_rows,
    )


def _confidences(name: str, probabilities: ArrayLike, n: int) -> FloatArray:
    array = np.asarray(probabilities, dtype=np.float64)
    if array.ndim not in (1, 2) or len(array) != n or array.shape[-1] == 0:
        raise InputError(f"{name}: got shape {array.shape}, expected ({n}, classes) or ({n},)")
    if not (np.all(array >= 0) and np.all(array <= 1 + 1e-9)):
        raise InputError(f"{name}: got numbers outside [0, 1], expected probabilities")
    top = array if array.ndim == 1 else array.max(axis=1)
    if not np.all(top > 0):
        raise InputError(f"{name}: row {int(np.argmin(top))} gives every class the probability 0; expected a softmax")
    return top


def _by_class(theta: FloatArray, labels: ArrayLike) -> tuple[tuple[float | None, ...], tuple[int, ...]]:
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != theta.shape or array.min() < 0:
        raise InputError(f"labels: got {array.dtype} of shape {array.shape}, expected {theta.shape} integers from 0")
    rows = np.bincount(array)
    sums = np.bincount(array, weights=theta)
    means = tuple(float(total / count) if count else None for total, count in zip(sums, rows, strict=True))
    return means, tuple(int(count) for count in rows)
