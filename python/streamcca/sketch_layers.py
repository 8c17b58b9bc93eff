"""Sketches of all layers of two models at once: one sweep, power steps, and a replay that pairs every two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca import wide
from streamcca.errors import InputError, MemoryLimitError, NonFiniteError, StreamCCAWarning
from streamcca.moments import Moments
from streamcca.plan import Plan
from streamcca.results import CCAResult
from streamcca.sketch import Sketch
from streamcca.sketch_result import default_directions
from streamcca.sketch_route import sketch_cost
from streamcca.sketch_state import TooFewError, View
from streamcca.sketch_views import (
    Blocks,
    CutView,
    coordinates,
    correlate_cuts,
    cut,
    empty_sums,
    end_power_step,
    ready_for_replay,
    say_too_few,
    size_of,
    take_over,
    values_of,
)
from streamcca.subspace import Rule
from streamcca.sweep import BatchRows, Sweep


@dataclass(frozen=True)
class Sketching:
    """What decides the numbers: directions of each layer (None: chosen, and more where a share needs more), steps."""

    directions: int | None
    power: int
    precision: str


class LayerSketches:
    """Sketches of the layers of two models, fed by a first sweep; `finish` runs the others and `pair` compares.

    Parameters
    ----------
    sweep : Sweep
        Remembers its batches; it is run again for every power step, for the replay, and for layers whose directions
        turn out too few.
    views : mapping of str to int
        Width of each layer.
    rule : Rule
        'variance' or 'rank'.
    values : mapping of str to float
        What of the rule holds for each layer.
    sketching : Sketching
        Options.
    double : bool
        Whether there are float64 rows.
    bill : Plan
        Whose memory may be taken.
    pairs : list of (str, str)
        The pairs to be compared.
    threads : int, optional
        As in `Moments`.
    """

    def __init__(
        self,
        sweep: Sweep,
        views: Mapping[str, int],
        rule: Rule,
        values: Mapping[str, float],
        sketching: Sketching,
        double: bool,
        bill: Plan,
        pairs: list[tuple[str, str]],
        threads: int | None,
    ) -> None:
        self._sweep, self._rule, self._values, self._pairs = sweep, rule, dict(values), pairs
        self._sketching, self._bill, self._threads = sketching, bill, threads
        wanted = sketching.precision
        self.dtype = np.dtype(np.float64 if wanted == "float64" or (wanted == "auto" and double) else np.float32)
        self._views = {name: View(name, width) for name, width in views.items()}
        widths, size = tuple(views.values()), self.dtype.itemsize
        self._directions = {
            name: min(width, sketching.directions or default_directions(rule, self._values[name], widths, size))
            for name, width in views.items()
        }
        self.n = 0
        self._cuts: dict[str, CutView] = {}
        self._moments: Moments | None = None
        self._begin(views)

    # ------------------------------------------------------------------ the passes

    def _begin(self, names: Iterable[str]) -> None:
        """Make sketches for a pass, if the memory allows what all layers together will take."""
        widths, order = tuple(view.width for view in self._views.values()), {v: i for i, v in enumerate(self._views)}
        need = sketch_cost(
            widths,
            tuple(self._directions.values()),
            self._bill.n,
            self._sketching.power,
            rank=int(max(self._values.values())) if self._rule.name == "rank" else None,
            itemsize=self.dtype.itemsize,
            pairs=[(order[a], order[b]) for a, b in self._pairs],
        )[0]
        if need > self._bill.memory_limit:
            most = max(self._directions, key=self._directions.__getitem__)
            raise MemoryLimitError(
                f"sketch: {self._directions[most]} directions of layer {most!r} and those of the others need "
                f"{need / 2**20:.1f} MiB, but {self._bill.limit_from} leaves {self._bill.memory_limit / 2**20:.1f} "
                "MiB; keep fewer (rank=, or a lower share), take fewer directions=, or watch fewer layers"
            )
        self._starts = {name: Sketch(self._views[name].width, self._directions[name], self.dtype) for name in names}

    def add(self, batch: BatchRows) -> None:
        """Sketch the rows of one batch."""
        for name, start in self._starts.items():
            _sketch(name, start, batch[name])

    def finish(self) -> None:
        """Run the passes after the first, and more where a share needs more directions.

        Raises
        ------
        InputError
            Too few rows, or directions; a layer that is constant.
        ReplayError
            A later pass brought other rows.
        MemoryLimitError
            More directions do not fit.
        """
        sketched, stepping = list(self._views), list[str]()
        while True:
            lacking = [name for name in sketched if not self._enough(name, self._take_over)]
            stepping += [name for name in sketched if name not in lacking]
            if not lacking:
                self._power_steps([self._views[name] for name in stepping])
                self._replay()
                stepping = []
                lacking = [name for name in self._views if not self._enough(name, self._cut)]
            if not lacking:
                return
            self._moments, self._cuts = None, {}
            for name in lacking:
                self._views[name] = View(name, self._views[name].width)
            self._begin(lacking)
            self._sweep.run(self.add, "more directions")
            sketched = lacking

    def _enough(self, name: str, step: Callable[[str], None]) -> bool:
        """Take a step that may find too few directions of a layer; then it will have more, if it may."""
        try:
            step(name)
        except TooFewError as few:
            if self._sketching.directions is not None:
                raise say_too_few(few, self._rule) from None
            self._directions[name] = few.would_do
            return False
        return True

    def _take_over(self, name: str) -> None:
        start = self._starts.pop(name)
        self.n = int(start.n)
        if self.n < 2:
            raise InputError(f"the data hold {self.n} row{'s' * (self.n != 1)}; expected at least 2")
        if not start.variances.any():
            raise InputError(
                f"view {name!r}: every neuron is constant over the rows, so no direction can be kept; leave it out"
            )
        take_over(self._views[name], start, self.dtype, self._rule, self._values[name])

    def _each_block(self, views: list[View], consume: Callable[[list[wide.AnyArray]], None], description: str) -> None:
        blocks = Blocks(views, self.dtype)

        def add(batch: BatchRows) -> None:
            for block in blocks.add([values_of(batch[view.name]) for view in views]):
                consume(block)

        self._sweep.run(add, description)
        for block in blocks.rest():
            consume(block)

    def _power_steps(self, views: list[View]) -> None:
        for step in range(1, self._sketching.power + 1):
            sums = [empty_sums(view, self.dtype) for view in views]

            def add_up(block: list[wide.AnyArray], sums: list[wide.AnyArray] = sums) -> None:
                for view, total, rows in zip(views, sums, block, strict=True):
                    wide.add_outer(total, wide.project(rows, view.parts), rows)

            self._each_block(views, add_up, f"power step {step}")
            for view, total in zip(views, sums, strict=True):
                end_power_step(view, total, last=step == self._sketching.power)

    def _replay(self) -> None:
        views = list(self._views.values())
        for view in views:
            if view.probes is None:
                ready_for_replay(view, self.dtype)
        own = [(view.name, view.name) for view in views]
        moments = Moments(
            {view.name: size_of(view) for view in views},
            pairs=own + self._pairs,
            precision="float64",
            threads=self._threads,
        )

        def project(block: list[wide.AnyArray]) -> None:
            moments.update({view.name: coordinates(view, rows) for view, rows in zip(views, block, strict=True)})

        self._each_block(views, project, "replay")
        self._moments = moments

    # ------------------------------------------------------------------ the answer

    def _cut(self, name: str) -> None:
        assert self._moments is not None  # noqa: S101 - since the replay
        self._cuts[name] = cut(
            self._views[name],
            self._moments,
            self._rule,
            self._values[name],
            self.n,
            self.dtype,
            directions=self._directions[name],
            restarts=self._sketching.directions is None,
        )

    def pair(self, a: str, b: str, **options: Any) -> tuple[CCAResult, list[StreamCCAWarning]]:
        """Compare two layers. No weights of neurons: K x K cells of wide layers would hold more than all else."""
        assert self._moments is not None  # noqa: S101 - since the replay
        cross = self._moments.covariance(a, b)
        return correlate_cuts(self._cuts[a], self._cuts[b], cross, self._rule, neurons=False, **options)


def _sketch(name: str, start: Sketch, rows: Any) -> None:
    try:
        start.update(values_of(rows))
    except (InputError, NonFiniteError) as error:
        raise type(error)(f"view {name!r}: {error}") from None
