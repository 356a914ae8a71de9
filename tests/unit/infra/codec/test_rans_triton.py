"""The GPU's decoder: the same codes in Triton's interpreter, and what it compiles to."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.aot import Build, compile_ahead, run

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux alone")

INTERPRETED = """
import torch
from infra.codec import rans, rans_triton
from schemas.frequencies import STEPS_BELOW, TABLES, normal_tables

ranges = rans.Ranges.of(normal_tables(), "cpu")
# One lane and several; a last stretch in which some lanes have no token.
for rows, tokens, channels in ((3, 5, 7), (2, 1, 9), (2, 37, 40)):
    generator = torch.Generator().manual_seed(tokens)
    tables = torch.randint(0, TABLES, (rows, channels), generator=generator)
    spread = torch.where(tables > 0, 2.0 ** ((tables - 1 - STEPS_BELOW) / 4), 0.0)
    values = torch.randn((rows, tokens, channels), generator=generator) * spread[:, None]
    codes = values.round().clamp(-127, 127).int()
    states, words, lengths = rans.encode(codes, tables, ranges)
    places = words.shape[1] - lengths[:, None] + torch.arange(int(lengths.max()))
    first = words.gather(1, places.clamp_max(words.shape[1] - 1))
    found = [decode(states, first, tables, ranges, tokens) for decode in
             (rans.decode, rans_triton.decode)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1].int(), codes)
print("equal")
"""
MOST_REGISTERS = 64


def build_of(capability: int, lanes: int) -> Build:
    return Build(
        "infra.codec.rans_triton:_decode",
        capability,
        warps=max(1, lanes // 32),
        types={"codes": "*i8", "code_at": "*i16"}
        | dict.fromkeys(("states", "words", "tables", "frequency", "start"), "*i32"),
        constants={"LANES": lanes},
    )


def test_decode__interpreted_gives_the_same_codes() -> None:
    assert run("-c", INTERPRETED, TRITON_INTERPRET="1").endswith("equal\n")


def test_decode__compiles_without_spills(tmp_path: Path) -> None:
    builds = [build_of(capability, lanes) for capability in (80, 90) for lanes in (1, 16, 128)]
    for found in compile_ahead(builds, tmp_path / "triton"):
        assert found.registers <= MOST_REGISTERS
        assert (found.stack, found.local) == (0, 0)
        assert ".f64" not in found.ptx
