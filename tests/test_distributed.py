"""all_reduce between real processes: the sum of all rows, the same bits on every rank, errors instead of hanging."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import ranks
import reference
import torch

import streamcca as sc
from streamcca import distributed

U32, U64 = 2.0**-24, 2.0**-53
ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every scenario of ranks.py gave, rank by rank: results["float32"][rank]."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-Werror::RuntimeWarning", ranks.__file__, folder, str(rank)],
            env={**os.environ, **ENVIRONMENT},
            stderr=subprocess.PIPE,
        )
        for rank in range(ranks.SIZE)
    ]
    try:
        complaints = [process.communicate(timeout=200)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0, 2, 3], "\n".join(complaints)
    per_rank = [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(ranks.SIZE)]
    return {name: [result.get(name) for result in per_rank] for name in per_rank[0]}


def moments_of(states):
    """The moments that all ranks have."""
    for state in states:
        assert ranks.same_state(state, states[0])
    return sc.Moments._from_state(states[0])


def check(moments, rows, unit, weights=None):
    """Against the slow reference: errors in units of the neurons' deviations, as in test_moments.py."""
    deviations = {name: np.sqrt(np.diag(reference.covariance(array, weights=weights))) for name, array in rows.items()}
    for a, b in moments.pairs:
        error = moments.covariance(a, b) - reference.covariance(rows[a], rows[b], weights=weights)
        assert np.max(np.abs(error) / np.outer(deviations[a], deviations[b])) < 30 * unit, (a, b)
    for name, array in rows.items():
        mean = np.average(np.float64(array), axis=0, weights=weights)
        limit = 8 * (U64 * np.abs(mean) + unit * deviations[name])
        assert np.all(np.abs(moments.mean(name) - mean) < limit), name


@pytest.mark.parametrize(
    ("name", "rows", "unit"),
    [
        ("float32", ranks.data(), U32),
        ("float64", ranks.data("float64"), U64),
        ("offset", ranks.data(offset=1e6), U32),
        ("float64_in_buckets_of_7", ranks.data("float64"), U64),
        ("only_some_pairs", ranks.data("float64"), U64),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_four_processes_are_one(name, rows, unit, results):
    m = moments_of(results[name])
    assert (m.n, m.rows, m.skipped) == (3000, 3000, 0)
    check(m, rows, unit)


def test_buckets_do_not_change_a_sum_of_two(results):
    states = [*results["two_ranks"][0], *results["two_ranks"][1]]
    assert len(states) == 12
    check(moments_of(states), {name: array[:1400] for name, array in ranks.data().items()}, U32)
    for outside in results["two_ranks"][2:]:
        assert outside["error"] == "InputError"
        assert "this process is not in the group" in outside["sentence"]


def test_rows_that_wait_for_a_shift(results):
    m = moments_of(results["few_rows"])
    assert m.n == 14
    check(m, {"x": np.random.default_rng(0).integers(-99, 99, (14, 6)).astype(np.float64)}, U64)


def test_no_rank_has_rows(results):
    m = moments_of(results["nothing_at_all"])
    assert (m.n, m.rows, m.skipped) == (0, 0, 0 + 1 + 2 + 3)
    m.update(x=np.ones((2, 3)))
    assert m.n == 2


def test_weights_skipped_rows_and_ids(results):
    parts = results["weighted"]
    m = moments_of([part["state"] for part in parts])
    rows = {name: np.concatenate([part["rows"][name] for part in parts]) for name in ranks.VIEWS}
    weights = np.concatenate([part["weights"] for part in parts])
    good = np.isfinite(rows["y"]).all(axis=1)
    assert m.rows == good.sum()
    assert m.n == pytest.approx(weights[good].sum(), rel=1e-14)
    assert {part["skipped"] for part in parts} == {m.skipped} == {(~good).sum()}
    assert [part["ids"] for part in parts] == [{}] * 4
    check(m, {name: array[good] for name, array in rows.items()}, U64, weights[good])


def test_the_shift_is_that_of_a_rank_near_the_mean(results):
    """With the shift of the heaviest rank, as for two, second moments would be 2.8 times those about the mean here."""
    parts = results["far_means"]
    m = moments_of([part["state"] for part in parts])
    x = np.concatenate([part["rows"] for part in parts])
    check(m, {"x": x}, U32)
    raw = m._covariance("x", "x")[1][2]
    assert np.all(raw < 2 * x.var(axis=0))
    shift = parts[0]["state"]["tensors"]["shift.0"]
    assert all(value in {part["shift"][c] for part in parts} for c, value in enumerate(shift))


def test_nothing_moves_where_one_rank_has_all_rows(results):
    parts = results["one_rank_has_rows"]
    own, m = sc.Moments._from_state(parts[3]["own"]), moments_of([part["state"] for part in parts])
    assert (parts[0]["state"]["tensors"]["shift.0"] == parts[3]["own"]["tensors"]["shift.0"]).all()
    assert np.abs(m.covariance("x") - own.covariance("x")).max() < 30 * U32


def test_a_constant_column_stays_constant(results):
    m = moments_of(results["constant_column"])
    assert np.all(m.covariance("x")[1] == 0)
    assert m.mean("x")[1] == np.float32(1e6 / 3)


def test_rows_that_are_not_finite_spread_over_their_columns_only(results):
    m = moments_of(results["not_finite"])
    x = np.concatenate([np.random.default_rng(rank).standard_normal((400, 3)) for rank in range(4)])
    assert not np.isfinite(m.mean("x")[:2]).any()
    assert np.isfinite(m.state_dict()["tensors"]["shift.0"]).all()
    assert m.covariance("x")[2, 2] == pytest.approx(x[:, 2].var(ddof=1), rel=1e-13)


def test_what_rounding_did_is_added_up(results):
    """The error bound of the whole is about that of one process, and holds."""
    m = moments_of(results["float32"])
    one = sc.Moments(ranks.VIEWS)
    one.update(ranks.data())
    assert m._covariance("x", "x")[1][0] == pytest.approx(one._covariance("x", "x")[1][0], rel=0.5)
    assert m._covariance("x", "x")[1][1] == one._covariance("x", "x")[1][1]
    parts = [sc.Moments(ranks.VIEWS) for _ in range(4)]
    for rank, part in enumerate(parts):
        part.update(ranks.share(ranks.data(), rank))
        if rank:
            parts[0].merge(part)
    rounding = [part.state_dict()["meta"]["state"]["rounding"] for part in (m, parts[0])]
    assert rounding[0] == pytest.approx(rounding[1], rel=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.AccuracyWarning)
        for measure, options in ((sc.svcca, {}), (sc.svcca, {"rank": 5}), (sc.pwcca, {})):
            a, b = measure(m, "x", "y", **options), measure(one, "x", "y", **options)
            assert (a.n, a.rank_x, a.rank_y) == (b.n, b.rank_x, b.rank_y)
            assert abs(a.mean - b.mean) <= a.error_bound + b.error_bound
            assert a.error_bound < 1e-4


def test_ranks_with_other_products(results):
    parts = results["other_products"]
    m = moments_of([part["state"] for part in parts])
    assert m.precision == "float64"
    assert [part["precision"] for part in parts] == ["float64"] * 4
    rows = {name: array.astype(np.float64) for name, array in ranks.data().items()}
    for name, array in ranks.share(ranks.data("float64"), 2).items():
        rows[name][ranks.CUTS[2] : ranks.CUTS[3]] = array
    check(m, rows, U32)


def test_more_rows_afterwards(results):
    m = moments_of(results["going_on"])
    check(m, {name: np.concatenate([array, array]) for name, array in ranks.data("float64").items()}, U64)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (0, "rank 2 has views {'x': 20, 'y': 10}, expected {'x': 20, 'y': 9} as on rank 0; construct Moments alike"),
        (1, "rank 2 has views {'y': 9, 'x': 20}, expected {'x': 20, 'y': 9} as on rank 0"),
        (2, "rank 1 has pairs [('x', 'x'), ('y', 'y')], expected [('x', 'x'), ('x', 'y'), ('y', 'y')] as on rank 0"),
        (3, "rank 3 has precision 'float64', expected 'auto' as on rank 0"),
        (4, "'layer77': 4, 'layer78': 3, "),
    ],
)
def test_unlike_moments_are_refused_on_every_rank(case, sentence, results):
    outcomes = [result[case] for result in results["unlike"]]
    assert {o["error"] for o in outcomes} == {"InputError"}
    assert len({o["sentence"] for o in outcomes}) == 1
    assert sentence in outcomes[0]["sentence"]
    assert len(outcomes[0]["sentence"]) < 500
    assert all(o["unchanged"] and o["seconds"] < 10 for o in outcomes)


def test_a_rank_that_fails_alone(results):
    outcomes = results["one_rank_fails"]
    assert outcomes[1]["late"]["error"] == "MemoryError"
    assert outcomes[1]["late"]["unchanged"]
    for rank in (0, 2, 3):
        for when, step in (("late", "hold the result"), ("early", "take its part out")):
            outcome = outcomes[rank][when]
            assert outcome["error"] == "ProcessError"
            assert f"rank 1 could not {step}, see its own error" in outcome["sentence"]
            assert outcome["unchanged"]
    # The group is as good as before.
    check(moments_of([outcome["then"] for outcome in outcomes]), ranks.data(), U32)


@pytest.mark.parametrize(
    ("name", "survivors"), [("rank_that_never_comes", (0, 1, 2)), ("rank_that_dies_in_the_middle", (0, 1))]
)
def test_a_rank_that_dies_is_an_error_on_the_others(name, survivors, results):
    for rank in survivors:
        outcome = results[name][rank]
        assert outcome["error"] == "ProcessError"
        assert outcome["sentence"].startswith("all_reduce: another rank ended, or did not answer")
        assert "\n" not in outcome["sentence"]
        assert outcome["cause"]
        assert outcome["unchanged"]
        assert outcome["seconds"] < 20, "longer than a closed connection takes to show"


def test_without_a_group():
    with pytest.raises(sc.InputError, match=r"torch\.distributed is not initialized; call .*init_process_group"):
        sc.all_reduce(sc.Moments({"a": 2}))


def test_a_group_of_one_changes_nothing(tmp_path, same_bits):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        m = sc.Moments({"a": 2})
        m.update(a=np.eye(2), ids=[1, 2])
        before = m.copy()
        sc.all_reduce(m)
        same_bits(m, before)
        assert m.ids_checksum == before.ids_checksum
        with pytest.raises(sc.InputError, match="got dict, expected Moments"):
            sc.all_reduce({})
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 100])
def test_buckets_hold_every_number_once(size):
    arrays = [np.arange(3.0), np.empty(0), np.arange(3.0, 10.0), np.arange(10.0, 11.0)]
    buckets = list(distributed._buckets(arrays, size))
    assert np.concatenate([piece for bucket in buckets for piece in bucket]).tolist() == list(range(11))
    assert [sum(piece.size for piece in bucket) for bucket in buckets][:-1] == [size] * (len(buckets) - 1)
    buckets[0][0][0] = 5
    assert arrays[0][0] == 5  # views, not copies


# ---------------------------------------------------------------------- as it is used


@pytest.mark.slow
def test_the_example_of_the_docs_under_torchrun(tmp_path, capsys):
    (code,) = re.findall(r"```python\n(import .*?)```", (ROOT / "docs/distributed.md").read_text(), flags=re.DOTALL)
    (tmp_path / "script.py").write_text(code)
    for _ in range(3):
        done = subprocess.run(
            [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), "script.py"],
            cwd=tmp_path,
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        # torch 2.13 sometimes aborts in gloo's threads when a process leaves, with its own all_reduce, too.
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    alone = "\n".join(line for line in code.splitlines() if "dist." not in line and "all_reduce" not in line)
    exec(compile(alone, "docs/distributed.md", "exec"), {"rank": 0, "size": 1})
    (two, bound, n), (one, its_bound, all_rows) = (
        re.findall(r"^SVCCA (\S+) \+- (\S+) .*, n=(\d+)$", out, flags=re.MULTILINE)[0]
        for out in (done.stdout, capsys.readouterr().out)
    )
    assert n == all_rows == "10000"
    assert abs(float(one) - float(two)) <= float(bound) + float(its_bound)


def test_a_range_finder_of_rows_on_all_ranks(results):
    whole = ranks.sketched(*ranks.sketched_rows())
    for correlations in results["range_finder"]:
        np.testing.assert_allclose(correlations, whole.correlations, atol=1e-9)
        np.testing.assert_array_equal(correlations, results["range_finder"][0])
