"""Rows of two views, read more than once and from any row on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import streamcca as sc
from streamcca import passes as module
from streamcca.passes import PairPasses, bits_of, widened


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bits_are_widened_exactly(dtype):
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    bits, name = bits_of(values, "x")
    assert name == dtype
    assert bits.dtype.itemsize == values.element_size()
    np.testing.assert_array_equal(widened(bits, name, np.float64), values.double().numpy())
    np.testing.assert_array_equal(widened(bits, name, np.float32), values.float().numpy())
    if dtype != "bfloat16":
        np.testing.assert_array_equal(bits_of(values.numpy(), "x")[0], bits)
    np.testing.assert_array_equal(bits_of(values.t(), "x")[0], bits.T)


@pytest.mark.parametrize(
    ("array", "error", "sentence"),
    [
        (np.zeros((2, 3), int), sc.DTypeError, "view 'x': got int64, expected float16"),
        (np.zeros(3), sc.InputError, r"view 'x': got an array of shape \(3,\)"),
        (np.zeros((2, 3), np.longdouble), sc.DTypeError, "expected float16"),
        (torch.zeros(2, 3, 4), sc.InputError, r"shape \(2, 3, 4\)"),
    ],
)
def test_what_has_no_bits(array, error, sentence):
    with pytest.raises(error, match=sentence):
        bits_of(array, "view 'x'")


def all_rows(passes, first):
    parts = [(np.array(x), np.array(y)) for x, y in passes.batches(first)]
    return [np.concatenate([part[i] for part in parts]) if parts else np.empty((0, 0)) for i in range(2)]


class Skipping(list):
    """Batches that can start at any row."""

    def batches(self, first):
        self.first = first
        x, y = (np.concatenate([pair[i] for pair in self]) for i in range(2))
        return iter([(x[first:], y[first:])])


@pytest.mark.parametrize("first", [0, 1, 4, 5, 11, 12])
@pytest.mark.parametrize("kind", ["arrays", "files", "list", "skipping", "iterator"])
def test_a_pass_starts_at_any_row(first, kind, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 200)  # five rows of x
    x, y = rng.standard_normal((12, 5)), rng.standard_normal((12, 3))
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4)]
    data = {"arrays": (x, y), "list": (batches,), "skipping": (Skipping(batches),), "iterator": (iter(batches),)}
    if kind == "files":
        for name, view in (("x", x), ("y", y)):
            np.save(tmp_path / f"{name}.npy", view)
        data[kind] = (tmp_path / "x.npy", tmp_path / "y.npy")
    passes = PairPasses(data[kind])
    for _ in range(2 if passes.repeatable else 1):
        rows = all_rows(passes, first)
        for got, wanted in zip(rows, (x, y), strict=True):
            np.testing.assert_array_equal(got.reshape(-1, wanted.shape[1]), wanted[first:])
        assert passes.rows == 12
    assert passes.repeatable == (kind != "iterator")
    assert bool(passes.sources) == (kind in ("arrays", "files"))
    passes.close()


def test_refusals():
    x = np.zeros((4, 2))
    with pytest.raises(sc.InputError, match="view 'y': got 3 rows, expected 4"):
        PairPasses((x, x[:3]))
    with pytest.raises(sc.InputError, match="expected two arrays"):
        PairPasses((x, x, x))
    with pytest.raises(sc.InputError, match="batch 0: view 'y' has 3 rows, expected 4"):
        list(PairPasses(([(x, x[:3])],)).batches())
    with pytest.raises(sc.MissingFileError):
        PairPasses((x, "nowhere.npy"))
