"""Commands as users run them: real processes, found and ended by their own ids."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.builders import ROOT

EXTRACT_BY_PATH = (str(ROOT / "pipeline" / "extract.py"),)
TRAIN_BY_PATH = (str(ROOT / "trainer" / "train.py"),)


def by_module(command: str) -> tuple[str, ...]:
    return ("-m", "infra.cli", command)


@dataclass(frozen=True)
class Ended:
    status: int
    result: dict[str, Any]
    """The JSON object on the last line of standard output."""
    stdout: str
    stderr: str


def config_file(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def run(
    how: tuple[str, ...],
    *words: object,
    timeout: float = 120,
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
) -> Ended:
    """Run a command with `--json` to its end, in a folder."""
    with start(how, *words, environment=environment, folder=folder) as process:
        stdout, stderr = process.communicate(timeout=timeout)
    return ended(process.returncode, stdout, stderr)


def ended(status: int, stdout: str, stderr: str) -> Ended:
    lines = stdout.splitlines()
    return Ended(status, json.loads(lines[-1]) if lines else {}, stdout, stderr)


@contextmanager
def start(
    how: tuple[str, ...],
    *words: object,
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
) -> Iterator["subprocess.Popen[str]"]:
    """A command with `--json`, in a session of its own; whatever is left of that is killed."""
    inherited = environment or os.environ
    process = subprocess.Popen(
        [sys.executable, *how, *map(str, words), "--json"],
        cwd=folder,
        env={name: value for name, value in inherited.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A runner in the background ignores Ctrl-C, and what it starts would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        kill_family(process.pid)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_family(session: int) -> None:
    """All that runs of a command, and what that starts meanwhile."""
    while left := family(session):
        for pid in left:
            kill(pid)
        time.sleep(0.01)


def until(condition: Callable[[], object], seconds: float = 60) -> Any:
    """Wait for something, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.01)
    return found


@dataclass(frozen=True)
class Process:
    state: str
    parent: int
    session: int


def processes() -> dict[int, Process]:
    """Every process of this machine by its id; zombies too."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, _, session, *_ = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = Process(state, int(parent), int(session))
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on; none of a process that has ended."""
    every = processes()
    found = [pid]
    for known in found:
        found += [child for child, process in every.items() if process.parent == known]
    return found[1:]


def family(session: int) -> list[int]:
    """What runs of a command that `start` started, by the id of its first process, which may have
    ended. Zombies are left out."""
    every = processes().items()
    return [pid for pid, process in every if process.session == session and process.state != "Z"]


def is_running(pid: int) -> bool:
    found = processes().get(pid)
    return found is not None and found.state != "Z"


def title(pid: int) -> str:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""
