"""Transformers of Hugging Face, from a configuration with random weights: padding never counts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import transformers

import streamcca as sc

WIDTH = 24


def gpt2(seed=0):
    config = transformers.GPT2Config(n_layer=12, n_embd=WIDTH, n_head=2, n_positions=32, vocab_size=50)
    torch.manual_seed(seed)
    return transformers.GPT2Model(config).eval(), [f"h.{i}" for i in range(12)]


def bert(seed=0):
    size = {"num_hidden_layers": 12, "hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(seed)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **size))
    return model.eval(), [f"encoder.layer.{i}" for i in range(12)]


def texts(count, side):
    """Ragged samples in batches of four, padded on one side."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(1, 50, (4, 16), generator=generator)
        mask = (torch.arange(16) < torch.randint(1, 17, (4, 1), generator=generator)).long()
        mask = mask if side == "right" else mask.flip(1)
        yield {"input_ids": ids * mask, "attention_mask": mask}


def hidden_states(model, batches):
    """What the model itself reports, on the tokens that count: embeddings and twelve layers."""
    states = []
    with torch.no_grad():
        for batch in batches:
            valid = batch["attention_mask"].bool()
            out = model(**batch, output_hidden_states=True).hidden_states
            states.append([x[valid].double().numpy() for x in out])
    return [np.concatenate(parts) for parts in zip(*states, strict=True)]


@pytest.mark.parametrize(("make", "side"), [(gpt2, "left"), (bert, "right")])
def test_tokens_that_count_as_the_model_reports_them(make, side):
    model, layers = make()
    first = "drop" if make is gpt2 else "embeddings"
    batches = list(texts(20, side))
    with torch.no_grad(), sc.watch(model, layers=[first, *layers], precision="float64", pairs="all") as w:
        for batch in batches:
            model(**batch)
    states = hidden_states(model, batches)
    assert w.rows == "tokens"
    assert set(w.counts.values()) == {len(states[0])} == {sum(int(b["attention_mask"].sum()) for b in batches)}
    # The last state that GPT-2 reports has gone through its final norm.
    count = 12 if make is gpt2 else 13
    for i in range(count):
        for j in range(i, count):
            a, b = ([first, *layers][k] for k in (i, j))
            x, y = (states[k] - states[k].mean(0) for k in (i, j))
            exact = x.T @ y / (len(x) - 1)
            np.testing.assert_allclose(w.moments.covariance(a, b), exact, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize(("make", "side"), [(gpt2, "left"), (bert, "right")])
def test_all_layer_pairs_of_two_models_in_one_pass(make, side):
    (a, layers), (b, _) = make(0), make(1)
    # What the models themselves report: the last state of GPT-2 has gone through its final norm.
    layers = ["drop", *layers[:-1], "ln_f"] if make is gpt2 else ["embeddings", *layers]
    batches = list(texts(60, side))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        c = sc.compare(a, b, batches, layers=layers, precision="float64", variance=0.9)
    assert c.matrix.shape == (13, 13)
    assert c.strategy == "covariance"
    assert c.n == sum(int(batch["attention_mask"].sum()) for batch in batches)
    kept = [[_kept(states) for states in hidden_states(m, batches)] for m in (a, b)]
    for i, u in enumerate(kept[0]):
        for j, v in enumerate(kept[1]):
            exact = np.linalg.svd(u.T @ v, compute_uv=False).mean()
            cell = c.results[i][j]
            assert (cell.rank_x, cell.rank_y) == (u.shape[1], v.shape[1])
            assert abs(cell.mean - exact) <= cell.error_bound
    assert c.error_bounds.max() < 1e-6


def _kept(x):
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    k = int(np.argmax(np.cumsum(s**2) >= 0.9 * (s**2).sum())) + 1
    return u[:, :k]


def test_generation_token_by_token_counts_each_token_once():
    config = transformers.GPT2Config(n_layer=2, n_embd=WIDTH, n_head=2, n_positions=32, vocab_size=50)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    batch = next(texts(1, "left"))
    with sc.watch(model, layers=["transformer.h.0", "transformer.h.1"]) as w:
        model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    prompt = int(batch["attention_mask"].sum())
    assert w.counts["transformer.h.0"] == prompt + 4 * (5 - 1)  # the last token is never fed back


def test_the_masks_of_encoder_and_decoder_are_told_apart():
    size = {"d_model": WIDTH, "d_ff": 48, "d_kv": 12, "num_heads": 2, "num_layers": 2, "vocab_size": 50}
    torch.manual_seed(0)
    model = transformers.T5Model(transformers.T5Config(**size)).eval()
    batch = next(texts(1, "right"))
    decoder_mask = torch.tensor([[1, 1, 1, 0, 0]] * 4)
    inputs = {"decoder_input_ids": torch.ones(4, 5, dtype=torch.long), "decoder_attention_mask": decoder_mask}
    for layers, expected in ((["encoder.block.0"], int(batch["attention_mask"].sum())), (["decoder.block.1"], 12)):
        with torch.no_grad(), sc.watch(model, layers=layers) as w:
            model(**batch, **inputs)
        assert w.counts == {layers[0]: expected}
