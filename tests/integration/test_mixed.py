"""Teachers of every kind in one run: patches of 14 and 16 px and a stride of 32, with a CLS and
without, of three libraries; three grids, four views; each picture decoded once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.caches import config_of, extract_here, pictures, verify_here
from trainer import CacheStream
from trainer.cache import CacheReader
from trainer.students import build_student, describe, save_model

PICTURES, VIEWS, GRIDS = 36, 4, [2, 3, 4]
TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}
TEACHERS: dict[str, dict[str, Any]] = {
    "dinov3": {"model": "vit_small_patch16_dinov3", "arguments": TINY},
    "lang": {"model": "vit_pe_lang_large_patch14_448", "arguments": TINY},
    "convnext": {"model": "test_convnext"},
    "clip": {
        "library": "open_clip",
        "model": "ViT-B-32",
        "arguments": {
            "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 16},
            "embed_dim": 24,
        },
    },
    "proxy": {"library": "teachonce"},
}
WIDTHS = {
    "dinov3": (16, 32, 32),
    "lang": (14, 32, None),
    "convnext": (32, 64, 64),
    "clip": (16, 64, 24),
    "proxy": (16, 64, 64),
}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mixed")
    student = build_student("timm:test_vit", 3)
    told = {"grid": 2, "stage": "proxy", "step": 1, "snapshot": 1, "teachers": {}}
    save_model(folder / "proxy", student, describe(student, "timm:test_vit", **told))
    teachers = {
        name: {"library": "timm", "weights": "random:4", **teacher}
        for name, teacher in TEACHERS.items()
    }
    teachers["proxy"] = {"library": "teachonce", "weights": str(folder / "proxy")}
    config = config_of(
        folder / "cache",
        pictures(folder / "pictures", PICTURES),
        teachers=teachers,
        grids=GRIDS,
        views={"per_image": VIEWS},
    )
    return folder / "cache", extract_here(config).result


def test_mixed__every_row_of_every_set(extracted: tuple[Path, dict[str, Any]]) -> None:
    cache, told = extracted
    assert told["teacher_forwards"] == PICTURES * VIEWS * len(GRIDS) * len(TEACHERS)
    assert (told["rows"], told["bad"]) == (PICTURES * VIEWS, 0)
    verified = verify_here(cache, against_teacher=5)
    assert (verified.status, verified.result["ok"]) == (0, PICTURES * VIEWS)
    compared = verified.result["against_teacher"]
    assert len(compared) == len(GRIDS) * len(TEACHERS)
    assert {name for set_ in compared.values() for name, value in set_.items() if value} == {
        "rows",
        "cosine_min",
        "cosine_mean",
        "cls_cosine_min",
    }


def test_mixed__each_picture_is_decoded_once(extracted: tuple[Path, dict[str, Any]]) -> None:
    assert extracted[1]["decodes"] == PICTURES


@pytest.mark.parametrize("name", TEACHERS)
def test_mixed__pixels_are_grid_times_patch(
    extracted: tuple[Path, dict[str, Any]], name: str
) -> None:
    cache, _ = extracted
    patch, width, cls_width = WIDTHS[name]
    for grid in GRIDS:
        reader = CacheReader(str(cache), teachers={name: grid})
        read, tokens = reader.read_block(0, 0)
        block = read.sets[name]
        assert block.pixels == grid * patch
        assert tokens[name].shape == (32, grid * grid, width)
        assert (None if block.cls is None else block.cls.shape[1]) == cls_width


def test_mixed__teachers_of_one_row_saw_one_crop(
    extracted: tuple[Path, dict[str, Any]],
) -> None:
    """Aligned by row: rows come together in a stream, each with its own key and view."""
    cache, _ = extracted
    grids = {"dinov3": 3, "lang": 2, "convnext": 4}
    stream = CacheStream(str(cache), teachers=grids, pixels=48, batch_size=50)
    seen: list[int] = []
    for batch in stream:
        seen += batch.rows.tolist()
        assert batch.targets["lang"].cls is None
        assert {name: target.grid for name, target in batch.targets.items()} == grids
        if batch.state["epoch"] == 1:
            break
    assert sorted(seen) == list(range(PICTURES * VIEWS))
    _, alone = CacheReader(str(cache), teachers={"lang": 2}).read_block(0, 1)
    _, joined = CacheReader(str(cache), teachers=grids).read_block(0, 1)
    np.testing.assert_array_equal(alone["lang"], joined["lang"])
