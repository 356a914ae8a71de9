import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.codec import rans
from infra.codec.variable import Variable
from schemas.codec import SPREAD_PER_OCTAVE
from schemas.frequencies import MOST, PER_OCTAVE, STEPS_BELOW, TABLES, normal_tables
from tests.unit.infra.codec import streams

LARGEST = 65504.0
SHAPES = [(1, 1), (1, 384), (2, 3), (2, 384), (196, 1), (196, 384), (257, 7), (257, 33)]
"""Tokens and channels."""


def falling(channels: int) -> tuple[int, ...]:
    """Spreads as 1/f has them, of tokens of unit spread."""
    variances = 1 / np.arange(1, channels + 1)
    octaves = np.log2(variances / variances.mean()) / 2
    return tuple(np.rint(SPREAD_PER_OCTAVE * octaves).astype(int).tolist())


@cache
def variable(bits: float, channels: int) -> Variable:
    return Variable.of(bits, falling(channels), normal_tables(), "cpu")


def drawn(rows: int, tokens: int, channels: int, seed: int = 0) -> Tensor:
    """As the spreads say, float64."""
    noise = torch.randn(rows, tokens, channels, generator=torch.Generator().manual_seed(seed))
    return noise.double() * torch.tensor(falling(channels)).div(SPREAD_PER_OCTAVE).exp2()


class Parts:
    """A row's bytes, taken apart as the module's description says, in plain Python."""

    def __init__(self, codec: Variable, row: bytes, tokens: int) -> None:
        channels = len(codec.steps.spreads)
        lanes = rans.lane_count(tokens, channels)
        (self.step,) = struct.unpack_from("<i", row, 0)
        self.states = struct.unpack_from(f"<{lanes}i", row, 4)
        self.scales = row[4 + 4 * lanes :][:tokens]
        head = 4 + 4 * lanes + tokens + tokens % 2
        assert not any(row[4 + 4 * lanes + tokens : head])
        self.words = [word for (word,) in struct.iter_unpack("<H", row[head:])]
        # At least a sixteenth of the channel's spread.
        spreads = codec.steps.spreads.tolist()
        self.exponents = [max(self.step, spread - 4 * 64) for spread in spreads]
        self.tables = [
            min(max(round_half_up((spread - step) / 16) + 1 + STEPS_BELOW, 0), TABLES - 1)
            for spread, step in zip(spreads, self.exponents)
        ]

    @property
    def factors(self) -> np.ndarray:
        """float64 [tokens, channels]: what a code is multiplied by."""
        steps = np.exp2(np.array(self.exponents) / SPREAD_PER_OCTAVE)
        scales = np.exp2((np.array(list(self.scales), float) - 128) / 8)
        scales[np.array(list(self.scales)) == 0] = 0
        return scales[:, None] * steps


def round_half_up(value: float) -> int:
    return int(np.floor(value + 0.5))


def parts(codec: Variable, stored: Tensor, tokens: int) -> list[Parts]:
    return [Parts(codec, row.numpy().tobytes(), tokens) for row in stored[:, 0]]


def check(codec: Variable, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Encode, and see that nothing was clipped: whatever is coded is within a step of what it was.

    Returns:
        What is decoded, and how many tokens were made coarser.
    """
    tokens = exact.shape[1]
    stored, coarse = codec.encode(exact)
    assert stored.dtype == torch.uint8
    assert stored.shape == (len(exact), 1, codec.row_bytes(tokens))
    decoded = codec.decode(stored, tokens)
    assert decoded.dtype == torch.float32
    assert decoded.shape == exact.shape
    assert decoded.isfinite().all()
    for row, found in enumerate(parts(codec, stored, tokens)):
        coded = np.array(found.tables) > 0
        error = np.abs(decoded[row].double().numpy() - exact[row].numpy())
        # Rounded towards zero by at most a tenth more than to the next.
        limit = 0.6 * found.factors * (1 + 1e-4)
        there = np.array(list(found.scales)) > 0
        assert (error <= limit)[there][:, coded].all()
        assert not decoded[row].numpy()[:, ~coded].any()
    return decoded, coarse


def distortion(exact: Tensor, decoded: Tensor) -> float:
    return float((exact - decoded).square().sum() / exact.square().sum())


@pytest.mark.parametrize(("tokens", "channels"), SHAPES)
@pytest.mark.parametrize("bits", [1.5, 3, 6])
def test_encode__rows_of_any_shape(tokens: int, channels: int, bits: float) -> None:
    check(variable(bits, channels), drawn(2, tokens, channels))


@pytest.mark.parametrize("bits", [1.5, 2, 2.7, 4, 6])
@pytest.mark.parametrize(("tokens", "channels"), [(49, 384), (196, 384), (256, 1024), (196, 100)])
def test_row_bytes__are_the_bits_asked_for(bits: float, tokens: int, channels: int) -> None:
    """With the head and all: at most the bits, and less than four bytes below them."""
    size = variable(bits, channels).row_bytes(tokens)
    assert size % 4 == 0
    assert 0 <= bits * tokens * channels / 8 - size < 4


@pytest.mark.parametrize(("tokens", "channels"), [(1, 1), (257, 1), (2, 3), (1, 7)])
def test_row_bytes__of_small_rows_have_room_for_the_head(tokens: int, channels: int) -> None:
    lanes = rans.lane_count(tokens, channels)
    size = variable(1.5, channels).row_bytes(tokens)
    assert size % 4 == 0
    assert size >= 4 + 4 * lanes + tokens + 2 * lanes


def test_encode__uses_its_bytes() -> None:
    """What a row leaves over is about what a step is worth: 1/64 of a bit a channel."""
    codec = variable(3, 384)
    stored, _ = codec.encode(drawn(3, 196, 384))
    for found in parts(codec, stored, 196):
        used = max(place for place, word in enumerate(found.words) if word) + 1
        assert (len(found.words) - used) * 16 < 1.5 / SPREAD_PER_OCTAVE * 196 * 384


def test_encode__more_bits_less_error() -> None:
    exact = drawn(2, 196, 96)
    errors = []
    for bits in (1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5):
        codec = variable(bits, 96)
        errors.append(distortion(exact, codec.decode(codec.encode(exact)[0], 196)))
    assert all(more > less for more, less in pairwise(errors))
    # A bit is worth 6 dB, or a factor of 4, where every channel is coded.
    assert 3.4 < errors[-3] / errors[-1] < 4.6


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_decode__is_what_the_description_says(bits: float) -> None:
    """Taken apart and decoded by plain Python, to the bit."""
    codec = variable(bits, 24)
    exact = drawn(2, 51, 24)
    exact[0, 7] = 0.0
    exact[1, 3] *= 1e4
    stored, _ = codec.encode(exact)
    decoded = codec.decode(stored, 51).numpy()
    for row, found in enumerate(parts(codec, stored, 51)):
        used = found.words
        while True:  # zeros after the last word may be words or not
            try:
                codes = streams.decoded(found.states, used, found.tables, normal_tables(), 51)
                break
            except AssertionError:
                assert used.pop() == 0
        scales = np.exp2((np.array(list(found.scales), float) - 128) / 8).astype(np.float32)
        scales[np.array(list(found.scales)) == 0] = 0
        steps = np.exp2(np.array(found.exponents) / SPREAD_PER_OCTAVE).astype(np.float32)
        expected = (scales[:, None] * steps) * np.array(codes, np.float32)
        np.testing.assert_array_equal(decoded[row], expected)


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("channels", [7, 96])
def test_encode__one_value_ten_thousand_times_the_others(bits: float, channels: int) -> None:
    """In a channel that is coded it keeps its size; its token's others may be lost, but no other
    token's."""
    codec = variable(bits, channels)
    exact = drawn(1, 196, channels)
    plain, _ = check(codec, exact)
    wild = exact.clone()
    wild[0, 11, 1] = 1e4 * exact.abs().mean()
    decoded, _ = check(codec, wild)
    near = decoded[0, 11, 1] / wild[0, 11, 1]
    # Within 0.6 of a step, which is a sixth of a token of seven channels in four bits.
    assert near == pytest.approx(1, abs=0.15)
    others = torch.arange(196) != 11
    before = distortion(exact[:, others], plain[:, others])
    assert distortion(wild[:, others], decoded[:, others]) < 1.2 * before


def test_encode__tokens_that_lie_beyond_the_last_code_are_counted() -> None:
    """A token along the narrowest channel alone is as many steps long as unit spread has."""
    codec = variable(6, 64)
    exact = drawn(2, 196, 64)
    exact[1, [3, 8, 9]] = 0.0
    exact[1, [3, 8, 9], 63] = 5.0
    decoded, coarse = check(codec, exact)
    assert coarse.tolist() == [0, 3]
    assert decoded[1, 3, 63] == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize(("tokens", "channels"), SHAPES)
@pytest.mark.parametrize("bits", [1.5, 4, 6])
def test_encode__zeros(tokens: int, channels: int, bits: float) -> None:
    codec = variable(bits, channels)
    decoded, coarse = check(codec, torch.zeros(2, tokens, channels, dtype=torch.float64))
    assert not decoded.any()
    assert coarse.tolist() == [0, 0]


def test_encode__a_token_of_zeros_among_others_is_exact() -> None:
    exact = drawn(1, 30, 48)
    exact[0, [0, 17]] = 0.0
    decoded, _ = check(variable(3, 48), exact)
    assert not decoded[0, [0, 17]].any()


def test_encode__minus_zero_is_zero() -> None:
    exact = drawn(1, 30, 48)
    exact[0, 4] = 0.0
    exact[0, 5, 10:] = 0.0
    signed = torch.where(exact == 0, -0.0, exact)
    codec = variable(3, 48)
    assert torch.equal(codec.encode(exact)[0], codec.encode(signed)[0])


@pytest.mark.parametrize("value", [1.0, -3.0, LARGEST, -LARGEST, 6e-8, 1e-3])
@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("channels", [1, 3, 33])
def test_encode__constant_tokens(value: float, bits: float, channels: int) -> None:
    check(variable(bits, channels), torch.full((1, 49, channels), value, dtype=torch.float64))


def test_encode__tokens_of_every_length_keep_their_direction() -> None:
    """From the smallest that has a scale to float16's largest, in one row."""
    exact = drawn(1, 60, 96)
    exact *= torch.linspace(-14, 15, 60).exp2().double()[:, None]
    decoded, coarse = check(variable(4, 96), exact)
    cosine = torch.nn.functional.cosine_similarity(exact, decoded.double(), dim=-1)
    assert cosine.min() > 0.99
    assert coarse.tolist() == [0]


def test_encode__tokens_too_small_for_a_scale_become_zeros_or_near() -> None:
    """Denormals of float16: a share of 2^-24 of what tokens usually are."""
    exact = drawn(1, 60, 96)
    exact[0, 5] *= 6e-8
    decoded, _ = check(variable(4, 96), exact)
    assert decoded[0, 5].abs().max() < 1e-5


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_encode__float16s_largest(bits: float) -> None:
    """As a token of it in every channel comes out of a rotation: all of it in one."""
    exact = drawn(1, 49, 48)
    exact[0, 3] = 0.0
    exact[0, 3, 0] = LARGEST * 48**0.5
    exact[0, 4] = LARGEST
    decoded, _ = check(variable(bits, 48), exact)
    assert decoded[0, 3, 0] == pytest.approx(float(exact[0, 3, 0]), rel=0.1)


def strange_rows() -> Tensor:
    """Rows that cost much and little, whose steps are far apart, in one batch."""
    exact = drawn(6, 65, 48)
    exact[1] = 0.0
    exact[2, 20] *= 1e4
    exact[2, 21, 47] = 1e4
    exact[3] = 2.5
    exact[4, :, 1:] = 0.0
    return exact


@pytest.mark.parametrize("bits", [1.5, 4, 6])
def test_encode__rows_know_nothing_of_one_another(bits: float) -> None:
    """The same bytes alone, in any company and in any order."""
    codec, exact = variable(bits, 48), strange_rows()
    stored, coarse = codec.encode(exact)
    for row in range(len(exact)):
        alone, count = codec.encode(exact[row : row + 1])
        assert torch.equal(alone[0], stored[row])
        assert count[0] == coarse[row]
    for order in ([5, 4, 3, 2, 1, 0], [2, 2, 0], [1, 5]):
        again, counts = codec.encode(exact[order])
        assert torch.equal(again, stored[order])
        assert torch.equal(counts, coarse[order])


@pytest.mark.parametrize("bits", [2.5, 6])
def test_decode__rows_know_nothing_of_one_another(bits: float) -> None:
    codec, exact = variable(bits, 48), strange_rows()
    stored, _ = codec.encode(exact)
    decoded = codec.decode(stored, 65)
    for row in range(len(exact)):
        assert torch.equal(codec.decode(stored[row : row + 1], 65)[0], decoded[row])
    assert torch.equal(codec.decode(stored.flip(0), 65), decoded.flip(0))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_encode__threads_change_no_byte() -> None:
    """Enough values for torch to divide its sums among threads."""
    codec, exact = variable(3, 384), drawn(2, 196, 384)
    found = []
    for count in (1, 2):
        with threads(count):
            stored, _ = codec.encode(exact)
            found.append((stored, codec.decode(stored, 196)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_encode__leaves_what_it_was_given() -> None:
    exact = drawn(1, 30, 20)
    kept = exact.clone()
    stored, _ = variable(4, 20).encode(exact)
    bytes_before = stored.clone()
    variable(4, 20).decode(stored, 30)
    assert torch.equal(exact, kept)
    assert torch.equal(stored, bytes_before)


def half_dead(bits: float) -> tuple[Variable, Tensor]:
    """A codec whose calibration saw the first half of the channels never change, and such rows."""
    spreads = (-319,) * 32 + (SPREAD_PER_OCTAVE // 2,) * 32
    exact = torch.randn(2, 49, 64, generator=torch.Generator().manual_seed(0)).double()
    exact[..., :32] = 0.0
    return Variable.of(bits, spreads, normal_tables(), "cpu"), exact


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_encode__a_channel_that_calibration_never_saw_move(bits: float) -> None:
    """Other tokens are as they were; the one may have lost all but that channel."""
    codec, exact = half_dead(bits)
    plain, _ = check(codec, exact)
    exact[0, 9, 0] = 1.0
    decoded, _ = check(codec, exact)
    others = torch.arange(49) != 9
    before = distortion(exact[:, others], plain[:, others])
    assert distortion(exact[:, others], decoded[:, others]) < 1.2 * before


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_encode__channels_that_calibration_never_saw_move_in_every_token(bits: float) -> None:
    codec, exact = half_dead(bits)
    check(codec, exact.flip(2) + exact)


def test_tables__constants_of_the_description() -> None:
    """`Parts` above takes them for granted."""
    assert (SPREAD_PER_OCTAVE, PER_OCTAVE, MOST) == (64, 4, 127)
