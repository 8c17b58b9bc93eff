"""Nets of the sizes of ResNet-18 and ResNet-50 (He et al. 2015), random weights, to time hooks on real shapes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any


def resnet50(stem: int = 64, classes: int = 1000) -> Any:
    """Return the net with bottlenecks in eval mode; 16 blocks, 25.6 million weights from a stem of 64 channels."""
    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, before: int, inside: int, stride: int) -> None:
            super().__init__()
            after = 4 * inside
            self.inner = nn.Sequential(
                *(nn.Conv2d(before, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
                *(nn.Conv2d(inside, inside, 3, stride, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
                *(nn.Conv2d(inside, after, 1, bias=False), nn.BatchNorm2d(after)),
            )
            self.shortcut = nn.Sequential()
            if stride > 1 or before != after:
                self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

        def forward(self, x: Any) -> Any:
            return torch.relu(self.inner(x) + self.shortcut(x))

    torch.manual_seed(0)
    first = [nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, before = [], stem
    for stage, count in enumerate((3, 4, 6, 3)):
        inside = stem << stage
        for i in range(count):
            blocks.append(Bottleneck(before, inside, 2 if stage and not i else 1))
            before = 4 * inside
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)).eval()


def resnet18() -> Any:
    """Return the net in eval mode; 20 convolutions, 11.7 million weights."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(after)
            self.shortcut = nn.Sequential()
            if stride > 1:
                self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

        def forward(self, x: Any) -> Any:
            inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
            return torch.relu(inner + self.shortcut(x))

    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()
