import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.keyed_hash import hash_texts, mix, permutation, subkey, uniforms

KEY = b"teachonce"
KEYS = st.integers(0, 2**64 - 1)


@given(st.sets(st.integers(0, 2**62), max_size=200), KEYS)
def test_permutation__is_one_and_sorts_by_hash(values: set[int], key: int) -> None:
    array = np.array(sorted(values), np.int64)
    order = permutation(array, key)
    assert sorted(order.tolist()) == list(range(len(array)))
    hashes = mix(array[order], key)
    assert (hashes[1:] >= hashes[:-1]).all()


@given(st.sets(st.integers(0, 2**62), min_size=1, max_size=50), KEYS, st.randoms())
def test_permutation__orders_the_values_however_they_came(
    values: set[int], key: int, random: object
) -> None:
    ordered = np.array(sorted(values), np.int64)
    shuffled = list(values)
    random.shuffle(shuffled)
    came = np.array(shuffled, np.int64)
    assert came[permutation(came, key)].tolist() == ordered[permutation(ordered, key)].tolist()


@given(st.lists(st.text(max_size=6), unique=True, max_size=20))
def test_hash_texts__of_each_text_alone(texts: list[str]) -> None:
    together = hash_texts(texts, KEY).tolist()
    assert together == [int(hash_texts([text], KEY)[0]) for text in texts]
    assert hash_texts(reversed(texts), KEY).tolist() == together[::-1]


@given(st.text(max_size=8), st.integers(1, 8))
def test_uniforms__lie_in_range_and_repeat(text: str, count: int) -> None:
    draws = uniforms(text, KEY, count)
    assert len(draws) == count
    assert all(0 <= draw < 1 for draw in draws)
    assert draws == uniforms(text, KEY, count)
    assert draws != uniforms(text, b"another", count)


def test_mix__spreads_neighbours_and_depends_on_the_key() -> None:
    hashes = mix(np.arange(1 << 16), 1)
    assert len(np.unique(hashes)) == 1 << 16
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    # A fair coin thrown 65536 times leaves this range once in 10^9 tries.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.012
    assert (hashes != mix(np.arange(1 << 16), 2)).all()


def test_subkey__is_of_its_purpose() -> None:
    keys = {subkey(KEY, *parts) for parts in [("a", 1, 2), ("a", 1, 3), ("b", 1, 2), ("a", 12)]}
    assert len(keys) == 4


def test_golden_values() -> None:
    """Orders must be the same in ten years: never change these numbers."""
    assert hash_texts(["a.jpg", "b/ü.png"], KEY).tolist() == [
        16794977561550431975,
        3408233460061184348,
    ]
    assert uniforms("a.jpg#1", KEY, 2) == [0.7822796080906349, 0.057594344133216846]
    assert mix(np.array([0, 1, 2**40]), 7).tolist() == [
        13225839796362995591,
        8409816773569330625,
        4631589859406992706,
    ]
    assert permutation(np.arange(12), 7).tolist() == [5, 10, 8, 2, 7, 6, 9, 4, 1, 3, 0, 11]
    assert subkey(KEY, "blocks", 0, 3) == 16927919589181561257
