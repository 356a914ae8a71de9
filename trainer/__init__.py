"""Cached features to a student. The library face is `CacheStream`, for a loop of your own."""

from trainer.batch import Batch, Target
from trainer.stream import CacheStream

__all__ = ["Batch", "CacheStream", "Target"]
