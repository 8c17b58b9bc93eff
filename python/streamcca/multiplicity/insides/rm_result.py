"""What representational multiplicity returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import InputError
from streamcca.multiplicity.relation.resampling import Estimate, IntArray
from streamcca.views import unknown_name


@dataclass(frozen=True, repr=False)
class WithinGroup:
    """Distances of the pairs of models of one group.

    Attributes
    ----------
    name : str
        The group.
    models, pairs : int
        How many there are.
    mean : Estimate
        RM: the mean distance over pairs and layers.
    sd : float or None
        Standard deviation over pairs of their mean over layers (ddof 1); not an error of the mean, since pairs share
        models. None for fewer than two pairs.
    per_layer : tuple of Estimate
        The mean over pairs, of each layer.
    relative_to_chance : Estimate
        Mean over pairs and layers of d / (1 - chance): 1 where models have no more in common than unrelated ones with
        as many directions on as many rows. SVCCA's similarity is above 0 by chance alone, so that RM is too small; this
        is corrected for it, to first order, and is reported beside RM, not instead (ours).
    """

    name: str
    models: int
    pairs: int
    mean: Estimate
    sd: float | None
    per_layer: tuple[Estimate, ...]
    relative_to_chance: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return _fields(self)

    def __repr__(self) -> str:
        return f"WithinGroup({self.name!r}: RM {self.mean}, {self.models} models, {self.pairs} pairs)"


@dataclass(frozen=True, repr=False)
class BetweenGroups:
    """Distances of the models of one group from those of another.

    Attributes
    ----------
    names : (str, str)
        The groups.
    pairs, mean, sd, per_layer, relative_to_chance
        As in `WithinGroup`.
    excess : Estimate
        Mean distance between the groups less the mean of both mean distances within: what the difference of method adds
        to that of seeds. It can be negative.
    excess_per_layer : tuple of Estimate
        The same of each layer.
    """

    names: tuple[str, str]
    pairs: int
    mean: Estimate
    sd: float | None
    per_layer: tuple[Estimate, ...]
    relative_to_chance: Estimate
    excess: Estimate
    excess_per_layer: tuple[Estimate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return _fields(self)

    def __repr__(self) -> str:
        return f"BetweenGroups({self.names[0]!r}, {self.names[1]!r}: {self.mean}, excess {self.excess})"


@dataclass(frozen=True, eq=False, repr=False)
class RepresentationalMultiplicity:
    """Distances of every two models, layer by layer, and what they come to within and between groups.

    Attributes
    ----------
    names : tuple of str
        The M models, group after group.
    groups : dict of str to tuple of int
        Places of each group's models.
    layers : tuple of str
        The L layers, by the names of the first model.
    distances : array (L, M, M)
        1 - similarity, with a diagonal of 0.
    chance : array (L, M, M)
        Similarity that unrelated representations with as many directions on as many rows score; diagonal 0.
    error_bounds : array (L, M, M)
        How far rounding can have moved each distance.
    ranks : array (L, M) of int64
        Directions kept.
    within : dict of str to WithinGroup
    between : dict of (str, str) to BetweenGroups
        Each two groups once, in their order; `between_groups` takes them in any order.
    measure, rule, ridge, rows, n
        The measurement: what was computed from which directions, of what rows.
    level, method
        Of the intervals.
    warnings : tuple of str
        One sentence for each kind of warning.
    """

    names: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    layers: tuple[str, ...]
    distances: FloatArray = field(repr=False)
    chance: FloatArray = field(repr=False)
    error_bounds: FloatArray = field(repr=False)
    ranks: IntArray = field(repr=False)
    within: dict[str, WithinGroup]
    between: dict[tuple[str, str], BetweenGroups]
    measure: str
    rule: str
    ridge: float
    rows: str
    n: int
    level: float
    method: str
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for array in (self.distances, self.chance, self.error_bounds, self.ranks):
            array.setflags(write=False)

    @property
    def matrix(self) -> FloatArray:
        """Mean distance over the layers, (M, M)."""
        mean: FloatArray = self.distances.mean(axis=0)
        return mean

    @property
    def chance_by_layer(self) -> FloatArray:
        """Mean chance similarity over all pairs of models, (L,); NaN for a single model."""
        i, j = np.triu_indices(len(self.names), 1)
        if not len(i):
            return np.full(len(self.layers), np.nan)
        mean: FloatArray = self.chance[:, i, j].mean(axis=1)
        return mean

    @property
    def measurement(self) -> str:
        """The measurement in a phrase: measure, truncation, rows."""
        means = {"pwcca": "weighted by projection, mean of both sides"}.get(self.measure, "plain mean of correlations")
        ridge = f", ridge {self.ridge:g}" if self.ridge else ""
        return (
            f"1 - {self.measure.upper()} ({means}), {self.rule}{ridge}, {self.n} rows ({self.rows}), "
            f"mean over {len(self.layers)} layers"
        )

    def between_groups(self, a: str, b: str) -> BetweenGroups:
        """Return what is between two groups, in whichever order.

        Raises
        ------
        InputError
        """
        for name in (a, b):
            if name not in self.groups:
                raise InputError(unknown_name("group", name, self.groups))
        if a == b:
            raise InputError(f"between_groups: got {a!r} twice, expected two groups; see .within")
        return self.between[(a, b) if (a, b) in self.between else (b, a)]

    def group_matrix(self) -> list[list[float | None]]:
        """Return RM within each group (diagonal) and between every two, in the order of the groups."""
        return [
            [(self.within[g].mean if g == h else self.between_groups(g, h).mean).value for h in self.groups]
            for g in self.groups
        ]

    def table(self) -> str:
        """Lay the groups out as text, with the options of the measurement."""
        width = max(5, *map(len, self.groups))
        lines = [
            f"RM = {self.measurement}",
            f"intervals of {self.level:.0%} over models ({self.method}); chance similarity of the layers "
            + ", ".join(f"{value:.3f}" for value in self.chance_by_layer),
            f"{'group':<{width}} models {'RM':>26} {'SD':>7} {'of chance':>9}  " + " ".join(map(_cut, self.layers)),
        ]
        for name, group in self.within.items():
            cells = " ".join(f"{_digits(one.value):>9}" for one in group.per_layer)
            scaled = _digits(group.relative_to_chance.value)
            lines.append(
                f"{name:<{width}} {group.models:>6} {group.mean!s:>26} {_digits(group.sd):>7} {scaled:>9}  {cells}"
            )
        if self.between:
            lines.append("between groups: RM, and excess over the mean of both")
            lines += [f"  {g} and {h}: {pair.mean}, {pair.excess}" for (g, h), pair in self.between.items()]
        return "\n".join(lines + [f"note: {text}" for text in self.warnings])

    def to_dict(self, matrices: bool = True) -> dict[str, Any]:
        """Return plain values that JSON can hold; the matrices only if wanted."""
        result: dict[str, Any] = {
            "measurement": self.measurement,
            "measure": self.measure,
            "rule": self.rule,
            "ridge": self.ridge,
            "rows": self.rows,
            "n": self.n,
            "level": self.level,
            "method": self.method,
            "names": list(self.names),
            "layers": list(self.layers),
            "groups": {name: [self.names[place] for place in members] for name, members in self.groups.items()},
            "ranks": self.ranks.tolist(),
            "chance_by_layer": [_number(value) for value in self.chance_by_layer],
            "within": {name: group.to_dict() for name, group in self.within.items()},
            "between": [pair.to_dict() for pair in self.between.values()],
            "warnings": list(self.warnings),
        }
        if matrices:
            result |= {key: getattr(self, key).tolist() for key in ("distances", "chance", "error_bounds")}
        return result

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {group.mean}" for name, group in list(self.within.items())[:4])
        more = f" and {len(self.within) - 4} more" if len(self.within) > 4 else ""
        return f"RepresentationalMultiplicity({self.measure}, {len(self.names)} models: {parts}{more})"


def _plain(item: Any) -> Any:
    if isinstance(item, Estimate):
        return item.to_dict()
    if isinstance(item, tuple):
        return [_plain(one) for one in item]
    return item


def _fields(item: WithinGroup | BetweenGroups) -> dict[str, Any]:
    return {key: _plain(value) for key, value in vars(item).items()}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cut(name: str) -> str:
    return f"{name[-9:]:>9}"
