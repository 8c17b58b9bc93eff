"""Hooks: rows counted once, copied at once, released, and always removed."""

from __future__ import annotations

import collections
import copy
import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import streamcca as sc


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Recorder:
    """What ordinary hooks see, whole, for comparison."""

    def __init__(self, model, layers):
        self.seen = collections.defaultdict(list)
        self.handles = [
            model.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name: self.seen[name].append(out.detach().clone())
            )
            for name in layers
        ]

    def array(self, name, transform=lambda x: x):
        return np.concatenate([transform(x).double().numpy() for x in self.seen[name]])


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))


def check(moments, view, rows):
    np.testing.assert_allclose(moments.covariance(view), np.cov(rows, rowvar=False), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(moments.mean(view), rows.mean(axis=0), atol=1e-6)


def test_two_dimensional_outputs():
    model = mlp()
    plain = Recorder(model, ["0", "4"])
    with sc.watch(model, layers=["0", "4"]) as w:
        for _ in range(5):
            model(torch.randn(70, 8))
    assert w.counts == {"0": 350, "4": 350}
    assert w.rows == "samples"
    assert w.layers == ("0", "4")
    assert w.moments.n == 350
    check(w.moments, "0", plain.array("0"))
    check(w.moments, "4", plain.array("4"))
    assert 0 <= sc.svcca(w.moments, "0", "4").mean <= 1


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        collections.OrderedDict(
            a=nn.Conv2d(3, 6, 3, padding=1),
            b=nn.Conv2d(6, 5, 3, padding=1),
            down=nn.MaxPool2d(2),
            c=nn.Conv2d(5, 4, 3, padding=1),
            flat=nn.Flatten(),
            fc=nn.Linear(4 * 9, 7),
        )
    )


def positions(x):
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def pooled(x):
    return x.flatten(2).mean(2)


def test_equal_maps_give_positions():
    model = convnet()
    plain = Recorder(model, ["a", "b"])
    with sc.watch(model, layers=["a", "b"]) as w:
        for _ in range(3):
            model(torch.randn(10, 3, 6, 6))
    assert w.counts == {"a": 3 * 10 * 36, "b": 3 * 10 * 36}
    assert w.rows == "positions"
    check(w.moments, "a", plain.array("a", positions))
    check(w.moments, "b", plain.array("b", positions))


@pytest.mark.parametrize("layers", [["a", "c"], ["b", "fc"], ["a", "b", "c", "fc"]])
def test_unequal_maps_are_averaged(layers):
    model = convnet()
    plain = Recorder(model, layers)
    with sc.watch(model, layers=layers) as w:
        for _ in range(4):
            model(torch.randn(15, 3, 6, 6))
    assert set(w.counts.values()) == {60}
    assert w.rows == "samples (averaged over positions)"
    for name in layers:
        check(w.moments, name, plain.array(name, lambda x: pooled(x) if x.ndim == 4 else x))


def test_rules_by_name():
    model = convnet()
    x = torch.randn(5, 3, 6, 6)
    with sc.watch(model, layers="a", rows="pool") as w:
        model(x)
    assert w.counts == {"a": 5}
    with sc.watch(model, layers="a", rows="positions") as w:
        model(x)
    assert w.counts == {"a": 180}
    with pytest.raises(sc.InputError, match="rows: got 'pixels', expected one of 'auto'"):
        sc.watch(model, rows="pixels")
    with (
        pytest.raises(sc.LayerError, match=r"rows='tokens': the output of layer 'a' consists of positions"),
        sc.watch(model, layers="a", rows="tokens"),
    ):
        model(x)
    with (
        pytest.raises(
            sc.LayerError, match=r"layers 'a' and 'c' gave 180 and 45 rows in one forward.*rows='auto' or 'pool'"
        ),
        sc.watch(model, layers=["a", "c"], rows="positions"),
    ):
        model(x)
    assert hooks_of(model) == 0


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.block(self.embed(x)).mean(1))


def test_tokens():
    model = Tokens()
    x = torch.randn(5, 7, 4)
    plain = Recorder(model, ["embed", "block"])
    with sc.watch(model, layers=["embed", "block"]) as w:
        model(x)
    assert w.counts == {"embed": 35, "block": 35}
    assert w.rows == "tokens"
    check(w.moments, "block", plain.array("block", lambda x: x.reshape(-1, 6)))
    with sc.watch(model, layers=["embed", "head"]) as w:
        model(x)
    assert w.counts == {"embed": 5, "head": 5}
    assert w.rows == "samples (averaged over tokens)"


def test_one_dimensional_convolutions_have_channels_first():
    model = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.BatchNorm1d(5))
    with sc.watch(model, layers=["0", "1"]) as w:
        model(torch.randn(4, 3, 11))
    assert w.counts == {"0": 44, "1": 44}
    assert w.moments.views == {"0": 5, "1": 5}
    assert w.rows == "positions"


def test_three_dimensional_maps():
    model = nn.Sequential(nn.Conv3d(1, 4, 1))
    with sc.watch(model) as w:
        model(torch.randn(2, 1, 3, 4, 5))
    assert w.counts == {"0": 120}


class Containers(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner = Wrapping(wrap)

    def forward(self, x):
        self.inner(x)
        return x


class Wrapping(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, 3),
        lambda x: [None, x],
        lambda x: ((), (x * 1,)),
        lambda x: {"hidden": x},
        lambda x: {"other": 2 * x, "last_hidden_state": x},
        lambda x: {"other": 2 * x, "logits": x},
    ],
)
def test_containers_of_tensors(wrap):
    model = Containers(wrap)
    x = torch.randn(50, 4)
    with sc.watch(model, layers="inner") as w:
        model(x)
    check(w.moments, "inner", x.double().numpy())


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        (lambda x: (1, "a"), r"layer 'inner' returned a tuple of int, str without a tensor"),
        (lambda x: None, "layer 'inner' returned a NoneType without a tensor"),
        (lambda x: {}, "layer 'inner' returned a dict without a tensor"),
        (lambda x: x.sum(), r"layer 'inner' returned a tensor of shape \(\), expected \(samples, features\)"),
        (lambda x: x[:, 0], r"layer 'inner' returned a tensor of shape \(50,\)"),
    ],
)
def test_outputs_without_rows(wrap, sentence):
    model = Containers(wrap)
    with pytest.raises(sc.LayerError, match=sentence), sc.watch(model, layers="inner"):
        model(torch.randn(50, 4))
    assert hooks_of(model) == 0


def test_integer_outputs_are_refused_by_name():
    model = Containers(lambda x: x.int())
    with pytest.raises(sc.DTypeError, match="view 'inner': got dtype int32"), sc.watch(model, layers="inner"):
        model(torch.randn(50, 4))
    assert hooks_of(model) == 0


# ---------------------------------------------------------------- copies, references, exceptions


def test_an_in_place_operation_after_the_layer_does_not_reach_the_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    x = torch.randn(60, 4)
    for _ in range(2):  # the first forward, which decides the rule, and a later one
        with sc.watch(model, layers="0") as w:
            model(x)
            model(x)
        twice = torch.cat([x, x])
        check(w.moments, "0", model[0](twice).detach().double().numpy())


def test_no_reference_to_activations_is_kept():
    model = mlp()
    references = []
    model[2].register_forward_hook(lambda _m, _i, out: references.append(weakref.ref(out)))
    with sc.watch(model, layers=["2", "4"]) as w:
        for _ in range(3):
            model(torch.randn(10, 8))
            gc.collect()
            assert references[-1]() is None
            assert w._tap._forward.outputs == {}
    assert w.counts["2"] == 30


def test_gradients_flow_as_without_a_watch():
    x = torch.randn(30, 8)
    grads = []
    for watched in (False, True):
        model = mlp()
        model.train()
        if watched:
            with sc.watch(model, layers="**") as w:
                model(x).sum().backward()
            assert w.moments.n == 30
            assert model.training
        else:
            model(x).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_contexts(context):
    model = mlp()
    x = torch.randn(50, 8)
    plain = Recorder(model, ["0"])
    with sc.watch(model, layers="0") as w, context():
        model(x)
    assert w.counts == {"0": 50}
    check(w.moments, "0", plain.array("0"))
    w.moments.update({"0": torch.randn(5, 20)})  # outside the context, too


class Faulty(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.fail = False

    def forward(self, x):
        x = self.first(x)
        if self.fail:
            raise RuntimeError("out of paper")
        return x


def test_an_exception_in_forward_removes_the_hooks_and_counts_nothing_of_it():
    model = Faulty()
    with pytest.raises(RuntimeError, match="out of paper"), sc.watch(model, layers="first") as w:
        model(torch.randn(10, 4))
        model.fail = True
        model(torch.randn(10, 4))
    assert hooks_of(model) == 0
    assert w.counts == {"first": 10}


def test_an_exception_that_the_user_catches_does_not_disturb_the_next_forward():
    model = Faulty()
    with sc.watch(model, layers="first") as w:
        for fail in (False, True, False):
            model.fail = fail
            try:
                model(torch.randn(10, 4))
            except RuntimeError:
                assert fail
    assert w.counts == {"first": 20}


def test_close_and_reentry():
    model = mlp()
    w = sc.watch(model, layers="0")
    assert hooks_of(model) == 0
    with w:
        model(torch.randn(10, 8))
        assert hooks_of(model) > 0
    w.close()
    w.close()
    model(torch.randn(10, 8))
    assert w.counts == {"0": 10}
    with w:  # goes on where it was
        model(torch.randn(5, 8))
    assert w.counts == {"0": 15}


def test_nested_watches_each_count():
    model = mlp()
    with sc.watch(model, layers="0") as outer:
        model(torch.randn(10, 8))
        with sc.watch(model, layers=["0", "2"]) as inner:
            model(torch.randn(10, 8))
    assert outer.counts == {"0": 20}
    assert inner.counts == {"0": 10, "2": 10}
    assert hooks_of(model) == 0


# ---------------------------------------------------------------- calls that are none


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


def test_a_layer_never_called_is_an_error_if_named_and_a_warning_if_matched():
    model = Unused()
    with (
        pytest.raises(sc.LayerError, match="layer 'unused' was never called in 1 forward passes"),
        sc.watch(model, layers=["used", "unused"]),
    ):
        model(torch.randn(10, 4))
    with pytest.warns(sc.StreamCCAWarning, match="layers never called, hence without moments: unused"):
        with sc.watch(model, layers="*") as w:
            model(torch.randn(10, 4))
    assert w.never_called == ("unused",)
    assert w.counts == {"used": 10, "unused": 0}
    with (
        pytest.raises(sc.LayerError, match="none of the layers unused was called"),
        sc.watch(model, layers="unused"),
    ):
        model(torch.randn(10, 4))
    assert hooks_of(model) == 0


def test_nothing_run_yet():
    model = mlp()
    with pytest.warns(sc.StreamCCAWarning, match=r"the model was never called inside the with block; call model\(x\)"):
        with sc.watch(model, layers="0") as w:
            for read in (lambda: w.moments, lambda: w.rows):
                with pytest.raises(sc.InputError, match="nothing was watched yet"):
                    read()
            assert w.counts == {"0": 0}
            model.forward(torch.randn(3, 8))  # goes past the hooks


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner = mlp()
        self.reentrant = reentrant

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_recomputation_of_checkpointing_does_not_count(reentrant):
    model = Checkpointed(reentrant)
    x = torch.randn(10, 8, requires_grad=True)
    with sc.watch(model, layers="inner.0") as w:
        model(x).sum().backward()
        model.inner[0](x)  # neither does a layer called on its own
    assert w.counts == {"inner.0": 10}
    assert x.grad is not None


def test_copies_and_pickles_made_meanwhile_are_free_of_the_watch(tmp_path):
    model = mlp()
    x = torch.randn(10, 8)
    with sc.watch(model, layers="0") as w:
        model(x)
        twin = copy.deepcopy(model)
        averaged = torch.optim.swa_utils.AveragedModel(model)
        torch.save(model, tmp_path / "model.pt")
        for other in (twin, averaged):
            other(x)
    for other in (twin, averaged, torch.load(tmp_path / "model.pt", weights_only=False)):
        torch.testing.assert_close(other(x), model(x))
    assert w.counts == {"0": 10}


class Reused(nn.Module):
    """One activation module after layers of different width, as in many residual networks."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(4, 6), nn.Linear(6, 5), nn.ReLU()

    def forward(self, x):
        return self.relu(self.b(self.relu(self.a(x))))


def test_a_module_that_runs_twice():
    model = Reused()
    with pytest.warns(sc.StreamCCAWarning, match="called more than once in a forward, hence without moments: relu"):
        with sc.watch(model) as w:
            for _ in range(2):
                model(torch.randn(10, 4))
    assert w.counts == {"a": 20, "b": 20, "relu": 0}
    with (
        pytest.raises(sc.LayerError, match="layer 'relu' ran 2 times in one forward.*or watch it alone"),
        sc.watch(model, layers=["a", "relu"]),
    ):
        model(torch.randn(10, 4))
    shared = nn.Linear(4, 4)
    alone = nn.Sequential(shared, nn.ReLU(), shared)
    with sc.watch(alone, layers="0") as w:
        alone(torch.randn(10, 4))
    assert w.counts == {"0": 20}  # both calls


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, with_b):
        return self.b(self.a(x)) if with_b else self.a(x)


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_that_runs_in_some_forwards_only(first):
    model = Conditional()
    when = "the first forward but not in a later one" if first else "a later forward but not in the first"
    with pytest.raises(sc.LayerError, match=f"layer 'b' ran in {when}"), sc.watch(model, layers=["a", "b"]):
        model(torch.randn(5, 4), first)
        model(torch.randn(5, 4), not first)
    assert hooks_of(model) == 0


def test_several_threads_may_run_the_model():
    model = mlp()
    with sc.watch(model, layers=["0", "2"], precision="float64") as w:

        def work(seed):
            generator = torch.Generator().manual_seed(seed)
            for _ in range(20):
                with torch.no_grad():
                    model(torch.randn(10, 8, generator=generator))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert w.counts == {"0": 800, "2": 800}
    rows = torch.cat([torch.randn(200, 8, generator=torch.Generator().manual_seed(s)) for s in range(4)])
    x = model[0](rows).detach().double().numpy()
    np.testing.assert_allclose(w.moments.covariance("0"), np.cov(x, rowvar=False), atol=1e-5)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_devices_that_are_not_there(device):
    kind = sc.DeviceError if device.startswith("cuda") else sc.InputError
    with pytest.raises(kind, match=f"device: got '{device}'"):
        sc.watch(mlp(), layers="0", device=device)


def test_activations_follow_the_module_before_them():
    """Where the features lie is known of convolutions and linear layers, and handed on to what keeps the shape."""
    net = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Dropout(0.0), nn.Conv1d(3, 4, 3, padding=1))
    with sc.watch(net) as w:
        net(torch.randn(60, 2, 9))
    assert w.moments.views == {"0": 3, "1": 3, "2": 3, "3": 4}
    assert w.moments.n == 540
    last = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.LayerNorm(5))
    x = torch.randn(5, 6, 7, 4)
    with sc.watch(last) as w:
        last(x)
    assert w.moments.views == {"0": 5, "1": 5, "2": 5}
    assert w.moments.n == 5 * 42
    check(w.moments, "0", last[0](x).detach().double().reshape(-1, 5).numpy())
    with sc.watch(last, rows="pool") as w:
        last(x)
    check(w.moments, "2", last(x).detach().double().mean((1, 2)).numpy())


def test_options_reach_the_moments():
    model = mlp()
    with sc.watch(model, layers=["0", "2"], pairs="self", precision="float64", nonfinite="skip") as w:
        x = torch.randn(10, 8)
        x[3] = torch.nan
        model(x)
    assert w.moments.pairs == [("0", "0"), ("2", "2")]
    assert w.moments.precision == "float64"
    assert w.moments.skipped == 1
