"""Temperature scaling (Guo et al. 2017), and how well probabilities are calibrated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.answers.logit_files import checked_logits
from streamcca.multiplicity.answers.predictions import IntArray, checked_labels
from streamcca.views import check_option

Bins = Literal["width", "mass"]

_BLOCK_BYTES = 16 << 20
_STEPS = 200  # bisection alone, in log b, needs about 35
_FEW = 1e-9
_LEAST = -1e150  # the square of a logit's distance to the largest is a number


@dataclass(frozen=True, repr=False)
class TemperatureScaling:
    """The temperature that minimizes the negative log-likelihood of labels, and what it did to the probabilities.

    Attributes
    ----------
    temperature : float
    at_bound : {'lower', 'upper'} or None
        Set where the likelihood has no maximum between the bounds: 'lower' if it still rises towards T = 0 (every row
        right, or all but equally so), 'upper' if it still rises towards flat probabilities.
    nll_before, nll_after : float
        Mean negative log-likelihood of the labels, in nats, at T = 1 and at `temperature`; it never rises.
    brier_before, brier_after : float
        Mean over rows of sum_c (p_c - [y = c])^2, between 0 and 2.
    ece_before, ece_after : float
        Expected calibration error, see `expected_calibration_error`; may rise, as it is not what is minimized.
    accuracy : float
        The same before and after.
    iterations : int
    n, classes : int
    """

    temperature: float
    at_bound: Literal["lower", "upper"] | None
    nll_before: float
    nll_after: float
    brier_before: float
    brier_after: float
    ece_before: float
    ece_after: float
    accuracy: float
    iterations: int
    n: int
    classes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return dict(vars(self))

    def __repr__(self) -> str:
        """Return one line."""
        bound = "" if self.at_bound is None else f" (at the {self.at_bound} bound)"
        return (
            f"TemperatureScaling(T = {self.temperature:.4g}{bound}, NLL {self.nll_before:.4f} to {self.nll_after:.4f}, "
            f"ECE {self.ece_before:.4f} to {self.ece_after:.4f}, n = {self.n})"
        )


def temperature_scaling(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bounds: tuple[float, float] = (1e-3, 1e3),
    bins: int = 15,
    bin_kind: Bins = "width",
) -> TemperatureScaling:
    """Find the temperature T > 0 for which softmax(logits / T) gives labels the largest likelihood.

    Parameters
    ----------
    logits : array_like (N, C)
        Of rows that the model was not trained on, and that it will not be judged on.
    labels : array_like (N,) of int
    bounds : tuple of float
        Least and largest temperature; they contain 1. Where the rows are separated (each label has the largest logit)
        the likelihood rises up to T = 0, and the least one is returned, and told by `at_bound`.
    bins, bin_kind
        Of the expected calibration error.

    Returns
    -------
    TemperatureScaling

    Raises
    ------
    InputError
        If shapes do not fit, a label is out of range, bounds do not contain 1, or logits are not finite.

    Notes
    -----
    Guo, Pleiss, Sun and Weinberger (2017), section 4.2. The mean negative log-likelihood is convex in b = 1 / T (a
    log-sum-exp of linear functions, less one), so Newton's method in b is used, inside a bracket that halves (in log b)
    where Newton leaves it; float64. Where rounding would leave the result worse than T = 1, it is 1.

    Examples
    --------
    >>> rows = [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]
    >>> found = temperature_scaling(rows, [0, 0, 1, 1])  # 3 of 4 right: logits should be log 3 apart
    >>> round(found.temperature * float(np.log(3)), 12), found.at_bound
    (2.0, None)
    """
    array = checked_logits("temperature_scaling", logits)
    y = checked_labels(labels, *array.shape)
    low, high = bounds
    if not (0 < low <= 1 <= high < math.inf):
        raise InputError(f"bounds: got {bounds!r}, expected 0 < least <= 1 <= largest, both finite")
    inverse, at_bound, iterations = _minimize(array, y, 1 / high, 1 / low)
    before = _nll(array, y, 1.0)
    after = _nll(array, y, inverse)
    if after > before:
        inverse, after, at_bound = 1.0, before, None
    votes = np.argmax(array, axis=1)
    first, second = (_confidence(array, y, votes, b) for b in (1.0, inverse))
    correct = votes == y
    return TemperatureScaling(
        temperature=1 / inverse,
        at_bound=at_bound,
        nll_before=before,
        nll_after=after,
        brier_before=first[1],
        brier_after=second[1],
        ece_before=calibration_error(first[0], correct, bins, bin_kind),
        ece_after=calibration_error(second[0], correct, bins, bin_kind),
        accuracy=float(np.mean(correct)),
        iterations=iterations,
        n=len(array),
        classes=array.shape[1],
    )


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, bin_kind: Bins = "width"
) -> float:
    """Mean over rows of |accuracy - mean confidence| of the bin that a row's confidence falls into (Guo et al. 2017).

    Parameters
    ----------
    probabilities : array_like (N, C)
    labels : array_like (N,) of int
    bins : int
    bin_kind : {'width', 'mass'}
        'width': (0, 1/bins], (1/bins, 2/bins] ...; 'mass': as many rows in each (rows in the order of their confidence,
        ties in the order of the rows; numbers differ by one at most).

    Examples
    --------
    >>> expected_calibration_error([[0.75, 0.25]] * 4, [0, 0, 0, 1])
    0.0
    """
    p, y = checked_probabilities(probabilities, labels)
    return calibration_error(p.max(axis=1), np.argmax(p, axis=1) == y, bins, bin_kind)


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean over rows of sum_c (p_c - [y = c])^2, between 0 and 2 (Brier 1950).

    Examples
    --------
    >>> brier_score([[1.0, 0.0], [0.5, 0.5]], [0, 0])
    0.25
    """
    p, y = checked_probabilities(probabilities, labels)
    return float(np.mean(_brier(p, y)))


def calibration_error(confidence: FloatArray, correct: NDArray[np.bool_], bins: int, bin_kind: Bins) -> float:
    """Form the expected calibration error from the confidence and rightness of each row (N,)."""
    check_option("bin_kind", bin_kind, ("width", "mass"))
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise InputError(f"bins: got {bins!r}, expected a number of bins, at least 1")
    n = len(confidence)
    if bin_kind == "width":
        place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    else:
        place = np.empty(n, dtype=np.int64)
        place[np.argsort(confidence, kind="stable")] = np.arange(n) * bins // n
    surplus = np.bincount(place, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.sum(np.abs(surplus)) / n)


def checked_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Return probabilities (N, C) and labels (N,), or refuse them."""
    p = checked_logits("probabilities", probabilities).astype(np.float64)
    if p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise InputError("probabilities: some are negative, or a row does not sum to 1; expected softmax of logits")
    return p, checked_labels(labels, *p.shape)


# ---------------------------------------------------------------------- inside


def _minimize(
    logits: NDArray[Any], labels: IntArray, low: float, high: float
) -> tuple[float, Literal["lower", "upper"] | None, int]:
    """Minimize the NLL over b = 1 / T in [low, high]: b, which bound of T it stands at, and iterations."""
    if np.all(logits == logits[:, :1]):
        return 1.0, None, 0  # every temperature gives the same
    # 0 is underflow: so far beyond separation that float64 has no digits left, unless the optimum is the bound itself.
    if _slope(logits, labels, high)[0] <= 0:
        return high, "lower", 0
    if _slope(logits, labels, low)[0] >= 0:
        return low, "upper", 0
    slope, curvature = _slope(logits, labels, 1.0)
    b = 1.0
    for step in range(1, _STEPS + 1):
        if slope < 0:
            low = b
        else:
            high = b
        moved = b - slope / curvature if curvature > 0 else math.nan
        # Newton's error is about the square of its last step, until rounding.
        if slope == 0 or abs(moved - b) <= _FEW * b:
            return (b if slope == 0 else min(max(moved, low), high)), None, step
        b = moved if low < moved < high else math.sqrt(low * high)
        slope, curvature = _slope(logits, labels, b)
    return b, None, _STEPS


def _blocks(logits: NDArray[Any], labels: IntArray) -> Iterator[tuple[FloatArray, IntArray]]:
    """Go through rows, less their maximum."""
    step = max(1, _BLOCK_BYTES // (8 * logits.shape[1]))
    for first in range(0, len(logits), step):
        z = logits[first : first + step].astype(np.float64)
        with np.errstate(over="ignore"):
            z -= z.max(axis=1, keepdims=True)
        yield np.maximum(z, _LEAST), labels[first : first + step]


def _nll(logits: NDArray[Any], labels: IntArray, b: float) -> float:
    total = 0.0
    for z, y in _blocks(logits, labels):
        total += float(np.sum(np.log(np.exp(b * z).sum(axis=1)) - b * z[np.arange(len(y)), y]))
    return total / len(logits)


def _slope(logits: NDArray[Any], labels: IntArray, b: float) -> tuple[float, float]:
    """First and second derivative of the mean NLL by b: mean of E z - z_y, and of Var z."""
    slope = curvature = 0.0
    for z, y in _blocks(logits, labels):
        p = np.exp(b * z)
        p /= p.sum(axis=1, keepdims=True)
        mean = np.einsum("nc,nc->n", p, z)
        slope += float(np.sum(mean - z[np.arange(len(y)), y]))
        curvature += float(np.einsum("nc,nc->", p, (z - mean[:, None]) ** 2))
    return slope / len(logits), curvature / len(logits)


def _brier(p: FloatArray, labels: IntArray) -> FloatArray:
    gaps = p.copy()
    gaps[np.arange(len(labels)), labels] -= 1
    squares: FloatArray = np.einsum("nc,nc->n", gaps, gaps)
    return squares


def _confidence(logits: NDArray[Any], labels: IntArray, votes: IntArray, b: float) -> tuple[FloatArray, float]:
    """Probability of each row's vote, and the Brier score."""
    confidences, brier = [], 0.0
    for z, y in _blocks(logits, labels):
        p = np.exp(b * z)
        p /= p.sum(axis=1, keepdims=True)
        confidences.append(p.max(axis=1))
        brier += float(np.sum(_brier(p, y)))
    return np.concatenate(confidences), brier / len(logits)
