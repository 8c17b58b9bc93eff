"""The triangular factor of joint, centered rows: what a QR factorization of all rows at once would leave of them.

A covariance squares the rows, and with them their condition; its factor does not. Where moments lose u * kappa^2, this
loses u * kappa.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamcca import store
from streamcca._backend import Accumulator, FloatArray
from streamcca._memory import check_memory
from streamcca.arrays import Library, check_device_memory, current_device, library_for
from streamcca.batches import check_name, check_names, checked_weights, first_rows
from streamcca.devices import CudaAccumulator
from streamcca.errors import InputError
from streamcca.moments import NonFinite
from streamcca.qr_blocks import opened, qr_cost
from streamcca.qr_state import Buffers, Factor, State, configuration
from streamcca.views import check_option, checked_views


class QRMoments:
    """Means and the triangular factor of the joint, centered rows of views that arrive in batches.

    The twin of `Moments` for plain CCA and the nuclear rule on ill-conditioned views: what is kept is R of a QR
    factorization of all rows, not R'R, so that errors grow with the condition of a view instead of its square. It costs
    three to eight times the time of float64 moments (2 x 1024 to 2 x 32 neurons, one thread) and holds
    (p + 1) x (p + 1) float64 numbers for a total width of p.
    Everything is float64, whatever the type of the rows. How the rows were cut into batches does not change a bit; the
    number of threads of SciPy's BLAS may.

    Parameters
    ----------
    views : mapping of str to int
        Name and width (number of neurons) of each view.
    nonfinite : 'raise', 'skip' or 'propagate'
        As in `Moments`.
    device : None, 'cpu' or 'cuda'
        Where it lives: by default where the first rows are, if CuPy is there for a CUDA device (extra ``cuda``).
        Batches are waited for there.

    Raises
    ------
    DeviceError
        A device is asked for, and there is no CuPy, or no kernels.
    InputError
        A width or an option makes no sense.
    MemoryLimitError
        The factor would not fit into the available memory.

    Notes
    -----
    Rows are gathered to blocks of a fixed depth. From each a shift is taken, chosen once from the first block, and a
    column of ones is put before it; then R becomes the factor of [R; block] by Householder reflections that spare the
    triangle: LAPACK's dtpqrt, the sequential TSQR of Demmel, Grigori, Hoemmen & Langou (2012), "Communication-optimal
    parallel and sequential QR and LU factorizations", SIAM J. Sci. Comput. 34. The column of ones takes the means out
    of all others by a reflection, not by subtracting squares: its row of R holds the means, and what is below is the
    factor of the centered rows. Merging stacks two factors.

    Examples
    --------
    >>> import numpy as np
    >>> m = QRMoments({"a": 2})
    >>> m.update(a=np.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> m.mean("a")
    array([2., 4.])
    >>> np.round(m.covariance("a", ddof=0), 12)
    array([[1., 2.],
           [2., 4.]])
    """

    def __init__(self, views: Mapping[str, int], nonfinite: NonFinite = "raise", device: str | None = None) -> None:
        check_option("nonfinite", nonfinite, ("raise", "skip", "propagate"))
        self._views = checked_views(views)
        self._nonfinite: NonFinite = nonfinite
        check_memory(
            qr_cost(list(self._views.values()))[0],
            f"the triangular factor of {len(self._views)} views, {sum(self._views.values())} neurons in all,",
            "keep fewer neurons (pool or subsample wide views), compare fewer layers at once, or use Moments",
        )
        self._lock = threading.RLock()
        self._device = device
        self._start(library_for(None, device or "cpu"))
        self._spare: Buffers | None = None
        self._just_loaded = False
        self._seen: tuple[State, Factor] | None = None

    def _start(self, library: Library) -> None:
        self._library = library
        # It forms no products; what it does is to look at every batch as Moments would, and to count its rows.
        kind: Any = Accumulator if library is np else CudaAccumulator
        names, widths = list(self._views), list(self._views.values())
        options = {} if library is np else {"device": current_device(library)}
        if library is not np:
            need = qr_cost(widths, on_device=True)[0]
            check_device_memory(need, library, "the triangular factor", "keep fewer neurons")
        self._doorkeeper = kind(names, widths, [], "float64", self._nonfinite, threads=1, **options)
        self._state = State.empty(sum(widths), library)

    def _follow(self, rows: Any) -> Library:
        """Move to the device of the first batch, or the first since a state was loaded, where it was left open."""
        loaded, self._just_loaded = self._just_loaded, False
        fresh = not self._state.rows and not self._state.skipped
        library = library_for(rows) if self._device is None and (loaded or fresh) else self._library
        if library is not self._library or loaded:
            state = self._state.on(library)
            self._start(library)
            self._state, self._spare = state, None
            self._brief_doorkeeper()
        return library

    # ------------------------------------------------------------------ rows in

    def update(
        self,
        batch: Mapping[str, Any] | None = None,
        /,
        *,
        weights: Any = None,
        valid_rows: int | None = None,
        **arrays: Any,
    ) -> None:
        """Add one batch of rows.

        Parameters
        ----------
        batch : mapping of str to array, optional
            One array (n, width) or (samples, m, width) per view, as in `Moments.update`; also as keywords.
        weights : array (n,), optional
            Weights >= 0, counting rows: a row of weight 2 is two rows, one of weight 0 is absent.
        valid_rows : int, optional
            Only the first so many rows of the batch count, with their weights.

        Raises
        ------
        InputError, DTypeError, NonFiniteError, DeviceError
            The batch is refused as a whole and the state is unchanged.
        KeyboardInterrupt
            After Ctrl-C the state is what it was before the batch.
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
        if valid_rows is not None:
            given, weights, _ = first_rows(valid_rows, given, weights, {})
        ordered = [given[name] for name in self._views]
        with self._lock:
            library = self._follow(ordered[0])
            try:
                self._doorkeeper.update(ordered, weights)
                core = self._doorkeeper
                state, spare = self._state.with_batch(
                    [opened(array, library) for array in ordered],
                    weights,
                    self._nonfinite,
                    self._spare,
                    (core.rows, core.skipped, core.weight),
                )
            except BaseException:
                self._brief_doorkeeper()
                raise
            self._state, self._spare = state, spare

    def _brief_doorkeeper(self) -> None:
        """Tell the doorkeeper the rows of the state, after it was told of others."""
        state = self._state
        self._doorkeeper.reset()
        if not state.rows and not state.skipped:
            return
        zeros = [np.zeros(width) for width in self._views.values()]
        self._doorkeeper.restore(
            {
                **{"products": "float64", "started": True, "settled": True, "block_rows": 0, "block_weight": 0.0},
                **{"rows": state.rows, "skipped": state.skipped, "weight": state.weight, "rounding": 0.0},
                **{"row_unit": state.row_unit, "roots": np.empty(0), "moments": []},
                **{"shift": zeros, "sums": zeros, "squares": zeros, "pending": [np.empty(0) for _ in zeros]},
            }
        )

    def merge(self, other: QRMoments) -> None:
        """Add all rows of `other`, as if they had been rows of this object.

        Both factors are stacked, the lighter one moved to the other's shift; an object without rows is the identity.

        Raises
        ------
        InputError
            The views or their order differ.
        """
        if not isinstance(other, QRMoments):
            raise InputError(f"merge: got {type(other).__name__}, expected QRMoments")
        if list(other._views.items()) != list(self._views.items()):
            raise InputError(
                f"merge: the other side has views {other._views}, expected {self._views}; merge like with like"
            )
        theirs = other._snapshot()
        with self._lock:
            if self._device is None and not self._state.rows and not self._state.skipped:
                self._start(theirs.library)
            self._state = self._state.merged(theirs)
            self._spare = None
            self._brief_doorkeeper()

    def reset(self) -> None:
        """Forget all rows; the configuration stays."""
        with self._lock:
            self._state = State.empty(self._state.width, self._library)
            self._spare = self._seen = None
            self._doorkeeper.reset()

    def copy(self) -> QRMoments:
        """Return an independent copy, pending rows included."""
        twin = type(self)(self._views, self._nonfinite)
        twin._device = self._device
        twin._start(self._library)
        twin._state = self._snapshot()
        twin._brief_doorkeeper()
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> QRMoments:
        return self.copy()

    def _snapshot(self) -> State:
        with self._lock:
            return self._state.copy()

    # ------------------------------------------------------------------ numbers out

    @property
    def n(self) -> int | float:
        """Number of rows; with weights, the sum of the weights (an int where it is whole)."""
        weight = self._state.weight
        return int(weight) if weight.is_integer() else weight

    @property
    def rows(self) -> int:
        """Number of rows of weight above zero."""
        return self._state.rows

    @property
    def skipped(self) -> int:
        """Number of rows left out because they held NaN or infinity (`nonfinite='skip'`)."""
        return self._state.skipped

    @property
    def views(self) -> dict[str, int]:
        """Name and width of each view."""
        return dict(self._views)

    def columns(self, view: str) -> slice:
        """Where the neurons of a view lie among those of all views."""
        check_name(view, self._views)
        names = list(self._views)
        first = sum(self._views[name] for name in names[: names.index(view)])
        return slice(first, first + self._views[view])

    def factor(self) -> Factor:
        """Return the factor with all rows in it; reading changes nothing that later rows will produce.

        Raises
        ------
        InputError
            There are no rows yet.
        """
        with self._lock:
            state = self._state
            if not state.rows:
                raise InputError("the moments have seen no rows yet; call update first")
            if self._seen is None or self._seen[0] is not state:
                self._seen = (state, state.read())
            return self._seen[1]

    def _check_ddof(self, ddof: float) -> None:
        """Refuse to divide by n - ddof where that is nothing, or less."""
        if isinstance(ddof, bool) or not isinstance(ddof, int | float | np.number) or not np.isfinite(ddof):
            raise InputError(f"ddof: got {ddof!r}, expected a number, usually 0 or 1")
        if self.n <= ddof:
            raise InputError(f"n = {self.n} rows leave nothing to divide by with ddof = {ddof}; add rows")

    def mean(self, view: str) -> FloatArray:
        """Return the mean row (width,) of a view, float64."""
        return self.factor().mean[self.columns(view)].copy()

    def covariance(self, view: str, other: str | None = None, ddof: float = 1) -> FloatArray:
        """Return the covariance of two views, or of one with itself, as R'R / (n - ddof).

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
        x, y = self.columns(view), self.columns(view if other is None else other)
        factor = self.factor()
        self._check_ddof(ddof)
        depth = min(x.stop, y.stop)  # the triangle is zero below
        result: FloatArray = factor.centered[:depth, x].T @ factor.centered[:depth, y] / (factor.n - ddof)
        return result

    # ------------------------------------------------------------------ files

    def state_dict(self) -> dict[str, Any]:
        """Return everything as ``{'meta': plain values, 'tensors': name -> array}``.

        Pending rows are included: an object restored from it goes on to the same bits.
        """
        return self._snapshot().pack({"views": self._view_list(), "nonfinite": self._nonfinite})

    def _view_list(self) -> list[list[Any]]:
        return [[name, width] for name, width in self._views.items()]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the rows of this object by those of a `state_dict`.

        Raises
        ------
        InputError
            The state belongs to other views; this object is unchanged.
        StateFileError
            The state is damaged, or of a newer version.
        """
        views = configuration(state)["views"]
        if views != self._view_list():
            raise InputError(
                f"load_state_dict: the state has views {views!r}, expected {self._view_list()!r}; construct QRMoments "
                "alike, or use QRMoments.load"
            )
        restored = State.unpack(state, self._state.width)
        with self._lock:
            if self._device is None:
                self._start(np)  # until the next rows say where it goes on
            else:
                restored = restored.on(self._library)
            self._state, self._spare, self._just_loaded = restored, None, True
            self._brief_doorkeeper()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, atomically: the file is complete, or as it was before.

        Raises
        ------
        StorageError
            The file cannot be written (no space, no permission); an earlier file is untouched.
        """
        store.write_state(path, self.state_dict(), store.QR_FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | None = None) -> QRMoments:
        """Read a file written by `save`, on whatever device; these will live on `device`, or follow their rows.

        Raises
        ------
        MissingFileError
            There is no such file.
        StateFileError
            The file is damaged, truncated, foreign, or of a newer version.
        """
        return cls._from_state(store.read_state(path, store.QR_FORMAT), device)

    @classmethod
    def _from_state(cls, state: Mapping[str, Any], device: str | None = None) -> QRMoments:
        config = configuration(state)
        moments = cls(dict(config["views"]), config["nonfinite"], device)
        moments.load_state_dict(state)
        return moments

    def __reduce__(self) -> tuple[Any, ...]:
        return (QRMoments._from_state, (self.state_dict(),))

    def __repr__(self) -> str:
        views = ", ".join(f"{name!r}: {width}" for name, width in self._views.items())
        return f"QRMoments(n={self.n}, views={{{views}}})"
