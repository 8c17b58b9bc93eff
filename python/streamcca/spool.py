"""Rows of two views on disk as column tiles: what the Gram route reads, one tile of all rows at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from streamcca.errors import InputError, StateFileError, StorageError
from streamcca.passes import AnyArray, PairPasses, bits_of
from streamcca.sources import ArraySource, NpyFile, RowSource, progress_bar
from streamcca.store import write_atomically

# Columns of a tile, a constant: the order of the sums, hence the bits, depends on it.
TILE = 1024
# Rows wait in memory until this much of a view can be written at once; then a tile's part of it is long enough
# to be read back at the speed of the disk.
_SEGMENT_BYTES = 256 << 20
_META = "spool.json"


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
    """Rows of two views, written once, segment by segment, each as tiles; a killed writer goes on where it was.

    Parameters
    ----------
    folder : Path
        Holds ``x.tiles``, ``y.tiles`` and ``spool.json``; made if it is not there.

    Notes
    -----
    A segment is as many rows as `_SEGMENT_BYTES` hold (16 to 1024) of both views, tile after tile; it counts when the
    files are on disk and ``spool.json``, which lists the segments with a CRC-32 for each tile, has been replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._meta: dict[str, Any] = {"format": "streamcca.spool", "version": 1, "tile": TILE, "views": {}, "rows": []}
        self._meta |= {"complete": False, "checksums": {"x": [], "y": []}}
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
            known = (meta["format"], meta["version"], meta["tile"]) == ("streamcca.spool", 1, TILE)
            sizes = {name: sum(meta["rows"]) * d * _itemsize(dtype) for name, (d, dtype) in meta["views"].items()}
            held = {name: (self.folder / f"{name}.tiles").stat().st_size for name in sizes}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateFileError(f"{path}: damaged, or not of a spool ({error}); name an empty folder") from None
        if not known or any(held[name] < size for name, size in sizes.items()):
            raise StateFileError(
                f"{path}: of another version, or the tiles beside it are shorter than it says; remove it"
            )
        self._meta = meta

    def write(self, passes: PairPasses, progress: Any = "auto") -> None:
        """Bring all rows of `passes` to disk, from the first that is not there.

        Raises
        ------
        InputError
            The rows that are there already are not those that `passes` begins with; no rows at all.
        StorageError
            The disk is full; what is there stays and can be gone on with.
        """
        if self.complete:
            self._check_beginning(passes)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with progress_bar(progress, passes.rows, "row", "spool") as bar:
                bar.update(self.rows)
                self._write(passes, bar)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                error.errno,
                f"{self.folder}: cannot spool more than {self.rows} rows ({error.strerror}); make room and start again "
                "with the same folder, or choose another; what is there stays",
            ) from error
        if not self.rows:
            raise InputError("the data hold no rows; expected at least 2")
        self._meta["complete"] = True
        self._save_meta()

    def _write(self, passes: PairPasses, bar: Any) -> None:
        if self.rows:
            self._check_beginning(passes)
        segment: _Segment | None = None
        for x, y in passes.batches(self.rows):
            bits = {name: bits_of(rows, f"view {name!r}") for name, rows in (("x", x), ("y", y))}
            if segment is None:
                self._start(bits, passes.rows)
                segment = _Segment({name: (array.shape[1], dtype) for name, (array, dtype) in bits.items()})
            self._check_types(bits)
            done, count = 0, len(bits["x"][0])
            while done < count:
                done += segment.take(bits, done)
                if segment.full:
                    self._append(segment)
            bar.update(count)
        if segment is not None and segment.filled:
            self._append(segment)

    def _start(self, bits: dict[str, tuple[AnyArray, str]], rows: int | None) -> None:
        if not self._meta["views"]:
            self._meta["views"] = {name: [array.shape[1], dtype] for name, (array, dtype) in bits.items()}
        if rows is not None:
            left = (rows - self.rows) * sum(array.shape[1] * array.itemsize for array, _ in bits.values())
            check_disk(self.folder, left)
        for name, (width, dtype) in self._meta["views"].items():
            with (self.folder / f"{name}.tiles").open("ab") as file:
                file.truncate(self.rows * width * _itemsize(dtype))  # what a killed writer had begun

    def _check_types(self, bits: dict[str, tuple[AnyArray, str]]) -> None:
        for name, (array, dtype) in bits.items():
            if [array.shape[1], dtype] != list(self._meta["views"][name]):
                width, first = self._meta["views"][name]
                raise InputError(
                    f"view {name!r}: got rows of width {array.shape[1]} and type {dtype} after row {self.rows}, "
                    f"expected {width} and {first} as before; every batch must be alike"
                )

    def _append(self, segment: _Segment) -> None:
        rows = segment.filled
        for name, array in segment.arrays.items():
            checks = []
            with (self.folder / f"{name}.tiles").open("ab") as file:
                for first in range(0, array.shape[1], TILE):
                    part = np.ascontiguousarray(array[:rows, first : first + TILE]).reshape(-1).view(np.uint8).data
                    checks.append(zlib.crc32(part))
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            self._meta["checksums"][name].append(checks)
        self._meta["rows"].append(rows)
        self._save_meta()
        segment.filled = 0

    def _save_meta(self) -> None:
        write_atomically(self.folder / _META, json.dumps(self._meta).encode())

    def _check_beginning(self, passes: PairPasses) -> None:
        """Refuse to go on with other rows than those on disk: the first batch must be what they begin with."""
        for batch in passes.batches(0):
            for name, rows in zip("xy", batch, strict=True):
                bits, dtype = bits_of(rows, f"view {name!r}")
                tiles = self.tiles(name)
                wanted = [tiles.width, tiles.dtype]
                count, columns = min(len(bits), self._meta["rows"][0]), min(TILE, bits.shape[1])
                same = wanted == [bits.shape[1], dtype] and np.array_equal(
                    tiles.read(0)[0][:count].view(np.uint8), np.ascontiguousarray(bits[:count, :columns]).view(np.uint8)
                )
                if not same:
                    raise InputError(
                        f"{self.folder}: holds other rows of view {name!r} than the data begin with; name an empty "
                        "folder, or bring the rows in the order of the first time"
                    )
            return

    def tiles(self, name: str) -> SpoolTiles:
        """Return one view."""
        width, dtype = self._meta["views"][name]
        return SpoolTiles(
            self.folder / f"{name}.tiles", width, dtype, self._meta["rows"], self._meta["checksums"][name]
        )

    def remove(self) -> None:
        """Delete the files, and the folder if nothing else is in it."""
        for name in (_META, "x.tiles", "y.tiles"):
            (self.folder / name).unlink(missing_ok=True)
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


class _Segment:
    """Rows of both views that wait to be written together."""

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

    def take(self, bits: dict[str, tuple[AnyArray, str]], first: int) -> int:
        """Copy rows from number `first` on as far as there is room; return how many."""
        count = min(self.size - self.filled, len(bits["x"][0]) - first)
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
