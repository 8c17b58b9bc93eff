"""Small nets trained on scikit-learn's digits, for checks that papers have published."""

from __future__ import annotations

from typing import Any

Arrays = tuple[Any, Any]


def digits() -> tuple[Arrays, Arrays]:
    """Return training and test images (n, 1, 8, 8) with their labels, as torch tensors."""
    import torch
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return (images[:1347], labels[:1347]), (images[1347:], labels[1347:])


def plain_cnn(depth: int = 8, width: int = 24) -> Any:
    """Convolutions of one width, no shortcuts, batch norm and ReLU after each: ``0.conv``, ``0.norm``, ``0.relu``."""
    from torch import nn

    def block(channels: int) -> Any:
        layer = nn.Sequential()
        layer.add_module("conv", nn.Conv2d(channels, width, 3, padding=1))
        layer.add_module("norm", nn.BatchNorm2d(width))
        layer.add_module("relu", nn.ReLU())
        return layer

    body = nn.Sequential(*(block(width if i else 1) for i in range(depth)))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def train(model: Any, images: Any, labels: Any, epochs: int, seed: int, after_epoch: Any = None) -> None:
    """Train with Adam, its rate falling to 0, on shuffled batches of 64; calls ``after_epoch(epoch)``."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=epochs * -(-len(images) // 64))
    for epoch in range(1, epochs + 1):
        model.train()
        for index in torch.randperm(len(images), generator=generator).split(64):
            loss = torch.nn.functional.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        if after_epoch is not None:
            after_epoch(epoch)


def accuracy(model: Any, images: Any, labels: Any) -> float:
    """Share of images whose class is found."""
    import torch

    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())
