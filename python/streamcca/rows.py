"""From a layer's output to rows: what is one sample of a representation.

torch is only used through the tensors that arrive; importing this module does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from streamcca.errors import InputError, LayerError
from streamcca.layers import glob_pattern
from streamcca.views import check_option

if TYPE_CHECKING:
    from torch import Tensor

RowRule = (
    Literal["auto", "positions", "tokens", "pool", "flatten", "first", "cls", "last"] | Callable[["Tensor"], "Tensor"]
)
Rows = RowRule | Mapping[str, RowRule]
_RULES = ("auto", "positions", "tokens", "pool", "flatten", "first", "cls", "last")
# What a rule comes to for one layer.
Way = Literal["each", "pool", "flatten", "first", "last"] | Callable[["Tensor"], "Tensor"]

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
    """How the rows of an output lie: its kind, the sizes that repeat inside a sample, the features' axis.

    `resized` says how positions came to their number, if not by the layer itself.
    """

    kind: Literal["samples", "positions", "tokens"]
    size: tuple[int, ...] = ()
    axis: int = -1
    resized: str = ""


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


def padded(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a nested tensor with its samples padded to one length, and which tokens count; any other as it is."""
    if not getattr(tensor, "is_nested", False):
        return tensor, None
    import torch

    samples = list(tensor.unbind())
    lengths = torch.tensor([len(sample) for sample in samples])
    dense = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    return dense, torch.arange(dense.shape[1]) < lengths[:, None]


def check_rows(rows: object) -> None:
    """Refuse what is no rule for rows.

    Raises
    ------
    InputError
    """
    if isinstance(rows, Mapping) and not rows:
        raise InputError("rows: got an empty mapping, expected layers (names or globs) and their rules")
    for rule in rows.values() if isinstance(rows, Mapping) else [rows]:
        if not callable(rule):
            check_option("rows", rule, _RULES)


def choose_ways(grids: Mapping[str, Grid], rows: Rows, name_of: Callable[[str], str] = str) -> dict[str, Way]:
    """Decide for each layer what becomes of its outputs.

    'auto' keeps every position (token) as a row when all its layers have the same grid, so that rows of different
    layers belong together; otherwise it averages, and a row is a sample. In a mapping the first pattern that matches
    counts; `name_of` gives the layer's name that patterns are held against.

    Raises
    ------
    LayerError
        A layer has no rule, or one that does not fit its outputs.
    """
    if not isinstance(rows, Mapping):
        return _ways_of(grids, rows)
    rules = {layer: _rule_for(name_of(layer), rows) for layer in grids}
    ways: dict[str, Way] = {}
    for rule in rows.values():
        ways.update(_ways_of({layer: grid for layer, grid in grids.items() if rules[layer] is rule}, rule))
    return {layer: ways[layer] for layer in grids}


def _rule_for(layer: str, rows: Mapping[str, RowRule]) -> RowRule:
    for pattern, rule in rows.items():
        if glob_pattern(pattern).fullmatch(layer):
            return rule
    raise LayerError(f"rows: no rule for layer {layer!r}; name it, or end the mapping with '**': 'auto'")


def _ways_of(grids: Mapping[str, Grid], rule: RowRule) -> dict[str, Way]:
    way: Way
    if callable(rule):
        way = rule
    elif rule == "auto":
        way = "pool" if len({(grid.kind, grid.size) for grid in grids.values()}) > 1 else "each"
    elif rule == "pool" or rule == "flatten":
        way = rule
    else:
        wanted = "positions" if rule == "positions" else "tokens"
        for layer, grid in grids.items():
            if grid.kind not in ("samples", wanted):
                raise LayerError(
                    f"rows={rule!r}: the output of layer {layer!r} consists of {grid.kind}, expected {wanted}; use "
                    "rows='auto' or 'pool'"
                )
        way = "last" if rule == "last" else "first" if rule in ("first", "cls") else "each"
    return dict.fromkeys(grids, way)


_NAMES = {"flatten": "flattened", "first": "first token", "last": "last token"}


def describe_rows(grids: Mapping[str, Grid], ways: Mapping[str, Way]) -> str:
    """Name what a row is, for results and plots."""
    pooled = {_joined(grid.kind, grid.resized) for layer, grid in grids.items() if ways[layer] == "pool"} - {"samples"}
    names = [_describe(grid, ways[layer], " or ".join(sorted(pooled))) for layer, grid in grids.items()]
    told = [name for name in dict.fromkeys(sorted(names)) if name != "samples"]
    return " or ".join(told) or "samples"


def _describe(grid: Grid, way: Way, pooled: str) -> str:
    if callable(way):
        name = f"rows of {getattr(way, '__name__', type(way).__name__)}"
        return f"{name} (maps {grid.resized})" if grid.resized else name
    if grid.kind == "samples":
        return "samples"
    if way == "pool":
        return f"samples (averaged over {pooled})"
    if way == "each":
        return f"{grid.kind} ({grid.resized})" if grid.resized else grid.kind
    return f"samples ({_joined(_NAMES[way], grid.resized)})"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def to_rows(layer: str, tensor: Tensor, grid: Grid, way: Way, valid: Tensor | None = None) -> Tensor:
    """Return the rows of an output as a tensor (n, d) that shares no memory with it.

    `valid` says which tokens count (samples, tokens); padding becomes no row and no part of an average. Averages are
    formed in float32, or in float64 for float64 outputs.

    Raises
    ------
    LayerError
        A callable returns no rows, or padded samples should be flattened.
    """
    if callable(way):
        return _called(layer, way, tensor)
    if grid.kind == "samples":
        return tensor.clone() if valid is None else tensor[valid.flatten().to(tensor.device)]
    features_last = tensor if grid.axis == -1 else tensor.movedim(1, -1)
    if way == "flatten":
        if valid is not None:
            raise LayerError(
                f"rows='flatten': samples of layer {layer!r} have padding, and would differ in meaning from feature to "
                "feature; use 'tokens', 'pool', 'first' or 'last', or mask=None"
            )
        return tensor.flatten(1).clone()
    if way == "first" or way == "last":
        return _one_token(features_last, way, valid)
    if way == "pool":
        narrow = tensor.element_size() < 4
        if narrow and valid is None and tensor.is_cuda:
            import torch

            # Where they lie. (A CPU averages 16-bit numbers up to twice as slowly as a float32 copy and its mean.)
            return features_last.mean(dim=tuple(range(1, features_last.ndim - 1)), dtype=torch.float32)
        wide = features_last.float() if narrow else features_last
        if valid is None:
            return wide.flatten(1, -2).mean(dim=1)
        counted = valid.to(wide.device).unsqueeze(-1)
        # Padding may hold anything, also NaN: it is left out, not multiplied by zero.
        sums = wide.masked_fill(~counted, 0).sum(dim=1)
        return (sums / counted.sum(dim=1))[counted.squeeze(-1).any(dim=1)]
    rows = features_last.reshape(-1, features_last.shape[-1])
    if valid is not None:
        return rows[valid.flatten().to(rows.device)]
    shares = rows.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return rows.clone() if shares else rows


# Fewer rows of a sample than this are cheaper to copy than to read where they lie (measured: 2 and 3 positions cost
# 4 to 9 % more in place, 4 to 15 cost 5 to 24 % less).
_FEWEST_IN_PLACE = 4


def rows_in_place(tensor: Tensor, grid: Grid) -> Tensor | None:
    """Return all rows of an output as (n, d), or (samples, n, d), in its own memory; None where a copy is cheaper."""
    if grid.kind == "samples":
        return tensor
    if grid.axis == -1:
        return tensor.flatten(1, -2)
    positions = prod(tensor.shape[2:])
    if positions == 1:
        return tensor.flatten(1)
    if positions < _FEWEST_IN_PLACE:
        return None
    return tensor.flatten(2).transpose(1, 2)


def _one_token(tokens: Tensor, way: Literal["first", "last"], valid: Tensor | None) -> Tensor:
    if valid is None:
        return tokens[:, 0 if way == "first" else -1].clone()
    counted = valid.to(tokens.device)
    if way == "first":
        index = counted.int().argmax(dim=1)
    else:
        index = counted.shape[1] - 1 - counted.flip(1).int().argmax(dim=1)
    some = counted.any(dim=1)
    return tokens[some.nonzero().squeeze(1), index[some]]


def _called(layer: str, way: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    rows = way(tensor)
    if getattr(rows, "ndim", 0) != 2:
        shape = tuple(getattr(rows, "shape", ()))
        raise LayerError(
            f"rows: the callable returned a {type(rows).__name__} of shape {shape} for layer {layer!r}, expected a "
            "tensor (rows, features)"
        )
    return rows.detach().clone()


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
