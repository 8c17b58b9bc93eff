"""From a layer's output to rows: what is one sample of a representation.

torch is only used through the tensors that arrive; importing this module does not import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from streamcca.errors import InputError, LayerError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

RowRule = Literal["auto", "positions", "tokens", "pool"]

# Modules whose three-dimensional output is (samples, channels, length), not (samples, tokens, features).
_CHANNELS_FIRST_1D = (
    "Conv1d",
    "ConvTranspose1d",
    "BatchNorm1d",
    "InstanceNorm1d",
    "MaxPool1d",
    "AvgPool1d",
    "AdaptiveAvgPool1d",
    "AdaptiveMaxPool1d",
    "GroupNorm",
)


@dataclass(frozen=True)
class Grid:
    """Where the samples of one output lie: `kind`, and the size of what repeats inside a sample."""

    kind: Literal["samples", "positions", "tokens"]
    size: tuple[int, ...] = ()


def find_tensor(output: Any) -> Tensor | None:
    """Return the activations in a module's output: itself, or the first tensor of a tuple, list or mapping.

    Of a mapping (Hugging Face outputs are mappings) ``last_hidden_state`` or ``logits`` come first.
    """
    if hasattr(output, "detach") and hasattr(output, "movedim"):
        tensor: Tensor = output
        return tensor
    if isinstance(output, Mapping):
        named = [output[key] for key in ("last_hidden_state", "logits") if key in output]
        output = named + list(output.values())
    if isinstance(output, list | tuple):
        for item in output:
            found = find_tensor(item)
            if found is not None:
                return found
    return None


def output_tensor(layer: str, output: Any) -> Tensor:
    """Return the activations of a layer, detached.

    Raises
    ------
    LayerError
        The output holds no tensor, or one of fewer than two dimensions.
    """
    tensor = find_tensor(output)
    if tensor is None:
        kind = type(output).__name__
        inside = f" of {', '.join(type(item).__name__ for item in output)}" if isinstance(output, list | tuple) else ""
        raise LayerError(
            f"layer {layer!r} returned a {kind}{inside} without a tensor, expected a tensor or a container with one; "
            "leave this layer out of layers="
        )
    if tensor.ndim < 2:
        raise LayerError(
            f"layer {layer!r} returned a tensor of shape {tuple(tensor.shape)}, expected (samples, features), "
            "(samples, channels, ...) or (samples, tokens, features); leave this layer out of layers="
        )
    return tensor.detach()


def grid_of(tensor: Tensor, module: Module) -> Grid:
    """Say how the rows of an output lie, from its dimensions and the kind of module."""
    if tensor.ndim == 2:
        return Grid("samples")
    if tensor.ndim == 3 and type(module).__name__ not in _CHANNELS_FIRST_1D:
        return Grid("tokens", (int(tensor.shape[1]),))
    return Grid("positions", tuple(int(size) for size in tensor.shape[2:]))


def choose_pooling(grids: Mapping[str, Grid], rows: RowRule) -> bool:
    """Decide whether samples are averaged over their positions or tokens.

    'auto' keeps every position (token) as a row when all layers have the same grid, so that rows of
    different layers belong together; otherwise it averages, and a row is a sample.
    """
    if rows == "auto":
        return len(set(grids.values())) > 1
    if rows == "pool":
        return True
    for layer, grid in grids.items():
        if grid.kind not in ("samples", rows):
            raise LayerError(
                f"rows={rows!r}: the output of layer {layer!r} consists of {grid.kind}, expected {rows}; use "
                "rows='auto' or 'pool'"
            )
    return False


def describe_rows(grids: Mapping[str, Grid], pooled: bool) -> str:
    """Name what a row is, for results and plots."""
    kinds = sorted({grid.kind for grid in grids.values()} - {"samples"})
    if not kinds:
        return "samples"
    if not pooled:
        return kinds[0] if len(kinds) == 1 else " or ".join(kinds)
    return f"samples (averaged over {' or '.join(kinds)})"


def to_rows(tensor: Tensor, grid: Grid, pooled: bool) -> Tensor:
    """Return the rows of an output as a tensor (n, d) that shares no memory with it.

    Averages are formed in float32, or in float64 for float64 outputs.
    """
    if grid.kind == "samples":
        return tensor.clone()
    if pooled:
        wide = tensor if tensor.element_size() >= 4 else tensor.float()
        return wide.mean(dim=1) if grid.kind == "tokens" else wide.flatten(2).mean(dim=2)
    features_last = tensor if grid.kind == "tokens" else tensor.flatten(2).movedim(1, -1)
    rows = features_last.reshape(-1, features_last.shape[-1])
    shares = rows.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return rows.clone() if shares else rows


def check_rule(rows: str) -> None:
    """Refuse an unknown row rule."""
    if rows not in ("auto", "positions", "tokens", "pool"):
        raise InputError(f"rows: got {rows!r}, expected 'auto', 'positions', 'tokens' or 'pool'")
