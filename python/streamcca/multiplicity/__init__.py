"""Studies over many models: how much their insides and their answers differ, and what one tells about the other.

`run_study` carries a whole study out (``streamcca study`` on the command line); everything that it uses is here, too.
"""

from streamcca.multiplicity.answers.average_precision import AveragePrecision, average_precision
from streamcca.multiplicity.answers.calibration import TemperatureScaling, temperature_scaling
from streamcca.multiplicity.answers.contested import ContestedRows, contested_rows
from streamcca.multiplicity.answers.ensembles import AllPairEnsembles, PairEnsemble, all_pair_ensembles, pair_ensemble
from streamcca.multiplicity.answers.greedy import GreedyEnsemble, greedy_ensemble
from streamcca.multiplicity.answers.inconsistency import (
    ErrorInconsistency,
    Specialization,
    error_inconsistency,
    specialization,
)
from streamcca.multiplicity.answers.logit_files import save_logits
from streamcca.multiplicity.answers.predictions import Predictions
from streamcca.multiplicity.answers.predictive import (
    PredictiveMultiplicity,
    disagreements,
    error_inconsistencies,
    predictive_multiplicity,
    probability_distances,
)
from streamcca.multiplicity.features.diverse import ORDERS, diversity_order
from streamcca.multiplicity.features.feature_curve import FeatureCurve, features_needed
from streamcca.multiplicity.features.mixing import FeatureMixing, feature_mixing
from streamcca.multiplicity.features.probe import LinearProbe, linear_probe
from streamcca.multiplicity.features.stacked import StackedProbe, stacked_probe
from streamcca.multiplicity.images.data_sets import DataSet, ImageSet, load_data
from streamcca.multiplicity.images.shifts import SHIFTS, shifted
from streamcca.multiplicity.insides.finite_sample import FiniteSample, finite_sample_models, finite_sample_rows
from streamcca.multiplicity.insides.representational import representational_multiplicity
from streamcca.multiplicity.insides.rm_result import RepresentationalMultiplicity
from streamcca.multiplicity.models.methods import Method, distance_on_ladder
from streamcca.multiplicity.relation.association import Association, associate
from streamcca.multiplicity.relation.ladder import AlongLadder, along_ladder
from streamcca.multiplicity.relation.predictors import Foretold, foretell, foretelling_curves
from streamcca.multiplicity.study.config import StudyConfig
from streamcca.multiplicity.study.run import Study, run_study

__all__ = [
    # a whole study
    "run_study",
    "StudyConfig",
    "Study",
    # insides
    "representational_multiplicity",
    "finite_sample_models",
    "finite_sample_rows",
    # answers
    "Predictions",
    "save_logits",
    "predictive_multiplicity",
    "disagreements",
    "probability_distances",
    "contested_rows",
    "temperature_scaling",
    # one against the other
    "associate",
    "foretell",
    "foretelling_curves",
    # what differently trained models know
    "error_inconsistency",
    "error_inconsistencies",
    "pair_ensemble",
    "all_pair_ensembles",
    "greedy_ensemble",
    "specialization",
    "along_ladder",
    "linear_probe",
    "feature_mixing",
    "diversity_order",
    "ORDERS",
    "features_needed",
    "stacked_probe",
    "average_precision",
    # models and data
    "Method",
    "distance_on_ladder",
    "load_data",
    "shifted",
    "SHIFTS",
    # results
    "RepresentationalMultiplicity",
    "FiniteSample",
    "PredictiveMultiplicity",
    "ContestedRows",
    "TemperatureScaling",
    "Association",
    "Foretold",
    "ErrorInconsistency",
    "PairEnsemble",
    "AllPairEnsembles",
    "GreedyEnsemble",
    "Specialization",
    "AlongLadder",
    "LinearProbe",
    "FeatureMixing",
    "FeatureCurve",
    "StackedProbe",
    "AveragePrecision",
    "DataSet",
    "ImageSet",
]
