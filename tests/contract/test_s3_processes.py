"""Processes and threads that share a store: all ways but fork, and fork says why not."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.s3_store import S3Store
from tests.s3server import S3Server

pytestmark = pytest.mark.s3


FORK = """
import os, sys, time
from infra.store import open_store
from schemas.store_config import StoreOptions

url, endpoint, when = sys.argv[1:]
options = StoreOptions(endpoint=endpoint or None)
store = open_store(url, options)
if when == "used":
    store.create("k", b"x")
child = os.fork()
if child:
    status = os.waitpid(child, 0)[1]
    print("parent", store.get("k"), os.waitstatus_to_exitcode(status))
    sys.exit()
if when != "used":
    store.create("k", b"x")
for inherited in (store, open_store(url, options)):
    start = time.monotonic()
    try:
        found = inherited.get("k")
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print("child", found, time.monotonic() - start < 1, flush=True)
os._exit(0)
"""


def forked(url: str, endpoint: str, when: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", FORK, url, endpoint, when]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return run.stdout.splitlines()


def test_fork__after_use_is_refused_with_the_reason(server: S3Server) -> None:
    url = server.store().url
    *children, parent = forked(url, server.endpoint, "used")
    assert len(children) == 2
    for line in children:
        assert line.startswith(f"child StoreError: {url} ({server.endpoint}): this process was f")
        assert "spawn or forkserver" in line
        assert line.endswith("True")
    assert parent == "parent b'x' 0"


def test_fork__before_the_first_use_works(server: S3Server) -> None:
    lines = forked(server.store().url, server.endpoint, "unused")
    assert lines == ["child b'x' True", "child b'x' True", "parent b'x' 0"]


def test_fork__of_a_local_store_works(tmp_path: Path) -> None:
    lines = forked(str(tmp_path / "cache"), "", "used")
    assert lines == ["child b'x' True", "child b'x' True", "parent b'x' 0"]


def _create_and_get(store: S3Store, number: int) -> bytes:
    store.create(f"from/{number}", str(os.getpid()).encode())
    return store.get(f"from/{number}") + store.get("k")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes__started_so_work(server: S3Server, method: str) -> None:
    store = server.store()
    store.create("k", b" x")
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        found = pool.apply_async(_create_and_get, (store, 1)).get(timeout=60)
    assert found.endswith(b" x")
    assert int(found.split()[0]) != os.getpid()


def test_threads__share_a_store(server: S3Server) -> None:
    store = server.store()
    store.create("k", b" x")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: _create_and_get(store, number), range(40)))
    assert set(found) == {b"%d x" % os.getpid()}
    assert len(list(store.keys("from/"))) == 40
