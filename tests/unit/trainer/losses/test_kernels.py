"""The GPU's kernels, interpreted."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.aot import run

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux alone"),
]


@pytest.mark.timeout(900)  # some 30 seconds of a core, of which it may have a small share
@pytest.mark.parametrize("cases", ["row", "resize", "cls"])
def test_kernels__interpreted_are_as_defined(cases: str) -> None:
    file = str(Path(__file__).with_name(f"{cases}_cases.py"))
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")
    assert " passed" in told
