"""Files of trained models: safetensors with checksums, and with the method that made them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamcca import store
from streamcca.errors import StateFileError
from streamcca.multiplicity.models.methods import Method

if TYPE_CHECKING:
    from torch import Tensor

    from streamcca.multiplicity.models.nets import Net

MODEL_FORMAT, PART_FORMAT = store.MODEL_FORMAT, store.TRAINING_FORMAT

Tensors = Mapping[str, "Tensor"]


def write_tensors(path: str | os.PathLike[str], kind: str, meta: Mapping[str, Any], tensors: Tensors) -> None:
    """Write tensors and what is known of them, atomically."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in sorted(tensors.items())}
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    store.write_state(path, {"meta": {**meta, "shapes": shapes}, "tensors": arrays}, kind)


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `write_tensors` wrote, after its checksums were verified.

    Raises
    ------
    MissingFileError, StateFileError
    """
    import torch

    state = store.read_state(path, kind)
    meta = state["meta"]
    shapes = meta.pop("shapes", {})
    try:
        # A file keeps a number of no dimension as one of length 1.
        tensors = {name: torch.from_numpy(array.reshape(shapes[name])) for name, array in state["tensors"].items()}
    except (KeyError, ValueError, TypeError):
        raise StateFileError(f"{path}: damaged, its arrays do not fit its header; remove it to train anew") from None
    return meta, tensors


def stored_training(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a file of `train` says of its model: key, method, shape, classes, epochs, train_accuracy, loss, ...

    Raises
    ------
    MissingFileError, StateFileError
    """
    meta: dict[str, Any] = store.read_state(path, MODEL_FORMAT)["meta"]
    meta.pop("shapes", None)
    return meta


def load_model(
    path: str | os.PathLike[str], shape: tuple[int, int, int] | None = None, classes: int | None = None
) -> Net:
    """Return a model that `train` wrote, in eval mode.

    Parameters
    ----------
    path : path
    shape, classes : optional
        Of the images and labels it will be used on; others than it was trained on are refused.

    Returns
    -------
    torch.nn.Module
        See `streamcca.multiplicity.models.nets.Net`.

    Raises
    ------
    MissingFileError, StateFileError
        There is no such file, or it is damaged or foreign, or was trained on images or labels of another shape.
    """
    import torch

    meta, tensors = read_tensors(path, MODEL_FORMAT)
    trained = tuple(meta["shape"]), meta["classes"]
    wanted = tuple(shape) if shape is not None else trained[0], classes if classes is not None else trained[1]
    if trained != wanted:
        raise StateFileError(
            f"{path}: trained on images of shape {trained[0]} in {trained[1]} classes, expected {wanted[0]} in "
            f"{wanted[1]}; choose the file of this data set, or remove it to train anew"
        )
    with torch.random.fork_rng(devices=[]):
        net = net_of(Method.from_dict(meta["method"]), trained[0], trained[1])
    # Assigned, so that the weights keep their type whatever torch's default is.
    net.load_state_dict(tensors, assign=True)
    return net.eval()


def net_of(method: Method, shape: tuple[int, ...], classes: int) -> Net:
    """Return the untrained net of a method; its weights come from torch's global generator."""
    from streamcca.multiplicity.models.nets import make_net

    channels, height, width = shape
    return make_net(
        method.architecture,
        shape=(channels, height, width),
        classes=classes,
        width=method.width,
        depth=method.depth,
        dropout=method.dropout,
    )


def same_tensors(a: Tensors, b: Tensors) -> bool:
    """Whether two sets of tensors have the same names, types, shapes and bits."""
    if a.keys() != b.keys():
        return False
    pairs = [(a[name].detach().numpy(), b[name].detach().numpy()) for name in a]
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)
