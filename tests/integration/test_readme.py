"""README is true: its commands run, its code runs, its flags exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli import COMMANDS
from infra.command import load
from schemas.strict import fields, parse
from tests.builders import ROOT

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of the tour has been run as it stands."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "infra").symlink_to(ROOT / "infra")
    tour = README.split("## A tour")[1]
    block = re.search(r"```console\n(.*?)```", tour, re.S)
    assert block
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in block[1].splitlines():
        run = subprocess.run(
            line.removeprefix("$ "),
            shell=True,
            cwd=folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{line}\n{run.stdout}\n{run.stderr}"
    return folder


def test_tour__python_block_runs(toured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.S)
    assert block
    monkeypatch.chdir(toured)
    names: dict[str, object] = {}
    exec(block[1], names)
    assert names["again"].state_dict() == names["batch"].state  # type: ignore[attr-defined]


def test_first_screen__its_two_commands_are_there() -> None:
    commands = re.search(r"```console\n(.*?)```", README, re.S)
    assert commands
    programs = [line.split()[1] for line in commands[1].splitlines()]
    assert programs == ["infra/quickstart", "infra/test"]
    assert all(os.access(ROOT / program, os.X_OK) for program in programs)


def test_commands__all_and_only_those_there_are() -> None:
    named = set(re.findall(r"^\| `teachonce (\w+)", README, re.M))
    assert named == set(COMMANDS)


def test_yaml_block__is_a_valid_configuration() -> None:
    import yaml

    block = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert block
    parse(load(COMMANDS["extract"].config), yaml.safe_load(block[1]), "README.md")


def test_flags__exist() -> None:
    known = {"config", "json", "help", "max-steps"}
    for command in COMMANDS.values():
        known |= {".".join(path).replace("_", "-") for path, _ in fields(load(command.config))}
    assert set(re.findall(r"(?<= |`)--([a-z][a-z.-]*)", README)) - {"working-dir"} <= known
