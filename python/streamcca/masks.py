"""Which tokens of a batch are padding: read from the arguments of the model's own call.

torch is only used through the tensors that arrive; importing this module does not import it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from streamcca.errors import InputError, LayerError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Mask = Literal["auto"] | Callable[[tuple[Any, ...], Mapping[str, Any]], Any] | None


def check_mask(mask: object) -> None:
    """Refuse what is no way to find a mask.

    Raises
    ------
    InputError
    """
    if mask is not None and mask != "auto" and not callable(mask):
        raise InputError(
            f"mask: got {mask!r}, expected 'auto', None, or a callable (args, kwargs) -> tensor (samples, tokens)"
        )


class MaskFinder:
    """Finds the masks in each call of one model: True where a token counts.

    'auto' reads what the forward method calls ``attention_mask`` (Hugging Face: 1 where a token counts) or
    ``src_key_padding_mask`` (torch: True where it does not), by name or by position. The layers of an encoder-decoder's
    decoder have ``decoder_attention_mask`` instead.
    """

    def __init__(self, model: Module, mask: Mask) -> None:
        check_mask(mask)
        self._mask = self.asked = mask
        config = getattr(model, "config", None)
        self._has_decoder = bool(getattr(config, "is_encoder_decoder", False))
        try:
            self._signature: inspect.Signature | None = inspect.signature(model.forward)
        except (TypeError, ValueError):
            self._signature = None

    def find(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Masks:
        """Return the masks of one call.

        Raises
        ------
        LayerError
            A mask is not of shape (samples, tokens).
        """
        if self._mask is None:
            return Masks(None, None, False)
        if callable(self._mask):
            return Masks(_checked(self._mask(args, kwargs), "mask"), None, False)
        given = self._arguments(args, kwargs)
        found = _checked(given.get("attention_mask"), "attention_mask")
        padding = _checked(given.get("src_key_padding_mask"), "src_key_padding_mask")
        if found is None and padding is not None:
            found = ~padding
        decoder = _checked(given.get("decoder_attention_mask"), "decoder_attention_mask")
        return Masks(found, decoder, self._has_decoder)

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self._signature is None:
            return dict(kwargs)
        try:
            bound = self._signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # the model will say so itself
            return dict(kwargs)
        return {**kwargs, **bound}


def _checked(mask: Any, name: str) -> Tensor | None:
    if mask is None:
        return None
    if getattr(mask, "ndim", 0) != 2:
        shape = tuple(getattr(mask, "shape", ()))
        raise LayerError(
            f"{name}: got a {type(mask).__name__} of shape {shape}, expected a mask (samples, tokens); pass mask=None "
            "if every token counts, or a callable (args, kwargs) that returns such a mask"
        )
    valid: Tensor = mask != 0
    return valid


class Masks:
    """The masks of one call of a model."""

    def __init__(self, valid: Tensor | None, decoder: Tensor | None, has_decoder: bool) -> None:
        self._valid = valid
        self._decoder = decoder
        self._has_decoder = has_decoder

    def of(self, layer: str, samples: int, tokens: int | None) -> Tensor | None:
        """Return which tokens of a layer's output count (samples, tokens), or None if all do.

        `tokens` is None where the first dimension of the output holds all tokens of all samples.
        A mask that is longer than the output belongs to a generation step: it covers what came before, too.

        Raises
        ------
        LayerError
            The output is longer than its mask, or has another number of samples.
        """
        valid = self._decoder if self._has_decoder and "decoder" in layer.split(".") else self._valid
        if valid is None:
            return None
        if tokens is None:
            valid = valid if samples != valid.shape[0] and samples == valid.numel() else None
        elif samples != valid.shape[0] or tokens > valid.shape[1]:
            raise LayerError(
                f"layer {layer!r} returned {samples} samples of {tokens} tokens, expected those of the mask, "
                f"{valid.shape[0]} of {valid.shape[1]}; pass mask=None if every token counts, or a callable "
                "(args, kwargs) that returns a mask for these layers"
            )
        else:
            valid = valid[:, valid.shape[1] - tokens :]
        return None if valid is None or bool(valid.all()) else valid
