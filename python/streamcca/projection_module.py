"""The torch module behind `CanonicalProjection`. It imports torch, so it is imported when the first one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from streamcca._backend import FloatArray
from streamcca.errors import DTypeError, InputError, LayerError
from streamcca.rows import features_axis
from streamcca.tap import Hook


class ProjectionModule(nn.Module):
    """Replaces rows by ``mean + decoder encoder'(row - mean)``; see `CanonicalProjection`."""

    mean: Tensor
    encoder: Tensor
    decoder: Tensor

    def __init__(self, mean: FloatArray, encoder: FloatArray, decoder: FloatArray, axis: int | None = None) -> None:
        super().__init__()
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int) or axis == 0):
            raise InputError(f"axis: got {axis!r}, expected that of the features (1, -1, ...), or None")
        self.axis = axis
        for name, array in (("mean", mean), ("encoder", encoder), ("decoder", decoder)):
            self.register_buffer(name, torch.tensor(array, dtype=torch.float64))

    def forward(self, output: Tensor, axis: int | None = None) -> Tensor:
        """Project the rows that lie along `axis`, if the module has none of its own."""
        if not output.is_floating_point():
            raise DTypeError(f"projection: got a tensor of {output.dtype}, expected a floating-point type")
        axis = self._axis_in(output, axis)
        kind = torch.float64 if output.dtype == torch.float64 else torch.float32
        mean, encoder, decoder = (
            buffer.to(device=output.device, dtype=kind) for buffer in (self.mean, self.encoder, self.decoder)
        )
        # Autocast would form the products in half precision.
        with torch.autocast(output.device.type, enabled=False):
            rows = output.movedim(axis, -1).to(kind)
            result = mean + (rows - mean) @ encoder @ decoder.T
        return result.to(output.dtype).movedim(-1, axis)

    def _axis_in(self, output: Tensor, axis: int | None) -> int:
        axis = self.axis if self.axis is not None else axis
        if axis is None or output.ndim == 2:
            axis = -1 if output.ndim <= 3 else 1
        if output.ndim < 2 or not -output.ndim <= axis < output.ndim or output.shape[axis] != len(self.mean):
            raise InputError(
                f"projection: got a tensor of shape {tuple(output.shape)}, expected {len(self.mean)} neurons on axis "
                f"{axis}; name the axis of the features (axis=) or project the layer that was compared"
            )
        return axis

    def extra_repr(self) -> str:
        """Say from how many neurons to how many directions."""
        return f"width={self.encoder.shape[0]}, directions={self.encoder.shape[1]}"


class _ReplacingHook(Hook):
    """A forward hook whose answer replaces the output; inert in copies of the module."""

    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        active = self._action is not None and module is self._module()
        return self._action(*arguments) if active and self._action is not None else None


def replacing_hook(layer: str, module: nn.Module, projection: Callable[..., Tensor]) -> Hook:
    """Return the forward hook that sends the output of a module through a projection."""
    axis = {"axis": features_axis(module)} if isinstance(projection, ProjectionModule) else {}

    def replace(_: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return projection(output, **axis)
        # A block of a transformer returns its tokens first, and what else it has behind them.
        if type(output) is tuple and output and isinstance(output[0], Tensor):
            return (projection(output[0], **axis), *output[1:])
        raise LayerError(
            f"layer {layer!r} returned a {type(output).__name__}, expected a tensor or a tuple that begins with one; "
            "project a layer inside it"
        )

    return _ReplacingHook(module, replace)
