"""Forward hooks that stream the rows of layers into moments."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError, LayerError, StreamCCAWarning
from streamcca.layers import Layers, is_explicit, select_layers
from streamcca.moments import Moments, NonFinite, Precision
from streamcca.rows import (
    Grid,
    RowRule,
    check_rule,
    choose_pooling,
    describe_rows,
    grid_of,
    output_tensor,
    to_rows,
)
from streamcca.views import Pairs

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class LayerTap:
    """Hooks on some layers of one model: copies of their rows, one forward at a time.

    Layers are listened to only while the model itself runs, so the recomputation of activation
    checkpointing and calls of a layer on its own are not counted, and copies of the model that carry copies
    of the hooks (EMA, `copy.deepcopy`) are ignored.
    """

    def __init__(self, model: Module, layers: Layers, device: str | None = None) -> None:
        self.modules = select_layers(model, layers)
        self.grids: dict[str, Grid] = {}
        self.called: set[str] = set()
        self.forwards = 0
        self.pooled: bool | None = None  # None: not decided yet, outputs are kept as they are
        self._model = model
        self._layers = layers
        self._device = device
        self._pending: dict[str, list[Tensor]] = {}
        self._running = False
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Register the hooks."""
        self._handles.append(self._model.register_forward_pre_hook(self._begin))
        for name, module in self.modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name, module)))
        self._handles.append(self._model.register_forward_hook(self._end))

    def detach(self) -> None:
        """Remove the hooks and forget what is pending. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()
        self._running = False

    def _begin(self, module: Module, _: Any) -> None:
        if module is self._model:
            self._pending = {}  # also what an exception in an earlier forward left
            self._running = True

    def _end(self, module: Module, _: Any, __: Any) -> None:
        if module is self._model:
            self._running = False
            self.forwards += 1

    def _hook(self, name: str, watched: Module) -> Any:
        def hook(module: Module, _: Any, output: Any) -> None:
            if not self._running or module is not watched:
                return
            tensor = output_tensor(name, output)
            if self._device is not None:
                tensor = tensor.to(self._device)
            self.called.add(name)
            grid = grid_of(tensor, module)
            self.grids.setdefault(name, grid)
            # Copied at once: a following in-place operation must not reach the rows.
            rows = tensor.clone() if self.pooled is None else to_rows(tensor, grid, self.pooled)
            self._pending.setdefault(name, []).append(rows)

        return hook

    def take(self, pooled: bool) -> dict[str, Tensor]:
        """Return the rows (n, d) of every layer called in the last forward, and keep no reference.

        The first call decides whether samples are averaged; later ones stay with it.
        """
        import torch

        pending, self._pending = self._pending, {}
        if self.pooled is None:
            self.pooled = pooled
            pending = {
                name: [to_rows(x, grid_of(x, self.modules[name]), pooled) for x in outputs]
                for name, outputs in pending.items()
            }
        return {name: rows[0] if len(rows) == 1 else torch.cat(rows) for name, rows in pending.items()}

    def report_never_called(self) -> tuple[str, ...]:
        """Return the layers that never ran; raise for those asked for by name, warn for the rest.

        Raises
        ------
        LayerError
        """
        silent = tuple(name for name in self.modules if name not in self.called)
        for name in silent:
            if is_explicit(self._layers, name):
                raise LayerError(
                    f"layer {name!r} was never called in {self.forwards} forward passes of the model; some modules "
                    "only hold weights that their parent uses: watch the parent, or leave it out of layers="
                )
        if silent:
            warnings.warn(
                StreamCCAWarning(f"layers never called, hence without moments: {', '.join(silent)}"),
                stacklevel=3,
            )
        return silent


class Watch:
    """Context manager that accumulates the moments of a model's layers while it is used; see `watch`.

    Attributes
    ----------
    layers : tuple of str
        The layers watched, in the order of the model.
    never_called : tuple of str
        After the end: layers chosen by a pattern that never ran.
    """

    def __init__(
        self, model: Module, layers: Layers, rows: RowRule, device: str | None, options: dict[str, Any]
    ) -> None:
        check_rule(rows)
        self._tap = LayerTap(model, layers, device)
        self._model = model
        self._rows: RowRule = rows
        self._options = options
        self._moments: Moments | None = None
        self._handle: Any = None
        self.layers = tuple(self._tap.modules)
        self.never_called: tuple[str, ...] = ()

    def __enter__(self) -> Watch:
        self._tap.attach()
        # After the tap's own hook on the model, so that the forward is complete.
        self._handle = self._model.register_forward_hook(self._commit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self._tap.forwards:
            self.never_called = self._tap.report_never_called()

    def close(self) -> None:
        """Remove all hooks. Safe to call twice; the moments stay."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._tap.detach()

    def _commit(self, module: Module, _: Any, __: Any) -> None:
        if module is not self._model:
            return
        if not self._tap.called:
            raise LayerError(f"none of the layers {', '.join(self.layers)} was called in a forward pass of the model")
        rows = self._tap.take(choose_pooling(self._tap.grids, self._rows))
        if self._moments is None:
            self._moments = Moments({name: int(x.shape[1]) for name, x in rows.items()}, **self._options)
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
    layers : str, re.Pattern, type, callable, an iterable of them, or None
        Layers by name, glob (``*`` within one part of a dotted name, ``**`` across), regular expression,
        module class or callable ``(name, module) -> bool``. None takes every module without children.
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
        No layer matches; or, at the end, a layer asked for by name was never called.

    Notes
    -----
    Outputs are copied when they appear and released at the end of the forward pass; hooks are removed when the
    block is left, also by an exception.

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
