"""What gives a model: a file, a function and a checkpoint, Hugging Face, timm, or stored answers.

torch, transformers and timm come in only where a model is loaded.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from streamcca.errors import DTypeError, InputError, MissingFileError
from streamcca.multiplicity.models.weights import load_model
from streamcca.views import unknown_name

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class ModelSource(Protocol):
    """What gives a model."""

    def load(self) -> Module:
        """Return the model in eval mode."""


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
    """A model that `streamcca.multiplicity.models.training.train` wrote."""

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
        The file of the model's logits, see `streamcca.multiplicity.answers.predictions`.
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
