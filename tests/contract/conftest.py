"""Caches with everything that the format has: teachers from files, two grids, two views, bad and
unusual pictures, several generations and snapshots, every codec."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from infra.models.timm_encoder import build_timm
from schemas.extract_config import ExtractConfig
from tests.builders import photograph_bytes
from tests.caches import CNN, VIT, config_of, extract_here, odd_pictures, pictures

TWO: dict[str, dict[str, Any]] = {"vit": VIT, "cnn": CNN}
CODED: dict[str, dict[str, Any]] = {
    "eight": VIT | {"codec": {"tokens": "int8"}},
    "four": VIT | {"weights": "random:3", "codec": {"tokens": "int4"}},
    "varying": CNN | {"codec": {"tokens": "variable", "bits": 3}},
}
"""Teachers by the codec of their tokens."""


def _first_extraction(
    folder: Path,
    asked: dict[str, dict[str, Any]] = TWO,
    grids: tuple[int, ...] = (2, 3),
    **views: Any,
) -> ExtractConfig:
    teachers = {}
    for name, teacher in asked.items():
        weights = folder / f"{name}.safetensors"
        encoder = build_timm(str(teacher["model"]), {}, teacher["weights"])
        save_file(encoder.model.state_dict(), weights)
        teachers[name] = teacher | {"weights": str(weights)}
    source = pictures(folder / "pictures", 38)
    odd_pictures(source)
    config = config_of(
        folder / "cache",
        source,
        views={"per_image": 2, **views},
        grids=list(grids),
        teachers=teachers,
        tolerate_bad_images=1,
    )
    assert extract_here(config).status == 0
    return config


@pytest.fixture(scope="session")
def whole_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    config = _first_extraction(folder)
    pictures(folder / "pictures", 3, first=500)
    assert extract_here(config).result["snapshot"] == 2
    return folder / "cache"


@pytest.fixture(scope="session")
def grown_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photometric views, two of them at first and three later; a changed picture, and new ones."""
    folder = tmp_path_factory.mktemp("grown")
    config = _first_extraction(folder, photometric={"color_jitter": 0.8})
    pictures(folder / "pictures", 3, first=500)
    (folder / "pictures/0011.jpg").write_bytes(photograph_bytes(777, 50, 70))
    more = config.views.model_copy(update={"per_image": 3})
    outcome = extract_here(config.model_copy(update={"views": more}))
    assert outcome.result["snapshot"] == 2
    return folder / "cache"


@pytest.fixture(scope="session")
def coded_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of every kind. Grid 7 has an odd number of tokens, and of `varying` eight lanes that
    they do not fill evenly."""
    folder = tmp_path_factory.mktemp("coded")
    config = _first_extraction(folder, CODED, grids=(2, 7))
    pictures(folder / "pictures", 3, first=500)
    assert extract_here(config).result["snapshot"] == 2
    return folder / "cache"
