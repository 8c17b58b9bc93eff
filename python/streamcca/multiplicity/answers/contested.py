"""Rows of a test set on which models differ most, by their probabilities, whether their votes tell or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.answers.predictions import IntArray, Predictions, needs_models, vote_counts


@dataclass(frozen=True)
class ContestedRow:
    """One row: its place, summed variance of probabilities, the majority's vote and share, and each model's answer."""

    row: int
    variance: float
    majority: int
    share: float
    label: int | None
    votes: tuple[int, ...]
    confidences: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {**vars(self), "votes": list(self.votes), "confidences": list(self.confidences)}


@dataclass(frozen=True, repr=False)
class ContestedRows:
    """Rows with the largest variance of probabilities: those on which models agree by their votes, and the others.

    Attributes
    ----------
    name : str
        Of the test set.
    models : tuple of str
        In the order of each row's votes and confidences.
    agreement : float
        A row belongs to `agreed` if at least this share of the models votes alike.
    agreed, disagreed : tuple of ContestedRow
        Largest variance first.
    """

    name: str
    models: tuple[str, ...]
    agreement: float
    agreed: tuple[ContestedRow, ...]
    disagreed: tuple[ContestedRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "name": self.name,
            "models": list(self.models),
            "agreement": self.agreement,
            "agreed": [row.to_dict() for row in self.agreed],
            "disagreed": [row.to_dict() for row in self.disagreed],
        }

    def table(self) -> str:
        """Return a line for each row."""
        lines = [
            f"{self.name}: rows of the largest variance of probabilities; votes alike: {self.agreement:.0%} or more"
        ]
        for kind, rows in (("agreed", self.agreed), ("disagreed", self.disagreed)):
            for row in rows:
                low, high = min(row.confidences), max(row.confidences)
                label = "" if row.label is None else f", true {row.label}"
                lines.append(
                    f"{kind:<10} row {row.row:>7}  variance {row.variance:.4f}  class {row.majority} of {row.share:.0%}"
                    f"{label}, confidences {low:.3f} to {high:.3f}"
                )
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return one line."""
        return f"ContestedRows({self.name!r}, {len(self.agreed)} agreed, {len(self.disagreed)} disagreed)"


def contested_rows(
    predictions: Predictions, count: int = 10, *, agreement: float = 0.9, rows: int | None = None
) -> ContestedRows:
    """Find the rows on which the models' probabilities differ most, though they vote alike, and where they do not.

    Our substitute for the "confabulator analysis" that arXiv 2206.08890 (v1) names without a definition known to us:
    rows where models give the same answer with very different certainty are where a single model's certainty is least
    to be trusted, and no vote tells.

    Parameters
    ----------
    predictions : Predictions
        Of two or more models.
    count : int
        Rows of either kind, at most.
    agreement : float
        Share of the models that must vote alike for a row to count as agreed, inclusive.
    rows : int, optional
        Rows of a block.

    Returns
    -------
    ContestedRows
        Of ties in the variance (over models, ddof 1), the row that comes first.
    """
    needs_models(predictions, 2, "contested_rows")
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise InputError(f"count: got {count!r}, expected a number of rows, at least 1")
    if not 0 < agreement <= 1:
        raise InputError(f"agreement: got {agreement!r}, expected a share above 0, up to 1")
    kept: dict[bool, list[ContestedRow]] = {True: [], False: []}
    for where, p in predictions.blocks(rows):
        counts = vote_counts(predictions.votes[:, where], predictions.classes)
        variance = np.var(p, axis=0, ddof=1).sum(axis=1)
        agreed = counts.max(axis=1) >= agreement * len(predictions) - 1e-9
        for kind in (True, False):
            of_kind = np.flatnonzero(agreed == kind)
            best = of_kind[np.argsort(-variance[of_kind], kind="stable")[:count]]
            new = [_row(predictions, where.start + int(i), float(variance[i]), counts[i], p[:, i]) for i in best]
            kept[kind] = sorted(kept[kind] + new, key=lambda row: (-row.variance, row.row))[:count]
    return ContestedRows(predictions.name, predictions.names, agreement, tuple(kept[True]), tuple(kept[False]))


def _row(predictions: Predictions, row: int, variance: float, counts: IntArray, p: FloatArray) -> ContestedRow:
    return ContestedRow(
        row=row,
        variance=variance,
        majority=int(np.argmax(counts)),
        share=float(counts.max() / len(predictions)),
        label=None if predictions.labels is None else int(predictions.labels[row]),
        votes=tuple(int(vote) for vote in predictions.votes[:, row]),
        confidences=tuple(float(one) for one in p.max(axis=1)),
    )
