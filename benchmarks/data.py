"""The rows that all contenders of one race load from the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def noise(rows: int, width: int, dtype: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """Independent normal rows: the flattest spectrum, and so the most directions to keep."""
    return np.random.default_rng(seed).standard_normal((rows, width), dtype=np.dtype(dtype).type)


def layers(rows: int, width: int, dtype: str) -> list[np.ndarray[Any, Any]]:
    """Two layers as networks have them: half their signals in common, singular values that fall as 1/i, mixed."""
    rng = np.random.default_rng(1)
    common = rng.standard_normal((rows, width // 2), dtype=np.float32)
    scale = np.arange(1, width + 1, dtype=np.float32) ** -1
    made = []
    for _ in range(2):
        own = rng.standard_normal((rows, width), dtype=np.float32)
        own[:, : width // 2] += common
        mix = np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32)
        made.append(((own * scale) @ mix).astype(dtype))
    return made


def spectrum(kind: str, width: int) -> np.ndarray[Any, Any]:
    """Eigenvalues of a covariance: singular values 1/i, or nearly equal ones."""
    if kind == "decaying":
        return np.arange(1, width + 1) ** -2.0
    return 1 + 0.3 * np.linspace(1, -1, width)


def covariance_with(values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a covariance with these eigenvalues, and its eigenvectors."""
    vectors = np.linalg.qr(np.random.default_rng(2).standard_normal((len(values), len(values))))[0]
    matrix = (vectors * values) @ vectors.T
    return (matrix + matrix.T) / 2, vectors


def store(folder: Path, **arrays: np.ndarray[Any, Any]) -> None:
    """Write arrays where the workers find them."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def load(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """Read an array into memory that the process owns."""
    array: np.ndarray[Any, Any] = np.load(folder / f"{name}.npy")
    return array
