"""Vision models of other libraries and our own behind one face: `encoder.Encoder`.

One file per library; `libraries` says which, and how one more is added.
"""
