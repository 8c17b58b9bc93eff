"""Compiled code runs eagerly while layers are watched.

A forward hook that is registered after the first call of a compiled module never fires, without a word, and one
registered before is either traced into the graph or breaks it. So compiled code steps aside for the time of a watch,
whatever was compiled: the model, a part of it, or a function around it. Importing this module does not import torch.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from streamcca.errors import LayerError

if TYPE_CHECKING:
    from torch.nn import Module


def compiled_modules(model: Module) -> list[str]:
    """Names of the modules inside that are compiled, as far as they show it ('' is the model itself)."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
    ]


class _Stance:
    """What all open watches of the process share: the first changes how compiled code runs, the last one ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._handle: Any = None

    def take(self, model: Module) -> None:
        import torch

        set_stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
        if set_stance is None:
            found = compiled_modules(model)
            if found:
                raise LayerError(
                    f"model: module {found[0]!r} is compiled, and hooks on compiled modules may never fire; watch the "
                    "model before torch.compile, or use torch 2.6 or newer, where it runs eagerly while watched"
                )
            return
        with self._lock:
            if self._users == 0:
                self._handle = set_stance("force_eager")
            self._users += 1

    def release(self) -> None:
        with self._lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users == 0:
                self._handle.__exit__(None, None, None)
                self._handle = None


EAGER = _Stance()
