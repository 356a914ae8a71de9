"""Files that are on the disk when the call returns, and never half there."""

import os
import re
import uuid
from pathlib import Path


def write_through(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Give `path` new contents: a reader sees the old or the new, whole."""
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write_through(partial, data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove_partials(folder: Path) -> None:
    """Take away what a killed `replace_file` left in a folder that nobody else writes to."""
    for path in folder.glob(".*-*"):
        if re.fullmatch(r"\..+-[0-9a-f]{32}", path.name):
            path.unlink(missing_ok=True)


def make_folders(folder: Path) -> None:
    """Create a folder and its parents, each of them durable in the one above."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
