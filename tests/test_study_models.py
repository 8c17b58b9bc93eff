"""Where a study's models come from, and what one forward pass over images brings."""

from __future__ import annotations

import json
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import streamcca as sc
from streamcca.errors import DTypeError, InputError, LayerError, MissingFileError, NonFiniteError, StateFileError
from streamcca.multiplicity.models.capture import Batches
from streamcca.multiplicity.models.methods import Method, distance_on_ladder
from streamcca.multiplicity.models.nets import make_net, watched_layers
from streamcca.multiplicity.models.sources import (
    Captured,
    Factory,
    HuggingFace,
    Inputs,
    StoredAnswers,
    StudyModel,
    Timm,
    TrainedFile,
    capture,
    models_from,
    trained_model,
)
from streamcca.multiplicity.models.training import train


@pytest.fixture
def images(rng):
    return rng.random((53, 1, 8, 8), dtype=np.float32)


def net_of(architecture="convnet", shape=(1, 8, 8), seed=0, **options):
    torch.manual_seed(seed)
    return make_net(architecture, shape=shape, classes=4, width=4, **options)


# ---------------------------------------------------------------------- one forward pass


@pytest.mark.parametrize("architecture", ["mlp", "convnet", "resnet", "vit"])
def test_capture_against_plain_calls(images, architecture):
    net = net_of(architecture, dropout=0.4)
    net.stage1.eval()
    layers = watched_layers(net)
    captured = capture(net, images, 16, layers)
    assert net.training
    assert not net.stage1.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    net.eval()
    with torch.no_grad():
        x = torch.from_numpy(images)
        expected = net(x).numpy()
        features = net.representation(x).numpy()
        stage = net.stage1(net.stem(x * 2 - 1))
    logits, again = captured
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(captured.features, features, rtol=1e-5, atol=1e-5)
    assert again is captured.features
    assert tuple(captured.layers) == layers
    pooled = stage.mean(1) if architecture == "vit" else stage.flatten(2).mean(2) if stage.ndim == 4 else stage
    np.testing.assert_allclose(captured.layers["stage1"], pooled.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(captured.layers["features"], captured.features)
    assert {a.dtype for a in (logits, captured.features, *captured.layers.values())} == {np.dtype(np.float32)}
    assert {len(a) for a in captured.layers.values()} == {53}


def test_capture_runs_the_model_once(images):
    net, calls = net_of(), []
    net.register_forward_hook(lambda _m, arguments, _o: calls.append(len(arguments[0])))
    capture(net, images, 16, watched_layers(net))
    assert calls == [16, 16, 16, 5]
    calls.clear()
    capture(net, images, 20, features=None)
    assert calls == [20, 20, 13]


def test_capture_gives_the_rows_that_watch_sees(images):
    net = net_of().eval()
    captured = capture(net, images, 16, ["stage*"])
    assert tuple(captured.layers) == ("stage1", "stage2", "stage3")
    with torch.no_grad(), sc.watch(net, layers="stage*", rows="pool") as watched:
        net(torch.from_numpy(images))
    for name, rows in captured.layers.items():
        np.testing.assert_allclose(watched.moments.mean(name), rows.astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)
    assert captured.rows == watched.rows


def test_capture_of_logits_alone_and_of_parts(images):
    net = net_of("vit", dropout=0.4)
    alone = capture(net, images, features=None)
    assert net.training
    net.eval()
    assert alone.features is None
    assert alone.layers == {}
    first = capture(net, images, features="stage2", rows="first")
    with torch.no_grad():
        x = net.stage2(net.stage1(net.stem(torch.from_numpy(images) * 2 - 1)))
    np.testing.assert_allclose(first.features, x[:, 0].numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(first.logits, alone.logits)
    assert first.rows == "samples (first token)"
    assert repr(alone) == "Captured(53 rows, 4 logits, features none, 0 layers)"


def test_capture_of_a_memory_map_leaves_it_alone(images, tmp_path):
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net_of()

        def forward(self, x):
            return self.net(x.mul_(0.5))

    model = InPlace()
    captured = capture(model, mapped, 16, features="net.features")
    np.testing.assert_array_equal(mapped, images)
    np.testing.assert_allclose(captured.logits, capture(model.net, images / 2, 53).logits, rtol=1e-5, atol=1e-5)
    assert len(Batches(images, 16)) == len(list(Batches(images, 16))) == 4


def test_modules_of_two_names_count_for_both(images):
    net = net_of()
    net.other = net.stage3
    captured = capture(net, images, layers=["stage1", "stage3"], features="other")
    np.testing.assert_array_equal(captured.features, captured.layers["stage3"])


def test_capture_refuses(images):
    net = net_of()
    with pytest.raises(LayerError, match="there is no layer 'feature'; did you mean 'features'"):
        capture(net, images, features="feature")
    with pytest.raises(InputError, match="got 4 logits, expected 10"):
        capture(net, images, classes=10)
    with pytest.raises(InputError, match="got a tensor of shape .53, 16., expected logits|got a tensor of shape"):
        capture(nn.Sequential(net.stem, net.stage1), images, features="1")
    with pytest.raises(InputError, match="batch_size: got 0"):
        capture(net, images, 0)
    with pytest.raises(InputError, match="not empty"):
        capture(net, images[:0])
    with pytest.raises(LayerError, match="'stage1': got 3392 rows for 53 images, expected one for each"):
        capture(net, images, layers=["stage1"], rows={"stage1": "positions", "**": "pool"}, features=None)
    with torch.no_grad():
        net.head.bias[1] = float("nan")
    with pytest.raises(NonFiniteError, match="logits of image 0"):
        capture(net, images)
    assert all(not module._forward_hooks for module in net.modules())


# ---------------------------------------------------------------------- trained here


def test_trained_model(images, tmp_path):
    labels = np.arange(53) % 4
    one = Method("group", "mlp", width=4, depth=2, epochs=1)
    train(one, 3, images, labels, tmp_path / "group-3.safetensors", classes=4)
    model = trained_model(tmp_path / "group-3.safetensors", data_set="digits")
    assert (model.name, model.group, model.method, model.data_set) == ("group-3", "group", one, "digits")
    assert model.layers == ("stage1", "stage2", "features")
    assert model.stored is None
    again = pickle.loads(pickle.dumps(model))
    captured = capture(again.load(), images, layers=again.layers, features=again.features, classes=4)
    assert captured.logits.shape == (53, 4)
    json.dumps(model.to_dict())
    assert repr(model) == "StudyModel('group-3', group 'group', TrainedFile, 3 layers)"
    with pytest.raises(MissingFileError, match="no such file"):
        trained_model(tmp_path / "none")
    (tmp_path / "foreign.safetensors").write_bytes(b"nothing")
    with pytest.raises(StateFileError, match="damaged"):
        trained_model(tmp_path / "foreign.safetensors")


# ---------------------------------------------------------------------- a factory and checkpoints

FACTORY = """
import torch
from torch import nn

def make(width=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4))

def wrong():
    return 3
"""


@pytest.fixture
def factory(tmp_path):
    """A module in a folder of its own, and two checkpoints."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "study_nets.py").write_text(FACTORY)
    states = {}
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4))
        states[name] = net
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    yield tmp_path, states
    sys.modules.pop("study_nets", None)


def test_factory_with_checkpoints(factory, images):
    folder, states = factory
    path = list(sys.path)
    models = models_from(
        "study_nets:make",
        group="mine",
        data_set="digits",
        layers=["1", "2"],
        features="2",
        checkpoints=[folder / "a.safetensors", folder / "b.safetensors"],
        method={"architecture": "two layers", "dropout": 0.1},
        folder=str(folder / "code"),
    )
    assert [model.name for model in models] == ["a", "b"]
    for model in models:
        captured = capture(model.load(), images, layers=model.layers, features=model.features)
        with torch.no_grad():
            expected = states[model.name](torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(captured.logits, expected, rtol=1e-5, atol=1e-6)
        assert pickle.loads(pickle.dumps(model)) == model
        json.dumps(model.to_dict())
    assert sys.path == path
    pairs = [(model.method, model.data_set) for model in models]
    assert distance_on_ladder(*pairs) == "reinit"
    assert distance_on_ladder(pairs[0], (Method("m"), "digits")) == "architecture"


def test_factory_without_checkpoints(factory):
    folder, _ = factory
    (model,) = models_from(
        "study_nets:make",
        group="mine",
        data_set="d",
        layers=["1"],
        features="2",
        arguments={"width": 5},
        folder=str(folder / "code"),
    )
    assert model.name == "make"
    assert model.method == {"architecture": "make"}
    loaded = model.load()
    assert loaded[1].out_features == 5
    assert not loaded.training


def test_factories_are_refused(factory):
    folder, _ = factory
    code = str(folder / "code")
    for function, message in [
        ("study_nets:mak", "there is no function 'mak'; did you mean 'make'"),
        ("no_such_module_here:make", "No module named 'no_such_module_here'; install it, or give the folder"),
        ("study_nets", "expected 'package.module:function'"),
    ]:
        with pytest.raises(InputError, match=message):
            Factory(function, folder=code).load()
    with pytest.raises(DTypeError, match="got int, expected it to return a torch.nn.Module"):
        Factory("study_nets:wrong", folder=code).load()
    with pytest.raises(InputError, match="does not fit this Sequential"):
        Factory("study_nets:make", str(folder / "a.safetensors"), {"width": 7}, code).load()
    with pytest.raises(MissingFileError, match="none.safetensors"):
        Factory("study_nets:make", str(folder / "none.safetensors"), {}, code).load()
    torch.save({}, folder / "a.pt")
    with pytest.raises(InputError, match="nothing is unpickled here"):
        Factory("study_nets:make", str(folder / "a.pt"), {}, code).load()
    model = StudyModel("m", "g", {"architecture": "x"}, "d", ("9",), Factory("study_nets:make", folder=code), "2")
    with pytest.raises(LayerError, match="there is no layer '9'"):
        model.load()


def test_lists_of_models_are_refused(tmp_path):
    common = {"group": "g", "data_set": "d", "layers": ["*"], "features": "x"}
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="group 'g': got the source 'resnet'"):
        models_from("resnet", **common)
    with pytest.raises(InputError, match="no layers"):
        models_from("a:b", **{**common, "layers": []})
    with pytest.raises(InputError, match="leave checkpoints out"):
        models_from("huggingface:x", checkpoints=[tmp_path / "a.safetensors"], **common)
    with pytest.raises(InputError, match=r"needs checkpoints \(.safetensors\), since nothing is downloaded"):
        models_from("timm:resnet18", classes=3, **common)
    with pytest.raises(InputError, match="needs the number of classes"):
        models_from("timm:resnet18", checkpoints=[tmp_path / "a.safetensors"], **common)
    with pytest.raises(MissingFileError, match="expected a checkpoint of group 'g'"):
        models_from("a:b", checkpoints=[tmp_path / "none.safetensors"], **common)
    with pytest.raises(InputError, match="two checkpoints are called 'a'"):
        models_from("a:b", checkpoints=[tmp_path / "a.safetensors"] * 2, **common)


# ---------------------------------------------------------------------- Hugging Face and timm


def test_inputs(rng):
    gray = torch.from_numpy(rng.random((3, 1, 8, 8), dtype=np.float32))
    found = Inputs((12, 10), 3, (0.5, 0.4, 0.3), (0.1, 0.2, 0.4)).apply(gray)
    assert found.shape == (3, 3, 12, 10)
    np.testing.assert_allclose(found[:, 0] * 0.1 + 0.5, found[:, 2] * 0.4 + 0.3, rtol=1e-5, atol=1e-6)
    color = torch.from_numpy(rng.random((3, 3, 8, 8), dtype=np.float32))
    np.testing.assert_allclose(Inputs(channels=1).apply(color)[:, 0], color.mean(1), rtol=1e-6)
    assert Inputs((8, 8), 3).apply(color) is color
    # A smooth ramp stays one, halved and doubled.
    ramp = torch.arange(16.0).div(16).expand(1, 1, 16, 16)
    half = Inputs((8, 8)).apply(ramp)
    np.testing.assert_allclose(half[0, 0, 3, 1:-1], (torch.arange(8) * 2 + 0.5)[1:-1] / 16, rtol=1e-4)
    # Every pixel counts: without antialiasing this column would lie between those looked at.
    column = torch.zeros(1, 1, 16, 16)
    column[..., 4] = 1
    assert Inputs((4, 4)).apply(column)[0, 0, 2, 1] > 0.05
    with pytest.raises(InputError, match="got 2 channels, expected 3 or 1"):
        Inputs(channels=3).apply(color[:, :2])


@pytest.fixture(scope="module")
def hugging_face_folder(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("huggingface")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=4,
        num_channels=3,
        num_labels=4,
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    about = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.5], "size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder, model


def test_hugging_face(hugging_face_folder, images):
    folder, original = hugging_face_folder
    (model,) = models_from(
        f"huggingface:{folder}",
        group="vit",
        data_set="imagenet",
        layers=["vit.layernorm"],
        features="vit.layernorm",
    )
    loaded = model.load()
    assert not loaded.training
    captured = capture(loaded, images, 20, model.layers, model.features, rows="cls", classes=4)
    x = Inputs((16, 16), 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.5)).apply(torch.from_numpy(images))
    with torch.no_grad():
        expected = original(pixel_values=x, output_hidden_states=True)
        assert torch.is_tensor(loaded(torch.from_numpy(images)))
        cls = original.vit(pixel_values=x).last_hidden_state[:, 0]
    np.testing.assert_allclose(captured.logits, expected.logits.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(captured.features, cls.numpy(), rtol=1e-4, atol=1e-5)
    # Without the file images come as they are; the plain model works with capture, too.
    plain = capture(original, x.numpy(), features="vit.layernorm", rows="cls")
    np.testing.assert_allclose(plain.logits, captured.logits, rtol=1e-4, atol=1e-5)
    assert pickle.loads(pickle.dumps(model)) == model


def test_hugging_face_is_refused(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match="no image classifier with .safetensors weights") as caught:
        HuggingFace(str(tmp_path)).load()
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="needs transformers; install streamcca"):
        HuggingFace("x").load()


def test_timm(images, tmp_path, monkeypatch):
    """With a stand-in: timm is not among the test dependencies."""
    made = []

    def create_model(name, pretrained, num_classes):
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        made.append((pretrained, num_classes))
        net = nn.Sequential(nn.Flatten(), nn.Linear(300, 5), nn.Linear(5, num_classes))
        net.pretrained_cfg = {"input_size": (3, 10, 10), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return net

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    net = create_model("tiny", False, 4)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    (model,) = models_from(
        "timm:tiny",
        group="g",
        data_set="d",
        layers=["1"],
        features="1",
        checkpoints={"first": tmp_path / "w.safetensors"},
        classes=4,
    )
    assert model.name == "first"
    captured = capture(model.load(), images, features="1")
    assert made[-1] == (False, 4)
    x = Inputs((10, 10), 3, (0.5,) * 3, (0.5,) * 3).apply(torch.from_numpy(images))
    with torch.no_grad():
        np.testing.assert_allclose(captured.logits, net(x).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="timm:huge.*Unknown model"):
        Timm("huge", str(tmp_path / "w.safetensors"), 4).load()
    with pytest.raises(InputError, match="does not fit"):
        Timm("tiny", str(tmp_path / "w.safetensors"), 5).load()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="needs timm"):
        Timm("tiny", "w", 4).load()


# ---------------------------------------------------------------------- stored answers


def test_stored_answers(tmp_path):
    paths = {"logits": tmp_path / "logits.safetensors", "test": tmp_path / "scores.safetensors"}
    for path in paths.values():
        path.write_bytes(b"")
    source = StoredAnswers(str(paths["logits"]), {"test": str(paths["test"])})
    source.check()
    model = StudyModel("m", "g", {"architecture": "x"}, "d", ("a",), source)
    assert model.stored is source
    with pytest.raises(InputError, match="stored answers, so nothing new can be asked of it"):
        model.load()
    json.dumps(model.to_dict())
    paths["test"].unlink()
    with pytest.raises(MissingFileError, match="scores.safetensors: there is no such file"):
        source.check()


def test_kinds_of_sources_in_results(tmp_path):
    model = StudyModel("m", "g", Method("x"), "d", ("a",), TrainedFile("p"), "f")
    told = model.to_dict()
    assert told["source"] == {"kind": "TrainedFile", "path": "p"}
    assert Method.from_dict(told["method"]) == Method("x")
    assert isinstance(capture(net_of(), np.zeros((2, 1, 8, 8), np.float32)), Captured)
