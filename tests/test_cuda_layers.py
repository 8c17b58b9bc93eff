"""Layers of models on every device that moments can live on: counted where their rows are."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from test_compare_resumed import BrokenOff
from test_cuda import is_emulated
from torch import nn

import streamcca as sc
from streamcca.devices import CudaAccumulator

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")
LAYERS = ["0", "2"]
ROWS, BATCH = 700, 90


def net_on(device, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 12))
    return net.cuda() if device == "cuda" and not is_emulated() else net


@pytest.fixture
def two(device):
    return net_on(device, 1), net_on(device, 2)


@pytest.fixture
def batches(device):
    x = torch.randn(ROWS, 20, generator=torch.Generator().manual_seed(0))
    return list((x.cuda() if device == "cuda" and not is_emulated() else x).split(BATCH))


def lives_on(moments):
    return "cuda" if isinstance(moments._core, CudaAccumulator) else "cpu"


def outputs(net, batches):
    """Rows of the watched layers, all at once, in float64."""
    with torch.no_grad():
        first = [net[0](x) for x in batches]
        last = [net[2](net[1](x)) for x in first]
    return {name: torch.cat(rows).double().cpu().numpy() for name, rows in zip(LAYERS, (first, last), strict=True)}


@pytest.mark.parametrize("pairs", ["all", "self"])
def test_watched_layers_are_counted_there(device, two, batches, pairs):
    net = two[0]
    with sc.watch(net, layers=LAYERS, pairs=pairs, device=device) as w:
        for x in batches:
            net(x)
    assert w.counts == dict.fromkeys(LAYERS, ROWS)
    assert lives_on(w.moments) == device
    for name, rows in outputs(net, batches).items():
        found, expected = w.moments.covariance(name), np.cov(rows.T)
        np.testing.assert_allclose(found, expected, atol=2e-6 * expected.diagonal().max())


def test_a_forward_that_fails_is_taken_back(device, two, batches, monkeypatch):
    """Layers for themselves, whose rows are counted from the second forward on as they come."""
    net, fail = two[0], []
    # A device would be waited for, and copied from, at every forward.
    monkeypatch.setattr(CudaAccumulator, "mark", lambda _: pytest.fail("a state to return to was kept"))

    def maybe(*_):
        if fail:
            raise RuntimeError("on purpose")

    net[1].register_forward_hook(maybe)
    with sc.watch(net, layers=LAYERS, pairs="self", device=device) as w:
        for i, x in enumerate(batches):
            if i in (1, 4):
                fail.append(1)
                with pytest.raises(RuntimeError, match="on purpose"):
                    net(x)
                fail.clear()
            net(x)
            assert w.counts == dict.fromkeys(LAYERS, sum(map(len, batches[: i + 1])))
        later = w.layer_moments
        net(batches[0])
    assert w.counts == dict.fromkeys(LAYERS, ROWS + BATCH)
    for name, rows in outputs(net, batches).items():
        assert later[name].rows == ROWS  # a copy
        np.testing.assert_allclose(later[name].mean(name), rows.mean(axis=0), atol=1e-6)


def test_values_that_are_refused(device, two, batches):
    """At once on the CPU; on a device when something is read, of each layer. Nothing is counted; more can follow."""
    net = two[0]
    bad = batches[1].clone()
    bad[3, 2] = float("nan")
    with sc.watch(net, layers=LAYERS, pairs="self", device=device) as w:
        net(batches[0])
        if device == "cpu":
            with pytest.raises(sc.NonFiniteError, match="row 3"):
                net(bad)
        else:
            net(bad)
            for _ in LAYERS:
                with pytest.raises(sc.NonFiniteError, match="row 3"):
                    w.counts  # noqa: B018 - waits for the device
        assert w.counts == dict.fromkeys(LAYERS, BATCH)
        net(batches[2])
        assert w.counts == dict.fromkeys(LAYERS, 2 * BATCH)


@pytest.mark.parametrize("strategy", ["replay", "gram"])  # a replay's first pass is that of covariances
def test_compare_agrees_with_the_cpu(device, two, batches, strategy):
    how = {"layers": LAYERS, "rank": 5, "strategy": strategy}
    found = sc.compare(*two, batches, device=device, **how)
    expected = sc.compare(*(net.cpu() for net in two), [x.cpu() for x in batches], precision="float64", **how)
    for row, expected_row in zip(found.results, expected.results, strict=True):
        for cell, right in zip(row, expected_row, strict=True):
            assert np.all(np.abs(cell.correlations - right.correlations) <= 2 * cell.correlation_error_bounds + 1e-9)
            assert cell.error_bound < 1e-3


def test_sums_of_a_device_go_on_where_they_were(device, two, batches, tmp_path, monkeypatch):
    """To rounding on a device, to the bits on the CPU; in the replay too."""
    monkeypatch.setattr("streamcca.checkpoint.SECONDS", 0.0)
    how = {"layers": "2", "rank": 5, "strategy": "replay", "device": device}
    whole = sc.compare(*two, batches, **how)

    for at in (5, 12):
        with pytest.raises(KeyboardInterrupt):
            sc.compare(*two, BrokenOff(batches, at), folder=tmp_path / "job", **how)
        found = sc.compare(*two, batches, folder=tmp_path / "job", **how)
        np.testing.assert_allclose(found.matrix, whole.matrix, atol=0 if device == "cpu" else 1e-6)
        assert not (tmp_path / "job").exists()


def test_what_was_loaded_follows_its_next_rows(device, batches, monkeypatch):
    """As a job does that goes on in a new process; emulated rows look like those of a CPU."""
    monkeypatch.setattr("streamcca.moments.can_follow", lambda _: device == "cuda")
    whole, half = sc.Moments({"x": 20}), sc.Moments({"x": 20})
    for x in batches[:4]:
        half.update(x=x)
    state = half.state_dict()
    again = sc.Moments({"x": 20})
    again.load_state_dict(state)
    for x in batches[4:]:
        again.update(x=x)
    for x in batches:
        whole.update(x=x)
    assert lives_on(again) == lives_on(half) == device
    assert again.rows == ROWS
    np.testing.assert_allclose(again.covariance("x"), whole.covariance("x"), atol=0 if device == "cpu" else 1e-6)


def test_layers_on_their_own_have_small_blocks(device, two, batches, monkeypatch):
    """Each of them has rows that wait, and a net has many layers."""
    if device == "cpu":
        pytest.skip("of a device")
    monkeypatch.delenv("STREAMCCA_CUDA_BLOCK_ROWS", raising=False)
    with sc.watch(two[0], layers=LAYERS, pairs="self", device=device) as w:
        two[0](batches[0])
        layer = w.layer_moments["0"]
    assert layer._core._native.block_rows == 4096
    assert layer.copy()._core._native.block_rows == 4096
    assert sc.Moments({"a": 4}, device=device)._core._native.block_rows == 16384


def test_what_one_layer_refuses_the_next_forward_does_not_lose(device, two, batches):
    """A device says so when the next rows come; these are counted all the same."""
    if device == "cpu":
        pytest.skip("refused at once, and nothing of the forward is counted")
    net, spoil = two[0], []
    net[2].register_forward_hook(lambda _, __, y: y * float("nan") if spoil else None)
    with sc.watch(net, layers=LAYERS, pairs="self", device=device) as w:
        net(batches[0])
        spoil.append(1)
        net(batches[1])
        spoil.clear()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # an update looks at what is known, and does not wait
        with pytest.raises(sc.NonFiniteError, match="view '2', row 0"):
            net(batches[2])
        net(batches[3])
        assert repr(w) == "Watch(2 layers on a device: samples)"
        assert w.counts == {"0": 4 * BATCH, "2": 3 * BATCH}


def test_scores_and_other_measures(device, two, batches):
    batches = batches[:3]
    scores = [sc.subspace_scores(net, batches, layers=LAYERS, rank=5, device=device) for net in two]
    whole = sc.compare(*two, batches, layers=LAYERS, rank=5, precision="float64", device="cpu")
    np.testing.assert_allclose(sc.compare(*scores).matrix, whole.matrix, atol=1e-5)
    found = sc.compare(*two, batches, layers=LAYERS, measure=["cka", "procrustes"], device=device)
    x, y = (outputs(net, batches)["0"] for net in two)
    for name, matrix in found.items():
        assert matrix["0", "0"].mean == pytest.approx(sc.similarity(name, x, y).mean, abs=1e-5)


def test_gram_matrices(device, two, batches, tmp_path):
    x, y = (np.float32(outputs(net, batches)["0"]) for net in two)
    x[:, ::7] += 100
    matrices, expected = sc.gram(x, y, device=device), sc.gram(x, y, precision="float64")
    for name in "xy":
        size = np.abs(expected.matrix(name)).max()
        np.testing.assert_allclose(matrices.matrix(name), expected.matrix(name), atol=2e-6 * size)
    with sc.watch(two[0], layers="0", strategy="gram", folder=tmp_path / "rows", device=device) as w:
        for part in batches:
            two[0](part)
    trace = np.trace(np.cov(outputs(two[0], batches)["0"].T))
    assert np.trace(w.gram.matrix("0")) == pytest.approx(trace, rel=1e-5)


def test_what_counts_on_the_cpu_says_so(device, two, batches, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for strategy in ("sketch", "qr"):
        how = {"layers": LAYERS, "rank": 5, "strategy": strategy, "allow_inaccurate": True}
        if device == "cuda":
            with pytest.raises(sc.DeviceError, match="device: got 'cuda', but this needs CuPy"):
                sc.compare(*two, batches, device=device, **how)
        assert sc.compare(*two, batches, **how).matrix.shape == (2, 2)  # rows come over by themselves
    if device == "cuda":
        with pytest.raises(sc.InputError, match="intervals count on the CPU"):
            sc.compare(*two, batches * 3, layers=LAYERS, intervals=True, device=device)


def test_where_nothing_is_said_the_rows_decide(device, two, batches):
    with sc.watch(two[0], layers=LAYERS) as w:
        two[0](batches[0])
    assert lives_on(w.moments) == ("cpu" if device == "cpu" or is_emulated() else "cuda")
    with sc.watch(two[0], layers=LAYERS, device="cpu") as w:
        two[0](batches[0])
    assert lives_on(w.moments) == "cpu"
