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
    layers : str, re.Pattern, type, callable, an iterable of them, or None
        A name such as ``'layer1.0.conv1'``; a glob, in which ``*`` stands for anything within one
        part of a dotted name and ``**`` for any number of parts; a regular expression that matches the
        whole name; a module class; a callable ``(name, module) -> bool``. None takes every
        module without children.

    Raises
    ------
    LayerError
        A name, glob or expression matches nothing.
    """
    if not hasattr(model, "named_modules"):
        raise InputError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    if layers is None:
        chosen = {name for name, module in modules.items() if next(module.children(), None) is None}
    else:
        single = isinstance(layers, str | re.Pattern) or callable(layers)
        selectors: list[Any] = [layers] if single else list(layers)  # type: ignore[arg-type]
        chosen = set()
        for selector in selectors:
            chosen |= _matches(modules, selector)
    result: dict[str, Module] = {}
    for name, module in modules.items():
        # A module that has two names is watched once, under the first.
        if name in chosen and all(module is not other for other in result.values()):
            result[name] = module
    if not result:
        raise LayerError("layers: no layer is chosen; the model has none without children")
    return result


def is_explicit(layers: Layers, name: str) -> bool:
    """Whether a layer was asked for by its own name, not by a pattern."""
    if isinstance(layers, str):
        return layers == name
    if layers is None or isinstance(layers, re.Pattern) or callable(layers):
        return False
    return name in [selector for selector in layers if isinstance(selector, str)]


def _matches(modules: dict[str, Any], selector: Any) -> set[str]:
    if isinstance(selector, str):
        if selector in modules:
            return {selector}
        pattern = _glob(selector)
        found = {name for name in modules if pattern.fullmatch(name)}
    elif isinstance(selector, re.Pattern):
        found = {name for name in modules if selector.fullmatch(name)}
    elif isinstance(selector, type):
        found = {name for name, module in modules.items() if isinstance(module, selector)}
    elif callable(selector):
        found = {name for name, module in modules.items() if selector(name, module)}
    else:
        raise InputError(
            f"layers: got {selector!r}, expected a name, a glob, a compiled regular expression, a module class or a "
            "callable"
        )
    if not found:
        text = selector if isinstance(selector, str) else getattr(selector, "pattern", repr(selector))
        raise LayerError(unknown_name("layer", text, modules))
    return found


def _glob(text: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?)", text)
    wild = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts))
