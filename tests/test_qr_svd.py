"""The polished singular value decomposition, against Jacobi rotations in extended precision."""

from __future__ import annotations

import extended
import numpy as np
import pytest
import scipy.linalg

import streamcca as sc
from streamcca import qr_svd

U = 2.0**-53


def clustered(rng, n, d):
    """Singular values within a few percent, as those of normal rows."""
    x = rng.standard_normal((50 * d, d))
    return np.linalg.qr(rng.standard_normal((n, n)))[0][:, :d] @ np.linalg.qr(x)[1] / np.linalg.norm(x, axis=0)


def spread(rng, n, d):
    u, v = np.linalg.qr(rng.standard_normal((n, d)))[0], np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = (u * 10.0 ** -np.linspace(0, 8, d)) @ v
    return x / np.linalg.norm(x, axis=0)


def triangle(rng, n, d):
    x = np.triu(rng.standard_normal((n, d)))
    return x / np.linalg.norm(x, axis=0)


def mixing(svd, exact):
    """Largest turn of a vector of U towards another or out of all, in units of u s_1 |s_p, s_j| / (s_p^2 - s_j^2)."""
    u, s = exact[0], exact[1].astype(float)
    turns = np.abs((u.T @ svd[0]).astype(float) * (s[None] ** 2 - s[:, None] ** 2)) / np.hypot(s[None], s[:, None])
    outside = np.linalg.norm((svd[0] - u @ (u.T @ svd[0])).astype(float), axis=0) * s
    return max(turns.max(), outside.max()) / s[0] / U


@pytest.mark.skipif(not extended.AVAILABLE, reason="long doubles are plain doubles here")
@pytest.mark.parametrize("kind", [clustered, spread, triangle], ids=lambda k: k.__name__)
@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (14, 6), (20, 20)], ids=str)
def test_vectors_are_as_good_as_the_matrix(kind, shape):
    lapack = 0.0
    for seed in range(5):
        a = kind(np.random.default_rng(seed), *shape)
        exact = extended.svd(a.astype(extended.LONG))
        svd = qr_svd.polished_svd(a)
        d = shape[1]
        assert np.all(np.diff(svd.s) <= 0)
        assert np.linalg.norm(svd.u.T @ svd.u - np.eye(d)) < 1.5 * d * U
        assert np.linalg.norm(svd.v.T @ svd.v - np.eye(d)) < 1.5 * d * U
        assert np.abs((svd.s - exact[1]).astype(float)).max() < 6 * U * svd.s[0]
        assert np.abs(svd.u * svd.s @ svd.v.T - a).max() < 6 * U * svd.s[0]
        assert not svd.unpolished[~np.eye(d, dtype=bool)].any()
        assert not svd.outside.any()
        if d > 1:
            assert mixing((svd.u, svd.s), exact) < 4
            u, s, _ = scipy.linalg.svd(a, full_matrices=False)
            lapack = max(lapack, mixing((u, s), exact))
    if kind is clustered and shape == (20, 20):
        assert lapack > 8  # what all this is for


def test_what_cannot_be_polished_is_said(rng):
    """Equal singular values leave their vectors free, and zero ones have no U in the range; nothing is spoilt."""
    basis = np.linalg.qr(rng.standard_normal((12, 6)))[0]
    a = (basis[:, :4] * [2.0, 1.0, 1.0, 1.0]) @ np.linalg.qr(rng.standard_normal((6, 4)))[0].T  # rank 4 of 6
    svd = qr_svd.polished_svd(a)
    assert np.allclose(svd.s, [2, 1, 1, 1, 0, 0], atol=1e-15)
    for x in (svd.u, svd.v):
        assert np.linalg.norm(x.T @ x - np.eye(6)) < 1e-14
    assert np.abs(svd.u * svd.s @ svd.v.T - a).max() < 1e-14
    assert svd.unpolished[4, 5]
    assert svd.unpolished[1:4, 1:4][~np.eye(3, dtype=bool)].any()
    assert not svd.unpolished[0, 1:].any()
    assert svd.outside[4:].all()
    assert not svd.outside[:4].any()


def test_lapack_is_asked_twice(monkeypatch, rng):
    real, asked = scipy.linalg.svd, []

    def failing(a, full_matrices, lapack_driver="gesdd"):
        asked.append(lapack_driver)
        if len(asked) <= failures:
            raise scipy.linalg.LinAlgError("SVD did not converge")
        return real(a, full_matrices, lapack_driver=lapack_driver)

    monkeypatch.setattr(scipy.linalg, "svd", failing)
    failures = 1
    a = rng.standard_normal((5, 3))
    svd = qr_svd.polished_svd(a)
    assert asked == ["gesdd", "gesvd"]
    assert np.abs(svd.u * svd.s @ svd.v.T - a).max() < 1e-14
    failures = 9
    with pytest.raises(sc.NumericError, match="the singular values of a factor were not found .*; truncate"):
        qr_svd.polished_svd(a)
