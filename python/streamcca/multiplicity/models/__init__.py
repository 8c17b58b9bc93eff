"""Models of a study: small nets, their training, and models from elsewhere."""
