"""Caches with everything that the format has: two teachers from files, two grids, two views, bad
and unusual pictures, several generations and snapshots."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from infra.models.timm_encoder import build_timm
from schemas.extract_config import ExtractConfig
from tests.builders import photograph_bytes
from tests.caches import CNN, VIT, config_of, extract_here, odd_pictures, pictures


def _first_extraction(folder: Path, **views: Any) -> ExtractConfig:
    teachers = {}
    for name, teacher in (("vit", VIT), ("cnn", CNN)):
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
        grids=[2, 3],
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
