"""What a cold reading begins with: none of the file in memory."""

from pathlib import Path

import pytest

from infra.page_cache import evict, files_below


def test_evict__drops_a_file_and_tells(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    path.parent.mkdir()
    path.write_bytes(bytes(1 << 20))
    (tmp_path / "empty").touch()
    files = files_below(str(tmp_path))
    assert sorted(files) == [path, tmp_path / "empty"]
    if evict(files) == 1:
        pytest.skip("the file system of the tests is in memory")
    assert evict(files) == 0


def test_evict__counts_what_cannot_be_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    monkeypatch.setattr("os.posix_fadvise", lambda *_: None)
    assert evict([path]) == 1
