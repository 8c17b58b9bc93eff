"""What a comparison will cost, before it starts: memory, passes, arithmetic; and which way is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from streamcca._backend import peak_gflops, state_bytes
from streamcca._memory import available_memory
from streamcca.errors import InputError, MemoryLimitError
from streamcca.gram import gram_bytes, gram_flops
from streamcca.qr_blocks import qr_cost
from streamcca.sketch_result import default_directions
from streamcca.sketch_route import sketch_cost
from streamcca.subspace import Rule
from streamcca.views import Pairs, check_option, checked_views, pair_list

Way = Literal["covariance", "replay", "gram", "sketch", "qr"]
Strategy = Literal["auto", "covariance", "replay", "gram", "sketch", "qr"]
WAYS: tuple[Way, ...] = ("covariance", "replay", "gram", "sketch", "qr")
# Share of the peak that the kernels reach, all in all; see docs/performance.md.
_EFFICIENCY = 0.75
# Share of its directions that a layer is taken to keep where the rule does not say.
KEPT = 0.1
_FLOAT64 = 8


@dataclass(frozen=True)
class Route:
    """One way to all wanted pairs.

    Attributes
    ----------
    strategy : 'covariance', 'replay', 'gram', 'sketch' or 'qr'
        All cross-covariances in one pass; a first pass for each view's own covariance, truncation, and a second one
        that pairs the rows' projections; an n x n matrix for each view; Frequent Directions and a replay; a triangular
        factor of all rows.
    passes : int
        Passes over the data.
    memory : int
        Bytes at the peak, beside the models, their activations and one batch.
    flops_per_row : float
        Arithmetic for one row, beside the models' own.
    fits : bool
        Whether `memory` is within the limit.
    disk : int
        Bytes of rows that wait on disk meanwhile, where they come from a model or an iterable.
    exact : bool
        Whether the numbers are exact to rounding; those of a sketch come with a wider bound.
    """

    strategy: Way
    passes: int
    memory: int
    flops_per_row: float
    fits: bool
    disk: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Plan:
    """The bill of a comparison; printing it shows all routes.

    Attributes
    ----------
    strategy : 'covariance', 'replay', 'gram', 'sketch' or 'qr'
        The route taken.
    routes : tuple of Route
        All routes that were considered, in order of preference.
    memory_limit : int
        Bytes that may be taken.
    limit_from : str
        Who sets the limit.
    n : int or None
        Rows, if known.
    kept : float or int
        What a view is taken to keep of its directions: a share, or, as an int, how many.
    views, pairs : int
        How many there are.
    """

    strategy: Way
    routes: tuple[Route, ...]
    memory_limit: int
    limit_from: str
    n: int | None
    kept: float
    views: int
    pairs: int

    @property
    def route(self) -> Route:
        """The route taken."""
        return next(route for route in self.routes if route.strategy == self.strategy)

    @property
    def memory(self) -> int:
        """Bytes at the peak of the route taken."""
        return self.route.memory

    @property
    def passes(self) -> int:
        """Passes over the data on the route taken."""
        return self.route.passes

    @property
    def disk(self) -> int:
        """Bytes on disk on the route taken, where rows do not lie in files or arrays already."""
        return self.route.disk

    @property
    def exact(self) -> bool:
        """Whether the route taken is exact to rounding."""
        return self.route.exact

    @property
    def flops(self) -> float | None:
        """Arithmetic of the route taken, beside the models' own; None if the number of rows is not known."""
        return None if self.n is None else self.n * self.route.flops_per_row

    @property
    def minutes(self) -> float | None:
        """Expected minutes for that, on this machine: three quarters of its float32 peak; None without n."""
        return None if self.flops is None else self.flops / (_EFFICIENCY * 1e9 * peak_gflops("float32", 0.02)) / 60

    def __str__(self) -> str:
        rows = "a million rows" if self.n is None else f"{self.n} rows"
        count = 1_000_000 if self.n is None else self.n
        lines = [
            f"{self.views} views, {self.pairs} pairs; limit {_size(self.memory_limit)} ({self.limit_from})",
            f"{'route':<12}{'passes':>7}{'memory':>12}{'disk':>12}{f'GFLOP for {rows}':>30}",
        ]
        for route in self.routes:
            chosen = "  <- taken" if route.strategy == self.strategy else "" if route.fits else "  does not fit"
            lines.append(
                f"{route.strategy:<12}{route.passes:>7}{_size(route.memory):>12}"
                f"{_size(route.disk) if route.disk else '-':>12}{route.flops_per_row * count / 1e9:>30.1f}{chosen}"
            )
        sketched = any(not route.exact for route in self.routes)
        lines.append(
            f"all give the same numbers{', the sketch within its bound' if sketched else ''}; billed for "
            f"{self._kept_text()} kept of each view; the forward passes of models come on top, once each pass"
        )
        return "\n".join(lines)

    def _kept_text(self) -> str:
        return f"{self.kept} directions" if isinstance(self.kept, int) else f"{self.kept:.0%} of the directions"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def plan(
    shapes: Mapping[str, int],
    n: int | None = None,
    *,
    pairs: Pairs = "all",
    memory: int | None = None,
    replay: bool = True,
    strategy: Strategy = "auto",
    kept: float = KEPT,
    itemsize: int = 4,
) -> Plan:
    """Say what it costs to compare views, and choose the way to do it, before anything is allocated.

    Parameters
    ----------
    shapes : mapping of str to int
        Name and width of every view (layer).
    n : int, optional
        Number of rows, for the arithmetic.
    pairs : 'all', 'self' or iterable of (str, str)
        The pairs to be compared, as in `Moments`.
    memory : int, optional
        Bytes that may be taken; by default what the system leaves.
    replay : bool
        Whether the rows can be read twice.
    strategy : 'auto', 'covariance', 'replay', 'gram', 'sketch' or 'qr'
        'covariance' forms all cross-covariances in one pass. 'replay' forms only each view's own, truncates, reads the
        rows again and pairs their projections on the kept directions. 'gram' forms an n x n matrix for each view, of
        any width (and needs `n`). 'sketch' keeps some directions of rows of any width and number, reads the rows again,
        and says how far its numbers can be off. 'qr' is for ill-conditioned views and only taken when asked for.
        'auto' takes the first of the others, in this order, that fits.
    kept : float or int
        What a view is taken to keep of its directions: a share, or, as an int, how many.
    itemsize : int
        Bytes of a number of the rows, for what 'gram' writes to disk.

    Returns
    -------
    Plan

    Raises
    ------
    MemoryLimitError
        Nothing fits, or not what was asked for; the message says what would.

    Examples
    --------
    >>> plan({"a": 512, "b": 512}, 10_000, memory=1 << 30).strategy
    'covariance'
    """
    return plan_among(
        WAYS,
        shapes,
        n,
        pairs=pairs,
        memory=memory,
        replay=replay,
        strategy=strategy,
        kept=kept,
        itemsize=itemsize,
    )


def plan_among(
    ways: tuple[Way, ...],
    shapes: Mapping[str, int],
    n: int | None,
    *,
    pairs: Pairs,
    memory: int | None,
    replay: bool,
    strategy: Strategy,
    kept: float,
    itemsize: int = 4,
    directions: int | None = None,
    power: int = 0,
) -> Plan:
    """Plan with the routes that a caller can take; see `plan`."""
    views = checked_views(shapes)
    check_option("strategy", strategy, ("auto", *ways))
    is_share = isinstance(kept, float) and 0 < kept <= 1
    if isinstance(kept, bool) or not (is_share or (isinstance(kept, int) and kept >= 1)):
        raise InputError(
            f"kept: got {kept!r}, expected a share above 0 and at most 1.0, or a whole number of directions"
        )
    for name, value in (("n", n), ("memory", memory)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InputError(
                f"{name}: got {value!r}, expected a whole number of at least 0{' (bytes)' if name != 'n' else ''}"
            )
    wanted = pair_list(list(views), pairs)
    limit, source = (memory, "memory=") if memory is not None else available_memory()
    ranks = {name: min(d, kept) if isinstance(kept, int) else max(1, round(kept * d)) for name, d in views.items()}
    considered: dict[Way, Route | None] = {
        "covariance": _covariance_route(views, wanted, limit, ranks),
        "replay": _replay_route(views, wanted, limit, ranks) if replay else None,
        "gram": _gram_route(views, n, limit, itemsize) if n else None,
        "sketch": _sketch_route(views, n, wanted, limit, kept, itemsize, directions, power) if replay else None,
        "qr": _qr_route(views, n, limit),
    }
    if strategy == "gram" and not n:
        raise InputError("n: got None, expected the number of rows, whose square strategy='gram' holds")
    routes = [route for way, route in considered.items() if way in ways and route is not None]
    chosen = [r for r in routes if r.fits and (r.strategy == strategy or (strategy == "auto" and r.strategy != "qr"))]
    if not chosen:
        raise MemoryLimitError(_refusal(routes, limit, source, strategy, replay))
    return Plan(chosen[0].strategy, tuple(routes), limit, source, n, kept, len(views), len(wanted))


def kept_by(rule: Rule) -> float:
    """Return what a rule is expected to keep, in the terms of `plan`: a number or a share."""
    if rule.name == "rank":
        return int(max(rule.x, rule.y))
    return 1.0 if rule.keeps_all else KEPT


def _indices(views: Mapping[str, int], pairs: list[tuple[str, str]]) -> list[tuple[int, int]]:
    index = {name: i for i, name in enumerate(views)}
    return [(index[a], index[b]) for a, b in pairs]


def _products(views: Mapping[str, int], pairs: list[tuple[str, str]]) -> float:
    """Multiplications and additions that one row takes: half of a square for a view with itself."""
    return float(sum(views[a] * (views[a] + 1) if a == b else 2 * views[a] * views[b] for a, b in pairs))


def _truncation_bytes(widths: list[int]) -> int:
    """Bytes for one view's covariance and LAPACK's work on it: four matrices of its size."""
    return 4 * _FLOAT64 * max(widths) ** 2


def _own(views: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, name) for name in views]


def _subspace_bytes(widths: Mapping[str, int], ranks: Mapping[str, int]) -> int:
    """Bytes for the kept directions of all views, which are there at once, and one more of their products."""
    return sum(2 * _FLOAT64 * width * ranks[name] for name, width in widths.items())


def replay_bytes(widths: Mapping[str, int], ranks: Mapping[str, int], pairs: list[tuple[str, str]]) -> int:
    """Bytes of the second pass of a replay: all kept directions, and the moments of their pairs."""
    return _subspace_bytes(widths, ranks) + state_bytes(list(ranks.values()), _indices(ranks, pairs))


def _covariance_route(
    views: dict[str, int], pairs: list[tuple[str, str]], limit: int, ranks: Mapping[str, int]
) -> Route:
    both = _own(views) + [(a, b) for a, b in pairs if a != b]
    widths = list(views.values())
    memory = state_bytes(widths, _indices(views, both)) + _truncation_bytes(widths) + _subspace_bytes(views, ranks)
    return Route("covariance", 1, memory, _products(views, both), memory <= limit)


def _replay_route(views: dict[str, int], pairs: list[tuple[str, str]], limit: int, ranks: Mapping[str, int]) -> Route:
    widths = list(views.values())
    cross = [(a, b) for a, b in pairs if a != b] or _own(views)
    first = state_bytes(widths, _indices(views, _own(views)))
    truncating = first + _truncation_bytes(widths) + _subspace_bytes(views, ranks)
    memory = max(truncating, replay_bytes(views, ranks, cross))
    projecting = sum(2 * width * ranks[name] for name, width in views.items())
    # Projections and their products are float64, at half the speed.
    flops = _products(views, _own(views)) + 2 * (projecting + _products(ranks, cross))
    return Route("replay", 2, memory, flops, memory <= limit)


def _gram_route(views: dict[str, int], n: int, limit: int, itemsize: int) -> Route:
    widths = list(views.values())
    memory = gram_bytes(n, widths, [width * itemsize for width in widths])
    return Route("gram", 1, memory, gram_flops(n, widths) / n, memory <= limit, n * sum(widths) * itemsize)


def _sketch_route(
    views: dict[str, int],
    n: int | None,
    pairs: list[tuple[str, str]],
    limit: int,
    kept: float,
    itemsize: int,
    directions: int | None,
    power: int,
) -> Route:
    widths, size = tuple(views.values()), 8 if itemsize == 8 else 4
    rule = Rule("rank", kept, kept) if isinstance(kept, int) else Rule("variance", kept, kept)
    count = directions or default_directions(rule, rule.x, widths, size)
    rank = kept if isinstance(kept, int) else None
    memory, passes, flops = sketch_cost(widths, count, n, power, rank=rank, itemsize=size, pairs=_indices(views, pairs))
    return Route("sketch", passes, memory, flops, memory <= limit, exact=False)


def _qr_route(views: dict[str, int], n: int | None, limit: int) -> Route:
    memory, flops = qr_cost(list(views.values()), n)
    return Route("qr", 1, memory, flops, memory <= limit)


def _refusal(routes: list[Route], limit: int, source: str, strategy: Any, replay: bool) -> str:
    asked_for = [route for route in routes if strategy == route.strategy or route.strategy != "qr"]
    needs = " and ".join(f"{route.strategy} needs {_size(route.memory)}" for route in asked_for)
    fitting = [route.strategy for route in routes if route.fits and route.strategy != "qr"]
    if fitting:
        remedy = f"strategy={fitting[0]!r} fits"
    elif not replay:
        remedy = (
            "give a loader that can be read twice (a list or a DataLoader, not a generator), pool or watch fewer layers"
        )
    else:
        remedy = "average over positions (rows='pool'), watch fewer or narrower layers, or ask for fewer pairs"
    asked = "no route fits" if strategy == "auto" else f"strategy={strategy!r} does not fit"
    return f"{asked}: {needs}, but {source} leaves {_size(limit)}; {remedy}"
