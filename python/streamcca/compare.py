"""All layer pairs of two models in one pass over the data, or two; of many models, from their scores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from streamcca.comparison import LayerComparison
from streamcca.errors import InputError
from streamcca.layer_measures import asked_for, check_options, compare_measures
from streamcca.layer_pairs import WAYS, LayerPairs
from streamcca.layers import Layers, unwrapped
from streamcca.many import Checkpoint, ModelComparison, compare_checkpoints, compare_models, compare_scores
from streamcca.masks import Mask
from streamcca.moments import NonFinite, Precision
from streamcca.pairing import FULL, VARIANCE_99, Measure, Progress
from streamcca.plan import Strategy
from streamcca.resize import Resize, ResizeBy, make_resizer
from streamcca.routes import refuse_sketching
from streamcca.rows import Rows
from streamcca.scores import SubspaceScores, tell
from streamcca.subspace import Rule, checked_ridge, parse_rule
from streamcca.sweep import Forward, Sweep
from streamcca.tap import CallIndex, LayerTap
from streamcca.views import check_option

if TYPE_CHECKING:
    from torch.nn import Module

    Models = Sequence[Module | SubspaceScores] | Mapping[str, Module | SubspaceScores]
    Checkpoints = Sequence[Checkpoint] | Mapping[str, Checkpoint]


@overload
def compare(
    model_a: Module | SubspaceScores,
    model_b: Module | SubspaceScores,
    loader: Any = None,
    layers: Layers = None,
    **options: Any,
) -> LayerComparison: ...
@overload
def compare(
    model_a: Models, model_b: Any = None, loader: Any = None, layers: Layers = None, **options: Any
) -> ModelComparison: ...
@overload
def compare(
    model_a: Module, model_b: Checkpoints, loader: Any, layers: Layers = None, **options: Any
) -> ModelComparison: ...
def compare(  # type: ignore[misc]
    model_a: Any,
    model_b: Any = None,
    loader: Any = None,
    layers: Layers = None,
    *,
    layers_b: Layers = None,
    loader_b: Any = None,
    measure: Measure | str | Sequence[str] = "svcca",
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    side: str = "x",
    ridge: float = 0.0,
    rows: Rows = "auto",
    mask: Mask = "auto",
    call_index: CallIndex = None,
    resize: Resize = None,
    resize_by: ResizeBy = "fourier",
    forward: Forward | None = None,
    strategy: Strategy = "auto",
    memory: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    directions: int | None = None,
    power: int = 0,
    precision: Precision = "auto",
    nonfinite: NonFinite = "raise",
    device: str | None = None,
    threads: int | None = None,
    progress: Progress = "auto",
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    allow_other_probe: bool = False,
    intervals: bool = False,
    level: float = 0.95,
    parts: int = 32,
    alpha: float = 0.5,
) -> Any:
    """Compare every layer of one model with every layer of another, or of many models.

    ``compare(model_a, model_b, loader)`` compares two; ``compare(models, loader)`` every two of a list or mapping of
    models; ``compare(model, checkpoints, loader)`` every two states of one model; ``compare(scores_a, scores_b)`` and
    ``compare(list_of_scores)`` what `subspace_scores` kept, without model or data.

    Parameters
    ----------
    model_a, model_b : torch.nn.Module
        The models; the same object twice compares a model's layers with each other. They run in eval mode
        without gradients, and get their mode back. Of many models each is run on its own and only its `SubspaceScores`
        are kept. Checkpoints are state dicts, or ``.safetensors`` files of them; the model gets its own state back.
    loader : iterable
        Batches: a tensor, a tuple or list whose first item is the input, or a mapping of keyword
        arguments (labels are left out). Both models see each batch. A tensor instead of a loader is cut into
        batches. Of many models, a mapping with their names gives each a loader of its own.
    layers, layers_b
        Layers of both models; `layers_b` those of `model_b` if they differ; see `watch`.
    loader_b : iterable, optional
        What `model_b` sees, if it needs the same samples in another form: the same number of rows, in the same order.
    measure : str or sequence of str
        'svcca', 'cca', 'pwcca', or, for two models side by side, any key of `MEASURES` that moments can form; several
        give a mapping from name to `LayerComparison`, from one pass.
    variance, nuclear, rank, ridge, allow_underdetermined, allow_inaccurate
        As in `svcca`; without a rule SVCCA keeps 99 % of the variance, CCA and PWCCA everything. Scores were cut
        when they were made, 99 % by default also for CCA and PWCCA.
    side : 'x' or 'y'
        For PWCCA: whose neurons weigh, those of `model_a` or of `model_b`.
    rows, mask, call_index
        What a row is, which tokens count, and which call of a layer that runs more than once; see `watch`. The
        result's ``.rows`` says what was used.
    resize, resize_by
        Maps of one size; see `watch`. 'smallest' is the smallest of both models; of many models, of each.
    forward : callable ``(model, batch) -> anything``, optional
        How to run a model on a batch, if the above does not fit.
    strategy, memory
        How the pairs of two models are formed, and how many bytes that may take; see `plan`, whose bill is printed
        where a progress bar is shown. ``'replay'`` and ``'sketch'`` read the loader twice or more often; ``'gram'``
        writes all rows to disk; ``'qr'`` is for ill-conditioned layers, and only taken when asked for.
    folder : path, optional
        Keeps the state of every pass, written at most every five minutes; for ``'gram'``, where the rows wait (by
        default a temporary folder). A job that was killed and is started again with the same folder, models and loader
        goes on from there, to the same bits: rows that are there are not written again, and of batches that were
        counted only the inputs are read and compared, except for the first, on which the models run. What was kept is
        removed in the end. Other measures than 'svcca', 'cca' and 'pwcca', or intervals, keep nothing.
    directions, power
        For ``'sketch'``: directions of each layer, by default as many as the rule turns out to need, and power steps,
        a pass each, which bring a slowly decaying spectrum much closer; see `svcca`. The cells hold no weights of
        neurons.
    precision, nonfinite, device, threads
        As in `Moments`: rows on a CUDA device are counted there, for ``'sketch'`` and ``'qr'`` if CuPy is installed,
        intervals on the CPU; ``device='cpu'`` copies rows that are elsewhere.
    progress : 'auto' or bool
        Progress bar on stderr; 'auto' shows it on a terminal.
    intervals, level, parts
        For two models side by side: estimate the numbers of the population, each with its interval, from parts of the
        rows; each batch goes to one part as a whole, so that the rows of a sample stay together. At least 8 batches;
        see `interval`.
    alpha : float
        For 'shape' and 'shape_angle'.
    allow_other_probe : bool
        Compare scores whose inputs differ, if their rows belong together all the same.

    Returns
    -------
    LayerComparison
        ``.matrix`` holds the similarities, ``[layer_a, layer_b]`` a full result. For more than two models a
        `ModelComparison`, whose ``[name_a, name_b]`` is one.

    Raises
    ------
    LayerError
        A layer does not exist, was never called, returns no tensor, or its rows do not line up with the others'.
    InputError
        The loader is empty, or a measure refuses its data.
    StateFileError
        The folder holds what another job has kept, or a damaged file.
    MemoryLimitError
        No way to form the pairs fits into the memory.
    ReplayError
        A second pass brought other rows than the first.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
    >>> net_a, net_b = torch.nn.Sequential(a, torch.nn.ReLU()), torch.nn.Sequential(b, torch.nn.ReLU())
    >>> compare(net_a, net_b, torch.randn(500, 8), precision="float64").matrix.shape
    (2, 2)
    """
    check_option("side", side, ("x", "y"))
    formed = asked_for(measure, intervals, side)
    check_option("strategy", strategy, ("auto", *WAYS))
    pairing = {
        "measure": measure,
        "side": side if measure == "pwcca" else "",
        "allow_underdetermined": allow_underdetermined,
        "allow_inaccurate": allow_inaccurate,
    }
    making = {
        "variance": variance,
        "nuclear": nuclear,
        "rank": rank,
        "ridge": ridge,
        "rows": rows,
        "mask": mask,
        "call_index": call_index,
        "resize": resize,
        "resize_by": resize_by,
        "forward": forward,
        "precision": precision,
        "device": device,
        "threads": threads,
        "progress": progress,
    }
    one_by_one = not (hasattr(model_a, "named_modules") and hasattr(model_b, "named_modules"))
    if formed is not None:
        check_options(formed, not one_by_one, strategy, ridge, memory, intervals)
    if one_by_one:
        _refuse_options_of_two(layers_b, loader_b, strategy, memory, nonfinite, folder)
        refuse_sketching({"directions": directions, "power": power})
    if isinstance(model_a, SubspaceScores) and isinstance(model_b, SubspaceScores):
        result, notes = compare_scores(model_a, model_b, pairing, allow_other_probe)
        tell(notes, stacklevel=2)
        return result
    if isinstance(model_a, list | tuple | Mapping):
        models_loader = model_b if loader is None else loader
        return compare_models(model_a, models_loader, layers, making, pairing, allow_other_probe)
    if isinstance(model_b, list | tuple | Mapping):
        return compare_checkpoints(model_a, model_b, loader, layers, making, pairing)

    if not hasattr(model_b, "named_modules"):
        raise InputError(
            f"model_b: got {type(model_b).__name__}, expected a torch.nn.Module, a list or mapping of checkpoints, or "
            "SubspaceScores where model_a are scores; compare(models, loader) takes many models"
        )
    if loader_b is not None and unwrapped(model_a) is unwrapped(model_b):
        raise InputError("loader_b: one model cannot read two loaders at once; give two copies of the model")
    resizer = make_resizer(resize, resize_by)
    sweep = Sweep(
        {
            "a:": LayerTap(model_a, layers, device, mask, call_index, resizer),
            "b:": LayerTap(model_b, layers if layers_b is None else layers_b, device, mask, call_index, resizer),
        },
        {"a:": loader, "b:": loader if loader_b is None else loader_b},
        rows=rows,
        forward=forward,
        progress=progress,
    )
    options = {"precision": precision, "nonfinite": nonfinite, "threads": threads, "device": device}
    if formed is not None:
        _refuse_keeping(folder, directions, power)
        found = compare_measures(
            sweep,
            formed,
            options,
            memory=memory,
            forming={
                **{"variance": variance, "nuclear": nuclear, "rank": rank, "alpha": alpha, "level": level},
                **{"allow_underdetermined": allow_underdetermined, "allow_inaccurate": allow_inaccurate},
            },
            parts=parts if intervals else None,
            progress=progress,
        )
        return found[formed[0]] if isinstance(measure, str) else found
    rule = parse_rule(variance, nuclear, rank, VARIANCE_99 if measure == "svcca" else FULL)
    ridge = checked_ridge(ridge)
    bounds = {
        "strategy": strategy,
        "memory": memory,
        "folder": folder,
        "directions": directions,
        "power": power,
    }
    return _two_models(sweep, rule, options, pairing | {"ridge": ridge}, bounds, progress)


def _refuse_keeping(folder: Any, directions: Any, power: Any) -> None:
    if folder is not None:
        raise InputError(
            "folder: got a folder, expected None: only 'svcca', 'cca' and 'pwcca' of two models go on where they were"
        )
    refuse_sketching({"directions": directions, "power": power})


def _refuse_options_of_two(
    layers_b: Any, loader_b: Any, strategy: str, memory: Any, nonfinite: str, folder: Any
) -> None:
    """Refuse what has a meaning only where two models run side by side."""
    given = {
        "layers_b": layers_b is not None,
        "loader_b": loader_b is not None,
        "strategy": strategy != "auto",
        "memory": memory is not None,
        "folder": folder is not None,
        # Each model would leave out rows of its own.
        "nonfinite": nonfinite != "raise",
    }
    for name, is_given in given.items():
        if is_given:
            raise InputError(f"{name}: it is for two models side by side, not for many models, checkpoints or scores")


def _two_models(
    sweep: Sweep,
    rule: Rule,
    options: dict[str, Any],
    pairing: dict[str, Any],
    bounds: dict[str, Any],
    progress: Progress,
) -> LayerComparison:
    with contextlib.ExitStack() as stack:
        first = LayerPairs(sweep, options, rule, bounds, pairing, progress, stack)
        first.run()
        sweep.report_silent()
        names = {key: sweep.names(key) for key in sweep.taps}
        correlate_pair, n = first.pairing({key + name: key for key, own in names.items() for name in own})
        results, notes = [], []
        for a in names["a:"]:
            row = []
            for b in names["b:"]:
                result, own_notes = correlate_pair(f"a:{a}", f"b:{b}")
                row.append(result)
                notes += [(f"layers a:{a} and b:{b}", note) for note in own_notes]
            results.append(tuple(row))
        first.done()
    tell(notes, stacklevel=3)
    return LayerComparison(
        measure=pairing["measure"],
        layers_a=tuple(names["a:"]),
        layers_b=tuple(names["b:"]),
        results=tuple(results),
        n=n,
        rows=sweep.describe_rows(),
        strategy=first.bill.strategy,
    )
