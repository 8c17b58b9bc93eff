"""Many models, or many states of one: every two of them, from the scores of each."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.comparison import LayerComparison
from streamcca.errors import InputError, LayerError, MissingFileError
from streamcca.layers import Layers, unwrapped
from streamcca.scores import SubspaceScores, Warned, subspace_scores, tell
from streamcca.views import unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.nn import Module

Checkpoint = Mapping[str, Any] | str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison:
    """Layer by layer similarity of every two of several models.

    Attributes
    ----------
    measure : str
        The measure in the cells.
    names : tuple of str
        The models.
    scores : tuple of SubspaceScores
        What was kept of each; they can be saved, and compared with others later.
    comparisons : dict of (int, int) to LayerComparison
        One for every two models i < j.
    """

    measure: str
    names: tuple[str, ...]
    scores: tuple[SubspaceScores, ...] = field(repr=False)
    comparisons: dict[tuple[int, int], LayerComparison] = field(repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that all models have, in the order of the first."""
        return tuple(name for name in self.scores[0].layers if all(name in s.layers for s in self.scores))

    def __getitem__(self, models: tuple[str, str]) -> LayerComparison:
        """Comparison of two models by name, in the order in which they were given."""
        if not isinstance(models, tuple) or len(models) != 2:
            raise InputError(f"got {models!r}, expected result[name of a model, name of another]")
        for name in models:
            if name not in self.names:
                raise InputError(unknown_name("model", name, self.names))
        i, j = (self.names.index(name) for name in models)
        if (i, j) not in self.comparisons:
            raise InputError(
                f"got {models!r}, expected two different models in the order in which they were given: "
                f"{', '.join(map(repr, self.names))}"
            )
        return self.comparisons[i, j]

    def layer_matrix(self, layer: str) -> FloatArray:
        """Return the similarities (models, models) of one layer that all models have; 1 on the diagonal.

        Raises
        ------
        LayerError
        """
        if layer not in self.layers:
            raise LayerError(unknown_name("layer", layer, self.layers))
        matrix = np.eye(len(self.names))
        for (i, j), comparison in self.comparisons.items():
            matrix[i, j] = matrix[j, i] = comparison[layer, layer].mean
        return matrix

    @property
    def matrix(self) -> FloatArray:
        """Similarities (layers, models, models) of the layers that all models have."""
        return np.array([self.layer_matrix(layer) for layer in self.layers])

    def table(self) -> str:
        """Return, for each layer, mean, smallest and largest similarity of two models, and the mean chance level."""
        width = max([5, *map(len, self.layers)])
        lines = [f"{'layer':<{width}}  {'mean':>6}  {'least':>6}  {'most':>6}  {'chance':>6}"]
        for layer in self.layers:
            cells = [comparison[layer, layer] for comparison in self.comparisons.values()]
            values = [cell.mean for cell in cells]
            chance = float(np.mean([cell.null_mean for cell in cells]))
            numbers = (float(np.mean(values)), min(values), max(values), chance)
            lines.append(f"{layer:<{width}}  " + "  ".join(f"{number:6.3f}" for number in numbers))
        first = self.scores[0]
        bound = max(float(c.error_bounds.max()) for c in self.comparisons.values())
        lines.append(
            f"{self.measure.upper()} of {len(self.names)} models, {len(self.comparisons)} pairs, n = {first.n} "
            f"{first.rows}; largest error bound {bound:.1e}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "measure": self.measure,
            "names": list(self.names),
            "layers": list(self.layers),
            "matrix": self.matrix.tolist(),
            "comparisons": [
                {"a": self.names[i], "b": self.names[j], **c.to_dict()} for (i, j), c in self.comparisons.items()
            ],
        }

    def plot(self, layer: str | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the models against each other: the similarity of one layer, or its mean over all layers."""
        from streamcca.plots import plot_models

        return plot_models(self, layer, ax=ax)

    def __repr__(self) -> str:
        pairs = np.array([c[name, name].mean for c in self.comparisons.values() for name in self.layers])
        extent = f", similarity {pairs.min():.3f} to {pairs.max():.3f}" if len(pairs) else ""
        return f"ModelComparison({self.measure}, {len(self.names)} models, {len(self.layers)} layers in all{extent})"


def compare_scores(
    a: SubspaceScores, b: SubspaceScores, pairing: dict[str, Any], allow_other_probe: bool = False
) -> tuple[LayerComparison, Warned]:
    """Compare all layers of two models from their scores; returns the result and its warnings."""
    a.check_same_rows(b, allow_other_probe)
    notes: Warned = []
    results = []
    for name in a.layers:
        row = []
        for other in b.layers:
            result, own = a.pair(name, b, other, **pairing)
            row.append(result)
            notes += own
        results.append(tuple(row))
    rows = a.rows if a.rows == b.rows else f"{a.rows} against {b.rows}"
    layers = (tuple(a.layers), tuple(b.layers))
    return LayerComparison(pairing["measure"], *layers, tuple(results), a.n, rows, "scores"), notes


def _all_pairs(scores: list[SubspaceScores], pairing: dict[str, Any], allow_other_probe: bool) -> ModelComparison:
    notes: Warned = []
    comparisons = {}
    for j in range(len(scores)):
        for i in range(j):
            comparisons[i, j], own = compare_scores(scores[i], scores[j], pairing, allow_other_probe)
            notes += own
    tell(notes, stacklevel=4)
    ordered = dict(sorted(comparisons.items()))
    return ModelComparison(pairing["measure"], tuple(s.name for s in scores), tuple(scores), ordered)


def _named(items: Any, kind: str) -> dict[str, Any]:
    if isinstance(items, Mapping):
        named = dict(items)
    else:
        names = [item.name if isinstance(item, SubspaceScores) else f"{kind} {i}" for i, item in enumerate(items)]
        named = dict(zip(names, items, strict=True))
        if len(named) < len(items):
            raise InputError(f"{kind}s: two have the same name ({', '.join(names)}); give a mapping from names to them")
    if len(named) < 2:
        raise InputError(f"{kind}s: got {len(named)}, expected at least two")
    return named


def compare_models(
    models: Any,
    loader: Any,
    layers: Layers,
    making: dict[str, Any],
    pairing: dict[str, Any],
    allow_other_probe: bool,
) -> ModelComparison:
    """Compare every two of several models, each run on its own; see `compare`."""
    named = _named(models, "model")
    by_name = isinstance(loader, Mapping)
    if by_name and loader.keys() != named.keys():
        raise InputError(f"loader: got loaders for {sorted(loader)}, expected one for each of {sorted(named)}")
    scores = []
    for name, model in named.items():
        if isinstance(model, SubspaceScores):
            scores.append(replace(model, name=name))
        else:
            own = loader[name] if by_name else loader
            scores.append(subspace_scores(model, own, layers, name=name, **making))
    return _all_pairs(scores, pairing, allow_other_probe)


def compare_checkpoints(
    model: Module,
    checkpoints: Sequence[Checkpoint] | Mapping[str, Checkpoint],
    loader: Any,
    layers: Layers,
    making: dict[str, Any],
    pairing: dict[str, Any],
) -> ModelComparison:
    """Compare every two states of one model; see `compare`."""
    if isinstance(checkpoints, Mapping) and any(hasattr(value, "detach") for value in checkpoints.values()):
        raise InputError("checkpoints: got one state dict, expected a list or mapping of at least two")
    model = unwrapped(model)
    named = {name: _of_its_own(model, state) for name, state in _named(checkpoints, "checkpoint").items()}
    scores = []
    with own_state_kept(model):
        for name, checkpoint in named.items():
            load_checkpoint(model, checkpoint, name)
            scores.append(subspace_scores(model, loader, layers, name=name, **making))
    return _all_pairs(scores, pairing, allow_other_probe=False)


def _of_its_own(model: Module, checkpoint: Checkpoint) -> Checkpoint:
    """Copy a state that lies in the model's own memory, where the next checkpoint would be written over it."""
    if not isinstance(checkpoint, Mapping):
        return checkpoint
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values() if hasattr(value, "detach")}
    return {
        key: value.detach().clone() if hasattr(value, "detach") and value.untyped_storage().data_ptr() in own else value
        for key, value in checkpoint.items()
    }


@contextlib.contextmanager
def own_state_kept(model: Module) -> Iterator[None]:
    """Give a model its own weights and buffers back, come what may."""
    state = copy.deepcopy(model.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(state)


def load_checkpoint(model: Module, checkpoint: Checkpoint, name: str) -> None:
    """Give a model the state of a checkpoint: a state dict, or a file of one.

    Raises
    ------
    MissingFileError, InputError
    """
    state = checkpoint if isinstance(checkpoint, Mapping) else _read_checkpoint(Path(checkpoint))
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"checkpoint {name!r}: it does not fit this {type(model).__name__} ({error}); give its own states"
        ) from None


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise MissingFileError(2, f"{path}: there is no such file, expected a checkpoint")
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: got a checkpoint that may hold a pickle, expected .safetensors, since nothing is unpickled here; "
            "read it with torch yourself (weights_only=True) and give the state dict"
        )
    from safetensors.torch import load_file

    tensors: Mapping[str, Any] = load_file(path)
    return tensors
