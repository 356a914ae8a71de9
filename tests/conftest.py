"""Isolation for every test, the order of the tiers, and what each of several processes runs."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # only the tests of S3 need what it imports
    from xdist.remote import Producer

    from tests.s3server import FaultyGateway, S3Server
    from tests.shares import Shares

# Read when the libraries are imported, so they are set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as infra/cli.py has it
# Else its idle threads spin for 30 ms after every product, on cores that other tests run on.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

TIERS = ("unit", "contract", "fault", "integration")
"""Folders of `tests`, the fast ones first; each is also a marker."""

# The same examples on every machine: a failure must be one that anybody can repeat.
settings.register_profile("teachonce", derandomize=True, deadline=None, database=None)
settings.load_profile("teachonce")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def tier(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parent).parts[0]

    for item in items:
        if tier(item) in TIERS:
            item.add_marker(tier(item))
    items.sort(key=lambda item: (*TIERS, tier(item)).index(tier(item)))
    if hasattr(config, "workerinput"):  # one of several processes
        from tests.shares import longest_first

        longest_first(items)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "Shares":
    from tests.shares import Shares

    return Shares(config, log)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own as the current one, no user's caches, seeded generators."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> "S3Server":
    """An S3 server with a bucket, whose owner this process then is."""
    from tests.s3server import s3_server

    found = s3_server()
    found.enter(monkeypatch)
    return found


@pytest.fixture
def gateway(server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> Iterator["FaultyGateway"]:
    """Before the server; what it spoils is asked for again without a pause."""
    from infra import s3_requests
    from tests.s3server import FaultyGateway

    monkeypatch.setattr(s3_requests, "FIRST_PAUSE_S", 0.01)
    with FaultyGateway(server).running() as found:
        yield found
