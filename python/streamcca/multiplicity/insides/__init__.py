"""How different the insides of models are: representational multiplicity."""
