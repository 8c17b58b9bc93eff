"""All layer pairs of two models whose layers are too wide for covariances: rows on disk, one n x n matrix at a time."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import streamcca as sc

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")
spool = sys.modules["streamcca.spool"]


def nets(channels=(6, 9)):
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Conv2d(3, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, 4, 3, stride=2), nn.Flatten())
        for c in channels
    ]


IMAGES = torch.randn(90, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("measure", ["svcca", "cca"])
def test_the_numbers_of_covariances(measure, monkeypatch):
    monkeypatch.setattr(spool, "_SEGMENT_BYTES", 1)
    a, b = nets()
    options = {"rows": "flatten", "layers": ["0", "2"], "precision": "float64", "rank": 10, "measure": measure}
    one = sc.compare(a, b, list(IMAGES.split(25)), strategy="covariance", **options)
    two = sc.compare(a, b, list(IMAGES.split(25)), strategy="gram", **options)
    assert two.strategy == "gram"
    assert {cell.strategy for row in two.results for cell in row} == {"gram"}
    np.testing.assert_allclose(two.matrix, one.matrix, atol=1e-10)
    assert (two["0", "2"].width_x, two["0", "2"].width_y) == (6 * 144, 4 * 25)
    assert (two.layers_a, two.layers_b, two.n, two.rows) == (one.layers_a, one.layers_b, 90, one.rows)
    assert two.table().splitlines()[:-1] == one.table().splitlines()[:-1]


def test_an_iterator_of_unknown_length(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    a, b = nets()
    result = sc.compare(a, b, iter(IMAGES.split(40)), rows="flatten", layers="0", rank=5, strategy="gram")
    assert result.n == 90
    assert list(tmp_path.glob("streamcca-*")) == []


def test_rows_that_were_written_are_not_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_SEGMENT_BYTES", 1)
    a, b = nets()
    options = {"rows": "flatten", "layers": "0", "rank": 5, "strategy": "gram"}
    whole = sc.compare(a, b, list(IMAGES.split(30)), **options)

    def broken():
        yield from IMAGES.split(30)[:2]
        raise RuntimeError("the node is gone")

    with pytest.raises(RuntimeError, match="the node is gone"):
        sc.compare(a, b, broken(), folder=tmp_path / "s", **options)
    assert spool.Spool(tmp_path / "s").rows == 48
    written = []
    append = spool.Spool._append
    monkeypatch.setattr(spool.Spool, "_append", lambda self, s: (written.append(s.filled), append(self, s))[1])
    again = sc.compare(a, b, list(IMAGES.split(30)), folder=tmp_path / "s", **options)
    assert sum(written) == 90 - 48
    assert again.matrix.tobytes() == whole.matrix.tobytes()
    assert not (tmp_path / "s").exists()


def test_other_models_do_not_take_these_rows(tmp_path):
    a, b = nets()
    options = {"rows": "flatten", "layers": "0", "rank": 5, "strategy": "gram", "folder": tmp_path / "s"}
    batches = list(IMAGES.split(30))
    with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool.SpoolTiles, "read", lambda *_: (_ for _ in ()).throw(RuntimeError))
        sc.compare(a, b, batches, **options)
    c, _ = nets((6, 9))
    nn.init.ones_(c[0].weight)
    with pytest.raises(sc.InputError, match="holds other rows of view 'a:0'"):
        sc.compare(c, b, batches, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"measure": "pwcca"}, "keeps no neurons"),
        ({"ridge": 0.1}, "no neurons to add it to"),
        ({"nonfinite": "skip"}, "takes 'raise' only"),
        ({"strategy": "joint"}, "got 'joint', expected one of 'auto', 'covariance', 'replay', 'gram', 'sketch'"),
    ],
)
def test_refusals(change, sentence):
    a, b = nets()
    with pytest.raises(sc.InputError, match=sentence):
        sc.compare(a, b, IMAGES, **({"rows": "flatten", "layers": "0", "rank": 5, "strategy": "gram"} | change))


def test_taken_where_nothing_else_fits():
    a, b = nets()
    options = {"rows": "flatten", "layers": "0", "rank": 5, "memory": 16 << 20}
    assert sc.compare(a, b, list(IMAGES.split(30)), **options).strategy == "gram"
    with pytest.raises(sc.MemoryLimitError, match="no route fits"):
        sc.compare(a, b, list(IMAGES.split(30)), measure="pwcca", **options)
