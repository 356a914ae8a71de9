import pytest

from tests.caches import CNN, VIT, config_of, extract_here, pictures
from tests.unit.trainer.streams import EMPTY, IMAGES, MORE, ROWS, VIEWS, Cached


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """Two snapshots of two teachers, the first without the last pictures; one picture is bad."""
    folder = tmp_path_factory.mktemp("stream")
    source = pictures(folder / "pictures", IMAGES)
    (source / EMPTY).write_bytes(b"")
    config = config_of(
        folder / "cache",
        source,
        views={"per_image": VIEWS},
        teachers={"vit": VIT | {"grids": [2, 3]}, "cnn": CNN},
    )
    assert extract_here(config).result["bad"] == VIEWS
    pictures(source, MORE, first=1000)
    assert extract_here(config).result["rows"] == ROWS
    return Cached(folder / "cache", source)
