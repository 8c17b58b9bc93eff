"""Out-of-distribution versions of images, made on the spot: seven kinds, five strengths each, seeded.

Which out-of-distribution sets arXiv 2206.08890 used is not known to us (we have its abstract), so kinds and strengths
are ours; five strengths as in ImageNet-C (arXiv 1903.12261), whose numbers belong to images of 224 x 224 pixels.
Lengths here are shares of the image's sides, so that 8 x 8 and 224 x 224 pixels are damaged alike. Two things depend on
the size nevertheless: noise is drawn per pixel, and a blur of less than a pixel is coarsely sampled. Strengths were set
by logistic regression on digits: right about 95 % of the time, it is right 91 to 95 % at strength 1, 14 to 67 % at 5.
Photographs have finer detail than digits: there, blur is severe from strength 2 on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from streamcca.errors import DTypeError, InputError
from streamcca.multiplicity.images.data_sets import Images, check_images
from streamcca.multiplicity.images.splits import check_seed
from streamcca.views import unknown_name

_CHUNK = 1 << 20  # values of one slice of images: some 50 MiB of coordinates and copies at a time
_CONTROL = 7  # points of the elastic grid along a side
_MARGIN, _SPREAD = 0.25, 0.2  # how far the grid reaches over the edge, and the SD of a point's bell, in sides

# (images float64 of one slice, strength's number, one generator per image) -> images float64, not yet clipped
_Method = Callable[[Images, float, "list[np.random.Generator]"], Images]


@dataclass(frozen=True)
class Shift:
    """One kind of out-of-distribution version.

    `strengths` holds the five numbers of strengths 1 to 5, `unit` says what they count.
    """

    kind: str
    description: str
    unit: str
    strengths: tuple[float, float, float, float, float]
    _method: _Method = field(repr=False, compare=False)

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.description}; {', '.join(f'{s:g}' for s in self.strengths)} ({self.unit})>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "kind": self.kind,
            "description": self.description,
            "unit": self.unit,
            "strengths": list(self.strengths),
        }


def _noise(images: Images, sd: float, generators: list[np.random.Generator]) -> Images:
    """Add white noise; strengths differ by the factor alone."""
    return images + sd * np.stack([g.standard_normal(images.shape[1:]) for g in generators])


def _blur(images: Images, share: float, generators: list[np.random.Generator]) -> Images:
    """Smooth along both sides by a Gaussian; beyond the edge stands the edge's pixel."""
    from scipy.ndimage import gaussian_filter

    height, width = images.shape[2:]
    blurred: Images = gaussian_filter(images, (0, 0, share * height, share * width), mode="nearest", truncate=5.0)
    return blurred


def _contrast(images: Images, kept: float, generators: list[np.random.Generator]) -> Images:
    """Draw every value toward the image's mean over pixels and channels."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    result: Images = mean + kept * (images - mean)
    return result


def border_median(images: Images) -> Images:
    """Return the median of the outermost pixels of every image and channel (N, C, 1, 1): its background."""
    edges = [images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]]
    median: Images = np.median(np.concatenate(edges, axis=2), axis=2)
    return median[:, :, None, None]


def resample(images: Images, rows: Images, columns: Images) -> Images:
    """Read images (N, C, H, W) at places (N, H, W) between their pixels, bilinearly; outside lies the background.

    The background is `border_median`: black around a digit, the usual edge color of a photograph. A fixed black would
    put wedges into photographs, and repeating the edge would smear strokes of digits that touch it.
    """
    from scipy.ndimage import map_coordinates

    background = border_median(images)
    centered = images - background
    which = np.broadcast_to(np.arange(len(images), dtype=np.float64)[:, None, None], rows.shape)
    places = np.stack([which, rows, columns])
    result = np.empty_like(images)
    for channel in range(images.shape[1]):
        # Coordinates along the first axis are whole numbers: no image is mixed with the next.
        map_coordinates(
            centered[:, channel], places, output=result[:, channel], order=1, mode="grid-constant", cval=0.0
        )
    return result + background


def _pixels(images: Images) -> tuple[Images, Images]:
    height, width = images.shape[2:]
    return np.arange(height, dtype=np.float64)[:, None], np.arange(width, dtype=np.float64)[None, :]


def rotated(images: Images, degrees: Images) -> Images:
    """Turn every image (N, C, H, W) by its angle (N,) counterclockwise, about its center."""
    rows, columns = _pixels(images)
    y, x = rows - rows.mean(), columns - columns.mean()
    cos, sin = np.cos(np.deg2rad(degrees))[:, None, None], np.sin(np.deg2rad(degrees))[:, None, None]
    return resample(images, rows.mean() + cos * y + sin * x, columns.mean() - sin * y + cos * x)


def translated(images: Images, down: Images, right: Images) -> Images:
    """Move every image by its pixels (N,) down and to the right."""
    rows, columns = _pixels(images)
    shape = (len(images), *images.shape[2:])
    places = (
        np.broadcast_to(rows - down[:, None, None], shape),
        np.broadcast_to(columns - right[:, None, None], shape),
    )
    return resample(images, *places)


def _rotation(images: Images, degrees: float, generators: list[np.random.Generator]) -> Images:
    """Turn left or right, by a fair coin per image that strengths share."""
    return rotated(images, np.array([degrees if g.random() < 0.5 else -degrees for g in generators]))


def _translation(images: Images, share: float, generators: list[np.random.Generator]) -> Images:
    """Move into a direction that is uniform on the circle and shared by strengths."""
    angle = 2 * np.pi * np.array([g.random() for g in generators])
    height, width = images.shape[2:]
    return translated(images, share * height * np.sin(angle), share * width * np.cos(angle))


def _bells(pixels: int) -> Images:
    """Return weights (pixels, control points); rows of length 1, so that a field has variance 1 everywhere."""
    centers = np.linspace(-_MARGIN, 1 + _MARGIN, _CONTROL)
    places = (np.arange(pixels) + 0.5) / pixels
    weights: Images = np.exp(-0.5 * ((places[:, None] - centers) / _SPREAD) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights


def _elastic(images: Images, share: float, generators: list[np.random.Generator]) -> Images:
    """Move pixels by two smooth Gaussian fields of SD `share` of the side, drawn on a grid that knows no image size."""
    height, width = images.shape[2:]
    draws = np.stack([g.standard_normal((2, _CONTROL, _CONTROL)) for g in generators])
    fields = _bells(height) @ draws @ _bells(width).T
    rows, columns = _pixels(images)
    return resample(images, rows + share * height * fields[:, 0], columns + share * width * fields[:, 1])


def patch(height: int, width: int, share: float, down: float, right: float) -> tuple[slice, slice]:
    """Place a patch of `share` of both sides (rounded half up, at least a pixel); `down`, `right` in [0, 1) say where.

    The patch of a larger share at the same place covers that of a smaller one: a side that grows by a pixel moves its
    start by at most one.
    """
    h, w = (max(1, int(share * side + 0.5)) for side in (height, width))
    top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
    return slice(top, top + h), slice(left, left + w)


def _occlusion(images: Images, share: float, generators: list[np.random.Generator]) -> Images:
    """Lay a patch in the image's mean gray (over pixels and channels) over it."""
    result = images.copy()
    for image, generator in zip(result, generators, strict=True):
        rows, columns = patch(image.shape[1], image.shape[2], share, generator.random(), generator.random())
        image[:, rows, columns] = image.mean()
    return result


SHIFTS: Mapping[str, Shift] = MappingProxyType(
    {
        shift.kind: shift
        for shift in (
            Shift(
                "noise",
                "white Gaussian noise on every value",
                "standard deviation, where white is 1",
                (0.08, 0.16, 0.24, 0.36, 0.5),
                _noise,
            ),
            Shift(
                "blur",
                "Gaussian blur",
                "standard deviation, as a share of the side",
                (0.06, 0.08, 0.11, 0.14, 0.18),
                _blur,
            ),
            Shift(
                "contrast",
                "values drawn toward the image's mean",
                "share of the contrast that is kept",
                (0.75, 0.55, 0.4, 0.28, 0.18),
                _contrast,
            ),
            Shift(
                "rotation",
                "turned about the center, left or right at random",
                "degrees",
                (8, 16, 24, 34, 45),
                _rotation,
            ),
            Shift(
                "translation",
                "moved in a random direction",
                "distance, as a share of the side",
                (0.04, 0.08, 0.12, 0.16, 0.2),
                _translation,
            ),
            Shift(
                "elastic",
                "bent by a smooth random field",
                "standard deviation along each axis, as a share of the side",
                (0.02, 0.04, 0.06, 0.08, 0.11),
                _elastic,
            ),
            Shift(
                "occlusion",
                "a patch of the image's mean gray",
                "side, as a share of the image's (area: its square)",
                (0.25, 0.375, 0.5, 0.625, 0.75),
                _occlusion,
            ),
        )
    }
)
"""Kinds by name; `SHIFTS[kind].strengths[s - 1]` is the number behind strength s."""


def _generators(kind: str, seed: int, start: int, stop: int) -> list[np.random.Generator]:
    """Return a generator per image, which depends on seed, kind and index only: 2^128 draws of a counter each."""
    key = np.random.SeedSequence([seed, zlib.crc32(kind.encode())]).generate_state(2, np.uint64)
    return [
        np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, i, 0], dtype=np.uint64)))
        for i in range(start, stop)
    ]


def _slices(images: Images) -> Iterator[slice]:
    rows = max(1, _CHUNK // max(1, int(np.prod(images.shape[1:]))))
    return (slice(i, min(i + rows, len(images))) for i in range(0, len(images), rows))


def shifted(images: Images, kind: str, strength: int, seed: int = 0, *, first: int = 0) -> Images:
    """Return an out-of-distribution version of images.

    An image's version depends on the image, its index, `kind`, `strength` and `seed`, and on nothing else in the batch.
    What is random about it (noise, direction, field, place) is the same at all strengths, which differ by how much of
    it there is: damage grows with strength.

    Parameters
    ----------
    images
        (N, C, H, W), float32 or float64, values in [0, 1]; not modified.
    kind
        A name in `SHIFTS`.
    strength
        1 (mild) to 5 (severe); `SHIFTS[kind].strengths` says what that is in numbers.
    seed
        A whole number of at least 0.
    first
        Index of `images[0]` in the set, where a batch is given: `shifted(x[100:200], ..., first=100)` is
        `shifted(x, ...)[100:200]`, bit by bit.

    Returns
    -------
    Images
        A new array of the same shape and dtype, values in [0, 1].

    Raises
    ------
    InputError
        An unknown kind or strength; images that are not (N, C, H, W), or hold NaN or values outside [0, 1].
    DTypeError
        Images that are not float32 or float64.

    Notes
    -----
    arXiv 2206.08890 speaks of out-of-distribution test sets without our knowing which; kinds and strengths are ours.
    The draws are those of `numpy.random.Generator`, which NumPy may change in a later version.

    Examples
    --------
    >>> import numpy as np
    >>> from streamcca.multiplicity.images.shifts import SHIFTS, shifted
    >>> x = np.zeros((2, 1, 8, 8), dtype=np.float32)
    >>> x[:, :, 3] = 1
    >>> SHIFTS["contrast"].strengths[4]
    0.18
    >>> print(shifted(x, "contrast", 5)[0, 0, 2:4, 0])
    [0.1025 0.2825]
    >>> list(SHIFTS)
    ['noise', 'blur', 'contrast', 'rotation', 'translation', 'elastic', 'occlusion']
    """
    if not isinstance(kind, str) or kind not in SHIFTS:
        raise InputError("shifted: " + unknown_name("kind of shift", kind, SHIFTS))
    if isinstance(strength, bool) or not isinstance(strength, int | np.integer) or not 1 <= strength <= 5:
        raise InputError(f"shifted: got strength={strength!r}, expected a whole number from 1 (mild) to 5 (severe)")
    check_seed(seed, "shifted: seed")
    check_seed(first, "shifted: first")
    if not isinstance(images, np.ndarray) or images.dtype not in (np.float32, np.float64):
        got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise DTypeError(f"shifted: got images of {got}, expected a float32 or float64 array; convert bytes by x / 255")
    check_images(images, "shifted")
    shift = SHIFTS[kind]
    result = np.empty_like(images, order="C")
    for part in _slices(images):
        values = images[part].astype(np.float64)
        generators = _generators(kind, int(seed), first + part.start, first + part.stop)
        # Rounding may leave [0, 1] by a bit, noise leaves it by much.
        result[part] = np.clip(shift._method(values, shift.strengths[strength - 1], generators), 0, 1)
    return result
