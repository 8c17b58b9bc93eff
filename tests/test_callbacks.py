"""Recording from Lightning and from the Trainer of Hugging Face."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch
from torch import nn

import streamcca as sc

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::DeprecationWarning")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def samples(n=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 10, generator=generator)
    return x, x[:, :3].argmax(dim=1)


def lightning_fit(tmp_path, accumulate=1, **schedule):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    module = Module()
    dynamics = sc.Dynamics(module, samples(100)[0], ["net.0", "net.2"], rank=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples()), batch_size=8, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own advice about workers and logging
        trainer = lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=accumulate,
            default_root_dir=tmp_path,
            callbacks=[sc.lightning_callback(dynamics, **schedule)] if schedule else [],
        )
        trainer.fit(module, loader)
    return module, dynamics


def test_lightning(tmp_path):
    _, dynamics = lightning_fit(tmp_path, every_n_epochs=1)
    assert dynamics.steps == (0, 8, 16, 24)
    _, dynamics = lightning_fit(tmp_path, every_n_steps=10)
    assert dynamics.steps == (0, 10, 20, 24)
    _, dynamics = lightning_fit(tmp_path, accumulate=4, every_n_steps=2)
    assert dynamics.steps == (0, 2, 4, 6)
    assert dynamics.curves("final").matrix.shape == (2, 3)


def test_lightning_trains_the_same(tmp_path):
    plain, _ = lightning_fit(tmp_path)
    torch.manual_seed(0)
    watched, dynamics = lightning_fit(tmp_path, every_n_steps=3)
    assert len(dynamics.steps) == 9
    for x, y in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(x, y)


class Classifier(nn.Module):
    """What a Trainer expects: loss and logits."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


def huggingface_fit(tmp_path, **schedule):
    import transformers

    model = Classifier()
    x, y = samples()
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    dynamics = sc.Dynamics(model, [{"x": part} for part in samples(100)[0].split(32)], ["net.0", "net.2"], rank=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=16,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
        )
        callbacks = [sc.trainer_callback(dynamics, **schedule)] if schedule else []
        transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks).train()
    return model, dynamics


def test_huggingface_trainer(tmp_path):
    _, dynamics = huggingface_fit(tmp_path, every_n_steps=3)
    assert dynamics.steps == (0, 3, 6, 8)
    _, dynamics = huggingface_fit(tmp_path, every_n_epochs=1)
    assert dynamics.steps == (0, 4, 8)


def test_huggingface_trains_the_same(tmp_path):
    plain, _ = huggingface_fit(tmp_path)
    watched, _ = huggingface_fit(tmp_path, every_n_steps=1)
    for x, y in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_refusals(monkeypatch):
    dynamics = sc.Dynamics(net(), samples()[0])
    for schedule in ({}, {"every_n_steps": 0}, {"every_n_steps": 1, "every_n_epochs": 1}, {"every_n_epochs": True}):
        with pytest.raises(sc.InputError, match="expected one of them"):
            sc.trainer_callback(dynamics, **schedule)
    for name in ("lightning", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"streamcca\[lightning\]"):
        sc.lightning_callback(dynamics, every_n_steps=1)
    with pytest.raises(ImportError, match=r"streamcca\[huggingface\]"):
        sc.trainer_callback(dynamics, every_n_steps=1)
