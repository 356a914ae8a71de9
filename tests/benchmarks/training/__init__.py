"""The training step's benchmark over a cache as wide as the paper's proxy."""
