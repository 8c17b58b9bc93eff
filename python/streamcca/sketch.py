"""Frequent Directions of centered rows: leading directions of a view too wide for width x width, with a certificate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamcca import store, wide
from streamcca._backend import FloatArray
from streamcca._memory import check_memory
from streamcca.arrays import AnyArray, Library, brought, library_for, to_host
from streamcca.errors import InputError, StateFileError
from streamcca.passes import values_of

FORMAT = store.SKETCH_FORMAT
_SCALARS = ("n", "_shrunk", "_rounding", "_length", "_filled", "_pending")
_ARRAYS = ("_kept", "_new", "_shift", "_sums", "_squares")


class Sketch:
    """Leading directions of rows that arrive in batches, in memory of 2 l x width; proved bounds of all eigenvalues.

    With C the covariance of the rows (ddof 1) and B that of the sketch,

        0 <= C - B <= delta,   so that   eigenvalues()[i] <= lambda_i(C) <= eigenvalues()[i] + delta   for every i,

    where eigenvalues beyond the last count as 0. Rounding is part of `delta`.

    Parameters
    ----------
    width : int
        Number of neurons.
    directions : int
        l, how many directions are kept; as many new rows wait for the next shrink. No more than the width are used.
    dtype : float32 or float64
        Type of the stored directions. Batches of float64 rows want float64.
    device : None, 'cpu' or 'cuda'
        Where it lives: by default where the first rows are, if CuPy is there for a CUDA device (extra ``cuda``).

    Attributes
    ----------
    n : int
        Number of rows so far.

    Raises
    ------
    InputError
        A size or the type makes no sense.
    MemoryLimitError
        2 l x width would not fit into the available memory.
    DeviceError
        A device is asked for, and there is no CuPy, or no kernels.

    Notes
    -----
    Liberty (2013), "Simple and deterministic matrix sketching", KDD; Ghashami, Liberty, Phillips & Woodruff (2016),
    "Frequent Directions", SIAM J. Comput. 45, arXiv 1501.01711. When l new rows have come, the l + 1st "
    "eigenvalue of the
    2 l rows' Gram matrix is subtracted from all; what was subtracted adds up to the certificate, and is at most
    (trace - sum of the first m eigenvalues) / (l + 1 - m) for any m. The mean is taken out exactly: a block of m rows
    is reflected to m - 1 deviations from its own mean, and one row sqrt(nm / (n + m)) (mean of the block - mean
    before), after Chan, Golub & LeVeque (1983). What comes out does not depend on how the rows were cut into batches.

    Examples
    --------
    >>> rows = np.diag([4.0, 2.0, 1.0])
    >>> s = Sketch(3, 2, dtype=np.float64)
    >>> s.update(rows)
    >>> exact = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    >>> bool((s.eigenvalues()[:2] <= exact[:2]).all() and (exact[:2] <= s.eigenvalues()[:2] + s.delta).all())
    True
    """

    def __init__(self, width: int, directions: int, dtype: Any = np.float32, device: str | None = None) -> None:
        for name, value in (("width", width), ("directions", directions)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"Sketch: {name}: got {value!r}, expected an integer of at least 1")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise InputError(f"Sketch: dtype: got {dtype!r}, expected float32 or float64")
        self.width, self.directions = int(width), min(int(directions), int(width))
        check_memory(
            2 * self.directions * self.width * self.dtype.itemsize,
            f"a sketch of {self.directions} directions of {self.width} neurons",
            "keep fewer directions (l=), or use float32",
        )
        self._device = device
        self.n = 0
        self._allocate(library_for(None, device or "cpu"))
        self._filled = 0  # rows of _kept
        self._pending = 0  # rows of _new, as they came but for the shift
        self._shrunk = 0.0
        self._rounding = 0.0
        self._length = 0.0  # squared Frobenius norm of rows - shift

    def _allocate(self, library: Library) -> None:
        self._library = library
        self._kept: AnyArray = library.zeros((self.directions, self.width), dtype=self.dtype)
        self._new: AnyArray = library.zeros((self.directions, self.width), dtype=self.dtype)
        self._shift: AnyArray = library.zeros(self.width)  # the first row
        self._sums: FloatArray = library.zeros(self.width)  # of rows - shift, pending rows not yet counted
        self._squares: FloatArray = library.zeros(self.width)  # centered, likewise

    # ------------------------------------------------------------------ rows in

    def update(self, rows: Any) -> None:
        """Add rows (n, width): NumPy, torch or CuPy, float16, bfloat16, float32 or float64.

        Raises
        ------
        InputError, DTypeError, NonFiniteError
            The batch is refused as a whole.
        """
        library = self._library if self.n or self._device else library_for(rows)
        values = values_of(rows, "Sketch.update", library)
        if values.shape[1] != self.width:
            raise InputError(f"Sketch.update: got rows of {values.shape[1]} neurons, expected {self.width}")
        wide.check_finite(values, self.dtype, "Sketch.update")
        if library is not self._library:
            self._allocate(library)
        if self.n == 0 and len(values):
            # As it is, so that the difference to it is rounded once; one row, so that no batch decides.
            self._shift = library.array(values[0], dtype=np.float64 if values.dtype == np.float64 else np.float32)
        first = 0
        while first < len(values):
            count = min(len(values) - first, self.directions - self._pending)
            to = self._new[self._pending : self._pending + count]
            for tile in wide.tiles(self.width):  # no copy of the batch
                to[:, tile] = values[first : first + count, tile] - self._shift[tile]
            self._pending += count
            self.n += count
            first += count
            if self._pending == self.directions:
                self._settle()

    def _settle(self) -> None:
        """Center the pending rows, and take them into the directions."""
        count = self._pending
        if count:
            self._length += self._center(self._new, count, self.n - count, self._sums, self._squares)
            self._pending = 0
            self._take(count)

    def _center(self, rows: AnyArray, m: int, before: int, sums: FloatArray, squares: FloatArray) -> float:
        """Reflect m rows to m - 1 deviations and the difference of means, in place; `sums` and `squares` grow.

        With P the reflection that takes (1, ..., 1) / sqrt(m) to the first unit vector, every row of P X but the first
        is x_j - g with one g = (mean - x_1 / sqrt(m)) / (1 - 1 / sqrt(m)).
        """
        length: Any = 0.0
        root = m**0.5
        for tile in wide.tiles(self.width):
            x = rows[:m, tile].astype(np.float64)
            total = x.sum(axis=0)
            length += np.square(x).sum()
            between = total / m - sums[tile] / before if before else np.zeros_like(total)
            if m > 1:
                x -= (total / m - x[0] / root) / (1 - 1 / root)
            x[0] = between * (before * m / (before + m)) ** 0.5
            sums[tile] += total
            squares[tile] += np.square(x).sum(axis=0)
            rows[:m, tile] = x
        return float(length)

    def _take(self, count: int) -> None:
        """Take the first rows of _new, which are centered, into the directions."""
        if self._filled + count <= self.directions:
            self._kept[self._filled : self._filled + count] = self._new[:count]
            self._filled += count
        else:
            self._shrink([self._kept[: self._filled], self._new[:count]])

    def _shrink(self, parts: list[AnyArray]) -> None:
        inner, error = wide.gram(parts)
        values, vectors = np.linalg.eigh(inner)
        values, vectors = values[::-1], vectors[:, ::-1]
        most = self.directions
        less = max(0.0, float(values[most])) if len(values) > most else 0.0
        kept = np.maximum(values[:most] - less, 0)
        count = int(np.count_nonzero(kept))
        # R R' <= 1 but for the rounding of eigh, so B'B = A'R'R A <= A'A whatever the Gram matrix's rounding; and
        # A'A - B'B <= less + |rounding of the Gram matrix|.
        factor = np.sqrt(kept[:count] / values[:count])[:, None] * vectors[:, :count].T
        applied = wide.combine(factor, parts, self._kept)
        largest = float(kept[0]) if count else 0.0
        self._filled = count
        self._shrunk += less + error
        self._rounding += (
            2 * applied * largest**0.5 + applied**2 + 64 * 2.0**-53 * len(values) ** 0.5 * float(values[0])
        )

    def finish(self) -> None:
        """Take pending rows into the directions now; reading costs no copy of them then.

        Rows may follow. They fall into other blocks then, which changes the last digits, not the certificate.
        """
        self._settle()

    def merge(self, other: Sketch) -> None:
        """Add all rows of `other`, as if they had been rows of this sketch; the certificates add up.

        Raises
        ------
        InputError
            Widths, numbers of directions or types differ.
        """
        if not isinstance(other, Sketch) or self._key() != other._key():
            got = other._key() if isinstance(other, Sketch) else type(other).__name__
            raise InputError(f"Sketch.merge: got {got}, expected the width, directions and type {self._key()}")
        if other.n == 0:
            return
        # A copy, and on this one's device.
        library = other._library if self.n == 0 and self._device is None else self._library
        other = other._on(library)
        if self.n == 0:
            self.__dict__.update(other.__dict__)
            return
        self._settle()
        parts, sums, squares, length = other._settled()
        here, there = self.n, other.n
        shifts = other._shift.astype(np.float64) - self._shift
        between = (sums / there + shifts) - self._sums / here
        self._new[0] = between * (here * there / (here + there)) ** 0.5
        self._squares += squares + np.square(self._new[0].astype(np.float64))
        self._take(1)
        for part in parts:
            self._new[: len(part)] = part
            self._take(len(part))
        self._sums += sums + there * shifts
        self.n += there
        self._shrunk += other._shrunk
        self._rounding += other._rounding
        self._length += length

    def _key(self) -> tuple[int, int, str]:
        return self.width, self.directions, str(self.dtype)

    def _settled(self) -> tuple[list[AnyArray], FloatArray, FloatArray, float]:
        """Return rows, sums, squares and length as if the pending rows had been settled; nothing changes."""
        if not self._pending:
            return [self._kept[: self._filled]], self._sums, self._squares, self._length
        rows, sums, squares = self._new[: self._pending].copy(), self._sums.copy(), self._squares.copy()
        length = self._length + self._center(rows, len(rows), self.n - len(rows), sums, squares)
        return [self._kept[: self._filled], rows], sums, squares, length

    # ------------------------------------------------------------------ numbers out

    def _check_rows(self, least: int) -> None:
        if self.n < least:
            raise InputError(f"Sketch: got {self.n} rows so far, expected at least {least}; call update first")

    def certificate(self) -> tuple[FloatArray, float]:
        """Return lower bounds of the covariance's eigenvalues (ddof 1), decreasing, and what to add for upper ones."""
        self._check_rows(2)
        parts, _, _, length = self._settled()
        inner, error = wide.gram(parts) if sum(map(len, parts)) else (np.zeros((1, 1)), 0.0)
        values = np.linalg.eigvalsh(inner)[::-1][: self.width]
        # Storing the rows rounded each of their entries twice: |F| <= 2 u |X|, and X'F + F'X counts.
        largest = float(values[0]) + self._shrunk + self._rounding + error
        stored = 4 * wide.unit_roundoff(self.dtype) * (largest * length) ** 0.5
        rounding = self._rounding + error + stored + 8 * 2.0**-53 * len(values) * float(values[0])
        return np.maximum(values - rounding, 0) / (self.n - 1), (self._shrunk + 2 * rounding) / (self.n - 1)

    def eigenvalues(self) -> FloatArray:
        """Return lower bounds of the eigenvalues of the covariance (ddof 1), decreasing."""
        return self.certificate()[0]

    @property
    def delta(self) -> float:
        """How far the eigenvalues of the covariance can lie above `eigenvalues`, rounding included."""
        return self.certificate()[1]

    @property
    def mean(self) -> FloatArray:
        """Mean row (width,)."""
        self._check_rows(1)
        sums = self._sums
        if self._pending:
            sums = sums + self._new[: self._pending].sum(axis=0, dtype=np.float64)
        return np.asarray(to_host(self._shift + sums / self.n), dtype=np.float64)

    @property
    def variances(self) -> FloatArray:
        """Variance of each neuron (ddof 1), summed in float64 over all rows: no sketch."""
        self._check_rows(2)
        return np.asarray(to_host(self._settled()[2] / (self.n - 1)))

    @property
    def trace(self) -> float:
        """Trace of the covariance (ddof 1), of all rows: no sketch."""
        return float(self.variances.sum())

    def basis(self) -> AnyArray:
        """Return orthonormal rows (at most l, width) that span the sketch, in its type, largest first."""
        self._check_rows(2)
        parts = [part.copy() for part in self._settled()[0]]
        parts = _ordered(parts, self.directions)
        return np.concatenate(wide.orthonormalize(parts, wide.unit_roundoff(self.dtype)), axis=0)

    def take_basis(self) -> tuple[list[AnyArray], AnyArray]:
        """Return what `basis` does and memory of that size that is free now; the sketch is left without directions."""
        self._check_rows(2)
        self._settle()
        parts = _ordered([self._kept[: self._filled]], self.directions)
        spare = self._new
        self._kept = self._new = self._library.zeros((0, self.width), dtype=self.dtype)
        self._filled = 0
        return wide.orthonormalize(parts, wide.unit_roundoff(self.dtype)), spare

    def copy(self) -> Sketch:
        """Return an independent copy."""
        return self._on(self._library)

    def _on(self, library: Library) -> Sketch:
        """Return a copy whose arrays are of a library."""
        twin = object.__new__(Sketch)
        twin.__dict__.update(self.__dict__)
        twin._library = library
        for name in _ARRAYS:
            mine = getattr(self, name)
            setattr(twin, name, mine.copy() if library is self._library else brought(mine, library))
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return Sketch.from_state_dict, (self._on(np).state_dict(),)

    # ------------------------------------------------------------------ files

    def state_dict(self) -> dict[str, Any]:
        """Return everything as ``{'meta': plain values, 'tensors': name -> array}``; views of what is on the CPU."""
        config = {"width": self.width, "directions": self.directions, "dtype": str(self.dtype)}
        arrays = {
            "kept": self._kept[: self._filled],
            "new": self._new[: self._pending],
            "shift": self._shift,
            "sums": self._sums,
            "squares": self._squares,
        }
        tensors = {name: to_host(array) for name, array in arrays.items()}
        state = {name: getattr(self, name) for name in _SCALARS}
        return {"meta": {"format": FORMAT, "version": 1, "config": config, "state": state}, "tensors": tensors}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: str | None = None) -> Sketch:
        """Inverse of `state_dict`: goes on to the same bits, if on the same device; the CPU by default."""
        try:
            meta, tensors = state["meta"], state["tensors"]
            if meta["format"] != FORMAT or meta["version"] != 1:
                raise StateFileError(f"sketch: got format {meta['format']!r} {meta['version']}, expected {FORMAT!r} 1")
            sketch = cls(
                meta["config"]["width"], meta["config"]["directions"], np.dtype(meta["config"]["dtype"]), device
            )
            sketch.__dict__.update({name: meta["state"][name] for name in _SCALARS})
            library = sketch._library
            sketch._kept[: sketch._filled] = library.asarray(tensors["kept"])
            sketch._new[: sketch._pending] = library.asarray(tensors["new"])
            sketch._shift, sketch._sums, sketch._squares = (
                library.array(tensors[name]) for name in ("shift", "sums", "squares")
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, StateFileError):
                raise
            raise StateFileError(f"sketch: not a state of a sketch ({error}); restore it from a copy") from None
        return sketch

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, atomically; see `Moments.save`."""
        store.write_state(path, self.state_dict(), FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | None = None) -> Sketch:
        """Read a file written by `save`; see `Moments.load` for what is raised."""
        return cls.from_state_dict(store.read_state(path, FORMAT), device)

    def __repr__(self) -> str:
        return f"Sketch(n={self.n}, width={self.width}, directions={self.directions}, dtype={self.dtype})"


def _ordered(parts: list[AnyArray], count: int) -> list[AnyArray]:
    """Rotate rows to their principal directions, in place, and keep the leading `count`."""
    inner, _ = wide.gram(parts)
    _, vectors = np.linalg.eigh(inner)
    count = min(count, len(vectors))
    wide.combine_in_place(vectors[:, ::-1][:, :count].T, parts)
    return wide.first_rows(parts, count)
