"""`streamcca demo`: two small convnets on real images, compared layer by layer, and checked against NumPy."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from streamcca._backend import FloatArray
from streamcca._memory import peak_resident, reset_peak
from streamcca.compare import compare
from streamcca.comparison import LayerComparison
from streamcca.rows import Way
from streamcca.sources import progress_bar
from streamcca.sweep import eval_mode
from streamcca.tap import LayerTap

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

VARIANCE = 0.99
_TRAIN = 1347  # three quarters of the 1797 images
_BATCH = 64
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo found: `streamed` and `in_memory` are (seconds, peak bytes beyond the start)."""

    comparison: LayerComparison
    accuracies: tuple[float, float]
    largest_difference: float
    streamed: tuple[float, int]
    in_memory: tuple[float, int]
    pictures: tuple[Path, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "comparison": self.comparison.to_dict(),
            "accuracies": list(self.accuracies),
            "largest_difference": self.largest_difference,
            "streamed": {"seconds": self.streamed[0], "peak_bytes": self.streamed[1]},
            "in_memory_numpy": {"seconds": self.in_memory[0], "peak_bytes": self.in_memory[1]},
            "pictures": [str(path) for path in self.pictures],
        }


def load_digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits, shuffled once: images (1797, 1, 8, 8) in [0, 1] and labels."""
    import torch

    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError:
        raise ImportError("the demo needs scikit-learn; install streamcca[demo]") from None
    images, labels = sklearn_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.from_numpy(images[order].astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    return x, torch.from_numpy(labels[order].astype(np.int64))


def convnet() -> Module:
    """Return an untrained convnet with three convolutions and two linear layers."""
    from collections import OrderedDict

    from torch import nn

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            conv3=nn.Conv2d(64, 128, 3, padding=1),
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(128 * 16, 128),
            relu4=nn.ReLU(),
            fc2=nn.Linear(128, 10),
        )
    )


def train(seed: int, images: Tensor, labels: Tensor, epochs: int, progress: Any = False) -> tuple[Module, float]:
    """Train a convnet from a seed; return it and its accuracy on the images left out."""
    import torch
    from torch.nn.functional import cross_entropy

    # The caller's random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = convnet()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        with progress_bar(progress, epochs, "epoch", f"train seed {seed}") as bar:
            for _ in range(epochs):
                for batch in torch.randperm(_TRAIN).split(_BATCH):
                    optimizer.zero_grad()
                    cross_entropy(model(images[batch]), labels[batch]).backward()
                    optimizer.step()
                bar.update(1)
    with eval_mode(model):
        accuracy = (model(images[_TRAIN:]).argmax(1) == labels[_TRAIN:]).float().mean()
    return model, float(accuracy)


def left_vectors(view: FloatArray, variance: float) -> FloatArray:
    """Return the leading left singular vectors (n, k) of a centered view that hold a share of its variance."""
    u, s, _ = np.linalg.svd(view - view.mean(axis=0), full_matrices=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    return np.asarray(u[:, : int(np.argmax(share >= variance)) + 1])


def svcca_in_memory(x: FloatArray, y: FloatArray, variance: float) -> tuple[float, int, int]:
    """SVCCA as textbooks write it: SVD of both full matrices; returns the mean and both ranks."""
    a, b = left_vectors(x, variance), left_vectors(y, variance)
    return float(np.linalg.svd(a.T @ b, compute_uv=False).mean()), a.shape[1], b.shape[1]


def _layers_in_memory(model: Module, images: Tensor, layers: Any) -> dict[str, FloatArray]:
    """Return the whole activation matrix of every layer, averaged over positions as the comparison does."""
    tap = LayerTap(model, layers)
    collected: dict[str, list[FloatArray]] = {name: [] for name in tap.modules}
    ways: dict[str, Way] = dict.fromkeys(tap.modules, "pool")
    try:
        tap.attach()
        with eval_mode(model):
            for batch in images.split(_BATCH):
                model(batch)
                tap.peek()
                for name, rows in tap.take(ways).items():
                    collected[name].append(rows.numpy().astype(np.float64))
    finally:
        tap.detach()
    return {name: np.concatenate(parts) for name, parts in collected.items()}


def _compare_in_memory(models: tuple[Module, Module], images: Tensor, layers: Any) -> FloatArray:
    a, b = ([left_vectors(x, VARIANCE) for x in _layers_in_memory(model, images, layers).values()] for model in models)
    return np.array([[np.linalg.svd(x.T @ y, compute_uv=False).mean() for y in b] for x in a])


def measured(run: Callable[[], T]) -> tuple[T, float, int]:
    """Run something; return its result, the seconds and the peak resident bytes beyond the start.

    Linux can reset the peak of a process, elsewhere only a rise of the all-time peak is seen.
    """
    gc.collect()
    start_bytes = reset_peak()
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    return result, seconds, max(0, peak_resident() - start_bytes)


def run_demo(out: str | Path = "streamcca-demo", epochs: int = 8, progress: Any = "auto") -> DemoResult:
    """Train two convnets from different seeds, compare all their layers, draw, and check against NumPy.

    Parameters
    ----------
    out : path
        Folder for the two pictures; made if it does not exist.
    epochs : int
        Passes over the training images.
    progress : 'auto' or bool

    Returns
    -------
    DemoResult
    """
    images, labels = load_digits()
    (a, accuracy_a), (b, accuracy_b) = (train(seed, images, labels, epochs, progress) for seed in (0, 1))
    layers = ["conv1", "conv2", "conv3", "fc1", "fc2"]
    # Libraries that load late should not count as either side's time or memory.
    compare(a, b, images[:300], ["fc2"], variance=VARIANCE, precision="float64")
    comparison, stream_seconds, stream_peak = measured(
        lambda: compare(a, b, images.split(_BATCH), layers, variance=VARIANCE, precision="float64", progress=progress)
    )
    reference, numpy_seconds, numpy_peak = measured(lambda: _compare_in_memory((a, b), images, layers))
    return DemoResult(
        comparison=comparison,
        accuracies=(accuracy_a, accuracy_b),
        largest_difference=float(np.abs(comparison.matrix - reference).max()),
        streamed=(stream_seconds, stream_peak),
        in_memory=(numpy_seconds, numpy_peak),
        pictures=_draw(comparison, Path(out)),
    )


def _draw(comparison: LayerComparison, folder: Path) -> tuple[Path, ...]:
    from matplotlib.figure import Figure

    from streamcca.plots import save_figure

    folder.mkdir(parents=True, exist_ok=True)
    heat_map, _ = comparison.plot()
    save_figure(heat_map, folder / "layers.png")
    layers = comparison.layers_a
    spectra = Figure(figsize=(3.1 * len(layers), 3.2), layout="constrained")
    for ax, layer in zip(np.atleast_1d(spectra.subplots(1, len(layers), sharey=True)), layers, strict=True):
        result = comparison[layer, layer]
        result.plot(ax)
        ax.set_title(f"{layer}: {result.rank_x} and {result.rank_y} directions", fontsize=10)
        ax.set_ylabel("canonical correlation" if layer == layers[0] else "")
        ax.set_xlabel("in order")
    save_figure(spectra, folder / "spectra.png")
    return folder / "layers.png", folder / "spectra.png"


def format_demo(result: DemoResult) -> str:
    """Lay the result out for reading."""
    megabyte = 2**20
    (fast, small), (slow, large) = result.streamed, result.in_memory
    return "\n".join(
        [
            f"two convnets on scikit-learn's digits, seeds 0 and 1, test accuracy {result.accuracies[0]:.1%} and "
            f"{result.accuracies[1]:.1%}",
            "",
            result.comparison.table(),
            "",
            f"streamed          {fast:6.2f} s, peak {small / megabyte:6.1f} MiB",
            f"in-memory NumPy   {slow:6.2f} s, peak {large / megabyte:6.1f} MiB (float64 SVD of the full matrices)",
            f"largest difference between the two: {result.largest_difference:.1e} "
            f"(error bound {result.comparison.error_bounds.max():.1e})",
            "pictures: " + ", ".join(str(path) for path in result.pictures),
        ]
    )
