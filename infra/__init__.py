"""What both sides stand on: the object store, pixels, models, the terminal; and deployment."""
