"""EUPE's first stage, and the cache that the others begin with."""

from pathlib import Path

import pytest

from tests.builders import photograph_folder
from tests.caches import CNN, VIT, config_of, extract_here
from tests.trainings import SMALL_PROXY, Run, train_here

PICTURES = 24


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stages, one beside the other."""
    folder = tmp_path_factory.mktemp("stages")
    photograph_folder(folder / "pictures", PICTURES)
    return folder


@pytest.fixture(scope="session")
def proxy(stages: Path) -> Run:
    """The first stage: what its experts said, learnt by one model."""
    experts = {"vit": VIT | {"grids": [3]}, "cnn": CNN | {"grids": [2]}}
    extract_here(config_of(stages / "experts", stages / "pictures", teachers=experts))
    return train_here(
        stages / "experts",
        stages / "proxy",
        stage="proxy",
        student={"model": "proxy_vit_g", "arguments": SMALL_PROXY},
        student_grids=[3],
    )


@pytest.fixture(scope="session")
def proxy_cache(stages: Path, proxy: Run) -> Path:
    """What the proxy said at two grids."""
    teachers = {"proxy": {"library": "teachonce", "weights": str(proxy.out)}}
    config = config_of(
        stages / "cache",
        stages / "pictures",
        teachers=teachers,
        grids=[2, 3],
        views={"per_image": 2},
    )
    assert extract_here(config).result["bad"] == 0
    return stages / "cache"
