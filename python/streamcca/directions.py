"""What becomes of canonical directions: variates of rows, neurons that take part, layers projected on a few of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import DTypeError, InputError, LayerError
from streamcca.passes import bits_of, widened
from streamcca.sources import ArraySource, NpyFile, open_source
from streamcca.views import check_option

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from streamcca.results import CCAResult

Side = Literal["x", "y"]
Kind = Literal["least-squares", "orthogonal"]
# Rows are widened to float64 this many bytes at a time.
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class _SideOf:
    """One side of a result."""

    name: Side
    weights: FloatArray
    mean: FloatArray
    rank: int


def _side(result: CCAResult, side: Side, purpose: str) -> _SideOf:
    check_option("side", side, ("x", "y"))
    of_x = side == "x"
    weights, mean = (result.x_weights, result.x_mean) if of_x else (result.y_weights, result.y_mean)
    if not len(weights) or len(mean) != len(weights):
        raise InputError(
            f"{purpose}: strategy {result.strategy!r} has left no weights of the neurons of side {side!r}; use "
            "strategy='covariance' or, for wide layers, 'sketch'"
        )
    return _SideOf(side, weights, mean, result.rank_x if of_x else result.rank_y)


# ---------------------------------------------------------------------- variates


def transformed(result: CCAResult, x: Any, y: Any) -> Any:
    """Do what `CCAResult.transform` does."""
    if x is None and y is None:
        raise InputError("transform: got neither x nor y, expected rows of at least one side")
    given: tuple[tuple[Side, Any], ...] = (("x", x), ("y", y))
    found = [_variates(_side(result, side, "transform"), rows) for side, rows in given if rows is not None]
    return found[0] if len(found) == 1 else tuple(found)


def _variates(side: _SideOf, rows: Any) -> FloatArray:
    source = open_source(rows, side.name)
    try:
        if isinstance(source, ArraySource) and not hasattr(rows, "shape"):
            raise DTypeError(f"transform: got {type(rows).__name__}, expected an array of rows for side {side.name!r}")
        if source.width != len(side.mean):
            raise InputError(
                f"transform: got rows of {source.width} neurons for side {side.name!r}, expected {len(side.mean)}"
            )
        result = np.empty((source.rows, side.weights.shape[1]))
        step = max(1, _CHUNK_BYTES // (8 * source.width))
        for first in range(0, source.rows, step):
            count = min(step, source.rows - first)
            chunk = source.read(first, count)
            # CuPy refuses to become a NumPy array unasked.
            bits, name = bits_of(chunk.get() if hasattr(chunk, "get") else chunk, f"side {side.name!r}")
            centered = widened(bits, name, np.float64)
            centered -= side.mean
            result[first : first + count] = centered @ side.weights
    finally:
        if isinstance(source, NpyFile):
            source.close()
    return result


# ---------------------------------------------------------------------- neurons


def loadings_of(result: CCAResult, side: Side) -> FloatArray:
    """Do what `CCAResult.loadings` does."""
    one = _side(result, side, "loadings")
    if result.ridge:
        raise InputError(
            f"loadings: the result has a ridge of {result.ridge:g}, whose variates are correlated; use ridge=0"
        )
    kept = result.x_kept if side == "x" else result.y_kept
    if kept is not None:
        return kept.loadings(one.weights)
    if one.rank != one.weights.shape[1] or result.truncation.rule.name == "full":
        raise InputError(
            f"loadings: strategy {result.strategy!r} keeps what they follow from only for a side with no more kept "
            f"directions than the other, but side {side!r} has {one.rank} and there are {one.weights.shape[1]} "
            "correlations; use strategy='covariance', or the same rank on both sides"
        )
    # Weights V l^-1/2 U with a square rotation U (as many variates as directions) have loadings V l^1/2 U.
    q, r = np.linalg.qr(one.weights)
    loadings: FloatArray = np.linalg.solve(r, q.T).T
    return loadings


def importance_of(result: CCAResult, side: Side) -> FloatArray:
    """Do what `CCAResult.neuron_importance` does."""
    loadings = loadings_of(result, side)
    kept = result.x_kept if side == "x" else result.y_kept
    if kept is None or not len(kept.variances):
        raise InputError(
            f"neuron_importance: the variances of the neurons of side {side!r} are not known (strategy "
            f"{result.strategy!r}, or scores from a file); use strategy='covariance' on the rows"
        )
    shared = np.square(loadings) @ np.square(result.correlations)
    share: FloatArray = np.divide(shared, kept.variances, out=np.zeros_like(shared), where=kept.variances > 0)
    return np.clip(share, 0.0, 1.0, out=share)


# ---------------------------------------------------------------------- directions


@dataclass(frozen=True, eq=False, repr=False)
class SharedDirection:
    """One pair of canonical directions, with the rows that drive it.

    Attributes
    ----------
    index : int
        Number of the correlation, from 0.
    correlation : float
        How much is shared along it.
    rows : array (count,) of int
        Rows with the largest variates by size, the largest first.
    variates : array (count,)
        Their variates, in standard deviations; the mean of both sides if rows of both were given. The sign of a
        direction is arbitrary, but tells rows at its two ends apart.
    """

    index: int
    correlation: float
    rows: np.typing.NDArray[np.int64]
    variates: FloatArray

    def __repr__(self) -> str:
        shown = ", ".join(f"{row} ({value:+.2f})" for row, value in zip(self.rows[:5], self.variates, strict=False))
        return f"SharedDirection({self.index}, correlation {self.correlation:.4f}, rows {shown})"


def shared_directions(
    result: CCAResult, x: Any = None, y: Any = None, *, most: int = 3, least: int = 3, count: int = 10
) -> tuple[SharedDirection, ...]:
    """Return the most and the least shared directions, each with the rows that drive it.

    Parameters
    ----------
    result : CCAResult
    x, y : array (n, d) or path
        Rows of either view, or the same rows of both.
    most, least : int
        Directions from the top and from the bottom of the correlations; none is given twice.
    count : int
        Rows for each.

    Returns
    -------
    tuple of SharedDirection
        By decreasing correlation.

    Raises
    ------
    InputError, DTypeError
        As `CCAResult.transform`; the sides have different numbers of rows; a number is negative.

    Examples
    --------
    >>> import streamcca as sc
    >>> x = np.random.default_rng(0).standard_normal((100, 3))
    >>> x[17, 1] = 9.0
    >>> top = shared_directions(sc.cca(x, x[:, 1:2]), x, most=1, least=0)[0]
    >>> int(top.rows[0])
    17
    """
    for name, value in (("most", most), ("least", least), ("count", count)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise InputError(f"{name}: got {value!r}, expected a whole number of at least 0")
    found = transformed(result, x, y)
    if isinstance(found, tuple):
        if len(found[0]) != len(found[1]):
            raise InputError(f"rows: got {len(found[0])} of x and {len(found[1])} of y, expected the same rows")
        found = (found[0] + found[1]) / 2
    m = len(result.correlations)
    chosen = sorted({*range(min(most, m)), *range(max(0, m - least), m)})
    tops = {i: np.argsort(-np.abs(found[:, i]), kind="stable")[:count] for i in chosen}
    return tuple(SharedDirection(i, float(result.correlations[i]), tops[i], found[tops[i], i]) for i in chosen)


def projector_of(
    result: CCAResult, side: Side, directions: int, kind: Kind
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return mean (d,), encoder (d, k) and decoder (d, k): a row becomes mean + decoder encoder'(row - mean)."""
    check_option("kind", kind, ("least-squares", "orthogonal"))
    one = _side(result, side, "projection")
    m = one.weights.shape[1]
    whole = isinstance(directions, int | np.integer) and not isinstance(directions, bool)
    if not whole or not 1 <= directions <= m:
        raise InputError(f"directions: got {directions!r}, expected a whole number from 1 to the {m} correlations")
    encoder = one.weights[:, :directions]
    if kind == "orthogonal":
        basis: FloatArray = np.linalg.qr(encoder)[0]
        return one.mean, basis, basis
    return one.mean, encoder, loadings_of(result, side)[:, :directions]


def CanonicalProjection(
    result: CCAResult,
    side: Side = "x",
    directions: int = 1,
    *,
    kind: Kind = "least-squares",
    axis: int | None = None,
) -> Module:
    """Make a torch module that leaves of a layer's output only its first canonical directions.

    A row becomes ``mean + D E'(row - mean)`` with the weights W of the first k directions:

    - ``'least-squares'``: E = W and D the loadings S W. Of all that can be made of the k variates, this is closest to
      the row, on average over the rows that were compared; it commutes with a change of the neurons' units.
    - ``'orthogonal'``: D = E, an orthonormal basis of the span of W. It moves each row least of all that keep its k
      variates, but is no good copy of the layer: W favors directions of small variance, where little of it lies.

    Both are projections (of rank k), and both keep the first k variates exactly as they were.

    Parameters
    ----------
    result : CCAResult
        Of `svcca`, `cca` or `pwcca`, with weights.
    side : 'x' or 'y'
        Whose layer is projected.
    directions : int
        k, from 1 to the number of correlations.
    kind : 'least-squares' or 'orthogonal'
    axis : int, optional
        Axis of the features in what the module is called with. By default the last one of two or three, as in
        (batch, d) and (batch, tokens, d), and the second of more, as in (batch, channels, height, width).

    Returns
    -------
    torch.nn.Module
        Takes tensors of any floating-point type and gives that type; works in float64 for float64, else in float32,
        also under autocast. No parameters; the buffers `mean`, `encoder` and `decoder` (float64) follow ``.to()``.
        A device without float64 takes ``module.float()``.

    Raises
    ------
    InputError
        The result has no weights, or, for 'least-squares', no loadings (`CCAResult.loadings`); k is out of range.

    See Also
    --------
    project_layer : Puts it behind a layer of a model.

    References
    ----------
    Raghu et al. (2017), arXiv 1706.05806, on distributed representations and on compression: outputs of a layer
    projected on its leading SVCCA directions.

    Examples
    --------
    >>> import streamcca as sc
    >>> import torch
    >>> x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    >>> r = sc.cca(x.double(), x[:, :3].double())
    >>> project = CanonicalProjection(r, directions=3)
    >>> bool(torch.allclose(project(x)[:, :3], x[:, :3], atol=1e-4))
    True
    """
    from streamcca.projection_module import ProjectionModule

    mean, encoder, decoder = projector_of(result, side, directions, kind)
    return ProjectionModule(mean, encoder, decoder, axis)


@contextlib.contextmanager
def project_layer(model: Module, layer: str, projection: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put a projection behind one layer of a model for the time of a `with` block.

    Gradients flow through it. Copies of the model made inside the block are without it; compiled code runs eagerly.
    To leave it in for good, replace the layer by ``torch.nn.Sequential(layer, projection)``.

    Parameters
    ----------
    model : torch.nn.Module
    layer : str
        Its name, or whatever `watch` takes for one layer.
    projection : CanonicalProjection or callable
        Takes the output of the layer (of a tuple the first tensor) and returns what goes on in its place. A
        `CanonicalProjection` without an axis of its own takes that of the layer's class, if this says.

    Raises
    ------
    LayerError
        There is no such layer, or more than one; its output holds no tensor.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Identity())
    >>> with project_layer(net, "0", lambda out: out + 9):
    ...     net(-torch.ones(1, 3)).tolist()
    [[9.0, 9.0, 9.0]]
    """
    from streamcca.eager import EAGER
    from streamcca.layers import select_layers, unwrapped
    from streamcca.projection_module import replacing_hook

    if not callable(projection):
        raise InputError(f"projection: got {type(projection).__name__}, expected a CanonicalProjection or a callable")
    found = select_layers(unwrapped(model), layer)
    if len(found) != 1:
        raise LayerError(f"layer: {layer!r} names {len(found)} layers ({', '.join(list(found)[:4])}), expected one")
    ((name, module),) = found.items()
    EAGER.take(model)
    try:
        handle = module.register_forward_hook(replacing_hook(name, module, projection))
        try:
            yield
        finally:
            handle.remove()
    finally:
        EAGER.release()
