"""Data sets of a study: where they come from, splits, fingerprints, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from streamcca.errors import DTypeError, InputError, MissingFileError, NonFiniteError, StateFileError
from streamcca.multiplicity.images import image_files
from streamcca.multiplicity.images.data_sets import DataSet, ImageSet, load_data
from streamcca.multiplicity.images.splits import _shares, noisy_labels, split_rows, subset_rows

# --- digits, splits, shares ---


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def sklearn_digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int64)


def counts(labels):
    return np.bincount(labels, minlength=10)


def test_digits_are_scikit_learns_each_once(digits):
    images, labels = sklearn_digits()
    assert digits.train.images.dtype == np.float32
    assert digits.train.labels.dtype == np.int64
    assert (len(digits.train), len(digits.test)) == (1198, 599)
    assert digits.classes == tuple("0123456789")
    rows = np.concatenate([digits.train.images, digits.test.images]).reshape(1797, 64)
    both = np.column_stack([rows, np.concatenate([digits.train.labels, digits.test.labels])])
    expected = np.column_stack([images.reshape(1797, 64), labels])
    np.testing.assert_array_equal(both[np.lexsort(both.T)], expected[np.lexsort(expected.T)])
    assert digits.train.images.max() == 1


def test_split_is_stratified(digits):
    _, labels = sklearn_digits()
    assert np.abs(counts(digits.test.labels) - counts(labels) / 3).max() < 1


def test_loading_is_deterministic_and_seeded(digits):
    again, other = load_data("digits"), load_data(seed=1)
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    assert again.fingerprint == digits.fingerprint
    assert other.fingerprint != digits.fingerprint
    assert counts(other.test.labels).tolist() == counts(digits.test.labels).tolist()


def test_the_split_of_digits_is_pinned(digits):
    """Studies of different days are about the same rows; NumPy's permutation decides them."""
    code = "from streamcca.multiplicity.images.data_sets import load_data; print(load_data().fingerprint)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digits.fingerprint
    assert digits.fingerprint == "b6b1f3daf484a3860eaec30df987a72d3b7afc177b30b6b180969c7c7652c68c"


def test_sizes_of_the_test_set():
    for options, size in (({"test_share": 0.1}, 180), ({"test_count": 100}, 100), ({"test_count": 10}, 10)):
        data = load_data("digits", **options)
        assert (len(data.test), len(data.train)) == (size, 1797 - size)
        assert counts(data.test.labels).min() >= 1


def test_limit(digits):
    data = load_data("digits", limit=200)
    assert (len(data.train), len(data.test)) == (200, 200)
    assert counts(data.train.labels).min() >= 19
    whole = {image.tobytes() for image in digits.train.images}
    assert all(image.tobytes() in whole for image in data.train.images)
    data = load_data("digits", limit=1000)
    assert (len(data.train), len(data.test)) == (1000, 599)


def test_to_dict_is_json(digits):
    said = json.loads(json.dumps(digits.to_dict()))
    assert said == {
        "name": "digits",
        "train": 1198,
        "test": 599,
        "shape": [1, 8, 8],
        "classes": list("0123456789"),
        "fingerprint": digits.fingerprint,
    }
    assert repr(digits) == "<data set 'digits': 1198 training and 599 test images of 1 x 8 x 8, 10 classes>"
    assert repr(digits.test) == "<599 images of 1 x 8 x 8, 10 classes>"


class_counts = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@hypothesis.given(class_counts, st.data())
def test_shares_add_up_and_keep_to_their_bounds(sizes, data):
    sizes = np.array(sizes) + 1
    for spare in (0, 1):
        total = data.draw(st.integers(len(sizes), int((sizes - spare).sum())))
        shares = _shares(sizes, total, spare)
        assert shares.sum() == total
        assert (shares >= 1).all()
        assert (shares <= sizes - spare).all()
        exact = sizes * total / sizes.sum()
        if exact.min() >= 1 and (exact <= sizes - spare - 1).all():
            assert np.abs(shares - exact).max() < 1


@hypothesis.given(class_counts, st.floats(0.05, 0.95), st.integers(0, 99))
def test_split_rows_is_a_partition_with_all_classes_in_both(sizes, share, seed):
    labels = np.repeat(np.arange(len(sizes)), np.array(sizes) + 1)
    np.random.default_rng(seed).shuffle(labels)
    total = round(share * len(labels))
    if not len(sizes) <= total <= len(labels) - len(sizes):
        with pytest.raises(InputError, match=f"would have {total} of {len(labels)} images"):
            split_rows(labels, test_share=share, seed=seed)
        return
    train, test = split_rows(labels, test_share=share, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    assert len(test) == total
    assert set(labels[train]) == set(labels[test]) == set(range(len(sizes)))
    np.testing.assert_array_equal(test, np.sort(test))


def test_every_row_is_drawn_alike():
    """Each of 40 rows is in a test set of a quarter in a quarter of 2000 draws, within 5 standard errors."""
    labels = np.arange(40) % 4
    hits = np.zeros(40)
    for seed in range(2000):
        hits[split_rows(labels, test_share=0.25, seed=seed)[1]] += 1
    # 10 rows of every class: 2 or 3 in the test, never fractions: 2.5 is met by ties to the lower classes
    per_class = np.array([hits[labels == c].sum() / 2000 for c in range(4)])
    np.testing.assert_array_equal(per_class, [3, 3, 2, 2])
    expected = per_class[labels] / 10
    assert (np.abs(hits / 2000 - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000)).all()


def test_subset(digits):
    train = digits.train
    half = train.take(subset_rows(train.labels, 0.5, seed=3))
    assert len(half) == 599
    assert np.abs(counts(half.labels) - counts(train.labels) / 2).max() <= 1
    whole = [image.tobytes() for image in train.images]
    places = [whole.index(image.tobytes()) for image in half.images]
    assert places == sorted(places)
    np.testing.assert_array_equal(half.labels, train.labels[places])
    np.testing.assert_array_equal(train.take(subset_rows(train.labels, 0.5, seed=3)).images, half.images)
    assert not np.array_equal(train.take(subset_rows(train.labels, 0.5, seed=4)).images, half.images)
    np.testing.assert_array_equal(train.take(subset_rows(train.labels, 1, seed=9)).images, train.images)
    small = train.take(subset_rows(train.labels, 10 / 1198, seed=0))
    assert sorted(small.labels) == list(range(10))


@hypothesis.given(st.integers(0, 60), st.floats(0, 1), st.integers(2, 9), st.integers(0, 99))
def test_noisy_labels_replaces_exactly_so_many(n, share, classes, seed):
    labels = np.random.default_rng(seed).integers(0, classes, n)
    before = labels.copy()
    result = noisy_labels(labels, share, classes, seed)
    np.testing.assert_array_equal(labels, before)
    assert result.dtype == np.int64
    assert (result != labels).sum() == round(share * n)
    if n:
        assert 0 <= result.min() <= result.max() < classes
    less = noisy_labels(labels, share / 2, classes, seed)
    changed = less != labels
    np.testing.assert_array_equal(result[changed], less[changed])


def test_noisy_labels_are_uniform_over_the_other_classes_and_over_rows():
    labels = np.arange(6000) % 3
    result = noisy_labels(labels, 0.5, 5, seed=1)
    table = np.zeros((3, 5))
    np.add.at(table, (labels, result), 1)
    changed = table.sum(axis=1) - table[np.arange(3), np.arange(3)]
    assert np.abs(changed - 1000).max() < 5 * np.sqrt(2000 * 0.25)
    first_half = (result != labels)[:3000].sum()
    assert abs(first_half - 1500) < 5 * np.sqrt(3000 * 0.25)
    for label in range(3):
        others = np.delete(table[label], label) / changed[label]
        assert np.abs(others - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / changed[label])
    assert not np.array_equal(noisy_labels(labels, 0.5, 5, seed=2), result)
    np.testing.assert_array_equal(noisy_labels(labels, 0.5, 5, seed=1), result)


# --- sets and fingerprints ---


def small(n=6, shape=(1, 4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return ImageSet(rng.random((n, *shape)).astype(np.float32), np.arange(n) % 2)


def test_fingerprint_sees_every_part_and_not_the_name():
    data = DataSet("a", small(), small(seed=1), ("x", "y"))
    assert len(data.fingerprint) == 64
    assert DataSet("b", small(), small(seed=1), ("x", "y")).fingerprint == data.fingerprint
    assert DataSet("a", small(), small(seed=1), ("x", "z")).fingerprint != data.fingerprint
    assert DataSet("a", small(seed=1), small(), ("x", "y")).fingerprint != data.fingerprint
    for part in ("train", "test"):
        for field in ("images", "labels"):
            sets = {"train": small(), "test": small(seed=1)}
            arrays = {"images": sets[part].images.copy(), "labels": sets[part].labels.copy()}
            last = arrays[field].reshape(-1)
            last[-1] = 0.5 if field == "images" else 1 - last[-1]
            sets[part] = ImageSet(**arrays)
            assert DataSet("a", sets["train"], sets["test"], ("x", "y")).fingerprint != data.fingerprint
    flat = [ImageSet(s.images.reshape(6, 1, 5, 4), s.labels) for s in (small(), small(seed=1))]
    assert DataSet("a", *flat, ("x", "y")).fingerprint != data.fingerprint
    turned = ImageSet(np.asfortranarray(small().images), small().labels)
    assert DataSet("a", turned, small(seed=1), ("x", "y")).fingerprint == data.fingerprint


def with_value(value):
    images = small().images.copy()
    images[4, 0, 3, 2] = value
    return images


@pytest.mark.parametrize(
    ("images", "labels", "error", "words"),
    [
        (
            small().images.astype(np.float64),
            small().labels,
            DTypeError,
            "images of float64, expected an array of float32",
        ),
        (small().images.tolist(), small().labels, DTypeError, "images of list"),
        (small().images, small().labels.astype(np.int32), DTypeError, "labels of int32, expected an array of int64"),
        (small().images[:, 0], small().labels, InputError, r"shape \(6, 4, 5\), expected \(N, C, H, W\)"),
        (small().images[:, :0], small().labels, InputError, r"shape \(6, 0, 4, 5\)"),
        (small().images[:0], small().labels[:0], InputError, "no images"),
        (small().images, small().labels[:5], InputError, r"labels of shape \(5,\) for 6 images"),
        (small().images, small().labels[:, None], InputError, r"labels of shape \(6, 1\) for 6 images"),
        (small().images, small().labels - 1, InputError, "label -1, expected labels counted from 0"),
        (with_value(np.nan), small().labels, NonFiniteError, "image 4 holds NaN"),
        (with_value(-np.inf), small().labels, NonFiniteError, "image 4 holds NaN or infinity"),
        (with_value(255), small().labels, InputError, r"image 4 leaves \[0, 1\] .* x / 255"),
        (with_value(-0.01), small().labels, InputError, r"image 4 leaves \[0, 1\]"),
    ],
)
def test_image_sets_refuse(images, labels, error, words):
    with pytest.raises(error, match=words) as caught:
        ImageSet(images, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("test", "classes", "words"),
    [
        (small(shape=(1, 4, 4)), ("x", "y"), r"training images are \(1, 4, 5\), test images \(1, 4, 4\)"),
        (small(), ("x",), "expected at least two"),
        (small(), ("x", "x"), "named apart"),
        (small(), ("x", "y", "z"), r"3 class names and training labels \[0, 1\]"),
        (ImageSet(small().images, np.arange(6)), ("x", "y"), "test label 5, expected labels below 2"),
    ],
)
def test_data_sets_refuse(test, classes, words):
    with pytest.raises(InputError, match=words):
        DataSet("mine", small(), test, classes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "digit"}, "no data set 'digit'; did you mean 'digits'"),
        ({"source": ""}, "got source=''"),
        ({"source": None}, "got source=None"),
        ({"test_share": 0}, "test_share: got 0, expected a number above 0 and below 1"),
        ({"test_share": 1.0}, "test_share: got 1.0"),
        ({"test_share": "a"}, "test_share: got 'a'"),
        ({"test_share": float("nan")}, "test_share: got nan"),
        ({"test_share": 0.001}, "would have 2 of 1797 images, expected 10 to 1787"),
        ({"test_count": 1790}, "would have 1790 of 1797 images"),
        ({"test_count": -5}, "test_count: got -5"),
        ({"test_share": 0.5, "test_count": 20}, "expected one of them"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"limit": 9}, "limit=9 is too few for the 10 classes of the training set"),
        ({"limit": "all"}, "limit: got 'all'"),
        ({"size": 0}, "got size=0"),
        ({"size": (3, 4, 5)}, r"got size=\(3, 4, 5\)"),
        ({"size": 2.5}, "got size=2.5"),
        ({"layout": "NCHW"}, "layout= is for .npz files alone"),
    ],
)
def test_load_data_refuses(options, words):
    with pytest.raises(InputError, match=words) as caught:
        load_data(**options)
    assert "\n" not in str(caught.value)


def test_missing_packages(monkeypatch, tmp_path):
    for name in ("sklearn.datasets", "PIL.Image", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match='"digits" needs scikit-learn'):
        load_data("digits")
    with pytest.raises(ImportError, match='"mnist" needs torchvision'):
        load_data("mnist", folder=tmp_path)
    with pytest.raises(ImportError, match="size= needs Pillow"):
        image_files.resized(small().images, (2, 2))


def test_shares_are_checked(digits):
    for share in (0, 1.1, -1, True, "x", float("nan")):
        with pytest.raises(InputError, match="subset: share: got"):
            digits.train.take(subset_rows(digits.train.labels, share, 0))
    with pytest.raises(InputError, match="is 6 rows, too few for 10 classes"):
        digits.train.take(subset_rows(digits.train.labels, 0.005, 0))
    labels = np.arange(6) % 3
    for share in (1.1, -0.1, None, float("nan")):
        with pytest.raises(InputError, match="noisy_labels: share: got"):
            noisy_labels(labels, share, 3, 0)
    with pytest.raises(InputError, match="expected at least 2"):
        noisy_labels(labels * 0, 0.1, 1, 0)
    for bad in (labels, labels - 2, labels[:, None]):
        with pytest.raises(InputError, match="from 0 to 1, got others"):
            noisy_labels(bad, 0.1, 2, 0)


# --- .npz ---


def bytes_of(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


LABELS = np.array([7, 3, 3, 7, 7, 3, 5, 5, 3, 7])


def test_npz_with_parts(tmp_path):
    x, y = bytes_of((10, 5, 6)), bytes_of((4, 5, 6), 1)
    path = saved(tmp_path, x_train=x, y_train=LABELS, x_test=y, y_test=np.array([[5], [3], [7], [7]]))
    data = load_data(path)
    assert data.name == "set"
    assert data.classes == ("3", "5", "7")
    np.testing.assert_array_equal(data.train.images, x[:, None].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.test.images, y[:, None].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.train.labels, [2, 0, 0, 2, 2, 0, 1, 1, 0, 2])
    np.testing.assert_array_equal(data.test.labels, [1, 0, 2, 2])
    assert load_data("set.npz", folder=tmp_path).fingerprint == data.fingerprint
    with pytest.raises(InputError, match="has a test set of its own; leave test_share= and test_count= out"):
        load_data(path, test_share=0.5)


def test_npz_to_be_split_keeps_labels_with_their_images(tmp_path):
    labels = np.array(["cat", "dog", "ant"])[np.arange(60) % 3]
    images = np.linspace(0, 1, 60)[:, None, None] * np.ones((60, 3, 4))
    data = load_data(saved(tmp_path, images=images, labels=labels), test_count=21)
    assert data.classes == ("ant", "cat", "dog")
    assert data.shape == (1, 3, 4)
    rows = []
    for part in (data.train, data.test):
        row = np.round(part.images[:, 0, 0, 0] * 59).astype(int)
        np.testing.assert_array_equal(np.array(data.classes)[part.labels], labels[row])
        rows.append(row)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(60))
    assert np.bincount(data.test.labels).tolist() == [7, 7, 7]


def test_npz_class_names(tmp_path):
    path = saved(tmp_path, images=bytes_of((10, 4, 4)), labels=LABELS, classes=np.array(list("abcdefgh")))
    assert load_data(path).classes == ("d", "f", "h")
    path = saved(tmp_path, images=bytes_of((10, 4, 4)), labels=LABELS, classes=np.array(list("abc")))
    with pytest.raises(InputError, match="got 3 class names, expected whole labels from 0 to 2"):
        load_data(path)
    path = saved(tmp_path, images=bytes_of((10, 4, 4)), labels=LABELS, classes=np.arange(8))
    with pytest.raises(InputError, match=r"'classes': got int64 of shape \(8,\), expected names"):
        load_data(path)


@pytest.mark.parametrize(
    ("shape", "layout", "channels_last"),
    [
        ((10, 6, 5, 3), None, True),
        ((10, 6, 5, 1), None, True),
        ((10, 3, 6, 5), None, False),
        ((10, 1, 6, 5), None, False),
        ((10, 3, 6, 3), "NCHW", False),
        ((10, 3, 6, 3), "NHWC", True),
        ((10, 4, 6, 5), "NCHW", False),
        ((10, 4, 6, 5), "NHWC", True),
    ],
)
def test_npz_layouts(tmp_path, shape, layout, channels_last):
    x = bytes_of(shape)
    data = load_data(saved(tmp_path, x_train=x, y_train=LABELS, x_test=x, y_test=LABELS), layout=layout)
    expected = x.transpose(0, 3, 1, 2) if channels_last else x
    np.testing.assert_array_equal(data.test.images, expected.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_floats_are_taken_as_they_are(tmp_path, dtype):
    x = np.random.default_rng(0).random((10, 3, 4)).astype(dtype)
    data = load_data(saved(tmp_path, x_train=x, y_train=LABELS, x_test=x, y_test=LABELS))
    np.testing.assert_array_equal(data.train.images[:, 0], x.astype(np.float32))


X = bytes_of((10, 4, 4))


@pytest.mark.parametrize(
    ("arrays", "layout", "error", "words"),
    [
        (
            {"images": bytes_of((10, 3, 6, 3)), "labels": LABELS},
            None,
            InputError,
            "both of the second .* layout='NCHW' or",
        ),
        (
            {"images": bytes_of((10, 4, 6, 4)), "labels": LABELS},
            None,
            InputError,
            "neither of the second .* layout='NCHW'",
        ),
        (
            {"images": bytes_of((10, 16)), "labels": LABELS},
            None,
            InputError,
            r"shape \(10, 16\), expected NHW, NHWC or NCHW",
        ),
        ({"images": X, "labels": LABELS}, "NCHW", InputError, r"shape \(10, 4, 4\), expected NCHW"),
        ({"images": X, "labels": LABELS}, "CHW", InputError, "got layout='CHW', expected 'NHW'"),
        ({"images": X.astype(np.int64), "labels": LABELS}, None, DTypeError, "'images': got images of int64"),
        ({"images": X / 100, "labels": LABELS}, None, InputError, r"set.npz, 'images': image \d leaves \[0, 1\]"),
        ({"images": X * np.nan, "labels": LABELS}, None, NonFiniteError, "set.npz, 'images': image 0 holds NaN"),
        ({"images": X, "labels": LABELS[:9]}, None, InputError, r"'labels': got labels of shape \(9,\) for 10 images"),
        ({"images": X, "labels": LABELS / 2}, None, DTypeError, "labels of float64, expected whole numbers or text"),
        ({"images": X[:0], "labels": LABELS[:0]}, None, InputError, "holds no images"),
        ({"images": X, "labels": np.array([1] * 9 + [12])}, None, InputError, "class '12' has one image"),
        ({"images": X, "labels": LABELS * 0}, None, InputError, "expected at least two"),
        ({"images": X}, None, InputError, r"holds \['images'\], expected 'images' and 'labels', or 'x_train'"),
        ({"images": X, "labels": LABELS, "x": X}, None, InputError, r"holds \['images', 'labels', 'x'\]"),
        (
            {"x_train": X, "y_train": LABELS, "x_test": X, "y_test": LABELS + 1},
            None,
            InputError,
            "the test set has label 4, which no training image has",
        ),
        (
            {"x_train": X, "y_train": LABELS, "x_test": X[:, 1:], "y_test": LABELS},
            None,
            InputError,
            r"training images are \(1, 4, 4\), test images \(1, 3, 4\)",
        ),
        ({"images": np.array([object()] * 10), "labels": LABELS}, None, StateFileError, "nothing is unpickled"),
    ],
)
def test_npz_refusals(tmp_path, arrays, layout, error, words):
    with pytest.raises(error, match=words) as caught:
        load_data(saved(tmp_path, **arrays), layout=layout)
    assert "\n" not in str(caught.value)


def test_damaged_npz(tmp_path):
    with pytest.raises(MissingFileError, match="no file .*nothing.npz"):
        load_data(tmp_path / "nothing.npz")
    path = saved(tmp_path, images=X, labels=LABELS)
    content = path.read_bytes()
    place = content.index(X.tobytes())
    for broken in (
        content[: len(content) // 2],
        b"",
        b"text",
        content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
    ):
        path.write_bytes(broken)
        with pytest.raises(StateFileError, match="set.npz"):
            load_data(path)
    with path.open("wb") as file:
        np.save(file, X)
    with pytest.raises(StateFileError, match="is a single array"):
        load_data(path)


# --- resizing ---


def test_size(digits):
    data = load_data("digits", size=16)
    assert data.shape == (1, 16, 16)
    assert load_data("digits", size=(4, 6)).shape == (1, 4, 6)
    assert load_data("digits", size=8).fingerprint == digits.fingerprint
    half = load_data("digits", size=4).test.images
    # Pillow's antialiased bilinear filter at half the size: the triangle over four pixels, 1 3 3 1, cut at the edge.
    weights = np.zeros((4, 8))
    for i in range(4):
        for tap, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1), strict=True):
            if 0 <= tap < 8:
                weights[i, tap] = weight
    weights /= weights.sum(axis=1, keepdims=True)
    expected = weights @ digits.test.images.astype(np.float64) @ weights.T
    np.testing.assert_allclose(half, expected, atol=1e-6)


def test_resized_colors_do_not_mix():
    images = np.zeros((2, 3, 4, 4), dtype=np.float32)
    images[0, 1], images[1, 2] = 1, 0.5
    result = image_files.resized(images, (9, 7))
    assert result.shape == (2, 3, 9, 7)
    np.testing.assert_allclose(result[0].mean(axis=(1, 2)), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(result[1].mean(axis=(1, 2)), [0, 0, 0.5], atol=1e-6)


# --- folders ---


def put(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


def picture_folder(folder, names=("ant", "bee"), each=4, shape=(6, 5)):
    pixels = {}
    for c, name in enumerate(names):
        for i in range(each):
            pixels[name, i] = bytes_of(shape, seed=100 * c + i)
            put(folder / name / f"{i}.png", pixels[name, i])
    return pixels


def test_folder_to_be_split(tmp_path):
    pixels = picture_folder(tmp_path / "insects", shape=(6, 5, 3))
    (tmp_path / "insects" / "ant" / ".hidden").write_text("x")
    (tmp_path / "insects" / "Thumbs.db").write_text("x")
    data = load_data(tmp_path / "insects", test_share=0.25)
    assert (data.name, data.classes, data.shape) == ("insects", ("ant", "bee"), (3, 6, 5))
    assert (len(data.train), len(data.test)) == (6, 2)
    found = []
    for part in (data.train, data.test):
        for image, label in zip(part.images, part.labels, strict=True):
            matches = [
                key
                for key, value in pixels.items()
                if np.array_equal(image, value.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
            ]
            assert [key[0] for key in matches] == [data.classes[label]]
            found += matches
    assert sorted(found) == sorted(pixels)


def test_folder_with_parts(tmp_path):
    train = picture_folder(tmp_path / "train", names=("ant", "bee", "cow"))
    test = picture_folder(tmp_path / "test", names=("ant", "cow"), each=2)
    data = load_data(tmp_path)
    assert data.classes == ("ant", "bee", "cow")
    assert data.test.labels.tolist() == [0, 0, 2, 2]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(data.test.images[3, 0], test["cow", 1].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.train.images[5, 0], train["bee", 1].astype(np.float32) / np.float32(255))
    same = {
        "x_train": np.stack(list(train.values())),
        "y_train": np.repeat(["ant", "bee", "cow"], 4),
        "x_test": np.stack(list(test.values())),
        "y_test": np.repeat(["ant", "cow"], 2),
    }
    (tmp_path / "elsewhere").mkdir()
    assert load_data(saved(tmp_path / "elsewhere", **same)).fingerprint == data.fingerprint


def test_folder_reads_what_is_kept_alone(tmp_path, monkeypatch):
    picture_folder(tmp_path, each=10)
    read = []
    decode = image_files._decode
    monkeypatch.setattr(image_files, "_decode", lambda path: read.append(path) or decode(path))
    data = load_data(tmp_path, test_share=0.5, limit=4)
    assert (len(data.train), len(data.test), len(set(read)), len(read)) == (4, 4, 8, 8)


def test_folder_size_and_kinds_of_files(tmp_path):
    gray = bytes_of((6, 5))
    for name, mode, suffix in (("a", None, ".png"), ("b", None, ".bmp"), ("c", None, ".pgm"), ("d", None, ".tif")):
        for i in range(2):
            put(tmp_path / name / f"{i}{suffix}", gray, mode)
    put(tmp_path / "a" / "other.PNG", bytes_of((9, 9)))
    with pytest.raises(
        InputError, match=r"pixels \(height x width\), but .* has . x .; expected one size, resize by size="
    ):
        load_data(tmp_path, test_count=4)
    data = load_data(tmp_path, test_count=4, size=(6, 5))
    assert data.shape == (1, 6, 5)
    (tmp_path / "a" / "other.PNG").unlink()
    data = load_data(tmp_path)
    for part in (data.train, data.test):
        np.testing.assert_array_equal(part.images, np.tile(gray / np.float32(255), (len(part), 1, 1, 1)))


def test_modes_of_pictures(tmp_path):
    colors = bytes_of((6, 5, 3))
    deep = (bytes_of((6, 5)).astype(np.uint16) << 8) + 17
    put(tmp_path / "deep.png", deep)
    np.testing.assert_array_equal(
        image_files._decode(tmp_path / "deep.png")[0], deep.astype(np.float32) / np.float32(65535)
    )
    put(tmp_path / "bits.png", (bytes_of((6, 5)) > 99).astype(np.uint8) * 255, "1")
    np.testing.assert_array_equal(image_files._decode(tmp_path / "bits.png")[0], bytes_of((6, 5)) > 99)
    put(tmp_path / "palette.png", colors, "P")
    expected = np.asarray(Image.open(tmp_path / "palette.png").convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(image_files._decode(tmp_path / "palette.png"), expected)
    put(tmp_path / "alpha.png", colors, "RGBA")
    with pytest.raises(InputError, match="alpha.png: has the mode 'RGBA', expected gray or RGB without transparency"):
        image_files._decode(tmp_path / "alpha.png")
    Image.fromarray(colors).save(tmp_path / "see-through.png", transparency=(1, 2, 3))
    with pytest.raises(InputError, match="with transparency"):
        image_files._decode(tmp_path / "see-through.png")
    frames = [Image.fromarray(bytes_of((6, 5), seed)) for seed in (1, 2)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="holds 2 pictures, expected one"):
        image_files._decode(tmp_path / "film.gif")


def test_folder_refusals(tmp_path):
    def refused(words, error=InputError, **options):
        with pytest.raises(error, match=words) as caught:
            load_data(tmp_path / "set", **options)
        assert "\n" not in str(caught.value)

    refused("there is no folder .*set", MissingFileError)
    (tmp_path / "set").mkdir()
    refused("is empty, expected a folder per class")
    picture_folder(tmp_path / "set", each=2)
    (tmp_path / "set" / "cow").mkdir()
    refused("cow: holds no images")
    put(tmp_path / "set" / "cow" / "0.png", bytes_of((6, 5)))
    refused("class 'cow' has one image")
    put(tmp_path / "set" / "cow" / "1.png", bytes_of((6, 5, 3)))
    refused("cow/1.png: is RGB, but .* is gray; expected one kind|is gray, but .*1.png is RGB")
    whole = (tmp_path / "set" / "ant" / "0.png").read_bytes()
    for broken in (b"", b"no picture", whole[: len(whole) // 2]):
        (tmp_path / "set" / "cow" / "1.png").write_bytes(broken)
        refused("cow/1.png: cannot be read as an image", StateFileError)
    (tmp_path / "set" / "cow" / "notes.txt").write_text("x")
    refused("cow: got 'notes.txt', expected images alone")
    (tmp_path / "set" / "cow" / "notes.txt").unlink()
    put(tmp_path / "set" / "loose.png", bytes_of((6, 5)))
    refused("got the file 'loose.png', expected a folder per class")
    (tmp_path / "set" / "loose.png").unlink()
    (tmp_path / "set" / "train").mkdir()
    refused("has one of the folders train and test, expected both")
    (tmp_path / "set" / "test").mkdir()
    refused("got 'ant' beside train and test")


def test_folder_with_a_class_in_the_test_set_alone(tmp_path):
    picture_folder(tmp_path / "train")
    picture_folder(tmp_path / "test", names=("ant", "wasp"))
    with pytest.raises(InputError, match="test: has the class 'wasp', which .*train has not"):
        load_data(tmp_path)


# --- torchvision, which is not installed here: its classes' interface ---


def fake_torchvision(folder):
    """Classes with torchvision's arguments and attributes; they find their files where `folder` is the root."""
    import torch

    def check(root, download):
        assert download is False
        if root != str(folder):
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")

    def tensors(n, seed):
        return torch.from_numpy(bytes_of((n, 28, 28), seed)), torch.arange(n) % 10

    class MNIST:
        classes = tuple(f"{i} - name" for i in range(10))

        def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
            check(root, download)
            self.data, self.targets = tensors(40 if train else 20, int(train))

    class FashionMNIST(MNIST):
        classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")

    class CIFAR10:
        classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

        def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
            check(root, download)
            n = 40 if train else 20
            self.data, self.targets = bytes_of((n, 32, 32, 3), int(train)), [i % 10 for i in range(n)]

    class SVHN:
        def __init__(self, root, split="train", transform=None, target_transform=None, download=False):
            check(root, download)
            assert split in ("train", "test")
            n = 40 if split == "train" else 20
            self.data, self.labels = bytes_of((n, 3, 32, 32), int(split == "train")), np.arange(n) % 10

    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST, datasets.FashionMNIST, datasets.CIFAR10, datasets.SVHN = MNIST, FashionMNIST, CIFAR10, SVHN
    package = types.ModuleType("torchvision")
    package.datasets = datasets
    return {"torchvision": package, "torchvision.datasets": datasets}


@pytest.fixture
def torchvision(monkeypatch, tmp_path):
    for name, module in fake_torchvision(tmp_path).items():
        monkeypatch.setitem(sys.modules, name, module)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shape", "first_class"),
    [
        ("mnist", (1, 28, 28), "0 - name"),
        ("fashion-mnist", (1, 28, 28), "T-shirt/top"),
        ("cifar10", (3, 32, 32), "airplane"),
        ("svhn", (3, 32, 32), "0"),
    ],
)
def test_torchvision(torchvision, name, shape, first_class):
    data = load_data(name, folder=torchvision)
    assert (data.name, data.shape, data.classes[0], len(data.classes)) == (name, shape, first_class, 10)
    for part, n, seed in ((data.train, 40, 1), (data.test, 20, 0)):
        if name == "cifar10":
            expected = bytes_of((n, 32, 32, 3), seed).transpose(0, 3, 1, 2)
        else:
            expected = bytes_of((n, *shape) if name == "svhn" else (n, 28, 28), seed).reshape(n, *shape)
        np.testing.assert_array_equal(part.images, expected.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(part.labels, np.arange(n) % 10)
    assert len(load_data(name, folder=torchvision, limit=10, size=16).train) == 10
    with pytest.raises(InputError, match="has a test set of its own"):
        load_data(name, folder=torchvision, test_count=3)
    with pytest.raises(InputError, match=f"{name!r} needs folder="):
        load_data(name)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("svhn", "train_32x32.mat and test_32x32.mat"),
    ],
)
def test_torchvision_without_its_files(torchvision, name, place):
    with pytest.raises(MissingFileError, match=f"missing or damaged, expected /nowhere/{place}; .*download=True"):
        load_data(name, folder="/nowhere")


def test_nothing_heavy_is_imported():
    """The modules alone need NumPy; the rest is imported where it is used."""
    code = (
        "import sys; from streamcca.multiplicity.images import data_sets, image_files, shifts, splits; "
        "print([m for m in ('torch', 'sklearn', 'PIL', 'torchvision', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
