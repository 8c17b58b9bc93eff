"""The fit of a probe: objective and gradient over blocks of standardized rows, and L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.features.blocks import Features, IntArray, column_statistics

KEPT_BYTES = 256 << 20


class Fitted(NamedTuple):
    """Parameters that L-BFGS found, weights (d, C) before biases (C,), and what they are worth."""

    parameters: FloatArray
    objective: float
    loss: float
    gradient: float
    iterations: int
    evaluations: int


def standardized(block: FloatArray, center: FloatArray, scale: FloatArray) -> FloatArray:
    """Center and scale a block where it lies, and return it."""
    block -= center
    block /= scale
    return block


class Fit:
    """Fits the same rows with other weights and penalties."""

    def __init__(
        self,
        rows: Features,
        targets: Any,
        classes: int,
        multilabel: bool,
        *,
        standardize: bool = True,
        tolerance: float = 1e-6,
        iterations: int = 2000,
        memory: int = KEPT_BYTES,
    ) -> None:
        if not 0 < tolerance < math.inf or isinstance(iterations, bool) or iterations < 1:
            raise InputError(
                f"tolerance, iterations: got {tolerance!r} and {iterations!r}, expected a number above 0 and a count "
                "of at least 1"
            )
        self._of_block = _label_loss if multilabel else _class_loss
        self.rows, self.targets, self.classes, self.multilabel = rows, targets, classes, multilabel
        self.standardize, self.tolerance, self.iterations, self.memory = standardize, tolerance, iterations, memory

    def __call__(self, blocks: Blocks, mass: FloatArray, l2: float, start: FloatArray | None = None) -> Fitted:
        """Fit rows of these weights, from zero or from other parameters."""
        import scipy.optimize

        split = self.rows.width * self.classes
        loss = math.nan

        def evaluate(parameters: FloatArray) -> tuple[float, FloatArray]:
            nonlocal loss
            loss, slope = self.loss_and_slope(parameters, blocks, mass)
            weights = parameters[:split]
            slope[:split] += l2 * weights
            return loss + l2 / 2 * float(weights @ weights), slope

        found = scipy.optimize.minimize(
            evaluate,
            np.zeros(split + self.classes) if start is None else start,
            method="L-BFGS-B",
            jac=True,
            options={
                "gtol": self.tolerance,
                "ftol": 0.0,
                "maxiter": self.iterations,
                "maxfun": 10 * self.iterations + 20,
            },
        )
        objective, slope = evaluate(found.x)
        return Fitted(found.x, objective, loss, float(np.abs(slope).max()), int(found.nit), int(found.nfev) + 1)

    def judged(self, blocks: Blocks, mass: FloatArray, parameters: FloatArray) -> tuple[float, float]:
        """Return the mean loss and the accuracy of parameters on rows of these weights."""
        weights, bias = self.split(parameters)
        loss = right = 0.0
        for span, block in blocks:
            logits, labels, weight = block @ weights + bias, self.targets[span], mass[span]
            hits = ((logits > 0) == labels).mean(axis=1) if self.multilabel else logits.argmax(axis=1) == labels
            right += float(weight @ hits)
            loss += float(weight @ self._of_block(logits, labels)[0])
        return loss / float(mass.sum()), right / float(mass.sum())

    def split(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return views of the weights (d, C) and the biases (C,)."""
        count = self.rows.width * self.classes
        return parameters[:count].reshape(-1, self.classes), parameters[count:]

    def prepared(self, mass: FloatArray) -> Blocks:
        """Return the standardized rows, by the statistics of those with weight."""
        return Blocks(self.rows, mass, self.standardize, self.memory)

    def loss_and_slope(self, parameters: FloatArray, blocks: Blocks, mass: FloatArray) -> tuple[float, FloatArray]:
        """Return the mean loss and its gradient."""
        weights, bias = self.split(parameters)
        loss, slope = 0.0, np.zeros_like(parameters)
        weight_slope, bias_slope = self.split(slope)
        for span, block in blocks:
            losses, residual = self._of_block(block @ weights + bias, self.targets[span])
            weight = mass[span]
            loss += float(weight @ losses)
            residual *= weight[:, None]
            weight_slope += block.T @ residual
            bias_slope += residual.sum(axis=0)
        total = float(mass.sum())
        slope /= total
        return loss / total, slope


class Blocks:
    """Standardized rows in blocks, kept in memory where they fit."""

    def __init__(self, rows: Features, mass: FloatArray, standardize: bool, memory: int) -> None:
        self.rows = rows
        mean, deviation = column_statistics(rows, mass)
        varies = deviation > np.finfo(np.float64).tiny
        self.constant = int(np.count_nonzero(~varies))
        self.center = mean if standardize else np.zeros(rows.width)
        self.scale = np.where(varies, deviation, 1.0) if standardize else np.ones(rows.width)
        self._kept = list(self._formed()) if 8 * rows.n * rows.width <= memory else None

    def _formed(self) -> Iterator[tuple[slice, FloatArray]]:
        for span, block in self.rows.blocks():
            yield span, standardized(block, self.center, self.scale)

    def __iter__(self) -> Iterator[tuple[slice, FloatArray]]:
        return self._formed() if self._kept is None else iter(self._kept)


def _class_loss(logits: FloatArray, labels: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return -log softmax of the label's logit (b,) and its slope in the logits (b, C); `logits` is overwritten."""
    which = np.arange(len(labels))
    logits -= logits.max(axis=1, keepdims=True)
    of_label = logits[which, labels]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1)
    logits /= total[:, None]
    logits[which, labels] -= 1.0
    return np.log(total) - of_label, logits


def _label_loss(logits: FloatArray, labels: Any) -> tuple[FloatArray, FloatArray]:
    """Return the sum over labels of -log of the probability of the right answer (b,), and its slope (b, C)."""
    import scipy.special

    losses = np.logaddexp(0.0, np.where(labels, -logits, logits)).sum(axis=1)
    return losses, scipy.special.expit(logits) - labels
