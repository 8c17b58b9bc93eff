"""Moments of each layer for itself, fed from the hooks while the forward still runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from streamcca._backend import Accumulator, state_bytes
from streamcca._memory import check_memory
from streamcca.errors import InputError, NonFiniteError
from streamcca.moments import Moments

if TYPE_CHECKING:
    from torch import Tensor


class LayerStreams:
    """Moments of every layer alone: rows are packed from a layer's output at once, and no copy of them is kept.

    A forward that fails is taken back: a layer's moments are marked before its first rows of the forward. Where a mark
    would be larger than the rows (few rows of a wide layer), or on a device, which would have to be waited for, a copy
    of the rows waits for the end of the forward instead. One forward at a time streams; what forwards of other threads
    bring meanwhile waits until it has ended, since a mark that is returned to would undo theirs as well.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._moments: dict[str, Moments] = {}
        self._counts: dict[str, int | None] = {}  # after the last complete forward; None: a device would be waited for
        self._options = {**options, "pairs": "self"}
        self._lock = threading.RLock()
        self._owner: int | None = None  # thread whose forward streams
        self._marked: set[str] = set()
        self._kept: dict[str, list[Tensor]] = {}  # copies of rows of this forward
        self._waiting: list[Mapping[str, Tensor]] = []  # forwards of other threads

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers so far."""
        return tuple(self._moments)

    @property
    def on_device(self) -> bool:
        """Whether there are moments on a device."""
        return any(moments._on_device for moments in self._moments.values())

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each layer after the last complete forward; waits for a device."""
        with self._lock:
            # On a device nothing is counted before a forward has ended.
            return {name: self._moments[name].rows if count is None else count for name, count in self._counts.items()}

    def begin(self) -> bool:
        """Claim the streams for this thread's forward; False if another one has them."""
        with self._lock:
            me = threading.get_ident()
            if self._owner == me:
                self.end(complete=False)  # an earlier forward was left without notice
            if self._owner is not None:
                return False
            self._owner = me
            return True

    def add(self, layer: str, rows: Tensor, copy: Callable[[], Tensor]) -> None:
        """Count rows (n, d), or (samples, n, d), of a layer; ``copy()`` gives them in memory of their own."""
        with self._lock:
            if self._owner != threading.get_ident():
                return  # closed meanwhile
            moments = self._moments_of(layer, int(rows.shape[-1]))
            moments._follow([rows])
            if layer in self._kept or (layer not in self._marked and _mark_is_dearer(rows, moments)):
                moments._check([rows])
                self._kept.setdefault(layer, []).append(copy())
                return
            if layer not in self._marked:
                moments._core.mark()
                self._marked.add(layer)
            moments.update({layer: rows})

    def end(self, complete: bool) -> None:
        """End the forward: keep what it brought, or take it back; then count what waited."""
        with self._lock:
            refusals: list[Exception] = []
            if complete:
                for layer, parts in self._kept.items():
                    for rows in parts:
                        refusals += self._update(layer, rows)
            else:
                for layer in self._marked:
                    self._moments[layer]._core.return_to_mark()
            self._settle()
            waiting, self._waiting = self._waiting, []
            for forward in waiting:
                refusals += self._count(forward)
            if refusals:
                raise refusals[0]

    def _update(self, layer: str, rows: Tensor) -> list[Exception]:
        """Count rows; return what a device says of earlier ones, which it left out: these are counted all the same."""
        try:
            self._moments[layer].update({layer: rows})
        except (InputError, NonFiniteError) as refusal:
            if not self._moments[layer]._on_device:
                raise
            self._moments[layer].update({layer: rows})
            return [refusal]
        return []

    def _settle(self) -> None:
        self._marked.clear()
        self._kept.clear()
        self._owner = None
        self._counts = {layer: None if m._on_device else m.rows for layer, m in self._moments.items()}

    def count(self, rows: Mapping[str, Tensor]) -> None:
        """Count the rows of a whole forward, of all layers or of none."""
        with self._lock:
            if not self._moments:
                self._check_memory({layer: int(x.shape[-1]) for layer, x in rows.items()})
            # Refused here, in the thread that brings them, even if they have to wait.
            for layer, x in rows.items():
                self._moments_of(layer, int(x.shape[-1]))._check([x])
            if self._owner is not None:
                self._waiting.append(rows)
                return
            refusals = self._count(rows)
            if refusals:
                raise refusals[0]

    def _count(self, rows: Mapping[str, Tensor]) -> list[Exception]:
        refusals = [refusal for layer, x in rows.items() for refusal in self._update(layer, x)]
        self._settle()
        return refusals

    def _check_memory(self, widths: Mapping[str, int]) -> None:
        # Twice: of a mark.
        check_memory(
            2 * sum(state_bytes([width], [(0, 0)]) for width in widths.values()),
            f"moments of {len(widths)} layers, and what is needed to take a failed forward back,",
            "watch fewer or narrower layers, or average over positions (rows='pool')",
        )

    def _moments_of(self, layer: str, width: int) -> Moments:
        if layer not in self._moments:
            moments = Moments({layer: width}, **self._options)
            moments._use_small_blocks()
            self._moments[layer] = moments
        return self._moments[layer]

    def copies(self) -> dict[str, Moments]:
        """Return a copy of each layer's moments, as they were after the last complete forward."""
        with self._lock:
            return {layer: self._copy(layer) for layer in self._moments}

    def _copy(self, layer: str) -> Moments:
        copy = self._moments[layer].copy()
        if layer in self._marked:
            copy._core = self._moments[layer]._core.copy_of_mark()
        return copy

    def joined(self) -> Moments:
        """Return a copy of all moments as one object with a view for each layer.

        Raises
        ------
        InputError
            The layers have different numbers of rows, or of product types.
        """
        copies = self.copies()
        if len(copies) == 1:
            return next(iter(copies.values()))
        counts = {name: moments.rows for name, moments in copies.items()}
        if len(set(counts.values())) > 1:
            low, high = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            raise InputError(
                f"moments: layer {low!r} has {counts[low]} rows and layer {high!r} {counts[high]}, expected as many "
                "for one Moments; take each layer's own from .layer_moments, or use rows='pool'"
            )
        kinds = {moments.precision for moments in copies.values()}
        if len(kinds) > 1:
            raise InputError(
                f"moments: layers have products in {' and '.join(sorted(kinds))}, expected one type for one Moments; "
                "take each layer's own from .layer_moments, or pass precision="
            )
        device = next(iter(copies.values()))._device  # where rows were, if nothing was said
        result = Moments({name: m.views[name] for name, m in copies.items()}, **self._options | {"device": device})
        result._core.restore(_joined_state([m._core for m in copies.values()]))
        return result


def _mark_is_dearer(rows: Tensor, moments: Moments) -> bool:
    # A mark copies half of a float64 matrix; of a device to the CPU, and waits.
    return moments._on_device or rows.numel() * rows.element_size() < 4 * rows.shape[-1] ** 2


def _joined_state(cores: list[Accumulator]) -> dict[str, Any]:
    """One native state out of several of the same rows: lists follow each other, numbers are those of all."""
    states = [core.save() for core in cores]
    if len({(len(state["roots"]), state["settled"], state["block_rows"]) for state in states}) > 1:
        # Kernels with blocks of another length for wide layers (the matrix unit): other rows wait for their block.
        for core in cores:
            core.finish()
        states = [core.save() for core in cores]
    joined = dict(states[0])
    for key in ("shift", "sums", "squares", "pending", "moments"):
        joined[key] = [array for state in states for array in state[key]]
    # Measured for each; one number must cover all.
    joined["rounding"] = max(state["rounding"] for state in states)
    joined["row_unit"] = min(state["row_unit"] for state in states)
    return joined
