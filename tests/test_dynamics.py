"""Records while a model trains: training does not notice, and the curves say what happened."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from test_watch import hooks_of
from torch import nn

import streamcca as sc

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")


class Net(nn.Module):
    """Everything that could notice: batch norm, dropout, a frozen layer, a child in eval mode."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(10, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.b = nn.Linear(16, 12)
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.drop(torch.relu(self.norm(self.a(x))))
        return self.head(self.frozen(torch.relu(self.b(x))))


def data(n, seed):
    return torch.randn(n, 10, generator=torch.Generator().manual_seed(seed))


def train(record, autocast, accumulate=2):
    """Three epochs: shuffling loader, dropout, accumulated gradients; `record(model)` after each backward pass."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Net()
    model.frozen.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = data(256, 1)
    y = (x[:, :3]).argmax(dim=1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
    drawn = []
    for _ in range(3):
        for i, (inputs, labels) in enumerate(loader):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = nn.functional.cross_entropy(model(inputs).float(), labels)
            loss.backward()
            record(model)
            if i % accumulate == accumulate - 1:
                optimizer.step()
                optimizer.zero_grad()
            drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
    return model, drawn


@pytest.mark.parametrize("autocast", [False, True])
def test_training_does_not_notice(autocast):
    probe = torch.utils.data.DataLoader(data(200, 2), batch_size=64)  # drawing a seed each time it is iterated
    made = []

    def record(model):
        if not made:
            made.append(sc.Dynamics(model, probe, ["a", "b", "head"], rank=3))
        before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        modes = [m.training for m in model.modules()]
        made[0].record(len(made[0].steps))
        assert [m.training for m in model.modules()] == modes
        for grad, p in zip(before, model.parameters(), strict=True):
            assert (grad is None) == (p.grad is None)
            assert grad is None or torch.equal(grad, p.grad)

    plain, drawn = train(lambda model: None, autocast)
    watched, drawn_too = train(record, autocast)
    assert drawn == drawn_too
    for (name, x), y in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    assert len(made[0].steps) == 24
    assert hooks_of(watched) == 0


def test_the_guard_is_needed():
    """Without it the loader's own draw would move torch's generator: the test above can fail."""
    probe = torch.utils.data.DataLoader(data(200, 2), batch_size=64)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    sc.subspace_scores(Net(), probe, "a", rank=2)
    assert not torch.equal(before, torch.random.get_rng_state())


def test_the_loaders_own_generator_is_kept():
    generator = torch.Generator().manual_seed(3)
    probe = torch.utils.data.DataLoader(data(200, 2), batch_size=64, generator=generator)
    before = generator.get_state()
    sc.Dynamics(Net(), probe, "a", rank=2).record(0)
    assert torch.equal(before, generator.get_state())


def recorded(**options):
    torch.manual_seed(0)
    model = Net()
    dynamics = sc.Dynamics(model, data(300, 2), ["a", "b", "head"], precision="float64", **options)
    for step in range(0, 50, 10):
        dynamics.record(step)
        with torch.no_grad():  # the first layer stays, the last moves
            model.head.weight += 0.3 * torch.randn(3, 12)
            if step < 20:
                model.b.weight += 0.3 * torch.randn(12, 16)
    return dynamics


def test_curves():
    dynamics = recorded()
    assert dynamics.steps == (0, 10, 20, 30, 40)
    final, first, previous = (dynamics.curves(to) for to in ("final", "first", "previous"))
    assert final.steps == (0, 10, 20, 30)
    assert first.steps == previous.steps == (10, 20, 30, 40)
    np.testing.assert_allclose(final.matrix[0], 1, atol=1e-12)  # never moved
    assert np.all(final.matrix[2] < 1 - 1e-3)
    np.testing.assert_allclose(final.matrix[1, 2:], 1, atol=1e-12)  # rests from step 20 on
    assert np.all(final.matrix[1, :2] < 1 - 1e-3)
    assert final.matrix[2, 3] == pytest.approx(previous.matrix[2, 3], abs=1e-12)
    assert final.matrix[2, 0] == pytest.approx(first.matrix[2, 3], abs=1e-12)
    direct = sc.compare(dynamics.state(10), dynamics.state(40))
    assert final.matrix[1, 1] == direct["b", "b"].mean
    assert final.reached(0.999) == {"a": 0, "b": 20, "head": None}
    assert "to the final state" in final.table()
    json.dumps(final.to_dict())
    assert "3 layers, 4 steps" in repr(final)
    assert np.all((final.null_matrix > 0) & (final.null_matrix < 1))


def test_freeze_hint():
    dynamics = recorded()
    assert dynamics.freeze_hint(0.99) == ("a", "b")
    assert dynamics.freeze_hint(0.99, patience=4) == ("a",)
    assert dynamics.freeze_hint(0.0) == ("a", "b", "head")
    with pytest.raises(sc.InputError, match="more than patience=5"):
        dynamics.freeze_hint(patience=5)
    with pytest.raises(sc.InputError, match="got 0"):
        dynamics.freeze_hint(patience=0)


def test_refusals():
    dynamics = sc.Dynamics(Net(), data(100, 2), "a", rank=2)
    with pytest.raises(sc.InputError, match="0 states"):
        dynamics.curves()
    with pytest.raises(sc.InputError, match="step: got -1"):
        dynamics.record(-1)
    dynamics.record(3)
    with pytest.raises(sc.InputError, match="recorded: 3"):
        dynamics.state(4)
    dynamics._probe = data(100, 3)
    with pytest.raises(sc.ReplayError, match="other inputs"):
        dynamics.record(4)
    assert dynamics.steps == (3,)


def test_a_folder_outlives_the_process(tmp_path):
    first = recorded(folder=tmp_path / "record")
    want = first.curves("final").matrix
    resumed = sc.Dynamics(
        first.model, data(300, 2), ["a", "b", "head"], precision="float64", folder=tmp_path / "record"
    )
    assert resumed.steps == first.steps
    np.testing.assert_array_equal(resumed.curves("final").matrix, want)
    resumed.record(50)
    assert sc.Dynamics(first.model, data(300, 2), folder=tmp_path / "record").steps[-1] == 50


def test_a_folder_of_another_record(tmp_path):
    model = Net()
    (tmp_path / "step-final.scores").write_text("not ours")
    first = sc.Dynamics(model, data(200, 2), "a", rank=2, folder=tmp_path)
    assert first.steps == ()
    first.record(10)
    for options, what in (({"layers": "b", "rank": 2}, "layers"), ({"layers": "a", "rank": 3}, "rule")):
        with pytest.raises(sc.InputError, match=f"have {what} .*another folder"):
            sc.Dynamics(model, data(200, 2), folder=tmp_path, **options).record(20)
    with pytest.warns(sc.StreamCCAWarning, match="step 5 is recorded after step 10"):
        first.record(5)


def test_pictures():
    curves = recorded().curves("final")
    _, ax = curves.plot()
    assert [line.get_label() for line in ax.get_lines()] == ["a", "b", "head"]
    _, ax = curves.plot("map")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "head"]
    with pytest.raises(sc.InputError, match="got 'pie'"):
        curves.plot("pie")
