"""How many threads the BLAS behind SciPy takes, which is also the one of the native decompositions."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

# Threads of OpenBLAS spin for some 25 ms after a call, and take the cores from whatever comes next: the next batch of
# a model, or its training. Up to this width they win less than they cost.
WIDEST_ALONE = 256


@functools.cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return what reads and sets the number of threads; None for another BLAS, which is left as it is."""
    import ctypes

    from scipy.linalg import cython_blas

    library = ctypes.CDLL(cython_blas.__file__)  # what it is linked with is looked through, too
    for name in ("scipy_openblas", "openblas"):
        with contextlib.suppress(AttributeError):
            return getattr(library, f"{name}_get_num_threads"), getattr(library, f"{name}_set_num_threads")
    return None


@contextlib.contextmanager
def few_threads(width: int) -> Iterator[None]:
    """Let SciPy's BLAS take one thread, of this process, for matrices of a width where more do not pay."""
    found = _openblas() if width <= WIDEST_ALONE else None
    before = found[0]() if found else 1
    if found is None or before == 1:
        yield
        return
    found[1](1)
    try:
        yield
    finally:
        found[1](before)
