"""The table of families in README is what comes out: every real name, built without weights."""

import itertools
from pathlib import Path

import pytest
import torch

from infra.models.encoder import Encoder
from infra.models.libraries import build_encoder
from schemas.extract_config import Teacher

pytestmark = pytest.mark.unit

README = Path(__file__).resolve().parents[4] / "README.md"
GRIDS = (16, 24, 32)
TIMM = {
    "DINOv3",
    "PE-core",
    "PE-lang",
    "PE-spatial",
    "SigLIP2",
    "CLIP",
    "RADIO",
    "EUPE",
    "ConvNeXt",
}
OPEN_CLIP = {"PE-core", "SigLIP2", "CLIP"}


def table(text: str) -> list[list[str]]:
    """The rows of the table that stands after the mark, without heading and rule."""
    after = text.partition("<!-- families -->")[2].lstrip().splitlines()
    lines = itertools.takewhile(lambda line: line.startswith("|"), after)
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return rows[2:]


def row(family: str, library: str, model: str) -> list[str]:
    """What a line of the table says, from the model itself; nothing is computed."""
    with torch.device("meta"):
        encoder = build_encoder(
            Teacher.model_validate({"library": library, "model": model, "weights": "random:0"})
        )
    cls = (
        encoder.cls_kind if encoder.cls_width is None else f"{encoder.cls_kind} {encoder.cls_width}"
    )
    sides = " / ".join(str(side_of(encoder, grid)) for grid in GRIDS)
    return [
        *(family, library, model, str(encoder.patch_width), str(encoder.patch_pixels)),
        *(cls, str(encoder.native_pixels), sides),
    ]


def side_of(encoder: Encoder, grid: int) -> int:
    """The side at which a grid really comes out."""
    side = grid * encoder.patch_pixels
    with torch.inference_mode():
        _, tokens = encoder(torch.zeros(1, 3, side, side, device="meta"))
    assert tokens.shape == (1, grid * grid, encoder.patch_width)
    return side


ROWS = table(README.read_text())


def test_readme__has_every_family() -> None:
    for library, families in (("timm", TIMM), ("open_clip", OPEN_CLIP)):
        assert families == {line[0] for line in ROWS if line[1] == library}


@pytest.mark.parametrize("stated", ROWS, ids=[f"{line[1]}-{line[2]}" for line in ROWS])
def test_readme__says_of_each_model_what_comes_out(stated: list[str]) -> None:
    assert row(*stated[:3]) == stated
