"""The format's page is enough: a program that has only it reads a cache and recomputes its rows."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.layout import SetPath
from schemas.names import BLOCK_ROWS
from trainer.cache import CacheReader

ROWS = 20
STRANGER = Path(__file__).with_name("stranger.py")
LEAST = {"int8": 0.999, "int4.hadamard": 0.98, "variable3.pca": 0.98}
"""Cosines to what the teacher says, of the worst token."""


def told_by_stranger(cache: Path, out: Path) -> dict[str, Any]:
    words = [sys.executable, str(STRANGER), str(cache), str(ROWS), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    for path, rows in told["sets"].items():
        assert len(rows) == ROWS, path
        unusual = {row["key"] for row in rows if not row["key"][0].isdigit()}
        assert len(unusual) == 7, unusual
        assert [row for row in rows if not row["pixels"]] == []
        assert min(row["cls"] for row in rows) > 0.999
    return told


def test_stranger__reads_checks_and_recomputes(grown_cache: Path, tmp_path: Path) -> None:
    told = told_by_stranger(grown_cache, tmp_path)
    assert told["rows"] == 3 * (38 + 10 + 3)
    assert told["superseded"] == 2
    assert len(told["sets"]) == 4
    for rows in told["sets"].values():
        assert {row["view"] for row in rows} == {0, 1, 2}
        assert min(row["tokens"] for row in rows) > 0.999


@pytest.fixture(scope="module")
def coded(coded_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Where the stranger put what it decoded, and what it told."""
    out = tmp_path_factory.mktemp("decoded")
    return out, told_by_stranger(coded_cache, out)


def test_stranger__recomputes_codes(coded: tuple[Path, Any]) -> None:
    _, told = coded
    assert (told["rows"], told["superseded"]) == (2 * (38 + 10 + 3), 0)
    labels = [SetPath.parse(path).codec_label for path in told["sets"]]
    assert sorted(labels) == sorted([*LEAST, *LEAST])
    for path, rows in told["sets"].items():
        worst = min(row["tokens"] for row in rows)
        assert worst > LEAST[SetPath.parse(path).codec_label], (path, worst)


@pytest.mark.parametrize("grid", [2, 7])
@pytest.mark.parametrize("name", ["eight", "four", "varying"])
def test_stranger__decodes_codes_as_we_do(
    coded_cache: Path, coded: tuple[Path, Any], name: str, grid: int
) -> None:
    """To the bit before the rotation back, whose last bits are any matrix product's."""
    out, told = coded
    reader = CacheReader(str(coded_cache), teachers={name: grid})
    path = str(reader.sets[name][grid])
    found = np.load(out / f"{path.replace('/', ' ')}.npz")
    codec = reader.teachers[name].codecs[grid]
    for index, row in enumerate(told["sets"][path]):
        (plan,) = (p for p in reader.generations if 0 <= row["row"] - p.first_row < p.rows)
        block, place = divmod(row["row"] - plan.first_row, BLOCK_ROWS)
        tokens = reader.read_block(plan.generation, block)[1][name][place]
        stored = torch.from_numpy(np.array(tokens))[None]
        turned = codec.rotated(stored, grid**2)[0].numpy()
        np.testing.assert_array_equal(turned.view("u4"), found["turned"][index].view("u4"))
        np.testing.assert_allclose(
            codec.decode(stored, grid**2)[0].numpy(), found["standardised"][index], atol=1e-5
        )
