"""Large tensors are made of memory that the process has already."""

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys
import torch
from infra.heap import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
    keep_freed_memory()
for _ in range(40):  # until the heap is as large as it gets
    torch.ones(16 << 18)  # 16 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(16 << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> int:
    words = [sys.executable, "-c", PAGES, what]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_keep_freed_memory__pages_nothing_in_anew() -> None:
    # Huge pages, where the system has them, make the plain figure small.
    assert faults("keep") < max(100, faults("leave") // 10)
