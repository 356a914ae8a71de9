from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos [2024]"
    for name in (
        "a.jpg",
        "cats/b.JPEG",
        "cats/deep/c.Png",
        "dogs/d.webp",
        "dogs/notes.txt",
        "README",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root
