"""What a student is shown is, to the pixel, what the teachers saw (a view's own size and colours).

The digests are read with pyarrow alone, from the tables that the newest snapshot names; so neither
side of the comparison is the reader under test.
"""

import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.caches import CNN, VIT, config_of, extract_here, pictures
from trainer import CacheStream

PICTURES, VIEWS, COMPARED = 70, 4, 200
SIDES = {("vit", 1): 16, ("vit", 2): 32, ("cnn", 1): 32, ("cnn", 2): 64}
"""Pixels of (teacher, grid)."""


@pytest.fixture(scope="module", params=[None, {}], ids=["plain", "photometric"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    changes: dict[str, Any] = {
        "views": {"per_image": VIEWS, "photometric": request.param},
        "grids": [1, 2],
        "teachers": {"vit": VIT, "cnn": CNN},
    }
    config = config_of(folder / "cache", pictures(folder / "pictures", PICTURES), **changes)
    assert extract_here(config).result["ok"] == PICTURES * VIEWS
    return folder / "cache"


def stored_digests(cache: Path, teacher: str, grid: int) -> dict[int, bytes]:
    """sha256 of what a teacher was fed at a grid, by row of the plan."""
    snapshot = json.loads((cache / "commits/snapshots/000001.json").read_text())
    folder = f"features/{snapshot['teachers'][teacher]}/g{grid}/"
    lines = pq.read_table(cache / snapshot["table"]["key"]).to_pylist()
    told = pa.concat_tables(
        pq.read_table(cache / line["cls_key"], columns=["row", "pixels_sha256"])
        for line in lines
        if line["set"].startswith(folder)
    )
    return dict(zip(told["row"].to_pylist(), told["pixels_sha256"].to_pylist()))


def replayed_digests(cache: Path, teacher: str, grid: int, side: int) -> dict[int, bytes]:
    """The same of what the stream shows in one epoch."""
    stream = CacheStream(str(cache), teachers={teacher: grid}, pixels=side, batch_size=32)
    found: dict[int, bytes] = {}
    with closing(iter(stream)) as batches:
        for batch in batches:
            for row, square in zip(batch.rows.tolist(), batch.pixels.permute(0, 2, 3, 1)):
                found[row] = hashlib.sha256(square.contiguous().numpy().tobytes()).digest()
            if batch.state["epoch"]:
                return found
    raise AssertionError("a stream has no end")


@pytest.mark.parametrize(("teacher", "grid"), SIDES)
def test_stream__shows_the_pixels_that_the_teacher_saw(
    cache: Path, teacher: str, grid: int
) -> None:
    stored = stored_digests(cache, teacher, grid)
    replayed = replayed_digests(cache, teacher, grid, SIDES[teacher, grid])
    rows = np.random.default_rng(0).choice(PICTURES * VIEWS, COMPARED, replace=False).tolist()
    assert [row for row in rows if replayed[row] != stored[row]] == []
    assert len({stored[row] for row in rows}) > COMPARED * 0.95  # each view is one of its own
