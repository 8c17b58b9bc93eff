"""Rows on disk as column tiles: what the Gram route reads, one tile of all rows at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from streamcca.arrays import AnyArray
from streamcca.errors import InputError, StateFileError, StorageError
from streamcca.passes import PairPasses, bits_of
from streamcca.sources import ArraySource, NpyFile, RowSource, progress_bar
from streamcca.store import remove_unfinished, write_atomically

# Columns of a tile, a constant: the order of the sums, hence the bits, depends on it.
TILE = 1024
# Rows wait in memory until this much of a view can be written at once; then a tile's part of it is long enough
# to be read back at the speed of the disk.
_SEGMENT_BYTES = 256 << 20
_META = "spool.json"
_FORMAT: dict[str, Any] = {"format": "streamcca.spool", "version": 1, "tile": TILE}
_Bits = dict[str, tuple[AnyArray, str]]


class ColumnTiles(Protocol):
    """All rows of one view, read some columns at a time."""

    rows: int
    width: int

    def read(self, tile: int) -> tuple[AnyArray, str]:
        """Return the bits of tile number `tile`, (rows, at most TILE), and their type; see `bits_of`."""


def count_tiles(width: int) -> int:
    """Return how many tiles a view of this width has."""
    return -(-width // TILE)


class SourceTiles:
    """Tiles of an array in memory, or of a row-major file, read where they lie."""

    def __init__(self, source: RowSource) -> None:
        self._source = source
        self.rows, self.width = source.rows, source.width

    def read(self, tile: int) -> tuple[AnyArray, str]:
        """Return one tile; see `ColumnTiles`."""
        first = tile * TILE
        count = min(TILE, self.width - first)
        where = f"view {self._source.name!r}"
        if isinstance(self._source, NpyFile):
            return bits_of(self._source.read_columns(first, count), where)
        assert isinstance(self._source, ArraySource)  # noqa: S101 - the other kind of source
        return bits_of(self._source.array[:, first : first + count], where)


class Spool:
    """Aligned rows of some views, written once, segment by segment, each as tiles; a killed writer goes on.

    Parameters
    ----------
    folder : Path
        Holds ``spool.json`` and ``0.tiles``, ``1.tiles``, ... of the views; made if it is not there.

    Notes
    -----
    A segment is as many rows as `_SEGMENT_BYTES` hold (16 to 1024) of all views, tile after tile; it counts when the
    files are on disk and ``spool.json``, which lists the segments with a CRC-32 for each tile, has been replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # views: [name, width, type, [checksums of a segment's tiles, ...]]
        self._meta: dict[str, Any] = _FORMAT | {"views": [], "rows": [], "complete": False}
        self._segment: _Segment | None = None
        remove_unfinished(folder, _META)
        if (folder / _META).exists():
            self._load()

    @property
    def rows(self) -> int:
        """Rows that are safely on disk."""
        return sum(self._meta["rows"])

    @property
    def complete(self) -> bool:
        """Whether all rows are there."""
        return bool(self._meta["complete"])

    def _load(self) -> None:
        path = self.folder / _META
        try:
            meta = json.loads(path.read_text())
            known = all(meta[key] == value for key, value in _FORMAT.items())
            sizes = [sum(meta["rows"]) * width * _itemsize(dtype) for _, width, dtype, _ in meta["views"]]
            held = [self._path(i).stat().st_size for i in range(len(sizes))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateFileError(f"{path}: damaged, or not of a spool ({error}); name an empty folder") from None
        if not known or any(has < size for has, size in zip(held, sizes, strict=True)):
            raise StateFileError(
                f"{path}: of another version, or the tiles beside it are shorter than it says; remove it"
            )
        self._meta = meta

    def _path(self, index: int) -> Path:
        return self.folder / f"{index}.tiles"

    def write(self, passes: PairPasses, progress: Any = "auto") -> None:
        """Bring all rows of two views to disk, from the first that is not there; see `add`."""
        if self.rows:
            for batch in passes.batches(0):
                self._check_beginning(_bits_of(dict(zip("xy", batch, strict=True))))
                break
        if self.complete:
            return
        with progress_bar(progress, passes.rows, "row", "spool") as bar:
            position = self.rows
            bar.update(position)
            for x, y in passes.batches(position):
                self.add({"x": x, "y": y}, position, passes.rows)
                position += len(x)
                bar.update(len(x))
        self.finish()

    def add(self, batch: Mapping[str, Any], first: int, total: int | None = None) -> None:
        """Add a batch of rows, of which `first` is the number of the first; rows that are there are passed over.

        `total`, where it is known, is the number of all rows: then a disk too small is refused before the first.

        Raises
        ------
        InputError
            The rows that are there already are not those of the batch, or its types differ from those before.
        StorageError
            The disk is full; what is there stays and can be gone on with.
        """
        bits = _bits_of(batch)
        if self._segment is None:
            if self.rows and first == 0:
                self._check_beginning(bits)
            if not self.complete:
                self._start(bits, total)
        if self.complete:
            return
        self._check_types(bits)
        assert self._segment is not None  # noqa: S101 - _start made it
        done, count = max(0, self.rows + self._segment.filled - first), len(next(iter(bits.values()))[0])
        while done < count:
            done += self._segment.take(bits, done)
            if self._segment.full:
                self._append(self._segment)

    def finish(self) -> None:
        """Write the rows that wait; all are there now."""
        if self._segment is not None and self._segment.filled:
            self._append(self._segment)
        self._segment = None
        if not self.rows:
            raise InputError("the data hold no rows; expected at least 2")
        self._meta["complete"] = True
        self._save_meta()

    def _start(self, bits: _Bits, total: int | None) -> None:
        with self._storing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._meta["views"]:
                self._meta["views"] = [[name, array.shape[1], dtype, []] for name, (array, dtype) in bits.items()]
            if total is not None:
                row_bytes = sum(array.shape[1] * array.itemsize for array, _ in bits.values())
                check_disk(self.folder, (total - self.rows) * row_bytes)
            for i, (_, width, dtype, _) in enumerate(self._meta["views"]):
                with self._path(i).open("ab") as file:
                    file.truncate(self.rows * width * _itemsize(dtype))  # what a killed writer had begun
        self._segment = _Segment({name: (width, dtype) for name, width, dtype, _ in self._meta["views"]})

    def _check_types(self, bits: _Bits) -> None:
        for name, width, dtype, _ in self._meta["views"]:
            array, own = bits[name]
            if (array.shape[1], own) != (width, dtype):
                raise InputError(
                    f"view {name!r}: got rows of width {array.shape[1]} and type {own} after row {self.rows}, "
                    f"expected {width} and {dtype} as before; every batch must be alike"
                )

    def _append(self, segment: _Segment) -> None:
        rows = segment.filled
        with self._storing():
            checks = [self._append_tiles(i, array[:rows]) for i, array in enumerate(segment.arrays.values())]
        for view, own in zip(self._meta["views"], checks, strict=True):
            view[3].append(own)
        self._meta["rows"].append(rows)
        self._save_meta()
        segment.filled = 0

    def _append_tiles(self, index: int, array: AnyArray) -> list[int]:
        checks = []
        with self._path(index).open("ab") as file:
            for first in range(0, array.shape[1], TILE):
                part = np.ascontiguousarray(array[:, first : first + TILE]).reshape(-1).view(np.uint8).data
                checks.append(zlib.crc32(part))
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        return checks

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                error.errno,
                f"{self.folder}: cannot spool more than {self.rows} rows ({error.strerror}); make room and start again "
                "with the same folder, or choose another; what is there stays",
            ) from error

    def _save_meta(self) -> None:
        write_atomically(self.folder / _META, json.dumps(self._meta).encode())

    def _check_beginning(self, bits: _Bits) -> None:
        """Refuse to go on with other rows than those on disk: the first batch must be what they begin with."""
        for name, (array, dtype) in bits.items():
            tiles = self.tiles(name)
            count, columns = min(len(array), self._meta["rows"][0]), min(TILE, array.shape[1])
            given = np.ascontiguousarray(array[:count, :columns]).view(np.uint8)
            same = (tiles.width, tiles.dtype) == (array.shape[1], dtype)
            if not same or not np.array_equal(tiles.read(0)[0][:count].view(np.uint8), given):
                raise InputError(
                    f"{self.folder}: holds other rows of view {name!r} than the data begin with; name an empty "
                    "folder, or bring the rows in the order of the first time"
                )

    def tiles(self, name: str) -> SpoolTiles:
        """Return one view."""
        for i, (own, width, dtype, checksums) in enumerate(self._meta["views"]):
            if own == name:
                return SpoolTiles(self._path(i), width, dtype, self._meta["rows"], checksums)
        raise InputError(f"{self.folder}: holds rows of other views than {name!r}; name an empty folder")

    def remove(self) -> None:
        """Delete the files, and the folder if nothing else is in it."""
        for path in (self.folder / _META, *(self._path(i) for i in range(len(self._meta["views"])))):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class SpoolTiles:
    """One view of a spool."""

    def __init__(self, path: Path, width: int, dtype: str, segments: list[int], checksums: list[list[int]]) -> None:
        self.rows, self.width, self.dtype = sum(segments), width, dtype
        self._path, self._segments, self._checksums = path, segments, checksums

    def read(self, tile: int) -> tuple[AnyArray, str]:
        """Return one tile; see `ColumnTiles`. Each part of it is checked."""
        first = tile * TILE
        count = min(TILE, self.width - first)
        size = _itemsize(self.dtype)
        result = np.empty((self.rows, count), np.uint16 if self.dtype == "bfloat16" else self.dtype)
        start = 0
        with self._path.open("rb", buffering=0) as file:
            for rows, checks in zip(self._segments, self._checksums, strict=True):
                part = result[start : start + rows].reshape(-1).view(np.uint8).data
                file.seek((start * self.width + rows * first) * size)
                if _read_into(file, part) != len(part) or zlib.crc32(part) != checks[tile]:
                    raise StateFileError(
                        f"{self._path}: damaged or cut short at rows {start} to {start + rows - 1}; remove the folder "
                        "and spool the rows again"
                    )
                start += rows
        return result, self.dtype


def _bits_of(batch: Mapping[str, Any]) -> _Bits:
    return {name: bits_of(rows, f"view {name!r}") for name, rows in batch.items()}


class _Segment:
    """Rows of all views that wait to be written together."""

    def __init__(self, views: dict[str, tuple[int, str]]) -> None:
        widest = max(width * _itemsize(dtype) for width, dtype in views.values())
        self.size = min(1024, max(16, _SEGMENT_BYTES // widest))
        self.arrays: dict[str, AnyArray] = {
            name: np.empty((self.size, width), np.uint16 if dtype == "bfloat16" else dtype)
            for name, (width, dtype) in views.items()
        }
        self.filled = 0

    @property
    def full(self) -> bool:
        return self.filled == self.size

    def take(self, bits: _Bits, first: int) -> int:
        """Copy rows from number `first` on as far as there is room; return how many."""
        count = min(self.size - self.filled, len(next(iter(bits.values()))[0]) - first)
        for name, (array, _) in bits.items():
            self.arrays[name][self.filled : self.filled + count] = array[first : first + count]
        self.filled += count
        return count


def segment_bytes(row_bytes: list[int]) -> int:
    """Return what the rows that wait to be written take, all views together."""
    rows = min(1024, max(16, _SEGMENT_BYTES // max(row_bytes)))
    return rows * sum(row_bytes)


def check_disk(folder: Path, need: int) -> None:
    """Refuse before the first byte if `need` bytes are more than the disk has free.

    Raises
    ------
    StorageError
    """
    import shutil  # loads compressors

    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise StorageError(
            errno.ENOSPC,
            f"{folder}: the rows need {need / 2**30:.1f} GiB of disk, but {free / 2**30:.1f} GiB are free; make room, "
            "name another folder=, or keep fewer rows or a smaller type (float16, bfloat16)",
        )


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else int(np.dtype(dtype).itemsize)


def _read_into(file: Any, buffer: memoryview) -> int:
    done = 0
    while done < len(buffer):
        got = file.readinto(buffer[done:])
        if not got:
            break
        done += got
    return done


def tiles_of(view: ColumnTiles, first: int) -> Iterator[tuple[int, AnyArray, str]]:
    """Iterate over the tiles of a view from number `first` on."""
    for tile in range(first, count_tiles(view.width)):
        yield tile, *view.read(tile)
