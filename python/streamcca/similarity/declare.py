"""What every measure declares; the tests are generated from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from streamcca.similarity.result import Kind

# Changes of one view: a constant row added; all neurons times one number; neurons rotated; each neuron times a number
# of its own; neurons mixed by any invertible matrix.
Change = Literal["shift", "scale", "rotation", "units", "linear"]
Source = Literal["moments", "gram", "qr", "rows"]

_TWO: tuple[Source, ...] = ("moments", "gram")
_SCALE: frozenset[Change] = frozenset({"shift", "scale"})
_ROTATIONS: frozenset[Change] = frozenset({"shift", "scale", "rotation"})
_UNITS: frozenset[Change] = frozenset({"shift", "scale", "units"})
_LINEAR: frozenset[Change] = frozenset({"shift", "scale", "rotation", "units", "linear"})


@dataclass(frozen=True)
class Declaration:
    """What is true of a measure whatever the data.

    Attributes
    ----------
    name : str
        Key in `MEASURES`.
    title : str
        What it is, in a line.
    kind : 'similarity' or 'distance'
    symmetric : bool
        Whether the views can change places.
    invariant_x, invariant_y : frozenset of str
        Changes of each view that leave the number as it is: 'shift', 'scale' (one factor), 'rotation', 'units' (a
        factor for each neuron), 'linear' (any invertible map).
    low, high : float
        The range of the number; `high` is infinite where it depends on the ranks. Debiased estimates can leave it by
        their sampling error.
    alike : float
        The number of two equal views.
    sources : tuple of str
        What it can be formed from besides rows: 'moments', 'gram', 'qr'; 'rows' if from rows only.
    paper : str
        Where it is defined.
    """

    name: str
    title: str
    kind: Kind
    symmetric: bool
    invariant_x: frozenset[Change]
    invariant_y: frozenset[Change]
    low: float
    high: float
    alike: float
    sources: tuple[Source, ...]
    paper: str


def _similarity(
    name: str,
    title: str,
    invariant: frozenset[Change],
    paper: str,
    sources: tuple[Source, ...] = ("moments", "gram", "qr"),
    *,
    high: float = 1.0,
    low: float = 0.0,
) -> Declaration:
    return Declaration(name, title, "similarity", True, invariant, invariant, low, high, high, sources, paper)


def _one_sided(
    name: str,
    title: str,
    invariant_x: frozenset[Change],
    invariant_y: frozenset[Change],
    paper: str,
    sources: tuple[Source, ...],
) -> Declaration:
    return Declaration(name, title, "similarity", False, invariant_x, invariant_y, 0.0, 1.0, 1.0, sources, paper)


def _distance(
    name: str,
    title: str,
    invariant: frozenset[Change],
    paper: str,
    sources: tuple[Source, ...] = _TWO,
    *,
    high: float = math.pi / 2,
) -> Declaration:
    return Declaration(name, title, "distance", True, invariant, invariant, 0.0, high, 0.0, sources, paper)


_RAGHU = "Raghu, Gilmer, Yosinski & Sohl-Dickstein 2017, arXiv 1706.05806"
_KORNBLITH = "Kornblith, Norouzi, Lee & Hinton 2019, arXiv 1905.00414"
_MORCOS = "Morcos, Raghu & Bengio 2018, arXiv 1806.05759"
_DING = "Ding, Denain & Steinhardt 2021, arXiv 2108.01661"
_WILLIAMS = "Williams, Kunz, Kornblith & Linderman 2021, arXiv 2110.14739"
_HOTELLING = "Hotelling 1936, Biometrika 28"

_YANAI = "Yanai 1974; Ramsay, ten Berge & Styan 1984, Psychometrika 49"
_DEBIASED = "Nguyen, Raghu & Kornblith 2021, arXiv 2010.15327; Song et al. 2012, JMLR 13"
_BURES = "Tang et al. 2020, arXiv 2003.11498; Harvey, Larsen & Williams 2023, arXiv 2311.11436"
_MAYER = "Mayer, Lorent & Horgan 2011, Statistical Applications in Genetics and Molecular Biology 10"
_KRIEGESKORTE = "Kriegeskorte, Mur & Bandettini 2008, Frontiers in Systems Neuroscience 2"

_ALL = (
    _similarity("svcca", "mean correlation of what 99 % of the variance keeps", _ROTATIONS, _RAGHU),
    _similarity("svcca_r2", "mean squared correlation of what 99 % of the variance keeps", _ROTATIONS, _KORNBLITH),
    _similarity("cca", "mean canonical correlation", _LINEAR, _HOTELLING),
    _similarity("mean_squared_cca", "mean squared canonical correlation", _LINEAR, _KORNBLITH),
    _similarity("yanai", "sum of squared correlations over sqrt(kx ky): CKA of whitened views", _LINEAR, _YANAI),
    _similarity("pillai", "sum of squared correlations", _LINEAR, "Pillai 1955", high=math.inf),
    _one_sided("pwcca_x", "mean correlation weighted by the neurons of x", _SCALE, _LINEAR, _MORCOS, ("moments", "qr")),
    _one_sided("pwcca_y", "mean correlation weighted by the neurons of y", _LINEAR, _SCALE, _MORCOS, ("moments", "qr")),
    _similarity("pwcca", "mean of both sides' PWCCA", _SCALE, _MORCOS, ("moments", "qr")),
    _similarity("cka", "linear centered kernel alignment", _ROTATIONS, _KORNBLITH, _TWO),
    _similarity(
        "debiased_cka", "the same, for infinitely many rows", _ROTATIONS, _DEBIASED, ("gram", "rows"), low=-1.0
    ),
    _distance("cka_angle", "arccos of linear CKA", _ROTATIONS, _WILLIAMS),
    _similarity("rv", "RV coefficient: the number of linear CKA", _ROTATIONS, "Robert & Escoufier 1976", _TWO),
    _similarity(
        "adjusted_rv", "RV of standardized neurons, corrected for few rows", _UNITS, _MAYER, ("moments",), low=-1.0
    ),
    _similarity("procrustes", "nuclear norm of X'Y of centered views of unit norm", _ROTATIONS, _DING, _TWO),
    _distance("procrustes_distance", "squared distance after the best rotation", _ROTATIONS, _DING, high=2.0),
    _distance("procrustes_angle", "angle between shapes, arccos of procrustes", _ROTATIONS, _WILLIAMS),
    _similarity("bures", "normalized Bures similarity: the number of procrustes", _ROTATIONS, _BURES, _TWO),
    _one_sided("regression_y", "share of y's variance that x explains", _LINEAR, _ROTATIONS, _KORNBLITH, _TWO),
    _one_sided("regression_x", "share of x's variance that y explains", _ROTATIONS, _LINEAR, _KORNBLITH, _TWO),
    _similarity("shape", "cosine between partly whitened shapes (alpha)", _ROTATIONS, _WILLIAMS, ("moments",)),
    _distance("shape_angle", "angle between partly whitened shapes (alpha)", _ROTATIONS, _WILLIAMS, ("moments",)),
    _similarity("rbf_cka", "CKA of Gaussian kernels (bandwidth)", _ROTATIONS, _KORNBLITH, ("gram",)),
    _similarity("rsa", "correlation of distances of samples", _ROTATIONS, _KRIEGESKORTE, ("gram",), low=-1.0),
)

# The declarations of all measures, by name.
MEASURES: Mapping[str, Declaration] = MappingProxyType({item.name: item for item in _ALL})
