"""A randomized range finder: the covariance of very wide rows times random vectors. Plain sums, so that ranks add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from streamcca import wide
from streamcca._backend import FloatArray
from streamcca.arrays import AnyArray, library_for, to_host
from streamcca.errors import InputError, StateFileError
from streamcca.passes import values_of

Sum = Callable[[FloatArray], FloatArray]
_BLOCK_BYTES = 128 << 20
_SEED = 20170619
_SUMS = ("product", "shift", "sums", "squares", "seen")


def block_rows(width: int, itemsize: int) -> int:
    """Rows that are multiplied at once: a constant of the shape, since bits may depend on it."""
    return max(16, min(1024, _BLOCK_BYTES // (width * itemsize)))


def gaussian(directions: int, width: int, dtype: Any) -> AnyArray:
    """Random test vectors (directions, width), the same on every machine and rank; made tile by tile of columns."""
    result = np.empty((directions, width), dtype=dtype)
    for i, tile in enumerate(wide.tiles(width)):
        result[:, tile] = np.random.default_rng([_SEED, i]).standard_normal(result[:, tile].shape, dtype=dtype)
    return result


class RangeFinder:
    """Covariance times l Gaussian vectors, centered exactly; the other start of `sketch_svcca`.

    Without a certificate, unlike `Sketch`, and less close before a power step; but everything in it is a sum over rows.

    Notes
    -----
    Halko, Martinsson & Tropp (2011), "Finding structure with randomness", SIAM Rev. 53, algorithm 4.3 with the
    covariance in place of the matrix.

    Examples
    --------
    >>> f = RangeFinder(3, 2, np.float64)
    >>> f.update(np.diag([4.0, 2.0, 1.0]))
    >>> f.take_basis()[0][0].shape
    (2, 3)
    """

    def __init__(self, width: int, directions: int, dtype: Any = np.float32, device: str = "cpu") -> None:
        self._library = library = library_for(None, device)
        self.width, self.directions, self.dtype = width, min(directions, width), np.dtype(dtype)
        self.n = 0
        self._test = library.asarray(gaussian(self.directions, width, self.dtype))
        self._product = library.zeros((self.directions, width), dtype=self.dtype)  # sum (x - c)(x - c)' test
        self._rows = library.zeros((block_rows(width, self.dtype.itemsize), width), dtype=self.dtype)
        self._pending = 0
        self._shift: AnyArray = library.zeros(width)
        self._sums = library.zeros(width)
        self._squares = library.zeros(width)
        self._seen = library.zeros(self.directions)  # sum test' (x - c)

    def update(self, rows: Any) -> None:
        """Add rows (n, width); as `Sketch.update`."""
        values = values_of(rows, "RangeFinder.update", self._library)
        if values.shape[1] != self.width:
            raise InputError(f"RangeFinder.update: got rows of {values.shape[1]} neurons, expected {self.width}")
        wide.check_finite(values, self.dtype, "RangeFinder.update")
        if self.n == 0 and len(values):
            self._shift = self._library.array(values[0], dtype=np.float64 if values.dtype == np.float64 else np.float32)
        first = 0
        while first < len(values):
            count = min(len(values) - first, len(self._rows) - self._pending)
            to = self._rows[self._pending : self._pending + count]
            for tile in wide.tiles(self.width):
                to[:, tile] = values[first : first + count, tile] - self._shift[tile]
            self._pending, self.n, first = self._pending + count, self.n + count, first + count
            if self._pending == len(self._rows):
                self.finish()

    def finish(self) -> None:
        """Multiply the rows that wait."""
        rows = self._rows[: self._pending]
        if len(rows):
            seen = wide.project(rows, [self._test])
            wide.add_outer(self._product, seen, rows)
            self._seen += seen.sum(axis=0)
            for tile in wide.tiles(self.width):
                some = rows[:, tile].astype(np.float64)
                self._sums[tile] += some.sum(axis=0)
                self._squares[tile] += np.square(some).sum(axis=0)
        self._pending = 0

    def center(self, total: Sum | None = None) -> None:
        """Take the mean out; with `total`, which adds an array over all ranks, of the rows of all ranks.

        The sum of squares about the common mean m is that about the own mean m_r, plus n_r (m_r - m)(m_r - m)'.
        """
        self.finish()
        library = self._library
        own, count = self._sums / max(1, self.n), self.n
        squares = self._squares - count * np.square(own)
        wide.add_outer(self._product, -self._seen[None], own[None].astype(self.dtype))
        mean = own + self._shift
        if total is not None:
            self.n = int(total(np.array([float(count)]))[0])
            if not self.n:
                raise InputError("range finder: no rank has rows; expected at least 2")
            mean = library.asarray(total(count * to_host(mean)) / self.n)
            off = (own + self._shift - mean)[None] if count else library.zeros((1, self.width))
            along: Any = sum(off[:, tile] @ self._test[:, tile].T.astype(np.float64) for tile in wide.tiles(self.width))
            wide.add_outer(self._product, count * along, off.astype(self.dtype))
            squares = library.asarray(total(to_host(squares + count * np.square(off[0]))))
            for i in range(self.directions):
                self._product[i] = library.asarray(total(to_host(self._product[i]).astype(np.float64)))
        self._shift, self._sums, self._squares = mean, library.zeros(self.width), squares
        self._seen = library.zeros(self.directions)

    @property
    def mean(self) -> FloatArray:
        """Mean row, after `center`."""
        return np.asarray(to_host(self._shift), dtype=np.float64)

    @property
    def variances(self) -> FloatArray:
        """Variance of each neuron (ddof 1), after `center`."""
        return np.asarray(to_host(self._squares / max(1, self.n - 1)))

    @property
    def trace(self) -> float:
        """Trace of the covariance (ddof 1), after `center`."""
        return float(self.variances.sum())

    def take_basis(self) -> tuple[list[AnyArray], AnyArray]:
        """Return an orthonormal basis, and memory of the same size that is free now."""
        if self._pending or bool(self._seen.any()):
            self.center()
        product, spare = self._product, self._test
        self._product = self._test = self._rows = self._library.zeros((0, self.width), dtype=self.dtype)
        return wide.orthonormalize([product], wide.unit_roundoff(self.dtype)), spare

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the test vectors, which are made anew; views, not copies."""
        tensors = {name: to_host(getattr(self, f"_{name}")) for name in _SUMS}
        tensors["rows"] = to_host(self._rows[: self._pending])
        config = {"width": self.width, "directions": self.directions, "dtype": str(self.dtype)}
        return {"meta": {"config": config, "n": self.n}, "tensors": tensors}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: str = "cpu") -> RangeFinder:
        """Inverse of `state_dict`: goes on to the same bits."""
        try:
            config, tensors = state["meta"]["config"], state["tensors"]
            finder = cls(config["width"], config["directions"], np.dtype(config["dtype"]), device)
            finder.n = state["meta"]["n"]
            finder._pending = len(tensors["rows"])
            finder._rows[: finder._pending] = finder._library.asarray(tensors["rows"])
            for name in _SUMS:
                setattr(finder, f"_{name}", finder._library.array(tensors[name]))
        except (KeyError, TypeError, ValueError) as error:
            raise StateFileError(f"range finder: not its state ({error}); restore it from a copy") from None
        return finder
