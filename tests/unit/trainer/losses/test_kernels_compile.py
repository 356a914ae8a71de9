"""What the GPU's kernels become: nothing in float64, nothing spilled, wide loads."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.aot import Build, compile_ahead
from tests.unit.trainer.losses.cases import PATCH
from trainer.losses.told import Told

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


GRIDS = [(16, 24), (24, 32), (16, 32), (8, 16)]
RESIZE_REGISTERS = 128
"""Of a thread at most: two programs of eight warps share a processor then."""


@pytest.mark.parametrize("capability", [80, 90])
def test_resize_kernels__compile_to_tensor_cores_and_no_spills(
    capability: int, tmp_path: Path
) -> None:
    from trainer.losses.fused_resize import WARPS, constants_of

    floats = (
        *("factors", "shifts", "matrix", "weights", "share", "by"),
        *("losses", "counts", "told_by"),
    )
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(("prediction", "gradient"), "*bf16")
    types |= {"values": "*i8", "scales": "*fp16", "tops": "*i32", "ends": "*i32"}
    own = {"MINE_SMALLER", "COSINE", "DROP", "GRADIENT", "UNIT"}
    told = Told("int8", torch.empty(0), 1536, torch.empty(0))
    builds = []
    for small, large in GRIDS:
        common = constants_of(told, small, large, PATCH)
        more = dict.fromkeys(own, False) | {"COSINE": 0.9, "GRADIENT": True}
        for kernel, constants in (
            ("large_row_kernel", {**common, **more}),
            ("large_row_kernel", {**common, **more, "MINE_SMALLER": True}),
            ("small_row_kernel", common),
        ):
            divisible = ["p_row", "p_token", "t_row", "t_token"]
            name = f"trainer.losses.resize_kernel:{kernel}"
            builds.append(Build(name, capability, WARPS, types, constants, divisible))
    for build, found in zip(builds, compile_ahead(builds, tmp_path / "triton")):
        assert (found.stack, found.local) == (0, 0), build
        assert found.registers <= RESIZE_REGISTERS, build
        assert ".f64" not in found.ptx, build
        assert "mma" in found.ptx, build
        assert "atom" not in found.ptx, build


def test_cls_kernel__compiles_to_wide_loads_and_no_spills(tmp_path: Path) -> None:
    from trainer.losses.cls_kernel import WARPS

    widths = (1024, 1280, 1536)
    each = {"predictions": "*bf16", "values": "*fp16", "gradients": "*bf16", "p_rows": "i32"}
    each |= {"factors": "*fp32", "shifts": "*fp32", "t_rows": "i32"}
    types: dict[str, str | list[str]] = {name: [type_] * 3 for name, type_ in each.items()}
    types |= dict.fromkeys(("weights", "share", "scales", "losses", "counts"), "*fp32")
    constants = {"WIDTHS": widths, "TILES": (1024, 2048, 2048), "AFFINE": False, "DROP": False}
    constants |= {"GRADIENT": True, "UNIT": False}
    builds = [
        Build("trainer.losses.cls_kernel:cls_kernel", capability, WARPS, types, constants)
        for capability in (80, 90)
    ]
    for found in compile_ahead(builds, tmp_path / "triton"):
        assert (found.stack, found.local) == (0, 0)
        assert found.registers <= 128
        assert ".f64" not in found.ptx
        assert "ld.global.v4" in found.ptx
