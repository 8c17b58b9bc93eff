"""SVCCA and its family on activations larger than memory.

Rows stream through C++ kernels into small, mergeable moments; truncation and canonical correlation analysis
turn the moments into similarities that come with their error bound and their chance level.
"""

from typing import TYPE_CHECKING, Any

from streamcca.cca import cca, pwcca, svcca
from streamcca.errors import (
    AccuracyError,
    AccuracyWarning,
    DeviceError,
    DTypeError,
    InputError,
    InstructionSetError,
    LayerError,
    MemoryLimitError,
    MissingFileError,
    NonFiniteError,
    NumericError,
    ProcessError,
    SampleSizeWarning,
    StateFileError,
    StorageError,
    StreamCCAError,
    StreamCCAWarning,
    UnderdeterminedError,
)
from streamcca.moments import Moments
from streamcca.results import CCAResult, LayerComparison, Truncation
from streamcca.significance import null_edges, null_mean
from streamcca.subspace import Rule, Subspace, truncate

if TYPE_CHECKING:
    from streamcca.compare import compare
    from streamcca.watch import Watch, watch

__all__ = [
    # data in
    "Moments",
    "watch",
    "Watch",
    # numbers out
    "svcca",
    "cca",
    "pwcca",
    "compare",
    "truncate",
    "null_mean",
    "null_edges",
    # results
    "CCAResult",
    "LayerComparison",
    "Subspace",
    "Truncation",
    "Rule",
    # errors and warnings
    "StreamCCAError",
    "InputError",
    "DTypeError",
    "NonFiniteError",
    "UnderdeterminedError",
    "AccuracyError",
    "NumericError",
    "DeviceError",
    "ProcessError",
    "InstructionSetError",
    "LayerError",
    "MissingFileError",
    "StateFileError",
    "StorageError",
    "MemoryLimitError",
    "StreamCCAWarning",
    "AccuracyWarning",
    "SampleSizeWarning",
]

# Need torch, which is imported when they are first asked for.
_LAZY = {"watch": "streamcca.watch", "Watch": "streamcca.watch", "compare": "streamcca.compare"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'streamcca' has no attribute {name!r}")
