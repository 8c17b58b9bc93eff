"""Random changes of training images, drawn from a generator of their own. Imports torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcca.multiplicity.models.methods import Augmentation

_TURN = math.radians(15)
_NOISE = 0.1
_ZOOM = 0.15
_CONTRAST = 0.4


def augmented(images: Tensor, kind: Augmentation, seed: int) -> Tensor:
    """Return changed copies of images (rows, channels, height, width) in [0, 1]; the same for the same seed and rows.

    Parameters
    ----------
    kind : str
        'none'. 'translate': by whole pixels, up to an eighth of each side (at least 1), along each axis. 'rotate': by
        up to 15 degrees, bilinear. 'noise': normal with deviation 0.1, clipped to [0, 1]. 'flip': left to right, every
        second image. 'cutout': one square of half the shorter side to zero, its center anywhere. 'strong': rotated,
        translated and zoomed by up to 15 %, contrast times 0.6 to 1.4, noise. What comes in at the border is zero.
    """
    if kind == "none":
        return images
    random = torch.Generator().manual_seed(seed)
    rows, _, height, width = images.shape
    if kind == "noise":
        return _noisy(images, random)
    if kind == "flip":
        flipped = torch.rand(rows, generator=random) < 0.5
        return torch.where(flipped[:, None, None, None], images.flip(-1), images)
    if kind == "cutout":
        return images * _window(rows, height, width, random)
    if kind == "translate":
        return _moved(images, torch.zeros(rows), torch.ones(rows), _offsets(rows, height, width, random))
    angles = (torch.rand(rows, generator=random) * 2 - 1) * _TURN
    if kind == "rotate":
        return _moved(images, angles, torch.ones(rows), torch.zeros(rows, 2))
    zoom = 1 + (torch.rand(rows, generator=random) * 2 - 1) * _ZOOM
    moved = _moved(images, angles, zoom, _offsets(rows, height, width, random))
    contrast = 1 + (torch.rand(rows, 1, 1, 1, generator=random) * 2 - 1) * _CONTRAST
    return _noisy(moved * contrast, random)


def _noisy(images: Tensor, random: torch.Generator) -> Tensor:
    return (images + _NOISE * torch.randn(images.shape, generator=random)).clamp(0, 1)


def _offsets(rows: int, height: int, width: int, random: torch.Generator) -> Tensor:
    """Whole pixels down and to the right (rows, 2)."""
    most = [max(1, side // 8) for side in (height, width)]
    return torch.stack([torch.randint(-m, m + 1, (rows,), generator=random) for m in most], dim=1).float()


def _moved(images: Tensor, angles: Tensor, zoom: Tensor, offsets: Tensor) -> Tensor:
    """Turn about the center, zoom, then move by `offsets` (down, right) in pixels."""
    height, width = images.shape[2:]
    down, right = (offsets * torch.tensor([2 / height, 2 / width])).unbind(1)
    cos, sin = torch.cos(angles) / zoom, torch.sin(angles) / zoom
    # The map from where a pixel lies to where it came from, in units of half sides (x to the right, y down).
    slant = height / width
    turn = torch.stack([torch.stack([cos, -sin * slant], 1), torch.stack([sin / slant, cos], 1)], 1)
    origin = -(turn @ torch.stack([right, down], 1)[:, :, None])
    grid = F.affine_grid(torch.cat([turn, origin], 2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _window(rows: int, height: int, width: int, random: torch.Generator) -> Tensor:
    """Zero inside one square for each image, one elsewhere (rows, 1, height, width)."""
    side = max(1, min(height, width) // 2)
    masks = []
    for size in (height, width):
        first = torch.randint(0, size, (rows, 1), generator=random) - side // 2
        at = torch.arange(size)
        masks.append((at >= first) & (at < first + side))
    return 1 - (masks[0][:, None, :, None] & masks[1][:, None, None, :]).float()
