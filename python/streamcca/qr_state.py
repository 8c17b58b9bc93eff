"""What `QRMoments` keep of their rows: a triangular factor, a shift, and rows that wait for their block to be full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamcca import store
from streamcca._backend import FloatArray
from streamcca.arrays import Library, brought, library_of, to_host
from streamcca.errors import StateFileError
from streamcca.qr_blocks import (
    Opened,
    block_depth,
    centered_block,
    fold,
    moved,
    rows_of,
    shift_of,
    unit_of,
    zero_matrix,
)

Buffers = tuple[FloatArray, FloatArray]


def buffers(width: int, library: Library = np, depth: int | None = None) -> Buffers:
    """Return room for the rows of a block, and for the roots of their weights."""
    depth = depth or block_depth(width, library is not np)
    return library.empty((depth, width)), library.empty(depth)


@dataclass(frozen=True, eq=False)
class Factor:
    """What a reader of `QRMoments` gets: the factor with all rows in it, not to be written to.

    Attributes
    ----------
    mean : array (p,)
        Mean rows of all views, side by side.
    centered : array (p, p)
        Upper triangular R with R'R = sum of w (x - mean)(x - mean)'.
    drift : array (p,)
        |mean - shift| sqrt(n) for each neuron: what the rows had beside their spread when they were rounded.
    n, rows
        Sum of the weights; number of rows.
    steps : float
        Number of roundings that matter: each step's error weighs by the share of the rows that it had seen.
    row_unit : float
        Unit roundoff of the finest rows.
    """

    mean: FloatArray
    centered: FloatArray
    drift: FloatArray
    n: float
    rows: int
    steps: float
    row_unit: float


@dataclass(frozen=True, eq=False)
class State:
    """Everything that rows leave behind, in arrays of NumPy or of CuPy, never written to once they are in here.

    The one exception are the rows of `pending` behind the first `held`, which nobody looks at: the next batch is put
    there, and becomes visible by a new state with a higher `held`.
    """

    pending: FloatArray  # (depth, p), as they came
    roots: FloatArray  # (depth,), of the weights
    held: int = 0
    factor: FloatArray | None = None  # (p + 1, p + 1) upper triangular: the column of ones first
    shift: FloatArray | None = None  # (p,)
    rows: int = 0
    skipped: int = 0
    weight: float = 0.0
    folded: float = 0.0  # weight of the rows that are in the factor
    chain: float = 0.0  # sum of `folded` over the steps of the factor
    row_unit: float = 1.0  # unit roundoff of the finest rows

    @classmethod
    def empty(cls, width: int, library: Library = np) -> State:
        """Return a state without rows."""
        return cls(*buffers(width, library))

    @property
    def library(self) -> Library:
        """Of the arrays."""
        return library_of(self.pending)

    @property
    def width(self) -> int:
        """Total width p of the views."""
        return int(self.pending.shape[1])

    def copy(self) -> State:
        """Return a state whose pending rows are its own; what is immutable is shared."""
        return replace(self, pending=self.pending.copy(), roots=self.roots.copy())

    def with_batch(
        self,
        arrays: list[Opened],
        weights: FloatArray | None,
        nonfinite: str,
        spare: Buffers | None,
        counts: tuple[int, int, float],
    ) -> tuple[State, Buffers | None]:
        """Return the state after a checked batch, and the buffers that it does not use.

        `counts` are rows, skipped rows and weight afterwards. This state stays as it is, so that a batch that ends in
        an exception (Ctrl-C, no memory) has left nothing.
        """
        pending, roots, held = self.pending, self.roots, self.held
        factor, shift, folded, chain = self.factor, self.shift, self.folded, self.chain
        for rows, root in rows_of(arrays, weights, nonfinite, len(roots)):
            taken = 0
            while taken < len(root):
                count = min(len(root) - taken, len(roots) - held)
                pending[held : held + count] = rows[taken : taken + count]
                roots[held : held + count] = root[taken : taken + count]
                held, taken = held + count, taken + count
                if held < len(roots):
                    continue
                shift = shift_of(pending, roots) if shift is None else shift
                factor = fold(factor, centered_block(pending, roots, shift), spoil=factor is not self.factor)
                folded += float((roots**2).sum())
                chain += folded
                held = 0
                if pending is self.pending:  # it must stay as it is until the whole batch is in
                    pending, roots = spare or buffers(self.width, self.library)
                    spare = (self.pending, self.roots)
        units = [unit_of(array) for array in arrays] if counts[0] > self.rows else []
        unit = min(self.row_unit, *units, 1.0)
        return State(pending, roots, held, factor, shift, *counts, folded, chain, unit), spare

    def flushed(self) -> tuple[FloatArray, FloatArray, float]:
        """Return factor, shift and chain with the pending rows in them; the state stays as it is."""
        pending, roots = self.pending[: self.held], self.roots[: self.held]
        shift = shift_of(pending, roots) if self.shift is None else self.shift
        if not self.held and self.factor is not None:
            return self.factor, shift, self.chain
        return fold(self.factor, centered_block(pending, roots, shift)), shift, self.chain + self.weight

    def read(self) -> Factor:
        """Return mean and factor of all rows, of which there must be some."""
        triangle, shift, chain = self.flushed()
        triangle, shift = to_host(triangle), to_host(shift)
        drift = triangle[0, 1:]
        arrays = (shift + drift / triangle[0, 0], triangle[1:, 1:], np.abs(drift))
        for array in arrays:
            array.setflags(write=False)
        return Factor(*arrays, n=self.weight, rows=self.rows, steps=chain / self.weight, row_unit=self.row_unit)

    def merged(self, other: State) -> State:
        """Return the state of the rows of both: two factors stacked, the lighter one moved to the other's shift."""
        rows, skipped = self.rows + other.rows, self.skipped + other.skipped
        other = other.on(self.library)
        if not (self.rows and other.rows):
            return replace(self if self.rows else other, rows=rows, skipped=skipped)
        heavy, light = (self, other) if self.weight >= other.weight else (other, self)
        factor, shift, chain = heavy.flushed()
        light_factor, light_shift, light_chain = light.flushed()
        weight = self.weight + other.weight
        return replace(
            State.empty(self.width, self.library),
            factor=fold(factor, moved(light_factor, light_shift - shift), triangular=True),
            shift=shift,
            rows=rows,
            skipped=skipped,
            weight=weight,
            folded=weight,
            chain=chain + light_chain + weight,
            row_unit=min(self.row_unit, other.row_unit),
        )

    def on(self, library: Library) -> State:
        """Return the state with arrays of a library; where its blocks have another depth what waits is folded in."""
        same_depth = len(self.roots) == block_depth(self.width, library is not np)
        if same_depth and library is self.library:
            return self
        empty = State.empty(self.width, library)
        held, factor, shift, folded, chain = self.held, self.factor, self.shift, self.folded, self.chain
        if same_depth:
            empty.pending[:held] = brought(self.pending[:held], library)
            empty.roots[:held] = brought(self.roots[:held], library)
        elif self.rows:
            factor, shift, chain = self.flushed()
            held, folded = 0, self.weight
        if factor is not None:
            moved_there = zero_matrix(factor.shape, library)
            moved_there[:] = brought(factor, library)
            factor = moved_there
        shift = None if shift is None else brought(shift, library)
        return replace(
            self,
            pending=empty.pending,
            roots=empty.roots,
            held=held,
            factor=factor,
            shift=shift,
            folded=folded,
            chain=chain,
        )

    # ------------------------------------------------------------------ to plain values and back

    def pack(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return ``{'meta': plain values, 'tensors': name -> array}``."""
        waiting = {"pending": self.pending[: self.held], "roots": self.roots[: self.held]}
        tensors = {name: to_host(array).copy() for name, array in waiting.items()}
        if self.factor is not None and self.shift is not None:
            upper = to_host(self.factor)[np.triu_indices(len(self.factor))]
            tensors |= {"shift": to_host(self.shift).copy(), "factor": upper}
        return {
            "meta": {
                "format": store.QR_FORMAT,
                "version": store.QR_FORMAT_VERSION,
                "made_by": store.made_by(),
                "config": config,
                "state": {
                    "rows": self.rows,
                    "skipped": self.skipped,
                    "weight": self.weight,
                    "folded": self.folded,
                    "chain": self.chain,
                    "row_unit": self.row_unit,
                    "depth": len(self.roots),
                },
            },
            "tensors": tensors,
        }

    @classmethod
    def unpack(cls, state: Mapping[str, Any], width: int) -> State:
        """Return the state that was packed, on the CPU, with blocks as deep as they were.

        Raises
        ------
        StateFileError
            The values do not fit together.
        """
        try:
            meta, tensors = state["meta"]["state"], state["tensors"]
            depth = block_depth(width, on_device=meta["depth"] == block_depth(width, on_device=True))
            return _unpacked(cls(*buffers(width, np, depth)), meta, tensors)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StateFileError(f"load_state_dict: the state is damaged ({error})") from None


def _unpacked(empty: State, meta: Mapping[str, Any], tensors: Mapping[str, Any]) -> State:
    arrays = {name: np.array(value, dtype=np.float64) for name, value in tensors.items()}
    size, depth = empty.width + 1, len(empty.roots)
    rows, skipped, held = int(meta["rows"]), int(meta["skipped"]), len(arrays["roots"])
    weight, folded, chain, row_unit = (float(meta[key]) for key in ("weight", "folded", "chain", "row_unit"))
    settled = "factor" in arrays
    shapes: dict[str, tuple[int, ...]] = {"pending": (held, empty.width), "roots": (held,)}
    if settled:
        shapes |= {"shift": (empty.width,), "factor": (size * (size + 1) // 2,)}
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes or meta["depth"] != depth or held >= depth:
        raise ValueError(f"arrays {found} for blocks of {meta['depth']} rows, expected {shapes} and {depth}")
    sums = np.array([weight, folded, chain])
    counted = skipped >= 0 and 0 < row_unit <= 1 and np.isfinite(sums).all() and (sums >= 0).all()
    if not counted or (rows > 0) != (weight > 0) or rows < held or settled != (rows > held):
        raise ValueError(f"{rows} rows of weight {weight} do not fit its arrays")
    if not (np.isfinite(arrays["roots"]).all() and (arrays["roots"] > 0).all()):
        raise ValueError("weights of pending rows that are none")
    factor = None
    if settled:
        factor = np.zeros((size, size), order="F")
        factor[np.triu_indices(size)] = arrays["factor"]
    empty.pending[:held], empty.roots[:held] = arrays["pending"], arrays["roots"]
    return replace(
        empty,
        held=held,
        factor=factor,
        shift=arrays.get("shift"),
        rows=rows,
        skipped=skipped,
        weight=weight,
        folded=folded,
        chain=chain,
        row_unit=row_unit,
    )


def configuration(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return views and options of a packed state.

    Raises
    ------
    StateFileError
        It is not one of `QRMoments`, or of a newer version.
    """
    try:
        meta = state["meta"]
        if meta["format"] != store.QR_FORMAT:
            raise StateFileError(f"state: got format {meta['format']!r}, expected {store.QR_FORMAT!r}")
        if meta["version"] != store.QR_FORMAT_VERSION:
            raise StateFileError(
                f"state: got format version {meta['version']}, expected {store.QR_FORMAT_VERSION}; use the streamcca "
                "that wrote it, or a newer one"
            )
        config = meta["config"]
        return {"views": [list(view) for view in config["views"]], "nonfinite": config["nonfinite"]}
    except (KeyError, TypeError) as error:
        raise StateFileError(f"state: not a state of QRMoments ({error!r} is missing or of another kind)") from None
