"""strategy=: every route from the data to the same numbers, and what each refuses."""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pytest

import streamcca as sc
from streamcca.cli import main

ROUTES = ("covariance", "gram", "qr")


@pytest.fixture
def views(decaying):
    return decaying(400, 30, 20)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("rule", [{"variance": 0.9}, {"nuclear": 0.9}, {"rank": (5, 7)}])
def test_all_routes_agree(views, route, rule, tmp_path):
    x, y = views
    truth = sc.svcca(x, y, **rule)
    r = sc.svcca(x, y, strategy=route, **rule)
    assert (r.strategy, r.rank_x, r.rank_y) == (route, truth.rank_x, truth.rank_y)
    np.testing.assert_allclose(r.correlations, truth.correlations, atol=1e-10)
    assert r.to_dict()["strategy"] == route
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    for data in ((tmp_path / "x.npy", tmp_path / "y.npy"), (zip(np.split(x, 4), np.split(y, 4), strict=True),)):
        assert sc.svcca(*data, strategy=route, **rule).mean == pytest.approx(truth.mean, abs=1e-10)


def test_pwcca_and_weights_by_qr(views):
    x, y = views
    by_qr, truth = (sc.pwcca(x, y, side="y", strategy=s) for s in ("qr", "covariance"))
    assert by_qr.mean == pytest.approx(truth.mean, abs=1e-10)
    np.testing.assert_allclose(np.abs(by_qr.x_weights), np.abs(truth.x_weights), atol=1e-7)
    assert by_qr.precision == "float64 (QR)"


def test_an_ill_conditioned_view_goes_by_qr(rng):
    """The covariance route warns and names what helps; QR keeps the digits."""
    latent = rng.standard_normal((2000, 6))
    x = latent @ np.diag(np.geomspace(1, 1e-7, 6)) @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    y = latent + rng.standard_normal((2000, 6))
    truth = sc.cca(latent, y, strategy="qr")
    with pytest.warns(sc.AccuracyWarning, match="strategy='qr'"):
        rough = sc.cca(x, y, allow_inaccurate=True)
    fine = sc.cca(x, y, strategy="qr")
    np.testing.assert_allclose(fine.correlations, truth.correlations, atol=1e-8)
    assert fine.error_bound < 1e-6 < rough.error_bound


def test_states_go_their_own_way(views):
    x, y = views
    m = sc.QRMoments({"a": 30, "b": 20})
    m.update(a=x, b=y)
    assert sc.svcca(m, "a", "b", rank=5).strategy == "qr"
    assert sc.svcca(m, rank=5).mean == sc.svcca(x, y, rank=5, strategy="qr").mean
    with pytest.raises(sc.InputError, match="QRMoments, which are of strategy 'qr'"):
        sc.svcca(m, "a", "b", strategy="covariance")
    with pytest.raises(sc.InputError, match="QRMoments, which are of strategy 'qr'"):
        sc.cka(m, "a", "b")
    with pytest.raises(sc.InputError, match="ridge: strategy='qr'"):
        sc.cca(x, y, ridge=0.1, strategy="qr")
    with pytest.raises(sc.InputError, match="folder: got a folder"):
        sc.cka(x, y, folder="f", strategy="covariance")
    with pytest.raises(sc.InputError, match="got 'qr', expected one of 'auto', 'covariance', 'gram'"):
        sc.cka(x, y, strategy="qr")


SKETCHED = {"precision": "float64", "strategy": "sketch"}


@pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")
def test_a_sketch_is_near_and_says_how_near(decaying, tmp_path):
    x, y = decaying(600, 200, 150, power=1.0)
    truth = sc.svcca(x, y, rank=8)
    for options in ({}, {"power": 1}, {"directions": 40}):
        r = sc.svcca(x, y, rank=8, **SKETCHED, **options)
        assert (r.strategy, r.rank_x, r.width_x, r.n) == ("sketch", 8, 200, 600)
        assert abs(r.mean - truth.mean) <= r.error_bound < 1e-2
    share = sc.svcca(x, y, variance=0.95, **SKETCHED, power=2)
    assert share.rank_x == sc.svcca(x, y, variance=0.95).rank_x
    once = sc.svcca(iter([(x, y)]), rank=8, **SKETCHED, replay=False)
    assert abs(once.mean - truth.mean) <= once.error_bound
    with pytest.raises(sc.InputError, match="cannot be read again"):
        sc.svcca(iter([(x, y)]), rank=8, **SKETCHED)


def test_views_with_fewer_directions_than_the_sketch(rng):
    """Rows of 9 latents: Ritz values of the other directions are 0 or rounding, and no share depends on them."""
    latent = rng.standard_normal((300, 9))
    x, y = latent @ rng.standard_normal((9, 80)), (latent + 0.5) @ rng.standard_normal((9, 70))
    for share in (0.9, 1 - 1e-9):
        r, truth = (sc.svcca(x, y, variance=share, strategy=s, precision="float64") for s in ("sketch", "covariance"))
        assert (r.rank_x, r.rank_y) == (truth.rank_x, truth.rank_y)
        np.testing.assert_allclose(r.correlations, truth.correlations, atol=1e-9)


@pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")
def test_a_sketch_goes_on_in_its_folder(decaying, tmp_path):
    x, y = decaying(600, 200, 150, power=1.0)
    batches = [(x[i : i + 50], y[i : i + 50]) for i in range(0, 600, 50)]
    whole = sc.svcca(batches, rank=8, **SKETCHED)

    class Broken:
        def __iter__(self):
            yield from batches[:7]
            raise RuntimeError("the node is gone")

    with pytest.raises(RuntimeError, match="the node is gone"):
        sc.svcca(Broken(), rank=8, **SKETCHED, folder=tmp_path / "s")
    again = sc.svcca(batches, rank=8, **SKETCHED, folder=tmp_path / "s")
    assert again.correlations.tobytes() == whole.correlations.tobytes()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strategy": "covariance", "power": 1}, "power: got 1, which only strategy='sketch' knows"),
        ({"strategy": "gram", "directions": 9}, "directions: got 9"),
        ({"strategy": "qr", "replay": False}, "replay: got False"),
        ({"strategy": "sketch", "ridge": 0.1}, "ridge: got 0.1 with strategy='sketch'"),
        ({"strategy": "sketch", "nonfinite": "skip"}, "nonfinite: got 'skip'; strategy='sketch'"),
        ({"strategy": "sketch", "nuclear": 0.9}, "sketch: got nuclear=0.9"),
        ({"strategy": "sketch", "variance": 1.0}, "sketch: got variance=1"),
    ],
)
def test_what_a_route_does_not_know(views, options, sentence):
    with pytest.raises(sc.InputError, match=sentence):
        sc.svcca(*views, **options)


def test_sketched_where_nothing_else_fits(monkeypatch, decaying):
    x, y = decaying(3000, 1200, 1100, power=1.0)
    plan = sys.modules[sc.plan.__module__]
    monkeypatch.setattr(plan, "available_memory", lambda: (32 << 20, "free memory (MemAvailable)"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.AccuracyWarning)
        r = sc.svcca(x.astype(np.float32), y.astype(np.float32), rank=5, directions=60)
    assert r.strategy == "sketch"
    with pytest.raises(sc.MemoryLimitError, match="sketch needs"):
        sc.svcca(x, y, rank=200)
    # What only covariances can answer is refused, not sketched.
    with pytest.raises(sc.MemoryLimitError, match="covariance needs"):
        sc.pwcca(x, y)


# ------------------------------------------------------------------ the command line


@pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")
@pytest.mark.parametrize("strategy", ["auto", "covariance", "gram", "sketch", "qr"])
def test_the_command_line_forces_a_route(strategy, decaying, tmp_path, capsys, monkeypatch):
    x, y = decaying(300, 60, 50, power=1.0)
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", x)
    np.save("y.npy", y)
    arguments = ["compare", "x.npy", "y.npy", "--rank", "4", "--json", "--quiet", "--strategy", strategy]
    more = ["--directions", "30", "--power", "1", "--folder", "state"] if strategy == "sketch" else []
    assert main([*arguments, *more]) == 0
    out = json.loads(capsys.readouterr().out)
    options = {"directions": 30, "power": 1} if strategy == "sketch" else {}
    expected = sc.svcca(x, y, rank=4, strategy=strategy, **options)
    assert out == json.loads(json.dumps(expected.to_dict()))
    assert out["strategy"] == ("covariance" if strategy == "auto" else strategy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--strategy", "replay"], 2, "invalid choice"),
        (["--measure", "pwcca", "--strategy", "gram"], 3, "pwcca: the Gram route keeps no neurons"),
        (["--measure", "cca", "--strategy", "sketch"], 3, "sketch: got no truncation"),
        (["--strategy", "gram", "--power", "1"], 3, "power: got 1, which only strategy='sketch' knows"),
        (["--measure", "pwcca", "--directions", "9"], 2, "--directions goes with --measure svcca, not with pwcca"),
        (["--measure", "cka", "--strategy", "covariance", "--folder", "f"], 3, "folder: got a folder"),
    ],
)
def test_what_the_command_line_refuses(arguments, code, sentence, views, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in zip("xy", views, strict=True):
        np.save(f"{name}.npy", rows)
    try:
        got = main(["compare", "x.npy", "y.npy", *arguments])
    except SystemExit as error:
        got = error.code
    assert got == code
    assert sentence in capsys.readouterr().err
