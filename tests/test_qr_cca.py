"""CCA from the triangular factor: known answers, errors of u * kappa instead of u * kappa^2, and bounds that hold."""

from __future__ import annotations

import decimal
import warnings
from fractions import Fraction

import extended
import nist
import numpy as np
import pytest
import reference

import streamcca as sc
from streamcca.qr import QRMoments
from streamcca.qr_cca import qr_compare, qr_moments_of
from streamcca.subspace import Rule

U = 2.0**-53
FULL = Rule("full")
PLANTED = [0.999999, 0.99, 0.9, 0.7, 0.4, 0.1]
needs_long_doubles = pytest.mark.skipif(not extended.AVAILABLE, reason="long doubles are plain doubles here")


def qr(x, y, rule=FULL, side="", **options):
    m, a, b = qr_moments_of((x, y))
    return qr_compare(m, a, b, rule, measure="pwcca" if side else "cca", side=side, **options)


def by_covariances(x, y, measure=sc.cca, **options):
    """Result of the covariance route, or its refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        try:
            return measure(x, y, **options)
        except sc.AccuracyError as error:
            return error


def errors(r, rho):
    return np.abs((rho - r.correlations).astype(float)), abs(float(np.mean(rho) - r.mean))


def assert_covered(r, rho):
    single, mean = errors(r, rho)
    assert mean <= r.error_bound
    assert np.all(single <= r.correlation_error_bounds)


# ---------------------------------------------------------------------- what it is for


@needs_long_doubles
@pytest.mark.parametrize("kappa", [1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10])
def test_planted_correlations_through_ill_conditioned_views(kappa):
    """Errors of at most 10 u kappa + 100 u; the covariance route on the same rows covers its error, or says so."""
    for seed in range(4):
        x, y = extended.planted(np.random.default_rng(seed), 1000, PLANTED, (6, 6), kappa)
        rho = extended.correlations(x, y)[0]
        # The truth of the rounded rows is the planted one up to what rounding moved.
        assert np.abs((rho - PLANTED).astype(float)).max() < 20 * U * kappa + 100 * U
        r, notes = qr(x, y)
        assert not notes or kappa >= 1e9
        assert (r.rank_x, r.rank_y, r.precision) == (6, 6, "float64 (QR)")
        assert errors(r, rho)[0].max() <= 10 * U * kappa + 100 * U
        assert_covered(r, rho)
        assert r.error_bound < 1000 * U * kappa + 1000 * U
        assert r.condition_x == pytest.approx(kappa, rel=9)

        other = by_covariances(x, y)
        if isinstance(other, sc.AccuracyError):
            assert kappa >= 1e4
        elif (other.rank_x, other.rank_y) == (6, 6):
            assert_covered(other, rho)
            assert kappa < 1e5 or any("rounding may have moved" in text for text in other.warnings)
        else:
            assert kappa >= 1e5
            assert any("numerical rank" in text for text in other.warnings)


def digits(found, exact):
    """Correct decimal digits (LRE) of a float against a fraction's root."""
    with decimal.localcontext(prec=40):
        root = (decimal.Decimal(exact.numerator) / exact.denominator).sqrt()
        error = abs(decimal.Decimal(found) - root) / root
        return 17.0 if error == 0 else float(-error.log10())


@pytest.mark.parametrize("name", nist.CERTIFIED)
def test_nist_linear_regression(name):
    """The correlation of predictors and response is the root of R squared, certified to 15 digits."""
    certified = Fraction(nist.CERTIFIED[name])
    assert abs(nist.exact_r_squared(*nist.exact(name)) - certified) <= Fraction(1, 10**15)  # no digit is wrong
    x, y = nist.rounded(name)
    r, notes = qr(x, y)
    assert notes == []
    assert r.rank_x == x.shape[1]
    assert digits(r.correlations[0], certified) >= (10 if name == "Filip" else 13)
    # Rounding the predictors to float64 already costs Filip all but 10.7 digits; that is not this route's error.
    own = nist.exact_r_squared(x.tolist(), y[:, 0].tolist())
    error = 10 ** -digits(r.correlations[0], own)
    assert error <= r.error_bound
    other = by_covariances(x, y)
    if name == "Filip":
        assert isinstance(other, sc.AccuracyError) or any("numerical rank 8 of" in text for text in other.warnings)
    else:
        assert digits(other.correlations[0], certified) >= 13


def test_the_nuclear_rule_sees_directions_that_a_covariance_loses(rng):
    """Of 40 directions of 1e-9 of the leading one's size each, the covariance route sees rounding."""
    n, d = 2000, 41
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, d))]))[0][:, 1:]
    x = basis * np.r_[1.0, np.full(d - 1, 1e-9)] @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    r, _ = qr(x, x[:, :3], Rule("rank", 41, 3))
    assert r.numerical_rank_x == 41
    with pytest.raises(sc.InputError, match="numerical rank is"):
        sc.svcca(x, x[:, :3], rank=(41, 3))
    s = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    share = 1 - 20.5e-9 / s.sum()
    r, _ = qr(x, x[:, :3], Rule("nuclear", share, share))
    assert abs(r.rank_x - reference.kept_rank(s, "nuclear", share)) <= 1
    assert 15 < r.rank_x < 26


# ---------------------------------------------------------------------- where the covariance route is good, the same


RULES = [FULL, Rule("variance", 0.9, 0.9), Rule("nuclear", 0.9, 0.9), Rule("rank", 7, 4), Rule("variance", 1.0, 1.0)]


@pytest.fixture
def views(rng):
    x = rng.standard_normal((3000, 30)) @ rng.standard_normal((30, 30)) + 5
    return x, x[:, :20] + 3 * rng.standard_normal((3000, 20))


def options_of(rule):
    if rule.name == "full":
        return {}
    return {rule.name: (int(rule.x), int(rule.y)) if rule.name == "rank" else rule.x}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("side", ["", "x", "y"])
def test_every_number_is_that_of_the_covariance_route(rule, side, views):
    x, y = views
    r, notes = qr(x, y, rule, side)
    options = {"side": side} if side else {}
    q = by_covariances(x, y, sc.pwcca if side else sc.cca, **options_of(rule), **options)
    assert notes == []
    for name in ("rank_x", "rank_y", "n", "rows", "width_x", "width_y", "side", "ridge", "measure", "null_mean"):
        assert getattr(r, name) == getattr(q, name), name
    assert (r.numerical_rank_x, r.numerical_rank_y) == (30, 20)
    assert r.mean == pytest.approx(q.mean, abs=r.error_bound + q.error_bound)
    for name in ("correlations", "shares", "x_weights", "y_weights"):
        a, b = getattr(r, name), getattr(q, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * max(1, np.abs(b).max()), err_msg=name)
        assert a.dtype == np.float64
        assert not a.flags.writeable
    assert r.shares.sum() == pytest.approx(1)
    for name in ("share_x", "share_y", "margin_x", "margin_y"):
        assert getattr(r.truncation, name) == pytest.approx(getattr(q.truncation, name), abs=1e-12), name
    assert (r.truncation.rule, r.truncation.resolved) == (rule, True)
    assert r.condition_x == pytest.approx(q.condition_x, rel=1e-10)
    assert r.condition_y == pytest.approx(q.condition_y, rel=1e-10)
    assert "nan" not in str(r.to_dict())


@pytest.mark.parametrize("rule", [FULL, Rule("rank", 12, 9)], ids=str)
def test_weights_give_variates_of_unit_variance_with_these_correlations(rule, views):
    x, y = views
    r, _ = qr(x * 1e3, y, rule)
    h, g = (x * 1e3 - x.mean(axis=0) * 1e3) @ r.x_weights, (y - y.mean(axis=0)) @ r.y_weights
    m = len(r.correlations)
    np.testing.assert_allclose(reference.covariance(h), np.eye(m), atol=1e-11)
    np.testing.assert_allclose(reference.covariance(g), np.eye(m), atol=1e-11)
    np.testing.assert_allclose(reference.covariance(h, g), np.diag(r.correlations), atol=1e-11)


@pytest.mark.parametrize("side", ["x", "y"])
def test_pwcca_is_that_of_the_definition(side, views):
    r, _ = qr(*views, FULL, side)
    assert r.mean == pytest.approx(reference.pwcca(*views, side=side), abs=1e-13)


def test_any_two_of_several_views_in_any_order(rng):
    common = rng.standard_normal((900, 3))
    x = {name: common[:, :k] + rng.standard_normal((900, k)) for name, k in (("a", 2), ("b", 3), ("c", 1), ("d", 3))}
    m = QRMoments({name: value.shape[1] for name, value in x.items()})
    m.update(x)
    for a in x:
        for b in x:
            r, _ = qr_compare(m, a, b, FULL, measure="cca")
            np.testing.assert_allclose(r.correlations, reference.correlations(x[a], x[b])[0], rtol=0, atol=1e-14)


def test_row_weights_repeat_rows(rng):
    x, y = rng.standard_normal((400, 4)), rng.standard_normal((400, 3))
    weights = rng.integers(0, 4, 400)
    m = QRMoments({"x": 4, "y": 3})
    m.update(x=x, y=y, weights=weights)
    r, _ = qr_compare(m, "x", "y", FULL, measure="cca")
    rho, _, _ = reference.correlations(np.repeat(x, weights, axis=0), np.repeat(y, weights, axis=0))
    np.testing.assert_allclose(r.correlations, rho, rtol=0, atol=1e-14)
    assert (r.n, r.rows) == (weights.sum(), (weights > 0).sum())


# ---------------------------------------------------------------------- bounds


def mixed(kappa, low=0.05, high=0.999):
    def make(rng, n, dx, dy):
        return extended.planted(rng, n, np.linspace(low, high, min(dx, dy)), (dx, dy), kappa)

    make.__name__ = f"planted {kappa:.0e} {low}"
    return make


def one_factor(rng, n, dx, dy):
    """All neurons go up and down together: the largest singular value is as large as it can be."""
    common = 30 * rng.standard_normal((n, 1))
    x = rng.standard_normal((n, dx))
    return common + x, 1.01 * common + x[:, :1] + rng.standard_normal((n, dy))


def graded(rng, n, dx, dy):
    x, y = mixed(100.0)(rng, n, dx, dy)
    return x * 10.0 ** rng.uniform(-8, 8, dx), y * 10.0 ** rng.uniform(-8, 8, dy)


def far_from_zero(rng, n, dx, dy):
    x, y = mixed(1000.0)(rng, n, dx, dy)
    return 100 * x + 1e7 * rng.standard_normal(dx), 100 * y + 1e7 * rng.standard_normal(dy)


def jump(rng, n, dx, dy):
    """All rows but the first lie a million deviations away."""
    x, y = mixed(100.0)(rng, n, dx, dy)
    after = (np.arange(n) >= 512)[:, None]
    return 100 * x + 1e6 * after * rng.standard_normal(dx), 100 * y + 1e6 * after * rng.standard_normal(dy)


def few_levels(rng, n, dx, dy):
    z = rng.standard_normal((n, dx))
    y = z @ rng.standard_normal((dx, dy)) / np.sqrt(dx) + 0.5 * rng.standard_normal((n, dy))
    levels = np.array([0.1, 0.37, 0.93])
    return levels[(z > 1).astype(int) + (z > -1)], levels[(y > 1).astype(int) + (y > -1)]


def sorted_classes(rng, n, dx, dy):
    k = 3 * (dx + dy)
    rows = np.sort(rng.integers(0, k, n))
    x, y = rng.standard_normal((k, dx)), rng.standard_normal((k, dy))
    y[:, : min(dx, dy)] += x[:, : min(dx, dy)]
    return x[rows], y[rows]


def heavy_tails(rng, n, dx, dy):
    size = np.abs(rng.standard_cauchy((n, 1)))
    x, y = rng.standard_normal((n, dx)), rng.standard_normal((n, dy))
    y[:, : min(dx, dy)] += x[:, : min(dx, dy)]
    return size * x, size * y


def powers(rng, n, dx, dy):
    t = rng.uniform(1, 2, n)
    s = t + 0.01 * rng.standard_normal(n)
    return np.vander(t, min(dx, 8) + 1)[:, :-1], np.vander(s, min(dy, 7) + 1)[:, :-1]


KINDS = [
    *(mixed(kappa) for kappa in (1e1, 1e4, 1e7, 1e10)),
    *(mixed(kappa, 1, 1) for kappa in (1e2, 1e9)),  # perfect
    *(mixed(kappa, 0.999999, 1) for kappa in (1e3, 1e8)),
    *(one_factor, graded, far_from_zero, jump, few_levels, sorted_classes, heavy_tails, powers),
]
SHAPES = [(150, 8, 6), (1500, 6, 9)]


@needs_long_doubles
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_errors_lie_within_the_bound(kind):
    for seed, shape in enumerate([*SHAPES, *SHAPES]):
        x, y = kind(np.random.default_rng(seed), *shape)
        m, a, b = qr_moments_of((x, y))
        for rule in (FULL, Rule("variance", 0.97, 0.97), Rule("nuclear", 0.9, 0.9), Rule("rank", 3, 5)):
            r, _ = qr_compare(m, a, b, rule, measure="cca", allow_inaccurate=True)
            value = {"full": None, "rank": (3, 5)}.get(rule.name, rule.x)
            rho, kx, ky = extended.correlations(x, y, rule.name, value)
            assert (r.rank_x, r.rank_y) == (kx, ky) or not r.truncation.resolved
            if (r.rank_x, r.rank_y) == (kx, ky):
                assert_covered(r, rho)


@needs_long_doubles
@pytest.mark.parametrize("kappa", [1e1, 1e4, 1e8])
def test_the_bound_is_not_a_thousand_times_the_error(kappa):
    """Against the root mean square error over seeds; a single error may be small by luck."""
    found, bounds = [], []
    for seed in range(12):
        x, y = mixed(kappa)(np.random.default_rng(seed), 400, 8, 6)
        r, _ = qr(x, y)
        found.append(errors(r, extended.correlations(x, y)[0])[1])
        bounds.append(r.error_bound)
    ratio = np.sqrt(np.mean(np.square(bounds)) / np.mean(np.square(found)))
    assert 3 < ratio < 100


@needs_long_doubles
def test_the_bound_grows_with_the_number_of_blocks_as_the_errors_do():
    """Each block rounds the whole factor once more."""
    found, bounds = [], []
    for seed in range(6):
        x, y = mixed(1e5)(np.random.default_rng(seed), 60_000, 4, 3)
        r, _ = qr(x, y)
        assert_covered(r, extended.correlations(x, y)[0])
        found.append(errors(r, extended.correlations(x, y)[0])[1])
        bounds.append(r.error_bound)
    assert 3 < np.sqrt(np.mean(np.square(bounds)) / np.mean(np.square(found))) < 100


@needs_long_doubles
def test_the_bound_knows_of_rows_that_left_the_shift_behind():
    """The same rows, once with the first block far from all others and once shuffled: the shift then lies elsewhere."""
    rng = np.random.default_rng(0)
    x, y = mixed(1e4)(rng, 20_000, 4, 3)
    size = np.sqrt(20_000)
    far = (np.arange(20_000) >= 512)[:, None]
    x, y = size * x + 30 * far * rng.standard_normal(4), size * y + 30 * far * rng.standard_normal(3)
    order = rng.permutation(20_000)
    drifted, shuffled = qr(x, y)[0], qr(x[order], y[order])[0]
    rho = extended.correlations(x, y)[0]
    assert_covered(drifted, rho)
    assert_covered(shuffled, rho)
    assert 3 * shuffled.error_bound < drifted.error_bound < 30 * shuffled.error_bound


@needs_long_doubles
def test_a_cut_between_near_singular_values_feels_what_stretches_columns():
    """Each block stretches columns by a roundoff or two, which only a cut notices; bounds are eight deviations."""
    found = []
    for seed in range(3):
        x, y = few_levels(np.random.default_rng(500 + seed), 30_000, 7, 6)
        m, a, b = qr_moments_of((x, y))
        for k in (2, 3, 4, 5):
            r, _ = qr_compare(m, a, b, Rule("rank", k, k), measure="svcca")
            rho = extended.correlations(x, y, "rank", k)[0]
            assert_covered(r, rho)
            found.append(8 * (errors(r, rho)[0] / r.correlation_error_bounds).max())
    assert 0.1 < np.sqrt(np.mean(np.square(found))) < 1


@needs_long_doubles
def test_merged_parts_stay_within_the_bound():
    for seed in range(4):
        x, y = mixed(1e6)(np.random.default_rng(seed), 6000, 6, 5)
        whole = QRMoments({"x": 6, "y": 5})
        for i in range(0, 6000, 750):
            part = QRMoments({"x": 6, "y": 5})
            part.update(x=x[i : i + 750], y=y[i : i + 750])
            whole.merge(part)
        r, _ = qr_compare(whole, "x", "y", FULL, measure="cca")
        assert_covered(r, extended.correlations(x, y)[0])


@needs_long_doubles
@pytest.mark.parametrize("kappa", [1e2, 1e6])
def test_pwcca_lies_within_its_bound(kappa):
    found, bounds = [], []
    for seed in range(8):
        x, y = mixed(kappa, 0.1, 0.95)(np.random.default_rng(seed), 500, 7, 6)
        ux, uy = extended.left_vectors(x), extended.left_vectors(y)
        w, rho, _ = extended.svd(ux.T @ uy)
        sizes = np.abs((ux @ w).T @ extended.centered(x)).sum(axis=1)
        r, _ = qr(x, y, FULL, "x")
        found.append(abs(float(sizes @ rho / sizes.sum() - r.mean)))
        bounds.append(r.error_bound)
        assert found[-1] <= bounds[-1]
    assert 3 < np.sqrt(np.mean(np.square(bounds)) / np.mean(np.square(found))) < 300


def test_ties_leave_the_weights_of_pwcca_undetermined(rng):
    signals = rng.standard_normal((1000, 8))
    x = np.hstack([signals, 0.1 * rng.standard_normal((1000, 20))])
    y = np.hstack([signals @ np.linalg.qr(rng.standard_normal((8, 8)))[0], 0.1 * rng.standard_normal((1000, 20))])
    r, notes = qr(x, y, FULL, "x")
    assert any("correlations that tie within rounding leave their variates" in str(note) for note in notes)
    others = [qr(x + 1e-14 * rng.standard_normal(x.shape), y, FULL, "x")[0].mean for _ in range(4)]
    assert 1e-6 < max(abs(mean - r.mean) for mean in others) < r.error_bound


@needs_long_doubles
def test_correlations_that_tie_bound_each_other(rng):
    """A correlation of well-conditioned neurons that ties with one of ill-conditioned ones moves by its error."""
    basis = np.linalg.qr(np.hstack([np.ones((500, 1)), rng.standard_normal((500, 5))]))[0][:, 1:]
    quiet, noisy, large, *rest = (basis[:, i : i + 1] for i in range(5))
    x = np.hstack([quiet, noisy + 1e7 * large, 1e7 * large])
    y = 0.8 * np.hstack([quiet, noisy]) + 0.6 * np.hstack(rest)
    single = []
    for seed in range(5):
        turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((2, 2)))[0]
        r, _ = qr(x, y @ turn)
        assert_covered(r, extended.correlations(x, y @ turn)[0])
        single.append(r.correlation_error_bounds)
    alone, _ = qr(x[:, :1], y[:, :1])
    assert np.min(single) > 1e5 * alone.error_bound


def test_a_gap_at_the_cut_that_is_nearly_closed_enlarges_the_bound(rng):
    n = 2000
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, 20))]))[0][:, 1:]
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    # Of every second direction only, since a y that treated both sides of the cut alike would not notice their turn.
    y = basis[:, 5:15] + 0.3 * basis[:, :10] * (np.arange(10) % 2)
    bounds = []
    for gap in (0.5, 1e-4, 1e-6, 1e-12):
        s = np.array([3.0, 2.5, 2.0, 1.5, 1 + gap, 1.0, 0.5, 0.4, 0.3, 0.2])
        r, _ = qr((basis[:, :10] * s) @ turn, y, Rule("rank", 5, 10), allow_inaccurate=True)
        bounds.append(r.error_bound)
    assert bounds[0] * 30 < bounds[1]
    assert bounds[1] * 30 < bounds[2]
    assert bounds[2] * 30_000 < bounds[3]


# ---------------------------------------------------------------------- what is left out, warned of and refused


def test_dependent_and_constant_neurons_are_left_out(rng):
    z = rng.integers(-50, 50, (700, 5)).astype(float)
    x = np.hstack([z, z[:, :2] + z[:, 2:4], np.full((700, 1), 3.0)])  # exactly dependent, one constant
    y = z @ rng.standard_normal((5, 4)) + rng.standard_normal((700, 4))
    r, notes = qr(x, y)
    assert (r.rank_x, r.numerical_rank_x, r.rank_y, r.width_x) == (5, 5, 4, 8)
    assert [str(note) for note in notes] == ["view 'x': 1 constant neurons are left out"]
    assert r.warnings == ("view 'x': 1 constant neurons are left out",)
    np.testing.assert_allclose(r.correlations, reference.correlations(z, y)[0], rtol=0, atol=1e-14)
    assert not r.x_weights[7].any()
    assert np.isfinite(r.x_weights).all()
    assert r.error_bound < 1e-12


def test_directions_that_rounding_hides_widen_the_bound(rng):
    """Through 4000 blocks rounding is above 100 roundings of float64 rows, and what is below could be something."""
    z = rng.integers(-50, 50, (512, 3)).astype(float)
    x = np.hstack([z, z[:, :1] + z[:, 1:2]])
    y = z + rng.integers(-50, 50, (512, 3))
    m = QRMoments({"x": 4, "y": 3})
    m.update(x=x, y=y)
    one, notes = qr_compare(m, "x", "y", FULL, measure="cca")
    assert (one.rank_x, notes, one.truncation.resolved) == (3, [], True)
    for _ in range(12):
        m.merge(m)  # 4096 times the rows
    r, notes = qr_compare(m, "x", "y", FULL, measure="cca")
    assert (r.rank_x, r.truncation.resolved) == (3, True)
    m = QRMoments({"x": 4, "y": 3})
    m.update(x=np.tile(x, (4000, 1)), y=np.tile(y, (4000, 1)))
    r, notes = qr_compare(m, "x", "y", FULL, measure="cca")
    np.testing.assert_allclose(r.correlations, one.correlations, rtol=0, atol=1e-12)
    assert r.rank_x == 3
    assert not r.truncation.resolved
    assert r.error_bound == pytest.approx(1 / 3, rel=1e-6)
    assert any("numerical rank 3 of at most 4; directions below rounding are left out" in str(n) for n in notes)
    # Of float32 rows nothing can hide there.
    m = QRMoments({"x": 4, "y": 3})
    m.update(x=np.tile(x, (4000, 1)).astype(np.float32), y=np.tile(y, (4000, 1)).astype(np.float32))
    r, notes = qr_compare(m, "x", "y", FULL, measure="cca")
    assert (r.rank_x, notes, r.truncation.resolved) == (3, [], True)


@pytest.mark.parametrize("rule", ["variance", "nuclear"])
def test_a_cut_that_rounding_leaves_open_is_said_and_refused(rule, rng):
    n = 600
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, 6))]))[0][:, 1:]
    s = np.array([4.0, 3.0, 2.0, 1.0])
    x = (basis[:, :4] * s) @ np.linalg.qr(rng.standard_normal((4, 4)))[0]
    y = basis[:, 2:3] + 0.3 * basis[:, 5:6]
    m, a, b = qr_moments_of((x, y))
    powers = np.linalg.svd(m.factor().centered[:4, :4], compute_uv=False) ** (2 if rule == "variance" else 1)
    exact = float(powers[:2].sum() / powers.sum())
    for share in (exact * (1 - 1e-15), exact * (1 + 2e-15)):
        with pytest.raises(sc.AccuracyError, match="since it decides the rank; truncate more, or pass allow_inacc"):
            qr_compare(m, a, b, Rule(rule, share, share), measure="svcca")
        r, notes = qr_compare(m, a, b, Rule(rule, share, share), measure="svcca", allow_inaccurate=True)
        assert not r.truncation.resolved
        assert any(f"every rank from 2 to 3 satisfies {rule}=" in str(note) for note in notes)
        assert r.error_bound == 1.0
    for share, rank in ((exact - 1e-12, 2), (exact + 1e-12, 3)):
        r, notes = qr_compare(m, a, b, Rule(rule, share, share), measure="svcca")
        assert (r.rank_x, r.truncation.resolved, notes) == (rank, True, [])


def test_warning_above_1e_6_and_refusal_above_1e_2():
    rng = np.random.default_rng(0)
    x, y = extended.planted(rng, 1000, PLANTED, (6, 6), 1e11)
    r, notes = qr(x, y)
    assert r.error_bound > 1e-6
    assert [type(note) for note in notes] == [sc.AccuracyWarning]
    assert "rounding may have moved the mean by up to" in str(notes[0])
    x, y = extended.planted(rng, 1000, PLANTED, (6, 6), 1e14)
    with pytest.raises(
        sc.AccuracyError, match=r"views 'x' and 'y': rounding may have moved the mean by .*0\.01; trunc"
    ):
        qr(x, y)
    assert qr(x, y, allow_inaccurate=True)[0].error_bound > 1e-2


def test_too_few_rows(rng):
    x, y = rng.standard_normal((6, 5)), rng.standard_normal((6, 3))
    with pytest.raises(sc.UnderdeterminedError, match="n = 6 rows are too few for"):
        qr(x, y)
    r, notes = qr(x, y, allow_underdetermined=True)
    assert r.correlations == pytest.approx(1, abs=1e-13)
    assert isinstance(notes[0], sc.SampleSizeWarning)
    r, notes = qr(np.vstack([x, x + y[:, :1]]), np.vstack([y, x[:, :3]]) + 1)
    assert notes == []
    x, y = rng.standard_normal((9, 5)), rng.standard_normal((9, 4))
    r, notes = qr(x, y)
    assert "force 1 of the 4 correlations to 1" in str(notes[0])
    assert r.correlations[0] == pytest.approx(1, abs=1e-13)


def test_bad_views_and_ranks(rng):
    x, y = rng.standard_normal((100, 3)), rng.standard_normal((100, 2))
    for pair, rule, sentence in [
        ((x, np.ones((100, 2))), FULL, "view 'y': every neuron is constant over the rows"),
        ((x, 1e9 + 1e-8 * y), FULL, "view 'y': every neuron is constant over the rows"),
        ((x[:, [0, 0]], y), Rule("rank", 2, 2), "view 'x': rank 2 was asked for, but the numerical rank is 1; ask for"),
        ((x, y), Rule("rank", 3, 3), "view 'y': rank 3 was asked for, but the numerical rank is 2"),
    ]:
        with pytest.raises(sc.InputError, match=sentence):
            qr(*pair, rule)
    m = QRMoments({"x": 3, "y": 2}, nonfinite="propagate")
    m.update(x=x * np.nan, y=y)
    with pytest.raises(sc.InputError, match="view 'x': the moments are not finite, since rows with NaN were let"):
        qr_compare(m, "x", "y", FULL, measure="cca")
    m = QRMoments({"x": 3, "y": 2})
    m.update(x=x, y=y, weights=np.full(100, 0.005))
    with pytest.raises(sc.InputError, match="there is no view 'z'"):
        qr_compare(m, "x", "z", FULL, measure="cca")
    with pytest.raises(sc.InputError, match=r"n = 0\.5\d* rows leave nothing to divide by"):
        qr_compare(m, "x", "y", FULL, measure="cca")


def test_it_is_invariant_to_what_cca_is_invariant_to(rng):
    x, y = rng.standard_normal((800, 6)), rng.standard_normal((800, 4))
    y += x[:, :4]
    r, _ = qr(x, y)
    mix = rng.standard_normal((6, 6))
    for other, _ in (
        qr(x @ mix, y),
        qr(x + 1e3, y - 1e3),
        qr(x * 10.0 ** np.arange(-6.0, 6.0, 2.0), y),
        qr(x * 1e-150, y * 1e140),
        qr(x[::-1], y[::-1]),
        qr(x[:, ::-1], y),
    ):
        np.testing.assert_allclose(other.correlations, r.correlations, rtol=0, atol=1e-12)
    swapped, _ = qr(y, x)
    np.testing.assert_allclose(swapped.correlations, r.correlations, rtol=0, atol=1e-14)
    itself, _ = qr(x, x)
    assert itself.correlations == pytest.approx(1, abs=1e-14)
