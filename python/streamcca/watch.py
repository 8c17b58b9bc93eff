"""Forward hooks that stream the rows of layers into moments."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError, LayerError, StreamCCAWarning
from streamcca.layers import Layers, select_layers, selectors_of
from streamcca.moments import Moments, NonFinite, Precision
from streamcca.rows import (
    ROW_RULES,
    Grid,
    RowRule,
    check_equal_counts,
    choose_pooling,
    describe_rows,
    features_axis,
    grid_of,
    output_tensor,
    to_rows,
)
from streamcca.views import Pairs, check_device, check_option

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class _Hook:
    """A hook that works on one module object only, and is inert in copies and pickles of it (EMA, checkpoints)."""

    def __init__(self, module: Module, action: Callable[..., None]) -> None:
        self._module = weakref.ref(module)
        self._action: Callable[..., None] | None = action

    def __call__(self, module: Module, *arguments: Any) -> None:
        if self._action is not None and module is self._module():
            self._action(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _inert_hook()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_inert_hook, ())


def _inert_hook() -> _Hook:
    hook = _Hook.__new__(_Hook)
    hook._action = None
    return hook


class _Forward(threading.local):
    """What one thread's forward pass has brought so far."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.running = False
        self.outputs: dict[str, list[tuple[Tensor, Grid]]] = {}
        self.axes: dict[tuple[int, ...], int] = {}  # shape of a 3-D or larger output -> axis of its features


class LayerTap:
    """Hooks on some layers of one model: copies of their rows, one forward at a time.

    Layers are listened to only while the model itself runs, so the recomputation of activation
    checkpointing and calls of a layer on its own are not counted.
    """

    def __init__(self, model: Module, layers: Layers, device: str | None = None) -> None:
        check_device(device)
        self.modules = select_layers(model, layers)
        self.grids: dict[str, Grid] = {}
        self.called: set[str] = set()
        self.repeated: set[str] = set()  # chosen by a pattern, left out because they run more than once
        self.forwards = 0
        self.pooled: bool | None = None  # None: not decided yet, outputs are kept as they are
        self._model = model
        self._selectors = selectors_of(layers)
        self._device = device
        self._forward = _Forward()
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Register the hooks."""
        self._handles.append(self._model.register_forward_pre_hook(_Hook(self._model, self._begin)))
        for module in self._model.modules():
            if features_axis(module) is not None:
                self._add(module, self._axis_recorder(module))
        for name, module in self.modules.items():
            self._add(module, self._output_recorder(name, module))
        self._add(self._model, self._end)

    def _add(self, module: Module, action: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_hook(_Hook(module, action)))

    def detach(self) -> None:
        """Remove the hooks and forget what is pending. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forward = _Forward()

    def _begin(self, _: Any) -> None:
        self._forward.clear()  # also of what an exception in an earlier forward left
        self._forward.running = True

    def _end(self, *_: Any) -> None:
        self._forward.running = False
        self._forward.axes = {}
        self.forwards += 1

    def _axis_recorder(self, module: Module) -> Callable[..., None]:
        axis = features_axis(module)

        def record(_: Any, output: Any) -> None:
            if self._forward.running and axis is not None and getattr(output, "ndim", 0) > 2:
                self._forward.axes[tuple(output.shape)] = axis

        return record

    def _output_recorder(self, name: str, module: Module) -> Callable[..., None]:
        own_axis = features_axis(module)

        def record(_: Any, output: Any) -> None:
            if not self._forward.running or name in self.repeated:
                return
            tensor = output_tensor(name, output)
            axis = own_axis if own_axis is not None else self._forward.axes.get(tuple(tensor.shape))
            grid = grid_of(tensor, axis)
            if self._device is not None:
                tensor = tensor.to(self._device)
            # Copied at once: a following in-place operation must not reach the rows.
            rows = tensor.clone() if self.pooled is None else to_rows(tensor, grid, self.pooled)
            self._forward.outputs.setdefault(name, []).append((rows, grid))

        return record

    def peek(self) -> dict[str, Grid]:
        """Return the grids of the last forward's layers, after leaving out those that cannot be lined up.

        Raises
        ------
        LayerError
            A layer that was asked for by name ran more than once.
        """
        outputs = self._forward.outputs
        for name in [name for name, calls in outputs.items() if len(calls) > 1 and len(self.modules) > 1]:
            if name in self._selectors:
                raise LayerError(
                    f"layer {name!r} ran {len(outputs[name])} times in one forward, so that its rows do not line up "
                    "with those of the others; leave it out of layers=, or watch it alone"
                )
            self.repeated.add(name)
            del outputs[name]
        for name, calls in outputs.items():
            self.grids.setdefault(name, calls[0][1])
        self.called.update(outputs)
        return {name: self.grids[name] for name in outputs}

    def take(self, pooled: bool) -> dict[str, Tensor]:
        """Return the rows (n, d) of every layer called in the last forward, and keep no reference.

        The first call decides whether samples are averaged; later ones stay with it.
        """
        import torch

        outputs, self._forward.outputs = self._forward.outputs, {}
        raw, self.pooled = self.pooled is None, pooled if self.pooled is None else self.pooled
        result: dict[str, Tensor] = {}
        for name, calls in outputs.items():
            rows = [to_rows(x, grid, pooled) if raw else x for x, grid in calls]
            result[name] = rows[0] if len(rows) == 1 else torch.cat(rows)
        return result

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


class Watch:
    """Context manager that accumulates the moments of a model's layers while it is used; see `watch`.

    Attributes
    ----------
    layers : tuple of str
        The layers watched, in the order of the model.
    never_called : tuple of str
        After the end: layers without moments, because they never ran or ran more than once in a forward.
    """

    def __init__(
        self, model: Module, layers: Layers, rows: RowRule, device: str | None, options: dict[str, Any]
    ) -> None:
        check_option("rows", rows, ROW_RULES)
        self._tap = LayerTap(model, layers, device)
        self._model = model
        self._rows: RowRule = rows
        self._options = options
        self._moments: Moments | None = None
        self._handle: Any = None
        self._lock = threading.Lock()
        self.layers = tuple(self._tap.modules)
        self.never_called: tuple[str, ...] = ()

    def __enter__(self) -> Watch:
        self._tap.attach()
        # After the tap's own hook on the model, so that the forward is complete.
        self._handle = self._model.register_forward_hook(_Hook(self._model, self._commit))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None:
            return
        if self._tap.forwards:
            self.never_called = self._tap.report_silent()
        else:
            text = (
                "the model was never called inside the with block; call model(x), not model.forward(x) or a part of it"
            )
            warnings.warn(StreamCCAWarning(text), stacklevel=2)

    def close(self) -> None:
        """Remove all hooks. Safe to call twice; the moments stay."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._tap.detach()

    def _commit(self, *_: Any) -> None:
        with self._lock:
            grids = self._tap.peek()
            if not grids:
                raise LayerError(
                    f"none of the layers {', '.join(self.layers)} was called in a forward pass of the model"
                )
            rows = self._tap.take(choose_pooling(grids, self._rows))
            check_equal_counts(rows)
            if self._moments is None:
                self._moments = Moments({name: int(x.shape[1]) for name, x in rows.items()}, **self._options)
        check_same_layers(rows, self._moments)
        self._moments.update(rows)

    @property
    def moments(self) -> Moments:
        """The moments so far, one view per layer that was called."""
        if self._moments is None:
            raise InputError("nothing was watched yet; run the model inside the with block first")
        return self._moments

    @property
    def counts(self) -> dict[str, int]:
        """Rows counted per layer; 0 for a layer that was not called."""
        views = self._moments.views if self._moments is not None else {}
        return {name: self.moments.rows if name in views else 0 for name in self.layers}

    @property
    def rows(self) -> str:
        """What a row is: 'samples', 'positions', 'tokens' or samples averaged over them."""
        if self._tap.pooled is None:
            raise InputError("nothing was watched yet; run the model inside the with block first")
        return describe_rows(self._tap.grids, self._tap.pooled)

    def __repr__(self) -> str:
        return f"Watch({len(self.layers)} layers, rows={self._moments.rows if self._moments else 0})"


def check_same_layers(rows: dict[str, Tensor], moments: Moments) -> None:
    """Refuse a forward in which other layers ran than in the first.

    Raises
    ------
    LayerError
    """
    for name in sorted(rows.keys() ^ moments.views.keys()):
        when = "a later forward but not in the first" if name in rows else "the first forward but not in a later one"
        raise LayerError(
            f"layer {name!r} ran in {when}, so that its rows do not line up with those of the others; leave it out of "
            "layers="
        )


def watch(
    model: Module,
    layers: Layers = None,
    rows: RowRule = "auto",
    *,
    pairs: Pairs = "all",
    precision: Precision = "auto",
    nonfinite: NonFinite = "raise",
    device: str | None = None,
    threads: int | None = None,
) -> Watch:
    """Watch layers of a torch module: every forward adds its rows to the moments.

    Parameters
    ----------
    model : torch.nn.Module
        The model; run it as usual inside the ``with`` block. Its mode and gradients are left alone.
    layers : str, re.Pattern, type, callable, torch.nn.Module, an iterable of them, or None
        Layers by name, glob (``*`` within one part of a dotted name, ``**`` across), regular expression
        that matches the whole name, module class, callable ``(name, module) -> bool`` or the module
        itself. None takes every module without children. Layers chosen otherwise than by name are left
        out with a warning if they run more than once in a forward.
    rows : 'auto', 'positions', 'tokens' or 'pool'
        What a row is. A (samples, features) output gives its samples. 'positions' makes each position of
        a (samples, channels, ...) output a row, 'tokens' each token of a (samples, tokens,
        features) output, 'pool' averages each sample over them. 'auto' keeps positions or tokens if all
        layers have the same number of them, and averages otherwise; ``.rows`` says which.
    pairs, precision, nonfinite, threads
        As in `Moments`.
    device : None or 'cpu'
        'cpu' copies rows that are on another device to the CPU; None refuses them.

    Returns
    -------
    Watch
        Context manager with ``.moments``, ``.counts`` and ``.rows``.

    Raises
    ------
    LayerError
        No layer matches; a layer asked for by name was never called (at the end), or ran in some forwards
        only, or more than once in one.

    Notes
    -----
    Outputs are copied when they appear and released at the end of the forward pass; hooks are removed when
    the block is left, also by an exception. Where an output has more than two dimensions, the kind of module
    says where its features lie (convolutions, pools and batch norm: axis 1; linear layers, layer norm,
    embeddings: the last); other modules follow the last output of the same shape. The first dimension must be the
    samples: modules with ``batch_first=False`` are not understood. What a hook refuses (NaN, a layer that does not
    line up) is raised from the forward pass; nothing of that pass is counted.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> with watch(model, layers=["0", "2"]) as w:
    ...     for _ in range(3):
    ...         _ = model(torch.randn(16, 8))
    >>> w.counts
    {'0': 48, '2': 48}
    """
    options = {"pairs": pairs, "precision": precision, "nonfinite": nonfinite, "threads": threads}
    return Watch(model, layers, rows, device, options)
