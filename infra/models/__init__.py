"""Vision models of other libraries behind one face: CLS vector and patch tokens, row-major."""
