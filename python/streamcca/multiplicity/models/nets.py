"""Small nets for small images, whose parts are named alike. Imports torch, so it is imported by functions only."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcca.errors import InputError
from streamcca.multiplicity.models.methods import Architecture
from streamcca.views import check_option

# Maps are halved from stage to stage until a side would fall below this.
_SMALLEST_MAP = 4
_COARSE = 4


class Net(nn.Module):
    """A stem, the stages ``stage1``, ``stage2``, ..., then ``features`` (rows, 4 width) and a linear ``head``.

    Inputs (rows, channels, height, width) in [0, 1]; outputs are logits. Nothing is changed in place after a stage, so
    that hooks may keep what they see.
    """

    def __init__(self, stem: nn.Module, stages: list[nn.Module], features: nn.Module, head: nn.Linear, drop: float):
        super().__init__()
        self.stem = stem
        self.depth = len(stages)
        for i, stage in enumerate(stages, start=1):
            self.add_module(f"stage{i}", stage)
        self.features = features
        self.dropout = _dropout(drop)
        self.head = head
        self.apply(_initialize)

    def representation(self, images: Tensor) -> Tensor:
        """Return the features (rows, 4 width) of images."""
        x = self.stem(images * 2 - 1)
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"stage{i}")(x)
        features: Tensor = self.features(x)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (rows, classes)."""
        logits: Tensor = self.head(self.dropout(self.representation(images)))
        return logits


def make_net(
    architecture: Architecture,
    *,
    shape: tuple[int, int, int],
    classes: int,
    width: int = 32,
    depth: int = 3,
    dropout: float = 0.0,
) -> Net:
    """Return an untrained net; its weights are drawn from torch's global generator.

    Parameters
    ----------
    architecture : 'mlp', 'convnet', 'resnet' or 'vit'
        'mlp': stages of one linear layer with 4 `width` units and ReLU. 'convnet': two 3 x 3 convolutions with ReLU a
        stage; between stages maps are halved by maxima and channels doubled, while maps stay at least 4 wide; at the
        end maps are averaged to 4 x 4. 'resnet': one basic residual block with batch norm a stage, halved by strides
        likewise, averaged at the end. 'vit': pre-norm transformer blocks of 2 `width` features on patches (2 x 2 up to
        a side of 16, else an eighth of the side), all tokens at the end.
    shape : (channels, height, width)
        Of an image; from 1 x 8 x 8 up.
    classes : int
        Number of logits.
    width, depth : int
        Size of the first stage, and number of stages.
    dropout : float
        Inside each stage and before the head, in train mode only.

    Returns
    -------
    Net
        With parts ``stage1`` ... ``stage{depth}``, ``features`` (4 `width` numbers a row in every architecture, after
        ReLU) and ``head``, so that layers of one name stand at the same depth.

    Raises
    ------
    InputError
    """
    check_option("architecture", architecture, get_args(Architecture))
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < _SMALLEST_MAP:
        raise InputError(f"shape: got {shape}, expected (channels, height, width) of at least (1, 4, 4)")
    if classes < 2 or width < 1 or depth < 1:
        raise InputError(
            f"net: got {classes} classes, width {width}, depth {depth}; expected at least 2 classes, width 1, depth 1"
        )
    make = {"mlp": _mlp, "convnet": _convnet, "resnet": _resnet, "vit": _vit}[architecture]
    stem, stages, reduce, size = make(shape, width, depth, dropout)
    features = nn.Sequential(*reduce, nn.Linear(size, 4 * width), nn.ReLU())
    return Net(stem, stages, features, nn.Linear(4 * width, classes), dropout)


def watched_layers(net: nn.Module) -> tuple[str, ...]:
    """Return the layers of a net that studies compare: ``stage1`` to ``stage{depth}``, and ``features``.

    Raises
    ------
    InputError
        The net is not one of `make_net`.
    """
    if not isinstance(net, Net):
        raise InputError(f"net: got {type(net).__name__}, expected one that make_net made; name its layers yourself")
    return (*(f"stage{i}" for i in range(1, net.depth + 1)), "features")


# Stem, stages, what brings the last stage to (rows, size), size.
_Parts = tuple[nn.Module, list[nn.Module], list[nn.Module], int]


def _initialize(module: nn.Module) -> None:
    # He et al. 2015, biases zero. With torch's default the convnet (width 16, 1,000 digits, 15 epochs) learned nothing
    # with SGD, and 96 % instead of 98 % with AdamW. Transformer blocks keep it, since no ReLU follows their layers.
    if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and not isinstance(module, _InBlock)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _InBlock(nn.Linear):
    """Linear layer inside a transformer block."""


def _dropout(probability: float) -> nn.Module:
    # Identity draws nothing from the generator.
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


def _mlp(shape: tuple[int, int, int], width: int, depth: int, dropout: float) -> _Parts:
    sizes = [math.prod(shape)] + [4 * width] * depth
    stages: list[nn.Module] = [
        nn.Sequential(nn.Linear(a, b), nn.ReLU(), _dropout(dropout)) for a, b in itertools.pairwise(sizes)
    ]
    return nn.Flatten(), stages, [], sizes[-1]


def _plan(shape: tuple[int, int, int], width: int, depth: int) -> list[tuple[int, int, bool]]:
    """Channels in, channels out, and whether maps are halved first, for each stage."""
    side, channels = min(shape[1:]), width
    plan = [(shape[0], width, False)]
    for _ in range(depth - 1):
        halve = side // 2 >= _SMALLEST_MAP
        wider = channels * 2 if halve else channels
        plan.append((channels, wider, halve))
        side, channels = (side + 1) // 2 if halve else side, wider
    return plan


def _convnet(shape: tuple[int, int, int], width: int, depth: int, dropout: float) -> _Parts:
    plan = _plan(shape, width, depth)
    stages: list[nn.Module] = []
    for before, after, halve in plan:
        parts: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if halve else []
        parts += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()]
        stages.append(nn.Sequential(*parts, _dropout(dropout)))
    # A coarse map instead of one average: without normalization that learned slowly, and some seeds hardly at all
    # (1,000 digits, width 16, 15 epochs: training accuracy 0.97 and 0.63 with SGD, 0.84 and 0.90 with 'strong').
    cells = _COARSE * _COARSE
    return nn.Identity(), stages, [nn.AdaptiveAvgPool2d(_COARSE), nn.Flatten()], cells * plan[-1][1]


class _Residual(nn.Module):
    """Basic residual block: two 3 x 3 convolutions with batch norm beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = before == after and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )
        self.drop = _dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.drop(F.relu(self.body(x) + self.shortcut(x)))
        return dropped


def _resnet(shape: tuple[int, int, int], width: int, depth: int, dropout: float) -> _Parts:
    plan = _plan(shape, width, depth)
    stem = nn.Sequential(nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    stages: list[nn.Module] = []
    for i, (before, after, halve) in enumerate(plan):
        stages.append(_Residual(width if i == 0 else before, after, 2 if halve else 1, dropout))
    return stem, stages, [nn.AdaptiveAvgPool2d(1), nn.Flatten()], plan[-1][1]


class _Patches(nn.Module):
    """Cut images into patches, one token (features) each, with learned positions."""

    def __init__(self, shape: tuple[int, int, int], patch: int, size: int) -> None:
        super().__init__()
        channels, height, width = shape
        # Sides that the patch does not divide are filled up at the bottom and on the right.
        self.pad = (0, -width % patch, 0, -height % patch)
        tokens = math.ceil(height / patch) * math.ceil(width / patch)
        self.project = nn.Conv2d(channels, size, patch, patch)
        self.positions = nn.Parameter(torch.empty(tokens, size).normal_(std=0.02))

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.project(F.pad(images, self.pad)).flatten(2).transpose(1, 2) + self.positions
        return tokens


class _Block(nn.Module):
    """Pre-norm transformer block, with plain attention: the same bits each time, whatever torch would choose."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.heads = next(heads for heads in (4, 2, 1) if size % heads == 0)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.mix, self.join = _InBlock(size, 3 * size), _InBlock(size, size)
        self.wide, self.narrow = _InBlock(size, 2 * size), _InBlock(2 * size, size)
        self.drop1, self.drop2 = _dropout(dropout), _dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop1(self.join(self._attention(self.norm1(x))))
        mixed: Tensor = x + self.drop2(self.narrow(F.gelu(self.wide(self.norm2(x)))))
        return mixed

    def _attention(self, x: Tensor) -> Tensor:
        rows, tokens, size = x.shape
        q, k, v = self.mix(x).view(rows, tokens, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        shares = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        mixed: Tensor = (shares @ v).transpose(1, 2).reshape(rows, tokens, size)
        return mixed


def _vit(shape: tuple[int, int, int], width: int, depth: int, dropout: float) -> _Parts:
    size = 2 * width
    # At most 8 patches along the longer side.
    patch = max(2, math.ceil(max(shape[1:]) / 8))
    stages: list[nn.Module] = [_Block(size, dropout) for _ in range(depth)]
    patches = _Patches(shape, patch, size)
    # Tokens side by side: with their mean, 1,000 digits gave 84 % after 15 epochs and 91 % after 30, so 98 % after 15.
    return patches, stages, [nn.LayerNorm(size), nn.Flatten()], size * len(patches.positions)
