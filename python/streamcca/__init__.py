"""SVCCA and its family on activations larger than memory.

Rows stream through C++ kernels into small, mergeable moments; truncation and canonical correlation analysis
turn the moments into similarities that come with their error bound and their chance level.
"""

# Every name is bound here, after its module: `watch` and `compare` are functions, although modules bear the
# same names. torch, matplotlib and scipy.linalg are imported where they are first needed.
from streamcca._backend import VERSION as __version__
from streamcca.accumulate import accumulate
from streamcca.callbacks import lightning_callback, trainer_callback
from streamcca.cca import cca, pwcca, svcca
from streamcca.compare import compare
from streamcca.comparison import LayerComparison
from streamcca.curves import Curves
from streamcca.dimension import SignificantCorrelations, significant_correlations
from streamcca.directions import CanonicalProjection, SharedDirection, project_layer, shared_directions
from streamcca.distributed import all_reduce
from streamcca.dynamics import Dynamics
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
    ReplayError,
    SampleSizeWarning,
    StateFileError,
    StorageError,
    StreamCCAError,
    StreamCCAWarning,
    UnderdeterminedError,
)
from streamcca.fourier import FourierResult, svcca_fourier
from streamcca.gram import Gram, gram
from streamcca.many import ModelComparison
from streamcca.measures import cka, linear_regression, procrustes
from streamcca.moments import Moments
from streamcca.plan import Plan, plan
from streamcca.population import CorrectedCorrelations, corrected_correlations
from streamcca.qr import QRMoments
from streamcca.results import CCAResult, Truncation
from streamcca.scores import SubspaceScores, subspace_scores
from streamcca.significance import null_edges, null_interval, null_mean
from streamcca.similarity.angles import PrincipalAngles, principal_angles
from streamcca.similarity.declare import MEASURES
from streamcca.similarity.dimensions import Dimensions, dimensions
from streamcca.similarity.groups import GroupMoments, group_moments
from streamcca.similarity.intervals import Difference, Interval, difference, interval
from streamcca.similarity.matrix import SimilarityMatrix, similarity_matrix
from streamcca.similarity.named import Similarities, similarities, similarity
from streamcca.similarity.path import RidgePath, ridge_path
from streamcca.similarity.result import SimilarityResult
from streamcca.sketch import Sketch
from streamcca.subspace import Rule, Subspace, truncate
from streamcca.watch import Watch, watch

__all__ = [
    "__version__",
    # data in
    "Moments",
    "GroupMoments",
    "group_moments",
    "QRMoments",
    "Sketch",
    "watch",
    "Watch",
    "Dynamics",
    "lightning_callback",
    "trainer_callback",
    "accumulate",
    "all_reduce",
    # numbers out
    "svcca",
    "cca",
    "pwcca",
    "svcca_fourier",
    "cka",
    "procrustes",
    "linear_regression",
    "similarity",
    "similarities",
    "similarity_matrix",
    "ridge_path",
    "shared_directions",
    "CanonicalProjection",
    "project_layer",
    "MEASURES",
    "interval",
    "difference",
    "dimensions",
    "principal_angles",
    "compare",
    "subspace_scores",
    "Gram",
    "gram",
    "plan",
    "truncate",
    "null_mean",
    "null_edges",
    "null_interval",
    "corrected_correlations",
    "significant_correlations",
    # results
    "CCAResult",
    "SimilarityResult",
    "Similarities",
    "SimilarityMatrix",
    "RidgePath",
    "SharedDirection",
    "Interval",
    "Difference",
    "Dimensions",
    "CorrectedCorrelations",
    "SignificantCorrelations",
    "PrincipalAngles",
    "LayerComparison",
    "ModelComparison",
    "SubspaceScores",
    "Curves",
    "Plan",
    "FourierResult",
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
    "ReplayError",
    "MissingFileError",
    "StateFileError",
    "StorageError",
    "MemoryLimitError",
    "StreamCCAWarning",
    "AccuracyWarning",
    "SampleSizeWarning",
]
