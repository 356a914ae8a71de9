import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from infra import address_list
from tests.unit.infra.web import Web


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


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Web, "files", {"/cats/1.jpg": b"one", "/2": b"two", "/empty.jpg": b""})
    monkeypatch.setattr(Web, "failures", [])
    monkeypatch.setattr(Web, "asked", [])
    monkeypatch.setattr(Web, "gives_parts", True)
    monkeypatch.setattr(address_list, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
