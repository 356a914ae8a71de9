"""Vision models of other libraries behind one face: (CLS vector, patch tokens in row-major order)."""
