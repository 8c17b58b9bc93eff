"""The error bound covers the true error, and is not so large that it says nothing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import reference

import streamcca as sc

SHAPES = [(150, 30, 25), (600, 64, 40), (3000, 100, 100)]


def gaussian(rng, n, dx, dy, power=0.7):
    latent = rng.standard_normal((n, 10))
    views = []
    for d in (dx, dy):
        own = rng.standard_normal((n, d))
        own[:, :10] += 3 * latent
        views.append((own * np.arange(1, d + 1) ** -power) @ np.linalg.qr(rng.standard_normal((d, d)))[0])
    return views


def sparse_relu(rng, n, dx, dy):
    latent = rng.standard_normal((n, 20))
    return [
        np.maximum(latent @ rng.standard_normal((20, d)) / 4 + rng.standard_normal((n, d)) - 1, 0) for d in (dx, dy)
    ]


def heavy_tails(rng, n, dx, dy):
    latent = rng.standard_t(3, (n, 10))
    return [latent @ rng.standard_normal((10, d)) + rng.standard_t(3, (n, d)) for d in (dx, dy)]


def with_offsets(rng, n, dx, dy):
    return [v + 100 * rng.standard_normal(v.shape[1]) for v in gaussian(rng, n, dx, dy)]


def repeated(rng, n, dx, dy):
    return [np.concatenate([v, v])[:n] for v in gaussian(rng, (n + 1) // 2, dx, dy)]


def rotated(rng, n, dx, dy):
    """Perfectly correlated views: all true correlations are 1."""
    x = gaussian(rng, n, dx, dy)[0]
    return x, x @ np.linalg.qr(rng.standard_normal((dx, dx)))[0]


KINDS = [gaussian, sparse_relu, heavy_tails, with_offsets, repeated, rotated]


def both(kind, shape, seed, measure, rule, dtype):
    x, y = (np.ascontiguousarray(v, dtype=dtype) for v in kind(np.random.default_rng(seed), *shape))
    options = {} if rule == "full" else {rule: {"variance": 0.99, "rank": 10}[rule]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.AccuracyWarning)
        r = measure(x, y, **options, allow_inaccurate=True)
    rho, kx, ky = reference.correlations(x, y, rule, options.get(rule))
    assert (r.rank_x, r.rank_y) == (kx, ky)
    return r, rho


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("measure", "rule"), [(sc.svcca, "variance"), (sc.svcca, "rank"), (sc.cca, "full")])
def test_float32_errors_lie_within_the_bound(kind, shape, measure, rule):
    for seed in range(3):
        r, rho = both(kind, shape, seed, measure, rule, np.float32)
        assert abs(r.mean - rho.mean()) <= r.error_bound
        assert np.all(np.abs(r.correlations - rho) <= r.correlation_error_bounds)


@pytest.mark.parametrize("kind", [gaussian, heavy_tails, with_offsets], ids=lambda k: k.__name__)
@pytest.mark.parametrize("rule", ["variance", "rank"])
def test_the_bound_is_not_a_thousand_times_the_error(kind, rule):
    """Against the root mean square error over seeds; a single error may be small by luck."""
    errors, bounds = [], []
    for seed in range(8):
        r, rho = both(kind, (3000, 100, 100), seed, sc.svcca, rule, np.float32)
        errors.append(r.mean - rho.mean())
        bounds.append(r.error_bound)
    ratio = np.sqrt(np.mean(np.square(bounds)) / np.mean(np.square(errors)))
    assert 3 < ratio < 300
    assert np.mean(np.array(bounds) < 1000 * np.abs(errors)) >= 0.7


def planted_pair(kappa, rng, n=1000):
    """Correlations planted exactly; both views mixed to a condition number that scaling cannot repair."""
    planted = np.array([0.999999, 0.99, 0.9, 0.7, 0.4, 0.1])
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, 12))]))[0][:, 1:]
    x = basis[:, :6]
    y = x * planted + basis[:, 6:] * np.sqrt(1 - planted**2)
    spread = kappa ** -np.linspace(0, 1, 6)

    def mix(v):
        u, w = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
        return v @ (u * spread) @ w

    return mix(x), mix(y), planted


@pytest.mark.parametrize("kappa", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_ill_conditioned_views_in_float64(kappa):
    """Error of the moment route grows like u kappa^2; the bound follows it, then warns, then refuses."""
    for seed in range(4):
        x, y, planted = planted_pair(kappa, np.random.default_rng(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sc.AccuracyWarning)
            r = sc.cca(x, y, allow_inaccurate=True)
        if r.rank_x < 6 or r.rank_y < 6:
            assert kappa >= 1e5  # below rounding, and said so
            assert any("numerical rank" in text for text in r.warnings)
            continue
        # Rounding of the rows themselves, when they were mixed, is not ours: u kappa.
        assert np.all(np.abs(r.correlations - planted) <= r.correlation_error_bounds + 20 * 2.0**-53 * kappa)
        assert r.condition_x == pytest.approx(kappa, rel=9)


def test_warning_above_1e_6_and_refusal_above_1e_2():
    x, y, _ = planted_pair(3e5, np.random.default_rng(0))
    with pytest.warns(sc.AccuracyWarning, match=r"rounding may have moved the mean by up to .*precision='float64'"):
        r = sc.cca(x, y, allow_inaccurate=True)
    assert r.error_bound > 1e-6
    x, y, _ = planted_pair(1200.0, np.random.default_rng(0))
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    with pytest.raises(sc.AccuracyError, match=r"more than 0\.01; truncate more, add a ridge.*allow_inaccurate=True"):
        sc.cca(x32, y32)
    with pytest.warns(sc.AccuracyWarning):
        assert sc.cca(x32, y32, allow_inaccurate=True).error_bound > 1e-2


def test_a_gap_at_the_cut_that_is_nearly_closed_enlarges_the_bound(rng):
    """Two nearly equal variances at the cut: the kept subspace itself is uncertain."""
    n = 2000
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, 20))]))[0][:, 1:]
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    y = basis[:, 5:15] + 0.3 * basis[:, :10]
    bounds = []
    for gap in (0.5, 1e-3, 1e-6):
        s = np.array([3.0, 2.5, 2.0, 1.5, 1 + gap, 1.0, 0.5, 0.4, 0.3, 0.2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sc.AccuracyWarning)
            x = (basis[:, :10] * s) @ turn
            r = sc.svcca(x, y, rank=(5, 10), precision="float32", allow_inaccurate=True)
        bounds.append(r.error_bound)
    assert bounds[0] * 30 < bounds[1]
    assert bounds[1] * 30 < bounds[2]


def test_precision_is_said_and_float64_products_are_exact_to_rounding(rng):
    x = rng.standard_normal((3000, 40)).astype(np.float32)
    y = x[:, :30] + rng.standard_normal((3000, 30)).astype(np.float32)
    narrow, wide = sc.svcca(x, y), sc.svcca(x, y, precision="float64")
    assert (narrow.precision, wide.precision) == ("float32", "float64")
    assert wide.error_bound < 1e-12 < narrow.error_bound
    rho, _, _ = reference.correlations(x, y, "variance", 0.99)
    assert abs(wide.mean - rho.mean()) < 1e-13


# ---------------------------------------------------------------- rows that break the usual assumptions


def few_levels(rng, n, d):
    """Neurons that take three values only: equal products round the same way again and again."""
    z = rng.standard_normal((n, d))
    y = z @ rng.standard_normal((d, d)) / np.sqrt(d) + 0.5 * rng.standard_normal((n, d))
    levels = np.array([0.1, 0.37, 0.93])
    return levels[(z > 1).astype(int) + (z > -1)], levels[(y > 1).astype(int) + (y > -1)]


def sorted_classes(rng, n, d):
    """Collapsed features in the order of the classes: runs of equal rows, hundreds long."""
    rows = np.sort(rng.integers(0, 3 * d, n))
    x, y = rng.standard_normal((3 * d, d)), rng.standard_normal((3 * d, d))
    y += x
    return x[rows], y[rows]


def padding(rng, n, d):
    """Two rows of three are the same padding token."""
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    y += x
    x[np.arange(n) % 3 > 0], y[np.arange(n) % 3 > 0] = x[0], y[0]
    return x, y


def cauchy_rows(rng, n, d):
    size = np.abs(rng.standard_cauchy((n, 1)))
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    scale = min(1.0, 1e4 / np.abs(size * (x + y)).max())  # float16 ends at 65504
    return scale * size * x, scale * size * (x + y)


def one_block_repeated(rng, n, d):
    x, y = few_levels(rng, 256, d)
    return np.tile(x, (n // 256, 1)), np.tile(y, (n // 256, 1))


@pytest.mark.parametrize(
    "kind", [few_levels, sorted_classes, padding, cauchy_rows, one_block_repeated], ids=lambda k: k.__name__
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_repeated_values_and_heavy_tails(kind, dtype):
    for seed in range(3):
        x, y = (v.astype(dtype) for v in kind(np.random.default_rng(seed), 20480, 24))
        for measure, rule in [(sc.cca, {}), (sc.svcca, {"rank": 12}), (sc.svcca, {"variance": 0.9})]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sc.StreamCCAWarning)
                r = measure(x, y, **rule, allow_inaccurate=True)
                exact = measure(x, y, **rule, precision="float64", allow_inaccurate=True)
            assert r.rank_x == exact.rank_x
            assert abs(r.mean - exact.mean) <= r.error_bound
            assert np.all(np.abs(r.correlations - exact.correlations) <= r.correlation_error_bounds)


def test_directions_lost_to_rounding_are_in_the_bound(rng):
    """The second direction of x stands a thousandth above the first; y knows nothing else."""
    z, e, g = rng.standard_normal((3, 2000, 1))
    for gap, dtype in [(1e-3, np.float32), (1e-4, np.float32), (1e-8, np.float64)]:
        x, y = np.hstack([z, z + gap * e]).astype(dtype), (e + 0.1 * g).astype(dtype)
        with pytest.warns(sc.AccuracyWarning, match="numerical rank 1 of at most 2; directions below rounding"):
            r = sc.cca(x, y)
        assert r.error_bound > 0.9
        with pytest.warns(sc.AccuracyWarning, match="numerical rank 1 of at most 2"):
            assert sc.svcca(x, y, variance=1.0).error_bound > 0.9
    x, y = np.hstack([z, z + 1e-3 * e]).astype(np.float32), (e + 0.1 * g).astype(np.float32)
    assert sc.cca(x, y, precision="float64").mean > 0.99


def test_exact_dependence_below_the_rows_own_resolution_is_not_held_against_them(rng):
    """A linear layer from 8 to 20 neurons has rank 8; float64 products on float32 rows show it for certain."""
    x = (rng.standard_normal((2000, 8)) @ rng.standard_normal((8, 20))).astype(np.float32)
    y = (x[:, :6] + rng.standard_normal((2000, 6))).astype(np.float32)
    r = sc.cca(x, y, precision="float64")
    assert (r.rank_x, r.numerical_rank_x, r.width_x) == (8, 8, 20)
    assert r.error_bound < 1e-9
    assert r.warnings == ()


def test_the_nuclear_rule_knows_what_rounding_hides(rng):
    """Many directions below rounding add up in a sum of singular values."""
    u = np.linalg.qr(np.hstack([np.ones((2000, 1)), rng.standard_normal((2000, 40))]))[0][:, 1:]
    s = np.array([1, 0.2495, *[2e-4] * 38])
    x = (u * s @ np.linalg.qr(rng.standard_normal((40, 40)))[0] * 45).astype(np.float32)
    y = (u[:, 1:2] * 45 + 0.5 * rng.standard_normal((2000, 1))).astype(np.float32)
    with pytest.raises(sc.AccuracyError, match="since it decides the rank"):
        sc.svcca(x, y, nuclear=0.8)
    with pytest.warns(sc.AccuracyWarning, match="every rank from 1 to 2 satisfies nuclear=0.8"):
        sc.svcca(x, y, nuclear=0.8, allow_inaccurate=True)
    assert sc.svcca(x, y, nuclear=0.8, precision="float64").rank_x == 2


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e-20), (np.float32, 5e-22), (np.float64, 1e-160)])
def test_underflow_is_in_the_bound(dtype, scale, rng):
    x = rng.standard_normal((3000, 20))
    y = x[:, :15] + rng.standard_normal((3000, 15))
    exact = sc.svcca((x * scale).astype(dtype).astype(float) / scale, y, rank=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.AccuracyWarning)
        r = sc.svcca((x * scale).astype(dtype), y.astype(dtype), rank=10, allow_inaccurate=True)
    assert abs(r.mean - exact.mean) <= r.error_bound
    with pytest.raises(sc.InputError, match="varies by less than its products can hold.*precision='float64'"):
        sc.svcca((x * scale * 1e-5).astype(dtype), y.astype(dtype))


def test_ties_leave_the_weights_of_pwcca_undetermined(rng):
    """Perfect correlations tie; a change of the rows in the last digit turns their variates, and the mean moves."""
    n, k, d = 2000, 20, 200
    signals = rng.standard_normal((n, k))
    x = np.hstack([signals, 0.1 * rng.standard_normal((n, d - k))])
    y = np.hstack([signals @ np.linalg.qr(rng.standard_normal((k, k)))[0], 0.1 * rng.standard_normal((n, d - k))])
    with pytest.warns(sc.AccuracyWarning, match="correlations that tie within rounding leave their variates"):
        r = sc.pwcca(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.AccuracyWarning)
        others = [sc.pwcca(x + 1e-13 * rng.standard_normal(x.shape), y).mean for _ in range(4)]
    moved = max(abs(mean - r.mean) for mean in others)
    assert 1e-5 < moved < r.error_bound


def test_correlations_that_nearly_tie_bound_each_other(rng):
    """A quiet correlation next to a noisy one can move by the noisy one's error."""
    n = 4000
    common = rng.standard_normal((n, 3))
    quiet, noisy = common[:, :1], common[:, 1:2]
    x = np.hstack([quiet, noisy + 15 * common[:, 2:], 15 * common[:, 2:]])
    y = np.hstack([quiet, noisy]) + 0.05 * rng.standard_normal((n, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.AccuracyWarning)
        for _ in range(5):
            mixed = (x @ rng.standard_normal((3, 3))).astype(np.float32)
            r = sc.cca(mixed, y.astype(np.float32), allow_inaccurate=True)
            rho, _, _ = reference.correlations(mixed, y.astype(np.float32))
            assert np.all(np.abs(r.correlations - rho) <= r.correlation_error_bounds)
            assert r.correlation_error_bounds[1] < 60 * r.correlation_error_bounds[0]
