"""valid_rows: only the first rows of a batch count, with their weights and ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import streamcca as sc

X = np.random.default_rng(0).standard_normal((2000, 12))
Y = np.random.default_rng(1).standard_normal((2000, 7)) + X[:, :7]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("count", [0, 1, 300, 500, np.int64(300)])
def test_only_the_first_rows_count(kind, count, same_bits):
    x, y = kind(X[:500]), kind(Y[:500])
    weights, ids = np.arange(500.0) + 1, np.arange(500)
    m, expected = (sc.Moments({"a": 12, "b": 7}) for _ in range(2))
    m.update(a=x, b=y, weights=weights, ids={"b": ids}, valid_rows=count)
    expected.update(a=X[:count], b=Y[:count], weights=weights[:count], ids={"b": ids[:count]})
    for part in (m, expected):
        part.update(a=X, b=Y)
    same_bits(m, expected)
    assert m.ids_checksum == expected.ids_checksum


def test_padding_may_hold_anything(same_bits):
    padded = np.vstack([X[:100], np.full((28, 12), np.nan)])
    m, expected = sc.Moments({"a": 12}), sc.Moments({"a": 12})
    m.update(a=padded, valid_rows=100)
    expected.update(a=X[:100])
    same_bits(m, expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"valid_rows": 101}, r"valid_rows: got 101, expected an integer from 0 to 100, the number of rows in this"),
        ({"valid_rows": -1}, "valid_rows: got -1"),
        ({"valid_rows": 5.0}, r"valid_rows: got 5\.0"),
        ({"valid_rows": True}, "valid_rows: got True"),
        ({"valid_rows": "5"}, "valid_rows: got '5'"),
        ({"valid_rows": 5, "weights": np.ones(5)}, "weights: got 5 values for 100 rows; pass one weight a row"),
        ({"valid_rows": 5, "ids": np.arange(5)}, "expected one integer for each of the 100 rows"),
        ({"valid_rows": 5, "b": Y[:50]}, "view 'b': got 50 rows, expected 100 as in view 'a'"),
        ({"valid_rows": 5, "b": 3}, "valid_rows: view 'b' is int, expected an array"),
    ],
)
def test_wrong_valid_rows_are_refused(options, sentence, same_bits):
    m = sc.Moments({"a": 12, "b": 7})
    m.update(a=X, b=Y)
    before = m.copy()
    with pytest.raises(sc.InputError, match=sentence):
        m.update(**{"a": X[:100], "b": Y[:100], **options})
    same_bits(m, before)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("shuffle", [False, True])
def test_repeated_samples_of_a_distributed_sampler(rows, shuffle):
    """With valid_rows no sample counts twice: those that the sampler repeats are the last of a rank."""
    dataset, size = torch.arange(float(rows))[:, None], 4
    total = sc.Moments({"a": 1})
    for rank in range(size):
        sampler = torch.utils.data.DistributedSampler(dataset, num_replicas=size, rank=rank, shuffle=shuffle)
        left = len(range(rank, len(dataset), size))
        part = sc.Moments({"a": 1})
        for batch in torch.utils.data.DataLoader(dataset, batch_size=3, sampler=sampler):
            part.update(a=batch, valid_rows=min(left, len(batch)))
            left -= min(left, len(batch))
        total.merge(part)
    assert total.n == rows
    assert total.mean("a")[0] == (rows - 1) / 2
    assert total.covariance("a", ddof=0)[0, 0] == pytest.approx((rows**2 - 1) / 12, rel=1e-14)


def test_rows_in_samples_have_an_id_each():
    m = sc.Moments({"x": 3})
    x = np.arange(24.0).reshape(2, 4, 3)
    m.update(x=x, ids=np.arange(8))
    assert m.rows == 8
    with pytest.raises(sc.InputError, match="each of the 8 rows"):
        m.update(x=x, ids=np.arange(2))
    with pytest.raises(sc.InputError, match="rows in samples"):
        m.update(x=x, valid_rows=1)
    assert m.rows == 8
