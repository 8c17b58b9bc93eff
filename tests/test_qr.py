"""The triangular factor of streamed rows: exact, whatever the batches, the order of merging and the input."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import pickle
import threading
import tracemalloc

import extended
import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from hypothesis import example, given, settings
from test_refusals import BAD, GOOD

import streamcca as sc
from streamcca import _memory, qr_state, store
from streamcca.qr import QRMoments
from streamcca.qr_blocks import block_depth, qr_cost
from streamcca.qr_cca import qr_compare, qr_moments_of
from streamcca.subspace import Rule

U = 2.0**-53
DEPTH = block_depth(10)
needs_long_doubles = pytest.mark.skipif(not extended.AVAILABLE, reason="long doubles are plain doubles here")


def bits(m):
    state = m.state_dict()
    arrays = [(name, array.tobytes()) for name, array in sorted(state["tensors"].items())]
    factor = m.factor() if m.rows else None
    read = [factor.mean.tobytes(), factor.centered.tobytes()] if factor else []
    return arrays, read, (m.n, m.rows, m.skipped), state["meta"]["state"]


def filled(*batches, nonfinite="raise", **options):
    m = QRMoments({name: x.shape[-1] for name, x in batches[0].items()}, nonfinite)
    for batch in batches:
        m.update(batch, **options)
    return m


@pytest.fixture
def rows(rng):
    return {"a": rng.standard_normal((1300, 4)) + 100, "b": rng.standard_normal((1300, 3)) * 1e-3}


def largest_error(m, x, weights=None):
    """Of the covariances, in unit roundoffs of the two neurons' deviations, against extended precision."""
    rows = extended.centered(np.hstack(list(x.values())), weights)
    exact = rows.T @ rows
    factor = m.factor().centered
    # In extended precision, so that only the factor's own error is seen.
    found = factor.astype(extended.LONG).T @ factor.astype(extended.LONG)
    norms = np.sqrt(np.diag(exact))
    return float((np.abs(found - exact) / np.outer(norms, norms)).max() / U)


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("n", [2, 3, 10, DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH, 2 * DEPTH + 7, 1300])
@pytest.mark.parametrize("widths", [(1, 1), (4, 3), (7, 1)])
def test_means_and_covariances(n, widths, rng):
    x = {"a": rng.standard_normal((n, widths[0])) * 3 - 2, "b": rng.standard_normal((n, widths[1])) + 50}
    m = filled(x)
    assert (m.n, m.rows, m.skipped) == (n, n, 0)
    for view in x:
        np.testing.assert_allclose(m.mean(view), x[view].mean(axis=0), rtol=0, atol=60 * U * 50)
        for other in x:
            expected = reference.covariance(x[view], x[other])
            np.testing.assert_allclose(m.covariance(view, other), expected, rtol=0, atol=100 * U * 9)
    np.testing.assert_allclose(m.covariance("a", ddof=0), reference.covariance(x["a"], ddof=0), rtol=0, atol=900 * U)
    lower = m.factor().centered[np.tril_indices(sum(widths), -1)]
    assert not lower.any()


@needs_long_doubles
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e9])
@pytest.mark.parametrize("n", [200, 5000])
def test_errors_are_a_few_roundings_of_the_deviations_whatever_the_offset(offset, n, rng):
    x = {"a": rng.standard_normal((n, 5)) + offset, "b": rng.standard_normal((n, 4)) * 1e5 - offset}
    assert largest_error(filled(x), x) < 10


@needs_long_doubles
def test_drift_costs_no_more_than_it_adds_to_the_rows(rng):
    """Rows that move away from the shift of the first block by some hundred deviations within each class."""
    x = {"a": rng.standard_normal((6000, 5)) + np.repeat(300 * rng.standard_normal((10, 5)), 600, axis=0)}
    m = filled(x)
    factor = m.factor()
    raw = np.hypot(factor.drift, np.linalg.norm(factor.centered, axis=0)) / np.linalg.norm(factor.centered, axis=0)
    assert 1 < raw.max() < 20
    assert largest_error(m, x) < 10 * raw.max() ** 2


def test_a_constant_neuron_is_exactly_zero(rng):
    x = rng.standard_normal((1300, 3))
    x[:, 1] = 0.1
    m = filled({"a": x})
    assert not m.factor().centered[:, 1].any()
    assert m.mean("a")[1] == 0.1
    assert not m.covariance("a")[1].any()


def test_fewer_rows_than_neurons(rng):
    x = {"a": rng.standard_normal((5, 20))}
    m = filled(x)
    np.testing.assert_allclose(m.covariance("a"), reference.covariance(x["a"]), rtol=0, atol=1e-14)
    s = np.linalg.svd(m.factor().centered, compute_uv=False)
    assert s[3] > 1
    assert s[4] < 1e-14


@pytest.mark.parametrize("scale", [1e-150, 1e140])
def test_large_and_small_units_change_nothing_but_the_unit(scale, rng):
    x = {"a": rng.standard_normal((700, 4)), "b": rng.standard_normal((700, 2))}
    unit = 2.0 ** round(np.log2(scale))
    plain, scaled = filled(x), filled({name: value * unit for name, value in x.items()})
    assert (plain.factor().centered * unit).tobytes() == scaled.factor().centered.tobytes()


# ---------------------------------------------------------------------- batches


@example(cuts=[DEPTH - 1, DEPTH + 1])
@example(cuts=[DEPTH, 2 * DEPTH])
@given(cuts=st.lists(st.integers(0, 1300), max_size=8))
def test_batches_do_not_change_a_bit(cuts):
    rng = np.random.default_rng(0)
    x, weights = {"a": rng.standard_normal((1300, 3)), "b": rng.standard_normal((1300, 2))}, rng.uniform(0, 2, 1300)
    weights[::7] = 0
    whole = filled(x, weights=weights)
    m = QRMoments({"a": 3, "b": 2})
    edges = [0, *sorted(cuts), 1300]
    for first, last in itertools.pairwise(edges):
        m.update({name: value[first:last] for name, value in x.items()}, weights=weights[first:last])
        if m.rows:
            m.mean("a")  # reading changes nothing
    assert bits(m) == bits(whole)


@pytest.mark.parametrize("before", [1, DEPTH - 2, DEPTH - 1, DEPTH, DEPTH + 1])
@pytest.mark.parametrize("then", [1, 2, 3, DEPTH])
def test_a_block_may_end_anywhere_in_a_batch(before, then, rows):
    m = QRMoments({"a": 4, "b": 3})
    for first, last in itertools.pairwise([0, before, before + then, 1300]):
        m.update({name: value[first:last] for name, value in rows.items()})
    assert bits(m) == bits(filled(rows))


def test_single_rows_do_not_change_a_bit(rows):
    m = QRMoments({"a": 4, "b": 3})
    for i in range(DEPTH + 3):
        m.update({name: value[i : i + 1] for name, value in rows.items()})
    assert bits(m) == bits(filled({name: value[: DEPTH + 3] for name, value in rows.items()}))


INPUTS = {
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "fortran order": lambda x: np.asfortranarray(x),
    "negative strides": lambda x: x[::-1].copy()[::-1],
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "read-only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "torch float64": torch.from_numpy,
    "torch float32": lambda x: torch.from_numpy(x).float(),
    "torch bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "torch half, transposed": lambda x: torch.from_numpy(x).half().T.contiguous().T,
    "torch with a gradient": lambda x: torch.from_numpy(x).float().requires_grad_(),
    "dlpack only": lambda x: Dlpack(torch.from_numpy(x)),
    "dlpack only, bfloat16": lambda x: Dlpack(torch.from_numpy(x).bfloat16()),
}


class Dlpack:
    """An array of a library that nobody here knows."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


def as_float64(x):
    if isinstance(x, Dlpack):
        x = x._tensor
    return x.detach().double().numpy() if isinstance(x, torch.Tensor) else x.astype(np.float64)


@pytest.mark.parametrize("kind", INPUTS)
def test_every_input_counts_as_its_float64_values(kind, rng):
    x = rng.standard_normal((700, 6))
    given_rows = INPUTS[kind](x)
    m, plain = QRMoments({"a": 6}), filled({"a": np.ascontiguousarray(as_float64(given_rows))})
    m.update(a=given_rows)
    assert m.factor().centered.tobytes() == plain.factor().centered.tobytes()
    assert m.mean("a").tobytes() == plain.mean("a").tobytes()
    unit = {"float32": 2.0**-24, "half": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
    names = [name for name in unit if name in kind or (name == "float32" and "gradient" in kind)]
    assert m.factor().row_unit == (unit[names[-1]] if names else U)


@pytest.mark.parametrize("kind", ["numpy", "torch", "channels first", "one row each"])
def test_rows_in_samples(kind, rng):
    samples = rng.standard_normal((40, 31, 5)) if kind != "one row each" else rng.standard_normal((700, 1, 5))
    flat = samples.reshape(-1, 5)
    if kind == "channels first":
        samples = np.ascontiguousarray(samples.transpose(0, 2, 1)).transpose(0, 2, 1)
    m = QRMoments({"a": 5, "b": 5})
    m.update(a=torch.from_numpy(samples) if kind == "torch" else samples, b=flat)
    assert bits(m) == bits(filled({"a": flat, "b": flat}))


def test_valid_rows_and_empty_batches(rows):
    cut = {name: value[:900] for name, value in rows.items()}
    m = QRMoments({"a": 4, "b": 3})
    m.update({name: value[:0] for name, value in rows.items()})
    assert (m.n, m.rows) == (0, 0)
    m.update(rows, valid_rows=900, weights=np.full(1300, 2.0))
    m.update(rows, valid_rows=0)
    assert bits(m) == bits(filled(cut, weights=np.full(900, 2.0)))
    with pytest.raises(sc.InputError, match="valid_rows: got 1301, expected an integer from 0 to 1300"):
        m.update(rows, valid_rows=1301)


@needs_long_doubles
def test_weights_count_rows(rows, rng):
    weights = rng.integers(0, 4, 1300)
    m = filled(rows, weights=weights)
    repeated = filled({name: np.repeat(value, weights, axis=0) for name, value in rows.items()})
    assert (m.n, m.rows) == (weights.sum(), (weights > 0).sum())
    assert repeated.n == m.n
    for view in rows:
        np.testing.assert_allclose(m.mean(view), repeated.mean(view), rtol=1e-14)
        np.testing.assert_allclose(m.covariance("b", view), repeated.covariance("b", view), rtol=0, atol=1e-17)
    assert largest_error(m, rows, weights) < 10
    assert filled(rows, weights=np.full(1300, 0.5)).n == 650


def test_rows_of_weight_zero_are_absent_even_with_nan(rows):
    dirty = {name: value.copy() for name, value in rows.items()}
    dirty["b"][::3, 1] = np.nan
    weights = np.where(np.arange(1300) % 3 == 0, 0.0, 1.0)
    clean = {name: value[weights > 0] for name, value in rows.items()}
    assert bits(filled(dirty, weights=weights)) == bits(filled(clean))


def test_skip_and_propagate(rows):
    dirty = {name: value.copy() for name, value in rows.items()}
    dirty["a"][[5, 700], 2] = np.nan, np.inf
    dirty["b"][[5, 900], 0] = -np.inf
    keep = np.ones(1300, bool)
    keep[[5, 700, 900]] = False
    m, clean = filled(dirty, nonfinite="skip"), filled({name: value[keep] for name, value in rows.items()})
    assert (m.skipped, m.rows) == (3, 1297)
    assert m.factor().centered.tobytes() == clean.factor().centered.tobytes()
    spread = filled(dirty, nonfinite="propagate")
    assert spread.rows == 1300
    assert np.isnan(spread.covariance("a")).any()


# ---------------------------------------------------------------------- refusals


@pytest.fixture(params=[20, DEPTH + 9], ids=["first block pending", "after a block"])
def moments(request):
    good = np.resize(GOOD, (request.param, 4))
    return filled({"a": good, "b": good})


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_refused_as_by_moments_and_changes_nothing(name, moments):
    batch, kind, sentence = BAD[name]
    before = bits(moments)
    twin = moments.copy()
    with pytest.raises(kind, match=sentence) as caught:
        moments.update(batch)
    with pytest.raises(kind) as expected:
        m = sc.Moments({"a": 4, "b": 4})
        m.update(a=np.zeros((moments.rows, 4)), b=np.zeros((moments.rows, 4)))
        m.update(batch)
    assert str(caught.value) == str(expected.value)
    assert bits(moments) == before
    for m in (moments, twin):
        m.update(a=GOOD, b=GOOD)
    assert bits(moments) == bits(twin)


def test_other_bad_arguments(moments):
    before = bits(moments)
    for call, kind, sentence in [
        (lambda: moments.update(GOOD), sc.InputError, r"update: got ndarray, expected a mapping .*update\(a=rows\)"),
        (lambda: moments.update(a=GOOD, b=GOOD, weights=np.full(300, -1.0)), sc.InputError, "weight is -1"),
        (lambda: moments.update(a=GOOD, b=GOOD, weights=[1.0]), sc.InputError, "got 1 values for 300 rows"),
        (lambda: moments.merge(sc.Moments({"a": 4})), sc.InputError, "merge: got Moments, expected QRMoments"),
        (
            lambda: moments.merge(QRMoments({"b": 4, "a": 4})),
            sc.InputError,
            r"merge: the other side has views \{'b': 4",
        ),
        (lambda: moments.mean("c"), sc.InputError, "there is no view 'c'"),
        (lambda: moments.covariance("a", ddof=np.nan), sc.InputError, "ddof: got nan"),
        (lambda: moments.covariance("a", ddof=1e6), sc.InputError, "leave nothing to divide by"),
        (lambda: QRMoments({}), sc.InputError, "views: got"),
        (lambda: QRMoments({"a": 2}, nonfinite="drop"), sc.InputError, "nonfinite: got 'drop'"),
        (lambda: QRMoments({"a": 2}).mean("a"), sc.InputError, "have seen no rows yet"),
    ]:
        with pytest.raises(kind, match=sentence):
            call()
    assert bits(moments) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("before", [0, 100, DEPTH + 100])
def test_what_breaks_off_in_the_middle_of_a_batch_changes_nothing(error, before, rows, monkeypatch):
    m, twin = QRMoments({"a": 4, "b": 3}), QRMoments({"a": 4, "b": 3})
    for each in (m, twin):
        each.update({name: value[:before] for name, value in rows.items()})
    calls = []

    def breaking(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise error
        return fold(*args, **options)

    fold = qr_state.fold
    with monkeypatch.context() as patch:
        patch.setattr(qr_state, "fold", breaking)
        with pytest.raises(error):
            m.update(rows)
    assert (m.rows, m.n) == (before, before)
    for each in (m, twin):
        each.update(rows)
    assert bits(m) == bits(twin)
    with pytest.raises(sc.NonFiniteError, match=rf"after {before + 1300} rows counted before"):
        m.update(a=rows["a"] * np.nan, b=rows["b"])


def test_it_is_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(_memory, "available_memory", lambda: (1 << 30, "the limit of this test"))
    QRMoments({"a": 2000, "b": 1000})
    with pytest.raises(
        sc.MemoryLimitError, match=r"the triangular factor of 2 views, 9000 neurons in all, need .* GiB"
    ):
        QRMoments({"a": 5000, "b": 4000})


def test_several_threads_may_update_one_object(rng):
    x = rng.integers(-8, 8, (64, 3)).astype(float)
    m = QRMoments({"a": 3})
    threads = [threading.Thread(target=lambda: [m.update(a=x) for _ in range(40)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert m.rows == 160 * 64
    np.testing.assert_allclose(m.covariance("a", ddof=0), reference.covariance(x, ddof=0), rtol=0, atol=1e-11)


def _update_in_a_fork(m, queue):
    try:
        m.update(a=np.ones((2, 3)))
    except sc.ProcessError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_rows_in_a_fork_are_refused():
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_update_in_a_fork, args=(QRMoments({"a": 3}), queue))
    process.start()
    process.join()
    assert "are updated in its fork" in queue.get()


# ---------------------------------------------------------------------- merging


@needs_long_doubles
@pytest.mark.parametrize("edges", [[0, 3, 1300], [0, 650, 1300], [0, 1, 2, 600, 601, 1299, 1300]])
@pytest.mark.parametrize("drift", [0.0, 1000.0])
def test_merged_parts_are_the_whole(edges, drift, rows):
    rows["a"][650:] += drift
    parts = [filled({name: value[i:j] for name, value in rows.items()}) for i, j in itertools.pairwise(edges)]
    m = QRMoments({"a": 4, "b": 3})
    for part in parts:
        m.merge(part)
    assert (m.n, m.rows) == (1300, 1300)
    # Shifts lie within parts; `drift` is some 500 deviations of the whole, which is what errors are relative to.
    assert largest_error(m, rows) < 20
    for view in rows:
        np.testing.assert_allclose(m.mean(view), rows[view].mean(axis=0), rtol=0, atol=50 * U * (100 + drift))
    with pytest.raises(sc.NonFiniteError, match="after 1300 rows counted before"):
        m.update(a=rows["a"] * np.nan, b=rows["b"])
    m.update(rows)
    assert m.rows == 2600


@needs_long_doubles
@given(data=st.data())
@settings(max_examples=25)
def test_any_tree_of_merges_gives_the_whole(data):
    rng = np.random.default_rng(1)
    x = {"a": np.cumsum(rng.standard_normal((700, 3)), axis=0), "b": rng.standard_normal((700, 2))}
    cuts = sorted(data.draw(st.lists(st.integers(1, 699), min_size=1, max_size=6, unique=True)))
    parts = [filled({name: value[i:j] for name, value in x.items()}) for i, j in itertools.pairwise([0, *cuts, 700])]
    while len(parts) > 1:
        i, j = data.draw(st.permutations(range(len(parts))))[:2]
        parts[i].merge(parts[j])
        del parts[j]
    assert parts[0].rows == 700
    assert largest_error(parts[0], x) < 20
    for view in x:
        np.testing.assert_allclose(parts[0].mean(view), x[view].mean(axis=0), rtol=0, atol=100 * U * 50)


def test_the_empty_state_is_the_identity_of_merging(rows):
    m, whole = QRMoments({"a": 4, "b": 3}), filled(rows)
    m.merge(QRMoments({"a": 4, "b": 3}))
    assert m.rows == 0
    m.merge(whole)
    m.merge(QRMoments({"a": 4, "b": 3}))
    assert bits(m) == bits(whole)
    for each in (m, whole):  # also in what comes next
        each.update(rows)
    assert bits(m) == bits(whole)


def test_merging_does_not_touch_the_other_side(rows):
    m, other = filled(rows), filled(rows)
    before = bits(other)
    m.merge(other)
    m.update(rows)
    m.merge(m)
    assert m.rows == 6 * 1300
    assert bits(other) == before


# ---------------------------------------------------------------------- copies and files


@pytest.mark.parametrize("n", [0, 7, DEPTH, DEPTH + 7])
@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle", "file", "state_dict"])
def test_what_is_restored_goes_on_to_the_same_bits(n, way, rows, tmp_path):
    m = filled({name: value[:n] for name, value in rows.items()}, nonfinite="skip")
    if way == "file":
        m.save(tmp_path / "m.qr")
        other = QRMoments.load(tmp_path / "m.qr")
    elif way == "state_dict":
        other = QRMoments({"a": 4, "b": 3}, "skip")
        other.update(rows)
        other.load_state_dict(m.state_dict())
    else:
        other = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}[way](
            m
        )
    assert bits(other) == bits(m)
    dirty = {"a": rows["a"].copy(), "b": rows["b"]}
    dirty["a"][3, 3] = np.nan
    other.update(dirty)
    if n:
        assert m.rows == n  # independent
    m.update(dirty)
    assert bits(other) == bits(m)
    assert m.skipped == 1


def broken(change):
    def make(state):
        state = {
            "meta": {**state["meta"], "state": dict(state["meta"]["state"])},
            "tensors": {name: value.copy() for name, value in state["tensors"].items()},
        }
        change(state["meta"], state["tensors"])
        return state

    return make


DAMAGED = {
    "another format": (broken(lambda m, t: m.update(format="streamcca.moments")), "got format 'streamcca.moments'"),
    "newer": (broken(lambda m, t: m.update(version=2)), "got format version 2, expected 1"),
    "no state": (broken(lambda m, t: m.pop("state")), "the state is damaged"),
    "no views": (broken(lambda m, t: m.update(config={})), "not a state of QRMoments"),
    "no factor": (broken(lambda m, t: t.pop("factor")), "the state is damaged"),
    "short factor": (broken(lambda m, t: t.update(factor=t["factor"][1:])), "the state is damaged"),
    "pending of another width": (broken(lambda m, t: t.update(pending=t["pending"][:, 1:])), "the state is damaged"),
    "more pending rows than rows": (broken(lambda m, t: m["state"].update(rows=3)), "do not fit its arrays"),
    "other blocks": (broken(lambda m, t: m["state"].update(depth=100)), "for blocks of 100 rows"),
    "no weight": (broken(lambda m, t: m["state"].update(weight=0.0)), "do not fit its arrays"),
    "weight that is none": (broken(lambda m, t: m["state"].update(weight=float("nan"))), "do not fit its arrays"),
    "weights below zero": (broken(lambda m, t: t.update(roots=-t["roots"])), "weights of pending rows"),
    "not a number": (broken(lambda m, t: m["state"].update(rows="many")), "the state is damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_states_are_refused(name, rows):
    change, sentence = DAMAGED[name]
    m = filled(rows)
    before = bits(m)
    with pytest.raises(sc.StateFileError, match=sentence):
        m.load_state_dict(change(m.state_dict()))
    assert bits(m) == before


def test_states_and_files_of_others_are_refused(rows, tmp_path):
    m = filled(rows)
    with pytest.raises(
        sc.InputError, match=r"load_state_dict: the state has views \[\['a', 4\], \['b', 3\]\], expected"
    ):
        QRMoments({"b": 3, "a": 4}).load_state_dict(m.state_dict())
    m.save(tmp_path / "qr")
    filled(rows).save(tmp_path / "qr")
    plain = sc.Moments({"a": 4})
    plain.save(tmp_path / "moments")
    with pytest.raises(sc.StateFileError, match=r"streamcca\.moments\), expected one written by QRMoments\.save"):
        QRMoments.load(tmp_path / "moments")
    with pytest.raises(sc.StateFileError, match=r"expected one written by Moments\.save"):
        sc.Moments.load(tmp_path / "qr")
    with pytest.raises(sc.MissingFileError, match=r"written by QRMoments\.save"):
        QRMoments.load(tmp_path / "nothing")
    content = bytearray((tmp_path / "qr").read_bytes())
    content[-5] ^= 1
    (tmp_path / "qr").write_bytes(bytes(content))
    with pytest.raises(sc.StateFileError, match="checksum"):
        QRMoments.load(tmp_path / "qr")
    assert store.QR_FORMAT != store.FORMAT


# ---------------------------------------------------------------------- data in, and the bill


def test_everything_that_measures_accept_as_data(rows, tmp_path):
    x, y = rows["a"], rows["b"]
    expected = filled({"x": x, "y": y})
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    halves = ((x[i : i + 650], y[i : i + 650]) for i in (0, 650))
    for data in [(x, y), (tmp_path / "x.npy", str(tmp_path / "y.npy")), (halves,), (expected,), (expected, "x", "y")]:
        m, a, b = qr_moments_of(data)
        assert (a, b) == ("x", "y")
        assert bits(m) == bits(expected)
    dirty = np.where(np.arange(1300)[:, None] == 7, np.nan, x)
    assert qr_moments_of((dirty, y), nonfinite="skip", progress=False)[0].skipped == 1
    for data, sentence in [
        ((x,), "expected rows|iterable|data:"),
        ((x, y[:5]), "view 'y': got 5 rows, expected 1300"),
        ((x[:0], y[:0]), "the data hold no rows"),
        ((iter([]),), "the iterable of batches is empty"),
        ((filled({"a": x, "b": y, "c": y}),), "name two of the views 'a', 'b', 'c'"),
    ]:
        with pytest.raises(sc.InputError, match=sentence):
            qr_moments_of(data)


def test_cost(rng):
    need, operations = qr_cost([70, 90])
    assert operations == pytest.approx(2 * 160**2, rel=0.02)
    assert qr_cost([70, 90], 10_000)[1] > operations
    assert qr_cost([70, 90], 10_000)[1] < qr_cost([70, 90], 1000)[1]
    assert qr_cost([70, 300])[0] > need
    # Arrays of NumPy report to tracemalloc.
    x = {"a": rng.standard_normal((500, 70)), "b": rng.standard_normal((500, 90))}
    tracemalloc.start()
    try:
        m = QRMoments({"a": 70, "b": 90})
        for _ in range(3):
            m.update(x)
        qr_compare(m, "a", "b", Rule("full"), measure="cca")
        assert 0.6 * need < tracemalloc.get_traced_memory()[1] < 1.05 * need
    finally:
        tracemalloc.stop()


def test_repr(rows):
    assert repr(filled(rows)) == "QRMoments(n=1300, views={'a': 4, 'b': 3})"
    assert filled(rows).views == {"a": 4, "b": 3}
