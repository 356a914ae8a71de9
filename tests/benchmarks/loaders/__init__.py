"""How fast this project's stream serves rows, and how fast the loaders of others serve the same."""
