"""The system's cache of files: emptied for a measurement, and looked at whether it is empty."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def evict(paths: Iterable[Path]) -> float:
    """Drop files from the page cache; the share of their bytes that stays there all the same.

    Pages that another process has mapped stay, and those of some file systems.
    """
    resident = total = 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)  # what is not on the disk yet is not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(descriptor).st_size
            resident += _resident_pages(descriptor, size)
            total += -(-size // mmap.PAGESIZE)
        finally:
            os.close(descriptor)
    return resident / max(1, total)


def files_below(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def _resident_pages(descriptor: int, size: int) -> int:
    if size == 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        failed = libc.mincore(
            ctypes.c_void_p(view.ctypes.data),
            ctypes.c_size_t(size),
            ctypes.c_void_p(pages.ctypes.data),
        )
        del view  # or the file could not be unmapped
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return int(np.count_nonzero(pages & 1))
