"""The way from data to the comparison of two views: by covariances, or by what fits where these do not."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from streamcca.checkpoint import NAME, check_same_job, job_folder, job_meta
from streamcca.errors import InputError, StreamCCAWarning
from streamcca.gram import Gram, gram
from streamcca.gram_cca import gram_refuses
from streamcca.kept_sums import kept_sums
from streamcca.moments import Moments
from streamcca.passes import PairPasses
from streamcca.plan import Strategy, Way, kept_by, plan_among
from streamcca.qr import QRMoments
from streamcca.qr_cca import qr_moments_of
from streamcca.results import CCAResult
from streamcca.similarity.canonical import correlate_views
from streamcca.sketch_route import sketch_refuses, sketch_svcca
from streamcca.sources import ArraySource, NpyFile, moments_of, open_source, pair_of, progress_wanted
from streamcca.subspace import Rule
from streamcca.views import check_option

Outcome = tuple[CCAResult, list[StreamCCAWarning]]
_WAYS: tuple[Way, ...] = ("covariance", "gram", "sketch", "qr")
# What other measures than those of canonical correlations can be formed from.
WITHOUT_CORRELATIONS: tuple[Way, ...] = ("covariance", "gram")
State = Moments | Gram | QRMoments
# Up to this width a covariance and all that is done with it take less than asking how much memory is left is worth.
_SURELY_FITS = 1024


def route(
    data: tuple[Any, ...],
    rule: Rule,
    strategy: Strategy,
    folder: Any,
    accumulate: dict[str, Any],
    sketching: dict[str, Any] | None = None,
    **options: Any,
) -> Outcome:
    """Compare two views of whatever the measures accept, on the route that was asked for or fits.

    `accumulate` are the options of `moments_of`, `sketching` those of a sketch; `options` what `correlate` takes.
    """
    nonfinite = accumulate.get("nonfinite", "raise")
    strategy = _begun(folder, strategy)
    refusals = {
        "gram": gram_refuses(options["measure"], options["ridge"], nonfinite),
        "sketch": sketch_refuses(rule, options["measure"], options["ridge"], nonfinite),
    }
    data, way = choose(data, _WAYS, strategy, rule=rule, progress=accumulate["progress"], refusals=refusals)
    if way == "sketch":
        return _by_sketch(data, rule, folder, accumulate, sketching or {}, options)
    refuse_sketching(sketching)
    counted = bool(data) and isinstance(data[0], State)
    if folder is None or way == "gram" or counted:
        state, a, b = collect(data, way, folder, accumulate)
        return correlate_views(state, a, b, rule, options)
    with job_folder(folder) as place:
        state, file = kept_sums(data, way, place, accumulate)
        outcome = correlate_views(state, "x", "y", rule, options)
        file.remove()
        return outcome


def _begun(folder: Any, strategy: Strategy) -> Strategy:
    """Return the strategy of the job that a folder holds, since another time another one might be chosen."""
    path = None if folder is None else Path(folder) / NAME
    if path is None or not path.exists():
        return strategy
    begun: Strategy = job_meta(path).get("key", {}).get("strategy", "sketch")
    if strategy not in ("auto", begun):
        check_same_job(path, {"strategy": begun}, {"strategy": strategy})
    return begun


def _by_sketch(
    data: tuple[Any, ...],
    rule: Rule,
    folder: Any,
    accumulate: dict[str, Any],
    sketching: dict[str, Any],
    options: dict[str, Any],
) -> Outcome:
    passes = PairPasses(data)
    how = {key: accumulate[key] for key in ("precision", "threads", "progress")}
    keeping = {key: options[key] for key in ("measure", "allow_underdetermined", "allow_inaccurate")}
    with contextlib.closing(passes), contextlib.ExitStack() as stack:
        checkpoint = None if folder is None else stack.enter_context(job_folder(folder)) / NAME
        return sketch_svcca(passes, rule, checkpoint=checkpoint, **how, **keeping, **sketching)


def refuse_sketching(sketching: Mapping[str, Any] | None) -> None:
    """Refuse options of a sketch on another route.

    Raises
    ------
    InputError
    """
    usual = {"directions": None, "power": 0, "replay": True}
    for name, value in (sketching or {}).items():
        if value != usual[name] or isinstance(value, bool) != isinstance(usual[name], bool):
            raise InputError(f"{name}: got {value!r}, which only strategy='sketch' knows; leave it out")


def choose(
    data: tuple[Any, ...],
    ways: tuple[Way, ...],
    strategy: Strategy,
    *,
    rule: Rule | None,
    progress: Any,
    refusals: Mapping[str, str] | None = None,
) -> tuple[tuple[Any, ...], Way]:
    """Return the data, an iterator put together again, and the route to take.

    `ways` are the routes that the caller can take, `refusals` says why some of them would not do this time; `rule` how
    much of each view will be kept, if anything is to be truncated.
    """
    check_option("strategy", strategy, ("auto", *ways))
    refusals = refusals or {}
    counted = bool(data) and isinstance(data[0], State)
    if counted:
        strategy = _own_way(data[0], strategy, ways)
    if refusals.get(strategy):
        raise InputError(refusals[strategy])
    if counted:
        return data, cast(Way, strategy)
    return _choose(tuple(way for way in ways if not refusals.get(way)), data, rule, strategy, progress)


def _own_way(state: State, strategy: Strategy, ways: tuple[Way, ...]) -> Way:
    """Return the route of views whose rows are all counted: none is left to choose."""
    own: Way = "gram" if isinstance(state, Gram) else "qr" if isinstance(state, QRMoments) else "covariance"
    if strategy not in ("auto", own) or own not in ways:
        raise InputError(
            f"strategy: got {strategy!r} with {type(state).__name__}, which are of strategy {own!r}; give the rows "
            "themselves" + ("" if own not in ways else ", or leave strategy= out")
        )
    return own


def collect(data: tuple[Any, ...], way: Way, folder: Any, accumulate: dict[str, Any]) -> tuple[State, str, str]:
    """Return what a route, but for a sketch, keeps of two views, and their names."""
    counted = bool(data) and isinstance(data[0], State)
    if counted or way != "gram":
        _refuse_folder(folder)
    if way == "covariance":
        return moments_of(data, **accumulate)
    if way == "qr":
        return qr_moments_of(data, nonfinite=accumulate["nonfinite"], progress=accumulate["progress"])
    if not counted:
        how = {key: accumulate[key] for key in ("precision", "threads", "progress")}
        return gram(*data, folder=folder, **how), "x", "y"
    names = data[1:] or tuple(data[0].views)
    if len(names) != 2:
        raise InputError(f"name two of the views {', '.join(map(repr, data[0].views))}: measure(gram, 'x', 'y')")
    return data[0], names[0], names[1]


def _refuse_folder(folder: Any) -> None:
    if folder is not None:
        raise InputError(
            "folder: got a folder, expected None: it is for rows that svcca, cca or pwcca still have to read, and for "
            "strategy='gram'"
        )


def _choose(
    ways: tuple[Way, ...], data: tuple[Any, ...], rule: Rule | None, strategy: Strategy, progress: Any
) -> tuple[tuple[Any, ...], Way]:
    rows, widths, itemsize, data = _shapes(data)
    if "covariance" in ways and max(widths) <= _SURELY_FITS and strategy in ("auto", "covariance"):
        return data, "covariance"
    if rows is None and strategy == "gram":
        return data, "gram"  # which checks when the rows are counted
    bill = plan_among(
        ways,
        dict(zip("xy", widths, strict=True)),
        rows,
        pairs="all",
        memory=None,
        replay=True,
        strategy=strategy,
        kept=kept_by(rule) if rule else 1.0,
        itemsize=itemsize,
    )
    if progress_wanted(progress) and bill.strategy != "covariance":
        print(bill, file=sys.stderr)
    return data, bill.strategy


def _shapes(data: tuple[Any, ...]) -> tuple[int | None, list[int], int, tuple[Any, ...]]:
    """Return rows (if known), widths and bytes of a number, and the data, an iterator put together again."""
    if len(data) == 2:
        sources = []
        try:
            for array, name in zip(data, "xy", strict=True):
                sources.append(open_source(array, name))
        finally:
            for source in sources:
                if isinstance(source, NpyFile):
                    source.close()
        itemsize = max(source.row_bytes // max(1, source.width) for source in sources)
        return sources[0].rows, [max(1, source.width) for source in sources], itemsize, data
    if len(data) != 1 or not isinstance(data[0], Iterable) or hasattr(data[0], "shape") or isinstance(data[0], str):
        return None, [1, 1], 8, data  # refused by `moments_of`
    batches = iter(data[0])
    first = list(itertools.islice(batches, 1))
    if not first:
        return None, [1, 1], 8, (first,)
    views = [ArraySource(array, name) for name, array in pair_of(0, first[0]).items()]
    itemsize = max(view.row_bytes // max(1, view.width) for view in views)
    rest = (itertools.chain(first, batches),) if isinstance(data[0], Iterator) else data
    return getattr(data[0], "rows", None), [max(1, view.width) for view in views], itemsize, rest
