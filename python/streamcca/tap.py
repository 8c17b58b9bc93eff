"""Hooks on the layers of one model: copies of their rows, one forward at a time."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from streamcca.devices import checked_device
from streamcca.eager import EAGER
from streamcca.errors import InputError, LayerError, StreamCCAWarning
from streamcca.layers import Layers, glob_pattern, select_layers, selectors_of, unwrapped
from streamcca.masks import Mask, MaskFinder, Masks
from streamcca.resize import Resizer
from streamcca.rows import Grid, Way, features_axis, grid_of, output_tensor, padded, rows_in_place, to_rows
from streamcca.stream import LayerStreams
from streamcca.views import shown

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

CallIndex = int | Mapping[str, int] | None


class Hook:
    """A hook that works on one module object only, and is inert in copies and pickles of it (EMA, checkpoints)."""

    def __init__(self, module: Module, action: Callable[..., None]) -> None:
        self._module = weakref.ref(module)
        self._action: Callable[..., None] | None = action

    def __call__(self, module: Module, *arguments: Any) -> None:
        """Act, if this is the module."""
        if self._action is not None and module is self._module():
            self._action(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return _inert_hook()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_inert_hook, ())


def _inert_hook() -> Hook:
    hook = Hook.__new__(Hook)
    hook._action = None
    return hook


@dataclass(frozen=True)
class _Output:
    """What one call of a layer brought: its rows, or the whole output while it is not decided what a row is.

    No tensor if the rows were counted at once.
    """

    tensor: Tensor | None
    grid: Grid
    valid: Tensor | None  # tokens that count
    whole: bool


class _Forward(threading.local):
    """What one thread's forward pass has brought so far."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.running = False
        self.complete = False  # a forward has ended and its rows were not taken yet
        self.streaming = False  # rows are counted at once
        self.held = False  # outputs wait to be taken, whatever runs meanwhile
        self.masks: Masks | None = None
        self.outputs: dict[str, list[_Output]] = {}
        self.axes: dict[tuple[int, ...], int] = {}  # shape of a 3-D or larger output -> axis of its features


def check_call_index(index: object) -> None:
    """Refuse what chooses no call.

    Raises
    ------
    InputError
    """
    for value in index.values() if isinstance(index, Mapping) else [index]:
        if isinstance(value, bool) or not (
            isinstance(value, int) or (value is None and not isinstance(index, Mapping))
        ):
            raise InputError(
                f"call_index: got {index!r}, expected None, a whole number (0 is the first call, -1 the last), or a "
                "mapping from layers (names or globs) to such numbers"
            )


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def _recomputing() -> bool:
    """Whether a backward pass runs in this thread: what is called then repeats a forward (activation checkpointing)."""
    import torch

    task: int = torch._C._current_graph_task_id()
    return task != -1


class LayerTap:
    """Hooks on some layers of one model: copies of their rows, one forward at a time.

    Layers are listened to only while the model itself runs, so the recomputation of activation
    checkpointing and calls of a layer on its own are not counted; nor is a model that is itself recomputed. Code
    under ``torch.compile`` runs eagerly as long as the hooks are there.
    """

    def __init__(
        self,
        model: Module,
        layers: Layers,
        device: str | None = None,
        mask: Mask = "auto",
        call_index: CallIndex = None,
        resizer: Resizer | None = None,
    ) -> None:
        check_call_index(call_index)
        model = self.model = unwrapped(model)
        self.modules = select_layers(model, layers)
        self.grids: dict[str, Grid] = {}
        self.called: set[str] = set()
        self.repeated: set[str] = set()  # chosen by a pattern, left out because they run more than once
        self.forwards = 0
        self.ways: dict[str, Way] = {}  # empty: not decided yet, outputs are kept as they are
        self.streams: LayerStreams | None = None  # where rows go at once, if each layer is for itself
        self._call_index = call_index
        self._selectors = selectors_of(layers)
        self._to_cpu = checked_device(device) == "cpu"
        self._masks = MaskFinder(model, mask)
        self._resizer = resizer
        if resizer is not None:
            resizer.sources.append(self._map_sizes)
        self._forward = _Forward()
        self._handles: list[Any] = []

    def choices(self) -> dict[str, Any]:
        """Return what decides the rows of a model's outputs, as plain values; functions are only said to be there."""
        resize = None if self._resizer is None else self._resizer.asked
        return {"mask": shown(self._masks.asked), "call_index": shown(self._call_index), "resize": shown(resize)}

    def attach(self) -> None:
        """Register the hooks."""
        EAGER.take(self.model)
        begin = Hook(self.model, self._begin)
        self._handles.append(self.model.register_forward_pre_hook(begin, with_kwargs=True))
        for module in self.model.modules():
            if features_axis(module) is not None:
                self._add(module, self._axis_recorder(module))
        for name, module in self.modules.items():
            self._add(module, self._output_recorder(name, module))
        self._add(self.model, self._end)
        failed = Hook(self.model, self._fail)
        self._handles.append(self.model.register_forward_hook(failed, always_call=True))

    def _add(self, module: Module, action: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_hook(Hook(module, action)))

    def detach(self) -> None:
        """Remove the hooks and forget what is pending. Safe to call twice."""
        if self._handles:
            EAGER.release()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forward = _Forward()
        if self.streams is not None:
            self.streams.end(complete=False)

    def hold(self) -> None:
        """Keep what the last forward brought until it is taken: another model may share modules, or run this one."""
        self._forward.held = True

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._forward.held:
            return
        self._forward.clear()  # also of what an exception in an earlier forward left
        if _recomputing():
            return
        self._forward.masks = self._masks.find(args, kwargs)
        self._forward.running = True
        self._forward.streaming = self.streams is not None and self.streams.begin()

    def _end(self, *_: Any) -> None:
        if not self._forward.running:
            return
        self._forward.running = False
        self._forward.complete = True
        self._forward.axes = {}
        self._forward.masks = None
        self.forwards += 1

    def _fail(self, *_: Any) -> None:
        # Called after an exception in the forward, too; `_end` is not.
        if self._forward.running:
            if self._forward.streaming and self.streams is not None:
                self.streams.end(complete=False)
            self._forward.clear()

    def _axis_recorder(self, module: Module) -> Callable[..., None]:
        axis = features_axis(module)

        def record(_: Any, output: Any) -> None:
            nested = getattr(output, "is_nested", False)
            if self._forward.running and axis is not None and getattr(output, "ndim", 0) > 2 and not nested:
                self._forward.axes[tuple(output.shape)] = axis

        return record

    def _output_recorder(self, name: str, module: Module) -> Callable[..., None]:
        own_axis = features_axis(module)

        def record(_: Any, output: Any) -> None:
            if not self._forward.running or name in self.repeated:
                return
            tensor, valid = padded(output_tensor(name, output))
            axis = own_axis if own_axis is not None else self._forward.axes.get(tuple(tensor.shape))
            grid = grid_of(tensor, axis)
            if valid is None:
                valid = self._valid_tokens(name, tensor, grid)
            # Before the size is looked up: once it is decided what a row is, the size is known.
            whole = name not in self.ways
            tensor, grid = self._resized(name, tensor, grid)
            if self._to_cpu and not (whole and self._resizer):  # maps are resized where they are
                tensor = tensor.cpu()
            # Copied or counted at once: a following in-place operation must not reach the rows.
            kept = _Output(tensor.clone(), grid, valid, whole=True) if whole else self._rows(name, tensor, grid, valid)
            self._forward.outputs.setdefault(name, []).append(kept)

        return record

    def _rows(self, name: str, tensor: Tensor, grid: Grid, valid: Tensor | None) -> _Output:
        way = self.ways[name]
        if not self._forward.streaming or self.streams is None:
            return _Output(to_rows(name, tensor, grid, way, valid), grid, valid, whole=False)
        copy = partial(to_rows, name, tensor, grid, way, valid)
        rows = rows_in_place(tensor, grid) if way == "each" and valid is None else None
        if rows is None:
            rows = copy()
            self.streams.add(name, rows, lambda: rows)
        else:
            self.streams.add(name, rows, copy)
        return _Output(None, grid, valid, whole=False)

    def _resized(self, name: str, tensor: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        return (tensor, grid) if self._resizer is None else self._resizer.apply(name, tensor, grid)

    def _valid_tokens(self, name: str, tensor: Tensor, grid: Grid) -> Tensor | None:
        if self._forward.masks is None or grid.kind == "positions":
            return None
        tokens = int(tensor.shape[1]) if grid.kind == "tokens" else None
        return self._forward.masks.of(name, int(tensor.shape[0]), tokens)

    @property
    def complete(self) -> bool:
        """Whether this thread's forward has ended with rows to take; False after a recomputation."""
        return self._forward.complete

    def _chosen_call(self, name: str) -> int | None:
        if not isinstance(self._call_index, Mapping):
            return self._call_index
        return next((i for key, i in self._call_index.items() if glob_pattern(key).fullmatch(name)), None)

    def _choose_calls(self, outputs: dict[str, list[_Output]]) -> None:
        for name, calls in outputs.items():
            index = self._chosen_call(name)
            if index is None or len(calls) == 1:
                continue
            if not -len(calls) <= index < len(calls):
                shapes = ", ".join(f"{i}: {_shape(call.tensor)}" for i, call in enumerate(calls))
                raise LayerError(
                    f"call_index: layer {name!r} ran {len(calls)} times in one forward ({shapes}), got call {index}"
                )
            outputs[name] = [calls[index]]

    def peek(self) -> dict[str, Grid]:
        """Return the grids of the last forward's layers, after leaving out those that cannot be lined up.

        Raises
        ------
        LayerError
            A layer that was asked for by name ran more than once, or has no call of the wanted number.
        """
        outputs = self._forward.outputs
        self._line_up(outputs)
        if self._resizer is not None:
            self._resizer.settle()
            for name, calls in outputs.items():
                outputs[name] = [self._resized_call(name, call) for call in calls]
        for name, calls in outputs.items():
            self.grids.setdefault(name, calls[0].grid)
        self.called.update(outputs)
        return {name: self.grids[name] for name in outputs}

    def _line_up(self, outputs: dict[str, list[_Output]]) -> None:
        """Choose calls, and leave out layers that ran more than once. Twice is as good as once."""
        self._choose_calls(outputs)
        for name in [name for name, calls in outputs.items() if len(calls) > 1 and len(self.modules) > 1]:
            if name in self._selectors:
                raise LayerError(
                    f"layer {name!r} ran {len(outputs[name])} times in one forward, so that its rows do not line up "
                    "with those of the others; choose one call with call_index=, leave it out of layers=, or watch it "
                    "alone to count the rows of all calls"
                )
            self.repeated.add(name)
            del outputs[name]

    def _map_sizes(self) -> list[tuple[int, ...]]:
        """Sizes of the maps that the last forward brought, of the layers that count."""
        outputs = self._forward.outputs
        self._line_up(outputs)
        return [call.grid.size for calls in outputs.values() for call in calls if call.grid.kind == "positions"]

    def _resized_call(self, name: str, call: _Output) -> _Output:
        if call.tensor is None:
            return call
        tensor, grid = self._resized(name, call.tensor, call.grid)
        return replace(call, tensor=tensor, grid=grid)

    @property
    def streaming(self) -> bool:
        """Whether the rows of this thread's forward were counted at once; `forget` ends it, `take` does not."""
        return self._forward.streaming

    def forget(self) -> None:
        """Keep nothing of the last forward."""
        self._forward.clear()

    def take(self, ways: Mapping[str, Way]) -> dict[str, Tensor]:
        """Return the rows (n, d) of every layer called in the last forward, and keep no reference.

        The first call decides what a row is; later ones stay with it.
        """
        import torch

        outputs, self._forward.outputs = self._forward.outputs, {}
        self._forward.complete = self._forward.held = False
        if not self.ways:
            self.ways = {name: ways[name] for name in outputs}
        result: dict[str, Tensor] = {}
        for name, calls in outputs.items():
            way = self.ways.get(name, "each")  # a layer that is new now is refused with a better sentence later
            rows = [self._rows_of(name, x, x.tensor, way) for x in calls if x.tensor is not None]
            result[name] = rows[0] if len(rows) == 1 else torch.cat(rows)
        return result

    def _rows_of(self, name: str, call: _Output, tensor: Tensor, way: Way) -> Tensor:
        if not call.whole:
            return tensor
        if self._to_cpu:
            tensor = tensor.cpu()
        return to_rows(name, tensor, call.grid, way, call.valid)

    def report_silent(self) -> tuple[str, ...]:
        """Return the layers without rows; raise for those asked for by name, warn for the rest.

        Raises
        ------
        LayerError
        """
        silent = tuple(name for name in self.modules if name not in self.called)
        for name in silent:
            if name in self._selectors:
                raise LayerError(
                    f"layer {name!r} was never called in {self.forwards} forward passes of the model; some modules "
                    "only hold weights that their parent uses: watch the parent, or leave it out of layers="
                )
        never = [name for name in silent if name not in self.repeated]
        for names, why in ((never, "never called"), (sorted(self.repeated), "called more than once in a forward")):
            if names:
                text = f"layers {why}, hence without moments: {', '.join(names)}"
                warnings.warn(StreamCCAWarning(text), stacklevel=3)
        return silent
