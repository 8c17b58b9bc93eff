"""What the two papers specify, and what is chosen here; the report and docs/multiplicity.md print this."""

from __future__ import annotations

from typing import NamedTuple

DISENTANGLING = "arXiv 2206.08890"
NO_ONE = "arXiv 2110.12899"


class Origin(NamedTuple):
    """Where a computation comes from: `paper` says what the paper specifies, `ours` what was chosen here."""

    what: str
    paper: str
    ours: str


ORIGINS: tuple[Origin, ...] = (
    Origin(
        "representational multiplicity (RM)",
        f"{DISENTANGLING}, abstract: similarity of activations by SVCCA, within groups of models with similar training "
        "performance",
        "1 - mean correlation, mean over pairs and layers; 99 % of the variance; positions of a map averaged; the "
        "probe set; between groups and excess",
    ),
    Origin(
        "predictive multiplicity (PM)",
        f"{DISENTANGLING}, abstract: variance of test predictions, on i.i.d. and out-of-distribution test sets",
        "which variance: that of all probabilities, summed over classes, over M - 1; disagreement, votes, "
        "Jensen-Shannon beside it",
    ),
    Origin(
        "ambiguity, discrepancy", "Marx, Calmon, Ustun 2020", "the models of a group stand for the set of good ones"
    ),
    Origin("churn", "Fard, Cormier, Canini, Gupta 2016", "mean over the other models"),
    Origin(
        "RM against PM",
        f"{DISENTANGLING}, abstract: they are correlated",
        "Pearson, Spearman and Kendall; intervals by leaving out or drawing models; Mantel's test",
    ),
    Origin(
        "RM and PM as predictors",
        f"{DISENTANGLING}, abstract (v2): of generalisability, over a finite sample",
        "least squares, groups left out one at a time; targets: out-of-distribution accuracy and the "
        "generalization gap; "
        "numbers of models and of probe rows",
    ),
    Origin(
        "cards, contested images",
        f"{DISENTANGLING}, abstract: RM should be exposed",
        "the pictures, and what they show",
    ),
    Origin("temperature scaling", f"{NO_ONE} (Guo et al. 2017)", "fitted on the i.i.d. test set"),
    Origin("error inconsistency", f"{NO_ONE}: share of rows on which exactly one is right", "Wilson's interval"),
    Origin("kappa", "Geirhos, Meding, Wichmann 2020", ""),
    Origin(
        "ladder",
        f"{NO_ONE}: reinit, hyper-parameter, architecture, framework, data set, of a pair with one base model",
        "every model of a base group is a base; width and depth count as architecture",
    ),
    Origin("pairs of similar accuracy", f"{NO_ONE}: 74 to 78 % on ImageNet", "a band of accuracies around the base"),
    Origin("ensemble of a pair", f"{NO_ONE}: calibrated, the more confident wins", "mean of probabilities"),
    Origin("conversion rate", f"{NO_ONE}: share of inconsistent rows that the ensemble gets right", ""),
    Origin(
        "specialization angle",
        f"{NO_ONE}: an angle in the plane of both confidences; no formula",
        "atan2(base, other) - 45 degrees of the largest calibrated probabilities",
    ),
    Origin(
        "greedy ensembles",
        f"{NO_ONE}: models added one by one",
        "chosen on one half of the test set, measured on the other",
    ),
    Origin(
        "mixed features",
        f"{NO_ONE}: 0, 25, 50, 75, 100 % of features drawn at random, L-BFGS probe",
        "size: that of the smaller representation; features standardized",
    ),
    Origin(
        "features needed",
        f"{NO_ONE}: ordered by diversity from the covariance of both; ambiguous",
        "the order that the settings name",
    ),
    Origin(
        "stacked probe",
        f"{NO_ONE}: another task from concatenated features; 11-point mean average precision",
        "attributes of the classes as the task",
    ),
)
