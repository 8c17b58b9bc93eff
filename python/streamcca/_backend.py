"""The only module that touches the native extension; nothing above it knows C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamcca import _core
from streamcca._core import (
    BLOCK_ROWS,
    COMPILER,
    VERSION,
    Accumulator,
    Canonical,
    TruncatedView,
    active_isa,
    isa_levels,
    openmp_threads,
    peak_gflops,
    state_bytes,
)
from streamcca.blas_threads import few_threads

__all__ = [
    "BLOCK_ROWS",
    "COMPILER",
    "VERSION",
    "Accumulator",
    "Canonical",
    "FloatArray",
    "Rounding",
    "TruncatedView",
    "active_isa",
    "canonical",
    "compare",
    "isa_levels",
    "openmp_threads",
    "peak_gflops",
    "state_bytes",
    "truncate",
]

FloatArray = npt.NDArray[np.float64]
# What rounding did to a covariance: relative size, unit roundoff of the rows, raw second moments of the neurons.
Rounding = tuple[float, float, FloatArray]

_LAPACK = ("dsytrd", "dsterf", "dstemr", "dormtr", "dstedc", "dgeqrf", "dorgqr", "dpotrf", "dgesdd")
_loaded = False


def _load_lapack() -> None:
    # Late, because importing scipy.linalg takes as long as everything else together.
    global _loaded
    if not _loaded:
        from scipy.linalg import cython_blas, cython_lapack

        capsules = {name: cython_lapack.__pyx_capi__[name] for name in _LAPACK}
        capsules |= {name: cython_blas.__pyx_capi__[name] for name in ("dgemm", "dsyrk")}
        _core.load_lapack(capsules)
        _loaded = True


def truncate(covariance: FloatArray | Any, rounding: Rounding, rule: str, value: float, ridge: float) -> TruncatedView:
    """Leading directions of a covariance, which may lie elsewhere (operands.h); see csrc/linalg/truncate.h."""
    _load_lapack()
    with few_threads(len(rounding[2])):
        if not isinstance(covariance, np.ndarray):
            return _core.truncate_operand(covariance, covariance.diagonal(), *rounding, rule, value, ridge)
        return _core.truncate(covariance, *rounding, rule, value, ridge)


def canonical(x: TruncatedView, y: TruncatedView, cross: FloatArray | Any, kept: bool = False) -> Canonical:
    """Canonical variates of two truncated views; see csrc/linalg/cca.h.

    `kept`: `cross` is the (kx, ky) covariance of the projections of their rows, not the (dx, dy) one of the neurons,
    which may be one that lies elsewhere.
    """
    _load_lapack()
    with few_threads(max(cross.shape)):
        if not isinstance(cross, np.ndarray):
            return _core.canonical_operand(x, y, cross)
        return _core.canonical(x, y, cross, kept)


def compare(x: TruncatedView, y: TruncatedView, found: Canonical, side: str) -> dict[str, Any]:
    """Mean of the correlations that were found of these views, with its error bound; see csrc/linalg/cca.h."""
    with few_threads(max(x.width, y.width)):
        return _core.compare(x, y, found, side)
