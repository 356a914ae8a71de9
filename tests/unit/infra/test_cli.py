"""The program as a user starts it, in processes of its own."""

import subprocess
import sys

import pytest

from infra.cli import COMMANDS

HEAVY = ("torch", "ray", "zarr", "timm", "numpy.testing")
SCRIPT = f"""
import sys, time
start = time.process_time()  # not what else this machine does
from infra.cli import main
status = main(sys.argv[1:])
seconds = time.process_time() - start
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
assert seconds < 1, seconds
sys.exit(status)
"""


def teachonce(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help__lists_the_commands_quickly() -> None:
    result = teachonce("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert f"  {name} " in result.stdout
        assert command.summary in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help__of_a_command_is_quick(name: str) -> None:
    result = teachonce(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: teachonce {name} ")
    assert "--config FILE" in result.stdout


@pytest.mark.parametrize("words", [(), ("exrtact",), ("extract", "--nonsense", "1"), ("verify",)])
def test_usage__that_is_wrong_ends_with_status_2(words: tuple[str, ...]) -> None:
    assert teachonce(*words).returncode == 2


def test_usage__unknown_command_names_the_known_ones() -> None:
    result = teachonce("exrtact")
    assert result.stdout == ""
    assert "no command 'exrtact'; there are plan, extract" in result.stderr
