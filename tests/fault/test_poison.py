"""A picture that ends every worker that meets it: its span is given up, and the rest goes on."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.planning import order_key
from schemas.keyed_hash import hash_texts
from tests.caches import pictures, settings, verify_here
from tests.processes import by_module, config_file, run

PICTURES, SPAN = 80, 32
TEACHER = """
import os
from infra.models.timm_encoder import build_timm
from dataclasses import replace

def build():
    encoder = build_timm("test_vit", {}, "random:1")

    def read(pixels):
        spread = pixels.flatten(2).std(dim=2).sum(dim=1)
        if ((spread == 0) & (pixels.flatten(1).sum(dim=1) != 0)).any():  # one colour
            os._exit(7)
        return encoder(pixels)

    return replace(encoder, read=read) if os.path.exists("armed") else encoder
"""


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """One picture of one colour, which is the last in hash order: not one that is calibrated on."""
    source = pictures(tmp_path / "pictures", PICTURES)
    names = sorted(path.name for path in source.iterdir())
    codes = hash_texts(names, order_key(0)).tolist()
    last = names[codes.index(max(codes))]
    Image.new("RGB", (40, 40), (9, 9, 9)).save(source / last, "PNG")
    (tmp_path / "my_encoders.py").write_text(TEACHER)
    (tmp_path / "armed").touch()
    return tmp_path


def test_extract__gives_up_what_ends_every_worker(poisoned: Path) -> None:
    teacher = {"library": "python", "model": "my_encoders:build"}
    values = settings(
        poisoned / "cache",
        poisoned / "pictures",
        teachers={"mine": teacher},
        calibration_images=SPAN,
    )
    config = config_file(poisoned / "extract.yaml", values)
    told = run(by_module("extract"), "--config", config, folder=poisoned)
    left = PICTURES % SPAN  # the short last span holds it
    assert told.status == 1, told.stderr
    assert (told.result["given_up"], told.result["ok"]) == (1, PICTURES - left)
    assert "span 2 of generation 0, 1 shards, is not computed: it ended 3 workers" in told.stderr
    verified = verify_here(poisoned / "cache")
    assert (verified.status, verified.result["ok"]) == (0, PICTURES - left)
    (poisoned / "armed").unlink()
    again = run(by_module("extract"), "--config", config, folder=poisoned)
    assert (again.status, again.result["teacher_forwards"]) == (0, left), again.stderr
