"""Choosing the layers of a torch module by name, glob, regular expression, class or callable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError, LayerError
from streamcca.views import unknown_name

if TYPE_CHECKING:
    from torch.nn import Module

Selector = str | re.Pattern[str] | type | Callable[[str, Any], bool]
Layers = Selector | Iterable[Selector] | None


def select_layers(model: Module, layers: Layers) -> dict[str, Module]:
    """Return the chosen layers, in the order of the model.

    Parameters
    ----------
    model : torch.nn.Module
    layers : str, re.Pattern, type, callable, torch.nn.Module, an iterable of them, or None
        A name such as ``'layer1.0.conv1'``; a glob, in which ``*``, ``?`` and ``[12]`` stand for
        anything within one part of a dotted name and ``**`` for any number of parts; a regular
        expression that matches the whole name; a module class; a callable ``(name, module) ->
        bool``; a module of the model itself. None takes every module without children.

    Raises
    ------
    LayerError
        A selector matches nothing.
    """
    if not hasattr(model, "named_modules"):
        raise InputError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    if not modules:
        raise LayerError(
            f"model: this {type(model).__name__} has no layers inside; watch torch.nn.Sequential(model), layer '0'"
        )
    if layers is None:
        chosen = {name for name, module in modules.items() if next(module.children(), None) is None}
    else:
        chosen = set()
        for selector in selectors_of(layers):
            chosen |= _matches(modules, selector)
    result: dict[str, Module] = {}
    for name, module in modules.items():
        # A module that has two names is watched once, under the first.
        if name in chosen and all(module is not other for other in result.values()):
            result[name] = module
    return result


def unwrapped(model: Module) -> Module:
    """Return the model inside ``torch.compile`` and ``DistributedDataParallel``: its calls are theirs, its names plain.

    Raises
    ------
    LayerError
        The model is a ``DataParallel``: its replicas run in threads and share one set of hooks.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("torch.")}
    if "DataParallel" in kinds:
        raise LayerError(
            "model: DataParallel runs copies of the model, which hooks do not see; use DistributedDataParallel, or "
            "watch and call the module inside (model.module)"
        )
    if "OptimizedModule" in kinds:
        return unwrapped(model._orig_mod)  # type: ignore[arg-type]
    if "DistributedDataParallel" in kinds:
        return unwrapped(model.module)  # type: ignore[arg-type]
    return model


def selectors_of(layers: Layers) -> list[Any]:
    """Return the selectors one by one."""
    if layers is None:
        return []
    if isinstance(layers, str | re.Pattern) or callable(layers):
        return [layers]
    if not isinstance(layers, Iterable):
        raise InputError(f"layers: got {layers!r}, expected {_KINDS}")
    selectors = list(layers)
    if not selectors:
        raise InputError("layers: got an empty list, expected at least one layer, or None for all without children")
    return selectors


_KINDS = "a name, a glob, a compiled regular expression, a module class, a callable (name, module) -> bool, or a list"


def _matches(modules: dict[str, Any], selector: Any) -> set[str]:
    if isinstance(selector, str):
        if selector in modules:
            return {selector}
        pattern = glob_pattern(selector)
        found = {name for name in modules if pattern.fullmatch(name)}
    elif isinstance(selector, re.Pattern):
        found = {name for name in modules if selector.fullmatch(name)}
    elif isinstance(selector, type):
        found = {name for name, module in modules.items() if isinstance(module, selector)}
    elif hasattr(selector, "named_modules"):
        found = {name for name, module in modules.items() if module is selector}
    elif callable(selector):
        found = {name for name, module in modules.items() if selector(name, module)}
    else:
        raise InputError(f"layers: got {selector!r}, expected {_KINDS}")
    if not found:
        text = selector if isinstance(selector, str) else getattr(selector, "pattern", type(selector).__name__)
        raise LayerError(unknown_name("layer", text, modules))
    return found


def glob_pattern(text: str) -> re.Pattern[str]:
    """Return the expression of a glob: ``*``, ``?``, ``[12]`` within one part of a dotted name, ``**`` across."""
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", text)
    wild = {"**": ".*", "*": "[^.]*", "?": "[^.]"}

    def translate(part: str) -> str:
        if part.startswith("[") and part.endswith("]"):
            return "[" + part[1:-1].replace("!", "^", part[1:2] == "!") + "]"
        return wild.get(part, re.escape(part))

    try:
        return re.compile("".join(translate(part) for part in parts))
    except re.error as error:
        raise InputError(f"layers: {text!r} is no glob ({error})") from None
