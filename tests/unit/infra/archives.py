"""Tar archives for the tests, sound and unsound."""

import io
import tarfile
from pathlib import Path
from typing import Any


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_bytes(
    *members: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT
) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for what, data in members:
            info = member(what) if isinstance(what, str) else what
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def write_tar(path: Path, *members: tuple[str | tarfile.TarInfo, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(*members, **options))
    return path


def header(info: tarfile.TarInfo) -> bytes:
    """One block, whatever it claims."""
    return info.tobuf(tarfile.GNU_FORMAT)
