"""Commands that are started and killed at random moments.

Some are forked from a process that has imported this module and has run nothing: threads do not
survive a fork.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

import trainer.train  # noqa: F401
from infra.cli import main
from schemas.extract_config import ExtractConfig
from schemas.strict import parse
from tests.caches import extract_here
from tests.processes import by_module, ended, family, kill_family, start

LONGEST, LONGEST_S = 1.1, 10.0
"""A cycle's, in times of a whole run of its kind, and its bound on a slow machine."""


def run(command: str, config: str) -> None:
    """A command to its end, in this process; the exit status is its own."""
    # So many as a worker on Ray has: bits depend on their number.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    if command == "train":
        sys.exit(main([command, "--config", config]))
    values = yaml.safe_load(Path(config).read_text())
    sys.exit(extract_here(parse(ExtractConfig, values, config)).status)


class Cycles:
    """Starts and kills; all processes share a temporary folder of their own."""

    def __init__(self, temporary: str) -> None:
        self.temporary = Path(temporary)
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload([__name__])
        self._dice = random.Random("cycles")
        self._sessions: list[int] = []
        self._run_s: dict[str, float] = {}
        self.told: Counter[str] = Counter()

    def on_ray(self, config: Path, plain: bool = False) -> bool:
        """Whether the command came to its end, which a `plain` one does."""
        with start(by_module("extract"), "--config", config) as process:
            self._sessions.append(process.pid)
            began = time.monotonic()
            if self._is_killed("on Ray", plain, lambda: process.poll() is None):
                kill_family(process.pid)
                return False
            stdout, stderr = process.communicate(timeout=120)
            assert ended(process.returncode, stdout, stderr).status == 0, stderr
            self._run_s.setdefault("on Ray", time.monotonic() - began)
            return True

    def forked(self, command: str, config: Path, plain: bool = False) -> bool:
        """As `on_ray`, in one process."""
        process = self._forks.Process(target=run, args=(command, str(config)))
        process.start()
        began = time.monotonic()
        if self._is_killed(command, plain, process.is_alive):
            process.kill()
        process.join()
        status = process.exitcode
        process.close()
        assert status in (0, -signal.SIGKILL), status
        if status == 0:
            self._run_s.setdefault(command, time.monotonic() - began)
        return status == 0

    def _is_killed(self, kind: str, plain: bool, runs: Callable[[], bool]) -> bool:
        """Waits for a random moment, or the end; True at the moment."""
        if plain:
            return False
        longest = min(LONGEST * self._run_s[kind], LONGEST_S)
        end = time.monotonic() + self._dice.uniform(0, longest)
        while time.monotonic() < end and runs():
            time.sleep(0.01)
        was_running = runs()
        self.told[f"{kind}, {'killed' if was_running else 'ended'}"] += 1
        return was_running

    def running(self) -> list[int]:
        return [pid for session in self._sessions for pid in family(session)]
