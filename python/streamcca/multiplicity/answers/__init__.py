"""What models answer: logits, predictive multiplicity, calibration, errors, ensembles."""
