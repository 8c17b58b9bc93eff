"""Where the models of a study come from: trained here, checkpoints, Hugging Face, timm, or stored answers.

torch, transformers and timm come in only where a model is loaded.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from streamcca.errors import DTypeError, InputError, MissingFileError
from streamcca.layers import select_layers
from streamcca.multiplicity.methods import Method
from streamcca.multiplicity.weights import load_model, stored_training
from streamcca.views import unknown_name

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class ModelSource(Protocol):
    """What gives a model."""

    def load(self) -> Module:
        """Return the model in eval mode."""


@dataclass(frozen=True, repr=False)
class StudyModel:
    """One model of a study.

    Attributes
    ----------
    name, group : str
        The model, and the group of models made in one way that it belongs to.
    method : Method or mapping
        How it was trained; of a model from elsewhere a mapping with at least 'architecture' (see
        `streamcca.multiplicity.methods.distance_on_ladder`).
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


# ---------------------------------------------------------------------- what models get


@dataclass(frozen=True)
class Inputs:
    """What becomes of images in [0, 1] before a model from elsewhere sees them.

    Attributes
    ----------
    size : (height, width), optional
        Images of another size are resized, bilinear, antialiased.
    channels : int, optional
        3 repeats gray images, 1 averages colors.
    mean, std : tuple of float
        Subtracted and divided by, for each channel; () for neither.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def apply(self, images: Tensor) -> Tensor:
        """Return the images as the model wants them."""
        import torch
        from torch.nn.functional import interpolate

        if self.channels is not None and images.shape[1] != self.channels:
            if 1 not in (self.channels, images.shape[1]):
                raise InputError(
                    f"images: got {images.shape[1]} channels, expected {self.channels} or 1; convert them first"
                )
            gray = images.mean(dim=1, keepdim=True)
            images = gray.expand(-1, self.channels, -1, -1)
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            images = interpolate(images, size=self.size, mode="bilinear", antialias=True)
        if self.mean:
            mean, std = (torch.tensor(x, dtype=images.dtype, device=images.device) for x in (self.mean, self.std))
            images = (images - mean[:, None, None]) / std[:, None, None]
        return images

    def attach(self, model: Module) -> None:
        """Prepare whatever images the model is called with; the names of its layers stay."""

        def prepare(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self.apply(arguments[0]), *arguments[1:])

        if self != Inputs():
            model.register_forward_pre_hook(prepare)


def _inputs(size: Any, channels: Any, mean: Any, std: Any) -> Inputs:
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge)) if size.get("height", edge) else None
    pair = (size, size) if isinstance(size, int) else tuple(size) if size else None
    return Inputs(pair, channels, tuple(mean or ()), tuple(std or ()))


# ---------------------------------------------------------------------- sources


@dataclass(frozen=True)
class TrainedFile:
    """A model that `streamcca.multiplicity.training.train` wrote."""

    path: str

    def load(self) -> Module:
        """Return the model in eval mode."""
        return load_model(self.path)


@dataclass(frozen=True)
class Factory:
    """A function of the user's that makes a model, and a checkpoint of its weights.

    Attributes
    ----------
    function : str
        ``package.module:function``.
    checkpoint : str, optional
        A ``.safetensors`` file; without one the function gives a model that is trained.
    arguments : mapping
        Given to the function by keyword.
    folder : str, optional
        Where the module lies, if it is not installed.
    inputs : Inputs
    """

    function: str
    checkpoint: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    inputs: Inputs = field(default_factory=Inputs)

    def load(self) -> Module:
        """Return the model in eval mode."""
        from streamcca.many import load_checkpoint

        model = self._function()(**self.arguments)
        if not hasattr(model, "named_modules"):
            raise DTypeError(f"{self.function}: got {type(model).__name__}, expected it to return a torch.nn.Module")
        if self.checkpoint is not None:
            load_checkpoint(model, self.checkpoint, self.checkpoint)
        self.inputs.attach(model)
        result: Module = model.eval()
        return result

    def _function(self) -> Any:
        module_name, _, name = self.function.partition(":")
        if not module_name or not name:
            raise InputError(f"factory: got {self.function!r}, expected 'package.module:function'")
        before = list(sys.path)
        try:
            if self.folder is not None:
                sys.path.insert(0, self.folder)
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"factory {self.function!r}: {error}; install it, or give the folder in which {module_name!r} lies"
            ) from None
        finally:
            sys.path[:] = before
        function = getattr(module, name, None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise InputError(f"factory {self.function!r}: " + unknown_name("function", name, known))
        return function


@dataclass(frozen=True)
class HuggingFace:
    """An image classifier of transformers, from a folder or from the local cache; nothing is downloaded or unpickled.

    Size, channels, mean and deviation are those of the folder's ``preprocessor_config.json`` and of the model.
    """

    name: str

    def load(self) -> Module:
        """Return the model in eval mode; its output is the logits alone."""
        try:
            from transformers import AutoModelForImageClassification
        except ImportError:
            raise ImportError(
                f"model 'huggingface:{self.name}' needs transformers; install streamcca[huggingface]"
            ) from None
        try:
            model = AutoModelForImageClassification.from_pretrained(
                self.name, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise MissingFileError(
                2,
                f"model 'huggingface:{self.name}': no image classifier with .safetensors weights in that folder or in "
                f"the local cache ({first}); download it first",
            ) from None
        self._inputs(model.config).attach(model)
        model.register_forward_hook(_only_logits)
        result: Module = model.eval()
        return result

    def _inputs(self, config: Any) -> Inputs:
        path, about = Path(self.name) / "preprocessor_config.json", {}
        if path.is_file():
            about = json.loads(path.read_text())
        size = getattr(config, "image_size", None) or about.get("size")
        normal = about.get("do_normalize", True)
        mean, std = (about.get(key) if normal else None for key in ("image_mean", "image_std"))
        return _inputs(size, getattr(config, "num_channels", None), mean, std)


def _only_logits(_: Any, __: Any, output: Any) -> Any:
    return output.logits


@dataclass(frozen=True)
class Timm:
    """A model of timm with weights from a local file; nothing is downloaded."""

    name: str
    checkpoint: str
    classes: int

    def load(self) -> Module:
        """Return the model in eval mode."""
        try:
            timm = importlib.import_module("timm")
        except ImportError:
            raise ImportError(f"model 'timm:{self.name}' needs timm; install it with pip install timm") from None
        from streamcca.many import load_checkpoint

        try:
            model = timm.create_model(self.name, pretrained=False, num_classes=self.classes)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"model 'timm:{self.name}': {error}; see timm.list_models()") from None
        load_checkpoint(model, self.checkpoint, self.checkpoint)
        about = getattr(model, "pretrained_cfg", None) or {}
        channels, *size = about.get("input_size") or (None,)
        _inputs(size, channels, about.get("mean"), about.get("std")).attach(model)
        result: Module = model.eval()
        return result


@dataclass(frozen=True)
class StoredAnswers:
    """No model at all: logits and scores that were stored before.

    Attributes
    ----------
    logits : str
        The file of the model's logits, see `streamcca.multiplicity.predictions`.
    scores : mapping of str to str
        For each probe set, a file of `streamcca.SubspaceScores`.
    """

    logits: str | None = None
    scores: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Module:
        """Refuse: there is no model."""
        raise InputError(
            "model: it consists of stored answers, so nothing new can be asked of it; give its answers to these "
            "images, or the model"
        )

    def check(self) -> None:
        """Refuse answers whose files are missing.

        Raises
        ------
        MissingFileError
        """
        for path in [*([self.logits] if self.logits else []), *self.scores.values()]:
            if not Path(path).is_file():
                raise MissingFileError(2, f"{path}: there is no such file, expected stored logits or scores")


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
