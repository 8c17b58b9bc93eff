"""Studies over many models: how much their insides and their answers differ, and what one says of the other."""
