"""Numbers from outside the project: printed by other programs, papers and their code."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_linnerud

import streamcca as sc
from streamcca.significance import wachter_mean


def test_linnerud_as_sas_prints_it():
    data = load_linnerud()
    r = sc.cca(data.data, data.target)
    np.testing.assert_allclose(r.correlations, [0.79560815, 0.20055604, 0.07257029], atol=5e-9)


@pytest.fixture(scope="module")
def kornblith():
    state = np.random.RandomState(1337)
    x = state.randn(100, 10)
    return x, state.randn(100, 10) + x


def test_kornblith_demo_cca(kornblith):
    r = sc.cca(*kornblith)
    expected = [
        0.8851112, 0.86196085, 0.83330185, 0.76440204, 0.74507578,
        0.72447428, 0.67903289, 0.66503897, 0.6093718, 0.54236993,
    ]  # fmt: skip
    np.testing.assert_allclose(r.correlations, expected, atol=6e-9)
    assert r.mean == pytest.approx(0.7310139588, abs=5e-11)
    assert np.mean(r.correlations**2) == pytest.approx(0.5453963322, abs=5e-11)


@pytest.mark.parametrize(("side", "expected"), [("x", 0.7346677196), ("y", 0.7368405675)])
def test_kornblith_demo_pwcca(kornblith, side, expected):
    r = sc.pwcca(*kornblith, side=side)
    assert r.mean == pytest.approx(expected, abs=5e-11)
    assert r.side == side
    # Exchanging the views exchanges the sides.
    other = sc.pwcca(*kornblith[::-1], side="y" if side == "x" else "x")
    assert other.mean == pytest.approx(expected, abs=5e-11)


@pytest.mark.parametrize(("share", "ranks", "expected"), [(0.90, (9, 9), 0.7057648081), (0.95, (10, 9), 0.7466598259)])
def test_kornblith_demo_svcca(kornblith, share, ranks, expected):
    r = sc.svcca(*kornblith, variance=share)
    assert (r.rank_x, r.rank_y) == ranks
    assert r.mean == pytest.approx(expected, abs=5e-11)


@pytest.mark.parametrize(
    ("kx", "ky", "n", "mean", "edge"),
    [
        (100, 50, 2000, 0.2092, 0.375),
        (500, 500, 10000, 0.1908, 0.436),
        (100, 100, 10000, 0.0850, 0.199),
        (20, 20, 10000, 0.0380, 0.089),
    ],
)
def test_chance_level_of_the_papers(kx, ky, n, mean, edge):
    assert wachter_mean(kx, ky, n) == pytest.approx(mean, abs=5.1e-5)
    # Finite views score up to 0.7 % less here than that law (docs/statistics.md).
    assert sc.null_mean(kx, ky, n) == pytest.approx(mean, abs=5e-4)
    assert sc.null_edges(kx, ky, n)[1] == pytest.approx(edge, abs=5.1e-4)


@pytest.mark.parametrize(("kx", "ky", "n"), [(100, 50, 2000), (60, 60, 600)])
def test_unrelated_gaussians_score_the_chance_level(kx, ky, n, rng):
    draws = [sc.cca(rng.standard_normal((n, kx)), rng.standard_normal((n, ky))) for _ in range(6)]
    means = [r.mean for r in draws]
    squares = [np.mean(r.correlations**2) for r in draws]
    # Spread of single draws is about 0.002; Google's tutorial prints 0.2074 for the first case.
    assert np.mean(means) == pytest.approx(draws[0].null_mean, abs=0.004)
    assert np.mean(squares) == pytest.approx(max(kx, ky) / (n - 1), abs=0.002)
    low, high = sc.null_edges(kx, ky, n)
    assert draws[0].correlations[0] < high + 0.03
    assert draws[0].correlations[-1] > low - 0.03


def test_appendix_b_of_the_svcca_paper(rng):
    """A: 50 shared signals; B: them and 150 faint noise directions; C: them and 150 strong other signals.

    CCA cannot tell (A, B) from (A, C), SVCCA must.
    """
    n = 5000
    shared = rng.standard_normal((n, 50))

    def mixed(x):
        return x @ np.linalg.qr(rng.standard_normal((x.shape[1], x.shape[1])))[0]

    a = mixed(shared)
    b = mixed(np.hstack([shared, 0.01 * rng.standard_normal((n, 150))]))
    c = mixed(np.hstack([shared, rng.standard_normal((n, 150))]))
    assert sc.cca(a, b).mean == pytest.approx(1, abs=1e-9)
    assert sc.cca(a, c).mean == pytest.approx(1, abs=1e-9)
    near, far = sc.svcca(a, b, variance=0.99), sc.svcca(b, c, variance=0.99)
    assert near.rank_y <= 50
    assert near.mean > 0.99
    both = sc.svcca(a, c, variance=0.99)
    assert both.rank_y > 150
    # The paper's point is what each keeps: B is cut to the signals, C is not, and noise enters its mean.
    assert far.rank_x <= 50 < 150 < far.rank_y


# Morcos et al. toy of the reference notes, noise 0.1: k shared signals rotated, 200 - k noise, fresh in Y.
MORCOS = {
    20: {"cca": 0.333, "pwcca": 0.473, "variance": (0.326, 165), "nuclear": (0.332, 195)},
    100: {"cca": 0.598, "pwcca": 0.930, "variance": (1.000, 100), "nuclear": (0.620, 187)},
    180: {"cca": 0.909, "pwcca": 0.997, "variance": (1.000, 177), "nuclear": (0.995, 181)},
}


@pytest.mark.parametrize("k", MORCOS)
def test_morcos_toy(k, rng):
    n, d = 2000, 200
    signals = rng.standard_normal((n, k))
    rotation = np.linalg.qr(rng.standard_normal((k, k)))[0]
    x = np.hstack([signals, 0.1 * rng.standard_normal((n, d - k))])
    y = np.hstack([signals @ rotation, 0.1 * rng.standard_normal((n, d - k))])
    expected = MORCOS[k]
    assert sc.cca(x, y).mean == pytest.approx(expected["cca"], abs=0.012)
    # The shared signals correlate perfectly, so their variates, which PWCCA weighs, are free to turn.
    with pytest.warns(sc.AccuracyWarning, match="correlations that tie within rounding"):
        assert sc.pwcca(x, y).mean == pytest.approx(expected["pwcca"], abs=0.012)
    for rule in ("variance", "nuclear"):
        mean, kept = expected[rule]
        r = sc.svcca(x, y, **{rule: 0.99})
        assert r.mean == pytest.approx(mean, abs=0.012)
        assert abs(r.rank_x - kept) <= 2


@pytest.mark.parametrize(
    ("measure", "expected", "within"),
    [
        ("cka", 0.55761, 5.1e-6),
        ("debiased_cka", 0.51346, 5.1e-6),
        ("procrustes", 0.7362553106, 5.1e-11),
        ("mean_squared_cca", 0.5453963322, 5.1e-11),
        ("pwcca_x", 0.7346677196, 5.1e-11),
        ("pwcca_y", 0.7368405675, 5.1e-11),
    ],
)
def test_kornblith_demo_by_name(measure, expected, within):
    state = np.random.RandomState(1337)
    x = state.randn(100, 10)
    y = state.randn(100, 10) + x
    assert sc.similarity(measure, x, y).mean == pytest.approx(expected, abs=within)


@pytest.mark.parametrize(
    ("n", "p", "q", "expected"), [(100, 1000, 1000, 0.909), (1000, 100, 50, 0.066), (256, 4096, 512, 0.792)]
)
def test_biased_cka_of_unrelated_gaussians(n, p, q, expected):
    rng = np.random.default_rng(0)
    r = sc.similarity("cka", rng.standard_normal((n, p)), rng.standard_normal((n, q)), strategy="gram")
    # The approximation leaves 1 / n; single draws scatter by 0.004.
    assert r.mean == pytest.approx(expected, abs=0.012)
    assert r.null_mean == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(("kx", "ky", "n"), [(100, 50, 2000), (20, 20, 10000)])
def test_chance_of_mean_squared_cca(kx, ky, n):
    rng = np.random.default_rng(0)
    r = sc.similarity("mean_squared_cca", rng.standard_normal((n, kx)), rng.standard_normal((n, ky)))
    assert r.null_mean == pytest.approx(max(kx, ky) / (n - 1), rel=1e-12)
