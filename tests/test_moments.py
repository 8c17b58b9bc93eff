"""Moments against the reference: every dtype, level, stride, width and number of rows."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import reference
import torch

import streamcca as sc

U32, U64 = 2.0**-24, 2.0**-53
WIDTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 23, 24, 25, 47, 48, 49, 63, 64, 65, 95, 97, 113]
COUNTS = [1, 2, 3, 255, 256, 257, 511, 512, 700]


def relative_error(m, a, b, x, y):
    """Largest error of a covariance in units of the standard deviations of its neurons."""
    exact = reference.covariance(x, y, ddof=0)
    scale = np.sqrt(np.outer(np.var(np.float64(x), axis=0), np.var(np.float64(y), axis=0)))
    error = np.abs(m.covariance(a, b, ddof=0) - exact)
    assert np.all(error[scale == 0] == 0)
    return float(np.max(error[scale > 0] / scale[scale > 0], initial=0))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_with_itself_and_across(width, rng, isa):
    x = rng.standard_normal((301, width))
    y = rng.standard_normal((301, 31)) + x[:, :1]
    m = sc.Moments({"x": width, "y": 31})
    m.update(x=x, y=y)
    assert relative_error(m, "x", "x", x, x) < 30 * U64
    assert relative_error(m, "x", "y", x, y) < 30 * U64
    np.testing.assert_array_equal(m.covariance("y", "x"), m.covariance("x", "y").T)
    c = m.covariance("x")
    np.testing.assert_array_equal(c, c.T)
    np.testing.assert_allclose(m.mean("x"), x.mean(axis=0), rtol=0, atol=4 * U64 * np.abs(x).max())


@pytest.mark.parametrize("rows", COUNTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_count_and_dtype(rows, dtype, rng, isa):
    x = rng.standard_normal((rows, 53)).astype(dtype)
    m = sc.Moments({"x": 53})
    m.update(x=x)
    assert m.n == m.rows == rows
    assert m.precision == ("float64" if dtype == "float64" else "float32")
    if rows == 1:
        np.testing.assert_array_equal(m.covariance("x", ddof=0), np.zeros((53, 53)))
    else:
        limit = 30 * U64 if dtype == "float64" else 30 * U32
        assert relative_error(m, "x", "x", x, x) < limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_torch_tensors(dtype, precision, isa):
    x = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    m = sc.Moments({"x": 40}, precision=precision)
    m.update(x=x)
    assert relative_error(m, "x", "x", x.double().numpy(), x.double().numpy()) < 30 * (
        U32 if precision == "float32" else U64
    )


def test_a_tensor_in_autograd_is_read_and_left_alone():
    x = torch.randn(20, 3, requires_grad=True)
    y = x * 2
    m = sc.Moments({"y": 3})
    m.update(y=y)
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(m.mean("y"), y.detach().double().mean(0).numpy(), atol=1e-7)


class _Tensor(torch.Tensor):
    """A subclass may export something else than its memory: it is asked."""

    def __dlpack__(self, **options):
        return (self.as_subclass(torch.Tensor) + 1).__dlpack__(**options)


@pytest.mark.parametrize(
    ("make", "shift"),
    [
        (lambda x: x, 0),
        (torch.nn.Parameter, 0),
        (lambda x: x.as_subclass(_Tensor), 1),
        (lambda x: torch.complex(x, -x).conj().imag, 0),  # a pending negation
        (lambda x: x.T.contiguous().T, 0),
        (lambda x: x.repeat_interleave(2, dim=1)[:, ::2], 0),
    ],
    ids=["plain", "parameter", "subclass", "negated", "columns", "strided"],
)
def test_tensors_of_all_kinds_give_their_values(make, shift, rng):
    x = torch.from_numpy(rng.standard_normal((300, 5))).float()
    m, right = sc.Moments({"x": 5}), sc.Moments({"x": 5})
    m.update(x=make(x))
    right.update(x=x.numpy() + np.float32(shift))
    np.testing.assert_array_equal(m.covariance("x"), right.covariance("x"))
    np.testing.assert_array_equal(m.mean("x"), right.mean("x"))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_conversion_of_every_16_bit_pattern(kind, precision, isa):
    """The mean of a single row is the row: all finite values, zeros and subnormals included, are exact."""
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    row = torch.from_numpy(patterns.copy()).view(getattr(torch, kind))
    row = row[torch.isfinite(row) & (row.abs() < 1e17)]
    m = sc.Moments({"x": len(row)}, pairs=[], precision=precision)
    m.update(x=row[None])
    np.testing.assert_array_equal(m.mean("x"), row.double().numpy())
    # Twice more than a block, so that the vector code converts them, not the first block's.
    many = sc.Moments({"x": len(row)}, pairs=[], precision=precision)
    many.update(x=torch.zeros(256, len(row)))
    for _ in range(2):
        many.update(x=row[None])
    np.testing.assert_array_equal(many.mean("x") * 258, 2 * row.double().numpy())


def strided_versions(x):
    """The same rows under other strides; each is a view on other memory."""
    n, d = x.shape
    wide = np.zeros((2 * n, 3 * d), dtype=x.dtype)
    wide[::2, ::3] = x
    yield "every second row, every third column", wide[::2, ::3]
    yield "Fortran", np.asfortranarray(x)
    yield "reversed rows", x[::-1].copy()[::-1]
    yield "reversed columns", np.ascontiguousarray(x[:, ::-1])[:, ::-1]
    yield "reversed Fortran", np.asfortranarray(x[::-1, ::-1])[::-1, ::-1]
    record = np.zeros((n, d), dtype=[("tag", "u1"), ("value", x.dtype)])
    record["value"] = x
    yield "misaligned field", record["value"]
    locked = x.copy()
    locked.setflags(write=False)
    yield "read-only", locked


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(300, 50), (17, 3), (40, 200)])
def test_strides_do_not_change_a_bit(dtype, shape, rng, isa, same_bits):
    x = rng.standard_normal(shape).astype(dtype)
    expected = sc.Moments({"x": shape[1]})
    expected.update(x=x)
    for name, strided in strided_versions(x):
        m = sc.Moments({"x": shape[1]})
        m.update(x=strided)
        assert m.n == shape[0], name
        same_bits(m, expected)


def test_transposed_torch_tensor(rng, same_bits):
    x = torch.from_numpy(rng.standard_normal((30, 300)))
    a, b = sc.Moments({"x": 30}), sc.Moments({"x": 30})
    a.update(x=x.T)
    b.update(x=x.T.contiguous())
    same_bits(a, b)


def test_broadcast_rows_with_zero_stride():
    m = sc.Moments({"x": 4})
    m.update(x=np.broadcast_to(np.arange(4.0), (600, 4)))
    np.testing.assert_array_equal(m.covariance("x"), np.zeros((4, 4)))
    np.testing.assert_array_equal(m.mean("x"), np.arange(4.0))


def test_integers_in_floats_are_exact(rng, isa):
    x = rng.integers(-20, 21, size=(1000, 37)).astype(np.float32)
    y = rng.integers(-20, 21, size=(1000, 5)).astype(np.float32)
    m = sc.Moments({"x": 37, "y": 5}, precision="float32")
    for first in range(0, 1000, 77):
        m.update(x=x[first : first + 77], y=y[first : first + 77])
    for i, j in [(0, 0), (3, 30), (36, 36), (36, 0)]:
        assert m.covariance("x")[i, j] == pytest.approx(reference.exact_covariance_entry(x[:, i], x[:, j]), rel=8 * U64)
    assert m.covariance("x", "y")[36, 4] == pytest.approx(
        reference.exact_covariance_entry(x[:, 36], y[:, 4]), rel=1e-13, abs=1e-13
    )


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e6, 1e8])
def test_offsets_cost_no_digits(offset, rng, isa):
    x = np.round(rng.standard_normal((2000, 9)) * 2**20) / 2**20 + offset  # the same deviations at every offset
    m = sc.Moments({"x": 9})
    m.update(x=x)
    exact = reference.exact_covariance_entry(x[:, 2], x[:, 5])
    scale = np.sqrt(
        reference.exact_covariance_entry(x[:, 2], x[:, 2]) * reference.exact_covariance_entry(x[:, 5], x[:, 5])
    )
    assert abs(m.covariance("x")[2, 5] - exact) < 30 * U64 * scale


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e5])
def test_faiss_issue_773(offset):
    """Rows [1 + o, o] and [o, 1 + o] in float32: the leading direction stays (1, -1) / sqrt 2."""
    x = np.array([[1 + offset, offset], [offset, 1 + offset]], dtype=np.float32)
    m = sc.Moments({"x": 2})
    m.update(x=x)
    direction = sc.truncate(m, "x", rank=1).vectors[:, 0]
    np.testing.assert_allclose(np.abs(direction), [2**-0.5, 2**-0.5], rtol=1e-12)
    assert direction[0] * direction[1] < 0


@pytest.mark.parametrize("scale", [1e150, 1e-150])
def test_extreme_magnitudes_in_float64(scale, rng):
    x = rng.standard_normal((400, 6))
    y = rng.standard_normal((400, 6)) + x
    plain, scaled = sc.svcca(x, y), sc.svcca(x * scale, y)
    np.testing.assert_allclose(scaled.correlations, plain.correlations, atol=1e-12)


def test_power_of_two_scaling_is_exact(rng):
    x = rng.standard_normal((500, 20)).astype(np.float32)
    a, b = sc.Moments({"x": 20}), sc.Moments({"x": 20})
    a.update(x=x)
    b.update(x=x * np.float32(2.0**-20))
    np.testing.assert_array_equal(a.covariance("x") * 2.0**-40, b.covariance("x"))


# ---------------------------------------------------------------- pairs


def test_only_wanted_pairs_exist(rng):
    x, y, z = (rng.standard_normal((50, d)) for d in (3, 4, 5))
    m = sc.Moments({"x": 3, "y": 4, "z": 5}, pairs=[("x", "z"), ("y", "y"), ("z", "x")])
    m.update(x=x, y=y, z=z)
    assert m.pairs == [("x", "z"), ("y", "y")]
    np.testing.assert_allclose(m.covariance("z", "x"), reference.covariance(z, x), atol=1e-15)
    np.testing.assert_allclose(m.covariance("y"), reference.covariance(y), atol=1e-15)
    with pytest.raises(sc.InputError, match=r"covariance of 'x' and 'y' was not accumulated.*pairs="):
        m.covariance("x", "y")


def test_pairs_in_any_order_of_views(rng, isa):
    data = {"x": rng.standard_normal((300, 50)), "y": rng.standard_normal((300, 20))}
    m = sc.Moments({"x": 50, "y": 20}, pairs=[("y", "x"), ("y", "y")])
    m.update(data)
    np.testing.assert_allclose(m.covariance("x", "y"), reference.covariance(data["x"], data["y"]), atol=1e-14)


def test_self_pairs_only():
    m = sc.Moments({"x": 3, "y": 4}, pairs="self")
    assert m.pairs == [("x", "x"), ("y", "y")]


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_integer_weights_are_repeated_rows(dtype, rng, isa):
    x = rng.standard_normal((300, 21)).astype(dtype)
    w = rng.integers(0, 5, size=300)
    m = sc.Moments({"x": 21})
    m.update(x=x, weights=w)
    repeated = np.repeat(x, w, axis=0)
    assert m.n == len(repeated)
    assert m.rows == np.count_nonzero(w)
    limit = 40 * (U32 if dtype == "float32" else U64)
    np.testing.assert_allclose(m.covariance("x"), reference.covariance(repeated), atol=limit, rtol=limit)
    np.testing.assert_allclose(m.mean("x"), repeated.astype(np.float64).mean(axis=0), atol=limit)


def test_zero_weight_is_an_absent_row(rng, same_bits):
    x = rng.standard_normal((700, 5))
    keep = rng.random(700) < 0.6
    x[~keep] = np.nan  # absent rows are not even looked at
    a, b = sc.Moments({"x": 5}), sc.Moments({"x": 5})
    a.update(x=x, weights=keep.astype(float))
    b.update(x=x[keep])
    same_bits(a, b)


def test_unit_weights_change_no_bit(rng, same_bits):
    x = rng.standard_normal((700, 5)).astype(np.float32)
    a, b = sc.Moments({"x": 5}), sc.Moments({"x": 5})
    a.update(x=x, weights=np.ones(700))
    b.update(x=x)
    same_bits(a, b)


def test_fractional_weights(rng):
    x = rng.standard_normal((400, 6))
    w = rng.random(400)
    m = sc.Moments({"x": 6})
    m.update(x=x[:150], weights=w[:150])
    m.update(x=x[150:], weights=torch.from_numpy(w[150:]))
    assert m.n == pytest.approx(w.sum(), rel=1e-14)
    np.testing.assert_allclose(m.covariance("x"), reference.covariance(x, weights=w), atol=1e-14)


# ---------------------------------------------------------------- bad values


def test_skip_leaves_rows_out_of_all_views(rng, same_bits):
    x, y = rng.standard_normal((600, 3)), rng.standard_normal((600, 50)).astype(np.float32)
    bad = np.zeros(600, dtype=bool)
    for row, column in [(0, 1), (255, 2), (256, 0), (599, 2)]:
        x[row, column] = np.nan
        bad[row] = True
    y[300, 49] = np.inf
    bad[300] = True
    a, b = sc.Moments({"x": 3, "y": 50}, nonfinite="skip"), sc.Moments({"x": 3, "y": 50}, nonfinite="skip")
    a.update(x=x, y=y)
    b.update(x=x[~bad], y=y[~bad])
    assert a.skipped == 5
    assert a.n == 595
    b_bits = [b.mean("x").tobytes(), b.covariance("x", "y").tobytes()]
    assert [a.mean("x").tobytes(), a.covariance("x", "y").tobytes()] == b_bits


def test_propagate_lets_nan_through(rng):
    x = rng.standard_normal((600, 3))
    x[400, 1] = np.nan
    m = sc.Moments({"x": 3}, nonfinite="propagate")
    m.update(x=x)
    c = m.covariance("x")
    assert np.isnan(c[1]).all()
    assert np.isfinite(c[0, [0, 2]]).all()
    with pytest.raises(sc.InputError, match="not finite"):
        sc.truncate(m, "x")


# ---------------------------------------------------------------- life of an object


def test_copies_are_independent(rng, same_bits):
    x = rng.standard_normal((900, 5))
    a = sc.Moments({"x": 5})
    a.update(x=x[:300])
    for twin in (a.copy(), copy.copy(a), copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        same_bits(a, twin)
        twin.update(x=x[300:])
        assert a.n == 300
        whole = sc.Moments({"x": 5})
        whole.update(x=x)
        same_bits(twin, whole)


def test_reset_forgets_rows_and_precision(rng):
    m = sc.Moments({"x": 5})
    m.update(x=rng.standard_normal((10, 5)))
    m.reset()
    assert m.n == m.rows == 0
    assert m.precision == "auto"
    m.update(x=np.ones((3, 5), dtype=np.float32))
    assert m.precision == "float32"


def test_reading_changes_nothing(rng, same_bits):
    x = rng.standard_normal((1000, 30)).astype(np.float32)
    a, b = sc.Moments({"x": 30}), sc.Moments({"x": 30})
    for first in range(0, 1000, 90):
        a.update(x=x[first : first + 90])
        b.update(x=x[first : first + 90])
        a.covariance("x", ddof=0)
        a.mean("x")
        a.state_dict()
    same_bits(a, b)


def test_empty_batches_are_fine():
    m = sc.Moments({"x": 3})
    m.update(x=np.empty((0, 3), dtype=np.float32))
    assert m.n == 0
    m.update(x=np.ones((2, 3)))
    assert m.n == 2


def test_gold_covariance():
    """oneDAL's gold data."""
    m = sc.Moments({"x": 2})
    m.update(x=np.array([[1.0, 2.0], [3.0, 6.0]]))
    np.testing.assert_array_equal(m.covariance("x", ddof=0), [[1, 2], [2, 4]])
    np.testing.assert_array_equal(m.mean("x"), [2, 4])


@pytest.mark.parametrize("columns", [10, 100])
@pytest.mark.parametrize("rows", [100, 1000])
@pytest.mark.parametrize("chunks", [2, 10])
def test_onedal_uniform_data_in_chunks(rows, columns, chunks, rng, same_bits):
    x = rng.uniform(-0.3, 0.7, size=(rows, columns))
    streamed, batch = sc.Moments({"x": columns}), sc.Moments({"x": columns})
    for part in np.array_split(x, chunks):
        streamed.update(x=part)
    batch.update(x=x)
    same_bits(streamed, batch)
    assert relative_error(batch, "x", "x", x, x) < 30 * U64


def test_row_ids_catch_a_shuffled_loader():
    m = sc.Moments({"x": 2, "y": 2})
    x = np.arange(8.0).reshape(4, 2)
    m.update(x=x, y=x, ids={"x": [3, 1, 2, 0], "y": np.array([3, 1, 2, 0])})
    checksum = m.ids_checksum
    assert checksum["x"] == checksum["y"]
    with pytest.raises(sc.InputError, match=r"ids of views 'x' and 'y' differ first in row 2 .*\(2 and 9\)"):
        m.update(x=x, y=x, ids={"x": [3, 1, 2, 0], "y": [3, 1, 9, 0]})
    assert m.n == 4
    assert m.ids_checksum == checksum
    again = sc.Moments({"x": 2, "y": 2})
    again.update(x=x[:1], y=x[:1], ids=[3])
    again.update(x=x[1:], y=x[1:], ids=[1, 2, 0])
    assert again.ids_checksum == checksum


def test_weights_on_some_rows_of_a_block(rng):
    """Beyond the first block, weighted and unweighted batches share blocks; a later batch must not undo weights."""
    x = rng.standard_normal((500, 7)) + 2
    weights = np.ones(500)
    weights[300:350] = 3.0
    m = sc.Moments({"a": 7})
    m.update(a=x[:300])
    m.update(a=x[300:350], weights=weights[300:350])
    m.update(a=x[350:])
    np.testing.assert_allclose(m.mean("a"), weights @ x / weights.sum(), rtol=1e-13)
    np.testing.assert_allclose(m.covariance("a"), reference.covariance(x, weights=weights), rtol=1e-12, atol=1e-13)


def test_merging_far_means_keeps_the_measured_rounding(rng):
    """The second sum of squares moves with the shift; otherwise its difference would be taken for rounding."""
    x = rng.standard_normal((4000, 6)).astype(np.float32)
    x[2000:] += 5
    whole = sc.Moments({"a": 6})
    whole.update(a=x)
    parts = [sc.Moments({"a": 6}) for _ in range(2)]
    parts[0].update(a=x[:2000])
    parts[1].update(a=x[2000:])
    parts[0].merge(parts[1])
    assert parts[0]._covariance("a", "a")[1][0] < 5 * whole._covariance("a", "a")[1][0]


def test_rounding_that_repeats_is_measured(rng):
    """One block again and again rounds alike each time: the errors add up, and the model of chance is too small."""
    block = rng.standard_normal((256, 40)).astype(np.float32)
    m = sc.Moments({"a": 40})
    for _ in range(400):
        m.update(a=block)
    covariance, (relative, _, raw) = m._covariance("a", "a", 0)
    exact = np.cov(block.astype(np.float64), rowvar=False, ddof=0)
    error = np.sqrt(np.mean(((np.diag(covariance) - np.diag(exact)) / raw) ** 2))
    model = 0.3 * 2.0**-24 * 16 / 20
    assert error > 1.5 * model, "these rows were meant to defeat the model"
    assert relative > 0.7 * error


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("inside", [1, 3, 16, 50, 600])
def test_rows_in_samples(rng, dtype, inside, isa, same_bits):
    """(samples, m, d): every (sample, m) is a row, whatever lies between the samples."""
    d = 37
    maps = rng.standard_normal((9, d, inside)).astype(dtype)  # channels first
    rows = np.ascontiguousarray(maps.transpose(0, 2, 1)).reshape(-1, d)
    want = sc.Moments({"x": d, "y": d})
    want.update(x=rows, y=rows[::-1])
    weights = rng.integers(0, 3, len(rows)).astype(float)
    weighted = sc.Moments({"x": d})
    weighted.update(x=rows, weights=weights)
    padded = np.full((9, inside + 2, d), np.nan, dtype)
    padded[:, :inside] = rows.reshape(9, inside, d)
    for samples in (maps.transpose(0, 2, 1), padded[:, :inside], rows.reshape(9, inside, d)):
        for threads in (1, 2):
            m = sc.Moments({"x": d, "y": d}, threads=threads)
            m.update(x=samples[:4], y=rows[::-1][: 4 * inside])
            m.update(x=samples[4:], y=rows[::-1][4 * inside :])
            same_bits(m, want)
        m = sc.Moments({"x": d})
        m.update(x=samples, weights=weights)
        same_bits(m, weighted)
    bad = np.ascontiguousarray(maps)
    bad[7, 5, inside - 1] = np.inf
    m = sc.Moments({"x": d})
    with pytest.raises(sc.NonFiniteError, match=f"row {7 * inside + inside - 1} of the batch .*column 5"):
        m.update(x=bad.transpose(0, 2, 1))
    skipping = sc.Moments({"x": d}, nonfinite="skip")
    skipping.update(x=bad.transpose(0, 2, 1))
    assert (skipping.rows, skipping.skipped) == (9 * inside - 1, 1)
    m.update(x=maps.transpose(0, 2, 1)[:0])
    assert m.rows == 0


def test_a_mark_is_returned_to(rng, same_bits):
    m = sc.Moments({"x": 5})
    with pytest.raises(sc.InputError, match="nothing was marked"):
        m._core.return_to_mark()
    m._core.mark()
    m.update(x=rng.standard_normal((700, 5)))
    m._core.return_to_mark()
    assert m.rows == 0
    for first in (100, 900):  # in the head, and after it
        m.reset()
        x = rng.standard_normal((first, 5))
        m.update(x=x)
        before = m.copy()
        m._core.mark()
        m.update(x=rng.standard_normal((700, 5)) + 100)
        m._core.return_to_mark()
        same_bits(m, before)
        y = rng.standard_normal((300, 5))
        m.update(x=y)
        before.update(x=y)
        same_bits(m, before)
