"""accumulate: the same moments of arrays, files, batches and dask arrays."""

from __future__ import annotations

import math
import sys

import dask
import dask.array as da
import numpy as np
import pytest
import reference
import torch

import streamcca as sc

accumulate_module = sys.modules["streamcca.accumulate"]  # the name is that of the function

X = np.random.default_rng(0).standard_normal((2000, 12))
Y = np.random.default_rng(1).standard_normal((2000, 7)) + X[:, :7]
U64 = 2.0**-53


@pytest.fixture
def expected():
    m = sc.Moments({"a": 12, "b": 7})
    m.update(a=X, b=Y)
    return m


def close(moments, rows=slice(None)):
    """To rounding of float64 sums, in units of deviations, as in test_moments.py."""
    data = {"a": X[rows], "b": Y[rows]}
    assert moments.n == len(data["a"])
    for a, b in (("a", "a"), ("a", "b"), ("b", "b")):
        error = np.abs(moments.covariance(a, b) - reference.covariance(data[a], data[b]))
        assert np.max(error / np.outer(data[a].std(axis=0), data[b].std(axis=0))) < 30 * U64
    for name, array in data.items():
        exact = [math.fsum(column) / len(column) for column in array.T]
        # The sum about the shift rounds as little as the mean itself, which lies within a few deviations of zero.
        np.testing.assert_allclose(moments.mean(name), exact, rtol=0, atol=8 * U64)


# ---------------------------------------------------------------- what is there already


def test_arrays_files_and_batches_give_the_same_bits(expected, tmp_path, same_bits):
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", Y)
    for data in (
        {"a": X, "b": Y},
        {"a": torch.from_numpy(X), "b": Y},
        {"a": tmp_path / "a.npy", "b": str(tmp_path / "b.npy")},
        {"a": np.load(tmp_path / "a.npy", mmap_mode="r"), "b": Y},
        ({"a": X[i : i + 300], "b": Y[i : i + 300]} for i in range(0, 2000, 300)),
    ):
        same_bits(sc.accumulate(data), expected)


def test_one_array_is_view_x_and_pairs_are_x_and_y(tmp_path):
    np.save(tmp_path / "x.npy", X)
    for data in (X, tmp_path / "x.npy", str(tmp_path / "x.npy"), torch.from_numpy(X), da.from_array(X)):
        m = sc.accumulate(data)
        assert (m.views, m.n) == ({"x": 12}, 2000)
    assert sc.accumulate([(X, Y), (X, Y)]).views == {"x": 12, "y": 7}
    assert sc.accumulate([(X, Y), (X, Y)]).n == 4000


@pytest.mark.parametrize("kind", [lambda x: x, da.from_array], ids=["numpy", "dask"])
def test_options_reach_the_moments(kind):
    bad = X.astype(np.float32)
    bad[7, 7] = np.nan
    with pytest.raises(sc.NonFiniteError, match="view 'a', row 7 of the batch"):
        sc.accumulate({"a": kind(bad), "b": kind(Y)})
    m = sc.accumulate(
        {"a": kind(bad), "b": kind(bad)}, pairs="self", precision="float64", nonfinite="skip", threads=2, progress=False
    )
    assert (m.pairs, m.precision, m.n, m.skipped) == ([("a", "a"), ("b", "b")], "float64", 1999, 1)
    assert m._threads == 2


def test_progress(capsys):
    sc.accumulate({"a": X}, progress=True)
    assert "accumulate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "got an empty mapping, expected rows for at least one view"),
        (3, "data: got int, expected an array, a path, a mapping"),
        ([], "the iterable of batches is empty"),
        ([X], "batch 0: got ndarray, expected a pair"),
        ([{"a": X}, {"b": X}], "got no rows for view 'a'"),
        ({"a": X, "b": Y[:5]}, "view 'b': got 5 rows, expected 2000"),
        ({"a": X[0]}, r"view 'a': got an array of shape \(12,\)"),
    ],
)
def test_bad_data(data, sentence):
    with pytest.raises(sc.InputError, match=sentence):
        sc.accumulate(data)


# ---------------------------------------------------------------- dask


@pytest.mark.parametrize("rows", [1, 300, 512, 999, 2000, (5, 0, 995, 1000)])
@pytest.mark.parametrize("columns", [5, -1])
def test_dask_blocks(rows, columns):
    few = slice(9) if rows == 1 else slice(None)
    close(sc.accumulate({"a": da.from_array(X[few], (rows, columns)), "b": da.from_array(Y[few], (rows, 3))}), few)


def test_lazy_arithmetic_and_every_scheduler(same_bits):
    data = {"a": da.from_array(2 * X, (300, 5)) / 2, "b": da.from_array(Y, (300, -1))}
    results = []
    for scheduler in ("sync", "threads", "threads"):
        with dask.config.set(scheduler=scheduler):
            results.append(sc.accumulate(data))
    close(results[0])
    for m in results[1:]:
        same_bits(m, results[0])


def test_in_other_processes(same_bits):
    data = {"a": da.from_array(X, (1000, -1)), "b": da.from_array(Y, (1000, -1))}
    with dask.config.set(scheduler="processes", num_workers=2):
        there = sc.accumulate(data)
    same_bits(there, sc.accumulate(data))


def test_a_task_has_one_thread(monkeypatch):
    """The scheduler has as many tasks at once as there are cores."""
    real, seen = accumulate_module._moments_of_block, []

    def recorded(views, options, blocks):
        seen.append(options["threads"])
        return real(views, options, blocks)

    monkeypatch.setattr(accumulate_module, "_moments_of_block", recorded)
    assert sc.accumulate(da.from_array(X, (1000, -1)), threads=2)._threads == 2
    assert seen == [1, 1]


def test_merging_two_by_two_leaves_the_parts_alone():
    """A scheduler may run a task again with the same inputs."""
    parts = [sc.accumulate({"a": half}) for half in np.split(X, 2)]
    for _ in range(2):
        assert accumulate_module._merged(*parts).n == 2000
    assert [part.n for part in parts] == [1000, 1000]


def test_blocks_of_unknown_length():
    keep = X[:, 0] > 0
    mask = da.from_array(keep, 500)
    data = {"a": da.from_array(X, (500, -1))[mask], "b": da.from_array(Y, (500, -1))[mask]}
    close(sc.accumulate(data), keep)
    with pytest.raises(sc.InputError, match="every view must see the same rows"):
        sc.accumulate({"a": data["a"], "b": da.from_array(Y, (500, -1))})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"a": X, "b": da.from_array(Y)}, "view 'a': got ndarray, expected a dask array as in view 'b'; use"),
        (
            {"a": da.from_array(X, (500, -1)), "b": da.from_array(Y, (400, -1))},
            r"view 'b': got chunks of \(400, 400, 400, 400, 400\) rows, expected \(500, 500, 500, 500\) as in view 'a'",
        ),
        ({"a": da.from_array(X, (1, -1)), "b": da.from_array(Y)}, r"expected \(1, 1, 1, 1, 1, 1, ... 2000 in all\)"),
        ({"a": da.from_array(X[0])}, r"view 'a': got a dask array of shape \(12,\), expected rows as \(n, width\)"),
        ({"a": da.from_array(X.astype(int))}, "view 'a': got dtype int64"),
    ],
)
def test_bad_dask_arrays(data, sentence):
    with pytest.raises((sc.InputError, sc.DTypeError), match=sentence):
        sc.accumulate(data)
