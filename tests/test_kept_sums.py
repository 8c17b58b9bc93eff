"""Two views of which covariances or factors were half counted: a restart goes on, to the bits of an undisturbed run."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch

import streamcca as sc

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")
ROWS, BATCH = 700, 90
MEASURES = {"svcca": (sc.svcca, {"variance": 0.9}), "cca": (sc.cca, {}), "pwcca": (sc.pwcca, {"rank": 3})}


@pytest.fixture(autouse=True)
def after_every_batch(monkeypatch):
    monkeypatch.setattr(sys.modules["streamcca.store"].os, "fsync", lambda _: None)
    monkeypatch.setattr(sys.modules["streamcca.checkpoint"], "SECONDS", 0.0)


def views(dtype="float32"):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 30)) + 1e3
    return x.astype(dtype), (x[:, :12] + rng.standard_normal((ROWS, 12))).astype(dtype)


class Batches:
    """Pairs of batches that are broken off after some of them; `read` counts them."""

    def __init__(self, x, y, at=None):
        self.x, self.y, self.at, self.read = x, y, at, 0

    def __iter__(self):
        return self.pairs(0)

    def pairs(self, first):
        for i in range(first, len(self.x), BATCH):
            if self.at is not None and i >= self.at * BATCH:
                raise KeyboardInterrupt
            self.read += 1
            yield self.x[i : i + BATCH], self.y[i : i + BATCH]


class FromAnyRow(Batches):
    """The same, that need not be read from the start."""

    def batches(self, first):
        return self.pairs(first)


def broken_off_at_update(monkeypatch, number):
    update, calls = sc.Moments.update, []

    def breaking(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        update(self, *args, **kwargs)

    monkeypatch.setattr(sc.Moments, "update", breaking)


def bits(result):
    arrays = (result.correlations, result.x_weights, result.y_weights, result.correlation_error_bounds)
    numbers = (result.mean, result.error_bound, result.n, result.rank_x, result.rank_y)
    return [array.tobytes() for array in arrays], numbers


@pytest.mark.parametrize("kind", [Batches, FromAnyRow])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("way", ["covariance", "qr"])
def test_broken_off_at_a_batch(tmp_path, measure, way, kind):
    call, how = MEASURES[measure]
    x, y = views()
    truth = bits(call(Batches(x, y), strategy=way, **how))
    for at in range(1, 8):
        with pytest.raises(KeyboardInterrupt):
            call(kind(x, y, at), strategy=way, folder=tmp_path / "job", **how)
        assert [path.name for path in (tmp_path / "job").iterdir()] == ["job.state"]
        data = kind(x, y)
        assert bits(call(data, strategy=way, folder=tmp_path / "job", **how)) == truth, (at, way)
        # A batch to see the type and width by, and again to know the views by; then what was not counted.
        assert data.read == 2 + 8 - (at if kind is FromAnyRow else 0)
        assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_files_arrays_and_types(tmp_path, dtype, monkeypatch):
    """Chunks of files and of arrays are as long as memory allows; here they are short."""
    monkeypatch.setattr(sys.modules["streamcca.passes"], "_CHUNK_BYTES", 3000)
    x, y = views("float32" if dtype == "bfloat16" else dtype)
    if dtype == "bfloat16":
        x, y = torch.from_numpy(x).bfloat16(), torch.from_numpy(y).bfloat16()
    else:
        np.save(tmp_path / "x.npy", x)
        x = tmp_path / "x.npy"
    truth = bits(sc.svcca(x, y, rank=4))
    folder = tmp_path / "job"
    assert bits(sc.svcca(x, y, rank=4, folder=folder)) == truth
    broken_off_at_update(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        sc.svcca(x, y, rank=4, folder=folder)
    assert bits(sc.svcca(x, y, rank=4, folder=folder)) == truth
    assert not folder.exists()


def test_rows_left_out_are_not_read_again(tmp_path):
    x, y = views()
    x[95] = np.nan
    x[400, 3] = np.inf
    truth = sc.svcca(x, y, rank=4, nonfinite="skip")
    with pytest.raises(KeyboardInterrupt):
        sc.svcca(FromAnyRow(x, y, 5), rank=4, nonfinite="skip", folder=tmp_path)
    found = sc.svcca(FromAnyRow(x, y), rank=4, nonfinite="skip", folder=tmp_path)
    assert bits(found) == bits(truth)
    assert found.n == ROWS - 2


def test_a_measure_that_refuses_loses_no_rows(tmp_path):
    """The state stays until the answer is there."""
    x, y = views()
    with pytest.raises(sc.InputError, match="rank"):
        sc.svcca(Batches(x, y), rank=40, folder=tmp_path)
    assert (tmp_path / "job.state").exists()
    data = FromAnyRow(x, y)
    assert bits(sc.svcca(data, rank=4, folder=tmp_path)) == bits(sc.svcca(x, y, rank=4))
    assert data.read == 3  # to see the views by, twice; and the last row, to know it again


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"strategy": "qr"}, "another job .strategy: 'covariance', expected 'qr'"),
        ({"precision": "float64"}, "another job .precision: 'auto', expected 'float64'"),
        ({"nonfinite": "skip"}, "another job .nonfinite: 'raise', expected 'skip'"),
        ({"strategy": "sketch", "directions": 8}, "another job .strategy: 'covariance', expected 'sketch'"),
    ],
)
def test_another_job_is_refused(tmp_path, change, sentence):
    x, y = views()
    with pytest.raises(KeyboardInterrupt):
        sc.svcca(Batches(x, y, 3), rank=4, folder=tmp_path)
    before = (tmp_path / "job.state").read_bytes()
    with pytest.raises(sc.StateFileError, match=sentence):
        sc.svcca(Batches(x, y), rank=4, folder=tmp_path, **change)
    assert (tmp_path / "job.state").read_bytes() == before


def test_other_rows_are_refused(tmp_path):
    x, y = views()
    with pytest.raises(KeyboardInterrupt):
        sc.svcca(Batches(x, y, 3), rank=4, folder=tmp_path)
    for other in (Batches(x[:, :-1], y), Batches(x.astype(np.float64), y), Batches(y, x)):
        with pytest.raises(sc.StateFileError, match="another job .views: "):
            sc.svcca(other, rank=4, folder=tmp_path)
    with pytest.raises(sc.StateFileError, match="another job .first row: "):
        sc.svcca(Batches(x[::-1], y), rank=4, folder=tmp_path)
    with pytest.raises(sc.StateFileError, match=f"another job .rows: None, expected {ROWS}"):
        sc.svcca(x, y, rank=4, folder=tmp_path)
    with pytest.raises(sc.InputError, match="an iterator, which a restart could not read again"):
        sc.svcca(iter(Batches(x, y)), rank=4, folder=tmp_path)
    with pytest.raises(sc.InputError, match="folder: .* rows that svcca, cca or pwcca still have to read"):
        sc.cka(x, y, folder=tmp_path)
    with pytest.raises(sc.InputError, match="folder: "):
        sc.svcca(sc.accumulate({"x": x, "y": y}), rank=4, folder=tmp_path)
    assert bits(sc.svcca(FromAnyRow(x, y), rank=4, folder=tmp_path)) == bits(sc.svcca(x, y, rank=4))


@pytest.mark.parametrize(("before", "after"), [(Batches, FromAnyRow), (FromAnyRow, Batches)])
def test_data_that_are_read_otherwise_by_the_restart(tmp_path, before, after):
    x, y = views()
    for at in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            sc.svcca(before(x, y, at), rank=4, folder=tmp_path)
        before, after = after, before
    assert bits(sc.svcca(before(x, y), rank=4, folder=tmp_path)) == bits(sc.svcca(x, y, rank=4))


@pytest.mark.parametrize(("kind", "row"), [(Batches, 10), (Batches, 269), (FromAnyRow, 269)])
def test_rows_that_have_changed_since_are_refused(tmp_path, kind, row):
    """All that were counted, where they are passed over; else the last."""
    x, y = views()
    with pytest.raises(KeyboardInterrupt):
        sc.svcca(kind(x, y, 3), rank=4, folder=tmp_path)
    other = y.copy()
    other[row, 3] += 1
    what = "row 269" if row == 269 else "one of the first 270 rows"
    with pytest.raises(sc.ReplayError, match=f"folder: {what} is not what an earlier attempt has counted"):
        sc.svcca(kind(x, other), rank=4, folder=tmp_path)
    with pytest.raises(sc.ReplayError, match="folder: row 269, which is not there, is not what|row 200, which is not"):
        sc.svcca(kind(x[:200], y[:200]), rank=4, folder=tmp_path)
    assert bits(sc.svcca(kind(x, y), rank=4, folder=tmp_path)) == bits(sc.svcca(x, y, rank=4))


def test_files_that_have_changed_since_are_refused(tmp_path, monkeypatch):
    """Several rows of each batch are looked at again, the last among them; of many batches not all of these."""
    monkeypatch.setattr(sys.modules["streamcca.passes"], "_CHUNK_BYTES", 3000)
    monkeypatch.setattr(sys.modules["streamcca.kept_sums"], "_MOST_MARKS", 20)
    x, y = views()
    np.save(tmp_path / "x.npy", x)
    broken_off_at_update(monkeypatch, 20)
    with pytest.raises(KeyboardInterrupt):
        sc.svcca(tmp_path / "x.npy", y, rank=4, folder=tmp_path / "job")
    np.save(tmp_path / "x.npy", x * np.where(np.arange(ROWS) < 200, 1, 2)[:, None].astype(x.dtype))
    with pytest.raises(sc.ReplayError, match="folder: row 2.. is not what"):
        sc.svcca(tmp_path / "x.npy", y, rank=4, folder=tmp_path / "job")
    np.save(tmp_path / "x.npy", x)
    found = sc.svcca(tmp_path / "x.npy", y, rank=4, folder=tmp_path / "job")
    assert bits(found) == bits(sc.svcca(x, y, rank=4))


def test_the_strategy_of_a_begun_job_is_kept_to(tmp_path):
    """Which way 'auto' takes depends on free memory, too."""
    x, y = views()
    with pytest.raises(KeyboardInterrupt):
        sc.svcca(Batches(x, y, 3), rank=4, strategy="qr", folder=tmp_path)
    with pytest.raises(sc.StateFileError, match="job.state: .* another job .strategy: 'qr', expected 'gram'"):
        sc.svcca(x, y, rank=4, strategy="gram", folder=tmp_path)
    assert sc.svcca(Batches(x, y), rank=4, folder=tmp_path).strategy == "qr"


def test_batches_of_other_lengths_and_empty_ones(tmp_path):
    """A restart may cut the rows otherwise; an empty batch at the start says nothing of them."""
    x, y = views()
    with pytest.raises(KeyboardInterrupt):
        sc.svcca(Batches(x, y, 3), rank=4, folder=tmp_path)
    cuts = [0, 0, 50, 51, 400, ROWS]
    others = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(cuts)]
    assert bits(sc.svcca(others, rank=4, folder=tmp_path)) == bits(sc.svcca(x, y, rank=4))
    with pytest.raises(sc.InputError, match="hold no rows"):
        sc.svcca([(x[:0], y[:0])], rank=4, folder=tmp_path)
