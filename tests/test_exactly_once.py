"""Every row once, whatever happens to the model: compiled, wrapped, recomputed, called again (docs/hooks.md)."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import streamcca as sc
from streamcca.layers import unwrapped

N = 40


class Dense(nn.Linear):
    """The compiler skips the modules of torch itself when they are compiled on their own."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class Net(nn.Sequential):
    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


def mlp(seed=0):
    torch.manual_seed(seed)
    return Net(Dense(8, 6), nn.ReLU(), nn.Linear(6, 4))


@pytest.fixture
def x():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((N, 8), dtype=np.float32))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def check(moments, model, x, layer="0"):
    """The moments are those of one pass of a model that nothing was done to."""
    with torch.no_grad():
        rows = model[: int(layer) + 1](x).double().numpy()
    assert moments.rows == len(x)
    np.testing.assert_allclose(moments.covariance(layer), np.cov(rows.T), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.mean(layer), rows.mean(0), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- torch.compile


def wrapped(model, **options):
    return torch.compile(model, **options), model


def in_place(model, **options):
    model.compile(**options)
    return model, model


def part_of_it(model, **options):
    model[0].compile(**options)
    return model, model


def a_function_around(model, **options):
    return torch.compile(lambda x: model(x), **options), model


HOW = [wrapped, in_place, part_of_it, a_function_around]
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("used_before", [False, True])
def test_compiled(how, backend, used_before, x):
    """Hooks on a module that was already compiled never fire; the calls must count all the same."""
    plain = mlp()
    call, model = how(copy.deepcopy(plain), backend=backend, fullgraph=True)
    if used_before:
        expected = call(x)
    with sc.watch(model, layers=["0", "2"]) as w:
        found = call(x)
    check(w.moments, plain, x, "0")
    check(w.moments, plain, x, "2")
    torch.testing.assert_close(found, plain(x))
    if used_before:
        torch.testing.assert_close(call(x), expected)


def test_names_are_those_of_the_model_inside(x):
    compiled = torch.compile(mlp(), backend="eager")
    with sc.watch(compiled) as w:
        compiled(x)
    assert list(w.counts) == ["0", "1", "2"]
    result = sc.compare(compiled, mlp(1), torch.randn(300, 8), precision="float64")
    assert result.layers_a == ("0", "1", "2")


def test_the_compiler_is_back_when_the_last_watch_ends(x):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = mlp()
    compiled = torch.compile(model, backend=backend)
    first, second = sc.watch(model, layers="0"), sc.watch(model, layers="2")
    first.__enter__()
    with second:
        compiled(x)
    compiled(x)
    assert not graphs
    first.close()
    first.close()
    compiled(x)
    assert len(graphs) == 1
    assert (first.counts, second.counts) == ({"0": 2 * N}, {"2": N})


def test_without_a_way_to_run_compiled_code_eagerly_it_is_refused(x, monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance")
    model = mlp()
    with sc.watch(model, layers="0") as w:
        model(x)
    assert w.counts == {"0": N}
    model[0].compile(backend="eager")
    with pytest.raises(sc.LayerError, match="module '0' is compiled, and hooks on compiled modules may never fire"):
        sc.watch(model, layers="2").__enter__()
    assert not model[2]._forward_hooks


# ---------------------------------------------------------------- recomputation


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_watched_part_of_a_larger_model_is_recomputed(reentrant, x):
    """The recomputation runs the watched model itself again, inside the backward pass."""
    model, head = mlp(), nn.Linear(4, 2)
    with sc.watch(model, layers="0") as w:
        for _ in range(2):
            out = torch.utils.checkpoint.checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)
            head(out).sum().backward()
    assert w.counts == {"0": 2 * N}
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_compiled_and_checkpointed(reentrant, x):
    model = mlp()

    @torch.compile(backend="aot_eager")
    def step(x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).sum()

    with sc.watch(model, layers="0") as w:
        step(x.clone().requires_grad_()).backward()
    check(w.moments, model, x)


# ---------------------------------------------------------------- wrappers


def test_data_parallel_is_refused():
    model = nn.DataParallel(mlp())
    for watched in (lambda: sc.watch(model), lambda: sc.compare(model, model, torch.randn(10, 8))):
        with pytest.raises(
            sc.LayerError, match="DataParallel runs copies of the model, which hooks do not see; use Dist"
        ):
            watched()
    with sc.watch(model.module, layers="0") as w:
        model.module(torch.randn(10, 8))
    assert w.counts == {"0": 10}


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(one_process, x):
    plain = mlp()
    model = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
    with sc.watch(model, layers=["0", "2"]) as w:
        model(x).sum().backward()
    assert list(w.counts) == ["0", "2"]
    check(w.moments, plain, x, "2")
    assert unwrapped(torch.compile(model)) is model.module


def test_fully_sharded(one_process, x):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = mlp()
    model = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    with sc.watch(model, layers=["0", "2"]) as w:
        model(x).sum().backward()
    check(w.moments, plain, x, "0")
    check(w.moments, plain, x, "2")


# ---------------------------------------------------------------- called again, or never


class Twice(nn.Module):
    """One layer on two paths, another on one, and a name for the first of them twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(8, 8)
        self.alias = self.shared
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.alias(self.shared(x).relu()))


def test_one_call_of_several(x):
    model = Twice()
    first = model.shared(x).detach().double().numpy()
    second = model.shared(model.shared(x).relu()).detach().double().numpy()
    for index, rows in ((0, first), (1, second), (-1, second), ({"sh*": 0}, first), ({"last": 5, "**": 1}, second)):
        with sc.watch(model, layers=["shared", "last"], call_index=index) as w:
            model(x)
        assert w.counts == {"shared": N, "last": N}
        np.testing.assert_allclose(w.moments.covariance("shared"), np.cov(rows.T), rtol=1e-5, atol=1e-6)
    with sc.watch(model, layers="shared", call_index=1) as w:  # alone, all calls would count without it
        model(x)
    assert w.counts == {"shared": N}
    result = sc.compare(model, model, torch.randn(400, 8), call_index=-1, precision="float64")
    assert result.layers_a == ("shared", "last")


def test_calls_that_are_not_there(x):
    model = Twice()
    with (
        pytest.raises(
            sc.LayerError, match=r"layer 'shared' ran 2 times in one forward \(0: \(40, 8\), 1: \(40, 8\)\), got"
        ),
        sc.watch(model, call_index=2),
    ):
        model(x)
    with (
        pytest.raises(sc.LayerError, match=r"ran 2 times in one forward, .*choose one call with call_index="),
        sc.watch(model, layers=["shared", "last"]),
    ):
        model(x)
    assert not model.shared._forward_hooks


@pytest.mark.parametrize("index", ["first", 1.0, True, {"0": None}, {"0": "1"}])
def test_what_is_no_call_index_is_refused(index):
    with pytest.raises(sc.InputError, match="call_index: got .*, expected None, a whole number"):
        sc.watch(mlp(), call_index=index)


def test_a_module_with_two_names_counts_once(x):
    model = Twice()
    with sc.watch(model, layers=["alias", "last"], call_index=0) as w:
        model(x)
    assert w.counts == {"alias": N, "last": N}


def test_modules_that_only_hold_weights():
    """The output projection of attention is never called: its parent uses the weights."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    tokens = torch.randn(5, 7, 16)
    with (
        pytest.raises(sc.LayerError, match=r"layer 'self_attn.out_proj' was never called in 1 forward passes"),
        sc.watch(model, layers=["self_attn.out_proj", "linear1"]),
    ):
        model(tokens)
    with pytest.warns(sc.StreamCCAWarning, match=r"layers never called, .*self_attn.out_proj"), sc.watch(model) as w:
        model(tokens)
    assert w.counts["self_attn.out_proj"] == 0
    assert w.counts["linear1"] == 35


@pytest.mark.parametrize("train", [False, True])
def test_nested_tensors_of_torchs_encoder(train):
    """In eval mode the encoder hands nested tensors from layer to layer: padding is no row there either."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype, says torch
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).train(train)
        tokens, padding = torch.randn(5, 7, 16), torch.zeros(5, 7, dtype=torch.bool)
        padding[1, 4:] = padding[3, 2:] = True
        with torch.no_grad(), sc.watch(model, layers=["layers.0", "layers.1"]) as w:
            out = model(tokens, src_key_padding_mask=padding)
    valid = int((~padding).sum())
    assert w.counts == {"layers.0": valid, "layers.1": valid}
    rows = out[~padding].double().numpy()
    np.testing.assert_allclose(w.moments.covariance("layers.1"), np.cov(rows.T), rtol=1e-4, atol=1e-5)
