"""Images with labels, to train and to test on: from scikit-learn, files and torchvision; seeded and checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamcca.errors import DTypeError, InputError, MissingFileError, NonFiniteError
from streamcca.multiplicity.images.splits import Labels, check_seed, draw_rows, split_rows
from streamcca.views import unknown_name

Images = NDArray[Any]  # (N, C, H, W), float32 unless said; Any, so that float64 passes where it is taken
Layout = Literal["NHW", "NHWC", "NCHW"]

BUNDLED = ("digits",)
TORCHVISION = ("mnist", "fashion-mnist", "cifar10", "svhn")


def check_images(images: Images, what: str) -> None:
    """Refuse images that are not (N, C, H, W) with values in [0, 1]."""
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise InputError(f"{what}: got images of shape {images.shape}, expected (N, C, H, W), such as (100, 1, 8, 8)")
    if not len(images):
        return
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        worst = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
        raise NonFiniteError(f"{what}: image {worst} holds NaN or infinity, expected values in [0, 1]")
    if low < 0 or high > 1:
        worst = int(np.flatnonzero((images < 0).any(axis=(1, 2, 3)) | (images > 1).any(axis=(1, 2, 3)))[0])
        raise InputError(
            f"{what}: image {worst} leaves [0, 1] (all values: {low:g} to {high:g}); "
            "scale the images, by x / 255 where they are bytes"
        )


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (N, C, H, W), float32 in [0, 1], and labels (N,), int64, counted from 0."""

    images: Images
    labels: Labels

    def __post_init__(self) -> None:
        """Check dtypes, shapes and values."""
        for name, array, dtype in (("images", self.images, np.float32), ("labels", self.labels, np.int64)):
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise DTypeError(f"ImageSet: got {name} of {got}, expected an array of {np.dtype(dtype)}")
        check_images(self.images, "ImageSet")
        if not len(self.images):
            raise InputError("ImageSet: got no images, expected at least one")
        if self.labels.shape != (len(self.images),):
            raise InputError(
                f"ImageSet: got labels of shape {self.labels.shape} for {len(self.images)} images, "
                f"expected ({len(self.images)},): one label for every image"
            )
        if self.labels.min() < 0:
            raise InputError(f"ImageSet: got label {self.labels.min()}, expected labels counted from 0")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<{len(self)} images of {' x '.join(map(str, self.shape))}, {len(np.unique(self.labels))} classes>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, rows: Labels) -> ImageSet:
        """Return the images at these indices, in their order."""
        return ImageSet(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training and test images of the same classes.

    `fingerprint` is the SHA-256 of both sets' images and labels and of the classes' names: the same data have the same
    one, whatever file they came from and whatever they are called.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        if self.train.shape != self.test.shape:
            raise InputError(
                f"data set {self.name!r}: training images are {self.train.shape}, test images {self.test.shape} "
                "(channels, height, width); expected the same, use size= where only the pixels differ"
            )
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise InputError(
                f"data set {self.name!r}: got classes {self.classes!r}, expected at least two, named apart"
            )
        present = np.unique(self.train.labels)
        if len(present) != len(self.classes) or present[-1] != len(self.classes) - 1:
            raise InputError(
                f"data set {self.name!r}: got {len(self.classes)} class names and training labels "
                f"{present.tolist()[:20]}, expected every label from 0 to the last class"
            )
        if self.test.labels.max() >= len(self.classes):
            raise InputError(
                f"data set {self.name!r}: got test label {self.test.labels.max()}, "
                f"expected labels below {len(self.classes)}"
            )
        object.__setattr__(self, "fingerprint", _fingerprint(self.train, self.test, self.classes))

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return (
            f"<data set {self.name!r}: {len(self.train)} training and {len(self.test)} test images of {shape}, "
            f"{len(self.classes)} classes>"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.train.shape

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold: no images, but their fingerprint."""
        return {
            "name": self.name,
            "train": len(self.train),
            "test": len(self.test),
            "shape": list(self.shape),
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
        }


def _fingerprint(train: ImageSet, test: ImageSet, classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((classes, train.images.shape, test.images.shape)).encode())
    for part in (train, test):
        digest.update(np.ascontiguousarray(part.images, dtype="<f4").data)
        digest.update(np.ascontiguousarray(part.labels, dtype="<i8").data)
    return digest.hexdigest()


def load_data(
    source: str | Path = "digits",
    *,
    folder: str | Path | None = None,
    test_share: float | None = None,
    test_count: int | None = None,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    layout: Layout | None = None,
) -> DataSet:
    """Load a data set of images.

    Parameters
    ----------
    source
        - `"digits"`: scikit-learn's 1797 digits of 8 x 8 pixels, which come with it.
        - A `.npz` file with `x_train, y_train, x_test, y_test`, or with `images, labels`, and maybe `classes` (names of
          labels 0, 1, ...). Images are uint8, divided by 255, or floats in [0, 1]. Labels are whole numbers or text.
          Nothing is unpickled.
        - A folder: `train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png`; any format of Pillow. Hidden files are
          skipped. EXIF rotation is not applied.
        - `"mnist"`, `"fashion-mnist"`, `"cifar10"`, `"svhn"`: the files under `folder`, read by torchvision. Nothing is
          downloaded.
    folder
        Where torchvision's files are; also where a relative path begins.
    test_share, test_count
        Size of the test set, for sources without one, as a share of the images or as a count; a third by default.
    seed
        Seed of the split and of `limit`.
    size
        Side, or (height, width), in pixels to resize to: Pillow's bilinear filter, which is antialiased.
    limit
        Keep at most so many training images, and at most so many test images, every class in proportion.
    layout
        What the axes of a `.npz` file's images mean. (N, H, W) is told by its three axes. Of four axes, the one of 1 or
        3 entries that is second (NCHW) or last (NHWC) is taken for the channels; where both or neither are, say which,
        by `"NCHW"` or `"NHWC"`.

    Returns
    -------
    DataSet
        Labels are 0 to K - 1, in the order of the labels' values or of the folders' names.

    Raises
    ------
    InputError
        A source that is unknown, ambiguous or does not hold together: what, where and what was expected.
    DTypeError
        Images or labels of a type that is not taken.
    MissingFileError
        No such file or folder.
    StateFileError
        A file that cannot be read.
    ImportError
        A source that needs a package that is not installed.

    Examples
    --------
    >>> from streamcca.multiplicity.images.data_sets import load_data
    >>> load_data("digits")
    <data set 'digits': 1198 training and 599 test images of 1 x 8 x 8, 10 classes>
    """
    from streamcca.multiplicity.images import image_files

    check_seed(seed, "load_data: seed")
    side = image_files.checked_size(size)
    if limit is not None:
        check_seed(limit, "load_data: limit")
    name = str(source)
    if not isinstance(source, str | Path) or not name:
        raise InputError(f"load_data: got source={source!r}, expected a name, such as 'digits', or a path")
    if name not in BUNDLED + TORCHVISION:
        path = Path(folder or "") / source
        name = path.name.removesuffix(".npz")
    if layout is not None and (name in BUNDLED + TORCHVISION or path.suffix != ".npz"):
        raise InputError(f"load_data: got layout={layout!r} for {str(source)!r}, but layout= is for .npz files alone")
    if name in BUNDLED:
        raw = image_files.read_digits()
    elif name in TORCHVISION:
        raw = image_files.read_torchvision(name, folder)
    elif path.suffix == ".npz":
        raw = image_files.read_npz(path, layout)
    elif path.is_dir():
        raw = image_files.read_folder(path)
    elif path.suffix or len(Path(source).parts) > 1:
        raise MissingFileError(f"load_data: there is no folder {path}; expected a .npz file or a folder of images")
    else:
        names = unknown_name("data set", str(source), BUNDLED + TORCHVISION)
        raise InputError(f"load_data: {names}; nor is there a folder {path}")
    train, test = raw.train, raw.test
    if test is None:
        rows, others = split_rows(
            train.labels, test_share=test_share, test_count=test_count, seed=seed, classes=raw.classes
        )
        train, test = train.take(rows), train.take(others)
    elif test_share is not None or test_count is not None:
        raise InputError(f"load_data: {name!r} has a test set of its own; leave test_share= and test_count= out")
    if limit is not None:
        for what, part in (("training", train), ("test", test)):
            if limit < len(np.unique(part.labels)):
                raise InputError(
                    f"load_data: limit={limit} is too few for the "
                    f"{len(np.unique(part.labels))} classes of the {what} set"
                )
        train, test = (
            part.take(draw_rows(part.labels, min(limit, len(part.labels)), seed, spare=0)) for part in (train, test)
        )
    return DataSet(name, train.images(side), test.images(side), raw.classes)
