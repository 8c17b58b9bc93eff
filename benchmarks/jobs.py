"""What the contenders run: each job takes the folder with the rows and returns the function to be timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import load

Job = Callable[[], Any]
VARIANCE = 0.99


def _updates(batches: list[Any], **options: Any) -> Job:
    """Form the moments of one view again and again in the same state."""
    from streamcca import Moments

    moments = Moments({"x": batches[0].shape[1]}, **options)

    def run() -> Any:
        moments.reset()
        for batch in batches:
            moments.update(x=batch)
        return moments

    return run


def streamcca_moments(folder: Path) -> Job:
    """Form all second moments of a view in a float64 state, without taking the covariance out."""
    return _updates([load(folder, "x")])


def streamcca_float64_products(folder: Path) -> Job:
    """Form the same with products in float64."""
    return _updates([load(folder, "x")], precision="float64")


def streamcca_bfloat16(folder: Path) -> Job:
    """Form the same of bfloat16 rows."""
    import torch

    return _updates([torch.from_numpy(load(folder, "x")).bfloat16()])


def streamcca_one_thread(folder: Path) -> Job:
    """Form the same on one thread."""
    return _updates([load(folder, "x")], threads=1)


def streamcca_batches_of_32(folder: Path) -> Job:
    """Form the same in batches of 32 rows."""
    x = load(folder, "x")
    return _updates([x[i : i + 32] for i in range(0, len(x), 32)])


def streamcca_cross(folder: Path) -> Job:
    """Second moments of a pair of views, and of neither view with itself."""
    from streamcca import Moments

    x, y = load(folder, "x"), load(folder, "y")
    moments = Moments({"x": x.shape[1], "y": y.shape[1]}, pairs=[("x", "y")])

    def run() -> Any:
        moments.reset()
        moments.update(x=x, y=y)
        return moments

    return run


def streamcca_channels_first(folder: Path) -> Job:
    """Moments of convolutional maps (n, channels, height, width), image by image, positions as rows."""
    images = load(folder, "images")
    return _updates([image.reshape(len(image), -1).T for image in images])


def streamcca_channels_last(folder: Path) -> Job:
    """Take the same rows, as many at a time, stored row by row."""
    images = load(folder, "images")
    return _updates([np.ascontiguousarray(image.reshape(len(image), -1).T) for image in images])


def streamcca_one_update(folder: Path) -> Job:
    """One update of a batch of 32 rows, in the mean over eight: after that a block is full and multiplied."""
    from streamcca import Moments

    x = load(folder, "x")
    moments = Moments({"x": x.shape[1]})
    return lambda: moments.update(x=x)


def streamcca_covariance(folder: Path) -> Job:
    """Form the same moments and take the covariance matrix out."""
    moments_of = streamcca_moments(folder)
    return lambda: moments_of().covariance("x")


def numpy_product(folder: Path) -> Job:
    """X'X as BLAS does it: no mean removed, sums as narrow as the rows."""
    x = load(folder, "x")
    return lambda: x.T @ x


def numpy_cov(folder: Path) -> Job:
    """`np.cov`, which converts to float64."""
    x = load(folder, "x")
    return lambda: np.cov(x, rowvar=False)


def torch_product(folder: Path) -> Job:
    """X'X by torch, which does not use the symmetry."""
    import torch

    x = torch.from_numpy(load(folder, "x"))
    return lambda: torch.mm(x.T, x)


def torch_product_bfloat16(folder: Path) -> Job:
    """X'X of bfloat16 rows by torch; the result is bfloat16, too."""
    import torch

    x = torch.from_numpy(load(folder, "x")).bfloat16()
    return lambda: torch.mm(x.T, x)


def scipy_syrk(folder: Path) -> Job:
    """X'X by BLAS's symmetric product, one triangle of it."""
    from scipy.linalg import blas

    x = load(folder, "x")
    syrk = blas.ssyrk if x.dtype == np.float32 else blas.dsyrk
    return lambda: syrk(1.0, x.T)


def sklearn_incremental_pca(folder: Path) -> Job:
    """scikit-learn's streaming PCA, all components, in its default batches of 5 d rows."""
    from sklearn.decomposition import IncrementalPCA

    x = load(folder, "x")
    return lambda: IncrementalPCA().fit(x)


def sklearnex_covariance(folder: Path) -> Job:
    """scikit-learn-intelex's streaming covariance, in one batch."""
    from sklearnex.covariance import IncrementalEmpiricalCovariance

    x = load(folder, "x")
    return lambda: IncrementalEmpiricalCovariance().partial_fit(x).covariance_


def numkong_symmetric(folder: Path) -> Job:
    """NumKong's symmetric dot products; they want columns as rows, and the transposition belongs to the job."""
    import numkong

    x = load(folder, "x")
    return lambda: numkong.dots_symmetric(np.ascontiguousarray(x.T))


def streamcca_truncate(folder: Path) -> Job:
    """Find the leading directions of a covariance; its rounding is that of float64."""
    from streamcca import _backend

    c = load(folder, "covariance")
    rounding = (2.0**-53, 2.0**-53, np.diag(c).copy())
    return lambda: _backend.truncate(c, rounding, "variance", VARIANCE, 0.0)


def scipy_eigh(folder: Path) -> Job:
    """Decompose the whole covariance by SciPy's default driver, and keep what is needed."""
    from scipy.linalg import eigh

    c = load(folder, "covariance")

    def run() -> Any:
        values, vectors = eigh(c)
        k = _kept(values[::-1])
        return vectors[:, -k:]

    return run


def numpy_eigh(folder: Path) -> Job:
    """Decompose the whole covariance by NumPy's divide and conquer, and keep what is needed."""
    c = load(folder, "covariance")

    def run() -> Any:
        values, vectors = np.linalg.eigh(c)
        return vectors[:, -_kept(values[::-1]) :]

    return run


def streamcca_svcca(folder: Path) -> Job:
    """`svcca` of two arrays; warnings about float32 belong to the answer, not to the time."""
    import warnings

    from streamcca import svcca

    warnings.simplefilter("ignore")
    x, y = load(folder, "x"), load(folder, "y")
    return lambda: svcca(x, y, variance=VARIANCE)


def _kept(values: Any) -> int:
    shares = np.cumsum(values) / np.sum(values)
    return int(np.argmax(shares >= VARIANCE)) + 1


def numpy_svd(folder: Path) -> Job:
    """SVCCA by SVD of both whole matrices; NumPy's SVD works in float64, whatever the type of the rows."""
    from streamcca.demo import svcca_in_memory

    x, y = load(folder, "x"), load(folder, "y")
    return lambda: svcca_in_memory(x, y, VARIANCE)


def svcca_of_covariance(s: Any, dx: int) -> tuple[float, int, int]:
    """SVCCA of a joint covariance in NumPy: two `eigh`, and the SVD of the whitened cross-covariance."""
    kept = []
    for block in (s[:dx, :dx], s[dx:, dx:]):
        values, vectors = np.linalg.eigh(block)
        k = _kept(values[::-1])
        kept.append(vectors[:, -k:] / np.sqrt(values[-k:]))
    rho = np.linalg.svd(kept[0].T @ s[:dx, dx:] @ kept[1], compute_uv=False)
    return float(rho.mean()), kept[0].shape[1], kept[1].shape[1]


def numpy_cov_eigh(folder: Path) -> Job:
    """SVCCA by `np.cov` of both layers at once, in float64."""
    x, y = load(folder, "x"), load(folder, "y")
    return lambda: svcca_of_covariance(np.cov(np.hstack([x, y]), rowvar=False), x.shape[1])


def numpy_product_eigh(folder: Path) -> Job:
    """SVCCA by one product of the centered layers in their own type, decomposed in float64."""
    x, y = load(folder, "x"), load(folder, "y")

    def run() -> tuple[float, int, int]:
        joint = np.hstack([x, y])
        joint -= joint.mean(axis=0)
        return svcca_of_covariance((joint.T @ joint).astype(np.float64), x.shape[1])

    return run


def torch_qr_svd(folder: Path) -> Job:
    """SVCCA by torch in float32: QR of each centered layer, SVD of its small factor."""
    import torch

    views = [torch.from_numpy(load(folder, name)) for name in ("x", "y")]

    def run() -> tuple[float, int, int]:
        left = []
        for view in views:
            q, r = torch.linalg.qr(view - view.mean(0))
            u, s, _ = torch.linalg.svd(r)
            left.append(q @ u[:, : _kept((s.double() ** 2).numpy())])
        rho = torch.linalg.svdvals(left[0].T @ left[1])
        return float(rho.mean()), left[0].shape[1], left[1].shape[1]

    return run


JOBS: dict[str, Callable[[Path], Job]] = {
    job.__name__: job
    for job in (
        streamcca_moments,
        streamcca_float64_products,
        streamcca_bfloat16,
        streamcca_one_thread,
        streamcca_batches_of_32,
        streamcca_cross,
        streamcca_channels_first,
        streamcca_channels_last,
        streamcca_one_update,
        streamcca_covariance,
        streamcca_svcca,
        streamcca_truncate,
        scipy_eigh,
        numpy_eigh,
        numpy_product,
        numpy_cov,
        numpy_svd,
        numpy_cov_eigh,
        numpy_product_eigh,
        scipy_syrk,
        sklearn_incremental_pca,
        sklearnex_covariance,
        numkong_symmetric,
        torch_product,
        torch_product_bfloat16,
        torch_qr_svd,
    )
}
