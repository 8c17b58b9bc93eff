"""Choosing layers."""

from __future__ import annotations

import re

import pytest
from torch import nn

import streamcca as sc
from streamcca.layers import select_layers
from streamcca.rows import features_axis


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.act = nn.ReLU()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = nn.Sequential(Block())
        self.head = self.stem  # one module, two names


NET = Net()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("layer1", ["layer1"]),
        ("layer1.0.conv", ["layer1.0.conv"]),
        ("layer*", ["layer1", "layer2"]),
        ("layer?", ["layer1", "layer2"]),
        ("layer[13]", ["layer1"]),
        ("layer[!1]", ["layer2"]),
        (NET.layer1[0].conv, ["layer1.0.conv"]),
        ("*.0", ["layer1.0", "layer2.0"]),
        ("layer1.*", ["layer1.0", "layer1.1"]),
        ("layer1.**", ["layer1.0", "layer1.0.conv", "layer1.0.act", "layer1.1", "layer1.1.conv", "layer1.1.act"]),
        ("**.conv", ["layer1.0.conv", "layer1.1.conv", "layer2.0.conv"]),
        (["layer2", "stem"], ["stem", "layer2"]),
        (re.compile(r"layer\d\.0\.conv"), ["layer1.0.conv", "layer2.0.conv"]),
        (nn.Conv2d, ["layer1.0.conv", "layer1.1.conv", "layer2.0.conv"]),
        (Block, ["layer1.0", "layer1.1", "layer2.0"]),
        (
            lambda name, module: name.endswith("act") and isinstance(module, nn.ReLU),
            ["layer1.0.act", "layer1.1.act", "layer2.0.act"],
        ),
        (["stem", nn.ReLU], ["stem", "layer1.0.act", "layer1.1.act", "layer2.0.act"]),
        (
            None,
            ["stem", "layer1.0.conv", "layer1.0.act", "layer1.1.conv", "layer1.1.act", "layer2.0.conv", "layer2.0.act"],
        ),
        ("head", ["head"]),
        (["stem", "head"], ["stem"]),
    ],
    ids=str,
)
def test_selection(layers, expected):
    assert list(select_layers(NET, layers)) == expected


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ("layr1", "there is no layer 'layr1'; did you mean 'layer1' or "),
        ("layer1.0.cnv", r"no layer 'layer1\.0\.cnv'; did you mean 'layer1\.0\.conv'"),
        (["stem", "lyer2"], "no layer 'lyer2'; did you mean 'layer2'"),
        ("block*", r"no layer 'block\*'; there are 'stem'"),
        (re.compile("none"), "no layer 'none'"),
        (nn.Conv3d, "no layer"),
        (nn.Linear(1, 1), "no layer 'Linear'"),
        (lambda name, module: False, "no layer"),
    ],
    ids=str,
)
def test_unknown_layers_suggest_near_names(layers, sentence):
    with pytest.raises(sc.LayerError, match=sentence) as caught:
        select_layers(NET, layers)
    assert isinstance(caught.value, ValueError)


def test_bad_selectors():
    with pytest.raises(sc.InputError, match="layers: got 3, expected a name"):
        select_layers(NET, [3])
    with pytest.raises(sc.InputError, match="model: got dict, expected a torch"):
        select_layers({}, "a")
    with pytest.raises(sc.LayerError, match="this ReLU has no layers inside; watch torch.nn.Sequential"):
        select_layers(nn.ReLU(), None)
    with pytest.raises(sc.InputError, match="layers: got 3, expected a name"):
        select_layers(NET, 3)
    with pytest.raises(sc.InputError, match="layers: got an empty list"):
        select_layers(NET, [])


def test_the_axis_of_features_by_kind():
    class LayerNorm2d(nn.LayerNorm):
        """As in torchvision and timm: channels first, though a subclass of LayerNorm."""

    class Conv1D(nn.Module):
        """As in transformers: a linear layer."""

    class LoraLinear(nn.Linear):
        """A linear layer with extras."""

    axes = {
        nn.Linear(2, 2): -1,
        LoraLinear(2, 2): -1,
        nn.LayerNorm(2): -1,
        nn.Embedding(2, 2): -1,
        nn.Conv2d(1, 1, 1): 1,
        nn.BatchNorm2d(1): 1,
        nn.AdaptiveAvgPool2d(1): 1,
        LayerNorm2d(2): None,
        Conv1D(): None,
        nn.ReLU(): None,
    }
    assert {kind: features_axis(kind) for kind in axes} == axes
