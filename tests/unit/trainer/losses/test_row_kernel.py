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
def test_kernels__interpreted_are_as_defined() -> None:
    cases = str(Path(__file__).with_name("kernel_cases.py"))
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cases, TRITON_INTERPRET="1")
    assert " passed" in told
