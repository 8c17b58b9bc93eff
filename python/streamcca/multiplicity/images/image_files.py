"""Readers of labeled images for `load_data`: scikit-learn's digits, .npz files, folders of pictures, torchvision."""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.errors import DTypeError, InputError, MissingFileError, StateFileError

if TYPE_CHECKING:
    from streamcca.multiplicity.images.data_sets import Images, ImageSet, Layout
    from streamcca.multiplicity.images.splits import Labels

Size = tuple[int, int] | None

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_LITTER = ("thumbs.db", "desktop.ini")
# torchvision's class, and where below `folder` it looks for its files
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat"),
}


@dataclass(frozen=True, eq=False)
class Part:
    """Labels (N,) of a set, and what reads the images of given rows, resized: only rows that are kept are decoded."""

    labels: Labels
    read: Callable[[Labels, Size], Images]
    rows: Labels

    def take(self, rows: Labels) -> Part:
        """Return the part of these rows."""
        return Part(self.labels[rows], self.read, self.rows[rows])

    def images(self, size: Size) -> ImageSet:
        """Read the images."""
        from streamcca.multiplicity.images.data_sets import ImageSet

        return ImageSet(self.read(self.rows, size), self.labels)


@dataclass(frozen=True, eq=False)
class Raw:
    """What a source holds; `test` is None where it is to be split."""

    train: Part
    test: Part | None
    classes: tuple[str, ...]


def checked_size(size: int | tuple[int, int] | None) -> Size:
    """Return (height, width), or refuse the size."""
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int | np.integer) or s < 1 for s in sides):
        raise InputError(f"load_data: got size={size!r}, expected pixels, such as 32, or (height, width)")
    return int(sides[0]), int(sides[1])


def _pillow(why: str) -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        raise ImportError(f"{why} needs Pillow; run `pip install pillow`") from None


def resized(images: Images, size: Size) -> Images:
    """Resize images (N, C, H, W) by Pillow's bilinear filter, antialiased, in float32: no value leaves their range."""
    if size is None or images.shape[2:] == size:
        return images
    pillow = _pillow("size=")
    result = np.empty((*images.shape[:2], *size), dtype=np.float32)
    for i, image in enumerate(images):
        for c, plane in enumerate(image):
            picture = pillow.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
            result[i, c] = picture.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
    return np.clip(result, images.min(initial=1), images.max(initial=0), out=result)  # rounding of the filter's weights


def _from_array(images: Any, labels: Labels) -> Part:
    """Wrap images (N, C, H, W) that are in memory, uint8 or floats."""

    def read(rows: Labels, size: Size) -> Images:
        chosen = images[rows]
        values = chosen.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else chosen.astype(np.float32)
        return resized(values, size)

    return Part(labels, read, np.arange(len(labels)))


def _counted(train: Any, test: Any, names: Any, where: str) -> tuple[Labels, Labels | None, tuple[str, ...]]:
    """Count labels from 0 to K - 1, in the order of their values; `names` are those of labels 0, 1, ..."""
    values = np.unique(train)
    if test is not None and len(strange := np.setdiff1d(test, values)):
        raise InputError(f"{where}: the test set has label {strange[0]!s}, which no training image has")
    if names is not None:
        if values.dtype.kind != "i" or values[0] < 0 or values[-1] >= len(names):
            raise InputError(f"{where}: got {len(names)} class names, expected whole labels from 0 to {len(names) - 1}")
        classes = tuple(str(names[value]) for value in values)
    else:
        classes = tuple(str(value) for value in values)
    counted = [None if part is None else np.searchsorted(values, part).astype(np.int64) for part in (train, test)]
    first = counted[0]
    assert first is not None  # noqa: S101 -- for mypy
    return first, counted[1], classes


def read_digits() -> Raw:
    """Return scikit-learn's digits, in its order; 16 is white."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError:
        raise ImportError('the data set "digits" needs scikit-learn; run `pip install scikit-learn`') from None
    values, labels = datasets.load_digits(return_X_y=True)
    images = (values / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return Raw(_from_array(images, labels.astype(np.int64)), None, tuple(map(str, range(10))))


# --- .npz files ---


def _arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"load_data: there is no file {path}")
    try:
        # Opened here: NumPy leaves a file open whose content it refuses.
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise StateFileError(f"{path}: is a single array (.npy), expected a .npz file with images and labels")
            return {key: file[key] for key in file.files}
    except StateFileError:
        raise
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise StateFileError(
                f"{path}: holds Python objects or is no .npz file, and nothing is unpickled; "
                "expected arrays of numbers and text saved by numpy.savez"
            ) from None
        raise StateFileError(f"{path}: cannot be read as a .npz file ({error})") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, NotImplementedError) as error:
        raise StateFileError(f"{path}: cannot be read as a .npz file ({type(error).__name__}: {error})") from None


def _planes(images: Any, layout: Layout | None, where: str) -> Any:
    """Bring images into (N, C, H, W), in the type they have; see `load_data` for how axes are told apart."""
    if images.dtype.kind != "f" and images.dtype != np.uint8:
        raise DTypeError(f"{where}: got images of {images.dtype}, expected uint8 (0 to 255) or floats in [0, 1]")
    if layout not in (None, "NHW", "NHWC", "NCHW"):
        raise InputError(f"load_data: got layout={layout!r}, expected 'NHW', 'NHWC' or 'NCHW'")
    if images.ndim not in (3, 4) or (layout is not None and len(layout) != images.ndim):
        raise InputError(f"{where}: got images of shape {images.shape}, expected {layout or 'NHW, NHWC or NCHW'}")
    if images.ndim == 3:
        return images[:, None]
    if layout is None:
        second, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if second == last:
            raise InputError(
                f"{where}: images of shape {images.shape} may be NCHW or NHWC ({'both' if second else 'neither'} of "
                "the second and the last axis has 1 or 3 entries); say which, by layout='NCHW' or layout='NHWC'"
            )
        layout = "NCHW" if second else "NHWC"
    return images if layout == "NCHW" else np.moveaxis(images, 3, 1)


def _labels(labels: Any, rows: int, where: str) -> Any:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # as Keras stores CIFAR
    if labels.dtype.kind not in "iuU":
        raise DTypeError(f"{where}: got labels of {labels.dtype}, expected whole numbers or text")
    if labels.shape != (rows,):
        raise InputError(f"{where}: got labels of shape {labels.shape} for {rows} images, expected ({rows},)")
    if not rows:
        raise InputError(f"{where}: holds no images")
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)


def read_npz(path: Path, layout: Layout | None) -> Raw:
    """Return the images of a .npz file."""
    from streamcca.multiplicity.images.data_sets import check_images

    arrays = _arrays(path)
    names = arrays.pop("classes", None)
    if set(arrays) == {"images", "labels"}:
        pairs = [("images", "labels")]
    elif set(arrays) == {"x_train", "y_train", "x_test", "y_test"}:
        pairs = [("x_train", "y_train"), ("x_test", "y_test")]
    else:
        raise InputError(
            f"{path}: holds {sorted(arrays)}, expected 'images' and 'labels', or 'x_train', 'y_train', 'x_test' and "
            "'y_test', and maybe 'classes'"
        )
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise InputError(f"{path}, 'classes': got {names.dtype} of shape {names.shape}, expected names (K,) as text")
    images = [_planes(arrays[x], layout, f"{path}, {x!r}") for x, _ in pairs]
    for (x, _), values in zip(pairs, images, strict=True):
        if values.dtype.kind == "f":  # here, where an image's number is that in the file
            check_images(values, f"{path}, {x!r}")
    labels = [_labels(arrays[y], len(x), f"{path}, {y!r}") for x, (_, y) in zip(images, pairs, strict=True)]
    train, test, classes = _counted(labels[0], labels[1] if len(labels) > 1 else None, names, str(path))
    return Raw(_from_array(images[0], train), None if test is None else _from_array(images[1], test), classes)


# --- folders ---


def _visible(folder: Path) -> list[Path]:
    """Return a folder's entries in the order of their names, whatever order the file system has."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted((entry for entry in entries if entry.name.lower() not in _LITTER), key=lambda entry: entry.name)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for entry in _visible(folder):
        if not entry.is_dir():
            raise InputError(f"{folder}: got the file {entry.name!r}, expected a folder per class, with its images")
        files[entry.name] = _visible(entry)
        if not files[entry.name]:
            raise InputError(f"{entry}: holds no images; remove the folder or add some")
        if strange := [file for file in files[entry.name] if file.suffix.lower() not in SUFFIXES or not file.is_file()]:
            raise InputError(f"{entry}: got {strange[0].name!r}, expected images alone ({', '.join(SUFFIXES)})")
    if not files:
        raise InputError(f"{folder}: is empty, expected a folder per class, with its images")
    return files


def _decode(path: Path) -> Images:
    """Return one picture (C, H, W), float32 in [0, 1]; 1 channel where the file is gray, else 3."""
    pillow = _pillow("a folder of images")
    try:
        with pillow.open(path) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise InputError(f"{path}: holds {picture.n_frames} pictures, expected one")
            mode = "P with transparency" if "transparency" in picture.info else picture.mode
            if mode in ("P", "CMYK", "YCbCr"):
                picture = picture.convert("RGB")
            elif mode == "1":
                picture = picture.convert("L")
            elif mode not in ("L", "RGB", "I;16"):
                raise InputError(
                    f"{path}: has the mode {mode!r}, expected gray or RGB without transparency; convert it"
                )
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, EOFError, ValueError, zlib.error, pillow.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise StateFileError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from None
    values = pixels.astype(np.float32) / np.float32(65535 if pixels.dtype.itemsize == 2 else 255)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(np.moveaxis(values, 2, 0))


def _read_files(files: list[Path], rows: Labels, size: Size) -> Images:
    result: Images = np.empty((0, 0, 0, 0), dtype=np.float32)
    for i, row in enumerate(rows):
        image = resized(_decode(files[row])[None], size)[0]
        if i == 0:
            result = np.empty((len(rows), *image.shape), dtype=np.float32)
        if image.shape[0] != result.shape[1]:
            kinds = {1: "gray", 3: "RGB"}
            raise InputError(
                f"{files[row]}: is {kinds[image.shape[0]]}, but {files[rows[0]]} is {kinds[result.shape[1]]}; "
                "expected one kind, convert the files"
            )
        if image.shape != result.shape[1:]:
            raise InputError(
                f"{files[row]}: has {image.shape[1]} x {image.shape[2]} pixels (height x width), but {files[rows[0]]} "
                f"has {result.shape[2]} x {result.shape[3]}; expected one size, resize by size="
            )
        result[i] = image
    return result


def _from_files(files: Mapping[str, list[Path]], classes: tuple[str, ...]) -> Part:
    paths = [path for name in classes for path in files.get(name, ())]
    labels = np.repeat(np.arange(len(classes)), [len(files.get(name, ())) for name in classes]).astype(np.int64)
    return Part(labels, lambda rows, size: _read_files(paths, rows, size), np.arange(len(paths)))


def read_folder(path: Path) -> Raw:
    """Return the images of a folder; `train` and `test` in it are sets, other folders are classes."""
    names = [entry.name for entry in _visible(path)]
    if ("train" in names) != ("test" in names):
        raise InputError(f"{path}: has one of the folders train and test, expected both, or a folder per class")
    if "train" not in names:
        files = _class_files(path)
        return Raw(_from_files(files, tuple(files)), None, tuple(files))
    if len(names) > 2:
        other = next(name for name in names if name not in ("train", "test"))
        raise InputError(f"{path}: got {other!r} beside train and test, expected these two alone")
    train, test = (_class_files(path / name) for name in ("train", "test"))
    if strange := sorted(set(test) - set(train)):
        raise InputError(f"{path / 'test'}: has the class {strange[0]!r}, which {path / 'train'} has not")
    return Raw(_from_files(train, tuple(train)), _from_files(test, tuple(train)), tuple(train))


# --- torchvision ---


def read_torchvision(name: str, folder: str | Path | None) -> Raw:
    """Return one of torchvision's data sets, whose files must be there; it checks their MD5 sums."""
    class_name, inside = _TORCHVISION[name]
    if folder is None:
        raise InputError(f"load_data: {name!r} needs folder=, the folder that holds {inside}")
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ImportError:
        raise ImportError(f'the data set "{name}" needs torchvision; run `pip install torchvision`') from None
    reader = getattr(datasets, class_name)
    parts = []
    for train in (True, False):
        chosen = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
        try:
            parts.append(reader(root=str(folder), download=False, **chosen))
        except (RuntimeError, OSError):  # "Dataset not found or corrupted. You can use download=True to download it"
            raise MissingFileError(
                f"load_data: the files of {name!r} are missing or damaged, expected {Path(folder) / inside}; "
                f"torchvision.datasets.{class_name}({str(folder)!r}, download=True) would fetch them"
            ) from None
    images = [_planes(np.asarray(part.data), "NCHW" if name == "svhn" else None, name) for part in parts]
    labels = [
        _labels(np.asarray(part.labels if name == "svhn" else part.targets), len(x), name)
        for part, x in zip(parts, images, strict=True)
    ]
    train_labels, test_labels, classes = _counted(labels[0], labels[1], getattr(parts[0], "classes", None), name)
    assert test_labels is not None  # noqa: S101 -- for mypy
    return Raw(_from_array(images[0], train_labels), _from_array(images[1], test_labels), classes)
