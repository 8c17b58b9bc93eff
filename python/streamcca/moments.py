"""Streamed, mergeable first and second moments of several aligned views."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np

from streamcca import store
from streamcca._backend import Accumulator, FloatArray, Rounding, state_bytes
from streamcca._memory import check_memory
from streamcca.batches import check_name, check_names, checked_ids, checked_weights, first_rows
from streamcca.devices import SMALL_BLOCK_ROWS, CudaAccumulator, can_follow, checked_device
from streamcca.errors import InputError, ProcessError, StateFileError
from streamcca.views import (
    Pairs,
    check_option,
    checked_threads,
    checked_views,
    pair_list,
)

Precision = Literal["auto", "float32", "float64"]
NonFinite = Literal["raise", "skip", "propagate"]


class Moments:
    """Count, means and second central moments of views whose rows arrive in batches.

    Rows are samples. All views see the same rows in the same order; one pass gives the covariance
    of every wanted pair. Batches may have any size: the numbers do not depend, not by a bit, on how
    the rows were cut into batches, nor on the number of threads.

    Parameters
    ----------
    views : mapping of str to int
        Name and width (number of neurons) of each view.
    pairs : 'all', 'self' or iterable of (str, str)
        Which second moments are formed: every pair and each view with itself, only each view with
        itself, or exactly the pairs listed (list ``(a, a)`` too where its covariance is wanted).
    precision : 'auto', 'float32' or 'float64'
        Type in which products are formed; sums over blocks are always float64. 'auto' takes float64
        if the first batch has float64 rows, float32 otherwise. 'float64' is exact to rounding for
        every input type and costs about twice the time.
    nonfinite : 'raise', 'skip' or 'propagate'
        What to do with a row that holds NaN or infinity in any view: refuse the batch, leave the row
        out of all views (counted in `skipped`), or let it through.
    device : None, 'cpu', 'cuda' or 'cuda:1'
        Where the moments live; None follows the first batch. On a CUDA device `update` only launches work, and what it
        finds wrong with values is raised by the next call that reads (docs/cuda.md).
    threads : int, optional
        Threads for the kernels; by default what OpenMP would use.

    Raises
    ------
    InputError
        A width, a pair or an option makes no sense.
    DeviceError
        A CUDA device is asked for that is not there, or for which nothing was compiled.
    MemoryLimitError
        The moments would not fit into the available memory.

    Notes
    -----
    The state of a pair is n, the shifts c and e, the sums of x - c and y - e and the sum of
    (x - c)(y - e)', in float64, merged by the pairwise update of Chan, Golub & LeVeque (1983). An
    object may be updated from several threads; the order of their batches is then theirs.

    Examples
    --------
    >>> import numpy as np
    >>> m = Moments({"a": 2})
    >>> m.update(a=np.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> m.mean("a")
    array([2., 4.])
    >>> m.covariance("a", ddof=0)
    array([[1., 2.],
           [2., 4.]])
    """

    def __init__(
        self,
        views: Mapping[str, int],
        pairs: Pairs = "all",
        precision: Precision = "auto",
        nonfinite: NonFinite = "raise",
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._device = checked_device(device)
        check_option("precision", precision, ("auto", "float32", "float64"))
        check_option("nonfinite", nonfinite, ("raise", "skip", "propagate"))
        self._views = checked_views(views)
        self._pairs = pair_list(list(self._views), pairs)
        self._precision: Precision = precision
        self._nonfinite: NonFinite = nonfinite
        self._threads = checked_threads(threads)
        check_memory(
            state_bytes(list(self._views.values()), self._pair_indices()),
            f"moments of {len(self._views)} views and {len(self._pairs)} pairs",
            "keep fewer neurons (pool or subsample wide views), ask for fewer pairs=, watch fewer layers, or give the "
            "rows to svcca or compare with strategy='gram' (docs/which-route.md)",
        )
        self._ids_checksum: dict[str, int] = {}
        self._just_loaded = False
        self._block_rows = 0  # on a device; 0: as many as are best for one object
        self._core = self._new_core()

    def _pair_indices(self) -> list[tuple[int, int]]:
        index = {name: i for i, name in enumerate(self._views)}
        return [(index[a], index[b]) for a, b in self._pairs]

    def _new_core(self) -> Accumulator:
        names, widths, pairs = list(self._views), list(self._views.values()), self._pair_indices()
        if self._device is None or self._device == "cpu":
            return Accumulator(names, widths, pairs, self._precision, self._nonfinite, self._threads or 0)
        options = (self._device, self._threads or 0, self._block_rows)
        core = CudaAccumulator(names, widths, pairs, self._precision, self._nonfinite, *options)
        return cast(Accumulator, core)  # it has the same methods

    def _use_small_blocks(self) -> None:
        """Before the first row: let few rows wait on a device, where many objects have rows that wait."""
        self._block_rows = SMALL_BLOCK_ROWS
        self._core = self._new_core()

    def _follow(self, rows: list[Any]) -> None:
        """Move to the device of the first batch, or the first since a state was loaded, where it was left open."""
        loaded, self._just_loaded = self._just_loaded, False
        if self._device is not None or not (loaded or not self._core.started) or not can_follow(rows[0]):
            return
        self._device = "cuda"
        state = self._core.save() if loaded else None
        self._core = self._new_core()
        if state is not None:
            self._core.restore(state)

    # ------------------------------------------------------------------ rows in

    def update(
        self,
        batch: Mapping[str, Any] | None = None,
        /,
        *,
        weights: Any = None,
        ids: Any = None,
        valid_rows: int | None = None,
        **arrays: Any,
    ) -> None:
        """Add one batch of rows.

        Parameters
        ----------
        batch : mapping of str to array, optional
            One array (n, width) per view: NumPy, torch, or anything with ``__dlpack__`` in CPU memory;
            float16, bfloat16, float32 or float64; any strides. An array (samples, m, width) has a row for each
            (sample, m), read where it lies. Views may also be given as keywords.
        weights : array (n,), optional
            Weights >= 0, counting rows: a row of weight 2 is two rows, one of weight 0 is absent.
        ids : array (n,) of int, or mapping of str to such arrays, optional
            Row identities. Given per view they must agree row by row, which catches loaders that
            shuffle differently; a running checksum of each view is kept in `ids_checksum`.
        valid_rows : int, optional
            Only the first so many rows of the batch count, with their weights and ids: the rest is padding,
            or repeats samples that another process counts.

        Raises
        ------
        InputError, DTypeError, NonFiniteError, DeviceError
            The batch is refused as a whole and the state is unchanged.
        KeyboardInterrupt
            Ctrl-C is honored between blocks; the rows before it stay counted, and `rows` says how many.
        """
        if batch is not None and not isinstance(batch, Mapping):
            raise InputError(
                f"update: got {type(batch).__name__}, expected a mapping from view to rows, or rows by keyword: "
                f"update({next(iter(self._views))}=rows)"
            )
        given: Mapping[str, Any] = {**(batch or {}), **arrays}
        if given.keys() != self._views.keys():
            check_names(given, self._views)
        weights = checked_weights(weights)
        row_ids = checked_ids(ids, given, self._views)
        if valid_rows is not None:
            given, weights, row_ids = first_rows(valid_rows, given, weights, row_ids)
        rows = [given[name] for name in self._views]
        self._follow(rows)
        self._core.update(rows, weights)
        for name, values in row_ids.items():
            self._ids_checksum[name] = zlib.crc32(values.tobytes(), self._ids_checksum.get(name, 0))

    def _check(self, rows: list[Any]) -> None:
        """Refuse what `update` would refuse of a batch; on a device values are looked at when they are counted."""
        self._follow(rows)
        self._core.check(rows)

    @property
    def _on_device(self) -> bool:
        return isinstance(self._core, CudaAccumulator)

    def merge(self, other: Moments) -> None:
        """Add all rows of `other`, as if they had been rows of this object.

        Exact algebra, also between different shifts and devices; an object without rows is the identity.

        Raises
        ------
        InputError
            The views, their order or the pairs differ.
        """
        if not isinstance(other, Moments):
            raise InputError(f"merge: got {type(other).__name__}, expected Moments")
        own_rows, other_rows = self.rows, other.rows
        self._core.merge(other._cpu_core())
        if own_rows == 0:
            self._ids_checksum = dict(other._ids_checksum)
        elif other_rows:
            self._ids_checksum = {}  # the checksum of a merged order would mean nothing

    def _cpu_core(self) -> Accumulator:
        """Return the accumulator as the CPU has it: itself, or a copy of one on a device, not to be changed."""
        return self._core._host() if self._on_device else self._core  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Forget all rows; the configuration stays."""
        self._core.reset()
        self._ids_checksum = {}

    def copy(self) -> Moments:
        """Return an independent copy, pending rows included."""
        twin = object.__new__(Moments)
        twin.__dict__.update(self.__dict__)
        twin._views = dict(self._views)
        twin._ids_checksum = dict(self._ids_checksum)
        twin._core = self._core.copy()
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Moments:
        return self.copy()

    # ------------------------------------------------------------------ numbers out

    @property
    def n(self) -> int | float:
        """Number of rows; with weights, the sum of the weights (an int where it is whole)."""
        weight = self._core.weight
        return int(weight) if weight.is_integer() else weight

    @property
    def rows(self) -> int:
        """Number of rows of weight above zero."""
        return self._core.rows

    @property
    def skipped(self) -> int:
        """Number of rows left out because they held NaN or infinity (`nonfinite='skip'`)."""
        return self._core.skipped

    @property
    def views(self) -> dict[str, int]:
        """Name and width of each view."""
        return dict(self._views)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs whose second moments are formed."""
        return list(self._pairs)

    @property
    def precision(self) -> str:
        """Type in which products are formed: 'float32' or 'float64', 'auto' before the first batch."""
        return self._core.products if self._core.started else self._precision

    @property
    def ids_checksum(self) -> dict[str, int]:
        """CRC-32 of the row ids seen so far, per view; equal for equal ids in equal order."""
        return dict(self._ids_checksum)

    def mean(self, view: str) -> FloatArray:
        """Return the mean row (width,) of a view, float64."""
        check_name(view, self._views)
        self._check_rows(0)
        return self._core.mean(list(self._views).index(view))

    def covariance(self, view: str, other: str | None = None, ddof: float = 1) -> FloatArray:
        """Return the covariance of two views, or of one with itself.

        Parameters
        ----------
        view, other : str
            Rows and columns of the result; `other` defaults to `view`.
        ddof : float
            The divisor is n - ddof.

        Returns
        -------
        array (width of view, width of other), float64
        """
        return self._covariance(view, view if other is None else other, ddof)[0]

    def _covariance(self, view: str, other: str, ddof: float = 1) -> tuple[FloatArray, Rounding]:
        """Covariance and, for a view with itself, what describes its rounding."""
        self._check_rows(ddof)
        pair, turned = self._pair_of(view, other)
        values, rounding = self._core.covariance(pair, ddof)
        return (values.T if turned else values), rounding

    def _pair_of(self, view: str, other: str) -> tuple[int, bool]:
        """Return the number of a pair, and whether it has the views in the opposite order."""
        check_name(view, self._views)
        check_name(other, self._views)
        for turned, pair in enumerate(((view, other), (other, view))):
            if pair in self._pairs:
                return self._pairs.index(pair), bool(turned)
        raise InputError(
            f"the covariance of {view!r} and {other!r} was not accumulated; construct Moments with "
            f"pairs='all' or with ({view!r}, {other!r}) among the pairs"
        )

    def _check_rows(self, ddof: float) -> None:
        if isinstance(ddof, bool) or not isinstance(ddof, int | float | np.number) or not np.isfinite(ddof):
            raise InputError(f"ddof: got {ddof!r}, expected a number, usually 0 or 1")
        if self.rows == 0:
            raise InputError("the moments have seen no rows yet; call update first")
        if self.n <= ddof:
            raise InputError(f"n = {self.n} rows leave nothing to divide by with ddof = {ddof}; add rows")

    # ------------------------------------------------------------------ files

    def state_dict(self) -> dict[str, Any]:
        """Return everything as ``{'meta': plain values, 'tensors': name -> array}``.

        Pending rows are included: an object restored from it goes on to the same bits.
        """
        return store.pack_state(
            self._core.save(),
            {
                # A list, since the arrays are numbered in this order.
                "views": [[name, width] for name, width in self._views.items()],
                "pairs": [list(pair) for pair in self._pairs],
                "precision": self._precision,
                "nonfinite": self._nonfinite,
                "ids_checksum": dict(self._ids_checksum),
            },
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the rows of this object by those of a `state_dict`.

        Raises
        ------
        InputError
            The state belongs to other views, pairs or precision; this object is unchanged.
        """
        core_state, config = store.unpack_state(state)
        mine = {
            "views": [[name, width] for name, width in self._views.items()],
            "pairs": [list(pair) for pair in self._pairs],
            "precision": self._precision,
        }
        for key, value in mine.items():
            if config[key] != value:
                raise InputError(
                    f"load_state_dict: the state has {key} {config[key]!r}, expected {value!r}; construct "
                    "Moments alike, or use Moments.load"
                )
        try:
            self._core.restore(core_state)
        except ProcessError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StateFileError(f"load_state_dict: the state is damaged ({error})") from None
        self._ids_checksum = {str(k): int(v) for k, v in config["ids_checksum"].items()}
        self._just_loaded = True

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, atomically: the file is complete, or as it was before.

        The file is safetensors with a checksum for every array; nothing in it is executed on load.

        Raises
        ------
        StorageError
            The file cannot be written (no space, no permission); an earlier file is untouched.
        """
        store.write_state(path, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str], threads: int | None = None, device: str | None = None) -> Moments:
        """Read a file written by `save`, on whatever device; `device` is where these moments will live.

        Raises
        ------
        MissingFileError
            There is no such file.
        StateFileError
            The file is damaged, truncated, foreign, or of a newer version.
        """
        return cls._from_state(store.read_state(path), threads, device)

    @classmethod
    def _from_state(cls, state: Mapping[str, Any], threads: int | None = None, device: str | None = None) -> Moments:
        _, config = store.unpack_state(state)
        moments = cls(
            dict(config["views"]),
            [(a, b) for a, b in config["pairs"]],
            precision=config["precision"],
            nonfinite=config["nonfinite"],
            device=device,
            threads=threads,
        )
        moments.load_state_dict(state)
        return moments

    def __reduce__(self) -> tuple[Any, ...]:
        return (Moments._from_state, (self.state_dict(), self._threads))

    def __repr__(self) -> str:
        views = ", ".join(f"{name!r}: {width}" for name, width in self._views.items())
        return f"Moments(n={self.n}, views={{{views}}}, pairs={len(self._pairs)}, precision={self.precision!r})"
