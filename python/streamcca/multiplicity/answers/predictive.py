"""Predictive multiplicity: by how much the answers of equally good models differ, on one test set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.answers.contested import ContestedRow, ContestedRows, contested_rows
from streamcca.multiplicity.answers.predictions import IntArray, Predictions, needs_models, vote_counts
from streamcca.multiplicity.answers.row_means import RowMeans
from streamcca.views import check_option

__all__ = [
    "ContestedRow",
    "ContestedRows",
    "PredictiveMultiplicity",
    "contested_rows",
    "disagreements",
    "error_inconsistencies",
    "predictive_multiplicity",
    "probability_distances",
]

Top = Literal["majority", "label"]
# Rows of a product of 0/1 matrices in float32: far below 2^24, to which its sums are exact.
_PRODUCT_ROWS = 1 << 16


@dataclass(frozen=True, eq=False, repr=False)
class PredictiveMultiplicity:
    """How much M models disagree on the N rows of one test set.

    Means over rows have a standard error (`standard_errors`, by name): the rows are a sample of what could be asked,
    the models are given. Entries are None where they need labels, or a baseline, that there is not.

    Attributes
    ----------
    name : str
        Of the test set.
    models, n, classes : int
    ddof : int
        Variances over models are sums of squares over M - ddof.
    top : {'majority', 'label'}
        The class that `top_variance` looks at.
    probability_variance : float
        Mean over rows of the sum over classes of the variance over models of the predicted probability (PM_prob).
    top_variance : float
        Mean over rows of the variance over models of the probability of the majority's vote, or of the true class
        (PM_top).
    vote_variance : float
        Mean over rows of 1 - sum_c f_c^2, f_c the shares of the votes (PM_vote). Always of the M models themselves:
        `disagreement` is its unbiased form.
    disagreement : float
        Mean over rows and pairs of models of whether they vote differently: M / (M - 1) times `vote_variance`.
    jensen_shannon : float
        Mean over rows of the generalized Jensen-Shannon divergence of the M predicted distributions, in nats: entropy
        of their mean less the mean of their entropies; at most log M.
    any_ambiguity : float
        Share of rows on which some two models vote differently. Needs no baseline.
    accuracy_mean, accuracy_variance, accuracy_sd : float or None
        Over models.
    baseline : str or None
        The model that the following compare with.
    ambiguity : float or None
        Share of rows on which some model votes differently from the baseline (Marx et al. 2020).
    discrepancy : float or None
        Largest share of rows on which one model, `discrepancy_model`, votes differently from the baseline (ibid.). Its
        standard error is that of this model's share, and leaves out that it is the largest of several.
    churn : float or None
        Mean over the other models of the share of rows on which they vote differently from the baseline (Fard et al.
        2016). Its mean over all baselines is `disagreement`.
    churn_of_correct : float or None
        The same among the rows that the baseline gets right: what would be lost by changing to another model.
    churns : mapping of str to float
        Churn of each other model.
    standard_errors : mapping of str to float or None
        Of the means over rows; None for one row.
    """

    name: str
    models: int
    n: int
    classes: int
    ddof: int
    top: Top
    probability_variance: float
    top_variance: float
    vote_variance: float
    disagreement: float
    jensen_shannon: float
    any_ambiguity: float
    accuracy_mean: float | None
    accuracy_variance: float | None
    accuracy_sd: float | None
    baseline: str | None
    ambiguity: float | None
    discrepancy: float | None
    discrepancy_model: str | None
    churn: float | None
    churn_of_correct: float | None
    churns: Mapping[str, float] = field(default_factory=dict)
    standard_errors: Mapping[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        plain = {key: value for key, value in vars(self).items() if key not in ("churns", "standard_errors")}
        return {**plain, "churns": dict(self.churns), "standard_errors": dict(self.standard_errors)}

    def table(self) -> str:
        """Return one line for each statistic, with its standard error over rows."""
        lines = [f"{self.name}: {self.models} models, {self.n} rows, {self.classes} classes, ddof {self.ddof}"]
        for key, text in _LINES.items():
            value = getattr(self, key)
            if value is None:
                continue
            error = self.standard_errors.get(key)
            more = "" if error is None else f" +- {error:.5f}"
            lines.append(f"{text.format(baseline=self.baseline, top=self.top):<58} {value:.5f}{more}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"PredictiveMultiplicity({self.name!r}, {self.models} models, {self.n} rows, probability variance "
            f"{self.probability_variance:.5f}, disagreement {self.disagreement:.4f})"
        )


_LINES = {
    "probability_variance": "variance of probabilities, all classes",
    "top_variance": "variance of the probability of the {top}",
    "vote_variance": "variance of votes",
    "disagreement": "disagreement of two models",
    "jensen_shannon": "Jensen-Shannon divergence (nats)",
    "any_ambiguity": "ambiguity (some two models differ)",
    "accuracy_mean": "accuracy, mean over models",
    "accuracy_sd": "accuracy, standard deviation over models",
    "ambiguity": "ambiguity (some model differs from {baseline})",
    "discrepancy": "discrepancy (the most different from {baseline})",
    "churn": "churn from {baseline}",
    "churn_of_correct": "churn from {baseline} where that is right",
}


def predictive_multiplicity(
    predictions: Predictions,
    baseline: str | None = None,
    *,
    top: Top = "majority",
    ddof: int = 1,
    rows: int | None = None,
) -> PredictiveMultiplicity:
    """Measure how much the models of one group differ in their answers.

    Parameters
    ----------
    predictions : Predictions
        Of two or more models.
    baseline : str, optional
        The model in use, that others could replace; by default the most accurate (of ties the first), where there are
        labels.
    top : {'majority', 'label'}
        Which class's probability `top_variance` looks at: the one most models vote for (of ties the lowest), or the
        true one.
    ddof : {1, 0}
        1, the default, takes the models as a sample of those that their training method could have given, so that
        variances do not grow with the number of models; 0 takes them as all there are.
    rows : int, optional
        Rows of a block. Probabilities are held for one block, whatever N; beside them votes and a few numbers a row.

    Returns
    -------
    PredictiveMultiplicity

    Raises
    ------
    InputError
        If there are fewer than two models, the baseline is none of them, or labels are needed and missing.

    Notes
    -----
    arXiv 2206.08890 measures predictive multiplicity as the variance of test predictions; only its abstract is known to
    us: the formulas `probability_variance`, `top_variance` and `vote_variance` are ours. Ambiguity and discrepancy are
    those of Marx, Calmon and Ustun (2020), where the competing models are those given, churn that of Fard, Cormier,
    Canini and Gupta (2016).

    Examples
    --------
    >>> p = Predictions.of_logits({"a": [[2, 0], [0, 1]], "b": [[2, 0], [1, 0]]}, labels=[0, 1])
    >>> m = predictive_multiplicity(p)
    >>> m.disagreement, m.vote_variance, m.baseline, m.churn_of_correct
    (0.5, 0.25, 'a', 0.5)
    """
    needs_models(predictions, 2, "predictive_multiplicity")
    check_option("top", top, ("majority", "label"))
    if ddof not in (0, 1):
        raise InputError(f"ddof: got {ddof!r}, expected 1 (models are a sample) or 0 (they are all there are)")
    labels = predictions.known_labels if top == "label" else None
    sums = RowMeans()
    for where, p in predictions.blocks(rows):
        counts = vote_counts(predictions.votes[:, where], predictions.classes)
        target = np.argmax(counts, axis=1) if labels is None else labels[where]
        sums.add(_block_statistics(p, counts, target, ddof))
    if baseline is None and predictions.labels is not None:
        baseline = predictions.names[int(np.argmax(predictions.accuracies))]
    accuracies: dict[str, Any] = dict.fromkeys(("accuracy_mean", "accuracy_variance", "accuracy_sd"))
    if predictions.labels is not None:
        variance = float(np.var(predictions.accuracies, ddof=ddof))
        accuracies = {
            "accuracy_mean": float(np.mean(predictions.accuracies)),
            "accuracy_variance": variance,
            "accuracy_sd": math.sqrt(variance),
        }
    against, errors = _against(predictions, baseline)
    means: dict[str, Any] = dict(sums.means)
    return PredictiveMultiplicity(
        name=predictions.name,
        models=len(predictions),
        n=predictions.n,
        classes=predictions.classes,
        ddof=ddof,
        top=top,
        baseline=baseline,
        standard_errors={**sums.standard_errors, **errors},
        **means,
        **accuracies,
        **against,
    )


def _block_statistics(p: FloatArray, counts: IntArray, target: IntArray, ddof: int) -> dict[str, FloatArray]:
    """Statistics of single rows, from probabilities (M, b, C), votes (b, C) and one class for each row."""
    models = len(p)
    mean = p.mean(axis=0)
    deviations = p - mean
    variance = np.einsum("mbc,mbc->bc", deviations, deviations) / (models - ddof)
    agreeing = np.einsum("bc,bc->b", counts, counts)  # ordered pairs of models, each with itself, that vote alike
    return {
        "probability_variance": variance.sum(axis=1),
        "top_variance": np.take_along_axis(variance, target[:, None], axis=1)[:, 0],
        "vote_variance": 1 - agreeing / models**2,
        "disagreement": (models**2 - agreeing) / (models * (models - 1)),
        "jensen_shannon": np.maximum(_entropy(mean) - _entropy(p).mean(axis=0), 0),
        "any_ambiguity": (counts.max(axis=1) < models).astype(np.float64),
    }


def _entropy(p: FloatArray) -> FloatArray:
    """Entropy in nats over the last axis; 0 log 0 is 0."""
    logs = np.log(np.where(p > 0, p, 1.0))
    logs *= p
    total: FloatArray = -logs.sum(axis=-1)
    return total


def _against(predictions: Predictions, baseline: str | None) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Compare all others with a baseline: statistics, and their standard errors."""
    keys = ("ambiguity", "discrepancy", "discrepancy_model", "churn", "churn_of_correct")
    found: dict[str, Any] = dict.fromkeys(keys)
    if baseline is None:
        return found, {}
    place = predictions.index(baseline)
    others = [i for i in range(len(predictions)) if i != place]
    mine = predictions.votes[place]
    differing = np.zeros(predictions.n, dtype=np.int32)  # models that differ from the baseline, for each row
    shares = []
    for i in others:
        differs = predictions.votes[i] != mine
        differing += differs
        shares.append(np.count_nonzero(differs) / predictions.n)
    most = int(np.argmax(shares))
    of_rows = RowMeans()
    share = differing / len(others)
    of_rows.add({"ambiguity": (differing > 0).astype(np.float64), "churn": share})
    of_rows.add_one("discrepancy", (predictions.votes[others[most]] != mine).astype(np.float64))
    if predictions.labels is not None and (right := mine == predictions.labels).any():
        of_rows.add_one("churn_of_correct", share[right])
    found |= of_rows.means
    found["discrepancy_model"] = predictions.names[others[most]]
    found["churns"] = {predictions.names[i]: float(one) for i, one in zip(others, shares, strict=True)}
    return found, of_rows.standard_errors


def disagreements(predictions: Predictions) -> FloatArray:
    """Share of rows on which two models vote differently (M, M): whole numbers of rows over N.

    Votes are compared, not multiplied: products of indicator matrices cost C times as much.

    Examples
    --------
    >>> disagreements(Predictions.of_logits({"a": [[2, 0], [0, 1]], "b": [[2, 0], [1, 0]]})).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    votes = predictions.votes
    counts = np.zeros((len(votes), len(votes)), dtype=np.int64)
    for i, mine in enumerate(votes[:-1]):
        counts[i, i + 1 :] = [np.count_nonzero(mine != other) for other in votes[i + 1 :]]
    return (counts + counts.T) / predictions.n


def probability_distances(predictions: Predictions, rows: int | None = None) -> FloatArray:
    """Half the mean squared distance of two models' predicted probabilities (M, M), summed over classes.

    Its mean over the pairs of a group is the group's `probability_variance` (ddof 1): the variance of M numbers is the
    mean over pairs of half their squared difference. So PM of groups, and of pairs, are of one kind.

    Examples
    --------
    >>> p = Predictions.of_logits({"a": [[2, 0], [0, 1]], "b": [[2, 0], [1, 0]]})
    >>> float(np.round(probability_distances(p)[0, 1] / predictive_multiplicity(p).probability_variance, 12))
    1.0
    """
    models = len(predictions)
    products = np.zeros((models, models))
    for _, p in predictions.blocks(rows):
        flat = p.reshape(models, -1)
        products += flat @ flat.T
    squares = np.diagonal(products)
    found: FloatArray = np.maximum(squares[:, None] + squares - 2 * products, 0) / (2 * predictions.n)
    np.fill_diagonal(found, 0)
    return found


def error_inconsistencies(predictions: Predictions) -> FloatArray:
    """Share of rows on which exactly one of two models is right (M, M): whole numbers of rows over N.

    Error inconsistency of arXiv 2110.12899; see `streamcca.multiplicity.answers.inconsistency` for a pair in detail.

    Examples
    --------
    >>> error_inconsistencies(Predictions.of_logits({"a": [[2, 0], [0, 1]], "b": [[2, 0], [1, 0]]}, [0, 1])).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    correct = predictions.correct
    both = np.zeros((len(correct), len(correct)), dtype=np.int64)
    for first in range(0, predictions.n, _PRODUCT_ROWS):
        block = correct[:, first : first + _PRODUCT_ROWS].astype(np.float32)
        both += (block @ block.T).astype(np.int64)
    right = np.diagonal(both)
    return (right[:, None] + right[None, :] - 2 * both) / predictions.n
