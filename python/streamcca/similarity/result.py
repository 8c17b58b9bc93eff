"""The result of a measure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from streamcca.results import CCAResult

Kind = Literal["similarity", "distance"]


class WithChance:
    """A result whose chance level takes longer than the number: it is worked out when it is asked for."""

    null: Callable[[], float]

    @functools.cached_property
    def null_mean(self) -> float:
        """What unrelated views score on average."""
        return float(self.null())

    def __getstate__(self) -> dict[str, Any]:
        # What works the chance level out cannot be pickled; the level can.
        known = self.null_mean
        return {**self.__dict__, "null": functools.partial(float, known)}


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityResult(WithChance):
    """One number about two views, with the reasons to trust it.

    Attributes
    ----------
    measure : str
        Its name, a key of `MEASURES`.
    mean : float
        The number.
    kind : 'similarity' or 'distance'
        Whether alike views have high or low numbers.
    error_bound : float
        How far rounding can have moved it: eight deviations, to first order.
    null_mean : float
        What unrelated Gaussian views with these spectra, or ranks, and as many rows score on average. Worked out when
        it is asked for.
    n : int or float
        Number of rows; with weights, their sum.
    width_x, width_y : int
        Neurons of each view.
    precision : str
        Type in which products were formed.
    strategy : 'covariance', 'gram' or 'qr'
        The route that the number came by.
    detail : CCAResult or None
        The correlations that the measure is a function of, if it is one.
    """

    measure: str
    mean: float
    error_bound: float
    null: Callable[[], float] = field(repr=False)
    n: int | float
    width_x: int
    width_y: int
    precision: str
    strategy: str
    kind: Kind = "similarity"
    detail: CCAResult | None = None

    @property
    def distance(self) -> float:
        """1 - mean; of a distance, the number itself."""
        return self.mean if self.kind == "distance" else 1 - self.mean

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        names = (
            "measure",
            "kind",
            "mean",
            "error_bound",
            "null_mean",
            "n",
            "width_x",
            "width_y",
            "precision",
            "strategy",
        )
        result: dict[str, Any] = {name: getattr(self, name) for name in names}
        return result | {"detail": None if self.detail is None else self.detail.to_dict()}

    def __float__(self) -> float:
        return self.mean

    def __repr__(self) -> str:
        return (
            f"{self.measure} {self.mean:.6f} +- {self.error_bound:.1e} (chance {self.null_mean:.4f}), "
            f"widths {self.width_x} and {self.width_y}, n={self.n}"
        )
