"""Ensembles of differently trained models: pairs, all pairs, and greedy growth (arXiv 2110.12899)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.answers.greedy import GreedyEnsemble, greedy_ensemble
from streamcca.multiplicity.answers.intervals import Interval, or_none, percentiles, wilson
from streamcca.multiplicity.answers.predictions import IntArray, Predictions, Rule, block_kind, needs_models
from streamcca.multiplicity.checks import checked_level

__all__ = [
    "AllPairEnsembles",
    "GreedyEnsemble",
    "PairEnsemble",
    "Rule",
    "all_pair_ensembles",
    "greedy_ensemble",
    "pair_ensemble",
]

_QUANTITIES = ("accuracy", "improvement_mean", "improvement_best", "inconsistency", "conversion")


@dataclass(frozen=True, repr=False)
class PairEnsemble:
    """What two models gain by answering together.

    Attributes
    ----------
    a, b : str
    rule : {'probability', 'logit', 'geometric'}
    n : int
    counts : tuple, 2 x 2 x 2 of int
        Rows by whether a is right, b is right, the ensemble is right (0: wrong, 1: right). All that follows is formed
        from these numbers, so that the decomposition is exact: right rows = counts[1][1][1] + (counts[1][0][1] +
        counts[0][1][1]) + counts[0][0][1].
    accuracy_a, accuracy_b, accuracy : float
        Of the models, and of the ensemble.
    improvement_mean, improvement_best : float
        The ensemble's accuracy less the mean, and less the larger, of the models' accuracies.
    inconsistency : float
        Error inconsistency EI: share of rows on which exactly one model is right.
    conversion : float or None
        Share of these that the ensemble gets right; None if there are none.
    both_right, both_wrong : float
        P(both right, ensemble right) and P(both wrong, ensemble right): accuracy = both_right + inconsistency *
        conversion + both_wrong.
    intervals : mapping of str to (float, float) or None
        Of shares (accuracy, inconsistency, conversion) Wilson's, of the conversion given how many rows are
        inconsistent; of improvement_mean and improvement_best percentiles of a bootstrap over rows. The best member is
        found anew in each draw, so that of equally good models the interval of improvement_best reaches further down.
    level : float
        Of the intervals.
    """

    a: str
    b: str
    rule: Rule
    n: int
    counts: tuple[tuple[tuple[int, int], ...], ...]
    accuracy_a: float
    accuracy_b: float
    accuracy: float
    improvement_mean: float
    improvement_best: float
    inconsistency: float
    conversion: float | None
    both_right: float
    both_wrong: float
    level: float
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            **vars(self),
            "counts": np.array(self.counts).tolist(),
            "intervals": {key: None if pair is None else list(pair) for key, pair in self.intervals.items()},
        }

    def table(self) -> str:
        """Return a line for each quantity with its interval."""
        lines = [f"{self.a} and {self.b}, mean of {_MEANS[self.rule]}, n = {self.n}, intervals of {self.level:.0%}"]
        for key in _QUANTITIES:
            value, pair = getattr(self, key), self.intervals[key]
            told = "none" if value is None else f"{value:9.4f}"
            lines.append(f"{key:<18}{told}" + ("" if pair is None else f"  [{pair[0]:.4f}, {pair[1]:.4f}]"))
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return one line."""
        conversion = "none" if self.conversion is None else f"{self.conversion:.3f}"
        return (
            f"PairEnsemble({self.a!r} {self.accuracy_a:.4f} and {self.b!r} {self.accuracy_b:.4f}: {self.accuracy:.4f} "
            f"by {self.rule}, EI {self.inconsistency:.4f}, conversion {conversion}, n = {self.n})"
        )


_MEANS = {"probability": "probabilities", "logit": "logits", "geometric": "log-probabilities"}


def pair_ensemble(
    predictions: Predictions,
    a: str,
    b: str,
    rule: Rule = "probability",
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> PairEnsemble:
    """Let two models answer together.

    Parameters
    ----------
    predictions : Predictions
        With labels; calibrated, if models are not to be weighed by how sure they happen to sound.
    a, b : str
    rule : {'probability', 'logit', 'geometric'}
        Mean of the probabilities (softmax of logits / temperature), of the logits / temperature, or geometric mean of
        the probabilities, normalized. Of ties the lowest class wins. The latter two always vote alike, as
        log-probabilities are logits less a number that is the same for all classes; both names are kept, as their
        probabilities are the same too, and papers use either.
    level : float
        Of the intervals.
    draws, seed : int
        Of the bootstrap over rows: draws of `counts` from the multinomial law with the shares that were found, which is
        what resampling rows does to them.

    Returns
    -------
    PairEnsemble

    Raises
    ------
    InputError
        If a model is unknown, both are the same, or there are no labels.

    Notes
    -----
    Gontijo-Lopes, Dauphin and Cubuk (arXiv 2110.12899): error inconsistency, improvement, conversion rate.
    The paper does not say which mean it takes; the default is ours. A model with an infinitely sharp temperature
    overrules any other under 'logit', but has one vote under 'probability'.

    Examples
    --------
    >>> p = Predictions.of_logits({"a": [[3, 0], [0, 1.0]], "b": [[0, 1.0], [0, 1]]}, labels=[0, 1])
    >>> found = pair_ensemble(p, "a", "b")
    >>> found.accuracy, found.inconsistency, found.conversion
    (1.0, 0.5, 1.0)
    """
    kind = block_kind(rule)
    level = checked_level(level)
    labels = predictions.known_labels
    if predictions.index(a) == predictions.index(b):
        raise InputError(f"pair_ensemble: got {a!r} twice, expected two models")
    pair = predictions.select([a, b])
    right_a, right_b = pair.correct
    counts = np.zeros(8, dtype=np.int64)
    for where, block in pair.blocks(kind=kind):
        right = np.argmax(block[0] + block[1], axis=1) == labels[where]
        counts += np.bincount(4 * right_a[where] + 2 * right_b[where] + right, minlength=8)
    cube = counts.reshape(2, 2, 2)
    found = _quantities(cube)
    inconsistent = int(cube[1, 0].sum() + cube[0, 1].sum())
    drawn = _quantities(
        np.random.default_rng(seed).multinomial(pair.n, counts / pair.n, size=draws).reshape(-1, 2, 2, 2)
    )
    return PairEnsemble(
        a=a,
        b=b,
        rule=rule,
        n=pair.n,
        counts=tuple(tuple((int(one[0]), int(one[1])) for one in side) for side in cube),
        accuracy_a=float(cube[1].sum() / pair.n),
        accuracy_b=float(cube[:, 1].sum() / pair.n),
        both_right=float(cube[1, 1, 1] / pair.n),
        both_wrong=float(cube[0, 0, 1] / pair.n),
        level=level,
        intervals={
            "accuracy": wilson(int(cube[..., 1].sum()), pair.n, level),
            "improvement_mean": percentiles(drawn["improvement_mean"], level),
            "improvement_best": percentiles(drawn["improvement_best"], level),
            "inconsistency": wilson(inconsistent, pair.n, level),
            "conversion": wilson(int(cube[1, 0, 1] + cube[0, 1, 1]), inconsistent, level) if inconsistent else None,
        },
        accuracy=float(found["accuracy"]),
        improvement_mean=float(found["improvement_mean"]),
        improvement_best=float(found["improvement_best"]),
        inconsistency=float(found["inconsistency"]),
        conversion=or_none(found["conversion"]),
    )


def _quantities(counts: IntArray) -> dict[str, FloatArray]:
    """Quantities of counts (..., 2, 2, 2); the conversion is NaN where nothing is inconsistent."""
    n = counts.sum(axis=(-3, -2, -1))
    a, b = counts[..., 1, :, :].sum(axis=(-2, -1)), counts[..., :, 1, :].sum(axis=(-2, -1))
    right = counts[..., 1].sum(axis=(-2, -1))
    inconsistent = counts[..., 1, 0, :].sum(axis=-1) + counts[..., 0, 1, :].sum(axis=-1)
    converted = counts[..., 1, 0, 1] + counts[..., 0, 1, 1]
    return {
        "accuracy": right / n,
        "improvement_mean": (2 * right - a - b) / (2 * n),
        "improvement_best": (right - np.maximum(a, b)) / n,
        "inconsistency": inconsistent / n,
        "conversion": np.where(inconsistent > 0, converted / np.maximum(inconsistent, 1), np.nan),
    }


# ---------------------------------------------------------------------- all pairs


@dataclass(frozen=True, eq=False, repr=False)
class AllPairEnsembles:
    """Ensembles of every two of M models; see `PairEnsemble` for what the numbers are.

    Attributes
    ----------
    name : str
        Of the test set.
    names : tuple of str
    rule : {'probability', 'logit', 'geometric'}
    n : int
    accuracy, improvement_mean, improvement_best, inconsistency, conversion : array (M, M)
        Symmetric. The diagonal is the model itself. The conversion is NaN (None in `to_dict`) where EI is 0.
    """

    name: str
    names: tuple[str, ...]
    rule: Rule
    n: int
    accuracy: FloatArray
    improvement_mean: FloatArray
    improvement_best: FloatArray
    inconsistency: FloatArray
    conversion: FloatArray

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        arrays = {key: [[or_none(one) for one in row] for row in getattr(self, key)] for key in _QUANTITIES}
        return {"name": self.name, "names": list(self.names), "rule": self.rule, "n": self.n, **arrays}

    def __repr__(self) -> str:
        """Return one line."""
        pairs = np.triu_indices(len(self.names), 1)
        gain = self.improvement_mean[pairs]
        return (
            f"AllPairEnsembles({self.name!r}, {len(self.names)} models by {self.rule}, improvement over the mean "
            f"{gain.min():.4f} to {gain.max():.4f}, n = {self.n})"
        )


def all_pair_ensembles(
    predictions: Predictions, rule: Rule = "probability", *, rows: int | None = None
) -> AllPairEnsembles:
    """Let every two models answer together; one pass over the rows, in blocks.

    Parameters
    ----------
    predictions : Predictions
        Of two or more models, with labels.
    rule
        See `pair_ensemble`.
    rows : int, optional
        Rows of a block.

    Examples
    --------
    >>> p = Predictions.of_logits({"a": [[3, 0], [0, 1.0]], "b": [[0, 1.0], [0, 1]]}, labels=[0, 1])
    >>> all_pair_ensembles(p).accuracy.tolist()
    [[1.0, 1.0], [1.0, 0.5]]
    """
    needs_models(predictions, 2, "all_pair_ensembles")
    labels, correct, models = predictions.known_labels, predictions.correct, len(predictions)
    right = np.zeros((models, models), dtype=np.int64)
    converted, inconsistent = right.copy(), right.copy()
    for where, block in predictions.blocks(rows, block_kind(rule)):
        known = correct[:, where]
        for i in range(models - 1):
            together = np.argmax(block[i + 1 :] + block[i], axis=2) == labels[where]
            differ = known[i + 1 :] != known[i]
            right[i, i + 1 :] += np.count_nonzero(together, axis=1)
            converted[i, i + 1 :] += np.count_nonzero(together & differ, axis=1)
            inconsistent[i, i + 1 :] += np.count_nonzero(differ, axis=1)
    right, converted, inconsistent = (half + half.T for half in (right, converted, inconsistent))
    alone = np.count_nonzero(correct, axis=1)
    np.fill_diagonal(right, alone)
    n = predictions.n
    return AllPairEnsembles(
        name=predictions.name,
        names=predictions.names,
        rule=rule,
        n=n,
        accuracy=right / n,
        improvement_mean=(2 * right - alone[:, None] - alone) / (2 * n),
        improvement_best=(right - np.maximum(alone[:, None], alone)) / n,
        inconsistency=inconsistent / n,
        conversion=np.where(inconsistent > 0, converted / np.maximum(inconsistent, 1), np.nan),
    )
