"""Out-of-distribution versions of images against direct NumPy computations."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from streamcca.errors import DTypeError, InputError, NonFiniteError
from streamcca.multiplicity.images import shifts
from streamcca.multiplicity.images.data_sets import load_data
from streamcca.multiplicity.images.shifts import SHIFTS, shifted

KINDS = list(SHIFTS)
EPS32 = np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def digits():
    return load_data("digits").test


@pytest.fixture(scope="module")
def colored():
    """Photograph-like images: smooth fields in three colors, higher than wide."""
    rng = np.random.default_rng(5)
    coarse = rng.random((40, 3, 5, 4))
    rows, columns = np.linspace(0, 4, 20), np.linspace(0, 3, 16)
    up = np.maximum(0, 1 - np.abs(rows[:, None] - np.arange(5)))
    across = np.maximum(0, 1 - np.abs(columns[:, None] - np.arange(4)))
    return (up @ coarse @ across.T).astype(np.float32)


def damage(images, kind, strength, **options):
    return float(((shifted(images, kind, strength, **options).astype(np.float64) - images) ** 2).mean())


def test_what_is_offered():
    assert KINDS == ["noise", "blur", "contrast", "rotation", "translation", "elastic", "occlusion"]
    for kind, shift in SHIFTS.items():
        said = json.loads(json.dumps(shift.to_dict()))
        assert said["kind"] == kind
        assert len(said["strengths"]) == 5
        assert said["unit"]
        assert "\n" not in repr(shift)
        # A larger number is more damage, but for contrast, where it is what is kept.
        steps = np.diff(shift.strengths)
        assert (steps < 0).all() if kind == "contrast" else (steps > 0).all()
    with pytest.raises(TypeError):
        SHIFTS["mine"] = SHIFTS["noise"]


@pytest.mark.parametrize("kind", KINDS)
def test_shape_type_range_and_input_untouched(kind, digits, colored):
    for images in (digits.images[:50], colored, colored.astype(np.float64), colored[:, :, ::-1], colored[:0]):
        before = images.copy()
        result = shifted(images, kind, 5)
        assert result.shape == images.shape
        assert result.dtype == images.dtype
        assert not np.shares_memory(result, images)
        np.testing.assert_array_equal(images, before)
        if len(images):
            assert result.min() >= 0
            assert result.max() <= 1
            assert not np.array_equal(result, images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 7])
def test_damage_grows_with_strength(kind, seed, digits, colored):
    for images in (digits.images, colored):
        values = [damage(images, kind, strength, seed=seed) for strength in range(1, 6)]
        assert values[0] > 0
        assert (np.diff(values) > 0).all(), values


@pytest.mark.parametrize("kind", ["noise", "contrast", "occlusion"])
def test_damage_grows_for_every_value(kind, digits):
    """Strengths of these kinds are nested: the same noise, the same direction to the mean, the same place."""
    changes = [np.abs(shifted(digits.images, kind, s, seed=2) - digits.images.astype(np.float64)) for s in range(1, 6)]
    for milder, stronger in itertools.pairwise(changes):
        assert (stronger >= milder - 4 * EPS32).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_again_and_in_batches(kind, colored, monkeypatch):
    whole = shifted(colored, kind, 3, seed=11)
    np.testing.assert_array_equal(shifted(colored, kind, 3, seed=11), whole)
    np.testing.assert_array_equal(shifted(colored[13:29], kind, 3, seed=11, first=13), whole[13:29])
    np.testing.assert_array_equal(shifted(colored[::-1][:1], kind, 3, seed=11, first=39), whole[39:])
    other = colored.copy()
    other[:5] = other[5:10]
    np.testing.assert_array_equal(shifted(other, kind, 3, seed=11)[5:], whole[5:])
    monkeypatch.setattr(shifts, "_CHUNK", 3 * colored[0].size)
    np.testing.assert_array_equal(shifted(colored, kind, 3, seed=11), whole)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("blur", "contrast")])
def test_seeds_and_indices_differ(kind, digits):
    same = np.repeat(digits.images[:1], 12, axis=0)
    result = shifted(same, kind, 3)
    assert len(np.unique(result.reshape(12, -1), axis=0)) >= {"rotation": 2, "occlusion": 5}.get(kind, 12)
    assert not np.array_equal(result, shifted(same, kind, 3, seed=1))


def test_kinds_draw_apart():
    a, b = (shifts._generators(kind, 0, 0, 1)[0].random(4) for kind in ("noise", "elastic"))
    assert not np.array_equal(a, b)


def test_the_same_bits_in_another_process():
    """No hash of Python's, which differs by process, decides a draw."""
    code = (
        "import numpy as np; from streamcca.multiplicity.images.shifts import *; "
        "x = np.linspace(0, 1, 192, dtype=np.float32).reshape(2, 1, 8, 12); "
        "import json; print(json.dumps([float(shifted(x, k, 2, 3).astype(float).sum()).hex() for k in SHIFTS]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    x = np.linspace(0, 1, 192, dtype=np.float32).reshape(2, 1, 8, 12)
    assert json.loads(done.stdout) == [float(shifted(x, k, 2, 3).astype(float).sum()).hex() for k in SHIFTS]


def test_noise_is_white_gaussian_and_scales():
    gray = np.full((400, 1, 8, 8), 0.5)
    noise = shifted(gray, "noise", 1, seed=4) - 0.5  # 6 SD inside [0, 1]: nothing is clipped
    n, sd = noise.size, SHIFTS["noise"].strengths[0]
    # Standard errors: of a SD sd / sqrt(2 n), of a mean sd / sqrt(n); five of them.
    assert abs(noise.std() - sd) < 5 * sd / np.sqrt(2 * n)
    assert abs(noise.mean()) < 5 * sd / np.sqrt(n)
    flat = noise.reshape(400, 64)
    correlations = np.corrcoef(flat.T)[np.triu_indices(64, 1)]
    assert abs((correlations**2).mean() * 400 - 1) < 0.2  # E r^2 = 1 / (n - 1), a mean over 2016 pairs
    stronger = shifted(gray, "noise", 2, seed=4) - 0.5
    inside = np.abs(stronger) < 0.5
    np.testing.assert_allclose(stronger[inside], 2 * noise[inside], atol=1e-15)


def test_contrast_formula(colored):
    for strength, kept in enumerate(SHIFTS["contrast"].strengths, 1):
        mean = colored.astype(np.float64).mean(axis=(1, 2, 3), keepdims=True)
        expected = mean + kept * (colored - mean)
        np.testing.assert_allclose(shifted(colored, "contrast", strength), expected, atol=EPS32)


def test_blur_is_a_gaussian_and_keeps_means():
    image = np.zeros((1, 1, 81, 61))
    image[0, 0, 40, 30] = 1
    for strength, share in enumerate(SHIFTS["blur"].strengths[:2], 1):
        result = shifted(image, "blur", strength)[0, 0]
        assert result.sum() == pytest.approx(1, abs=1e-14)  # cut at 5 SD, normalized, nothing reaches the edge
        y, x = np.indices(result.shape)
        # A Gaussian sampled at SD above 2 pixels and cut at 5 has the variance of the whole to 4 digits.
        assert (result * (y - 40) ** 2).sum() == pytest.approx((share * 81) ** 2, rel=1e-4)
        assert (result * (x - 30) ** 2).sum() == pytest.approx((share * 61) ** 2, rel=1e-4)
    colors = np.zeros((2, 3, 8, 8))
    colors[0, 1], colors[1, 2] = 1, 0.5
    np.testing.assert_allclose(shifted(colors, "blur", 5), colors, atol=1e-15)
    flat = np.full((1, 3, 8, 8), 0.25)
    np.testing.assert_allclose(shifted(flat, "blur", 5), flat, atol=1e-15)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_rot90(turns, digits):
    images = digits.images[:20].astype(np.float64)
    result = shifts.rotated(images, np.full(20, 90.0 * turns))
    # cos and sin of a quarter are off by an eps, which moves a place by 4 eps and a value by 8 at most
    np.testing.assert_allclose(result, np.rot90(images, turns, axes=(2, 3)), atol=1e-13)


def test_rotation_is_bilinear(rng):
    """Against the definition, pixel by pixel, in a frame of background."""
    image = np.zeros((1, 1, 9, 7))
    image[0, 0, 1:-1, 1:-1] = rng.random((7, 5))
    angle = 25.0
    result = shifts.rotated(image, np.array([angle]))[0, 0]
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    for i in range(9):
        for j in range(7):
            y, x = i - 4.0, j - 3.0
            u, v = 4 + c * y + s * x, 3 - s * y + c * x
            value = 0.0
            for a in range(9):
                for b in range(7):
                    value += image[0, 0, a, b] * max(0, 1 - abs(u - a)) * max(0, 1 - abs(v - b))
            assert result[i, j] == pytest.approx(value, abs=1e-13)


def test_rotation_turns_by_the_stated_angle_to_both_sides(digits):
    images = digits.images[:64].astype(np.float64)
    for strength, degrees in enumerate(SHIFTS["rotation"].strengths, 1):
        result = shifted(images, "rotation", strength)
        left, right = (np.clip(shifts.rotated(images, np.full(64, sign * degrees)), 0, 1) for sign in (1, -1))
        is_left, is_right = ((result == x).all(axis=(1, 2, 3)) for x in (left, right))
        assert (is_left | is_right).all()
        assert 16 <= is_left.sum() <= 48  # 4 SD of a fair coin: 32 +- 16


def test_translation_by_whole_pixels(digits):
    images = digits.images[:30].astype(np.float64)
    images[:, :, [0, -1]] = images[:, :, :, [0, -1]] = 0
    images[:, :, 1] = images[:, :, :, 1] = 0
    down, right = np.full(30, -1.0), np.full(30, -2.0)
    result = shifts.translated(images, down, right)
    np.testing.assert_allclose(result, np.roll(images, (-1, -2), axis=(2, 3)), atol=1e-15)


def test_translation_by_parts_of_a_pixel_against_scipy(colored):
    from scipy.ndimage import shift

    down, right = np.linspace(-3, 3, 40), np.linspace(2, -2.5, 40)
    images = colored.astype(np.float64)
    result = shifts.translated(images, down, right)
    background = shifts.border_median(images)
    for i in range(40):
        for c in range(3):
            level = background[i, c, 0, 0]
            expected = shift(images[i, c] - level, (down[i], right[i]), order=1, mode="grid-constant") + level
            np.testing.assert_allclose(result[i, c], expected, atol=1e-13)


def test_translation_goes_the_stated_distance():
    """The center of mass of a spot moves by the share of the side, in directions around the circle."""
    spot = np.zeros((300, 1, 60, 40))
    spot[:, :, 30, 20] = 1
    y, x = np.indices((60, 40))
    for strength, share in enumerate(SHIFTS["translation"].strengths, 1):
        moved = shifted(spot, "translation", strength)[:, 0]
        down, right = (
            ((moved * axis).sum(axis=(1, 2)) - start) / side for axis, start, side in ((y, 30, 60), (x, 20, 40))
        )
        np.testing.assert_allclose(np.hypot(down, right), share, atol=1e-12)
        # Uniform on the circle: the mean of 300 unit vectors is within 4 SE (1 / sqrt(2 * 300) per axis) of 0.
        assert max(abs(down.mean()), abs(right.mean())) / share < 4 / np.sqrt(600)


def test_border_median_is_the_background(rng):
    x = rng.random((4, 3, 6, 5))
    for i in range(4):
        for c in range(3):
            ring = [x[i, c, a, b] for a in range(6) for b in range(5) if a in (0, 5) or b in (0, 4)]
            assert shifts.border_median(x)[i, c, 0, 0] == np.median(ring)
    flat = np.full((3, 3, 6, 5), 0.3, dtype=np.float32)
    for kind in ("rotation", "translation", "elastic"):
        np.testing.assert_array_equal(shifted(flat, kind, 5), flat)


def test_elastic_displacements_have_the_stated_size():
    """Every pixel's displacement is N(0, share^2): on a ramp, it is what a value changes by."""
    side = 64
    ramp = np.broadcast_to(0.25 + 0.5 * np.arange(side) / side, (600, 1, side, side)).copy()
    share = SHIFTS["elastic"].strengths[1]
    change = (shifted(ramp, "elastic", 2) - ramp)[:, 0] / 0.5
    middle = change[:, 20:44, 20:44]  # 5 SD from the edges, beyond which lies no ramp
    # 600 independent fields; a SD of one pixel's sample has a standard error of 1 / sqrt(1200)
    deviations = middle.std(axis=0) / share
    assert np.abs(deviations - 1).max() < 5 / np.sqrt(1200)
    # smooth: neighbors move alike
    assert np.abs(np.diff(middle, axis=2)).max() < share / 2


def test_elastic_does_not_know_the_size():
    """The same image, twice as fine, is bent alike."""
    y, x = (np.indices((96, 96)) + 0.5) / 96
    fine = 0.5 + 0.4 * np.sin(6 * y + 2) * np.cos(5 * x)
    coarse = fine.reshape(48, 2, 48, 2).mean(axis=(1, 3))
    fine_bent = shifted(fine[None, None], "elastic", 3, seed=8)[0, 0]
    bent = shifted(coarse[None, None], "elastic", 3, seed=8)[0, 0]
    difference = fine_bent.reshape(48, 2, 48, 2).mean(axis=(1, 3)) - bent
    moved = np.abs(bent - coarse).max()
    assert np.abs(difference[8:-8, 8:-8]).max() < moved / 10


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (20, 16), (5, 9)])
def test_occlusion_covers_the_stated_area_with_the_mean(height, width, rng):
    images = rng.random((50, 3, height, width))
    for strength, share in enumerate(SHIFTS["occlusion"].strengths, 1):
        result = shifted(images, "occlusion", strength, seed=6)
        h, w = (int(np.floor(share * side + 0.5)) for side in (height, width))
        covered = result != images
        np.testing.assert_array_equal(covered.sum(axis=(1, 2, 3)), 3 * h * w)
        np.testing.assert_array_equal(covered.any(axis=(1, 3)).sum(axis=1), h)
        np.testing.assert_array_equal(covered.any(axis=(1, 2)).sum(axis=1), w)
        means = np.repeat(images.mean(axis=(1, 2, 3)), 3 * h * w)
        np.testing.assert_allclose(result[covered], means, atol=1e-15)


@hypothesis.given(
    st.integers(1, 40), st.integers(1, 40), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)
)
def test_patches_are_inside_and_nested(height, width, down, right):
    before = None
    for share in SHIFTS["occlusion"].strengths:
        rows, columns = shifts.patch(height, width, share, down, right)
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        if before is not None:
            assert rows.start <= before[0].start
            assert before[0].stop <= rows.stop
            assert columns.start <= before[1].start
            assert before[1].stop <= columns.stop
        before = rows, columns


def test_occlusion_reaches_all_corners():
    images = np.zeros((200, 1, 8, 8))
    images[:, :, ::2] = 1
    covered = (shifted(images, "occlusion", 1) != images)[:, 0].mean(axis=0)
    assert covered.min() > 0
    assert covered[3, 3] < 0.35


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_gets_worse(kind, digits):
    classifier = fitted()
    rates = [classifier.score(flat(digits.images), digits.labels)]
    rates += [classifier.score(flat(shifted(digits.images, kind, s)), digits.labels) for s in range(1, 6)]
    # One more right out of 599 may be chance where little is changed.
    assert (np.diff(rates) <= 0.005).all(), rates
    assert rates[5] < rates[0] - 0.2
    assert rates[1] > 0.9


def flat(images):
    return images.reshape(len(images), -1)


_FITTED = []


def fitted():
    if not _FITTED:
        from sklearn.linear_model import LogisticRegression

        train = load_data("digits").train
        _FITTED.append(LogisticRegression(max_iter=2000).fit(flat(train.images), train.labels))
    return _FITTED[0]


GOOD = np.full((2, 1, 4, 4), 0.5, dtype=np.float32)


def broken(value):
    x = GOOD.copy()
    x[1, 0, 2, 3] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((GOOD, "nois", 1), InputError, "no kind of shift 'nois'; did you mean 'noise'"),
        ((GOOD, None, 1), InputError, "there is no kind of shift None"),
        ((GOOD, "noise", 0), InputError, "got strength=0, expected a whole number from 1"),
        ((GOOD, "noise", 6), InputError, "got strength=6"),
        ((GOOD, "noise", 1.0), InputError, "got strength=1.0"),
        ((GOOD, "noise", True), InputError, "got strength=True"),
        ((GOOD, "noise", 1, -1), InputError, "seed: got -1"),
        ((GOOD, "noise", 1, 0.5), InputError, "seed: got 0.5"),
        ((GOOD[0], "noise", 1), InputError, r"shape \(1, 4, 4\), expected \(N, C, H, W\)"),
        ((GOOD.astype(np.uint8), "noise", 1), DTypeError, "uint8, expected a float32 or float64"),
        ((GOOD.tolist(), "noise", 1), DTypeError, "images of list"),
        ((broken(np.nan), "noise", 1), NonFiniteError, "image 1 holds NaN"),
        ((broken(np.inf), "noise", 1), NonFiniteError, "image 1 holds NaN or infinity"),
        ((broken(1.5), "blur", 1), InputError, r"image 1 leaves \[0, 1\] \(all values: 0.5 to 1.5\)"),
        ((broken(-0.1), "blur", 1), InputError, r"image 1 leaves \[0, 1\]"),
    ],
)
def test_refusals(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        shifted(*arguments)
    assert "\n" not in str(caught.value)


def test_first_is_checked():
    with pytest.raises(InputError, match="first: got -1"):
        shifted(GOOD, "noise", 1, first=-1)
