"""Covariances that stay on a CUDA device, as the operands of truncation and CCA: products and decompositions by CuPy.

The rules, the stopping test and the error bounds are those of csrc/linalg, which sees a few columns at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from streamcca._backend import FloatArray, Rounding
from streamcca.arrays import Library, cupy_here, to_host
from streamcca.moments import Moments

Method = TypeVar("Method", bound=Callable[..., Any])


def _there(method: Method) -> Method:
    """Make CuPy work on the device of an operand meanwhile, and on its default stream."""

    @functools.wraps(method)
    def run(self: Any, *args: Any) -> Any:
        with self._device, self._library.cuda.Stream.null:  # to which our extension hands what it has made
            return method(self, *args)

    return cast(Method, run)


class DeviceSymmetric:
    """The covariance of a view with itself; see SymmetricMatrix in csrc/linalg/symmetric.h."""

    def __init__(self, values: Any, library: Library) -> None:
        self._values, self._library, self._device = values, library, values.device
        self._vectors: Any = None
        self._eigenvalues: FloatArray = np.empty(0)

    @_there
    def prepare(self, live: FloatArray, ridge: float, scale: FloatArray) -> None:
        """Leave dead neurons out, add a ridge to the others, divide by the scales of row and column."""
        inverse: FloatArray = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        kept = self._library.asarray(live * inverse)
        self._values *= kept[:, None]
        self._values *= kept
        _diagonal(self._values)[:] += ridge * kept * kept

    @_there
    def diagonal(self) -> FloatArray:
        """Variances, before anything was done to them."""
        return to_host(_diagonal(self._values)).copy()

    @_there
    def sum_of_squares(self) -> float:
        """Squared Frobenius norm."""
        return float(np.vdot(self._values, self._values))

    @_there
    def multiply(self, block: FloatArray) -> FloatArray:
        """Product with a few columns."""
        return to_host(self._values @ self._library.asarray(block))

    @_there
    def none_above(self, root: FloatArray, level: float) -> bool:
        """Whether level I - (this - root root') has a Cholesky factor."""
        import cupyx

        root = self._library.asarray(root)
        shifted = root @ root.T
        shifted -= self._values
        _diagonal(shifted)[:] += level
        try:
            with cupyx.errstate(linalg="raise"):  # else a failure passes unseen
                self._library.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            return False
        return True

    @_there
    def decompose(self) -> FloatArray:
        """All eigenvalues, largest first; the matrix is used up."""
        import cupyx

        with cupyx.errstate(linalg="raise"):
            ascending, self._vectors = self._library.linalg.eigh(self._values)
        self._values = None
        self._eigenvalues = to_host(ascending)[::-1].copy()
        return self._eigenvalues

    @_there
    def leading(self, count: int) -> tuple[FloatArray, FloatArray]:
        """Return the largest eigenvalues and their eigenvectors (d, count), after `decompose`."""
        return self._eigenvalues[:count], to_host(self._vectors[:, ::-1][:, :count])


def _diagonal(matrix: Any) -> Any:
    return matrix.reshape(-1)[:: len(matrix) + 1]


class DeviceCross:
    """The covariance of two views; see CrossMatrix in csrc/linalg/cross.h."""

    def __init__(self, values: Any, library: Library) -> None:
        self._values, self._library, self._device = values, library, values.device

    @property
    def shape(self) -> tuple[int, int]:
        """Neurons of both views."""
        rows, columns = self._values.shape
        return int(rows), int(columns)

    @_there
    def scale(self, rows: FloatArray, columns: FloatArray) -> None:
        """Multiply rows and columns by factors."""
        self._values *= self._library.asarray(rows)[:, None]
        self._values *= self._library.asarray(columns)

    @_there
    def project(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """Product left' this right."""
        half = self._library.asarray(left).T @ self._values
        return to_host(half @ self._library.asarray(right))

    @_there
    def multiply(self, block: FloatArray) -> FloatArray:
        """Product with a few columns."""
        return to_host(self._values @ self._library.asarray(block))

    @_there
    def multiply_transposed(self, block: FloatArray) -> FloatArray:
        """Product of the transpose with a few columns."""
        return to_host(self._values.T @ self._library.asarray(block))


def decomposed_there(moments: Moments) -> Library | None:
    """Return CuPy, where covariances of these moments stay on their device."""
    return cupy_here() if moments._on_device and moments._core.settled else None  # type: ignore[attr-defined]


def view_operand(moments: Moments, view: str) -> tuple[FloatArray | DeviceSymmetric, Rounding]:
    """Return the covariance of a view, as `cross_operand` does, and what rounding did to it."""
    library = decomposed_there(moments)
    if library is None:
        return moments._covariance(view, view)
    pair = moments._pair_of(view, view)[0]
    moments._check_rows(1)
    values = _covariance(moments, pair, library)
    rounding: Rounding = moments._core.uncertainty(pair, 1.0)  # type: ignore[attr-defined]
    return DeviceSymmetric(values, library), rounding


def _covariance(moments: Moments, pair: int, library: Library) -> Any:
    with library.cuda.Stream.null:
        return library.from_dlpack(moments._core.covariance_on_device(pair, 1.0))  # type: ignore[attr-defined]


def cross_operand(moments: Moments, view: str, other: str) -> FloatArray | DeviceCross:
    """Return the covariance of two views: on the device of the moments if it can be used there, else an array."""
    library = decomposed_there(moments)
    if library is None:
        return moments.covariance(view, other)
    moments._check_rows(1)
    pair, turned = moments._pair_of(view, other)
    values = _covariance(moments, pair, library)
    return DeviceCross(values.T if turned else values, library)
