"""What is written down: configuration, the store's layout, its records, and how numbers are coded.

Pure: imports no torch, ray or zarr, so that anything may import it in a millisecond.
"""
