"""Training methods and training: keys, seeds, the same bits after kills, and what is really learned."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamcca import store
from streamcca.errors import (
    DTypeError,
    InputError,
    MissingFileError,
    NonFiniteError,
    NumericError,
    StateFileError,
    StreamCCAWarning,
)
from streamcca.multiplicity.models import augment, loop, training
from streamcca.multiplicity.models.contrastive import nt_xent
from streamcca.multiplicity.models.methods import LADDER, SOURCES, Method, derived_seed, distance_on_ladder
from streamcca.multiplicity.models.training import (
    Trained,
    fingerprint_of,
    load_model,
    stored_training,
    train,
    training_rows,
    untrained_model,
)
from streamcca.multiplicity.models.weights import MODEL_FORMAT, same_tensors

TRAIN = 1000


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order].astype(np.float32) / 16).reshape(-1, 1, 8, 8), labels[order].astype(np.int64)


@pytest.fixture(scope="module")
def few(digits):
    return digits[0][:90], digits[1][:90]


def method(name="m", **options):
    settings = {"architecture": "mlp", "width": 4, "depth": 2, "epochs": 3, "batch_size": 16, **options}
    return Method(name, **settings)


def held_out_accuracy(path, digits):
    """Accuracy on the images left out."""
    net = load_model(path)
    with torch.no_grad():
        answers = net(torch.from_numpy(digits[0][TRAIN:])).argmax(1).numpy()
    return float((answers == digits[1][TRAIN:]).mean())


def content(path):
    """All that a file says, bit by bit (safetensors writes its header in any order)."""
    state = store.read_state(path, MODEL_FORMAT)
    return state["meta"], {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in state["tensors"].items()}


def weights(path):
    return {name: value.numpy().copy() for name, value in load_model(path).state_dict().items()}


def distance(a, b):
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


# ---------------------------------------------------------------------- methods


def test_round_trip():
    one = method("x", varies=("order", "initialization"), dropout=0.25, framework="contrastive", augmentation="strong")
    assert Method.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert one.varies == ("initialization", "order")  # in one order, whatever was given
    assert Method.from_dict({"name": "n", "varies": "all"}).varies == SOURCES
    assert Method("n", learning_rate=1).to_dict()["learning_rate"] == 1.0
    assert len(repr(one)) < 120


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "lstm"}, "architecture: got 'lstm'"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected a number at least 0 and below 1"),
        ({"dropout": float("nan")}, "dropout: got nan"),
        ({"subset": 0}, "subset: got 0, expected a number above 0 and at most 1"),
        ({"subset": 1.01}, "subset"),
        ({"label_noise": 1.0}, "label_noise"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected a number above 0"),
        ({"learning_rate": float("inf")}, "learning_rate: got inf"),
        ({"weight_decay": -1e-9}, "weight_decay"),
        ({"batch_size": 1}, "batch_size: got 1, expected a whole number of at least 2"),
        ({"epochs": 1.5}, "epochs: got 1.5"),
        ({"epochs": True}, "epochs: got True"),
        ({"width": 0}, "width"),
        ({"optimizer": "lion"}, "optimizer: got 'lion'"),
        ({"varies": ("ordre",)}, "varies: there is no random source 'ordre'; did you mean 'order'"),
        ({"varies": "order"}, "varies: got 'order'"),
        ({"framework": "contrastive"}, "two versions of each image"),
        ({"learning_rat": 0.1}, "there is no setting 'learning_rat'; did you mean 'learning_rate'"),
    ],
)
def test_wrong_methods_are_refused(values, message):
    with pytest.raises(InputError, match=message) as caught:
        Method.from_dict({"name": "group", **values})
    assert "'group'" in str(caught.value)


def test_nameless_methods_are_refused():
    for values in ({}, {"name": " "}, {"name": 3}):
        with pytest.raises(InputError, match="name"):
            Method.from_dict(values)


OTHER = {
    "architecture": "convnet",
    "width": 5,
    "depth": 3,
    "dropout": 0.2,
    "weight_decay": 0.01,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "batch_size": 17,
    "epochs": 4,
    "augmentation": "noise",
    "subset": 0.5,
    "label_noise": 0.1,
    "framework": "contrastive",
}


def test_key_changes_with_everything_that_matters():
    base = method(dropout=0.1, augmentation="strong", subset=0.9, label_noise=0.2)
    assert set(OTHER) | {"name", "varies"} == {field.name for field in dataclasses.fields(Method)}
    keys = {"base": base.key("data", 1, 2), "seed": base.key("data", 2, 2), "data": base.key("date", 1, 2)}
    for name, value in OTHER.items():
        keys[name] = dataclasses.replace(base, **{name: value}).key("data", 1, 2)
    for source in SOURCES:
        without = tuple(s for s in SOURCES if s != source)
        keys[f"fixed {source}"] = dataclasses.replace(base, varies=without).key("data", 1, 2)
        keys[f"fixed {source}, other study"] = dataclasses.replace(base, varies=without).key("data", 1, 3)
    assert len(set(keys.values())) == len(keys)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys.values())


def test_key_changes_with_nothing_else():
    base = method()
    key = base.key("data", 1, 2)
    assert dataclasses.replace(base, name="other").key("data", 1, 2) == key
    # All sources vary: the seed of the study is not used.
    assert base.key("data", 1, 3) == key
    # Sources that are not drawn from.
    idle = ("dropout", "augmentation", "subset", "label noise")
    assert dataclasses.replace(base, varies=("initialization", "order")).key("data", 1, 2) == key
    assert dataclasses.replace(base, varies=("initialization", "order", *idle[:2])).key("data", 1, 3) == key
    # Nothing varies: the seed of the member is not used.
    fixed = dataclasses.replace(base, varies=())
    assert fixed.key("data", 1, 2) == fixed.key("data", 7, 2) != fixed.key("data", 1, 3)
    assert dataclasses.replace(base, weight_decay=-0.0).key("data", 1, 2) == key


def test_key_is_stable():
    """A key stands in files: another one after an upgrade would train every model anew."""
    assert Method("seeds").key("data", 1) == "ecde210599ba36fc55f7c8ad3c3b3a28"


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_member_and_study_never_share_randomness(a, b):
    base = method()
    seeds = [loop.Seeds(base, a, b)(source, 0) for source in SOURCES]
    fixed = [loop.Seeds(dataclasses.replace(base, varies=()), a, b)(source, 0) for source in SOURCES]
    assert len({*seeds, *fixed}) == 2 * len(SOURCES)
    assert all(0 <= seed < 2**63 for seed in seeds + fixed)


def test_derived_seeds_differ():
    seeds = [derived_seed("order", epoch, step) for epoch in range(40) for step in range(40)]
    assert len(set(seeds)) == 1600
    assert derived_seed("a", 11, 1) != derived_seed("a", 1, 11) != derived_seed("a", 111)


@pytest.mark.parametrize("seed", [-1, 1.0, True, "1", None])
def test_wrong_seeds_are_refused(seed):
    with pytest.raises(InputError, match="seed: got"):
        method().key("data", seed)
    with pytest.raises(InputError, match="study_seed: got"):
        method().key("data", 0, seed)


# ---------------------------------------------------------------------- the ladder


def test_ladder():
    base = method()
    expected = {"framework": "framework", "architecture": "architecture", "width": "architecture"}
    expected["depth"] = "architecture"
    for name, value in OTHER.items():
        start = dataclasses.replace(base, augmentation="strong") if name == "framework" else base
        other = dataclasses.replace(start, **{name: value})
        assert distance_on_ladder((start, "d"), (other, "d")) == expected.get(name, "hyper-parameter"), name
        assert distance_on_ladder((start, "d"), (other, "e")) == "data set"
        assert distance_on_ladder((other, "d"), (start, "d")) == distance_on_ladder((start, "d"), (other, "d"))
    assert distance_on_ladder((base, "d"), (method("n", varies=()), "d")) == "reinit"


def test_ladder_takes_the_highest_rung():
    base = method(augmentation="strong")
    changes = {"hyper-parameter": {"dropout": 0.1}, "architecture": {"width": 9}}
    changes["framework"] = {"framework": "contrastive"}
    for first, second in itertools.combinations(changes, 2):
        other = dataclasses.replace(base, **changes[first], **changes[second])
        assert distance_on_ladder((base, "d"), (other, "d")) == max(first, second, key=LADDER.index)


def test_ladder_of_described_models():
    a = {"architecture": "resnet50", "dropout": 0.1}
    assert distance_on_ladder((a, "d"), ({**a, "name": "other"}, "d")) == "reinit"
    assert distance_on_ladder((a, "d"), ({"architecture": "resnet50"}, "d")) == "hyper-parameter"
    assert distance_on_ladder((a, "d"), ({**a, "framework": "supervised"}, "d")) == "reinit"
    assert distance_on_ladder((a, "d"), ({**a, "framework": "clip"}, "d")) == "framework"
    assert distance_on_ladder((a, "d"), (method(), "d")) == "architecture"
    with pytest.raises(InputError, match="'architecture'"):
        distance_on_ladder((a, "d"), ({"dropout": 0.1}, "d"))


# ---------------------------------------------------------------------- what members share


def test_subset_and_label_noise(digits):
    labels = digits[1]
    one = method(subset=0.3, label_noise=0.25)
    rows, noisy = training_rows(one, labels, 10, 1)
    assert len(rows) == round(0.3 * len(labels))
    assert (np.diff(rows) > 0).all()
    wrong = noisy != labels[rows]
    assert wrong.sum() == round(0.25 * len(rows))
    # Evenly among the other classes: each offset 1 to 9 is expected 15 times.
    offsets = np.bincount((noisy - labels[rows])[wrong] % 10, minlength=10)
    assert offsets[0] == 0
    assert ((offsets[1:] - 15) ** 2 / 15).sum() < 30  # chi square, 8 degrees: beyond 26 in 1 of 1000
    again = training_rows(one, labels, 10, 1)
    np.testing.assert_array_equal(rows, again[0])
    np.testing.assert_array_equal(noisy, again[1])
    others, _ = training_rows(one, labels, 10, 2)
    assert 0.2 < np.isin(rows, others).mean() < 0.4


def test_fixed_sources_give_members_the_same_rows(digits):
    labels = digits[1]
    one = method(subset=0.3, label_noise=0.25, varies=("initialization",))
    for a, b in zip(training_rows(one, labels, 10, 1), training_rows(one, labels, 10, 2), strict=True):
        np.testing.assert_array_equal(a, b)
    # The noise alone varies: same rows, other labels.
    one = method(subset=0.3, label_noise=0.25, varies=("label noise",))
    (rows, noisy), (same, others) = (training_rows(one, labels, 10, seed) for seed in (1, 2))
    np.testing.assert_array_equal(rows, same)
    assert (noisy != others).any()


def test_training_uses_subset_and_noise(few, tmp_path):
    """Images left out count for nothing (their labels in which rows are drawn); the others do."""
    images, labels = few
    one = method(subset=0.5, label_noise=0.2)
    rows, _ = training_rows(one, labels, 10, 0)
    rest = np.setdiff1d(np.arange(len(labels)), rows)
    train(one, 0, images, labels, tmp_path / "a", classes=10, fingerprint="f")
    assert stored_training(tmp_path / "a")["rows"] == 45
    changed = images.copy()
    changed[rest] = 0
    train(one, 0, changed, labels, tmp_path / "b", classes=10, fingerprint="f")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    changed = images.copy()
    changed[rows[3]] = 0
    train(one, 0, changed, labels, tmp_path / "c", classes=10, fingerprint="f")
    assert distance(weights(tmp_path / "a"), weights(tmp_path / "c")) > 0


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("initialization", {}),
        ("order", {}),
        ("dropout", {"dropout": 0.3}),
        ("augmentation", {"augmentation": "noise"}),
        ("subset", {"subset": 0.7}),
        ("label noise", {"label_noise": 0.3}),
    ],
)
def test_each_source_alone_makes_members_differ(few, tmp_path, source, options):
    one = method(epochs=1, varies=(source,), **options)
    for seed in (0, 1):
        train(one, seed, *few, tmp_path / f"{seed}", classes=10)
    assert distance(weights(tmp_path / "0"), weights(tmp_path / "1")) > 0
    fixed = dataclasses.replace(one, varies=())
    for seed in (0, 1):
        train(fixed, seed, *few, tmp_path / f"fixed {seed}", classes=10)
    assert distance(weights(tmp_path / "fixed 0"), weights(tmp_path / "fixed 1")) == 0


@pytest.mark.parametrize("architecture", ["mlp", "resnet", "vit"])
def test_order_only_members_start_alike_and_end_apart(few, tmp_path, architecture):
    one = method(architecture=architecture, varies=("order",))
    first, second = (untrained_model(one, seed, (1, 8, 8), 10).state_dict() for seed in (0, 1))
    assert same_tensors(first, second)
    for seed in (0, 1):
        train(one, seed, *few, tmp_path / f"{seed}", classes=10)
    assert distance(weights(tmp_path / "0"), weights(tmp_path / "1")) > 1e-3
    # A training starts there: one of steps too small to see ends there.
    idle = dataclasses.replace(one, learning_rate=1e-30)
    train(idle, 0, *few, tmp_path / "idle", classes=10)
    start = {name: value.numpy() for name, value in first.items()}
    trained = [name for name in start if "running" not in name and "batches" not in name]
    idle_end = weights(tmp_path / "idle")
    assert max(float(np.abs(idle_end[name] - start[name]).max()) for name in trained) < 1e-28
    other = untrained_model(dataclasses.replace(one, varies=("initialization",)), 0, (1, 8, 8), 10).state_dict()
    assert not same_tensors(first, other)


# ---------------------------------------------------------------------- the same bits

KILLED = [
    {"architecture": "mlp", "dropout": 0.2, "augmentation": "strong", "subset": 0.9, "label_noise": 0.1},
    {"architecture": "resnet", "optimizer": "sgd", "dropout": 0.1},
    {"architecture": "convnet", "optimizer": "adam", "weight_decay": 0.01},
    {"architecture": "vit", "dropout": 0.2},
    {"architecture": "convnet", "framework": "contrastive", "augmentation": "strong", "dropout": 0.1},
]


@pytest.mark.parametrize("options", KILLED, ids=lambda o: o.get("framework", o["architecture"]))
def test_stopped_five_times_ends_with_the_same_file(few, tmp_path, options):
    one = method(**options)
    straight = train(one, 3, *few, tmp_path / "straight", classes=10)
    random = np.random.default_rng(5)
    left = tmp_path / "stopped"
    for stop in range(5):
        steps = itertools.count()
        # The second phase of the contrastive one has 60 steps.
        at = int(random.integers(0, 12 if "framework" in options else 3)) if stop else 1
        result = train(one, 3, *few, left, classes=10, should_stop=lambda at=at, steps=steps: next(steps) >= at)
        assert result is None
        assert (tmp_path / "stopped.part").exists()
        assert not left.exists()
    result = train(one, 3, *few, left, classes=10)
    assert content(left) == content(tmp_path / "straight")
    assert (result.loss, result.train_accuracy) == (straight.loss, straight.train_accuracy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "straight"]


@pytest.mark.parametrize("framework", ["supervised", "contrastive"])
def test_killed_at_every_step(few, tmp_path, framework):
    """A checkpoint after every step, and an exception out of nowhere: nothing is lost, nothing is done twice."""
    one = method(
        "m", architecture="resnet", dropout=0.2, epochs=1, batch_size=30, augmentation="strong", framework=framework
    )
    train(one, 0, *few, tmp_path / "straight", classes=10)
    left, kills = tmp_path / "killed", 0

    def killed_after_a_step(calls):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    while not left.exists():
        calls: list[int] = []
        try:
            train(
                one, 0, *few, left, classes=10, checkpoint_seconds=0, should_stop=lambda c=calls: killed_after_a_step(c)
            )
        except KeyboardInterrupt:
            kills += 1
    # Three batches; and 60 steps of the linear head.
    assert kills == (2 if framework == "supervised" else 62)
    assert content(left) == content(tmp_path / "straight")


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_against_a_plain_loop(few, tmp_path, optimizer):
    """Epochs, orders, batches, the schedule and the optimizer's settings, as the docstrings say, to the bit."""
    one = method(
        dropout=0.3, optimizer=optimizer, weight_decay=0.05, learning_rate=0.01, augmentation="noise", epochs=4
    )
    train(one, 3, *few, tmp_path / "m", classes=10)
    net = untrained_model(one, 3, (1, 8, 8), 10).train()
    images, labels = map(torch.from_numpy, few)
    settings = {"lr": 0.01, "weight_decay": 0.05}
    optimizers = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    if optimizer == "sgd":
        settings |= {"momentum": 0.9, "nesterov": True}
    plain = optimizers[optimizer](net.parameters(), **settings)
    step, threads = 0, torch.get_num_threads()
    torch.set_num_threads(1)
    for epoch in range(4):
        order = np.random.Generator(np.random.PCG64(derived_seed("order", "member", 3, epoch))).permutation(90)
        for batch in np.array_split(order, 6):
            rise = (step + 1) / 1 if step < 1 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 23))
            plain.param_groups[0]["lr"] = 0.01 * rise
            changed = augment.augmented(images[batch], "noise", derived_seed("augmentation", "member", 3, epoch, step))
            torch.manual_seed(derived_seed("dropout", "member", 3, epoch, step))
            plain.zero_grad()
            torch.nn.functional.cross_entropy(net(changed), labels[batch]).backward()
            plain.step()
            step += 1
    torch.set_num_threads(threads)
    assert same_tensors(net.state_dict(), load_model(tmp_path / "m").state_dict())


SCRIPT = """
import sys
import numpy as np
from streamcca.multiplicity.models.methods import Method
from streamcca.multiplicity.models.training import train

if __name__ == "__main__":
    with np.load(sys.argv[1]) as data:
        images, labels = data["images"], data["labels"]
    method = Method("m", "vit", width=4, depth=2, epochs=24, batch_size=16, dropout=0.2, augmentation="strong")
    train(method, 3, images, labels, sys.argv[2], classes=10, checkpoint_seconds=0.02)
"""


@pytest.mark.slow
def test_killed_by_the_system(few, tmp_path):
    """SIGKILL at random moments, also inside the writing of a checkpoint."""
    np.savez(tmp_path / "data.npz", images=few[0], labels=few[1])
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "data.npz")]
    subprocess.run([*command, str(tmp_path / "straight")], check=True)
    random = np.random.default_rng(0)
    left, part = tmp_path / "killed", tmp_path / "killed.part"
    gone_on = 0
    for _ in range(2):
        before = part.read_bytes() if part.exists() else b""
        process = subprocess.Popen([*command, str(left)])
        while process.poll() is None and (not part.exists() or part.read_bytes() == before):
            time.sleep(0.01)
        time.sleep(float(random.random()) * 0.1)
        gone_on += process.poll() is None
        process.kill()
        process.wait()
    assert gone_on >= 1
    subprocess.run([*command, str(left)], check=True)
    assert content(left) == content(tmp_path / "straight")
    assert {path.name for path in tmp_path.iterdir()} == {"data.npz", "script.py", "killed", "straight"}


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, streamcca.multiplicity.models.sources, streamcca.multiplicity.models.training, "
        "streamcca.multiplicity.models.contrastive; "
        "print({'torch', 'transformers', 'timm', 'sklearn'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_part_of_another_training_is_not_gone_on_with(few, tmp_path):
    train(method(), 3, *few, tmp_path / "straight", classes=10)
    for other, options in ((method(epochs=4), {}), (method(), {"threads": 2}), (method(), {"study_seed": 1})):
        other = dataclasses.replace(other, varies=("order",)) if "study_seed" in options else other
        stop = itertools.count()
        train(other, 3, *few, tmp_path / "m", classes=10, should_stop=lambda s=stop: next(s) > 4, **options)
        assert (tmp_path / "m.part").exists()
        train(method(), 3, *few, tmp_path / "m", classes=10)
        assert content(tmp_path / "m") == content(tmp_path / "straight")
        (tmp_path / "m").unlink()


def test_damaged_part_is_told_and_left(few, tmp_path):
    stop = itertools.count()
    train(method(), 3, *few, tmp_path / "m", classes=10, should_stop=lambda: next(stop) > 4)
    part = tmp_path / "m.part"
    damaged = bytearray(part.read_bytes())
    damaged[-5] ^= 1
    part.write_bytes(damaged)
    with pytest.warns(StreamCCAWarning, match="trained anew, since .*checksum"):
        train(method(), 3, *few, tmp_path / "m", classes=10)
    train(method(), 3, *few, tmp_path / "straight", classes=10)
    assert content(tmp_path / "m") == content(tmp_path / "straight")
    assert not part.exists()


def test_bits_do_not_depend_on_the_callers_torch(few, tmp_path):
    one = method(dropout=0.2, augmentation="strong")
    train(one, 3, *few, tmp_path / "a", classes=10)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(99)
        state = torch.get_rng_state()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            train(one, 3, *few, tmp_path / "b", classes=10)
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
            net = load_model(tmp_path / "b")
        assert torch.equal(state, torch.get_rng_state())
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float64
        assert not torch.are_deterministic_algorithms_enabled()
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        assert not net.training
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(before)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_state_is_put_back_after_an_error(few, tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        with pytest.raises(NumericError, match=r"m, seed 3: the loss became (nan|inf).*lower its learning_rate"):
            train(method(optimizer="sgd", learning_rate=1e25), 3, *few, tmp_path / "m", classes=10, threads=2)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.get_num_threads() == threads
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_break_in_the_last_step_are_refused(few, tmp_path):
    """No later loss of the training shows them."""
    one = method(optimizer="sgd", learning_rate=1e30, epochs=1, batch_size=90)
    with pytest.raises(NumericError, match="m, seed 0: the loss became .* at the end; lower its learning_rate"):
        train(one, 0, *few, tmp_path / "new" / "m", classes=10, checkpoint_seconds=0)
    assert list((tmp_path / "new").iterdir()) == []


# ---------------------------------------------------------------------- files


def test_a_trained_model_is_reused(few, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    first = train(method(), 3, *few, path, classes=10)
    content = path.read_bytes()
    (tmp_path / "m.safetensors.part").write_bytes(b"left by a kill between the file and its removal")
    monkeypatch.setattr(training, "net_of", None)  # training would fail
    again = train(method("renamed"), 3, *few, path, classes=10)
    assert again.reused
    assert not first.reused
    assert dataclasses.replace(again, reused=False, seconds=first.seconds) == first
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    monkeypatch.undo()
    other = train(method(), 4, *few, path, classes=10)
    assert not other.reused
    assert path.read_bytes() != content
    assert json.loads(json.dumps(other.to_dict()))["train_accuracy"] == other.train_accuracy
    assert "\n" not in repr(other)


def test_file_says_what_it_holds(few, tmp_path):
    result = train(method("group"), 3, *few, tmp_path / "m", classes=10, study_seed=8)
    stored = stored_training(tmp_path / "m")
    assert stored["key"] == result.key == method().key(fingerprint_of(*few), 3, 8)
    assert Method.from_dict(stored["method"]) == method("group")
    assert (stored["seed"], stored["study_seed"], stored["rows"], stored["classes"]) == (3, 8, 90, 10)
    assert stored["shape"] == [1, 8, 8]
    net = load_model(tmp_path / "m", (1, 8, 8), 10)
    with torch.no_grad():
        logits = net(torch.from_numpy(few[0])).double()
    labels = torch.from_numpy(few[1])
    assert result.train_accuracy == float((logits.argmax(1) == labels).double().mean())
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_other_checkpoint_readers_can_load_it(few, tmp_path):
    """streamcca.compare(checkpoints=...) reads any safetensors file."""
    from streamcca.many import load_checkpoint
    from streamcca.multiplicity.models.nets import make_net

    train(method(architecture="resnet"), 3, *few, tmp_path / "m.safetensors", classes=10)
    net = make_net("resnet", shape=(1, 8, 8), classes=10, width=4, depth=2).eval()
    load_checkpoint(net, tmp_path / "m.safetensors", "m")
    images = torch.from_numpy(few[0])
    with torch.no_grad():
        assert torch.equal(net(images), load_model(tmp_path / "m.safetensors")(images))


def test_wrong_files_are_refused(few, tmp_path):
    train(method(), 3, *few, tmp_path / "m", classes=10)
    with pytest.raises(StateFileError, match=r"trained on images of shape \(1, 8, 8\) in 10 classes, expected \(3"):
        load_model(tmp_path / "m", (3, 8, 8), 10)
    with pytest.raises(StateFileError, match="in 10 classes, expected"):
        load_model(tmp_path / "m", classes=9)
    with pytest.raises(MissingFileError, match="no such file"):
        load_model(tmp_path / "none")
    (tmp_path / "mine").write_text("my notes")
    with pytest.raises(StateFileError, match="mine"):
        train(method(), 3, *few, tmp_path / "mine", classes=10)
    assert (tmp_path / "mine").read_text() == "my notes"
    damaged = bytearray((tmp_path / "m").read_bytes())
    damaged[-9] ^= 4
    (tmp_path / "m").write_bytes(damaged)
    with pytest.raises(StateFileError, match="checksum"):
        load_model(tmp_path / "m")


def test_wrong_data_are_refused(few, tmp_path):
    images, labels = few
    path = tmp_path / "m"
    wrong = [
        (DTypeError, "images: got float64", images.astype(np.float64), labels),
        (DTypeError, "images: got list", images.tolist(), labels),
        (InputError, r"images: got an array of shape \(90, 64\)", images.reshape(90, 64), labels),
        (InputError, "at least 2 rows", images[:1], labels[:1]),
        (InputError, "from 0 to 16, expected", images * 16, labels),
        (NonFiniteError, "NaN", np.where(images == images[0, 0, 3, 3], np.float32("nan"), images), labels),
        (DTypeError, "labels: got float64", images, labels.astype(float)),
        (InputError, r"labels: got shape \(89,\)", images, labels[:89]),
        (InputError, "labels: got 0 to 10, expected 0 to 9", images, np.where(labels == 9, 10, labels)),
    ]
    for kind, message, x, y in wrong:
        with pytest.raises(kind, match=message):
            train(method(), 0, x, y, path, classes=10)
    with pytest.raises(InputError, match="checkpoint_seconds: got nan"):
        train(method(), 0, images, labels, path, classes=10, checkpoint_seconds=float("nan"))
    with pytest.raises(InputError, match="threads: got 0"):
        train(method(), 0, images, labels, path, classes=10, threads=0)
    assert not list(tmp_path.iterdir())


@given(st.integers(2, 300), st.integers(2, 80))
def test_batches_cover_every_row_once_without_strays(rows, size):
    batches = np.array_split(np.arange(rows), -(-rows // size))
    assert sum(map(len, batches)) == rows
    assert max(map(len, batches)) <= size
    assert min(map(len, batches)) >= 2 or size == 2 or rows < 2


def test_small_data_with_batch_norm(few, tmp_path):
    """33 rows in batches of 32 would leave one row alone."""
    result = train(
        method(architecture="resnet", batch_size=32), 0, few[0][:33], few[1][:33], tmp_path / "m", classes=10
    )
    assert np.isfinite(result.loss)


def test_schedule():
    rates = [loop.schedule(step, 400) for step in range(400)]
    assert rates[:20] == pytest.approx(np.arange(1, 21) / 20)
    assert max(rates) == 1.0
    assert (np.diff(rates[20:]) < 0).all()
    assert 0 < rates[-1] < 1e-4
    assert loop.schedule(0, 1) == 1.0


def test_fingerprint_sees_everything(few):
    images, labels = few
    seen = [fingerprint_of(images, labels)]
    changed = images.copy()
    changed[-1, 0, -1, -1] += 0.01
    seen += [fingerprint_of(changed, labels), fingerprint_of(images, labels[::-1])]
    seen += [fingerprint_of(images.reshape(90, 1, 4, 16), labels), fingerprint_of(images, labels.astype(np.int32))]
    assert len(set(seen)) == len(seen)
    assert fingerprint_of(np.asfortranarray(images), labels) == seen[0]


# ---------------------------------------------------------------------- what is learned


def test_nt_xent_against_numpy(rng):
    first, second = rng.standard_normal((2, 7, 5))
    z = np.concatenate([first, second])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    similarity = np.exp(z @ z.T / 0.3)
    losses = []
    for i in range(14):
        j = (i + 7) % 14
        losses.append(-np.log(similarity[i, j] / sum(similarity[i, k] for k in range(14) if k != i)))
    found = nt_xent(torch.from_numpy(first), torch.from_numpy(second), 0.3)
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-12)


def test_contrastive_features_do_not_see_labels(few, tmp_path):
    images, labels = few
    one = method(framework="contrastive", augmentation="strong")
    train(one, 0, images, labels, tmp_path / "a", classes=10, fingerprint="f")
    train(one, 0, images, (labels + 1) % 10, tmp_path / "b", classes=10, fingerprint="f")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(np.array_equal(a[name], b[name]) == (not name.startswith("head.")) for name in a)


def test_contrastive_compares_two_versions(few, tmp_path, monkeypatch):
    seeds = []

    def recorded(images, kind, seed):
        seeds.append(seed)
        return plain(images, kind, seed)

    plain = augment.augmented
    monkeypatch.setattr(augment, "augmented", recorded)
    one = method(framework="contrastive", augmentation="noise")
    train(one, 0, *few, tmp_path / "a", classes=10)
    assert len(seeds) == 3 * 6 * 2  # epochs, batches, versions
    assert len(set(seeds)) == len(seeds)


def test_mlp_learns_digits(digits, tmp_path):
    result = train(Method("m", "mlp"), 0, digits[0][:TRAIN], digits[1][:TRAIN], tmp_path / "m", classes=10)
    assert isinstance(result, Trained)
    assert result.train_accuracy >= 0.99
    assert held_out_accuracy(tmp_path / "m", digits) >= 0.96


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "floor"),
    [
        ({"architecture": "convnet"}, 0.97),
        ({"architecture": "resnet"}, 0.97),
        ({"architecture": "vit"}, 0.96),
        ({"width": 16}, 0.96),
        ({"width": 16, "optimizer": "sgd", "learning_rate": 0.05}, 0.96),
        ({"width": 16, "dropout": 0.2}, 0.96),
        ({"framework": "contrastive", "augmentation": "strong", "width": 16, "batch_size": 128, "epochs": 25}, 0.90),
    ],
    ids=str,
)
def test_nets_learn_digits(digits, tmp_path, options, floor):
    """Seed 0 had 0.985 to 0.99 (ViT 0.986, contrastive 0.94) when this was written."""
    result = train(Method("m", **options), 0, digits[0][:TRAIN], digits[1][:TRAIN], tmp_path / "m", classes=10)
    assert held_out_accuracy(tmp_path / "m", digits) >= floor
    if "framework" not in options:
        assert result.train_accuracy >= 0.99
