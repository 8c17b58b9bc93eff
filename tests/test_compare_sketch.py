"""All layer pairs of two models by sketches of every layer, or by one triangular factor: against covariances."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from test_watch import Recorder
from torch import nn

import streamcca as sc

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")
LAYERS = ["0", "1", "2"]
ROWS = 500


def wide_net(seed, decay=1.0, dtype=torch.float64):
    """Three layers of 200, 200 and 120 neurons, of the same 60 latents with variances that decay."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(60, 200), nn.Tanh(), nn.Linear(200, 120)).to(dtype)
    with torch.no_grad():
        scales = torch.arange(1, 61, dtype=dtype) ** -decay
        net[0].weight.copy_(torch.randn(200, 60, dtype=dtype) / 8 * scales)
        net[2].weight.copy_(torch.randn(120, 200, dtype=dtype) / 12)
    return net


def inputs(rows=ROWS, dtype=torch.float64):
    return torch.randn(rows, 60, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.fixture
def two():
    return wide_net(1), wide_net(2)


def batches(data, size=90):
    return list(data.split(size))


def truths(x, y, rank):
    """Correlations of every two layers, each cut to its leading directions, in plain NumPy."""
    scores = [
        [np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[0][:, :rank] for rows in side] for side in (x, y)
    ]
    return [[np.linalg.svd(u.T @ v, compute_uv=False) for v in scores[1]] for u in scores[0]]


@pytest.mark.parametrize("decay", [0.6, 1.5])
def test_every_cell_is_within_its_bound(decay):
    nets = wide_net(1, decay), wide_net(2, decay)
    seen = [Recorder(net, LAYERS) for net in nets]
    data = batches(inputs())
    for net in nets:
        for batch in data:
            net(batch)
    expected = truths(*([recorder.array(layer) for layer in LAYERS] for recorder in seen), 6)
    for power in (0, 1):
        r = sc.compare(
            *nets, data, layers=LAYERS, rank=6, strategy="sketch", directions=24, power=power, allow_inaccurate=True
        )
        assert r.strategy == "sketch"
        for one, row in zip(LAYERS, expected, strict=True):
            for other, rho in zip(LAYERS, row, strict=True):
                cell = r[one, other]
                assert abs(cell.mean - rho.mean()) <= cell.error_bound
                assert (np.abs(cell.correlations - rho) <= cell.correlation_error_bounds).all()
                assert (cell.strategy, cell.width_x, cell.n) == ("sketch", 120 if one == "2" else 200, ROWS)
                assert cell.x_weights.shape == (0, 6)
        assert (r.layers_a, r.n, r.matrix.shape) == (tuple(LAYERS), ROWS, (3, 3))


def test_the_bound_is_no_excuse(two):
    """A steep spectrum, some directions to spare and a power step: nothing is lost, and the bound says so."""
    a, b = wide_net(1, 1.5), wide_net(2, 1.5)
    data = batches(inputs())
    truth = sc.compare(a, b, data, layers=LAYERS, rank=6, strategy="covariance")
    r = sc.compare(a, b, data, layers=LAYERS, rank=6, strategy="sketch", directions=48, power=2)
    np.testing.assert_allclose(r.matrix, truth.matrix, atol=1e-9)
    assert r.error_bounds.max() < 1e-5


@pytest.mark.parametrize("power", [0, 1])
def test_the_numbers_of_svcca_by_sketch(two, power):
    """Two layers alone: the passes are those of svcca, to the last bit."""
    a, b = two
    seen = [Recorder(net, ["0"]) for net in two]
    data = batches(inputs())
    how = {"strategy": "sketch", "directions": 30, "power": power, "allow_inaccurate": True}
    r = sc.compare(a, b, data, layers="0", rank=(5, 7), **how)["0", "0"]
    x, y = (recorder.array("0")[:ROWS] for recorder in seen)
    own = sc.svcca(x, y, rank=(5, 7), **how)
    assert (r.rank_x, r.rank_y) == (5, 7)
    assert r.correlations.tobytes() == own.correlations.tobytes()
    assert (r.error_bound, r.precision) == (own.error_bound, own.precision)
    assert r.correlation_error_bounds.tobytes() == own.correlation_error_bounds.tobytes()


def test_batches_do_not_matter():
    """Layers whose outputs have the same bits in any batch: so have the numbers."""
    mix = torch.randn(60, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(6)) / torch.arange(1, 301)
    x = inputs(400) @ mix
    nets = nn.Sequential(nn.ReLU(), nn.Hardtanh()), nn.Sequential(nn.Hardtanh(-2, 0.5))
    how = {"rank": 6, "strategy": "sketch", "directions": 24, "power": 1, "allow_inaccurate": True}
    results = [sc.compare(*nets, batches(x, size), **how) for size in (90, 33, 400)]
    assert len({r.matrix.tobytes() for r in results}) == 1


def test_a_share_takes_what_it_needs(monkeypatch):
    """The first directions of every layer are too few; more are taken, of the layers that lack them."""
    a, b = wide_net(1, 0.3), wide_net(2, 0.3)
    made, sketch = [], sys.modules["streamcca.sketch"].Sketch
    layers = sys.modules["streamcca.sketch_layers"]
    monkeypatch.setattr(sys.modules["streamcca.sketch_result"], "_FIRST_DIRECTIONS", 12)
    monkeypatch.setattr(layers, "Sketch", lambda *shape: (made.append(shape[1]), sketch(*shape))[1])
    data = batches(inputs())
    truth = sc.compare(a, b, data, layers=LAYERS, variance=0.9, strategy="covariance")
    r = sc.compare(a, b, data, layers=LAYERS, variance=0.9, strategy="sketch", power=1)
    assert made[:6] == [12] * 6
    assert all(count > 12 for count in made[6:])
    assert len(made) > 6
    for one in LAYERS:
        for other in LAYERS:
            assert r[one, other].rank_x == truth[one, other].rank_x > 12
            assert abs(r[one, other].mean - truth[one, other].mean) <= r[one, other].error_bound
    with pytest.raises(sc.InputError, match=r"directions: the 12 of view 'a:0' hold 0\.\d+ .* take directions=\d+"):
        sc.compare(a, b, data, layers=LAYERS, variance=0.9, strategy="sketch", directions=12)


def test_narrow_layers_beside_wide_ones_are_whole(two):
    """Directions for all neurons of a layer: nothing lies outside, and the bound is that of rounding."""
    torch.manual_seed(5)
    nets = [nn.Sequential(net[0], nn.Linear(200, 10).double()) for net in two]
    data = batches(inputs())
    truth = sc.compare(*nets, data, layers="1", variance=0.99, strategy="covariance")
    r = sc.compare(*nets, data, layers=["0", "1"], variance=0.99, strategy="sketch")
    np.testing.assert_allclose(r["1", "1"].correlations, truth["1", "1"].correlations, atol=1e-11)
    assert r["1", "1"].error_bound < 1e-9


def test_float32_rows_and_a_model_with_itself():
    net = wide_net(4, 1.0, torch.float32)
    r = sc.compare(
        net, net, batches(inputs(dtype=torch.float32)), layers=LAYERS, rank=5, strategy="sketch", directions=40, power=1
    )
    assert r["0", "0"].precision == "float32 (sketch)"
    assert (np.abs(np.diag(r.matrix) - 1) <= np.diag(r.error_bounds)).all()
    np.testing.assert_allclose(r.matrix, r.matrix.T, atol=1e-5)


# ------------------------------------------------------------------ what is refused


class Dropping:
    """A loader that gives other rows at the second time."""

    def __init__(self, data):
        self.data, self.passes = data, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.data if self.passes == 1 else self.data[:-1])


def test_another_second_pass_is_refused(two):
    with pytest.raises(sc.ReplayError, match="gave 5 batches, expected 6"):
        sc.compare(*two, Dropping(batches(inputs())), layers="0", rank=5, strategy="sketch")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"measure": "pwcca"}, "others have no sketch route"),
        ({"ridge": 0.1}, "ridge: got 0.1 with strategy='sketch'"),
        ({"nonfinite": "skip"}, "strategy='sketch' takes 'raise' only"),
        ({"rank": None, "nuclear": 0.9}, "sketch: got nuclear=0.9"),
        ({"directions": 0}, "directions: got 0, expected an integer of at least 1"),
        ({"power": True}, "power: got True"),
        ({"strategy": "covariance", "power": 1}, "power: got 1, which only strategy='sketch' knows"),
        ({"strategy": "auto", "directions": 9}, "directions: got 9, which only strategy='sketch' knows"),
        ({"strategy": "qr", "ridge": 0.1}, "ridge: got 0.1; strategy='qr'"),
        ({"rank": 190}, "rank 190 is more than the 59 directions"),
    ],
)
def test_refusals(two, change, sentence):
    with pytest.raises(sc.InputError, match=sentence):
        sc.compare(*two, batches(inputs(60)), **({"layers": "0", "rank": 5, "strategy": "sketch"} | change))


def test_iterators_nan_and_constant_layers(two):
    how = {"layers": "0", "rank": 5, "strategy": "sketch"}
    with pytest.raises(sc.InputError, match="can be read only once"):
        sc.compare(*two, iter(batches(inputs())), **how)
    data = inputs()
    data[130, 3] = float("nan")
    with pytest.raises(sc.NonFiniteError, match="view 'a:0': .*row 40 of the batch"):
        sc.compare(*two, batches(data), **how)
    nn.init.zeros_(two[1][0].weight)
    with pytest.raises(sc.InputError, match="view 'b:0': every neuron is constant"):
        sc.compare(*two, batches(inputs()), **how)
    with pytest.raises(sc.InputError, match="the data hold 1 row; expected at least 2"):
        sc.compare(*two, inputs(1), **how)
    slow = wide_net(1, 0.1), wide_net(2, 0.1)
    with pytest.raises(sc.AccuracyError, match="sketch: views 'a:0' and 'b:0': directions that the 8 and 8"):
        sc.compare(*slow, batches(inputs()), directions=8, **how)


# ------------------------------------------------------------------ the planner


def test_sketched_where_nothing_else_fits(capsys):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(60, 1500)) for _ in range(2)]
    how = {"layers": "0", "rank": 3, "directions": 20, "allow_inaccurate": True}
    many = batches(inputs(3000, torch.float32), 500)
    bill = sc.plan({"a:0": 1500, "b:0": 1500}, 3000, kept=3, memory=1 << 30)
    need = {route.strategy: route.memory for route in bill.routes}
    assert need["sketch"] < 30 << 20 < min(need[way] for way in ("covariance", "replay", "gram", "qr"))
    r = sc.compare(*nets, many, memory=30 << 20, progress=True, **how)
    assert r.strategy == "sketch"
    printed = capsys.readouterr().err
    assert "<- taken" in next(line for line in printed.splitlines() if line.startswith("sketch"))
    with pytest.raises(sc.MemoryLimitError, match="no route fits: .*sketch needs .* memory= leaves 4.0 MiB"):
        sc.compare(*nets, many, memory=4 << 20, **how)
    # The planner counts the directions that were asked for.
    with pytest.raises(sc.MemoryLimitError, match="no route fits: .*sketch needs"):
        sc.compare(*nets, many, memory=30 << 20, **how | {"directions": 900})
    # An iterator has no replay; a sketch has no neurons to weigh.
    with pytest.raises(sc.MemoryLimitError, match="read twice"):
        sc.compare(*nets, iter(many), memory=30 << 20, **how)
    with pytest.raises(sc.MemoryLimitError, match=r"no route fits: covariance needs [^k]* leaves"):
        sc.compare(*nets, many, memory=30 << 20, layers="0", measure="pwcca")


def test_more_directions_than_fit_are_refused(monkeypatch):
    """A share of a slow spectrum wants more and more; it ends at the limit, not in the swap."""
    monkeypatch.setattr(sys.modules["streamcca.sketch_result"], "_FIRST_DIRECTIONS", 12)
    nets = wide_net(1, 0.1), wide_net(2, 0.1)
    bill = sc.plan({"a:0": 200, "b:0": 200}, 540, kept=0.1, itemsize=8, memory=1 << 30)
    need = next(route.memory for route in bill.routes if route.strategy == "sketch")
    with pytest.raises(sc.MemoryLimitError, match=r"sketch: \d+ directions of layer '.:0' and those of the others"):
        sc.compare(*nets, batches(inputs()), layers="0", variance=0.99, strategy="sketch", memory=need)


# ------------------------------------------------------------------ QR


@pytest.mark.parametrize("measure", ["svcca", "cca", "pwcca"])
def test_qr_agrees_with_covariances(two, measure):
    nets = [nn.Sequential(net, nn.Linear(120, 12).double(), nn.ReLU()) for net in two]
    layers, data = ["1", "2"], batches(inputs())
    truth = sc.compare(*nets, data, layers=layers, measure=measure, strategy="covariance")
    r = sc.compare(*nets, iter(data), layers=layers, measure=measure, strategy="qr")
    assert r.strategy == "qr"
    assert r.n == ROWS
    np.testing.assert_allclose(r.matrix, truth.matrix, atol=1e-9)
    assert r["1", "2"].precision == "float64 (QR)"
    x_weights = [np.abs(which["1", "2"].x_weights) for which in (r, truth)]
    np.testing.assert_allclose(x_weights[0], x_weights[1], rtol=1e-5, atol=1e-7)


def test_qr_keeps_digits_that_covariances_lose():
    torch.manual_seed(0)
    mix = nn.Linear(6, 6, bias=False).double()
    with torch.no_grad():
        turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
        mix.weight.copy_(turn @ torch.diag(torch.logspace(0, -7, 6, dtype=torch.float64)))
    plain = nn.Sequential(nn.Linear(6, 4).double())
    data = list(torch.randn(2000, 6, dtype=torch.float64).split(250))
    rough = sc.compare(nn.Sequential(mix), plain, data, measure="cca", allow_inaccurate=True)
    fine = sc.compare(nn.Sequential(mix), plain, data, measure="cca", strategy="qr")
    # The mix can be undone, so both see the same four directions.
    assert fine.matrix[0, 0] == pytest.approx(1, abs=1e-8)
    assert fine.error_bounds[0, 0] < 1e-6 < rough.error_bounds[0, 0]


def test_qr_is_refused_where_its_factor_does_not_fit(two):
    with pytest.raises(sc.MemoryLimitError, match="strategy='qr' does not fit: .*qr needs"):
        sc.compare(*two, batches(inputs()), layers=LAYERS, rank=3, strategy="qr", memory=1 << 20)
