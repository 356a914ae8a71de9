"""`ray job submit --working-dir . -- python pipeline/extract.py` on a cluster of its own."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from infra.store import LocalStore
from tests.builders import ROOT
from tests.caches import assert_same, config_of, contents, extract_here, pictures, settings
from tests.processes import by_module, config_file, descendants, ended, kill, run, until

CPUS = 4
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def ray(*words: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def takes_jobs(url: str) -> bool:
    """The dashboard answers before the agent that starts jobs has told it that it is there."""
    nothing = urllib.request.Request(
        f"{url}/api/jobs/",
        data=json.dumps({"entrypoint": "true"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(nothing, timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False


@dataclass(frozen=True)
class Cluster:
    url: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node in a process group and a folder of its own, ended by its ids."""
    gcs, dashboard, client = free_ports(3)
    # A short path: Ray puts sockets there.
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        environment = os.environ | ENVIRONMENT | {"RAY_TMPDIR": folder}
        words = ray("start", "--head", "--block", f"--num-cpus={CPUS}", f"--port={gcs}")
        words += ["--object-store-memory=100000000", "--dashboard-host=127.0.0.1"]
        words += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        with Path(folder, "log").open("w") as log:
            head = subprocess.Popen(
                words, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{dashboard}"
            until(lambda: answers(url), seconds=90)
            until(lambda: takes_jobs(url), seconds=90)
            yield Cluster(url, environment)
        finally:
            for pid in [head.pid, *descendants(head.pid)]:
                kill(pid)
            head.wait()


def test_extract__as_a_ray_job(cluster: Cluster, tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", 20)
    values = settings(tmp_path / "cache", source, views={"per_image": 2})
    config = config_file(tmp_path / "extract.yaml", values)
    submitted = subprocess.run(
        [
            *ray("job", "submit", "--address", cluster.url, "--working-dir", str(ROOT), "--"),
            *(sys.executable, "pipeline/extract.py", "--config", str(config), "--json"),
        ],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    lines = [line for line in submitted.stdout.splitlines() if line.startswith('{"rows"')]
    told = ended(0, "\n".join(lines), "").result
    assert (told["rows"], told["ok"], told["snapshot"]) == (40, 40, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(CPUS)
    try:
        extract_here(config_of(tmp_path / "here", source, views={"per_image": 2}))
    finally:
        torch.set_num_threads(threads)
    here = contents(LocalStore(tmp_path / "here"))
    assert_same(contents(LocalStore(tmp_path / "cache")), here)


@pytest.mark.slow
def test_extract__beside_a_cluster_starts_its_own(cluster: Cluster, tmp_path: Path) -> None:
    """Without RAY_ADDRESS whatever cluster runs here is somebody else's."""
    values = settings(tmp_path / "cache", pictures(tmp_path / "pictures", 3))
    config = config_file(tmp_path / "extract.yaml", values)
    done = run(by_module("extract"), "--config", config, environment=cluster.environment)
    assert done.status == 0, done.stderr
    assert done.result["ok"] == 3
    assert "started here" in done.stderr
