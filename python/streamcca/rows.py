"""From a layer's output to rows: what is one sample of a representation.

torch is only used through the tensors that arrive; importing this module does not import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from streamcca.errors import LayerError

if TYPE_CHECKING:
    from torch import Tensor

RowRule = Literal["auto", "positions", "tokens", "pool"]
ROW_RULES = ("auto", "positions", "tokens", "pool")

# Modules that say where the features of their output lie. Of what any other module returns (activations,
# containers, a user's own), the last output of the same shape in the same forward decides.
_FEATURES_LAST = ("Linear", "Embedding", "MultiheadAttention", "TransformerEncoderLayer")
_NORMS = ("LayerNorm", "RMSNorm")  # not their subclasses: LayerNorm2d of torchvision and timm has channels first
_CHANNELS_FIRST = ("Conv", "BatchNorm", "InstanceNorm", "GroupNorm", "MaxPool", "AvgPool", "Adaptive", "LPPool")


def features_axis(module: object) -> int | None:
    """Axis of the features in this module's outputs: 1, -1, or None if its kind does not say."""
    # By torch's own classes, not by names alone: the Conv1D of transformers is a linear layer.
    kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.")]
    if type(module).__name__ in _NORMS and type(module).__name__ in kinds:
        return -1
    if any(name in _FEATURES_LAST for name in kinds):
        return -1
    return 1 if any(name.startswith(_CHANNELS_FIRST) for name in kinds) else None


@dataclass(frozen=True)
class Grid:
    """How the rows of an output lie: its kind, the sizes that repeat inside a sample, the features' axis."""

    kind: Literal["samples", "positions", "tokens"]
    size: tuple[int, ...] = ()
    axis: int = -1


def grid_of(tensor: Tensor, axis: int | None) -> Grid:
    """Say how the rows of an output lie; `axis` is the features', None if nothing told.

    Then (samples, a, b) is read as (samples, tokens, features), and more dimensions as (samples, channels, ...).
    """
    if tensor.ndim == 2:
        return Grid("samples")
    if axis is None:
        axis = -1 if tensor.ndim == 3 else 1
    inside = tensor.shape[1:-1] if axis == -1 else tensor.shape[2:]
    kind: Literal["tokens", "positions"] = "tokens" if axis == -1 and tensor.ndim == 3 else "positions"
    return Grid(kind, tuple(int(size) for size in inside), axis)


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


def choose_pooling(grids: Mapping[str, Grid], rows: RowRule) -> bool:
    """Decide whether samples are averaged over their positions or tokens.

    'auto' keeps every position (token) as a row when all layers have the same grid, so that rows of
    different layers belong together; otherwise it averages, and a row is a sample.
    """
    if rows == "auto":
        return len({(grid.kind, grid.size) for grid in grids.values()}) > 1
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
    return f"samples (averaged over {' or '.join(kinds)})" if pooled else " or ".join(kinds)


def to_rows(tensor: Tensor, grid: Grid, pooled: bool) -> Tensor:
    """Return the rows of an output as a tensor (n, d) that shares no memory with it.

    Averages are formed in float32, or in float64 for float64 outputs.
    """
    if grid.kind == "samples":
        return tensor.clone()
    features_last = tensor if grid.axis == -1 else tensor.movedim(1, -1)
    if pooled:
        wide = features_last if tensor.element_size() >= 4 else features_last.float()
        return wide.flatten(1, -2).mean(dim=1)
    rows = features_last.reshape(-1, features_last.shape[-1])
    shares = rows.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return rows.clone() if shares else rows


def check_equal_counts(rows: Mapping[str, Tensor]) -> None:
    """Refuse layers whose rows do not belong together.

    Raises
    ------
    LayerError
    """
    counts = {layer: len(x) for layer, x in rows.items()}
    first = next(iter(counts))
    for layer, count in counts.items():
        if count != counts[first]:
            raise LayerError(
                f"layers {first!r} and {layer!r} gave {counts[first]} and {count} rows in one forward, expected as "
                "many; use rows='auto' or 'pool', or watch them apart"
            )
