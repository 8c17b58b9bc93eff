"""Layers each for itself: rows are counted straight from outputs, and a forward that fails leaves nothing behind."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from test_watch import Recorder, hooks_of, mlp
from torch import nn

import streamcca as sc
from streamcca import _backend
from streamcca.stream import LayerStreams

LAYERS = ["0", "2", "4"]


def alone(rows):
    m = sc.Moments({"x": rows.shape[1]})
    m.update(x=rows)
    return m


def same(moments, view, rows):
    """The same bits as all rows at once."""
    want = alone(rows)
    np.testing.assert_array_equal(moments.covariance(view), want.covariance("x"))
    np.testing.assert_array_equal(moments.mean(view), want.mean("x"))


def float32(recorder, name, transform=lambda x: x):
    return np.concatenate([transform(x).numpy() for x in recorder.seen[name]])


def test_the_bits_of_all_rows_at_once():
    model = mlp()
    plain = Recorder(model, LAYERS)
    with torch.no_grad(), sc.watch(model, LAYERS, pairs="self") as w:
        for n in (300, 7, 1, 500, 256):
            model(torch.randn(n, 8))
    assert w.counts == dict.fromkeys(LAYERS, 1064)
    joined = w.moments
    assert joined.pairs == [(name, name) for name in LAYERS]
    assert joined.rows == 1064
    together = sc.Moments(joined.views, pairs="self")
    together.update({name: float32(plain, name) for name in LAYERS})
    for name in LAYERS:
        same(joined, name, float32(plain, name))
        same(w.layer_moments[name], name, float32(plain, name))
        np.testing.assert_array_equal(joined.covariance(name), together.covariance(name))
    assert sc.truncate(joined, "0", rank=3).rank == 3
    rest = np.random.default_rng(0).standard_normal((999, 20)).astype("f4")
    joined.update({"0": rest, "2": rest[:, :12], "4": rest[:, :3]})  # pending rows came along
    same(joined, "0", np.concatenate([float32(plain, "0"), rest]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 6, 9])
def test_maps_of_different_size(layout, dtype, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 33, 2, stride=2), nn.Conv2d(33, 5, 1)).to(dtype)
    layers = ["0", "1", "2"]
    plain = Recorder(model, layers)
    with torch.no_grad(), sc.watch(model, layers, rows="positions", pairs="self") as w:
        for n in (5, 40, 3):
            model(torch.randn(n, 3, size, size, dtype=dtype).to(memory_format=layout))
    for name in layers:
        rows = torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in plain.seen[name]])
        assert w.counts[name] == len(rows)
        same(w.layer_moments[name], name, rows)
    with pytest.raises(sc.InputError, match=r"rows and layer .*\.layer_moments"):
        w.moments  # noqa: B018


class Risky(nn.Module):
    """Fails, or brings NaN, after its first layer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 6)
        self.b = nn.Linear(6, 5)
        self.trouble = None

    def forward(self, x):
        x = self.a(x)
        if self.trouble == "nan":
            x = x * float("nan")
        elif self.trouble is not None:
            raise self.trouble
        return self.b(x)


@pytest.mark.parametrize("trouble", ["nan", RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_forward_is_taken_back(trouble):
    torch.manual_seed(0)
    model = Risky()
    kind = sc.NonFiniteError if trouble == "nan" else type(trouble)
    x = torch.randn(700, 8)
    want = {}
    with torch.no_grad(), sc.watch(model, pairs="self") as w:
        model(x[:300])
        model(x[300:400])
        model.trouble = trouble
        with pytest.raises(kind):
            model(x)
        assert w.counts == {"a": 400, "b": 400}
        assert w.moments.rows == 400
        model.trouble = None
        model(x[400:])
        assert w.counts == {"a": 700, "b": 700}
        want["a"] = model.a(x)
        want["b"] = model.b(want["a"])
        model.trouble = trouble
        with pytest.raises(kind):
            model(x)
    assert w.counts == {"a": 700, "b": 700}
    for name, rows in want.items():
        np.testing.assert_allclose(
            w.layer_moments[name].covariance(name), np.cov(rows.double().T), rtol=1e-4, atol=1e-6
        )
    assert hooks_of(model) == 0


def test_a_forward_that_does_not_line_up_is_taken_back():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.twice = nn.Linear(4, 3), nn.Linear(3, 2), False
            self.skip = False

        def forward(self, x):
            y = self.a(x)
            if self.twice:
                self.a(x)
            return y if self.skip else self.b(y)

    model = Sometimes()
    with torch.no_grad(), sc.watch(model, ["a", "b"], pairs="self") as w:
        model(torch.randn(300, 4))
        model(torch.randn(300, 4))
        model.twice = True
        with pytest.raises(sc.LayerError, match="'a' ran 2 times"):
            model(torch.randn(10, 4))
        model.twice, model.skip = False, True
        with pytest.raises(sc.LayerError, match="'b' ran in the first forward but not"):
            model(torch.randn(10, 4))
        model.skip = False
        model(torch.randn(5, 4))
    assert w.counts == {"a": 605, "b": 605}


def test_an_in_place_operation_after_the_layer():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    x = torch.randn(600, 8)
    with torch.no_grad(), sc.watch(model, "0", pairs="self") as w:
        for part in x.split(200):
            model(part)
        rows = torch.cat([model[0](part) for part in x.split(200)])
    same(w.moments, "0", rows)


def test_threads_wait_for_each_other():
    """One thread's forward fails while another's ends: only the failed one is taken back."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x, wait=False):
            y = self.a(x)
            if wait:
                inside.set()
                assert go_on.wait(20)
                raise RuntimeError("at last")
            return self.b(y)

    model = Slow()
    x = torch.randn(900, 4)
    failed = []

    def fail():
        with torch.no_grad():
            try:
                model(x, wait=True)
            except RuntimeError as error:
                failed.append(error)

    with torch.no_grad(), sc.watch(model, pairs="self") as w:
        model(x[:300])
        thread = threading.Thread(target=fail)
        thread.start()
        assert inside.wait(20)
        model(x[300:])  # waits in a queue, not for the other
        go_on.set()
        thread.join()
        assert failed
        assert w.counts == {"a": 900, "b": 900}
        rows = model.a(x)
    np.testing.assert_allclose(w.moments.covariance("a"), np.cov(rows.double().T), rtol=1e-4, atol=1e-6)


def test_what_layers_share_stays_shared():
    model = mlp()
    with torch.no_grad(), sc.watch(model, LAYERS) as w:
        model(torch.randn(50, 8))
    with pytest.raises(sc.InputError, match="pass pairs='self'"):
        w.layer_moments  # noqa: B018
    # A row that one layer skips is skipped in all.
    with torch.no_grad(), sc.watch(model, LAYERS, pairs="self", nonfinite="skip") as w:
        x = torch.randn(50, 8)
        x[3] = float("nan")
        model(x)
        model(x)
    assert w.counts == dict.fromkeys(LAYERS, 98)
    assert w.moments.skipped == 2


class Looking(nn.Module):
    """Calls a function between two layers."""

    def __init__(self, look):
        super().__init__()
        self.conv, self.last, self.look = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 1), look

    def forward(self, x):
        x = self.conv(x)
        self.look()
        return self.last(x)


def test_no_copy_of_the_rows_is_kept():
    """Memory beyond the forward: the moments, and a block for each view."""
    held = []
    model = Looking(
        lambda: held.append([x.tensor is None for calls in w._tap._forward.outputs.values() for x in calls])
    )
    for pairs, want in (("self", [[False], [True], [True]]), ("all", [[False], [False], [False]])):
        held.clear()
        with torch.no_grad(), sc.watch(model, rows="positions", pairs=pairs) as w:
            for _ in range(3):
                model(torch.randn(20, 3, 8, 8))
        assert held == want


def test_readers_see_complete_forwards_only():
    seen = []
    model = Looking(lambda: seen.append((w.counts, {k: m.rows for k, m in w.layer_moments.items()}, w.moments.rows)))
    with torch.no_grad(), sc.watch(model, rows="positions", pairs="self") as w:
        model.look = lambda: None
        model(torch.randn(5, 3, 8, 8))
        before = w.moments
        bits = before.covariance("conv")
        model.look = lambda: seen.append((w.counts, {k: m.rows for k, m in w.layer_moments.items()}, w.moments.rows))
        model(torch.randn(7, 3, 8, 8))
    assert seen == [({"conv": 320, "last": 320}, {"conv": 320, "last": 320}, 320)]
    assert w.counts == {"conv": 768, "last": 768}
    assert before.rows == 320  # a copy
    np.testing.assert_array_equal(before.covariance("conv"), bits)


def test_few_rows_of_wide_layers_wait_for_the_end():
    """A mark of the state would cost more than a copy of the rows; the numbers are the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 300), nn.Linear(300, 20))
    plain = Recorder(model, ["0", "1"])
    with torch.no_grad(), sc.watch(model, pairs="self") as w:
        for n in (1, 1, 3, 700, 1, 600):
            model(torch.randn(n, 8))
        marked = w._streams._marked
        assert not marked
        x = torch.randn(4, 8)
        x[2, 2] = float("nan")
        with pytest.raises(sc.NonFiniteError):
            model(x)
        assert w.counts == {"0": 1306, "1": 1306}
    for name in ("0", "1"):
        same(w.layer_moments[name], name, float32(plain, name)[:1306])


def test_bad_rows_are_refused_in_the_thread_that_brings_them():
    inside, go_on, errors = threading.Event(), threading.Event(), []

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x, wait=False):
            y = self.a(x)
            if wait:
                inside.set()
                assert go_on.wait(20)
            return self.b(y)

    model = Slow()

    def run():
        with torch.no_grad():
            try:
                model(torch.randn(5000, 4), wait=True)
            except Exception as error:
                errors.append(error)

    with torch.no_grad(), sc.watch(model, pairs="self") as w:
        model(torch.randn(100, 4))
        thread = threading.Thread(target=run)
        thread.start()
        assert inside.wait(20)
        with pytest.raises(sc.NonFiniteError):
            model(torch.full((7, 4), float("nan")))
        model(torch.randn(900, 4))
        go_on.set()
        thread.join()
    assert not errors
    assert w.counts == {"a": 6000, "b": 6000}


def test_an_empty_batch_of_maps_and_a_watch_entered_twice():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with torch.no_grad(), sc.watch(model, "0", rows="positions", pairs="self") as w:
        model(torch.randn(2, 3, 8, 8))
        model(torch.randn(0, 3, 8, 8))
        with pytest.raises(sc.InputError, match="open already"):
            w.__enter__()
        model(torch.randn(2, 3, 8, 8))
    assert w.counts == {"0": 256}
    assert hooks_of(model) == 0


def test_layers_whose_kernels_have_blocks_of_other_length(monkeypatch):
    """As on a CPU with a matrix unit, where wide layers take blocks of 512 rows: joined all the same."""
    levels = [level for level in ("avx2", "avx512") if level in _backend.isa_levels()]
    if len(levels) < 2 or os.environ.get("STREAMCCA_ISA"):
        pytest.skip("needs levels with blocks of two lengths")
    rng = np.random.default_rng(0)
    for n in (100, 400, 1000, 1024):
        streams, rows = LayerStreams({}), {}
        for layer, level in zip("ab", levels, strict=True):
            monkeypatch.setenv("STREAMCCA_ISA", level)
            rows[layer] = torch.from_numpy(rng.standard_normal((n, 30)).astype("f4"))
            streams._moments_of(layer, 30)
        streams.count(rows)
        joined = streams.joined()
        assert joined.rows == n
        for layer, x in rows.items():
            np.testing.assert_allclose(joined.covariance(layer), np.cov(x.double().numpy().T), atol=1e-6)
