"""All layer pairs of two models in one pass over the data."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.cca import FULL, VARIANCE_99, Measure, Progress, correlate
from streamcca.errors import InputError, LayerError, StreamCCAWarning
from streamcca.layers import Layers
from streamcca.masks import Mask
from streamcca.moments import Moments, NonFinite, Precision
from streamcca.results import CCAResult, LayerComparison
from streamcca.rows import Rows, check_equal_counts, check_rows, choose_ways, describe_rows
from streamcca.sources import progress_bar
from streamcca.subspace import Rule, parse_rule, truncate_view
from streamcca.tap import CallIndex, LayerTap
from streamcca.views import check_option
from streamcca.watch import check_same_layers

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Forward = Callable[[Any, Any], Any]
_ROWS_OF_A_TENSOR = 256


def compare(
    model_a: Module,
    model_b: Module,
    loader: Iterable[Any],
    layers: Layers = None,
    *,
    layers_b: Layers = None,
    measure: Measure = "svcca",
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    side: str = "x",
    ridge: float = 0.0,
    rows: Rows = "auto",
    mask: Mask = "auto",
    call_index: CallIndex = None,
    forward: Forward | None = None,
    precision: Precision = "auto",
    nonfinite: NonFinite = "raise",
    device: str | None = None,
    threads: int | None = None,
    progress: Progress = "auto",
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
) -> LayerComparison:
    """Compare every layer of one model with every layer of another, in one pass over the data.

    Parameters
    ----------
    model_a, model_b : torch.nn.Module
        The models; the same object twice compares a model's layers with each other. Both run in eval mode
        without gradients, and get their mode back.
    loader : iterable
        Batches: a tensor, a tuple or list whose first item is the input, or a mapping of keyword
        arguments (labels are left out). Both models see each batch. A tensor instead of a loader is cut into
        batches.
    layers, layers_b
        Layers of both models; `layers_b` those of `model_b` if they differ; see `watch`.
    measure : 'svcca', 'cca' or 'pwcca'
    variance, nuclear, rank, ridge, allow_underdetermined, allow_inaccurate
        As in `svcca`; without a rule SVCCA keeps 99 % of the variance, CCA and PWCCA everything.
    side : 'x' or 'y'
        For PWCCA: whose neurons weigh, those of `model_a` or of `model_b`.
    rows, mask, call_index
        What a row is, which tokens count, and which call of a layer that runs more than once; see `watch`. The
        result's ``.rows`` says what was used.
    forward : callable ``(model, batch) -> anything``, optional
        How to run a model on a batch, if the above does not fit.
    precision, nonfinite, device, threads
        As in `Moments`; ``device='cpu'`` copies rows that are elsewhere.
    progress : 'auto' or bool
        Progress bar on stderr; 'auto' shows it on a terminal.

    Returns
    -------
    LayerComparison
        ``.matrix`` holds the similarities, ``[layer_a, layer_b]`` a full result.

    Raises
    ------
    LayerError
        A layer does not exist, was never called, returns no tensor, or its rows do not line up with the others'.
    InputError
        The loader is empty, or a measure refuses its data.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
    >>> net_a, net_b = torch.nn.Sequential(a, torch.nn.ReLU()), torch.nn.Sequential(b, torch.nn.ReLU())
    >>> compare(net_a, net_b, torch.randn(500, 8), precision="float64").matrix.shape
    (2, 2)
    """
    check_rows(rows)
    rule = parse_rule(variance, nuclear, rank, VARIANCE_99 if measure == "svcca" else FULL)
    check_option("measure", measure, ("svcca", "cca", "pwcca"))
    check_option("side", side, ("x", "y"))
    taps = (
        LayerTap(model_a, layers, device, mask, call_index),
        LayerTap(model_b, layers if layers_b is None else layers_b, device, mask, call_index),
    )
    options = {"precision": precision, "nonfinite": nonfinite, "threads": threads}
    moments = _accumulate(taps, (model_a, model_b), loader, forward or _call, rows, options, progress)
    for tap in taps:
        tap.report_silent()
    names = [[name for name in tap.modules if name in tap.called] for tap in taps]
    results = _all_pairs(
        moments,
        names,
        rule,
        {
            "measure": measure,
            "side": side if measure == "pwcca" else "",
            "ridge": ridge,
            "allow_underdetermined": allow_underdetermined,
            "allow_inaccurate": allow_inaccurate,
        },
    )
    grids = {f"{i}{name}": tap.grids[name] for i, tap in enumerate(taps) for name in tap.ways}
    ways = {f"{i}{name}": way for i, tap in enumerate(taps) for name, way in tap.ways.items()}
    return LayerComparison(
        measure=measure,
        layers_a=tuple(names[0]),
        layers_b=tuple(names[1]),
        results=results,
        n=moments.n,
        rows=describe_rows(grids, ways),
    )


@contextlib.contextmanager
def eval_mode(*models: Module) -> Iterator[None]:
    """Run models in eval mode without gradients; every module gets its own mode back, come what may."""
    import torch

    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        # Not inference_mode: buffers that a model or a loader caches meanwhile could never be trained with.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _call(model: Any, batch: Any) -> Any:
    device = next((p.device for p in model.parameters()), None)
    if isinstance(batch, Mapping):
        arguments = {k: _move(v, device) for k, v in batch.items() if k not in ("label", "labels")}
        return model(**arguments)
    if isinstance(batch, list | tuple):
        batch = batch[0]
    return model(_move(batch, device))


def _move(value: Any, device: Any) -> Any:
    import torch

    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    return value.to(device) if device is not None and hasattr(value, "to") else value


def _accumulate(
    taps: tuple[LayerTap, LayerTap],
    models: tuple[Module, Module],
    loader: Any,
    forward: Forward,
    rows: Rows,
    options: dict[str, Any],
    progress: Progress,
) -> Moments:
    moments: Moments | None = None
    if hasattr(loader, "split") and hasattr(loader, "movedim"):
        loader = loader.split(_ROWS_OF_A_TENSOR)
    if not isinstance(loader, Iterable):
        raise InputError(f"loader: got {type(loader).__name__}, expected an iterable of batches, or a tensor")
    total = len(loader) if isinstance(loader, Sized) else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(*models))
        for tap in taps:
            stack.callback(tap.detach)
            tap.attach()
        bar = stack.enter_context(progress_bar(progress, total, "batch", "compare"))
        for batch in loader:
            forward(models[0], batch)
            if models[1] is not models[0]:
                forward(models[1], batch)
            batch_rows = _take(taps, rows)
            if moments is None:
                moments = _new_moments(batch_rows, options)
            check_same_layers(batch_rows, moments)
            moments.update(batch_rows)
            bar.update(1)
    if moments is None:
        raise InputError("the loader is empty; expected at least one batch")
    return moments


def _take(taps: tuple[LayerTap, LayerTap], rows: Rows) -> dict[str, Tensor]:
    grids = {f"{'ab'[i]}:{name}": grid for i, tap in enumerate(taps) for name, grid in tap.peek().items()}
    ways = choose_ways(grids, rows, name_of=lambda name: name[2:])
    result = {}
    for i, tap in enumerate(taps):
        own = {name[2:]: way for name, way in ways.items() if name.startswith("ab"[i])}
        result.update({f"{'ab'[i]}:{name}": x for name, x in tap.take(own).items()})
    if {name[0] for name in result} != {"a", "b"}:
        raise LayerError("no layer of one of the models was called in its forward pass; choose other layers=")
    check_equal_counts(result)
    return result


def _new_moments(batch_rows: Mapping[str, Tensor], options: dict[str, Any]) -> Moments:
    a = [name for name in batch_rows if name.startswith("a:")]
    b = [name for name in batch_rows if name.startswith("b:")]
    pairs = [(name, name) for name in batch_rows] + [(x, y) for x in a for y in b]
    return Moments({name: int(x.shape[1]) for name, x in batch_rows.items()}, pairs=pairs, **options)


def _all_pairs(
    moments: Moments, names: list[list[str]], rule: Rule, options: dict[str, Any]
) -> tuple[tuple[CCAResult, ...], ...]:
    ridge = options["ridge"]
    views_a = [truncate_view(moments, f"a:{name}", rule, rule.x, ridge) for name in names[0]]
    views_b = [truncate_view(moments, f"b:{name}", rule, rule.y, ridge) for name in names[1]]
    seen: Counter[type[StreamCCAWarning]] = Counter()
    example: dict[type[StreamCCAWarning], str] = {}
    results = []
    for x in views_a:
        row = []
        for y in views_b:
            result, notes = correlate(moments, x, y, **options)
            row.append(result)
            for note in notes:
                seen[type(note)] += 1
                example.setdefault(type(note), f"layers {x.view} and {y.view}: {note}")
        results.append(tuple(row))
    # One warning a kind, not one a cell; every cell keeps its own in .warnings.
    for kind, count in seen.items():
        warnings.warn(
            kind(example[kind] + (f" (and {count - 1} more such notes, see .warnings)" if count > 1 else "")),
            stacklevel=3,
        )
    return tuple(results)
