"""What compares every layer of one model with every layer of another: one pass of both, or two, or rows on disk."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamcca.arrays import Library, current_device, library_for
from streamcca.checkpoint import job_folder, part_of
from streamcca.device_algebra import cross_operand
from streamcca.devices import can_follow
from streamcca.errors import InputError, MemoryLimitError, ReplayError, StreamCCAWarning
from streamcca.gram import form_view, remove_files
from streamcca.gram_cca import correlate_scores, gram_refuses, truncate_gram
from streamcca.layers_checkpoint import LayersCheckpoint, check_first, key_of, values_of_first
from streamcca.moments import Moments
from streamcca.pairing import Progress, correlate
from streamcca.plan import Plan, Strategy, Way, kept_by, plan_among, replay_bytes
from streamcca.projection import Projector
from streamcca.qr import QRMoments
from streamcca.qr_cca import qr_correlate, qr_cut
from streamcca.results import CCAResult
from streamcca.routes import refuse_sketching
from streamcca.scores import check_repeatable
from streamcca.sketch_layers import LayerSketches, Sketching
from streamcca.sketch_route import check_sketching, sketch_refuses
from streamcca.sources import progress_wanted
from streamcca.spool import Spool
from streamcca.subspace import Rule, truncate_view
from streamcca.sweep import BatchRows, Sweep
from streamcca.watch import check_same_layers

Pairing = Callable[[str, str], tuple[CCAResult, list[StreamCCAWarning]]]
WAYS: tuple[Way, ...] = ("covariance", "replay", "gram", "sketch", "qr")


class LayerPairs:
    """What the first pass keeps of the layers, moments, sketches, a factor, or rows on disk; and what pairs them."""

    bill: Plan
    moments: Moments
    spool: Spool
    sketches: LayerSketches
    factor: QRMoments

    def __init__(
        self,
        sweep: Sweep,
        options: dict[str, Any],
        rule: Rule,
        bounds: dict[str, Any],
        pairing: dict[str, Any],
        progress: Progress,
        stack: contextlib.ExitStack,
    ) -> None:
        self._sweep, self._rule, self._options, self._pairing = sweep, rule, options, pairing
        self._bounds, self._progress, self._stack = bounds, progress, stack
        self._widths: dict[str, int] | None = None
        self._rows = 0
        self._rows_on: str | None = None
        self._followed = False  # whether sketches and factors are made where the rows are
        if bounds["strategy"] in ("replay", "sketch"):
            check_repeatable(sweep)
        _check_sketching(bounds)
        self._file = LayersCheckpoint()
        self._first_pass = True
        if bounds["folder"] is not None:
            key = key_of(sweep, rule, bounds, options, pairing["ridge"])
            self._file = LayersCheckpoint(Path(bounds["folder"]), key, bounds["strategy"])

    def run(self) -> None:
        """Run the first pass, or what an earlier attempt has left of it."""
        batches = 0
        if self._file.saved is not None:
            batches = self._restore()
            first = self._sweep.run_first()
            check_same_layers(first, self._file.facts["values"])
            check_first(first, self._file.facts["values"])
        if self._first_pass:
            self._sweep.run(self.add, "compare", batches, self._keep)

    # ------------------------------------------------------------------ what is kept for a restart

    def _restore(self) -> int:
        """Take over what an earlier attempt has left; return how many batches of the present pass it has counted."""
        check_repeatable(self._sweep)
        facts, saved = self._file.facts, self._file.saved
        assert saved is not None  # noqa: S101 - the caller looked
        self._widths = dict(facts["widths"])
        self._followed = facts.get("followed", False)
        self._plan(facts["rows"], facts["itemsize"], facts["strategy"])
        self._stack.enter_context(job_folder(self._bounds["folder"]))
        if self.bill.strategy == "sketch":
            self._start_sketches(facts["itemsize"])
            self._first_pass = self.sketches.first_pass
            return self.sketches.batches
        self._file.saved = None
        self._start_sums()
        self._sums.load_state_dict(part_of(saved, "sums"))
        self._sweep.load_state_dict(part_of(saved, "sweep"))
        self._first_pass = saved["meta"]["first_pass"]
        return int(saved["meta"]["batches"])

    def _keep(self, batches: int) -> None:
        """Save the state if it is time to, after the batch of that number."""
        if self.bill.strategy == "sketch":
            self.sketches.keep(batches)
        elif self.bill.strategy != "gram" and self._file.due:
            self._save(batches)

    def _save(self, batches: int) -> None:
        states = {"sums": self._sums.state_dict(), "sweep": self._sweep.state_dict()}
        self._file.save({"first_pass": self._first_pass, "batches": batches}, states, {})

    @property
    def _sums(self) -> Moments | QRMoments:
        return self.factor if self.bill.strategy == "qr" else self.moments

    def done(self) -> None:
        """Remove what was kept for a restart."""
        self._file.remove_replay()
        self._file.remove()

    # ------------------------------------------------------------------ the first pass

    def add(self, batch: BatchRows) -> None:
        """Count the rows of one batch; the first shows the widths, by which the way is chosen."""
        count = len(next(iter(batch.values())))
        if self._widths is None:
            self._widths = {name: int(x.shape[1]) for name, x in batch.items()}
            first = next(iter(batch.values()))
            self._rows_on = "cuda" if can_follow(first) else None
            self._followed = library_for(first) is not np
            self._start(count, max(x.element_size() for x in batch.values()))
            self._file.facts["values"] = values_of_first(batch)
        check_same_layers(batch, self._widths)
        if self.bill.strategy == "gram":
            self.spool.add(batch, self._rows)
        elif self.bill.strategy == "sketch":
            self.sketches.add(batch)
        elif self.bill.strategy == "qr":
            on_cpu = self._library() is np
            self.factor.update({name: x.cpu() if on_cpu else x for name, x in batch.items()})
        else:
            self.moments.update(batch)
        self._rows += count

    def _plan(self, count: int, itemsize: int, strategy: Strategy) -> None:
        """Choose the way, by what the first batch has shown."""
        assert self._widths is not None  # noqa: S101 - `add` set them
        own, cross = [(name, name) for name in self._widths], cross_pairs(self._widths)
        # The last batch may be smaller, so this is the most that there can be; without a length, what is known.
        batches = self._sweep.length
        rows = batches * count if batches is not None else count if self._bounds["strategy"] == "gram" else None
        self.bill = plan_among(
            self._ways(),
            self._widths,
            rows,
            pairs=own + cross,
            memory=self._bounds["memory"],
            replay=self._sweep.repeatable,
            strategy=strategy,
            kept=kept_by(self._rule),
            itemsize=itemsize,
            directions=self._bounds["directions"],
            power=self._bounds["power"],
        )
        if progress_wanted(self._progress):
            print(self.bill, file=sys.stderr)

    def _start(self, count: int, itemsize: int) -> None:
        assert self._widths is not None  # noqa: S101 - `add` set them
        self._plan(count, itemsize, self._bounds["strategy"])
        way, folder = self.bill.strategy, self._bounds["folder"]
        if way == "gram":
            if folder is None:
                import tempfile  # loads OpenSSL

                folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="streamcca-spool-"))
            self.spool = Spool(Path(folder))
            return
        if way != "sketch":
            refuse_sketching({name: self._bounds[name] for name in ("directions", "power")})
        if folder is not None:
            check_repeatable(self._sweep)
            self._stack.enter_context(job_folder(self._bounds["folder"]))
            self._file.remove_replay()  # of a job whose own file was removed
        if folder is not None or way in ("replay", "sketch"):
            self._sweep.remember()
        self._file.facts = {
            "strategy": way,
            "widths": list(self._widths.items()),
            "rows": count,
            "itemsize": itemsize,
            "followed": self._followed,
        }
        if way == "sketch":
            self._start_sketches(itemsize)
        else:
            self._start_sums()

    def _start_sums(self) -> None:
        assert self._widths is not None  # noqa: S101 - `add` set them
        way, own = self.bill.strategy, [(name, name) for name in self._widths]
        if way == "qr":
            self.factor = QRMoments(self._widths, self._options["nonfinite"], current_device(self._library()))
            return
        cross = cross_pairs(self._widths) if way == "covariance" else []
        self.moments = Moments(self._widths, pairs=own + cross, **self._options)

    def _start_sketches(self, itemsize: int) -> None:
        assert self._widths is not None  # noqa: S101 - `add` set them
        sketching = Sketching(self._bounds["directions"], self._bounds["power"], self._options["precision"])
        self.sketches = LayerSketches(
            self._sweep,
            self._widths,
            self._rule,
            {name: self._value(name[:2]) for name in self._widths},
            sketching,
            double=itemsize == 8,
            bill=self.bill,
            pairs=cross_pairs(self._widths),
            threads=self._options["threads"],
            library=self._library(),
            file=self._file,
        )

    def _library(self) -> Library:
        """Return the library of what is made of rows: on the device that was asked for, or where they are."""
        return library_for(None, self._options["device"] or ("cuda" if self._followed else "cpu"))

    def _ways(self) -> tuple[Way, ...]:
        measure, ridge, nonfinite = self._pairing["measure"], self._pairing["ridge"], self._options["nonfinite"]
        refusals = {
            "gram": gram_refuses(measure, ridge, nonfinite),
            "sketch": sketch_refuses(self._rule, measure, ridge, nonfinite),
            "qr": f"ridge: got {ridge:g}; strategy='qr' is for layers as they are: use 'covariance', or 0"
            * bool(ridge),
        }
        if refusals.get(self._bounds["strategy"]):
            raise InputError(refusals[self._bounds["strategy"]])
        return tuple(way for way in WAYS if not refusals.get(way))

    def pairing(self, views: Mapping[str, str]) -> tuple[Pairing, int | float]:
        """Return what compares two views, and the number of rows; `views` says which model each belongs to."""
        if self.bill.strategy == "gram":
            return self._pair_scores(views), self._rows
        if self.bill.strategy == "sketch":
            return self._pair_sketches(), self.sketches.n
        if self.bill.strategy == "qr":
            return self._pair_factors(views), self.factor.n
        truncated = {
            name: truncate_view(self.moments, name, self._rule, self._value(key), self._pairing["ridge"])
            for name, key in views.items()
        }
        kept = self.bill.strategy == "replay"
        if kept:
            _check_second_pass(self.bill, {v: x.native.rank for v, x in truncated.items()}, self.moments.views)
            project = Projector(truncated, {v: self.moments.mean(v) for v in truncated})
            self.moments = self._replay(project)
        moments = self.moments

        def pair(a: str, b: str) -> tuple[CCAResult, list[StreamCCAWarning]]:
            cross = moments.covariance(a, b) if kept else cross_operand(moments, a, b)
            return correlate(truncated[a], truncated[b], cross, kept=kept, **self._pairing)

        return pair, moments.n

    def _replay(self, project: Projector) -> Moments:
        """Run the second pass; an earlier attempt may have left a part of it."""
        rows = self.moments.rows
        if self._file.folder is not None and self._first_pass:
            self._first_pass = False
            self._save(0)  # once: what the second pass is about is worked out again from it
        del self.moments  # before those of the second pass are there
        file, skip = self._file.of_replay(), 0
        projected = Moments(
            project.ranks, pairs=cross_pairs(project.ranks), **{**self._options, "precision": "float64"}
        )
        if file.saved is not None:
            projected.load_state_dict(part_of(file.saved, "sums"))
            skip, file.saved = file.saved["meta"]["batches"], None

        def keep(batches: int) -> None:
            if file.due:
                file.save({"batches": batches}, {"sums": projected.state_dict()}, {})

        self._sweep.run(lambda batch: projected.update(project(batch)), "replay", skip, keep)
        if projected.rows != rows:
            raise ReplayError(f"replay: got {projected.rows} rows, expected {rows} as in the first pass")
        return projected

    def _value(self, key: str) -> float:
        return self._rule.x if key == "a:" else self._rule.y

    def _pair_sketches(self) -> Pairing:
        self.sketches.finish()
        # A sketch with a rule has neither a side nor a ridge.
        how = {key: value for key, value in self._pairing.items() if key not in ("side", "ridge")}
        return lambda a, b: self.sketches.pair(a, b, **how)

    def _pair_factors(self, views: Mapping[str, str]) -> Pairing:
        cuts = {name: qr_cut(self.factor, name, self._rule, self._value(key)) for name, key in views.items()}
        self.factor._check_ddof(1)
        how = {key: value for key, value in self._pairing.items() if key != "ridge"}
        return lambda a, b: qr_correlate(cuts[a], cuts[b], **how)

    def _pair_scores(self, views: Mapping[str, str]) -> Pairing:
        self.spool.finish()
        how = {key: self._options[key] for key in ("precision", "threads")}
        how |= {"progress": self._progress, "device": self._options["device"] or self._rows_on}
        spaces = {}
        for name, key in views.items():
            # One matrix at a time; of each view only the kept scores stay.
            one = form_view(name, self.spool.tiles(name), self.spool.folder, **how)
            spaces[name] = truncate_gram(one, name, self._rule, self._value(key))
        remove_files(self.spool.folder, self.spool)
        return lambda a, b: correlate_scores(spaces[a], spaces[b], **self._pairing)


def _check_sketching(bounds: Mapping[str, Any]) -> None:
    check_sketching(bounds["directions"], bounds["power"])
    if bounds["strategy"] not in ("auto", "sketch"):
        refuse_sketching({name: bounds[name] for name in ("directions", "power")})


def _check_second_pass(bill: Plan, ranks: Mapping[str, int], widths: Mapping[str, int]) -> None:
    """Refuse a second pass that turns out larger than billed, before it starts."""
    need = replay_bytes(widths, ranks, cross_pairs(widths))
    if need > max(bill.memory_limit, bill.memory):
        raise MemoryLimitError(
            f"replay: the rule keeps up to {max(ranks.values())} directions of a layer, whose pairs need "
            f"{need / 2**20:.1f} MiB, but {bill.limit_from} leaves {bill.memory_limit / 2**20:.1f} MiB; keep fewer "
            "(rank=, or a lower share), or watch fewer layers"
        )


def cross_pairs(views: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return every layer of model a with every layer of model b."""
    b = [name for name in views if name.startswith("b:")]
    return [(x, y) for x in views if x.startswith("a:") for y in b]
