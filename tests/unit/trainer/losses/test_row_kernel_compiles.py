"""What the GPU's kernels become: nothing in float64, nothing spilled, wide loads."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.aot import Build, compile_ahead

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux alone"),
]


CODES = {"int8": "*i8", "int4": "*u8", "fp8": "*u8", "float": "*fp16"}


def build_of(capability: int, channels: int, dtype: str, code: str) -> Build:
    """As it is launched on an aligned prediction."""
    from trainer.losses.row_kernel import shape, tiles

    first, second, third = tiles(channels)
    rows, warps = shape(channels)
    floats = ("factors", "shifts", "weights", "share", "by", "losses", "counts")
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(("prediction", "gradient"), f"*{dtype}")
    return Build(
        "trainer.losses.row_kernel:row_kernel",
        capability,
        warps,
        types | {"values": CODES[code], "scales": "*fp16"},
        {
            "CHANNELS": channels,
            "FIRST": first,
            "SECOND": second,
            "THIRD": third,
            "ROWS": rows,
            "CODE": code,
            "SCALED": code != "float",
            "AFFINE": False,
            "COSINE": 0.9,
            "SMOOTH": 0.1,
            "BETA": 1.0,
            "DROP": False,
            "GRADIENT": True,
            "UNIT": False,
        },
        divisible=["p_row", "p_token", "t_row", "t_token"],
    )


REGISTERS = {384: 64, 768: 64, 1024: 56, 1280: 64, 1536: 64, 1664: 72, 4096: 80}
"""Of a thread at most: what decides how many programs share a processor. The GPU hands them out by
the eight."""
SPILLS = (80, 1664, "fp32")
"""The one that ptxas gives 8 bytes of stack, to keep 64 registers: nobody predicts in float32 on a
GPU for the sake of speed."""
ROW_BUILDS = [
    (capability, channels, dtype, code)
    for capability in (80, 90)
    for channels in REGISTERS
    for dtype in ("bf16", "fp32")
    for code in (CODES if channels == 1536 else ("int8",))
    if (capability, channels, dtype) != SPILLS
]


def test_row_kernel__compiles_to_wide_loads_and_no_spills(tmp_path: Path) -> None:
    builds = [build_of(*each) for each in ROW_BUILDS]
    for each, found in zip(ROW_BUILDS, compile_ahead(builds, tmp_path / "triton")):
        assert (found.stack, found.local) == (0, 0), each
        assert found.registers <= REGISTERS[each[1]], each
        assert ".f64" not in found.ptx, each
        assert "ld.global.v4" in found.ptx, each


def test_rescale_kernel__compiles_to_wide_loads_and_no_spills(tmp_path: Path) -> None:
    from trainer.losses.rescale_kernel import BLOCK, PROGRAMS

    builds = [
        Build(
            "trainer.losses.rescale_kernel:rescale_kernel",
            capability,
            warps=4,
            types={"values": f"*{dtype}", "by": "*fp32"},
            constants={"PROGRAMS": PROGRAMS, "BLOCK": BLOCK},
            divisible=["count"],
        )
        for capability in (80, 90)
        for dtype in ("bf16", "fp16", "fp32")
    ]
    for found in compile_ahead(builds, tmp_path / "triton"):
        assert (found.stack, found.local) == (0, 0)
        assert found.registers <= 32
        assert ".f64" not in found.ptx
        assert "ld.global.v4" in found.ptx
