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
from tests.caches import pictures, settings
from tests.processes import by_module, config_file, run

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
        done = subprocess.run(
            line.removeprefix("$ "),
            shell=True,
            cwd=folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return folder


def python_block(heading: str) -> str:
    block = re.search(r"```python\n(.*?)```", README.split(f"### {heading}")[1], re.S)
    assert block
    return block[1]


def test_tour__python_block_runs(toured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toured)
    names: dict[str, object] = {}
    exec(python_block("With a loop of your own"), names)
    assert names["again"].state_dict() == names["batch"].state  # type: ignore[attr-defined]


def test_teachers__a_function_of_your_own_is_extracted(tmp_path: Path) -> None:
    network = """
import torch

class MyNetwork(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, 16, 16)

    def forward(self, pixels):
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens

"""
    (tmp_path / "my_encoders.py").write_text(network + python_block("Teachers"))
    mine = {"library": "python", "model": "my_encoders:build", "weights": "random:3"}
    source = pictures(tmp_path / "pictures", 5)
    values = settings(tmp_path / "cache", source, teachers={"mine": mine})
    config = config_file(tmp_path / "e.yaml", values)
    told = run(by_module("extract"), "--config", config, folder=tmp_path)
    assert (told.status, told.result["ok"]) == (0, 5), told.stderr


def test_first_screen__its_two_commands_are_there() -> None:
    commands = re.search(r"```console\n(.*?)```", README, re.S)
    assert commands
    programs = [line.split()[1] for line in commands[1].splitlines()]
    assert programs == ["infra/quickstart", "infra/test"]
    assert all(os.access(ROOT / program, os.X_OK) for program in programs)


def test_commands__all_and_only_those_there_are() -> None:
    named = set(re.findall(r"^\| `teachonce (\w+)", README, re.M))
    assert named == set(COMMANDS)


def test_yaml_blocks__are_valid_configurations() -> None:
    import yaml

    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", README, re.S)]
    for command, key, count in (("extract", "views", 1), ("train", "stage", 2)):
        whole = [block for block in blocks if key in block and "cache" in block]
        mine = [block for block in whole if ("stage" in block) == (command == "train")]
        assert len(mine) == count
        for block in mine:
            parse(load(COMMANDS[command].config), block, "README.md")


def test_flags__exist() -> None:
    known = {"config", "json", "help", "max-steps"}
    for command in COMMANDS.values():
        known |= {".".join(path).replace("_", "-") for path, _ in fields(load(command.config))}
    # Of ray, torchrun, infra/test and the recipe.
    others = {"working-dir", "nproc-per-node", "slow", "seeds", "codecs"}
    assert set(re.findall(r"(?<= |`)--([a-z][a-z.-]*)", README)) - others <= known
