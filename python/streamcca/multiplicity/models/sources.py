"""The models of a study: trained here, or from elsewhere (see `streamcca.multiplicity.models.model_sources`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError, MissingFileError
from streamcca.layers import select_layers
from streamcca.multiplicity.models.capture import Captured, capture
from streamcca.multiplicity.models.methods import Method
from streamcca.multiplicity.models.model_sources import (
    Factory,
    HuggingFace,
    Inputs,
    ModelSource,
    StoredAnswers,
    Timm,
    TrainedFile,
)
from streamcca.multiplicity.models.weights import stored_training

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = [
    "Captured",
    "Factory",
    "HuggingFace",
    "Inputs",
    "ModelSource",
    "StoredAnswers",
    "StudyModel",
    "Timm",
    "TrainedFile",
    "capture",
    "models_from",
    "trained_model",
]


@dataclass(frozen=True, repr=False)
class StudyModel:
    """One model of a study.

    Attributes
    ----------
    name, group : str
        The model, and the group of models made in one way that it belongs to.
    method : Method or mapping
        How it was trained; of a model from elsewhere a mapping with at least 'architecture' (see
        `streamcca.multiplicity.models.methods.distance_on_ladder`).
    data_set : str
        Name of what it was trained on.
    layers : tuple of str
        Layers to compare, by name or glob.
    source : ModelSource
        What gives the model. It holds names and paths only, so that a `StudyModel` can be sent to another process.
    features : str
        The layer that gives the features.
    """

    name: str
    group: str
    method: Method | Mapping[str, Any]
    data_set: str
    layers: tuple[str, ...]
    source: ModelSource
    features: str = "features"

    def load(self) -> Module:
        """Return the model, in eval mode, giving logits (N, C); its layers are there.

        Raises
        ------
        MissingFileError, StateFileError, InputError, LayerError, ImportError
            What is missing, in one sentence.
        """
        model = self.source.load()
        for selector in (*self.layers, self.features):
            select_layers(model, selector)
        return model

    @property
    def stored(self) -> StoredAnswers | None:
        """The stored answers, of a model that is here with nothing else."""
        return self.source if isinstance(self.source, StoredAnswers) else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        method = self.method.to_dict() if isinstance(self.method, Method) else dict(self.method)
        source = {"kind": type(self.source).__name__, **_plain(vars(self.source))}
        names = {"name": self.name, "group": self.group, "data_set": self.data_set, "layers": list(self.layers)}
        return {**names, "features": self.features, "method": method, "source": source}

    def __repr__(self) -> str:
        return (
            f"StudyModel({self.name!r}, group {self.group!r}, {type(self.source).__name__}, {len(self.layers)} layers)"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


# ---------------------------------------------------------------------- making the list


def trained_model(path: str | Path, *, group: str | None = None, data_set: str = "train") -> StudyModel:
    """Return a model that was trained here, from its file; it is loaded when it is needed.

    Raises
    ------
    MissingFileError, StateFileError
    """
    about = stored_training(path)
    method = Method.from_dict(about["method"])
    layers = (*(f"stage{i}" for i in range(1, method.depth + 1)), "features")
    return StudyModel(Path(path).stem, group or method.name, method, data_set, layers, TrainedFile(str(path)))


def models_from(
    source: str,
    *,
    group: str,
    data_set: str,
    layers: Sequence[str],
    features: str,
    checkpoints: Sequence[str | Path] | Mapping[str, str | Path] = (),
    method: Mapping[str, Any] | None = None,
    classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    folder: str | None = None,
) -> tuple[StudyModel, ...]:
    """Return the models of a group that come from elsewhere.

    Parameters
    ----------
    source : str
        ``'package.module:function'``, ``'huggingface:NAME_OR_FOLDER'`` or ``'timm:NAME'``.
    group, data_set, layers, features, method
        As in `StudyModel`; without a method, the architecture is the part of `source` after the first colon.
    checkpoints : sequence of paths, or mapping of names to them
        ``.safetensors`` files, one for each model; of a factory none if it gives a trained model; of Hugging Face none.
    classes : int
        For timm.
    arguments, folder
        For a factory, see `Factory`.

    Raises
    ------
    InputError
        A source of no known kind, or checkpoints that are missing or do not belong.
    MissingFileError
        A checkpoint is not there.
    """
    kind, _, rest = source.partition(":")
    if not rest:
        raise InputError(
            f"group {group!r}: got the source {source!r}, expected 'package.module:function', 'huggingface:NAME' or "
            "'timm:NAME'"
        )
    if not layers:
        raise InputError(f"group {group!r}: no layers; name those to compare, such as layers = ['layer*']")
    named = _named(checkpoints, group)
    sources: dict[str, ModelSource]
    if kind == "huggingface":
        if named:
            raise InputError(f"group {group!r}: Hugging Face folders hold their own weights; leave checkpoints out")
        sources = {Path(rest).name: HuggingFace(rest)}
    elif kind == "timm":
        if not named or classes is None:
            missing = "checkpoints (.safetensors)" if not named else "the number of classes"
            raise InputError(f"group {group!r}: {source!r} needs {missing}, since nothing is downloaded")
        sources = {name: Timm(rest, path, classes) for name, path in named.items()}
    else:
        found: dict[str, Any] = dict(named) or {rest: None}
        sources = {name: Factory(source, path, dict(arguments or {}), folder) for name, path in found.items()}
    about = {"architecture": rest, **(method or {})}
    return tuple(
        StudyModel(name, group, about, data_set, tuple(layers), each, features) for name, each in sources.items()
    )


def _named(checkpoints: Any, group: str) -> dict[str, str]:
    items = checkpoints.items() if isinstance(checkpoints, Mapping) else [(Path(p).stem, p) for p in checkpoints]
    named: dict[str, str] = {}
    for name, path in items:
        if name in named:
            raise InputError(
                f"group {group!r}: two checkpoints are called {name!r}; give a mapping from names to their files"
            )
        if not Path(path).is_file():
            raise MissingFileError(2, f"{path}: there is no such file, expected a checkpoint of group {group!r}")
        named[name] = str(path)
    return named
