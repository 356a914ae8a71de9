import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infra.codec import rans
from schemas.frequencies import MOST, TABLES, TOTAL, normal_tables
from tests.unit.infra.codec import streams

RANGES = rans.Ranges.of(normal_tables(), "cpu")
SHARES = np.array(normal_tables(), float)
GOLDEN = "494b10b037aa50e1c9bb56660e644ac949088634e2b3f3b5bb940723a278910f"
"""Of the stream of `golden_rows`: one that changes makes every cache unreadable."""


@dataclass(frozen=True)
class Stream:
    states: Tensor
    words: Tensor
    """[rows, most], from the first on."""
    lengths: list[int]


def encoded(codes: Tensor, tables: Tensor) -> Stream:
    """With words as a row of a shard has them: zeros after the last."""
    states, words, lengths = rans.encode(codes, tables, RANGES)
    assert states.dtype == words.dtype == torch.int32
    aligned = torch.zeros_like(words)
    for row, length in enumerate(lengths.tolist()):
        aligned[row, :length] = words[row, words.shape[1] - length :]
    return Stream(states, aligned, lengths.tolist())


def there_and_back(codes: Tensor, tables: Tensor) -> Tensor:
    stream = encoded(codes, tables)
    return rans.decode(stream.states, stream.words, tables, RANGES, codes.shape[1])


def drawn(
    rows: int, tokens: int, channels: int, seed: int, silent: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Codes such as their channels' tables expect, and some that they do not; the tables."""
    random = np.random.default_rng(seed)
    tables = random.integers(1, TABLES, (rows, channels))
    tables[random.random(tables.shape) < silent] = 0
    spreads = 2.0 ** ((tables - 13) / 4)
    codes = np.rint(random.standard_normal((rows, tokens, channels)) * spreads[:, None])
    strange = random.random(codes.shape) < 0.02
    codes[strange] = random.integers(-MOST, MOST + 1, int(strange.sum()))
    codes = np.where(tables[:, None] > 0, codes.clip(-MOST, MOST), 0)
    return torch.from_numpy(codes.astype(np.int64)), torch.from_numpy(tables)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 4),
    tokens=st.integers(1, 300),
    channels=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    silent=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
)
def test_decode__gives_back_what_was_encoded(
    rows: int, tokens: int, channels: int, seed: int, silent: float
) -> None:
    codes, tables = drawn(rows, tokens, channels, seed, silent)
    found = there_and_back(codes, tables)
    assert found.dtype == torch.int8
    assert torch.equal(found.long(), codes)


@settings(max_examples=20)
@given(
    tokens=st.integers(1, 40),
    channels=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    silent=st.sampled_from([0.0, 0.3]),
)
def test_encode__a_decoder_written_from_the_description_agrees(
    tokens: int, channels: int, seed: int, silent: float
) -> None:
    """And finds every word used and every lane back where encoding began."""
    codes, tables = drawn(2, tokens, channels, seed, silent)
    stream = encoded(codes, tables)
    for row, length in enumerate(stream.lengths):
        words = stream.words[row, :length].tolist()
        states, own = stream.states[row].tolist(), tables[row].tolist()
        found = streams.decoded(states, words, own, normal_tables(), tokens)
        assert found == codes[row].tolist()


def test_encode__a_decoder_written_from_the_description_agrees_with_many_lanes() -> None:
    """More tokens than lanes, whose last turn is not a whole one."""
    codes, tables = drawn(1, 149, 60, seed=5)
    assert 1 < rans.lane_count(149, 60) < 149
    assert 149 % rans.lane_count(149, 60)
    stream = encoded(codes, tables)
    words = stream.words[0, : stream.lengths[0]].tolist()
    states, own = stream.states[0].tolist(), tables[0].tolist()
    assert streams.decoded(states, words, own, normal_tables(), 149) == codes[0].tolist()


@pytest.mark.parametrize("code", [-MOST, -1, 0, 1, MOST])
@pytest.mark.parametrize("table", [1, 13, TABLES - 1])
def test_decode__a_row_of_one_code(code: int, table: int) -> None:
    """The least expected code costs 15 bits each time, the most expected next to nothing."""
    codes = torch.full((1, 70, 40), code)
    tables = torch.full((1, 40), table)
    assert torch.equal(there_and_back(codes, tables).long(), codes)


def test_encode__silent_channels_take_no_room() -> None:
    codes = torch.zeros((2, 50, 30), dtype=torch.int64)
    tables = torch.zeros((2, 30), dtype=torch.int64)
    stream = encoded(codes, tables)
    assert stream.lengths == [0, 0]
    assert (stream.states == rans.LOWEST).all()
    assert torch.equal(there_and_back(codes, tables).long(), codes)


@pytest.mark.parametrize("table", [2, 9, 13, 21, TABLES - 1])
def test_encode__takes_the_room_that_the_tables_say(table: int) -> None:
    """Within half a hundredth, and a word a lane, of minus the logarithm of the codes' shares."""
    random = np.random.default_rng(table)
    chances = np.concatenate([SHARES[table][:0:-1], SHARES[table]]) / TOTAL
    codes = random.choice(np.arange(-MOST, MOST + 1), (1, 256, 96), p=chances)
    ideal = -np.log2(SHARES[table][np.abs(codes)] / TOTAL).sum() / 16
    stream = encoded(torch.from_numpy(codes), torch.full((1, 96), table))
    # A lane's first 15 bits are those of its state, not of a word.
    lanes = rans.lane_count(256, 96)
    assert ideal * 0.995 - lanes <= stream.lengths[0] <= ideal * 1.005 + lanes


def test_encode__rows_know_nothing_of_one_another() -> None:
    """Also where one codes a channel that another leaves out."""
    codes, tables = drawn(4, 90, 40, seed=8)
    together = encoded(codes, tables)
    for row in range(4):
        alone = encoded(codes[row : row + 1], tables[row : row + 1])
        assert alone.lengths == together.lengths[row : row + 1]
        assert torch.equal(alone.states[0], together.states[row])
        assert torch.equal(alone.words[0], together.words[row])


def test_encode__leaves_what_it_was_given() -> None:
    codes, tables = drawn(2, 30, 20, seed=1)
    kept = codes.clone(), tables.clone()
    stream = encoded(codes, tables)
    states = stream.states.clone()
    rans.decode(stream.states, stream.words, tables, RANGES, 30)
    assert torch.equal(codes, kept[0])
    assert torch.equal(tables, kept[1])
    assert torch.equal(states, stream.states)


def test_decode__of_a_stream_cut_short_ends() -> None:
    """What it gives is nonsense; checksums are there to refuse such rows."""
    codes, tables = drawn(1, 60, 20, seed=2)
    stream = encoded(codes, tables)
    found = rans.decode(stream.states, stream.words[:, :3], tables, RANGES, 60)
    assert found.shape == codes.shape


def test_decode__what_follows_a_stream_changes_nothing() -> None:
    codes, tables = drawn(1, 60, 20, seed=3)
    stream = encoded(codes, tables)
    stream.words[0, stream.lengths[0] :] = 0xABCD
    found = rans.decode(stream.states, stream.words, tables, RANGES, 60)
    assert torch.equal(found.long(), codes)


@pytest.mark.parametrize(
    ("tokens", "channels", "lanes"),
    [(1, 1, 1), (1, 4096, 1), (2, 384, 1), (196, 1, 1), (49, 384, 32), (196, 384, 128),
     (257, 1024, 128), (33, 31, 1), (32, 32, 2), (3, 4096, 2), (300, 512, 128)],
)  # fmt: skip
def test_lane_count(tokens: int, channels: int, lanes: int) -> None:
    """Part of the format: states are stored for so many."""
    assert rans.lane_count(tokens, channels) == lanes


def test_ranges__every_slot_is_that_of_its_code() -> None:
    codes = RANGES.code_at.reshape(TABLES, TOTAL)
    frequency = RANGES.frequency.reshape(TABLES, -1)
    start = RANGES.start.reshape(TABLES, -1)
    for table in range(TABLES):
        counts = torch.bincount(codes[table].long(), minlength=2 * MOST + 1)
        assert torch.equal(counts.int(), frequency[table])
        there = [int(place) for place in start[table][frequency[table] > 0]]
        assert there == sorted(there)
        assert all(codes[table][before] < codes[table][after] for before, after in pairwise(there))


def golden_rows() -> tuple[Tensor, Tensor]:
    """By arithmetic alone, so that no library's random numbers are part of it."""
    place = np.arange(2 * 77 * 23).reshape(2, 77, 23)
    tables = (np.arange(2 * 23).reshape(2, 23) * 7) % TABLES
    reach = np.maximum(1, 2.0 ** ((tables - 13) / 4)).astype(int)[:, None]
    codes = (place * 7919 % 104729) % (2 * reach + 1) - reach
    return torch.from_numpy(np.where(tables[:, None] > 0, codes, 0)), torch.from_numpy(tables)


def test_encode__golden_stream() -> None:
    codes, tables = golden_rows()
    assert rans.lane_count(77, 23) == 2
    stream = encoded(codes, tables)
    digest = hashlib.sha256()
    for row, length in enumerate(stream.lengths):
        digest.update(stream.states[row].numpy().astype("<i4").tobytes())
        digest.update(stream.words[row, :length].numpy().astype("<u2").tobytes())
    assert digest.hexdigest() == GOLDEN
