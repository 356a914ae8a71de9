import pickle
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.codec.codec import TokenCodec, open_codec
from infra.store import MemoryStore
from pipeline.encode import LARGEST, encode
from pipeline.moments import axes_parquet
from schemas.codec import choice_of
from schemas.errors import DamageError
from schemas.measured import Affine
from schemas.records import ObjectRecord
from schemas.sealed import digest
from tests.unit.infra.codec.spectra import Measured, cosine, drawn, standardised

CHANNELS, TOKENS = 17, 16
LEAST_COSINE = {
    "fp16": 0.999999,
    "int8": 0.9999,
    "int8.hadamard": 0.9999,
    "int8.pca": 0.9999,
    "int4": 0.985,
    "int4.hadamard": 0.985,
    "int4.pca": 0.98,
    "variable6": 0.999,
    "variable6.hadamard": 0.999,
    "variable6.pca": 0.999,
    "variable4.pca": 0.99,
    "variable1.5.pca": 0.7,
}
every_codec = pytest.mark.parametrize("label", list(LEAST_COSINE))


@cache
def measured() -> Measured:
    return Measured.of(drawn("pink", 64, TOKENS, CHANNELS, 0))


@cache
def codec(label: str) -> TokenCodec:
    return fresh(label)


def fresh(label: str) -> TokenCodec:
    return measured().codec(choice_of(label))


@cache
def tokens() -> Tensor:
    return standardised(codec("fp16"), drawn("pink", 4, TOKENS, CHANNELS, 1))


@every_codec
def test_encode__is_of_the_form_that_shards_are_told(label: str) -> None:
    for count in (2, TOKENS):
        coded = codec(label).encode(tokens()[:, :count])
        form = codec(label).row_form(count)
        assert coded.stored.numpy().dtype == np.dtype(form.dtype)
        assert coded.stored.shape == (4, form.height, form.width)
        assert coded.stored[0].numpy().nbytes == form.bytes
        assert coded.decoded.shape == coded.exact.shape == (4, count, CHANNELS)
        assert coded.saturated.shape == (4,)


@every_codec
def test_decode__of_encode_is_near(label: str) -> None:
    coded = codec(label).encode(tokens())
    found = codec(label).decode(coded.stored, TOKENS)
    assert found.dtype == torch.float32
    assert cosine(tokens(), found) > LEAST_COSINE[label]
    # What encoding says of its own error is the error, in whichever basis.
    assert torch.equal(coded.decoded, codec(label).rotated(coded.stored, TOKENS))
    said = (coded.decoded - coded.exact).norm()
    assert said == pytest.approx(float((found - tokens()).norm()), rel=1e-3, abs=1e-4)


@every_codec
def test_codec__travels(label: str) -> None:
    """To Ray's workers and to those of a loader, used or not: the same bytes, the same bits."""
    used = codec(label)
    coded = used.encode(tokens())
    for kept in (used, fresh(label)):
        copy = pickle.loads(pickle.dumps(kept))
        assert copy.record == used.record
        assert copy.row_form(TOKENS) == used.row_form(TOKENS)
        assert torch.equal(copy.encode(tokens()).stored, coded.stored)
        assert torch.equal(copy.rotated(coded.stored, TOKENS), coded.decoded)
        decoded = copy.decode(coded.stored, TOKENS)
        assert torch.equal(decoded, used.decode(coded.stored, TOKENS))


@every_codec
def test_encode__rows_know_nothing_of_one_another(label: str) -> None:
    stored = codec(label).encode(tokens()).stored
    for row in range(4):
        assert torch.equal(codec(label).encode(tokens()[row : row + 1]).stored[0], stored[row])
    order = [2, 0, 3, 1]
    assert torch.equal(codec(label).encode(tokens()[order]).stored, stored[order])


@every_codec
def test_decode__a_row_of_a_batch(label: str) -> None:
    """Views into a larger batch, as a reader has them, decode to the same bits."""
    stored = codec(label).encode(tokens()).stored
    whole = codec(label).rotated(stored, TOKENS)
    for row in range(4):
        assert torch.equal(codec(label).rotated(stored[row : row + 1], TOKENS)[0], whole[row])
    assert torch.equal(codec(label).rotated(stored[1:3], TOKENS), whole[1:3])


def test_encode__fp16_is_the_tokens_in_halves() -> None:
    exact = tokens().clone()
    exact[0, 0, :4] = torch.tensor([LARGEST, -LARGEST, 6e-8, -0.0])
    coded = codec("fp16").encode(exact)
    assert coded.stored.numpy().tobytes() == exact.numpy().astype(np.float16).tobytes()
    assert torch.equal(codec("fp16").decode(coded.stored, TOKENS), exact.half().float())
    assert not coded.saturated.any()


@every_codec
def test_encode__zeros_and_what_is_nearly_zero(label: str) -> None:
    exact = tokens().clone()
    exact[0] = 0.0
    exact[1, :3] = -0.0
    exact[2, :3] = 6e-8
    exact[3, :, 5] = 0.0  # a constant channel is one of zeros, standardised
    decoded = codec(label).decode(codec(label).encode(exact).stored, TOKENS)
    assert decoded.isfinite().all()
    assert not decoded[0].any()
    assert not decoded[1, :3].any()
    assert decoded[2, :3].abs().max() < 1e-5
    assert cosine(exact[3], decoded[3]) > LEAST_COSINE[label] - 0.02


def test_open_codec__reads_its_axes() -> None:
    data = axes_parquet(measured().principal, measured().principal[::-1].copy())
    store = MemoryStore()
    store.create("axes", data)
    axes = ObjectRecord(key="axes", size=len(data), sha256=digest(data))
    for label in ("int8.pca", "variable4.pca"):
        record = codec(label).record.model_copy(update={"axes": axes})
        opened = open_codec(store, record)
        assert torch.equal(opened.encode(tokens()).stored, codec(label).encode(tokens()).stored)


def test_open_codec__refuses_axes_that_are_not_those() -> None:
    data = axes_parquet(measured().principal, measured().principal)
    axes = ObjectRecord(key="axes", size=len(data), sha256=digest(data))
    record = codec("int8.pca").record.model_copy(update={"axes": axes})
    with pytest.raises(DamageError):
        open_codec(MemoryStore(), record)
    store = MemoryStore()
    store.create("axes", data[:-1] + b"?")
    with pytest.raises(DamageError):
        open_codec(store, record)


def plain(label: str) -> TokenCodec:
    """A codec that standardises nothing, so that a test knows to the bit what is coded."""
    found = codec(label)
    even = Affine(mean=(0.0,) * CHANNELS, std=(1.0,) * CHANNELS)
    record = found.record.model_copy(update={"tokens": even, "cls": even})
    return TokenCodec(record, found._axes)


@every_codec
def test_pipeline_encode__a_value_beyond_float16_marks_its_row_and_no_other(label: str) -> None:
    """One rule for all codecs, so that the same rows are bad in all sets."""
    good = encode(plain(label), None, tokens())
    assert good.finite.all()
    beyond = (float("nan"), float("inf"), -float("inf"), 65520.0, -1e30)
    bad = tokens()[:1].repeat(len(beyond), 1, 1)
    bad[:, 7, 3] = torch.tensor(beyond)
    found = encode(plain(label), None, torch.cat([bad, tokens()]))
    assert found.finite.tolist() == [False] * len(beyond) + [True] * 4
    assert found.tokens[len(beyond) :].tobytes() == good.tokens.tobytes()
    for name in ("cosine", "relative_rms", "saturated"):
        np.testing.assert_array_equal(getattr(found, name)[len(beyond) :], getattr(good, name))


@every_codec
def test_pipeline_encode__float16s_largest_is_a_good_value(label: str) -> None:
    raw = tokens().clone()
    raw[1, 4] = LARGEST
    raw[1, 5] = -LARGEST
    found = encode(plain(label), None, raw)
    assert found.finite.all()
    decoded = plain(label).decode(torch.from_numpy(found.tokens), TOKENS)
    assert decoded.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 65520.0])
def test_pipeline_encode__a_cls_vector_beyond_float16_marks_its_row(value: float) -> None:
    vectors = torch.zeros(4, CHANNELS)
    vectors[1, 0] = value
    found = encode(plain("variable4.pca"), vectors, tokens())
    assert found.finite.tolist() == [True, False, True, True]
    assert np.array_equal(found.tokens, encode(plain("variable4.pca"), None, tokens()).tokens)


@pytest.mark.gpu
@every_codec
def test_encode__on_a_gpu_gives_the_same_bytes(label: str) -> None:
    here, there = (codec(label).encode(each) for each in (tokens(), tokens().cuda()))
    assert torch.equal(there.stored.cpu(), here.stored)
    assert torch.equal(there.saturated.cpu(), here.saturated)


@pytest.mark.gpu
@every_codec
def test_decode__on_a_gpu_gives_the_same_values(label: str) -> None:
    stored = codec(label).encode(tokens()).stored
    rotated, decoded = (
        method(stored.cuda(), TOKENS).cpu()
        for method in (codec(label).rotated, codec(label).decode)
    )
    assert torch.equal(rotated, codec(label).rotated(stored, TOKENS))
    torch.testing.assert_close(decoded, codec(label).decode(stored, TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@every_codec
def test_encode__on_a_gpu_of_what_is_at_the_edges(label: str) -> None:
    """Zeros of both signs, tokens of one value, one value alone, the largest and the smallest."""
    edges = torch.zeros(1, TOKENS, CHANNELS)
    edges[0, 0] = -0.0
    edges[0, 1], edges[0, 2], edges[0, 3] = 1.0, LARGEST, 6e-8
    edges[0, 4, 5], edges[0, 5, 5], edges[0, 6] = LARGEST, 1e-30, tokens()[0, 0]
    here, there = (codec(label).encode(each) for each in (edges, edges.cuda()))
    assert torch.equal(there.stored.cpu(), here.stored)
