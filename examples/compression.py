"""How few directions of a layer does a network need? A compression experiment on scikit-learn's digits.

Two nets are trained from two seeds. A hidden layer of each is then projected on its first k directions, and the net is
tested with the projection in place: the k directions most shared with the other net, or with its own logits (SVCCA and
CCA), its k principal directions, and k random ones. Run ``python examples/compression.py``: half a minute.
"""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import streamcca as sc
from streamcca.demo import load_digits
from streamcca.directions import CanonicalProjection, project_layer
from streamcca.plots import plot_projections, save_figure

LAYER, LOGITS = "relu2", "fc3"
TRAIN = 1347  # three quarters of the 1797 images
DRAWS = 10  # random subspaces that are averaged


def trained(seed: int, width: int, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """Return a small net, trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (
            ("fc1", nn.Linear(64, width)),
            ("relu1", nn.ReLU()),
            ("fc2", nn.Linear(width, width)),
            (LAYER, nn.ReLU()),
            (LOGITS, nn.Linear(width, 10)),
        )
        model = nn.Sequential(OrderedDict(layers))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for batch in torch.randperm(TRAIN).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the images left out that are classified rightly."""
    with torch.no_grad():
        return float((model(images[TRAIN:]).argmax(1) == labels[TRAIN:]).float().mean())


def onto(mean: Any, encoder: Any, decoder: Any = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the projection of rows that keeps (row - mean) @ encoder; orthogonal if there is no decoder."""
    center, e = torch.from_numpy(mean), torch.from_numpy(np.ascontiguousarray(encoder))
    d = e if decoder is None else torch.from_numpy(decoder)
    return lambda rows: (center + (rows - center) @ e @ d.T).to(rows.dtype)


def projections_of(models: list[nn.Module], images: torch.Tensor) -> list[dict[str, tuple[int, Callable[[int], Any]]]]:
    """For each net, by name: how many directions there are, and what makes a projection on the first k.

    Directions come from the training images; the accuracy will be that of the images left out.
    """
    batches = images[:TRAIN].split(256)
    a, b = models
    options: dict[str, Any] = {"precision": "float64", "progress": False}
    svcca = sc.compare(a, b, batches, [LAYER], variance=0.99, **options)[LAYER, LAYER]
    cca = sc.compare(a, b, batches, [LAYER], measure="cca", **options)[LAYER, LAYER]
    found = []
    for seed, (model, side) in enumerate(zip(models, ("x", "y"), strict=True)):
        with sc.watch(model, [LAYER, LOGITS], precision="float64") as w, torch.no_grad():
            for batch in batches:
                model(batch)
        logits = sc.cca(w.moments, LAYER, LOGITS)
        principal = sc.truncate(w.moments, LAYER, variance=1.0)
        width = len(principal.mean)
        covariance, rng = w.moments.covariance(LAYER), np.random.default_rng(seed)

        def canonical(result: sc.CCAResult, side: Any, kind: Any) -> tuple[int, Callable[[int], Any]]:
            return len(result.correlations), lambda k: [CanonicalProjection(result, side, k, kind=kind)]

        def pca(k: int, s: sc.Subspace = principal) -> list[Any]:
            return [onto(s.mean, s.vectors[:, :k])]

        def drawn(best: bool, s: Any = principal, c: Any = covariance, rng: Any = rng) -> Callable[[int], Any]:
            def draw(k: int) -> list[Any]:
                bases = [np.linalg.qr(rng.standard_normal((len(c), k)))[0] for _ in range(DRAWS)]
                return [onto(s.mean, q, c @ q @ np.linalg.pinv(q.T @ c @ q) if best else None) for q in bases]

            return draw

        found.append(
            {
                "own logits (CCA)": canonical(logits, "x", "least-squares"),
                "other net (SVCCA 99 %)": canonical(svcca, side, "least-squares"),
                "other net (SVCCA 99 %), orthogonal": canonical(svcca, side, "orthogonal"),
                "other net (CCA)": canonical(cca, side, "least-squares"),
                "other net (CCA), orthogonal": canonical(cca, side, "orthogonal"),
                "principal": (principal.rank, pca),
                "random": (width, drawn(True)),
                "random, orthogonal": (width, drawn(False)),
            }
        )
    return found


def curves(
    models: list[nn.Module], images: torch.Tensor, labels: torch.Tensor, counts: Iterable[int]
) -> dict[str, tuple[list[int], list[float]]]:
    """Numbers of directions and accuracies, the mean of both nets, by kind of directions."""
    found = projections_of(models, images)
    result: dict[str, tuple[list[int], list[float]]] = {}
    for name in found[0]:
        most = min(own[name][0] for own in found)
        ks = [k for k in counts if k <= most]
        means = []
        for k in ks:
            got = []
            for model, own in zip(models, found, strict=True):
                for projection in own[name][1](k):
                    with project_layer(model, LAYER, projection):
                        got.append(accuracy(model, images, labels))
            means.append(float(np.mean(got)))
        result[name] = ks, means
    return result


def table(found: dict[str, tuple[list[int], list[float]]], full: float, shown: Iterable[int]) -> str:
    """Lay accuracies out for reading; the last column is the fewest directions within one point of the whole layer."""
    shown = list(shown)
    lines = [f"{'directions':36s}" + "".join(f"{k:>7d}" for k in shown) + "   within 1 point"]
    for name, (ks, means) in found.items():
        cells = "".join(f"{means[ks.index(k)]:>7.1%}" if k in ks else " " * 7 for k in shown)
        enough = next((str(k) for k, mean in zip(ks, means, strict=True) if mean >= full - 0.01), "-")
        lines.append(f"{name:36s}{cells}{enough:>17s}")
    return "\n".join(lines)


def run(picture: Path | None, width: int = 128, epochs: int = 20) -> dict[str, tuple[list[int], list[float]]]:
    """Train, project, print, draw; returns what `curves` does."""
    images, labels = load_digits()
    images = images.flatten(1)
    models = [trained(seed, width, images, labels, epochs) for seed in (0, 1)]
    full = float(np.mean([accuracy(model, images, labels) for model in models]))
    print(f"two nets on digits, layer {LAYER} of {width} neurons, accuracy {full:.1%} on {len(images) - TRAIN} images")
    counts = [*range(1, min(17, width)), *(k for k in range(18, width, 6)), width]
    with warnings.catch_warnings():
        # Neurons that never fire leave directions below rounding; these are not used.
        warnings.simplefilter("ignore", sc.StreamCCAWarning)
        found = curves(models, images, labels, sorted(set(counts)))
    print(table(found, full, [k for k in (1, 2, 4, 6, 8, 10, 16, 30, 66, width) if k in counts]))
    if picture is not None:
        figure, ax = plot_projections(found, full=full)
        ax.set_title(f"digits, layer of {width} ReLU neurons projected on its first directions", fontsize=10)
        save_figure(figure, picture)
        print(f"picture: {picture}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("compression.png"), help="the picture")
    run(parser.parse_args().out)
