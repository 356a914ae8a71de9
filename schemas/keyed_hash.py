"""Keyed, reproducible-for-ever pseudo-randomness: orders, views and splits.

Written out rather than taken from a library's random generator, whose streams may change between
versions: what was planned must be planned the same way in ten years.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def hash_texts(texts: Iterable[str], key: bytes) -> Words:
    """blake2b of each text under `key`, as 64-bit words."""
    joined = b"".join(
        hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in texts
    )
    return np.frombuffer(joined, "<u8")


def uniforms(text: str, key: bytes, count: int) -> list[float]:
    """`count` (at most 8) draws in [0, 1), functions of the text and the key alone."""
    data = hashlib.blake2b(text.encode(), digest_size=8 * count, key=key).digest()
    words = np.frombuffer(data, "<u8") >> np.uint64(11)
    return [float(word) * 2.0**-53 for word in words]


def mix(values: npt.NDArray[np.integer], key: int) -> Words:
    """A keyed hash of whole numbers, vectorised: splitmix64's finaliser over a keyed Weyl step.
    Every step can be undone, so distinct numbers have distinct hashes."""
    mask = 2**64 - 1
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & mask)
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
    return np.asarray(z)


def permutation(values: npt.NDArray[np.integer], key: int) -> npt.NDArray[np.intp]:
    """Positions that sort `values` (distinct) by their keyed hash."""
    return np.argsort(mix(values, key))


def subkey(key: bytes, *parts: int | str) -> int:
    """A 64-bit key for one purpose, such as ("blocks", seed, epoch)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")
