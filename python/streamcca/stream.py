"""Moments of each layer for itself, fed from the hooks while the forward still runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError
from streamcca.moments import Moments

if TYPE_CHECKING:
    from torch import Tensor


class LayerStreams:
    """Moments of every layer alone: rows are packed from a layer's output at once, and no copy of them is kept.

    A forward that fails is taken back: a layer's moments are marked before its first rows of the forward. One forward
    at a time streams; what forwards of other threads bring meanwhile waits until it has ended, since a mark that is
    returned to would undo theirs as well.

    Attributes
    ----------
    moments : dict of str to Moments
        By layer; each has one view, of the layer's name.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.moments: dict[str, Moments] = {}
        self._options = {**options, "pairs": "self"}
        self._lock = threading.RLock()
        self._owner: int | None = None  # thread whose forward streams
        self._marked: set[str] = set()
        self._waiting: list[Mapping[str, Tensor]] = []

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

    def add(self, layer: str, rows: Any) -> None:
        """Count rows (n, d), or (samples, n, d), of a layer."""
        with self._lock:
            moments = self._moments_of(layer, int(rows.shape[-1]))
            if layer not in self._marked:
                moments._core.mark()
                self._marked.add(layer)
        moments.update({layer: rows})

    def end(self, complete: bool) -> None:
        """End the forward: keep what it brought, or take it back."""
        with self._lock:
            if not complete:
                for layer in self._marked:
                    self.moments[layer]._core.return_to_mark()
            self._marked.clear()
            self._owner = None
            waiting, self._waiting = self._waiting, []
            for rows in waiting:
                self.count(rows)

    def count(self, rows: Mapping[str, Tensor]) -> None:
        """Count the rows of a whole forward, of all layers or of none."""
        with self._lock:
            if self._owner is not None:
                self._waiting.append(rows)
                return
            self._owner = threading.get_ident()
            try:
                for layer, x in rows.items():
                    self.add(layer, x)
            except BaseException:
                self.end(complete=False)
                raise
            self.end(complete=True)

    def _moments_of(self, layer: str, width: int) -> Moments:
        if layer not in self.moments:
            self.moments[layer] = Moments({layer: width}, **self._options)
        return self.moments[layer]

    def joined(self) -> Moments:
        """Return a copy of all moments as one object with a view for each layer.

        Raises
        ------
        InputError
            The layers have different numbers of rows, or of product types.
        """
        counts = {name: moments.rows for name, moments in self.moments.items()}
        if len(set(counts.values())) > 1:
            low, high = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            raise InputError(
                f"moments: layer {low!r} has {counts[low]} rows and layer {high!r} {counts[high]}, expected as many "
                "for one Moments; take each layer's own from .layer_moments, or use rows='pool'"
            )
        kinds = {moments.precision for moments in self.moments.values()}
        if len(kinds) > 1:
            raise InputError(
                f"moments: layers have products in {' and '.join(sorted(kinds))}, expected one type for one Moments; "
                "take each layer's own from .layer_moments, or pass precision="
            )
        result = Moments({name: m.views[name] for name, m in self.moments.items()}, **self._options)
        result._core.restore(_joined_state([m._core.save() for m in self.moments.values()]))
        return result


def _joined_state(states: list[dict[str, Any]]) -> dict[str, Any]:
    """One native state out of several of the same rows: lists follow each other, numbers are those of all."""
    joined = dict(states[0])
    for key in ("shift", "sums", "squares", "pending", "moments"):
        joined[key] = [array for state in states for array in state[key]]
    # Measured for each; one number must cover all.
    joined["rounding"] = max(state["rounding"] for state in states)
    joined["row_unit"] = min(state["row_unit"] for state in states)
    return joined
