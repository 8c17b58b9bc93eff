"""What one quantity of models tells about another, with intervals over models."""
