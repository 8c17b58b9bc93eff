"""Features without labels, as SimCLR learns them (Chen et al. 2020, arXiv 2002.05709), then a linear head.

Small: two augmented versions of each image of a batch, a projection head of one hidden layer that is dropped
afterwards, and the loss NT-Xent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamcca.multiplicity.models.loop import Phase, Seeds
from streamcca.multiplicity.models.methods import Method

if TYPE_CHECKING:
    from torch import Tensor

    from streamcca.multiplicity.models.nets import Net

TEMPERATURE = 0.2
PROJECTION = 32
# Of the linear head, whatever the method: it is convex and cheap.
_HEAD_EPOCHS, _HEAD_BATCH, _HEAD_RATE = 60, 128, 1e-2
_ROWS_AT_ONCE = 512


def nt_xent(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the normalized temperature-scaled cross-entropy of two versions of the same images.

    Parameters
    ----------
    first, second : Tensor (rows, size)
        Row i of one belongs to row i of the other; all 2 (rows - 1) others are negatives.
    temperature : float

    Returns
    -------
    Tensor
        A scalar: equation (1) of Chen et al. 2020, averaged over all 2 rows.

    Examples
    --------
    >>> import torch
    >>> x = torch.eye(4)
    >>> bool(nt_xent(x, x) < nt_xent(x, x.roll(1, 0)))
    True
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    z = normalize(torch.cat([first, second]), dim=1)
    similarities = z @ z.T / temperature
    rows = len(first)
    similarities = similarities.masked_fill(torch.eye(2 * rows, dtype=torch.bool), -torch.inf)
    partner = torch.arange(2 * rows).roll(rows)
    return cross_entropy(similarities, partner)


def contrastive_phases(method: Method, seeds: Seeds, net: Net, images: Tensor, labels: Tensor) -> list[Phase]:
    """Return the two phases of a contrastive training: all but the head on images alone, then the head on features."""
    return [_features_phase(method, seeds, net, images), _head_phase(method, seeds, net, images, labels)]


def _features_phase(method: Method, seeds: Seeds, net: Net, images: Tensor) -> Phase:
    import torch
    from torch import nn

    from streamcca.multiplicity.models.augment import augmented

    size = net.head.in_features
    projection = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, PROJECTION))
    both = nn.ModuleDict({"net": net, "projection": projection})

    def loss(rows: Tensor, epoch: int, step: int) -> Tensor:
        versions = [
            augmented(images[rows], method.augmentation, seeds("augmentation", epoch, step, version))
            for version in (0, 1)
        ]
        torch.default_generator.manual_seed(seeds("dropout", epoch, step))
        projected = projection(net.dropout(net.representation(torch.cat(versions))))
        return nt_xent(*projected.split(len(rows)))

    def begin() -> None:
        both.train()

    trained = [parameter for name, parameter in both.named_parameters() if not name.startswith("net.head.")]
    return Phase(
        both,
        trained,
        len(images),
        method.epochs,
        method.batch_size,
        method.optimizer,
        method.learning_rate,
        method.weight_decay,
        lambda epoch: seeds("order", epoch),
        loss,
        begin,
    )


def _head_phase(method: Method, seeds: Seeds, net: Net, images: Tensor, labels: Tensor) -> Phase:
    import torch
    from torch.nn.functional import cross_entropy

    features: list[Tensor] = []

    def begin() -> None:
        net.eval()
        with torch.no_grad():
            features[:] = [torch.cat([net.representation(rows) for rows in images.split(_ROWS_AT_ONCE)])]

    def loss(rows: Tensor, epoch: int, step: int) -> Tensor:
        return cross_entropy(net.head(features[0][rows]), labels[rows])

    return Phase(
        net,
        list(net.head.parameters()),
        len(images),
        _HEAD_EPOCHS,
        _HEAD_BATCH,
        "adamw",
        _HEAD_RATE,
        0.0,
        lambda epoch: seeds("order", "head", epoch),
        loss,
        begin,
    )
