import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infra.codec import uniform

LARGEST = 65504.0
LEAST_NORMAL = 2.0**-14
"""Below it a scale in float16 has fewer bits than eleven."""

Floats = npt.NDArray[np.float32]


def drawn(rows: int, tokens: int, channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, channels, generator=generator) * 3


def twin(tokens: Floats, bits: int, clip: bool) -> tuple[npt.NDArray[np.uint8], list[int], Floats]:
    """The same by numpy, a token after the other: bytes, values beyond of each row, decoded."""
    most = 2 ** (bits - 1) - 1
    rows, beyond = [], []
    decoded = np.zeros_like(tokens)
    for index, row in enumerate(tokens):
        beyond.append(0)
        packed, scales = b"", b""
        for place, token in enumerate(row):
            largest = np.abs(token).max()
            step = largest / np.float32(most)
            if clip and largest > 0:
                whole = np.rint(token / np.float32(largest / np.float32(2**16))).astype(int)
                mean = sum(int(value) ** 2 for value in whole) / len(token)
                spread = np.float32(np.sqrt(mean) * np.float64(largest / np.float32(2**16)))
                step = min(step, np.float32(spread * np.float32(uniform.BEST_STEP)))
            scale = np.float16(step)
            if not clip and np.float32(scale) * np.float32(most + 0.5) < largest:
                scale = np.nextafter(scale, np.float16(np.inf))
            step = np.float32(scale)
            levels = np.rint(token / step) if step > 0 else np.zeros_like(token)
            codes = np.clip(levels, -most, most).astype(np.int8)
            beyond[-1] += int((levels != codes).sum())
            decoded[index, place] = codes.astype(np.float32) * step
            if bits == 4:
                half = (len(codes) + 1) // 2
                padded = np.zeros(2 * half, np.int8)
                padded[: len(codes)] = codes
                nibbles = (padded + 8).astype(np.uint8)
                packed += (nibbles[:half] | (nibbles[half:] << 4)).tobytes()
            else:
                packed += codes.tobytes()
            scales += scale.astype("<f2").tobytes()
        rows.append(packed + b"\0" * (len(packed) % 2) + scales)
    joined = np.frombuffer(b"".join(rows), np.uint8)
    return joined.reshape(len(tokens), 1, -1), beyond, decoded


@pytest.mark.parametrize(("bits", "clip"), [(8, False), (4, False), (4, True)])
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 33, 64])
@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_encode__bytes_are_as_the_formula_says(
    bits: int, clip: bool, channels: int, count: int
) -> None:
    tokens = drawn(3, count, channels, seed=channels)
    tokens[1, count // 2] = 0.0
    tokens[1, -1, 0] = 300.0  # one large value, which `clip` lets go
    tokens[2] *= 1e-3
    stored, beyond = uniform.encode(tokens, bits, clip)
    expected, saturated, decoded = twin(tokens.numpy(), bits, clip)
    np.testing.assert_array_equal(stored.numpy(), expected)
    assert beyond.tolist() == saturated
    assert stored.shape == (3, 1, uniform.row_bytes(count, channels, bits))
    found = uniform.decode(stored, count, channels, bits)
    np.testing.assert_array_equal(found.numpy(), decoded)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=9),
    st.sampled_from([(8, False), (4, False), (4, True)]),
)
def test_encode__any_token(token: list[float], form: tuple[int, bool]) -> None:
    bits, clip = form
    tokens = torch.tensor(token).expand(1, 2, -1)
    stored, beyond = uniform.encode(tokens, bits, clip)
    expected, saturated, _ = twin(tokens.numpy(), bits, clip)
    np.testing.assert_array_equal(stored.numpy(), expected)
    assert beyond.tolist() == saturated
    assert uniform.decode(stored, 2, len(token), bits).isfinite().all()


def test_encode__golden_bytes_of_int8() -> None:
    tokens = torch.tensor([[[127.0, -127.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0, 254.0]]])
    stored, _ = uniform.encode(tokens, 8, clip=False)
    codes = [0x7F, 0x81, 0x00, 0x01, 0xFF, 0x00, 0x00, 0x00, 0x00, 0x7F]
    assert stored.tolist() == [[[*codes, 0x00, 0x3C, 0x00, 0x40]]]
    odd, _ = uniform.encode(tokens[:, :1], 8, clip=False)
    assert odd.tolist() == [[[*codes[:5], 0x00, 0x00, 0x3C]]]


def test_encode__golden_bytes_of_int4() -> None:
    """Low halves hold the first half of the channels; the place left over holds code 0."""
    tokens = torch.tensor([[[7.0, -7.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0, 14.0]]])
    stored, _ = uniform.encode(tokens, 4, clip=False)
    codes = [0x9F, 0x71, 0x88, 0x88, 0xF8, 0x88]
    assert stored.tolist() == [[[*codes, 0x00, 0x3C, 0x00, 0x40]]]
    odd, _ = uniform.encode(tokens[:, :1], 4, clip=False)
    assert odd.tolist() == [[[*codes[:3], 0x00, 0x00, 0x3C]]]


@pytest.mark.parametrize(
    ("tokens", "channels", "bits", "size"),
    [(1, 1, 8, 4), (1, 1, 4, 4), (2, 1, 4, 6), (3, 7, 8, 28), (3, 7, 4, 18), (256, 384, 4, 49664)],
)
def test_row_bytes(tokens: int, channels: int, bits: int, size: int) -> None:
    assert uniform.row_bytes(tokens, channels, bits) == size


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("count", "channels"), [(1, 1), (1, 5), (3, 1), (3, 7), (9, 16), (16, 33)])
@pytest.mark.parametrize("apart", [0, 4, 6])
def test_parts__are_views_of_what_is_stored(
    bits: int, count: int, channels: int, apart: int
) -> None:
    """Of rows that follow one another, and of those between which a checksum lies."""
    stored, _ = uniform.encode(drawn(4, count, channels), bits, clip=False)
    stored = torch.nn.functional.pad(stored, (0, apart))[..., : stored.shape[-1]][1:]
    codes, scales = uniform.parts(stored, count, channels, bits)
    assert codes.shape[:2] == scales.shape == (3, count)
    assert (codes.dtype, scales.dtype) == (torch.uint8, torch.float16)
    for part in (codes, scales):
        assert part.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
    assert codes.data_ptr() == stored.data_ptr()
    ends = [row[0, -1:].data_ptr() for row in stored]
    assert [row[-1:].data_ptr() + 1 for row in scales] == ends
    signed = codes.view(torch.int8).float()
    if bits == 4:
        signed = torch.cat([codes & 15, codes >> 4], dim=-1)[..., :channels].float() - 8
    decoded = uniform.decode(stored, count, channels, bits)
    assert torch.equal(signed * scales[..., None].float(), decoded)
    # Written through the view, read by the other way.
    scales *= 2
    assert torch.equal(uniform.decode(stored, count, channels, bits), 2 * decoded)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, -0.0])
def test_encode__zeros(bits: int, value: float) -> None:
    stored, beyond = uniform.encode(torch.full((2, 3, 5), value), bits, clip=bits == 4)
    assert beyond.tolist() == [0, 0]
    assert not uniform.decode(stored, 3, 5, bits).any()
    # A scale of -0 would be other bytes for the same token.
    assert torch.equal(stored, uniform.encode(torch.zeros(2, 3, 5), bits, clip=bits == 4)[0])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.3, 1e3, LARGEST, -LARGEST])
def test_encode__constant_tokens(bits: int, value: float) -> None:
    tokens = torch.full((1, 2, 6), value)
    stored, beyond = uniform.encode(tokens, bits, clip=False)
    assert beyond.tolist() == [0]
    torch.testing.assert_close(uniform.decode(stored, 2, 6, bits), tokens, rtol=2.0**-10, atol=0.0)


@pytest.mark.parametrize("bits", [8, 4])
def test_encode__tokens_that_float16_has_no_scale_for_are_zeros(bits: int) -> None:
    tokens = torch.full((1, 1, 4), 2.0**-26)
    stored, beyond = uniform.encode(tokens, bits, clip=False)
    assert beyond.tolist() == [0]
    assert not uniform.decode(stored, 1, 4, bits).any()


@settings(max_examples=60)
@given(
    st.floats(LEAST_NORMAL, 512, width=32),
    st.integers(0, 2**32 - 1),
    st.sampled_from([8, 4]),
)
def test_encode__without_clipping_no_value_saturates(scale: float, seed: int, bits: int) -> None:
    """And none is off by more than half a step, and what float16 rounds of the scale."""
    most = 2 ** (bits - 1) - 1
    random = np.random.default_rng(seed)
    token = random.uniform(-1, 1, 40).astype(np.float32)
    token[0] = 1.0
    tokens = torch.from_numpy(token * np.float32(scale * most))[None, None]
    stored, beyond = uniform.encode(tokens, bits, clip=False)
    assert beyond.tolist() == [0]
    error = (uniform.decode(stored, 1, 40, bits) - tokens).abs().max()
    assert error <= scale * (0.5 + most * 2.0**-11) * (1 + 1e-5)


def test_encode__int4_counts_the_values_that_it_clips() -> None:
    """The best step for 15 levels reaches 7.5 x 0.335 = 2.5 standard deviations."""
    tokens = drawn(2, 50, 256)
    stored, beyond = uniform.encode(tokens, 4, clip=True)
    step = uniform.parts(stored, 50, 256, 4)[1].float()[..., None]
    assert beyond.tolist() == ((tokens.abs() / step).round() > 7).sum((1, 2)).tolist()
    # About 1.2 % of normally distributed values lie beyond.
    assert 0.008 < beyond.sum() / tokens.numel() < 0.017
    within = tokens.abs() < 7 * step
    error = (uniform.decode(stored, 50, 256, 4) - tokens).abs()
    assert (error / step)[within].max() <= 0.5 + 1e-5


def test_encode__a_token_knows_nothing_of_the_others() -> None:
    tokens = drawn(3, 30, 33)
    stored, _ = uniform.encode(tokens, 4, clip=True)
    for row in range(3):
        assert torch.equal(uniform.encode(tokens[row : row + 1], 4, clip=True)[0][0], stored[row])
    codes, scales = uniform.parts(stored, 30, 33, 4)
    shuffled = uniform.parts(uniform.encode(tokens.flip(1), 4, clip=True)[0], 30, 33, 4)
    assert torch.equal(shuffled[0], codes.flip(1))
    assert torch.equal(shuffled[1], scales.flip(1))
    # Nor of where its channels stand: the squares' sum must not depend on their order.
    turned, _ = uniform.encode(tokens.flip(2), 4, clip=True)
    assert torch.equal(uniform.parts(turned, 30, 33, 4)[1], scales)


@pytest.mark.parametrize("bits", [8, 4])
def test_decode__one_token_of_an_odd_number_of_bytes(bits: int) -> None:
    tokens = torch.ones(1, 1, 5)
    stored, _ = uniform.encode(tokens, bits, clip=False)
    torch.testing.assert_close(uniform.decode(stored, 1, 5, bits), tokens, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("exponent", [-14, -16, -18])
def test_encode__int8_of_small_tokens_does_not_saturate(exponent: int) -> None:
    """Of standardised tokens the usual ones are as large as 1; yet it is said of none."""
    _, beyond = uniform.encode(drawn(1, 50, 64) * 2.0**exponent, 8, clip=False)
    assert beyond.tolist() == [0]
