"""Small decompositions take one thread of the BLAS, and leave its number of threads as it was."""

from __future__ import annotations

import numpy as np
import pytest

import streamcca as sc
from streamcca import _backend, blas_threads


@pytest.fixture
def threads():
    """Number of threads of SciPy's BLAS, two for a test."""
    found = blas_threads._openblas()
    if found is None:
        pytest.skip("SciPy has another BLAS than OpenBLAS")
    get, put = found
    before = get()
    put(2)
    if get() != 2:
        pytest.skip("one core")
    yield get
    put(before)


def test_restored_also_after_an_error(threads):
    with blas_threads.few_threads(blas_threads.WIDEST_ALONE):
        assert threads() == 1
        with blas_threads.few_threads(3):
            assert threads() == 1
        assert threads() == 1
    assert threads() == 2
    with pytest.raises(RuntimeError, match="on purpose"), blas_threads.few_threads(3):
        raise RuntimeError("on purpose")
    assert threads() == 2
    with blas_threads.few_threads(blas_threads.WIDEST_ALONE + 1):
        assert threads() == 2


@pytest.mark.parametrize("width", [20, blas_threads.WIDEST_ALONE + 20])
def test_what_decomposes(threads, width, monkeypatch):
    """Truncation, correlations and their bounds, by the native code; measures by SciPy."""
    seen = []
    for name in ("truncate", "canonical", "compare"):
        native = getattr(_backend._core, name)
        monkeypatch.setattr(_backend._core, name, lambda *x, native=native: (seen.append(threads()), native(*x))[1])
    x = np.random.default_rng(0).standard_normal((700, width))
    r = sc.cca(x, x[:, ::-1] + 1.0)
    assert r.mean == pytest.approx(1, abs=1e-9)
    assert seen == [1 if width == 20 else 2] * 4
    assert threads() == 2
    sc.similarity("procrustes", x, x[:, ::-1])
    assert threads() == 2


def test_another_blas_is_left_alone(monkeypatch):
    monkeypatch.setattr(blas_threads, "_openblas", lambda: None)
    x = np.random.default_rng(0).standard_normal((100, 5))
    assert sc.cca(x, x).mean == pytest.approx(1, abs=1e-9)
