"""The bill before the work: memory, passes, arithmetic, and the way that is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_compare import models

import streamcca as sc
from streamcca._backend import state_bytes
from streamcca.gram import gram_bytes
from streamcca.sketch_route import sketch_cost


def test_the_bill_is_what_the_moments_take():
    shapes = {"a": 300, "b": 200, "c": 100}
    bill = sc.plan(shapes, 1000)
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    covariance = bill.routes[0]
    assert covariance.strategy == bill.strategy == "covariance"
    assert covariance.passes == bill.passes == 1
    assert covariance.memory == bill.memory
    # The state, four matrices of the widest view for LAPACK, a tenth of the directions of each view twice.
    kept = 2 * 8 * (300 * 30 + 200 * 20 + 100 * 10)
    assert covariance.memory == state_bytes([300, 200, 100], pairs) + 4 * 8 * 300**2 + kept
    # All pairs are the upper triangle of one matrix of width 600.
    assert covariance.flops_per_row == 600 * 601
    assert bill.flops == 1000 * 600 * 601
    assert bill.minutes > 0
    assert sc.plan(shapes).flops is None
    assert sc.plan(shapes).minutes is None


def test_replay_is_cheaper_where_few_directions_are_kept():
    shapes = {f"{m}{i}": 1024 for m in "ab" for i in range(10)}
    bill = sc.plan(shapes, 10_000, kept=0.05)
    covariance, replay = bill.routes[:2]
    assert replay.passes == 2
    assert replay.memory < covariance.memory / 2
    assert replay.flops_per_row < covariance.flops_per_row / 2
    limited = sc.plan(shapes, 10_000, memory=(replay.memory + covariance.memory) // 2, kept=0.05)
    assert limited.strategy == "replay"
    assert limited.limit_from == "memory="


def test_print():
    text = str(sc.plan({"a": 64, "b": 64}, 5000, memory=1 << 30))
    assert "covariance" in text
    assert "<- taken" in text.splitlines()[2]
    assert "GFLOP for 5000 rows" in text
    assert "limit 1.00 GiB (memory=)" in text
    wide = {"a": 640, "b": 640}
    assert "does not fit" in str(sc.plan(wide, memory=sc.plan(wide).routes[1].memory))
    assert "billed for 7 directions kept" in str(sc.plan(wide, kept=7))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shapes": {}}, "view"),
        ({"shapes": {"a": 0}}, "got 'a': 0"),
        ({"shapes": {"a": 3}, "strategy": "rank"}, "got 'rank'"),
        ({"shapes": {"a": 3}, "kept": 0}, "kept: got 0"),
        ({"shapes": {"a": 3}, "kept": 1.5}, "kept: got 1.5"),
        ({"shapes": {"a": 3}, "memory": "8GB"}, "memory: got '8GB'"),
        ({"shapes": {"a": 3}, "n": -5}, "n: got -5"),
        ({"shapes": {"a": 3}, "pairs": [("a", "b")]}, "no view 'b'"),
    ],
)
def test_refusals(options, sentence):
    with pytest.raises(sc.InputError, match=sentence):
        sc.plan(options.pop("shapes"), **options)


def test_the_bill_is_shown_before_it_starts(capsys):
    a, b = models()
    with pytest.warns(sc.AccuracyWarning):
        sc.compare(a, b, torch.randn(300, 8).split(100), layers="0", progress=True)
    shown = capsys.readouterr().err
    assert "<- taken" in shown
    with pytest.warns(sc.AccuracyWarning):
        sc.compare(a, b, torch.randn(300, 8).split(100), layers="0", progress=False)
    assert capsys.readouterr().err == ""


def test_the_rule_decides_what_is_billed():
    """A full rule keeps everything, so the replay saves nothing; a rank is known beforehand."""
    shapes = {f"{m}{i}": 400 for m in "ab" for i in range(6)}
    covariance, replay = sc.plan(shapes, kept=1.0).routes[:2]
    assert replay.memory > 0.9 * covariance.memory
    few = sc.plan(shapes, kept=5).routes[1]
    assert few.memory < replay.memory / 2


def test_wide_layers_take_gram_matrices():
    shapes = {"a": 802_816, "b": 802_816}
    bill = sc.plan(shapes, 10_000, memory=6 << 30, itemsize=2)
    assert (bill.strategy, bill.passes, bill.exact) == ("gram", 1, True)
    assert bill.memory == gram_bytes(10_000, [802_816] * 2, [2 * 802_816] * 2) < 6 << 30
    assert bill.disk == 10_000 * 2 * 802_816 * 2
    assert bill.flops == pytest.approx(10_000 * 10_001 * 2 * 802_816)
    assert "29.91 GiB" in str(bill)
    assert "gram" not in [route.strategy for route in sc.plan({"a": 5, "b": 5}).routes]
    with pytest.raises(sc.InputError, match="n: got None, expected the number of rows"):
        sc.plan(shapes, strategy="gram")
    with pytest.raises(sc.MemoryLimitError, match="and gram needs"):
        sc.plan(shapes, 100_000, memory=6 << 30, strategy="gram")


def test_wide_layers_of_many_rows_are_sketched():
    shapes = {"a": 802_816, "b": 802_816}
    bill = sc.plan(shapes, 10**7, memory=8 << 30, kept=50)
    assert (bill.strategy, bill.passes, bill.exact, bill.disk) == ("sketch", 2, False, 0)
    assert bill.memory == sketch_cost((802_816, 802_816), 200, 10**7, rank=50)[0]
    assert "the sketch within its bound" in str(bill)
    assert sc.plan(shapes, memory=8 << 30, kept=50).strategy == "sketch"
    # Rows that cannot be read again have no replay.
    with pytest.raises(sc.MemoryLimitError, match="read twice"):
        sc.plan(shapes, 10**7, memory=8 << 30, kept=50, replay=False)


def test_arithmetic_of_a_large_case_needs_no_memory():
    bill = sc.plan({f"l{i}": 100_000 for i in range(3)}, memory=10**15)
    assert bill.routes[0].memory > 3e11
    assert np.isfinite(bill.routes[1].flops_per_row)


def test_qr_is_taken_only_when_asked_for():
    shapes = {"a": 300, "b": 300}
    assert sc.plan(shapes, 1000, strategy="qr").strategy == "qr"
    # Of all routes only QR would fit here, and yet the refusal does not offer what the data may not need.
    few = {route.strategy: route.memory for route in sc.plan(shapes, 1000).routes}
    assert list(few) == ["covariance", "replay", "gram", "sketch", "qr"]
    with pytest.raises(sc.MemoryLimitError, match="strategy='qr' does not fit: .*qr needs"):
        sc.plan(shapes, 1000, memory=1 << 20, strategy="qr")
    with pytest.raises(sc.MemoryLimitError, match="sketch needs [^q]* leaves"):
        sc.plan(shapes, 1000, memory=1 << 20)
