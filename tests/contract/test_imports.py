"""Imports point one way; what is light stays light."""

import subprocess
import sys

import pytest

from tests.builders import ROOT

LOADED = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(found.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded_by(package: str) -> set[str]:
    command = [sys.executable, "-c", LOADED, package]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_imports__point_one_way() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    result = subprocess.run(
        [*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("schemas", {"torch", "ray", "zarr", "timm", "PIL", "infra", "pipeline", "trainer"}),
        ("infra.pixels", {"torch", "ray", "zarr", "pipeline", "trainer"}),
        ("trainer", {"ray", "zarr", "pipeline"}),
        ("pipeline", {"trainer"}),
    ],
)
def test_imports__of_every_module_load_nothing_forbidden(package: str, never: set[str]) -> None:
    loaded = loaded_by(package)
    assert package.partition(".")[0] in loaded
    assert not loaded & never
