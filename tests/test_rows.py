"""What becomes a row: rules by name, per layer and by callable; padding never does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_watch import Recorder, check, convnet, hooks_of, positions
from torch import nn

import streamcca as sc

SAMPLES, TOKENS, WIDTH = 9, 7, 6


class Encoder(nn.Module):
    """Embeds numbers, mixes tokens, and takes an attention mask as Hugging Face models do."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, input_ids, attention_mask=None):
        x = self.mix(self.embed(input_ids))
        return self.head(x.mean(1))


def batches(count=4, side="right", seed=0):
    """Ragged samples, padded; also where each sample begins and ends."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ids = torch.randint(0, 11, (SAMPLES, TOKENS), generator=generator)
        lengths = torch.randint(1, TOKENS + 1, (SAMPLES, 1), generator=generator)
        mask = torch.arange(TOKENS) < lengths
        yield ids, (mask if side == "right" else mask.flip(1)).long()


def run(model, layers, side="right", **options):
    plain = Recorder(model, layers)
    masks = []
    with sc.watch(model, layers=layers, **options) as w:
        for ids, mask in batches(side=side):
            masks.append(mask.bool())
            model(ids, attention_mask=mask)
    for handle in plain.handles:
        handle.remove()
    return w, plain, torch.cat(masks)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_row(side):
    w, plain, mask = run(Encoder(), ["embed", "mix"], side)
    assert w.counts == {"embed": int(mask.sum()), "mix": int(mask.sum())}
    assert w.rows == "tokens"
    for name in ("embed", "mix"):
        check(w.moments, name, plain.array(name).reshape(-1, WIDTH)[mask.flatten().numpy()])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_part_of_an_average(side):
    w, plain, mask = run(Encoder(), ["mix", "head"], side)
    assert w.counts == {"mix": 4 * SAMPLES, "head": 4 * SAMPLES}
    assert w.rows == "samples (averaged over tokens)"
    x, m = plain.array("mix"), mask.numpy()[:, :, None]
    check(w.moments, "mix", (x * m).sum(1) / m.sum(1))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rule", ["first", "cls", "last"])
def test_one_token_of_each_sample(rule, side):
    w, plain, mask = run(Encoder(), ["mix", "head"], side, rows=rule)
    x, m = plain.array("mix"), mask.numpy()
    chosen = [np.flatnonzero(row)[-1 if rule == "last" else 0] for row in m]
    check(w.moments, "mix", x[np.arange(len(x)), chosen])
    assert w.rows == f"samples ({'last' if rule == 'last' else 'first'} token)"


def test_padding_may_hold_anything():
    class Poisoned(Encoder):
        def forward(self, input_ids, attention_mask):
            x = self.mix(self.embed(input_ids).masked_fill(attention_mask[:, :, None] == 0, torch.nan))
            return self.head(x)

    for rule in ("tokens", "pool", "first", "last"):
        w, _, mask = run(Poisoned(), ["mix"], rows=rule)
        assert w.moments.rows == (int(mask.sum()) if rule == "tokens" else len(mask))
        assert np.isfinite(w.moments.covariance("mix")).all()


@pytest.mark.parametrize("rule", ["tokens", "pool", "first", "last"])
def test_a_sample_of_padding_alone_is_no_row(rule):
    model = Encoder()
    plain = Recorder(model, ["mix"])
    ids, mask = next(batches())
    mask[3] = 0
    with sc.watch(model, layers="mix", rows=rule) as w:
        model(ids, attention_mask=mask)
    x, m = np.delete(plain.array("mix"), 3, axis=0), np.delete(mask.numpy(), 3, axis=0)[:, :, None]
    expected = {"pool": (x * m).sum(1) / m.sum(1), "first": x[:, 0], "tokens": x[m[:, :, 0] == 1]}
    if rule == "last":
        assert w.moments.rows == SAMPLES - 1
    else:
        check(w.moments, "mix", expected[rule])


def test_masks_from_elsewhere():
    model = Encoder()
    ids, mask = next(batches())
    with sc.watch(model, layers="mix") as w:
        model(ids, mask)  # by position
    assert w.counts == {"mix": int(mask.sum())}
    with sc.watch(model, layers="mix", mask=None) as w:
        model(ids, attention_mask=mask)
    assert w.counts == {"mix": mask.numel()}
    with sc.watch(model, layers="mix", mask=lambda args, kwargs: args[0] > 3) as w:
        model(ids)
    assert w.counts == {"mix": int((ids > 3).sum())}
    with sc.watch(model, layers="mix") as w:
        model(ids)
    assert w.counts == {"mix": mask.numel()}


def test_the_mask_of_torchs_own_transformers_says_what_does_not_count():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, dropout=0.0)

        def forward(self, x, src_key_padding_mask=None):
            return self.block(x, src_key_padding_mask=src_key_padding_mask)

    model, padding = Wrapped().train(), torch.rand(SAMPLES, TOKENS) < 0.3
    padding[:, 0] = False
    with sc.watch(model, layers="block") as w:
        model(torch.randn(SAMPLES, TOKENS, WIDTH), src_key_padding_mask=padding)
    assert w.counts == {"block": int((~padding).sum())}


def test_a_step_of_generation_counts_its_own_tokens():
    """The mask covers what was generated before, too; its end belongs to the tokens of this step."""
    model = Encoder()
    mask = torch.ones(SAMPLES, TOKENS, dtype=torch.long)
    mask[:4, -1] = 0
    with sc.watch(model, layers="mix") as w:
        model(torch.zeros(SAMPLES, 1, dtype=torch.long), attention_mask=mask)
    assert w.counts == {"mix": SAMPLES - 4}


def test_tokens_of_all_samples_in_one_dimension():
    class Flat(Encoder):
        def forward(self, input_ids, attention_mask=None):
            return self.head(self.mix(self.embed(input_ids).flatten(0, 1)))

    w, plain, mask = run(Flat(), ["mix"])
    check(w.moments, "mix", plain.array("mix")[mask.flatten().numpy()])


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (
            torch.ones(SAMPLES, 1, TOKENS),
            r"attention_mask: got a Tensor of shape \(9, 1, 7\), expected a mask \(samples, tok",
        ),
        (torch.ones(SAMPLES, 3), r"layer 'mix' returned 9 samples of 7 tokens, expected those of the mask, 9 of 3"),
        (torch.ones(2, TOKENS), r"expected those of the mask, 2 of 7; pass mask=None"),
    ],
)
def test_masks_that_do_not_fit(mask, sentence):
    model = Encoder()
    with pytest.raises(sc.LayerError, match=sentence), sc.watch(model, layers="mix"):
        model(torch.zeros(SAMPLES, TOKENS, dtype=torch.long), attention_mask=mask)
    assert hooks_of(model) == 0


def test_flattened_samples():
    model = convnet()
    plain = Recorder(model, ["a", "fc"])
    with sc.watch(model, layers=["a", "fc"], rows="flatten") as w:
        model(torch.randn(12, 3, 6, 6))
    assert w.rows == "samples (flattened)"
    check(w.moments, "a", plain.array("a").reshape(12, -1))
    with (
        pytest.raises(sc.LayerError, match=r"rows='flatten': samples of layer 'mix' have padding"),
        sc.watch(Encoder(), layers="mix", rows="flatten") as w,
    ):
        ids, mask = next(batches())
        w._model(ids, attention_mask=mask)


def test_a_callable_makes_rows():
    def centers(maps):
        return maps[:, :, 2:4, 2:4].movedim(1, -1).reshape(-1, maps.shape[1])

    model = convnet()
    plain = Recorder(model, ["a", "b"])
    with sc.watch(model, layers=["a", "b"], rows=centers) as w:
        model(torch.randn(12, 3, 6, 6))
    assert w.counts == {"a": 48, "b": 48}
    assert w.rows == "rows of centers"
    check(w.moments, "a", centers(torch.from_numpy(plain.array("a"))).numpy())
    with (
        pytest.raises(
            sc.LayerError, match=r"callable returned a Tensor of shape \(12,\) for layer 'a', expected a tensor"
        ),
        sc.watch(model, layers="a", rows=lambda x: x.flatten(1).sum(1)),
    ):
        model(torch.randn(12, 3, 6, 6))


def test_rules_per_layer():
    model = convnet()
    plain = Recorder(model, ["a", "c", "fc"])
    with sc.watch(model, layers=["a", "c", "fc"], rows={"a": "flatten", "*": "pool"}) as w:
        model(torch.randn(15, 3, 6, 6))
    assert w.rows == "samples (averaged over positions) or samples (flattened)"
    check(w.moments, "a", plain.array("a").reshape(15, -1))
    check(w.moments, "c", plain.array("c", lambda x: x.flatten(2).mean(2)))
    with (
        pytest.raises(
            sc.LayerError, match=r"rows: no rule for layer 'c'; name it, or end the mapping with '\*\*': 'auto'"
        ),
        sc.watch(model, layers=["a", "c"], rows={"a": "pool"}),
    ):
        model(torch.randn(15, 3, 6, 6))
    for rows, sentence in (({}, "an empty mapping"), ({"a": "cubes"}, "rows: got 'cubes'")):
        with pytest.raises(sc.InputError, match=sentence):
            sc.watch(model, rows=rows)


def test_compare_takes_rules_and_masks():
    torch.manual_seed(0)
    a, b = Encoder(), Encoder()
    loader = [{"input_ids": ids, "attention_mask": mask} for ids, mask in batches(40)]
    count = sum(int(batch["attention_mask"].sum()) for batch in loader)
    result = sc.compare(a, b, loader, layers=["mix"], precision="float64", variance=0.9)
    assert result["mix", "mix"].n == count
    assert result.rows == "tokens"
    result = sc.compare(a, b, loader, layers=["mix"], rows={"**": "last"}, precision="float64", variance=0.9)
    assert result["mix", "mix"].n == 40 * SAMPLES
    assert result.rows == "samples (last token)"


@pytest.mark.parametrize("mask", ["padding", 3, True])
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(sc.InputError, match="mask: got .* expected 'auto', None, or a callable"):
        sc.watch(Encoder(), mask=mask)


def test_positions_ignore_masks():
    model = convnet()
    plain = Recorder(model, ["a"])
    with sc.watch(model, layers="a", mask=lambda args, kwargs: torch.zeros(4, 6)) as w:
        model(torch.randn(4, 3, 6, 6))
    check(w.moments, "a", plain.array("a", positions))
