"""What a result remembers of each view beside its weights: the mean, the variances, and the kept directions."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from streamcca._backend import FloatArray, TruncatedView


@dataclass(frozen=True, eq=False, repr=False)
class KeptView:
    """The kept directions of one view in the units of its neurons, shared by all results that the view is part of.

    With basis B and values l, the covariance of the neurons with a variate of weights w inside the kept space is
    B diag(l) B'w: what was cut off, or lies below rounding, has no covariance with it.

    Attributes
    ----------
    mean : array (d,)
        Mean row.
    variances : array (d,)
        Variance (ddof 1) of each neuron; empty if only the kept directions are known.
    native : TruncatedView, optional
        Where basis and values are, untouched until someone asks: they are as large as the weights.
    own : (array (d, k), array (k,)), optional
        Basis and values themselves, on routes without a native view.
    """

    mean: FloatArray
    variances: FloatArray
    native: TruncatedView | None = field(default=None)
    own: tuple[FloatArray, FloatArray] | None = field(default=None)

    def loadings(self, weights: FloatArray) -> FloatArray:
        """Return the covariances (d, m) of all neurons with the variates of some weights (d, m)."""
        if self.own is not None:
            basis, values = self.own
        else:
            assert self.native is not None  # noqa: S101 - one of both is there
            state = self.native.save()  # in working units: neurons divided by `scale`
            basis, values = state["vectors"] * state["scale"][:, None], state["eigenvalues"]
        result: FloatArray = basis @ (values[:, None] * (basis.T @ weights))
        return result

    def __getstate__(self) -> dict[str, Any]:
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        state["native"] = None if self.native is None else self.native.save()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["native"] is not None:
            state["native"] = TruncatedView.restore(state["native"])
        for name, value in state.items():
            object.__setattr__(self, name, value)


def nothing() -> FloatArray:
    """Return an empty array, for what a route does not know."""
    return np.empty(0)
