"""Images with labels, and their shifted versions."""
