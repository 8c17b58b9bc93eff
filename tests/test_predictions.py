"""Predictions in memory and in files: exact votes, probabilities to the digits that are promised, refusals."""

from __future__ import annotations

import math
import tracemalloc

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import lambertw, softmax

from streamcca import errors, store
from streamcca.multiplicity.answers.predictions import Predictions, save_logits, saved_sets, vote_counts


def random_logits(models=3, n=50, classes=5, seed=0, spread=3.0):
    rng = np.random.default_rng(seed)
    return {f"m{i}": rng.normal(scale=spread, size=(n, classes)) for i in range(models)}


def stored(path, logits, name="test"):
    """The predictions of one model after a way through a file."""
    save_logits(path, {name: logits})
    return Predictions.load({"m": path}, name)


# ---------------------------------------------------------------------- in memory


def test_what_logits_say_is_what_numpy_says():
    logits = random_logits()
    labels = np.random.default_rng(1).integers(0, 5, 50)
    p = Predictions.of_logits(logits, labels)
    assert (p.names, p.n, p.classes, len(p)) == (("m0", "m1", "m2"), 50, 5, 3)
    for i, (name, array) in enumerate(logits.items()):
        assert np.array_equal(p.votes[i], np.argmax(array, axis=1))
        assert np.array_equal(p.correct[i], np.argmax(array, axis=1) == labels)
        assert p.accuracies[i] == np.mean(np.argmax(array, axis=1) == labels)
        np.testing.assert_allclose(p.probabilities(name), softmax(array, axis=1), rtol=1e-14)
        assert np.array_equal(p.logits(name), array)
    assert p.votes.dtype == np.int32
    assert p.labels.dtype == np.int64
    assert p.correct.dtype == np.bool_
    assert "3 models" in repr(p)
    assert "\n" not in repr(p)


def test_temperatures_divide_and_leave_votes_alone():
    logits = random_logits()
    p = Predictions.of_logits(logits).calibrated([0.5, 2.0, 10.0])
    for name, t in zip(p.names, (0.5, 2.0, 10.0), strict=True):
        np.testing.assert_allclose(p.probabilities(name), softmax(logits[name] / t, axis=1), rtol=1e-13)
    assert np.array_equal(p.votes, Predictions.of_logits(logits).votes)
    assert np.array_equal(p.calibrated({"m0": 1, "m1": 1, "m2": 1, "other": 4}).temperatures, np.ones(3))  # replaced
    assert np.array_equal(p.select(["m2", "m0"]).temperatures, [10.0, 0.5])


def test_select_keeps_the_order_that_was_asked_for():
    logits = random_logits()
    p = Predictions.of_logits(logits, np.zeros(50, dtype=int)).select(["m2", "m0"])
    assert p.names == ("m2", "m0")
    np.testing.assert_allclose(next(p.blocks())[1][0], softmax(logits["m2"], axis=1), rtol=1e-14)
    assert np.array_equal(p.votes[1], np.argmax(logits["m0"], axis=1))


@pytest.mark.parametrize("rows", [1, 7, 49, 50, 1000, None])
@pytest.mark.parametrize("kind", ["probability", "logit"])
def test_blocks_hold_every_row_once(rows, kind):
    p = Predictions.of_logits(random_logits()).calibrated([1, 2, 3])
    parts = list(p.blocks(rows, kind))
    assert [where.start for where, _ in parts] == list(range(0, 50, min(rows or 50, 50)))
    assert all(block.shape == (3, where.stop - where.start, 5) for where, block in parts)
    whole = np.concatenate([block for _, block in parts], axis=1)
    for i, name in enumerate(p.names):
        if kind == "probability":
            assert np.array_equal(whole[i], p.probabilities(name))
        else:
            scaled = p.logits(name) / (i + 1)
            np.testing.assert_allclose(whole[i], scaled - scaled.max(axis=1, keepdims=True), atol=1e-14)


def test_default_blocks_are_bounded_whatever_the_rows():
    p = Predictions.of_logits({"a": np.zeros((300_000, 10), dtype=np.float32)})
    sizes = [block.nbytes for _, block in p.blocks()]
    assert len(sizes) == 2
    assert max(sizes) <= 16 << 20


@given(
    hnp.arrays(np.float64, (4, 3), elements=st.floats(-20, 20)),
    hnp.arrays(np.float64, (4, 1), elements=st.floats(-1000, 1000)),
)
def test_a_constant_on_a_row_changes_no_probability(logits, constant):
    before = Predictions.of_logits({"m": logits}).probabilities("m")
    after = Predictions.of_logits({"m": logits + constant}).probabilities("m")
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-13)  # 1000 has 1e-13 between numbers


def test_what_was_made_does_not_change():
    labels = np.zeros(50, dtype=np.int64)
    p = Predictions.of_logits(random_logits(), labels)
    labels[:] = 1
    assert not p.labels.any()
    for array in (p.labels, p.votes, p.temperatures):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_vote_counts_count_votes():
    votes = np.array([[0, 2, 1], [0, 1, 1], [2, 0, 1]], dtype=np.int32)
    assert vote_counts(votes, 3).tolist() == [[2, 0, 1], [1, 1, 1], [0, 3, 0]]


def test_differences_beyond_the_range_of_float64_are_certainty():
    p = Predictions.of_logits({"m": [[1e308, -1e308], [0, 1]]})
    np.testing.assert_array_equal(p.probabilities("m")[0], [1, 0])


# ---------------------------------------------------------------------- files

NASTY = np.array(
    [
        [1.0, 1.0, 1.0],
        [0.5, 1.0, 1.0],
        [1.0, np.nextafter(1.0, 2), np.nextafter(1.0, 0)],  # first is not the largest, but nearer than float16 sees
        [1e-300, 2e-300, 0.0],
        [1e6, 1e6 + 1e-9, 1e6],
        [-1e308, 1e308, 1e308],
        [70000.0, 0.0, 69999.0],
        [0.0, -1e-8, 1e-9],
        [-5e-324, 0.0, 5e-324],
    ]
)


def test_a_file_keeps_every_vote(tmp_path):
    p = stored(tmp_path / "a", NASTY)
    assert p.votes[0].tolist() == [0, 1, 1, 1, 1, 1, 0, 2, 2]
    kept = p.logits("m")
    assert np.array_equal(kept == 0, NASTY.max(axis=1, keepdims=True) == NASTY)  # ties stay ties, nothing else is one
    assert np.isfinite(kept).all()


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16]),
        (6, 4),
        elements=st.sampled_from([0.0, 1.0, 1.0009765625, 6e-8, -6e-8, 5.0, -5.0, 1000.0, 1000.5, 60000.0, -60000.0]),
    )
)
def test_a_file_keeps_votes_of_any_dtype(tmp_path_factory, logits):
    path = tmp_path_factory.mktemp("logits") / "m"
    p = stored(path, logits)
    assert np.array_equal(p.votes[0], np.argmax(logits, axis=1))
    assert np.array_equal(p.logits("m") == 0, logits == logits.max(axis=1, keepdims=True))
    assert np.array_equal(np.argmax(p.logits("m"), axis=1), np.argmax(logits, axis=1))


def bound(classes):
    """Total variation that the docstring of `Predictions` promises for files."""
    u = 2.0**-11
    return u * (1 + u) * lambertw((classes - 1) / math.e).real


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_stored_probabilities_are_as_near_as_promised(tmp_path, classes, temperature):
    rng = np.random.default_rng(classes)
    random = rng.normal(size=(300, classes)) * rng.uniform(0.1, 10, size=(300, 1))
    # The worst rows: all other classes equally unlikely, at the distance where the bound is attained.
    worst = np.zeros((300, classes))
    worst[:, 1:] = -temperature * np.linspace(0.5, 3 + math.log(classes), 300)[:, None]
    p = stored(tmp_path / "a", np.concatenate([random, worst])).calibrated([temperature])
    exact = softmax(np.concatenate([random, worst]) / temperature, axis=1)
    off = p.probabilities("m") - exact
    variation = np.abs(off).sum(axis=1) / 2
    assert variation.max() <= bound(classes)
    assert np.abs(off).max() <= bound(classes)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_the_promise_is_not_an_idle_one(tmp_path, classes):
    # All other classes equally unlikely, where the sum is largest, by logits whose rounding errors are the largest:
    # just below, and just above, the middle between two numbers of float16; of one sign in the first row, of both.
    logits = np.zeros((2, classes))
    logits[:, 1:] = -4 - 2.0**-9 * 0.999
    logits[1, 2::2] = -4 - 2.0**-9 * 1.001
    temperature = 4 / (1 + lambertw((classes - 1) / math.e).real)
    p = stored(tmp_path / "a", logits).calibrated([temperature])
    variation = np.abs(p.probabilities("m") - softmax(logits / temperature, axis=1)).sum(axis=1) / 2
    assert 0.45 * bound(classes) <= variation.max() <= bound(classes)


def test_promised_digits_are_those_in_the_docstring():
    text = " ".join(Predictions.__doc__.split())
    for classes, told in ((10, "5.4e-4 for 10 classes"), (100, "1.3e-3 for 100"), (1000, "2.2e-3 for 1000")):
        assert told in text
        assert f"{bound(classes):.1e}".replace("e-0", "e-") == told.split()[0]


def test_files_hold_several_sets_and_are_read_by_row(tmp_path):
    rng = np.random.default_rng(3)
    sets = {"test": rng.normal(size=(40, 6)), "noise-3": rng.normal(size=(11, 6))}
    save_logits(tmp_path / "a", sets, about={"group": "seed"})
    save_logits(tmp_path / "b", {name: -array for name, array in sets.items()})
    assert saved_sets(tmp_path / "a") == {"test": (40, 6), "noise-3": (11, 6)}
    p = Predictions.load({"a": tmp_path / "a", "b": tmp_path / "b"}, "noise-3", labels=np.arange(11) % 6)
    assert (p.name, p.n, p.classes) == ("noise-3", 11, 6)
    assert np.array_equal(p.votes[0], np.argmax(sets["noise-3"], axis=1))
    assert np.array_equal(p.votes[1], np.argmin(sets["noise-3"], axis=1))
    whole = np.concatenate([block for _, block in p.blocks(4)], axis=1)
    np.testing.assert_allclose(whole[0], softmax(sets["noise-3"], axis=1), atol=bound(6))
    np.testing.assert_array_equal(whole[1], p.probabilities("b"))


def test_a_replaced_file_does_not_change_predictions(tmp_path):
    p = stored(tmp_path / "a", NASTY)
    before = p.probabilities("m")
    save_logits(tmp_path / "a", {"test": -NASTY})
    assert np.array_equal(p.probabilities("m"), before)


def test_files_are_not_read_whole(tmp_path):
    n = 200_000
    save_logits(tmp_path / "a", {"test": np.zeros((n, 10), dtype=np.float32)})
    tracemalloc.start()
    try:
        p = Predictions.load({"a": tmp_path / "a"}, "test")
        loaded = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for _ in p.blocks(1000):
            pass
        peak = tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert loaded < 40e6  # 4 MB of them are votes; float64 logits would take 16 MB, probabilities as much again
    assert peak < 1e6


@pytest.mark.parametrize("byte", [10, 200, -1, -30])
def test_damage_is_found(tmp_path, byte):
    save_logits(tmp_path / "a", {"test": NASTY})
    content = bytearray((tmp_path / "a").read_bytes())
    content[byte] ^= 4
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(errors.StateFileError):
        Predictions.load({"m": tmp_path / "a"}, "test")


def test_damage_of_another_set_does_no_harm(tmp_path):
    save_logits(tmp_path / "a", {"a": NASTY, "z": NASTY})
    content = bytearray((tmp_path / "a").read_bytes())
    content[-1] ^= 4  # arrays lie in the order of their names
    (tmp_path / "a").write_bytes(content)
    assert Predictions.load({"m": tmp_path / "a"}, "a").n == len(NASTY)
    with pytest.raises(errors.StateFileError, match="checksum of 'z'"):
        Predictions.load({"m": tmp_path / "a"}, "z")


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(errors.MissingFileError, match="written by save_logits"):
        Predictions.load({"m": tmp_path / "a"}, "test")
    (tmp_path / "a").write_text("no")
    with pytest.raises(errors.StateFileError, match="not written by save_logits"):
        Predictions.load({"m": tmp_path / "a"}, "test")
    store.write_state(tmp_path / "b", {"meta": {}, "tensors": {"test": np.zeros((2, 2))}})
    with pytest.raises(errors.StateFileError, match="streamcca.moments"):
        Predictions.load({"m": tmp_path / "b"}, "test")
    store.write_state(tmp_path / "c", {"meta": {"version": 99}, "tensors": {"t": np.zeros(2)}}, store.LOGITS_FORMAT)
    with pytest.raises(errors.StateFileError, match="version 99"):
        Predictions.load({"m": tmp_path / "c"}, "t")


def test_models_that_answered_other_rows_are_refused(tmp_path):
    for name, mark in (("a", "one"), ("b", "two"), ("c", None)):
        save_logits(tmp_path / name, {"test": NASTY}, fingerprints={} if mark is None else {"test": mark})
    assert len(Predictions.load({"a": tmp_path / "a", "c": tmp_path / "c"}, "test")) == 2
    with pytest.raises(errors.InputError, match="'b' answered other rows than 'a'"):
        Predictions.load({"c": tmp_path / "c", "a": tmp_path / "a", "b": tmp_path / "b"}, "test")


def test_sets_and_shapes_are_checked(tmp_path):
    save_logits(tmp_path / "a", {"test": NASTY})
    save_logits(tmp_path / "b", {"test": NASTY[:4]})
    with pytest.raises(errors.InputError, match=r"no test set 'tset'; did you mean 'test'\?"):
        Predictions.load({"a": tmp_path / "a"}, "tset")
    with pytest.raises(errors.InputError, match=r"'b' have shape \(4, 3\), those of 'a' \(9, 3\)"):
        Predictions.load({"a": tmp_path / "a", "b": tmp_path / "b"}, "test")
    with pytest.raises(errors.InputError, match="no test set 'other'"):
        save_logits(tmp_path / "c", {"test": NASTY}, fingerprints={"other": "x"})


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        ({}, None, errors.InputError, "mapping"),
        ([[0, 1]], None, errors.InputError, "mapping"),
        ({"a": [0.0, 1.0]}, None, errors.InputError, r"shape \(2,\)"),
        ({"a": np.zeros((0, 3))}, None, errors.InputError, "at least 1 row"),
        ({"a": np.zeros((3, 1))}, None, errors.InputError, "2 classes"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}, None, errors.InputError, "same rows"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((3, 4))}, None, errors.InputError, "same rows"),
        ({"a": [[0.0, 1.0], [np.nan, 1.0]]}, None, errors.NonFiniteError, "row 1 holds NaN"),
        ({"a": [[0.0, 1.0], [np.inf, 1.0]]}, None, errors.NonFiniteError, "row 1 holds NaN or infinity"),
        ({"a": [["x", "y"]]}, None, errors.DTypeError, "float16"),
        ({"a": np.zeros((2, 2), dtype=bool)}, None, errors.DTypeError, "bool"),
        ({"": np.zeros((2, 2))}, None, errors.InputError, "non-empty"),
        ({"a": np.zeros((2, 2))}, [0, 2], errors.InputError, "got 2 at row 1, expected 0 to 1"),
        ({"a": np.zeros((2, 2))}, [-1, 0], errors.InputError, "got -1 at row 0"),
        ({"a": np.zeros((2, 2))}, [0, 1, 0], errors.InputError, r"expected \(2,\)"),
        ({"a": np.zeros((2, 2))}, [0.0, 1.0], errors.DTypeError, "integers"),
    ],
)
def test_what_cannot_be_used_is_refused(logits, labels, error, message):
    with pytest.raises(error, match=message):
        Predictions.of_logits(logits, labels)


def test_what_cannot_be_asked_is_refused():
    p = Predictions.of_logits(random_logits())
    with pytest.raises(errors.InputError, match=r"no model 'm9'; did you mean"):
        p.probabilities("m9")
    with pytest.raises(errors.InputError, match="no model"):
        p.select(["x"])
    with pytest.raises(errors.InputError, match="each once"):
        p.select(["m0", "m0"])
    with pytest.raises(errors.InputError, match="has no labels"):
        _ = p.accuracies
    for bad in ([1, 1], [1, 1, 0], [1, 1, -1], [1, 1, np.nan], [1, 1, np.inf]):
        with pytest.raises(errors.InputError, match="3 finite numbers above 0"):
            p.calibrated(bad)
    with pytest.raises(errors.InputError, match="none for model 'm2'"):
        p.calibrated({"m0": 1, "m1": 1})
    for bad in (0, -1, 1.5, True):
        with pytest.raises(errors.InputError, match="rows"):
            p.blocks(bad)
    with pytest.raises(errors.InputError, match="'probability', 'logit'"):
        p.blocks(kind="logits")
    with pytest.raises(errors.InputError, match="mapping"):
        save_logits("x", {})
