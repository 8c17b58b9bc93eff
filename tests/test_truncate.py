"""Truncation: the three rules, known spectra, exact ties, numerical rank."""

from __future__ import annotations

import numpy as np
import pytest
import reference

import streamcca as sc
from streamcca import _backend


def with_spectrum(s, n, rng, offset=0.0):
    """Centered rows whose singular values are s, exactly up to rounding."""
    d = len(s)
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, d))]))[0][:, 1:]
    return basis * s @ np.linalg.qr(rng.standard_normal((d, d)))[0] + offset


def moments_of(x, **options):
    m = sc.Moments({"a": x.shape[1]}, **options)
    m.update(a=x)
    return m


@pytest.mark.parametrize("power", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize(
    ("rule", "value"), [("variance", 0.9), ("variance", 0.99), ("nuclear", 0.9), ("nuclear", 0.99)]
)
def test_rank_values_and_directions(power, rule, value, rng):
    s = np.arange(1, 61) ** -power
    x = with_spectrum(s, 400, rng, offset=5.0)
    sub = sc.truncate(moments_of(x), "a", **{rule: value})
    assert sub.rank == reference.kept_rank(s, rule, value)
    np.testing.assert_allclose(sub.singular_values, s[: sub.rank], rtol=1e-9)
    np.testing.assert_allclose(sub.total_variance, np.var(x, axis=0, ddof=1).sum(), rtol=1e-12)
    np.testing.assert_allclose(sub.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(sub.vectors.T @ sub.vectors, np.eye(sub.rank), atol=1e-12)
    reference_vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][: sub.rank].T
    np.testing.assert_allclose(np.abs(np.sum(sub.vectors * reference_vectors, axis=0)), 1, atol=1e-9)
    parts = {"variance": s**2, "nuclear": s}[rule]
    shares = np.cumsum(parts) / parts.sum()
    assert sub.share == pytest.approx(shares[sub.rank - 1], rel=1e-9)
    below = shares[sub.rank - 2] if sub.rank > 1 else 0.0
    assert sub.margin == pytest.approx(min(shares[sub.rank - 1] - value, value - below), rel=1e-5)
    assert sub.n == 400
    assert f"{sub.rank} of 60" in repr(sub)


def test_share_07_of_the_research_notes(rng):
    """s_i = i^-0.7, i <= 500: 0.99 keeps 486 of s and 361 of s^2; 0.90 keeps 369 and 57."""
    m = moments_of(with_spectrum(np.arange(1, 501) ** -0.7, 700, rng))
    got = [sc.truncate(m, "a", **{k: v}).rank for v in (0.99, 0.90) for k in ("nuclear", "variance")]
    assert got == [486, 361, 369, 57]


def test_a_threshold_that_a_share_equals_is_reached(rng):
    """100 equal values, 99 %: exactly 99, not 100, although the sums are rounded."""
    x = np.zeros((200, 100))
    x[:100] = np.eye(100)
    x[100:] = -np.eye(100)
    with pytest.warns(sc.AccuracyWarning, match="within rounding, every rank from 99 to 100 satisfies variance=0.99"):
        sub = sc.truncate(moments_of(x), "a", variance=0.99)
    assert sub.rank == 99
    with pytest.warns(sc.AccuracyWarning) as caught:
        r = sc.svcca(x, x + 0.0, variance=0.99, allow_inaccurate=True)
    assert "within rounding, every rank from 99 to 100 satisfies variance=0.99" in " ".join(
        str(w.message) for w in caught
    )
    assert not r.truncation.resolved
    assert r.error_bound >= 1 / 99


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [1, 5, 17])
def test_numerical_rank_of_rank_deficient_rows(dtype, rank, rng):
    x = (rng.standard_normal((500, rank)) @ rng.standard_normal((rank, 40))).astype(dtype)
    m = moments_of(x)
    for rule in ({"variance": 1.0}, {"nuclear": 1.0}):
        with pytest.warns(sc.AccuracyWarning, match=f"numerical rank {rank} of at most 40; directions below rounding"):
            assert sc.truncate(m, "a", **rule).rank == rank
    assert sc.truncate(m, "a", rank=rank).numerical_rank == rank
    with pytest.raises(
        sc.InputError, match=rf"view 'a': rank {rank + 1} was asked for, but the numerical rank is {rank};"
    ):
        sc.truncate(m, "a", rank=rank + 1)


def test_more_neurons_than_rows(rng):
    x = rng.standard_normal((30, 100))
    sub = sc.truncate(moments_of(x), "a", variance=1.0)
    assert sub.rank == sub.numerical_rank == 29
    np.testing.assert_allclose(sub.singular_values, np.linalg.svd(x - x.mean(0), compute_uv=False)[:29], rtol=1e-10)


def test_one_neuron(rng):
    x = rng.standard_normal((50, 1)) + 1e4
    sub = sc.truncate(moments_of(x), "a")
    assert sub.rank == 1
    np.testing.assert_allclose(np.abs(sub.vectors), [[1.0]], rtol=1e-14)


@pytest.mark.parametrize("value", [0.0, 7.0, 1e6, -0.1])
def test_a_constant_view_is_refused(value):
    x = np.full((40, 5), value)
    with pytest.raises(sc.InputError, match=r"view 'a': every neuron is constant over the rows.*leave the view out"):
        sc.truncate(moments_of(x), "a")
    with pytest.raises(sc.InputError, match="view 'y': every neuron is constant"):
        sc.svcca(np.random.default_rng(0).standard_normal((40, 5)), x)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"variance": 0.0}, "variance: got 0.0, expected a share above 0 and at most 1"),
        ({"variance": 1.5}, "variance: got 1.5"),
        ({"variance": True}, "variance: got True"),
        ({"variance": "0.9"}, "variance: got '0.9'"),
        ({"nuclear": -1}, "nuclear: got -1"),
        ({"rank": 0}, "rank: got 0, expected an integer of at least 1"),
        ({"rank": 2.0}, "rank: got 2.0"),
        ({"rank": 2, "variance": 0.9}, "got variance and rank, expected only one"),
    ],
)
def test_bad_rules(rule, sentence, rng):
    m = moments_of(rng.standard_normal((10, 3)))
    with pytest.raises(sc.InputError, match=sentence):
        sc.truncate(m, "a", **rule)


def test_the_view_may_be_left_out_only_if_there_is_one(rng):
    x = rng.standard_normal((20, 3))
    assert sc.truncate(moments_of(x)).n == 20
    m = sc.Moments({"a": 3, "b": 3})
    m.update(a=x, b=x)
    with pytest.raises(sc.InputError, match="name one of the views 'a', 'b'"):
        sc.truncate(m)


def covariance_of(values, rng):
    """A covariance with these eigenvalues, and its eigenvectors."""
    vectors = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    matrix = (vectors * values) @ vectors.T
    return (matrix + matrix.T) / 2, vectors


def cut(matrix, rule, value):
    """Truncate a covariance that is exact but for float64 rounding."""
    t = _backend.truncate(matrix, (2.0**-53, 2.0**-53, np.diag(matrix).copy()), rule, value, 0.0)
    return t, t.eigenvalues


WIDE = 700  # wide enough for the leading eigenpairs to be computed alone
SPECTRA = {
    "singular values i^-3/2": np.arange(1, WIDE + 1) ** -3.0,
    "exponential": np.exp(-np.arange(WIDE) / 10),
    "spikes over a floor": np.r_[np.linspace(20, 10, 20), np.full(WIDE - 20, 1e-4)],
    "40 equal values": np.r_[np.ones(40), np.full(WIDE - 40, 1e-6)],
    "exactly rank 25": np.r_[np.arange(25, 0, -1.0), np.zeros(WIDE - 25)],
}


@pytest.mark.parametrize(("rule", "value"), [("variance", 0.99), ("variance", 0.5), ("rank", 12)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_leading_directions_of_wide_views(spectrum, rule, value, rng):
    values = SPECTRA[spectrum]
    matrix, vectors = covariance_of(values, rng)
    t, eigenvalues = cut(matrix, rule, value)
    want = value if rule == "rank" else reference.kept_rank(np.sqrt(values), rule, value - 1e-12)
    assert t.rank == want
    if spectrum != "40 equal values" or (rule == "variance" and value > 0.9):
        assert t.numerical_rank < 80, "the whole spectrum was computed"
        left = vectors[:, : t.rank]
        assert np.linalg.norm(t.vectors - left @ (left.T @ t.vectors), 2) < 1e-10
    np.testing.assert_allclose(eigenvalues, values[: t.rank], rtol=0, atol=2e-14 * values[0])
    np.testing.assert_allclose(t.vectors.T @ t.vectors, np.eye(t.rank), atol=1e-13)
    assert t.share == pytest.approx(values[: t.rank].sum() / values.sum(), abs=1e-13)


@pytest.mark.parametrize("values", [np.ones(WIDE), np.arange(1, WIDE + 1) ** -1.0], ids=["flat", "1/i"])
def test_flat_spectra_are_decomposed_whole(values, rng):
    matrix, _ = covariance_of(values, rng)
    t, eigenvalues = cut(matrix, "variance", 0.99)
    assert t.rank == reference.kept_rank(np.sqrt(values), "variance", 0.99 - 1e-12)
    assert t.numerical_rank == WIDE
    np.testing.assert_allclose(eigenvalues, values[: t.rank], rtol=0, atol=2e-14 * values[0])


def test_more_equal_values_than_a_block_of_lanczos_has_vectors(rng):
    """A Krylov space sees at most one copy of an eigenvalue per start vector; the certificate must notice the rest."""
    values = np.r_[np.full(45, 2.0), np.full(WIDE - 45, 1e-3)]
    matrix = np.diag(rng.permutation(values))
    t, eigenvalues = cut(matrix, "variance", 0.9)
    assert t.rank == reference.kept_rank(np.sqrt(values), "variance", 0.9)
    np.testing.assert_allclose(eigenvalues, 2.0, rtol=1e-13)


def test_a_wide_view_end_to_end(rng):
    """SVCCA of wide float64 layers against SVD of the full matrices, through the leading eigenpairs."""
    n, d = 2000, 640
    common = rng.standard_normal((n, 12))
    views = []
    for _ in range(2):
        mix = rng.standard_normal((12, d)) * np.arange(12, 0, -1)[:, None]
        views.append(common @ mix + 0.3 * rng.standard_normal((n, d)))
    r = sc.svcca(*views, rank=(10, 12))
    x, y = reference.left_vectors(views[0], "rank", 10), reference.left_vectors(views[1], "rank", 12)
    rho = np.linalg.svd(x.T @ y, compute_uv=False)
    np.testing.assert_allclose(r.correlations, rho, atol=1e-10)
    assert r.numerical_rank_x < 60
    assert abs(r.mean - rho.mean()) <= r.error_bound < 1e-9
