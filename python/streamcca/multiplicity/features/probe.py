"""Linear probes: multinomial or multi-label logistic regression on features, by L-BFGS, in blocks of rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import AccuracyWarning, InputError
from streamcca.multiplicity.features.blocks import Features, IntArray, check_finite
from streamcca.multiplicity.features.probe_fit import KEPT_BYTES, Fit, standardized
from streamcca.multiplicity.features.probe_labels import check_present, checked_labels, checked_weights, held_out
from streamcca.views import check_option

Criterion = Literal["loss", "accuracy"]

GRID: tuple[float, ...] = tuple(float(value) for value in np.logspace(-6, 0, 13))
"""Penalties that ``l2='validate'`` tries by default: half decades, for the mean loss over standardized features."""

PENALTY = 1e-3
"""The default penalty, for the mean loss over standardized features; ours."""

KORNBLITH_GRID: tuple[float, ...] = tuple(float(value) for value in np.logspace(-6, 5, 45))
"""45 log-spaced penalties, as many as in Kornblith, Shlens & Le (2019); the ends 1e-6 and 1e5 are from memory."""


@dataclass(frozen=True, repr=False)
class Validation:
    """How the penalty of a probe was chosen.

    Attributes
    ----------
    grid : tuple of float
        Penalties, decreasing: each fit starts from the one before.
    losses, accuracies : tuple of float
        Mean loss (nats) and accuracy on the rows held out.
    converged : tuple of bool
        Whether each fit reached the tolerance.
    chosen : float
        The penalty with the best criterion; of equal ones the largest.
    criterion : 'loss' or 'accuracy'
        What was compared.
    rows : int
        Number of rows held out.
    seed : int
        Of the split.
    """

    grid: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    converged: tuple[bool, ...]
    chosen: float
    criterion: Criterion
    rows: int
    seed: int

    @property
    def at_edge(self) -> bool:
        """Whether the best penalty is the first or last tried, so that a better one may lie outside."""
        return len(self.grid) > 1 and self.chosen in (self.grid[0], self.grid[-1])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self.__dict__.items()}

    def __repr__(self) -> str:
        edge = ", at the edge of the grid" if self.at_edge else ""
        return f"Validation(l2={self.chosen:.3g} of {len(self.grid)} by {self.criterion} on {self.rows} rows{edge})"


@dataclass(frozen=True, eq=False, repr=False)
class LinearProbe:
    """A linear classifier of features, and how it was found.

    Attributes
    ----------
    weights, bias : array (d, C), array (C,)
        Logits are ``(x - center) / scale @ weights + bias``.
    center, scale : array (d,)
        Mean and standard deviation of the training rows (scale 1 for constant columns); 0 and 1 with
        `standardize=False`.
    classes, n : int
        Number of classes C; number of training rows of weight above zero.
    multilabel : bool
        C independent yes-or-no questions instead of one class a row.
    l2 : float
        The penalty: ``l2 / 2 * sum(weights**2)`` is added to the mean loss.
    objective, loss : float
        Penalized and plain mean training loss, in nats (multi-label: summed over classes).
    gradient : float
        Largest entry of the gradient of the objective, by amount.
    tolerance : float
        What it had to fall below.
    iterations, evaluations : int
        Of L-BFGS.
    constant : int
        Columns that do not vary in the training rows: standardized, they are zero and have no weight.
    validation : Validation or None
        How the penalty was chosen, where it was.
    """

    weights: FloatArray
    bias: FloatArray
    center: FloatArray
    scale: FloatArray
    classes: int
    n: int
    multilabel: bool
    l2: float
    objective: float
    loss: float
    gradient: float
    tolerance: float
    iterations: int
    evaluations: int
    constant: int
    validation: Validation | None = None

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.weights)

    @property
    def converged(self) -> bool:
        """Whether the gradient reached the tolerance."""
        return self.gradient <= self.tolerance

    @property
    def note(self) -> str:
        """What speaks against these numbers; empty if nothing does."""
        notes = []
        if not self.converged:
            notes.append(
                f"L-BFGS stopped after {self.iterations} iterations with a gradient of {self.gradient:.2g}, expected "
                f"{self.tolerance:.2g}: give more iterations=, a larger l2=, or a larger tolerance="
            )
        if self.validation is not None and self.validation.at_edge:
            notes.append(f"the best penalty, {self.l2:.3g}, is at the edge of the grid: widen grid=")
        return "; ".join(notes)

    @property
    def coefficients(self) -> FloatArray:
        """Weights (d, C) of the features as they came, not standardized."""
        return self.weights / self.scale[:, None]

    @property
    def intercepts(self) -> FloatArray:
        """Logits (C,) of a row of zeros, as it came."""
        return self.bias - self.center @ self.coefficients

    def predict_logits(self, features: Any) -> FloatArray:
        """Return logits (N, C), float64, of features (N, d)."""
        rows = Features.of(features)
        if rows.width != self.width:
            raise InputError(f"features: got {rows.width} columns, expected {self.width} as the probe was trained on")
        logits = np.empty((rows.n, self.classes))
        for span, block in rows.blocks():
            check_finite(block, span.start)
            logits[span] = standardized(block, self.center, self.scale) @ self.weights + self.bias
        return logits

    def predict(self, features: Any) -> Any:
        """Return the class of the largest logit (N,), the first of equal ones; multi-label: logits above 0 (N, C)."""
        logits = self.predict_logits(features)
        return logits > 0 if self.multilabel else logits.argmax(axis=1)

    def correct(self, features: Any, labels: Any) -> FloatArray:
        """Return what each row scores (N,): 1 for right, 0 for wrong; multi-label: the share of labels right."""
        return scored(self.predict_logits(features), labels, self.multilabel)

    def accuracy(self, features: Any, labels: Any) -> float:
        """Return the share of rows that are right; multi-label: of answers to (row, class)."""
        return float(self.correct(features, labels).mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: everything but the weights and the statistics of the columns."""
        left_out = ("weights", "bias", "center", "scale", "validation")
        plain = {name: value for name, value in self.__dict__.items() if name not in left_out}
        chosen = None if self.validation is None else self.validation.to_dict()
        return {**plain, "width": self.width, "converged": self.converged, "note": self.note, "validation": chosen}

    def __repr__(self) -> str:
        kind = "labels" if self.multilabel else "classes"
        state = f"converged in {self.iterations} iterations" if self.converged else "NOT converged"
        return f"LinearProbe({self.width} features, {self.classes} {kind}, n={self.n}, l2={self.l2:.3g}, {state})"


def scored(logits: FloatArray, labels: Any, multilabel: bool) -> FloatArray:
    """Return what each row of logits scores against the labels: 0 or 1; multi-label: the share of classes right."""
    classes = logits.shape[1]
    targets = checked_labels(labels, len(logits), multilabel, classes)[0]
    if multilabel:
        shares: FloatArray = ((logits > 0) == targets).mean(axis=1)
        return shares
    hits: FloatArray = (logits.argmax(axis=1) == targets).astype(np.float64)
    return hits


def linear_probe(
    features: Any,
    labels: Any,
    *,
    l2: float | Literal["validate"] = PENALTY,
    multilabel: bool = False,
    classes: int | None = None,
    weights: Any = None,
    standardize: bool = True,
    tolerance: float = 1e-6,
    iterations: int = 2000,
    grid: Sequence[float] = GRID,
    validation: float = 0.2,
    criterion: Criterion = "loss",
    seed: int = 0,
    memory: int = KEPT_BYTES,
) -> LinearProbe:
    """Fit multinomial logistic regression to features by L-BFGS.

    Parameters
    ----------
    features : array (n, d), tuple of such arrays side by side, or Features
        In memory or memory-mapped, of any real type; read in blocks of rows, which become float64.
    labels : array (n,) of int, or (n, C) of 0 and 1 with `multilabel`
        Classes 0 to C - 1.
    l2 : float or 'validate'
        Penalty: ``l2 / 2 * sum(weights**2)`` beside the *mean* loss, biases free. This is scikit-learn's
        ``C = 1 / (l2 * n)``, and ``C = 2 / (l2 * n)`` for two classes, of whose two logits it makes one. 'validate'
        takes the value of `grid` that is best on rows held out, then fits all rows.
    multilabel : bool
        C independent logistic regressions, fitted together.
    classes : int, optional
        C, where the labels do not say it; by default the largest label + 1.
    weights : array (n,), optional
        Weights >= 0, counting rows: a row of weight 2 is two rows.
    standardize : bool
        Take out the mean and divide by the standard deviation of the training rows, column by column. Constant columns
        have no weight then.
    tolerance : float
        Largest entry that the gradient of the objective may have at the end. Rounding of the loss ends the search at
        1e-9 to 3e-8 (measured).
    iterations : int
        At most so many iterations of L-BFGS.
    grid, validation, criterion, seed
        For ``l2='validate'``: penalties; share of rows held out, of every class alike; 'loss' or 'accuracy' (coarser:
        equal values go to the largest penalty); seed of the split.
    memory : int
        Bytes. Standardized rows are kept between evaluations if they fit, else formed anew each time; the bits of the
        answer are the same.

    Returns
    -------
    LinearProbe

    Raises
    ------
    InputError, DTypeError, NonFiniteError
        Shapes do not fit, a class has no training row, an option makes no sense, a feature is not finite.

    Warns
    -----
    AccuracyWarning
        The tolerance was not reached.

    Notes
    -----
    The papers (arXiv 2110.12899; Kornblith, Shlens & Le 2019, arXiv 1805.08974) say "L-BFGS"; standardization, the
    default penalty, the default grid and choosing by loss are ours. The objective is strictly convex but for a constant
    added to all biases, so that its optimum does not depend on the start.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((300, 5))
    >>> y = (x @ [2, 1, 0, 0, 0] > 0).astype(int)
    >>> probe = linear_probe(x, y, l2=1e-3)
    >>> probe.converged
    True
    >>> round(probe.accuracy(x, y), 2)
    0.98
    """
    probe = fit_probe(
        features, labels, l2=l2, multilabel=multilabel, classes=classes, weights=weights, standardize=standardize,
        tolerance=tolerance, iterations=iterations, grid=grid, validation=validation, criterion=criterion, seed=seed,
        memory=memory,
    )  # fmt: skip
    if not probe.converged:
        warnings.warn(f"linear_probe: {probe.note}", AccuracyWarning, stacklevel=2)
    return probe


def fit_probe(
    features: Any,
    labels: Any,
    *,
    l2: float | Literal["validate"] = PENALTY,
    multilabel: bool = False,
    classes: int | None = None,
    weights: Any = None,
    grid: Sequence[float] = GRID,
    validation: float = 0.2,
    criterion: Criterion = "loss",
    seed: int = 0,
    **options: Any,
) -> LinearProbe:
    """Do what `linear_probe` does, without a warning: for those who fit many probes and report on all of them."""
    rows = Features.of(features)
    targets, classes = checked_labels(labels, rows.n, multilabel, classes)
    mass = checked_weights(weights, rows.n)
    check_present(targets, mass, classes, multilabel)
    fit = Fit(rows, targets, classes, multilabel, **options)
    if l2 != "validate":
        return _probe(fit, mass, _checked_penalty(l2))
    check_option("criterion", criterion, ("loss", "accuracy"))
    penalties = sorted({_checked_penalty(value) for value in grid}, reverse=True)
    if not penalties:
        raise InputError("grid: got no penalty, expected at least one")
    out = held_out(targets, mass, classes, multilabel, validation, seed)
    chosen = _choose(fit, mass, out, penalties, criterion, seed)
    # Not from where the search ended, so that the probe is that of l2=chosen to the bit.
    return _probe(fit, mass, chosen.chosen, chosen)


def _probe(fit: Fit, mass: FloatArray, l2: float, validation: Validation | None = None) -> LinearProbe:
    blocks = fit.prepared(mass)
    found = fit(blocks, mass, l2)
    weights, bias = fit.split(found.parameters)
    return LinearProbe(
        weights=weights,
        bias=bias,
        center=blocks.center,
        scale=blocks.scale,
        classes=fit.classes,
        n=int(np.count_nonzero(mass)),
        multilabel=fit.multilabel,
        l2=l2,
        objective=found.objective,
        loss=found.loss,
        gradient=found.gradient,
        tolerance=fit.tolerance,
        iterations=found.iterations,
        evaluations=found.evaluations,
        constant=blocks.constant,
        validation=validation,
    )


def _checked_penalty(l2: Any) -> float:
    if isinstance(l2, bool | str) or not np.isscalar(l2) or not 0 < float(l2) < math.inf:  # type: ignore[arg-type]
        raise InputError(
            f"l2: got {l2!r}, expected a number above 0, or 'validate'; without a penalty, rows that can be separated "
            "have no best weights"
        )
    return float(l2)  # type: ignore[arg-type]


def _choose(
    fit: Fit, mass: FloatArray, out: IntArray, penalties: list[float], criterion: Criterion, seed: int
) -> Validation:
    """Fit the other rows with each penalty, the largest first, and compare on those held out."""
    inside, outside = mass.copy(), np.zeros_like(mass)
    inside[out], outside[out] = 0.0, mass[out]
    blocks = fit.prepared(inside)
    losses, accuracies, converged = [], [], []
    start: FloatArray | None = None
    for l2 in penalties:
        found = fit(blocks, inside, l2, start)
        start = found.parameters
        loss, accuracy = fit.judged(blocks, outside, start)
        losses.append(loss)
        accuracies.append(accuracy)
        converged.append(found.gradient <= fit.tolerance)
    worst = losses if criterion == "loss" else [-value for value in accuracies]
    best = min(range(len(penalties)), key=worst.__getitem__)  # the first of equal ones: the largest penalty
    return Validation(
        tuple(penalties),
        tuple(losses),
        tuple(accuracies),
        tuple(converged),
        penalties[best],
        criterion,
        len(out),
        int(seed),
    )
