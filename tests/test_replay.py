"""Pairs from a second pass over the rows: the same numbers, and a second pass that is not the first is refused."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import reference
import torch
from test_compare import models
from test_watch import Recorder, convnet, hooks_of, mlp, positions
from torch import nn

import streamcca as sc
from streamcca import _backend

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")
LAYERS = ["0", "1", "4"]


def both(a, b, data, **options):
    one = sc.compare(a, b, data, strategy="covariance", **options)
    two = sc.compare(a, b, data, strategy="replay", **options)
    assert (one.strategy, two.strategy) == ("covariance", "replay")
    return one, two


@pytest.mark.parametrize("measure", ["svcca", "cca", "pwcca"])
def test_the_same_numbers_as_in_one_pass(measure):
    a, b = models()
    data = list(torch.randn(600, 8).split(64))
    rule = {} if measure == "svcca" else {"variance": 1.0}
    one, two = both(a, b, data, layers=LAYERS, measure=measure, precision="float64", **rule)
    np.testing.assert_allclose(two.matrix, one.matrix, atol=1e-11)
    assert two.n == one.n == 600
    assert two.rows == one.rows
    np.testing.assert_array_equal(two.null_matrix, one.null_matrix)
    for x, y in zip(one.results, two.results, strict=True):
        for p, q in zip(x, y, strict=True):
            np.testing.assert_allclose(q.correlations, p.correlations, atol=1e-10)
            assert q.error_bound >= 0.9 * p.error_bound
            assert q.error_bound <= 30 * p.error_bound + 1e-12
    # Weights are determined where correlations differ; linear layers on the same inputs tie at 1.
    p, q = one["1", "4"], two["1", "4"]
    assert np.all(np.diff(p.correlations) < -1e-3)
    np.testing.assert_allclose(q.x_weights, p.x_weights, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(q.y_weights, p.y_weights, rtol=1e-6, atol=1e-7)
    assert hooks_of(a) == hooks_of(b) == 0


def test_against_numpy_with_a_bound_that_holds():
    torch.manual_seed(2)
    a, b = convnet(), convnet()
    for p in b.parameters():
        nn.init.normal_(p, std=0.3)
    data = list((torch.randn(60, 3, 6, 6) + 500).split(16))
    plain = [Recorder(m, ["a", "b"]) for m in (a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r = sc.compare(a, b, data, layers=["a", "b"], variance=0.9, strategy="replay", allow_inaccurate=True)
    # Every layer ran twice; the second half repeats the first.
    rows = [[x.array(n, positions)[: 60 * 36] for n in ("a", "b")] for x in plain]
    for i in range(2):
        for j in range(2):
            want = reference.correlations(rows[0][i], rows[1][j], "variance", 0.9)[0].mean()
            cell = r.results[i][j]
            assert abs(cell.mean - want) <= cell.error_bound
            assert cell.error_bound < 1e-2


def test_the_bound_covers_what_the_discarded_directions_say(rng):
    """A cut in a slowly falling spectrum, float32 products: the turn of the kept subspace is most of the error."""
    n, d, k = 3000, 60, 25
    scale = np.arange(1, d + 1) ** -0.15
    for seed in range(4):
        own = np.random.default_rng(seed)
        latent = own.standard_normal((n, d))
        x = (latent * scale @ np.linalg.qr(own.standard_normal((d, d)))[0]).astype(np.float32)
        y = (
            (latent + 0.5 * own.standard_normal((n, d))) * scale @ np.linalg.qr(own.standard_normal((d, d)))[0]
        ).astype("f4")
        m = sc.Moments({"x": d, "y": d}, precision="float32")
        m.update(x=x, y=y)
        views = []
        for name in "xy":
            covariance, rounding = m._covariance(name, name)
            views.append(_backend.truncate(covariance, rounding, "rank", k, 0.0))
        cross = m.covariance("x", "y")
        projected = views[0].projection.T @ cross @ views[1].projection
        full = _backend.compare(*views, _backend.canonical(*views, cross), "")
        kept = _backend.compare(*views, _backend.canonical(*views, projected, kept=True), "")
        want, _, _ = reference.correlations(x, y, "rank", k)
        np.testing.assert_allclose(kept["correlations"], full["correlations"], atol=1e-12)
        assert abs(kept["mean"] - want.mean()) <= full["mean_error_bound"] <= kept["mean_error_bound"]
        assert kept["mean_error_bound"] < 30 * full["mean_error_bound"]
        assert np.all(np.abs(kept["correlations"] - want) <= kept["correlation_error_bounds"])


@pytest.mark.slow
def test_memory_decides():
    torch.manual_seed(0)
    widths = {"0": 700, "1": 700, "2": 600}
    a, b = (nn.Sequential(nn.Linear(30, 700), nn.Tanh(), nn.Linear(700, 600)) for _ in "ab")
    data = list(torch.randn(1000, 30).split(250))
    options = {"rank": 20, "precision": "float64"}
    one = sc.compare(a, b, data, **options)
    assert one.strategy == "covariance"
    shapes = {f"{m}:{k}": d for m in "ab" for k, d in widths.items()}
    cross = [(x, y) for x in shapes for y in shapes if x[0] == "a" and y[0] == "b"]
    own = [(x, x) for x in shapes]
    routes = {route.strategy: route for route in sc.plan(shapes, 1000, pairs=own + cross, kept=20).routes}
    assert routes["replay"].memory < routes["covariance"].memory
    between = (routes["replay"].memory + routes["covariance"].memory) // 2
    two = sc.compare(a, b, data, memory=between, **options)
    assert two.strategy == "replay"
    np.testing.assert_allclose(two.matrix, one.matrix, atol=1e-9)
    with pytest.raises(sc.MemoryLimitError, match="read twice"):
        sc.compare(a, b, iter(data), memory=between, **options)
    with pytest.raises(sc.MemoryLimitError, match="watch fewer or narrower layers"):
        sc.compare(a, b, data, memory=1000, **options)
    with pytest.raises(sc.MemoryLimitError, match="strategy='replay' fits"):
        sc.compare(a, b, data, memory=between, strategy="covariance", **options)
    # A full rule is billed for all directions, and a share of the variance is seen to keep more than was billed.
    with pytest.raises(sc.MemoryLimitError, match="no route fits"):
        sc.compare(a, b, data, memory=between, measure="pwcca")
    # What needs no neurons goes by n x n matrices then.
    with pytest.warns(sc.StreamCCAWarning):
        assert sc.compare(a, b, data, memory=routes["gram"].memory, measure="cca").strategy == "gram"
    noise = list(torch.randn(2000, 700).split(500))
    a, b = nn.Sequential(nn.Identity(), nn.Identity()), nn.Sequential(nn.Identity(), nn.Identity())
    shapes = {f"{m}:{k}": 700 for m in "ab" for k in "01"}
    route = sc.plan(
        shapes, pairs=[(x, x) for x in shapes] + [(x, y) for x in shapes for y in shapes if x < "b" < y]
    ).routes[1]
    with pytest.raises(sc.MemoryLimitError, match=r"replay: the rule keeps up to 6\d\d directions"):
        sc.compare(a, b, noise, memory=route.memory, strategy="replay")
    assert hooks_of(a) == hooks_of(b) == 0


@pytest.mark.parametrize("strategy", ["covariance", "replay"])
def test_models_that_share_modules(strategy):
    """The one is inside the other, which feeds it something else: each keeps the rows of its own call."""
    torch.manual_seed(0)
    backbone = mlp()

    class Whole(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(torch.sin(3 * x))

    data = list(torch.randn(500, 8).split(100))
    options = {"precision": "float64", "strategy": strategy, "rank": 3}
    want = sc.compare(backbone, Whole(copy.deepcopy(backbone)), data, "2", layers_b="inner.2", **options)
    assert want["2", "inner.2"].mean < 0.9
    for a, b, names in ((backbone, Whole(backbone), ("2", "inner.2")), (Whole(backbone), backbone, ("inner.2", "2"))):
        got = sc.compare(a, b, data, names[0], layers_b=names[1], **options)
        assert got[names].mean == pytest.approx(want["2", "inner.2"].mean, abs=1e-12)


@pytest.mark.parametrize("measure", ["cca", "pwcca"])
def test_the_full_rule_scales_neurons(measure, rng):
    """Without a rule neurons have unit variances, and projections go through that scale."""
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(12, 9), nn.Tanh()) for _ in "ab")
    with torch.no_grad():
        a[0].weight *= torch.logspace(-2, 0, 9)[:, None]
    data = list(torch.randn(500, 12).split(100))
    one, two = both(a, b, data, layers="1", measure=measure, precision="float64")
    np.testing.assert_allclose(two.matrix, one.matrix, atol=1e-11)
    np.testing.assert_allclose(two["1", "1"].x_weights, one["1", "1"].x_weights, rtol=1e-6)


def test_an_iterator_cannot_be_replayed():
    a, b = models()
    with pytest.raises(sc.InputError, match="read only once"):
        sc.compare(a, b, iter(torch.randn(300, 8).split(50)), layers=LAYERS, strategy="replay")


class Shuffled:
    """A loader that deals its samples anew each time."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data[torch.randperm(len(self.data))].split(50))


class Shrinking:
    def __init__(self, data):
        self.batches = list(data.split(50))

    def __iter__(self):
        batches = list(self.batches)
        self.batches.pop()
        return iter(batches)


class AlwaysDropping(nn.Module):
    """Dropout called as a function, with training=True: eval mode does not turn it off."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 20)
        self.out = nn.Linear(20, 5)

    def forward(self, x):
        return self.out(nn.functional.dropout(self.lin(x), 0.1, training=True))


def test_a_replay_that_is_none_is_refused():
    a, b = models()
    data = torch.randn(300, 8)
    with pytest.raises(sc.ReplayError, match="batch 0 .* other inputs; turn shuffling"):
        sc.compare(a, b, Shuffled(data), layers=LAYERS, strategy="replay")
    with pytest.raises(sc.ReplayError, match="batch 0 .*layer 'a:out' gave other outputs for the same inputs"):
        sc.compare(AlwaysDropping(), b, data, layers="out", layers_b="4", strategy="replay")

    with pytest.raises(sc.ReplayError, match="gave 5 batches, expected 6"):
        sc.compare(a, b, Shrinking(data), layers=LAYERS, strategy="replay")
    assert hooks_of(a) == hooks_of(b) == 0
    # One pass does not care.
    sc.compare(a, b, Shuffled(data), layers=LAYERS)


def test_last_sample_of_a_batch_changed():
    """A single value of one input is enough."""
    a, b = models()
    data = torch.randn(300, 8)

    class Changing:
        times = 0

        def __iter__(self):
            batches = [x.clone() for x in data.split(100)]
            self.times += 1
            if self.times == 2:  # the replay
                batches[-1][-1, -1] += 1e-3
            return iter(batches)

    with pytest.raises(sc.ReplayError, match="batch 2"):
        sc.compare(a, b, Changing(), layers=LAYERS, strategy="replay")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    a, b = (m.to(dtype) for m in models())
    data = list(torch.randn(400, 8, dtype=dtype).split(50))
    one, two = both(a, b, data, layers=["0", "2"], variance=0.9, allow_inaccurate=True)
    assert np.all(np.abs(one.matrix - two.matrix) <= one.error_bounds)


def test_rows_that_are_skipped_are_skipped_twice():
    a, b = models()
    data = torch.randn(400, 8)
    data[3, 2] = float("nan")
    one, two = both(a, b, list(data.split(50)), layers=LAYERS, nonfinite="skip", precision="float64")
    assert one.n == two.n == 399
    np.testing.assert_allclose(two.matrix, one.matrix, atol=1e-11)


def test_each_model_its_own_loader():
    a, b = mlp(), nn.Sequential(nn.Flatten(), nn.Linear(8, 6))
    data = torch.randn(300, 8)
    r = sc.compare(
        a,
        b,
        list(data.split(50)),
        layers="4",
        layers_b="1",
        loader_b=list(data.view(-1, 2, 4).split(50)),
        precision="float64",
    )
    with torch.no_grad():
        want = reference.correlations(a(data).numpy(), b(data).numpy(), "variance", 0.99)[0].mean()
    assert r["4", "1"].mean == pytest.approx(want, abs=1e-10)
    with pytest.raises(sc.InputError, match="differ in the number of batches"):
        sc.compare(
            a, b, list(data.split(50)), layers="4", layers_b="1", loader_b=list(data.view(-1, 2, 4).split(50))[:-1]
        )
    with pytest.raises(sc.InputError, match="two copies"):
        sc.compare(a, a, data, loader_b=data)
