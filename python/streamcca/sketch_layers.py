"""Sketches of all layers of two models at once: one sweep, power steps, and a replay that pairs every two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca import wide
from streamcca.arrays import AnyArray, Library, current_device, to_host
from streamcca.checkpoint import part_of
from streamcca.errors import InputError, MemoryLimitError, NonFiniteError, StreamCCAWarning
from streamcca.layers_checkpoint import LayersCheckpoint
from streamcca.moments import Moments
from streamcca.passes import values_of
from streamcca.plan import Plan
from streamcca.results import CCAResult
from streamcca.sketch import Sketch
from streamcca.sketch_result import default_directions
from streamcca.sketch_route import sketch_cost
from streamcca.sketch_state import TooFewError, View, restore_views, views_state
from streamcca.sketch_views import (
    Blocks,
    CutView,
    coordinate_moments,
    coordinates,
    correlate_cuts,
    cut,
    empty_sums,
    end_power_step,
    ready_for_replay,
    say_too_few,
    take_over,
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
    library : module
        NumPy, or CuPy where all of it shall be on a CUDA device.
    file : LayersCheckpoint
        Where the state is kept between batches; what an earlier attempt has left there is gone on from.

    Attributes
    ----------
    n : int
        Rows.
    batches : int
        Batches of the present pass that an earlier attempt has counted.
    first_pass : bool
        Whether the present pass is the first.
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
        library: Library,
        file: LayersCheckpoint,
    ) -> None:
        self._sweep, self._rule, self._values, self._pairs = sweep, rule, dict(values), pairs
        self._sketching, self._bill, self._threads = sketching, bill, threads
        wanted = sketching.precision
        self.dtype = np.dtype(np.float64 if wanted == "float64" or (wanted == "auto" and double) else np.float32)
        self._library, self._device = library, current_device(library)
        self._views = {name: View(name, width, library) for name, width in views.items()}
        widths, size = tuple(views.values()), self.dtype.itemsize
        self._directions = {
            name: min(width, sketching.directions or default_directions(rule, self._values[name], widths, size))
            for name, width in views.items()
        }
        self.n = 0
        self._cuts: dict[str, CutView] = {}
        self._moments: Moments | None = None
        self._file = file
        self._stage = 0  # sketches; from 1 on power steps; after these the replay
        self._stepping: list[str] = []  # sketched, without power steps yet
        self.batches, self.first_pass = 0, True
        self._left: dict[str, Any] | None = None  # of a pass after the sketches that was broken off
        if file.saved is None:
            self._begin(views)
        else:
            self._restore(file.saved)
            file.saved = None

    # ------------------------------------------------------------------ the checkpoint

    def _save(self, batches: int, states: dict[str, Any], tensors: dict[str, AnyArray]) -> None:
        known = [name for name in self._views if name not in self._starts]
        views = views_state(self._views[name] for name in known)
        meta = {
            "stage": self._stage,
            "batches": batches,
            "first_pass": self.first_pass,
            "n": self.n,
            "directions": self._directions,
            "sketched": list(self._starts),
            "stepping": self._stepping,
            "known": known,
            "views": views["meta"],
        }
        self._file.save(meta, {**states, "sweep": self._sweep.state_dict()}, {**views["tensors"], **tensors})

    def _restore(self, saved: dict[str, Any]) -> None:
        meta = saved["meta"]
        self._stage, self.batches, self.first_pass = meta["stage"], meta["batches"], meta["first_pass"]
        self.n, self._directions, self._stepping = meta["n"], dict(meta["directions"]), list(meta["stepping"])
        self._sweep.load_state_dict(part_of(saved, "sweep"))
        restore_views((self._views[name] for name in meta["known"]), meta["views"], saved["tensors"])
        self._begin(())
        self._starts = {
            name: Sketch.from_state_dict(part_of(saved, f"sketch.{i}"), self._device)
            for i, name in enumerate(meta["sketched"])
        }
        self._left = saved if self._stage else None

    def keep(self, batches: int) -> None:
        """Save the sketches if it is time to; after a batch that all have taken, the one of that number."""
        if self._file.due:
            self._save(
                batches, {f"sketch.{i}": start.state_dict() for i, start in enumerate(self._starts.values())}, {}
            )

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
        self._starts = {
            name: Sketch(self._views[name].width, self._directions[name], self.dtype, self._device) for name in names
        }

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
        while True:
            lacking = [] if self._stage else self._sketched()
            if not lacking:
                self._power_steps([self._views[name] for name in self._stepping])
                self._replay()
                self._stepping = []
                lacking = [name for name in self._views if not self._enough(name, self._cut)]
            if not lacking:
                return
            self._moments, self._cuts = None, {}
            for name in lacking:
                self._views[name] = View(name, self._views[name].width, self._library)
            self._stage = 0
            self._begin(lacking)

    def _sketched(self) -> list[str]:
        """End a pass of sketches, and run it first if it is not that of the caller; return what lacks directions."""
        if not self.first_pass:
            self._run(self.add, "more directions", self.keep)
        self.batches, self.first_pass = 0, False
        names = list(self._starts)
        lacking = [name for name in names if not self._enough(name, self._take_over)]
        self._stepping += [name for name in names if name not in lacking]
        self._stage = 0 if lacking else 1
        return lacking

    def _run(self, add: Callable[[BatchRows], None], description: str, counted: Callable[[int], None]) -> None:
        skip, self.batches = self.batches, 0
        self._sweep.run(add, description, skip, counted)

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

    def _each_block(
        self,
        views: list[View],
        consume: Callable[[list[AnyArray]], None],
        description: str,
        state: Callable[[], tuple[dict[str, Any], dict[str, AnyArray]]],
    ) -> None:
        """Run a pass of blocks of centered rows; `state` is what `consume` has made of them, to be kept."""
        blocks = Blocks(views, self.dtype, library=self._library)
        if self._left is not None:
            blocks.wait([self._left["tensors"][f"wait.{view.name}"] for view in views])
            self._left = None

        def keep(batches: int) -> None:
            if self._file.due:
                # A batch ends within a block: its rows that wait are part of the state, or other blocks would follow.
                waiting = {f"wait.{view.name}": rows for view, rows in zip(views, blocks.waiting(), strict=True)}
                states, tensors = state()
                self._save(batches, states, tensors | waiting)

        def add(batch: BatchRows) -> None:
            for block in blocks.add([values_of(batch[view.name], "sketch", self._library) for view in views]):
                consume(block)

        self._run(add, description, keep)
        for block in blocks.rest():
            consume(block)

    def _power_steps(self, views: list[View]) -> None:
        for step in range(self._stage, self._sketching.power + 1):
            self._stage = step
            sums = [empty_sums(view, self.dtype, fresh=self._left is None) for view in views]

            def state(
                sums: list[AnyArray] = sums,
            ) -> tuple[dict[str, Any], dict[str, AnyArray]]:
                return {}, {f"sum.{view.name}": to_host(total) for view, total in zip(views, sums, strict=True)}

            def add_up(block: list[AnyArray], sums: list[AnyArray] = sums) -> None:
                for view, total, rows in zip(views, sums, block, strict=True):
                    wide.add_outer(total, wide.project(rows, view.parts), rows)

            self._each_block(views, add_up, f"power step {step}", state)
            for view, total in zip(views, sums, strict=True):
                end_power_step(view, total, last=step == self._sketching.power)

    def _replay(self) -> None:
        self._stage = self._sketching.power + 1
        views = list(self._views.values())
        for view in views:
            if view.probes is None:
                ready_for_replay(view, self.dtype)
        own = [(view.name, view.name) for view in views]
        moments = coordinate_moments(views, own + self._pairs, self._threads)
        if self._left is not None:
            moments.load_state_dict(part_of(self._left, "moments"))

        def project(block: list[AnyArray]) -> None:
            moments.update({view.name: coordinates(view, rows) for view, rows in zip(views, block, strict=True)})

        self._each_block(views, project, "replay", lambda: ({"moments": moments.state_dict()}, {}))
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
        start.update(rows)
    except (InputError, NonFiniteError) as error:
        raise type(error)(f"view {name!r}: {error}") from None
