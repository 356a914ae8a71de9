"""The GPU's decoder: the same codes in Triton's interpreter, and what it compiles to."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
COMPILED = """
import json, subprocess, tempfile, pathlib, re
import triton, triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from infra.codec.rans_triton import _decode

TYPES = {"codes": "*i8", "code_at": "*i16"}
POINTERS = ("states", "words", "tables", "frequency", "start")
bin = pathlib.Path(triton.backends.nvidia.__file__).parent / "bin"
found = []
for capability in (80, 90):
    for lanes in (1, 16, 128):
        signature = {
            name: TYPES.get(name, "*i32" if name in POINTERS else "i32")
            for name in _decode.arg_names[:-1]
        }
        attributes = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(_decode.arg_names[:-1]) if signature[name][0] == "*"
        }
        source = ASTSource(
            fn=_decode, signature={**signature, "LANES": "constexpr"},
            constexprs={"LANES": lanes}, attrs=attributes,
        )
        made = triton.compile(
            source, target=GPUTarget("cuda", capability, 32),
            options={"num_warps": max(1, lanes // 32)},
        )
        with tempfile.TemporaryDirectory() as folder:
            cubin = pathlib.Path(folder) / "kernel.cubin"
            cubin.write_bytes(made.asm["cubin"])
            told = subprocess.run(
                [bin / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True
            ).stdout
        usage = re.search(r"REG:(\\d+) STACK:(\\d+) SHARED:(\\d+) LOCAL:(\\d+)", told)
        found.append([*map(int, usage.groups()), ".f64" in made.asm["ptx"]])
print(json.dumps(found))
"""
MOST_REGISTERS = 64


def run(program: str, **environment: str) -> str:
    """In a process of its own: whether kernels are interpreted is decided when they are made."""
    bare = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**bare, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_decode__interpreted_gives_the_same_codes() -> None:
    assert run(INTERPRETED, TRITON_INTERPRET="1").endswith("equal\n")


def test_decode__compiles_without_spills(tmp_path: Path) -> None:
    found = json.loads(run(COMPILED, TRITON_CACHE_DIR=f"{tmp_path}/triton"))
    assert len(found) == 6
    for registers, stack, _, local, has_double in found:
        assert registers <= MOST_REGISTERS
        assert (stack, local, has_double) == (0, 0, False)
