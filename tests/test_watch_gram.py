"""watch(strategy='gram'): rows of layers on disk, and Gram matrices of them; and what a watch refuses at its start."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from test_watch import Recorder, hooks_of
from torch import nn

import streamcca as sc
from streamcca._backend import state_bytes

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")
spool = sys.modules["streamcca.spool"]
IMAGES = torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(spool, "_SEGMENT_BYTES", 1)  # 16 rows


def net(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.Flatten()).double()


def watched(model, folder, batches, **options):
    with sc.watch(model, layers=["0", "2"], rows="flatten", strategy="gram", folder=folder, **options) as w:
        for batch in batches:
            model(batch)
    return w


def test_every_measure_takes_its_gram(tmp_path):
    model = net()
    plain = Recorder(model, ["0", "2"])
    w = watched(model, tmp_path / "s", IMAGES.split(25))
    assert (w.counts, w.rows) == ({"0": 90, "2": 90}, "samples (flattened)")
    assert hooks_of(model) == 2  # the recorder's
    assert (tmp_path / "s").exists()
    g = w.gram
    assert not (tmp_path / "s").exists()
    assert w.gram is g
    assert (g.n, g.views) == (90, {"0": 384, "2": 36})
    x, y = (plain.array(name, lambda a: a.flatten(1)) for name in ("0", "2"))
    centered = x - x.mean(axis=0)
    np.testing.assert_allclose(g.matrix("0"), centered @ centered.T / 89, atol=1e-12)
    for ours, theirs in (
        (sc.svcca(g, "0", "2", rank=8), sc.svcca(x, y, rank=8)),
        (sc.cca(g, "0", "2", rank=8), sc.cca(x, y, rank=8)),
    ):
        np.testing.assert_allclose(ours.correlations, theirs.correlations, atol=1e-10)
    assert sc.cka(g, "0", "2").mean == pytest.approx(sc.cka(x, y).mean, abs=1e-12)
    assert sc.procrustes(g, "0", "2").mean == pytest.approx(sc.procrustes(x, y).mean, abs=1e-10)


def test_a_watch_that_was_killed_goes_on(tmp_path, monkeypatch):
    whole = watched(net(), tmp_path / "whole", IMAGES.split(30)).gram
    with pytest.raises(RuntimeError, match="the node is gone"):
        watched(net(), tmp_path / "s", gone_after(2))
    assert spool.Spool(tmp_path / "s").rows == 48
    written = []
    append = spool.Spool._append
    monkeypatch.setattr(spool.Spool, "_append", lambda self, s: (written.append(s.filled), append(self, s))[1])
    again = watched(net(), tmp_path / "s", IMAGES.split(30)).gram
    assert sum(written) == 90 - 48
    assert all(again.matrix(name).tobytes() == whole.matrix(name).tobytes() for name in whole.views)
    assert list(tmp_path.iterdir()) == []


def gone_after(count):
    yield from IMAGES.split(30)[:count]
    raise RuntimeError("the node is gone")


def test_other_rows_in_the_folder_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="the node is gone"):
        watched(net(), tmp_path, gone_after(3))
    with pytest.raises(sc.InputError, match="holds other rows of view '0'"):
        watched(net(2), tmp_path, IMAGES.split(30))
    # Fewer rows than wait there: matrices of them would count rows that this watch has not seen.
    w = watched(net(), tmp_path, IMAGES.split(30)[:2])
    with pytest.raises(sc.InputError, match="holds 80 rows of an earlier watch, expected the 60 of this one"):
        _ = w.gram
    # The rows there were left as they are, and can be gone on with.
    assert not spool.Spool(tmp_path).complete
    whole = watched(net(), tmp_path / "whole", IMAGES.split(30)).gram
    again = watched(net(), tmp_path, IMAGES.split(30))
    with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool.SpoolTiles, "read", lambda *_: (_ for _ in ()).throw(RuntimeError))
        _ = again.gram
    # All rows are there now: a watch that has seen more, or fewer, is another one.
    for batches in ([*IMAGES.split(30), IMAGES[:5]], IMAGES.split(30)[:2]):
        with pytest.raises(sc.InputError, match="holds 90 rows of an earlier watch"):
            _ = watched(net(), tmp_path, batches).gram
    assert again.gram.matrix("2").tobytes() == whole.matrix("2").tobytes()


def test_a_failed_forward_counts_nothing(tmp_path):
    model = net()
    with sc.watch(model, layers=["0", "2"], rows="flatten", strategy="gram", folder=tmp_path / "s") as w:
        model(IMAGES[:40])
        with pytest.raises(RuntimeError):
            model(IMAGES[40:50, :, :2, :2])  # the second convolution does not fit
        model(IMAGES[40:])
    whole = watched(net(), tmp_path / "t", [IMAGES]).gram
    assert w.gram.n == 90
    np.testing.assert_allclose(w.gram.matrix("2"), whole.matrix("2"), atol=1e-12)


def test_rows_that_do_not_fit_on_the_way(tmp_path):
    with pytest.raises(
        sc.MemoryLimitError, match=r"watch: Gram matrices of 2 layers and 90 rows need .* memory= leaves"
    ):
        _ = watched(net(), tmp_path, IMAGES.split(30), memory=200_000).gram
    with pytest.raises(sc.MemoryLimitError, match="rows that wait for the disk need"):
        watched(net(), tmp_path / "t", IMAGES.split(30), memory=1000)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strategy": "gram"}, "folder: got None, expected a folder, in which strategy='gram'"),
        ({"folder": "f"}, "folder: got a folder, expected None: only strategy='gram'"),
        ({"strategy": "gram", "folder": "f", "nonfinite": "skip"}, "strategy='gram' takes 'raise' only"),
        ({"strategy": "gram", "folder": "f", "pairs": "self"}, "pairs: got 'self', expected 'all'"),
        ({"strategy": "sketch"}, "got 'sketch', expected one of 'auto', 'covariance', 'gram'"),
        ({"memory": 1.5}, "memory: got 1.5"),
    ],
)
def test_options_that_do_not_go_together(options, sentence):
    model = net()
    with pytest.raises(sc.InputError, match=sentence):
        sc.watch(model, **options)
    assert hooks_of(model) == 0


def test_what_a_watch_of_one_kind_does_not_have(tmp_path):
    model = net()
    with sc.watch(model, layers="0", strategy="gram", folder=tmp_path / "s") as w:
        model(IMAGES[:5])
        with pytest.raises(sc.InputError, match="leave the with block first"):
            _ = w.gram
        with pytest.raises(sc.InputError, match="rows wait on disk; see .gram"):
            _ = w.moments
    assert w.gram.n == 5 * 64
    with pytest.raises(sc.InputError, match="take no more rows"), w:
        pass
    with sc.watch(model, layers="0") as w:
        model(IMAGES[:5])
    with pytest.raises(sc.InputError, match="this watch keeps moments"):
        _ = w.gram
    with pytest.raises(sc.InputError, match="nothing was watched yet"):
        _ = sc.watch(model, layers="0", strategy="gram", folder=tmp_path / "t").gram


def test_moments_that_do_not_fit_are_refused_with_what_would(tmp_path, monkeypatch):
    model = net()
    how = {"layers": ["0", "2"], "rows": "flatten"}
    # 384 + 36 neurons: 2 MiB with the pair; each alone, and its mark, are no less.
    bill = ("watch: no route fits: moments of 2 layers need", "but memory= leaves 1.5 MiB; what would fit: ")
    with pytest.raises(sc.MemoryLimitError) as caught, sc.watch(model, **how, memory=3 << 19):
        model(IMAGES)
    text = str(caught.value)
    assert all(part in text for part in bill)
    rows = int(re.search(r"strategy='gram' with a folder= for all rows \(up to (\d+) of them\)", text)[1])
    assert "fewer layers (the 1 narrowest)" in text
    assert "rows='pool'" in text
    assert "pairs='self'" not in text
    assert hooks_of(model) == 0
    # A layer that is watched alone has a mark beside its moments, and the narrower one does not fit either.
    with pytest.raises(sc.MemoryLimitError) as caught, sc.watch(model, **how, memory=1 << 20):
        model(IMAGES)
    assert "narrowest" not in str(caught.value)
    with sc.watch(model, **how, memory=8 << 20) as w:
        model(IMAGES)
    assert w.moments.n == 90
    # What is named does fit.
    with sc.watch(model, layers="2", rows="flatten", memory=3 << 19) as w:
        model(IMAGES)
    assert w.moments.n == 90
    assert 50 < rows < 90
    assert watched(model, tmp_path / "s", [IMAGES[:rows]], memory=3 << 19).gram.n == rows
    with pytest.raises(sc.MemoryLimitError, match="watch: Gram matrices of 2 layers"):
        _ = watched(model, tmp_path / "t", [IMAGES[: rows + 10]], memory=3 << 19).gram
    with pytest.raises(sc.MemoryLimitError, match="strategy='covariance' does not fit"):
        with sc.watch(model, **how, memory=3 << 19, strategy="covariance"):
            model(IMAGES)


def test_pairs_are_what_costs():
    """Many layers of one width: their pairs do not fit, each alone does."""
    model = nn.Sequential(*(nn.Linear(200, 200) for _ in range(12)))
    rows = torch.randn(50, 200)
    every, each = (
        state_bytes([200] * 12, [(i, j) for j in range(12) for i in range(j + 1)]),
        state_bytes([200], [(0, 0)]),
    )
    limit = 2 * 12 * each
    assert limit < every
    with pytest.raises(sc.MemoryLimitError, match=r"what would fit: pairs='self' \(no pairs of layers\), or "):
        with sc.watch(model, memory=limit):
            model(rows)
    with sc.watch(model, pairs="self", memory=limit) as w:
        model(rows)
    assert len(w.moments.views) == 12
    with sc.watch(model, memory=every) as w:
        model(rows)
    for memory, options in ((every - 1, {}), (limit - 1, {"pairs": "self"})):
        with (
            pytest.raises(sc.MemoryLimitError, match="moments of 12 layers need"),
            sc.watch(model, memory=memory, **options),
        ):
            model(rows)
