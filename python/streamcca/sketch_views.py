"""What the passes of a sketch do with each view, and with each pair in the end: for two views, or for all layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca import wide
from streamcca._backend import FloatArray
from streamcca.arrays import AnyArray, Library, device_name, to_host
from streamcca.errors import AccuracyError, InputError, StreamCCAWarning
from streamcca.moments import Moments
from streamcca.pairing import REFUSE_ABOVE, Measure, correlate
from streamcca.range_finder import block_rows
from streamcca.results import CCAResult
from streamcca.ritz import PROBES, Noise, Ritz, moved_by_others, noise_of, ritz_of, share_choice, truncated
from streamcca.sketch import Sketch
from streamcca.sketch_result import REMEDY, finished
from streamcca.sketch_state import TooFewError, View
from streamcca.subspace import Rule, Truncated


@dataclass(frozen=True)
class CutView:
    """A view after the replay: its Ritz vectors, which of them are kept, and how certain that is.

    Attributes
    ----------
    ranks : (int, int, int)
        The rank chosen, and the lowest and the highest that could be.
    """

    view: View
    side: Ritz
    ranks: tuple[int, int, int]
    noise: Noise
    cut: Truncated
    mean: FloatArray


class Blocks:
    """Centered rows of some views, a fixed number at a time, however they come: bits may depend on that number.

    Attributes
    ----------
    rows : int
        Rows that were handed out, and those before `first`.
    pending : int
        Rows that wait for their block to be full.
    """

    def __init__(self, views: Sequence[View], dtype: Any, first: int = 0, library: Library = np) -> None:
        self._views, self._dtype, self._library = list(views), np.dtype(dtype), library
        self._count = block_rows(max(view.width for view in views), self._dtype.itemsize)
        self._blocks: list[AnyArray] = [library.empty((self._count, view.width), dtype=self._dtype) for view in views]
        self.rows, self.pending = first, 0

    def add(self, batch: Sequence[AnyArray]) -> Iterator[list[AnyArray]]:
        """Take a batch of each view, and hand out the blocks that it fills, each valid until the next."""
        done = 0
        while done < len(batch[0]):
            some = min(self._count - self.pending, len(batch[0]) - done)
            for view, block, rows in zip(self._views, self._blocks, batch, strict=True):
                assert view.center is not None  # noqa: S101 - since the first pass
                to = block[self.pending : self.pending + some]
                np.subtract(rows[done : done + some], view.center, out=to)
            self.pending, done = self.pending + some, done + some
            if self.pending == self._count:
                yield self._handed_out()

    def rest(self) -> Iterator[list[AnyArray]]:
        """Hand out what waits, after the last batch."""
        if self.pending:
            yield self._handed_out()

    def waiting(self) -> list[AnyArray]:
        """Return the rows of each view that wait, centered, on the CPU; views of memory that changes."""
        return [to_host(block[: self.pending]) for block in self._blocks]

    def wait(self, waiting: Sequence[AnyArray]) -> None:
        """Take what `waiting` returned, before any batch: blocks are then those of a pass that was not broken off."""
        self.pending = len(waiting[0])
        for block, rows in zip(self._blocks, waiting, strict=True):
            block[: self.pending] = self._library.asarray(rows)

    def _handed_out(self) -> list[AnyArray]:
        count, self.pending = self.pending, 0
        self.rows += count
        return [block[:count] for block in self._blocks]


def take_over(view: View, start: Any, dtype: Any, rule: Rule, value: float) -> None:
    """Give a view what its sketch or range finder, which is left without directions, has found in the first pass.

    Raises
    ------
    TooFewError
        Even the upper bounds of the leading eigenvalues do not reach the share.
    """
    view.trace = start.trace
    view.center = view.library.asarray(start.mean.astype(dtype))
    if isinstance(start, Sketch):
        start.finish()
        values, view.cap = start.certificate()
        _check_reach(view, values, start.directions, rule, value)
    view.parts, view.spare = start.take_basis()


def _check_reach(view: View, values: FloatArray, count: int, rule: Rule, value: float) -> None:
    if rule.name != "variance" or count >= view.width or len(values) < count:
        return
    most = values + view.cap
    if most.sum() < value * view.trace:
        lacking = (value * view.trace - float(most.sum())) / float(most[-1])
        raise TooFewError(
            view.name,
            count,
            float(values.sum()) / view.trace,
            min(view.width, max(2 * count, int(1.2 * (count + lacking)) + 1)),
        )


def empty_sums(view: View, dtype: Any, fresh: bool = True) -> AnyArray:
    """Return where a power step adds up, in the view's spare memory where it has any; as it is if not `fresh`."""
    count = sum(map(len, view.parts))
    if view.spare is None or len(view.spare) < count:
        view.spare = view.library.zeros((count, view.width), dtype=dtype)
    elif fresh:
        view.spare[:] = 0
    return view.spare[:count]


def end_power_step(view: View, total: AnyArray, last: bool) -> None:
    """Make the covariance times the basis the basis, after the last step that and the basis before together."""
    unit = wide.unit_roundoff(total.dtype)
    if not last:
        before, view.parts = view.parts, wide.orthonormalize([total], unit)
        view.spare, view.cap = before[0], float("inf")
        return
    # 16 u: what is left of a row beside the others is noise below that.
    new = wide.deflate(total, view.parts, 16 * unit)
    new = wide.orthonormalize([new], 16 * unit)[0] if len(new) else new
    view.parts, view.spare = wide.orthonormalize([*view.parts, new], unit), None


def ready_for_replay(view: View, dtype: Any) -> None:
    """Give a view its probes: random signs (PROBES, width), less what the basis holds of them.

    Were that left in, digits would cancel later.
    """
    view.spare = None
    view.probes = view.library.empty((PROBES, view.width), dtype=dtype)
    for i, tile in enumerate(wide.tiles(view.width)):
        signs = np.random.default_rng([view.width, i]).integers(0, 2, view.probes[:, tile].shape)
        view.probes[:, tile] = view.library.asarray(2.0 * signs - 1)
    inside = wide.project(view.probes, view.parts)
    first = 0
    for part in view.parts:
        # subtracts inside[:, part]' combinations
        wide.add_outer(view.probes, -inside[:, first : first + len(part)].T, part)
        first += len(part)


def coordinates(view: View, rows: AnyArray) -> FloatArray:
    """Return centered rows as coordinates in the basis, and probes; where the rows are."""
    return wide.project(rows, _basis_and_probes(view))


def coordinate_moments(views: Sequence[View], pairs: Any = "all", threads: int | None = None) -> Moments:
    """Return moments of what `coordinates` gives of views, where their bases are."""
    sizes = {view.name: size_of(view) for view in views}
    return Moments(sizes, pairs, "float64", device=device_name(views[0].parts[0]), threads=threads)


def size_of(view: View) -> int:
    """Return how many coordinates and probes of a row there are."""
    return sum(map(len, _basis_and_probes(view)))


def _basis_and_probes(view: View) -> list[AnyArray]:
    assert view.probes is not None  # noqa: S101 - ready_for_replay
    return [*view.parts, view.probes]


def cut(
    view: View, moments: Moments, rule: Rule, value: float, n: float, dtype: Any, directions: int, restarts: bool
) -> CutView:
    """Choose what is kept of a view within its basis.

    Raises
    ------
    TooFewError
        The share is not reached, or, where the job can start again (`restarts`), not clearly.
    InputError
        The basis has fewer directions than the rank.
    """
    covariance, rounding = moments._covariance(view.name, view.name)
    unit = wide.unit_roundoff(dtype)
    inner, _ = wide.gram(_basis_and_probes(view))
    side = ritz_of(covariance, inner, sum(map(len, view.parts)), view.trace, view.cap)
    ranks = _choose(view, side, rule, value, n, unit, directions, restarts)
    noise = noise_of(side, rounding, unit, n)
    name = f"{np.dtype(dtype)} (sketch)"
    kept = truncated(view.name, side, rule, ranks[0], noise, moments, name)
    return CutView(view, side, ranks, noise, kept, _mean(view, side, moments))


def _mean(view: View, side: Ritz, moments: Moments) -> FloatArray:
    """Mean row: what was subtracted has the rows' type, and what is left of it along the basis was counted."""
    assert view.center is not None  # noqa: S101 - since the first pass
    left = side.to_ritz @ (side.to_ritz.T @ moments.mean(view.name)[: len(side.values)])
    return to_host(view.center).astype(np.float64) + wide.expand(view.parts, left[:, None])[:, 0]


def _choose(
    view: View, side: Ritz, rule: Rule, value: float, n: float, unit: float, count: int, restarts: bool
) -> tuple[int, int, int]:
    size = len(side.values)
    if rule.name == "rank":
        if value > size:
            raise InputError(
                f"view {view.name!r}: rank {int(value)} is more than the {size} directions that the rows have in "
                "the sketch; keep fewer, or take more directions="
            )
        return int(value), int(value), int(value)
    chosen, lowest, highest = share_choice(side, value, unit, n)
    inside = float(side.values.sum()) / view.trace
    # A cut at the very end has no direction beyond it that would say how clear it is. With as many directions as
    # rows or neurons allow there is nothing to add, and what lacks is rounding.
    unclear = chosen < 0 or highest < 0 or (chosen > 0.9 * size and inside < 1 - 1e-6)
    if unclear and count < min(view.width, n - 1) and (restarts or chosen < 0):
        raise TooFewError(view.name, count, inside, min(view.width, 2 * count))
    return chosen if chosen > 0 else size, lowest if lowest > 0 else size, highest if highest > 0 else size


def correlate_cuts(
    x: CutView,
    y: CutView,
    cross: FloatArray,
    rule: Rule,
    *,
    measure: Measure,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    neurons: bool = True,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """CCA of two views in their Ritz coordinates, with a bound that counts what the bases lack.

    Parameters
    ----------
    x, y : CutView
        Both views.
    cross : array (Lx + r, Ly + r)
        Covariance of their coordinates and probes.
    neurons : bool
        Whether the result holds weights of neurons, (width, k) in float64 for each view.

    Raises
    ------
    AccuracyError
        The bound of the mean is above 0.01, unless `allow_inaccurate`.
    """
    inside = x.side.to_ritz[:, : x.ranks[0]].T @ cross[: len(x.side.values), : len(y.side.values)]
    kept = x.cut.native.projection.T @ (inside @ y.side.to_ritz[:, : y.ranks[0]]) @ y.cut.native.projection
    how: Mapping[str, Any] = {
        "measure": measure,
        "allow_underdetermined": allow_underdetermined,
        "allow_inaccurate": allow_inaccurate,
    }
    result, notes = correlate(x.cut, y.cut, kept, kept=True, **how)
    found = (result.x_weights, result.y_weights)
    outside, singles = moved_by_others(
        x.side, y.side, cross, *found, (x.noise, y.noise), result.correlations, result.shares
    )
    if min(1.0, result.error_bound + outside) > REFUSE_ABOVE and not allow_inaccurate:
        counts = f"{len(x.side.values)} and {len(y.side.values)}"
        raise AccuracyError(
            f"sketch: views {x.view.name!r} and {y.view.name!r}: directions that the {counts} of the basis lack may "
            f"have moved the mean by {outside:.1e}, more than {REFUSE_ABOVE:g}; {REMEDY}, or pass allow_inaccurate=True"
        )
    pair, sides, ranks = [x.view, y.view], [x.side, y.side], [x.ranks, y.ranks]
    means = [x.mean, y.mean] if neurons else [x.mean[:0], y.mean[:0]]
    return finished(rule, pair, result, notes, sides, ranks, outside, singles, means, neurons)


def say_too_few(few: TooFewError, rule: Rule) -> InputError:
    """Return what to raise where no more directions may be taken."""
    return InputError(
        f"directions: the {few.directions} of view {few.view!r} hold {few.share:.4f} of the variance, less than "
        f"{rule} asks for; take directions={few.would_do} or more, or a lower share"
    )
