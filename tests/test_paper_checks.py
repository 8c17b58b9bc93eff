"""What papers report of nets while and after they train, on scikit-learn's digits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from benchmarks.digits import accuracy, digits, plain_cnn, train
from benchmarks.identification import identified

import streamcca as sc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning"),
]
DEPTH = 5
LAYERS = [f"{i}.relu" for i in range(DEPTH)]


@pytest.fixture(scope="module")
def trained():
    """One net with the record of its training, and its images."""
    (images, labels), test = digits()
    torch.manual_seed(0)
    model = plain_cnn(DEPTH, 16)
    dynamics = sc.Dynamics(model, images[:400], LAYERS, rows="positions", precision="float64")
    dynamics.record(0)
    train(model, images, labels, epochs=10, seed=0, after_epoch=dynamics.record)
    assert accuracy(model, *test) > 0.95
    return model, images, dynamics


def test_layers_converge_from_the_bottom_up(trained):
    """SVCCA paper, section 4.1 and figure 4."""
    curves = trained[2].curves("final")
    matrix = curves.matrix
    assert curves.steps == tuple(range(10))
    # On average over training layers near the input are nearer to their final state, and reach it earlier.
    assert np.all(np.diff(matrix.mean(axis=1)) < 0), matrix
    assert matrix[0, 2] > matrix[-1, 2] + 0.1
    reached = list(curves.reached(0.9).values())
    assert reached == sorted(reached)
    assert reached[0] < reached[-1]
    # All of them get there.
    assert np.all(matrix[:, -1] > matrix[:, 0])
    assert np.all(curves.error_bounds < 1e-6)
    assert np.all(matrix > curves.null_matrix)


def test_a_batch_norm_layer_resembles_its_input(trained):
    """SVCCA paper, appendix: batch norm rescales single neurons, which CCA does not see; the cut sees it a little."""
    model, images, _ = trained
    for i in range(DEPTH):
        r = sc.compare(
            model,
            model,
            images,
            f"{i}.conv",
            layers_b=f"{i}.norm",
            rows="positions",
            measure="cca",
            precision="float64",
        )
        assert r[f"{i}.conv", f"{i}.norm"].mean == pytest.approx(1, abs=1e-6)
        r = sc.compare(model, model, images, f"{i}.conv", layers_b=f"{i}.norm", rows="positions", precision="float64")
        assert r[f"{i}.conv", f"{i}.norm"].mean > 0.9


def test_the_same_layer_of_a_disturbed_net_is_found(trained):
    """What benchmarks/identification.py counts, where the answer is known (ten nets: docs/measures.md)."""
    model, images, _ = trained
    scores = [sc.subspace_scores(model, images[:400], LAYERS, name="0", rows="positions", precision="float64")]
    for seed in (1, 2):
        twin = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in twin.parameters():
                p += 0.05 * p.std() * torch.randn(p.shape, generator=generator) if p.numel() > 1 else 0
        scores.append(
            sc.subspace_scores(twin, images[:400], LAYERS, name=f"{seed}", rows="positions", precision="float64")
        )
    found = sc.compare(scores)
    assert identified(found) == 1
    backward = sc.ModelComparison(
        "svcca", found.names, found.scores, {k: Reversed(c) for k, c in found.comparisons.items()}
    )
    assert identified(backward) == pytest.approx(1 / DEPTH)  # the middle layer alone


class Reversed:
    """A comparison with the layers of the first model in reverse."""

    def __init__(self, comparison):
        self.matrix = comparison.matrix[::-1]
