"""A cache with everything that the format has: two teachers from files, two grids, two views, bad
and unusual pictures, two generations, two snapshots."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from infra.models.timm_encoder import build_timm
from tests.caches import CNN, VIT, config_of, extract_here, odd_pictures, pictures


@pytest.fixture(scope="session")
def whole_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
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
        views={"per_image": 2},
        grids=[2, 3],
        teachers=teachers,
        tolerate_bad_images=1,
    )
    assert extract_here(config).status == 0
    pictures(source, 3, first=500)
    assert extract_here(config).result["snapshot"] == 2
    return folder / "cache"
