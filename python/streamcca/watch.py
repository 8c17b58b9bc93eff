"""Forward hooks that stream the rows of layers into moments."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError, LayerError, StreamCCAWarning
from streamcca.layers import Layers
from streamcca.masks import Mask
from streamcca.moments import Moments, NonFinite, Precision
from streamcca.resize import Resize, ResizeBy, make_resizer
from streamcca.rows import Rows, check_equal_counts, check_rows, choose_ways, describe_rows
from streamcca.stream import LayerStreams
from streamcca.tap import CallIndex, Hook, LayerTap
from streamcca.views import Pairs
from streamcca.watch_gram import RowKeeper, WatchStrategy, check_moments_fit, check_watch_options

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from streamcca.gram import Gram
    from streamcca.rows import Grid


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
        self,
        model: Module,
        layers: Layers,
        rows: Rows,
        mask: Mask,
        call_index: CallIndex,
        resize: Resize,
        resize_by: ResizeBy,
        device: str | None,
        options: dict[str, Any],
        strategy: WatchStrategy,
        folder: str | os.PathLike[str] | None,
        memory: int | None,
    ) -> None:
        check_rows(rows)
        check_watch_options(strategy, folder, memory)
        self._strategy: WatchStrategy = strategy
        self._memory = memory
        self._kept = RowKeeper(folder, options, memory) if folder is not None else None
        self._tap = LayerTap(model, layers, device, mask, call_index, make_resizer(resize, resize_by))
        self._model = self._tap.model
        self._rows: Rows = rows
        self._options = options
        self._moments: Moments | None = None
        self._streams: LayerStreams | None = None
        if self._kept is None and _each_for_itself(len(self._tap.modules), call_index, options):
            self._streams = LayerStreams(options)
        self._handle: Any = None
        self._lock = threading.Lock()
        self.layers = tuple(self._tap.modules)
        self.never_called: tuple[str, ...] = ()

    def __enter__(self) -> Watch:
        if self._handle is not None:
            raise InputError("watch: this watch is open already; make a second one to nest them")
        if self._kept is not None and self._kept.formed:
            raise InputError("watch: its Gram matrices are formed, and take no more rows; make a second one")
        self._tap.attach()
        # After the tap's own hook on the model, so that the forward is complete.
        self._handle = self._model.register_forward_hook(Hook(self._model, self._commit))
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
        if not self._tap.complete:
            return
        with self._lock:
            grids = self._grids()
            if self._streams is not None:
                self._commit_streams(self._streams, grids)
                return
            rows = self._tap.take(self._tap.ways or choose_ways(grids, self._rows))
            check_equal_counts(rows)
            if self._kept is not None:
                check_same_layers(rows, self._kept.widths or rows)
                self._kept.add(rows)
                return
            if self._moments is None:
                self._check_fits(rows)
                self._moments = Moments({name: int(x.shape[1]) for name, x in rows.items()}, **self._options)
        check_same_layers(rows, self._moments.views)
        self._moments.update(rows)

    def _grids(self) -> dict[str, Grid]:
        """Return the grids of the forward's layers; refuses layers that do not line up, and takes the forward back."""
        try:
            grids = self._tap.peek()
            if not grids:
                raise LayerError(
                    f"none of the layers {', '.join(self.layers)} was called in a forward pass of the model"
                )
            if self._streams is not None and self._streams.layers:
                check_same_layers(grids, self._streams.layers)
        except LayerError:
            if self._streams is not None and self._tap.streaming:
                self._streams.end(complete=False)
            self._tap.forget()
            raise
        return grids

    def _commit_streams(self, streams: LayerStreams, grids: dict[str, Grid]) -> None:
        if self._tap.streaming:
            self._tap.forget()
            streams.end(complete=True)
            return
        rows = self._tap.take(self._tap.ways or choose_ways(grids, self._rows))
        if not streams.layers:
            self._check_fits(rows)
        streams.count(rows)
        # What a row is has been decided now: from the next forward on they are counted without a copy.
        self._tap.streams = streams

    def _check_fits(self, rows: Mapping[str, Tensor]) -> None:
        """Refuse moments of the layers of a first forward that do not fit."""
        flattened = "flatten" in self._tap.ways.values()
        alone = self._streams is not None
        check_moments_fit(rows, self._options["pairs"], alone, self._memory, self._strategy, flattened)

    @property
    def gram(self) -> Gram:
        """With ``strategy='gram'``, after the block: Gram matrices of all layers, for `svcca`, `cca` or `cka`.

        They are formed, and the rows on disk removed, when they are first asked for.

        Raises
        ------
        InputError
            The watch keeps moments, is still open, or has seen nothing.
        MemoryLimitError
            One n x n matrix for each layer does not fit.
        """
        if self._kept is None:
            raise InputError("gram: this watch keeps moments, see .moments; pass strategy='gram' and folder= to watch")
        if self._handle is not None:
            raise InputError("gram: rows may still come; leave the with block first")
        return self._kept.gram()

    @property
    def moments(self) -> Moments:
        """The moments after the last complete forward, one view per layer that was called.

        With ``pairs='self'``, or of a single layer, a copy; else the object that later forwards update.

        Raises
        ------
        InputError
            Nothing was watched yet; or, with ``pairs='self'``, layers have different numbers of rows or product types.
        """
        if self._kept is not None:
            raise InputError("moments: with strategy='gram' rows wait on disk; see .gram after the with block")
        if self._streams is not None and self._streams.layers:
            return self._streams.joined()
        if self._moments is None:
            raise InputError("nothing was watched yet; run the model inside the with block first")
        return self._moments

    @property
    def layer_moments(self) -> dict[str, Moments]:
        """With ``pairs='self'``, a copy of each layer's own moments, whose numbers of rows may differ."""
        if self._streams is None:
            raise InputError("layer_moments: these layers share one Moments, see .moments; pass pairs='self' to watch")
        return self._streams.copies()

    @property
    def on_device(self) -> bool:
        """Whether moments live on a CUDA device."""
        return (
            self._moments._on_device if self._moments is not None else bool(self._streams and self._streams.on_device)
        )

    @property
    def counts(self) -> dict[str, int]:
        """Rows counted per layer; 0 for a layer that was not called."""
        if self._kept is not None:
            found = dict.fromkeys(self._kept.widths, self._kept.rows)
        elif self._streams is not None:
            found = self._streams.counts
        else:
            found = dict.fromkeys(self._moments.views, self._moments.rows) if self._moments is not None else {}
        return {name: found.get(name, 0) for name in self.layers}

    @property
    def rows(self) -> str:
        """What a row is: 'samples', 'positions', 'tokens', samples averaged over them, and so on.

        Here stands what 'auto' chose, and how maps were resized.
        """
        ways = self._tap.ways
        if not ways:
            raise InputError("nothing was watched yet; run the model inside the with block first")
        return describe_rows({name: self._tap.grids[name] for name in ways}, ways)

    def __repr__(self) -> str:
        if not self._tap.ways:
            return f"Watch({len(self.layers)} layers, no rows yet)"
        if self.on_device:  # to count them would wait, and may raise
            return f"Watch({len(self.layers)} layers on a device: {self.rows})"
        return f"Watch({len(self.layers)} layers, {max(self.counts.values())} rows: {self.rows})"


def _each_for_itself(layers: int, call_index: CallIndex, options: Mapping[str, Any]) -> bool:
    """Whether no pair of layers is wanted, so that a layer's rows need not wait for another's."""
    alone = options["pairs"] == "self" or (layers == 1 and options["pairs"] == "all")
    # A row that one layer skips would have to be skipped in all; which call is the last is known at the end only.
    return alone and options["nonfinite"] != "skip" and call_index is None


def check_same_layers(rows: Collection[str], known: Collection[str]) -> None:
    """Refuse a forward in which other layers ran than in the first.

    Raises
    ------
    LayerError
    """
    for name in sorted(set(rows) ^ set(known)):
        when = "a later forward but not in the first" if name in rows else "the first forward but not in a later one"
        raise LayerError(
            f"layer {name!r} ran in {when}, so that its rows do not line up with those of the others; leave it out of "
            "layers="
        )


def watch(
    model: Module,
    layers: Layers = None,
    rows: Rows = "auto",
    *,
    mask: Mask = "auto",
    call_index: CallIndex = None,
    resize: Resize = None,
    resize_by: ResizeBy = "fourier",
    pairs: Pairs = "all",
    precision: Precision = "auto",
    nonfinite: NonFinite = "raise",
    device: str | None = None,
    threads: int | None = None,
    strategy: WatchStrategy = "auto",
    folder: str | os.PathLike[str] | None = None,
    memory: int | None = None,
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
    rows : 'auto', 'positions', 'tokens', 'pool', 'flatten', 'first', 'cls', 'last', a callable, or a mapping
        What a row is. A (samples, features) output gives its samples. 'positions' makes each position of
        a (samples, channels, ...) output a row, 'tokens' each token of a (samples, tokens,
        features) output, 'pool' averages each sample over them. 'auto' keeps positions or tokens if all
        layers have the same number of them, and averages otherwise; ``.rows`` says which. 'flatten' makes all of
        a sample one row; 'first' (or 'cls') and 'last' take one token of each sample. A callable gets the output (a
        tensor, detached) and returns rows (n, d). A mapping gives layers, by name or glob, rules of their own; the
        first match counts.
    mask : 'auto', None or callable ``(args, kwargs) -> tensor``
        Which tokens count: True or nonzero in a tensor (samples, tokens). Padding becomes no row and no part of an
        average; 'first' and 'last' mean tokens that count. 'auto' reads ``attention_mask`` (and
        ``decoder_attention_mask``, or torch's ``src_key_padding_mask``) from the arguments of the model's call; None
        counts every token; a callable gets those arguments. In a step of generation the mask also covers earlier
        tokens, and its end counts.
    call_index : int or mapping, optional
        Which call of a layer that runs more than once in a forward: 0 is the first, -1 the last. A mapping gives
        layers, by name or glob, numbers of their own; the first match counts.
    resize : None, 'smallest' or tuple of int
        Size that the maps of all layers with positions get before they become rows, so that 'auto' keeps positions of
        layers whose sizes differ: one number for each spatial axis, or 'smallest', the smallest size along each axis
        that the watched layers have in the first forward. Maps only become smaller. Other outputs stay as they are.
    resize_by : 'fourier', 'average' or 'bilinear'
        The lowest frequencies, as in the SVCCA paper; averages over areas; or antialiased linear interpolation.
        'fourier' puts the new positions where strided convolutions put theirs, the others in the middle of areas.
    pairs, precision, nonfinite, threads
        As in `Moments`. With ``pairs='self'`` each layer is for itself: its rows are counted straight from its output,
        without a copy of them, and layers may have different numbers of rows (``.layer_moments``).
    device : None, 'cpu', 'cuda' or 'cuda:1'
        Where moments live: None follows the rows, so that those on a CUDA device are counted there (`Moments`), and
        refuses them where there are no kernels; 'cpu' copies them to the CPU.
    strategy : 'auto', 'covariance' or 'gram'
        'covariance' keeps moments. 'gram' writes all rows to `folder`, and forms one matrix of n x n for each layer of
        any width afterwards (``.gram``). 'auto' keeps moments, or refuses at the first forward if they do not fit, and
        says what would: how many rows will come is not known then, so nothing is written to disk unasked.
    folder : path, optional
        For 'gram'. Rows that a killed watch has written are not written again when the same forwards run again with
        the same folder; other rows are refused.
    memory : int, optional
        Bytes that moments, or matrices, may take; by default what the system leaves.

    Returns
    -------
    Watch
        Context manager with ``.moments``, ``.layer_moments``, ``.gram``, ``.counts`` and ``.rows``.

    Raises
    ------
    LayerError
        No layer matches; a layer asked for by name was never called (at the end), or ran in some forwards
        only, or more than once in one; maps would have to grow; the model is a DataParallel.
    MemoryLimitError
        From the first forward: the moments do not fit.
    StorageError
        From a forward: the disk is full; the rows that are there can be gone on with.

    Notes
    -----
    Outputs are copied when they appear (with ``pairs='self'`` counted at once, from the second forward on) and released
    at the end of the forward pass; hooks are removed when
    the block is left, also by an exception. Where an output has more than two dimensions, the kind of module
    says where its features lie (convolutions, pools and batch norm: axis 1; linear layers, layer norm,
    embeddings: the last); other modules follow the last output of the same shape. The first dimension must be the
    samples: modules with ``batch_first=False`` are not understood. What a hook refuses (NaN, a layer that does not
    line up) is raised from the forward pass; nothing of that pass is counted. Code under ``torch.compile`` runs
    eagerly inside the block, since hooks on compiled modules may never fire.

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
    options = {
        "pairs": pairs,
        "precision": precision,
        "nonfinite": nonfinite,
        "threads": threads,
        "device": device,
    }
    return Watch(model, layers, rows, mask, call_index, resize, resize_by, device, options, strategy, folder, memory)
