"""A span of several chunks, and shards that fill at different times within it."""

from pathlib import Path

import numpy as np
import pytest

from infra.store import open_store
from schemas.errors import ConfigError, SourceError
from tests.caches import CNN, VIT, commits, config_of, extract_here, pictures, verify_here
from trainer.cache import CacheReader

IMAGES, VIEWS, SPAN = 70, 3, 64


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Few pictures, yet a span of two chunks and a short one behind it."""
    monkeypatch.setattr("pipeline.planning.span_images", lambda images: SPAN)
    return pictures(tmp_path / "pictures", IMAGES)


def test_process__the_size_of_shards_changes_no_number(tmp_path: Path, source: Path) -> None:
    readers = []
    for rows_per_shard, shards in ((32, 7), (64, 4)):
        cache = tmp_path / f"cache{rows_per_shard}"
        result = extract_here(
            config_of(
                cache,
                source,
                views={"per_image": VIEWS},
                teachers={"vit": VIT, "cnn": {**CNN, "grids": [1]}},
                rows_per_shard=rows_per_shard,
                calibration_images=16,
            )
        ).result
        assert result["ok"] == IMAGES * VIEWS
        assert result["shards"] == 2 * shards == len(commits(open_store(str(cache))))
        assert result["teacher_forwards"] == 2 * IMAGES * VIEWS
        verified = verify_here(cache)
        assert (verified.status, verified.result["ok"]) == (0, IMAGES * VIEWS)
        readers.append(CacheReader(str(cache)))
    for block in range(len(readers[0].covered(0))):
        first, second = (reader.read_block(0, block) for reader in readers)
        assert first.plan.equals(second.plan)
        for name, part in first.sets.items():
            np.testing.assert_array_equal(part.tokens, second.sets[name].tokens)
            np.testing.assert_array_equal(part.cls, second.sets[name].cls)
            assert part.pixels_sha256 == second.sets[name].pixels_sha256


def test_process__a_data_set_that_is_gone_makes_no_bad_rows(tmp_path: Path, source: Path) -> None:
    cache = tmp_path / "cache"
    assert extract_here(config_of(cache, source)).result["ok"] == IMAGES
    names = sorted(source.iterdir())
    kept = names[0].read_bytes()
    for name in names[1:]:
        name.unlink()
    with pytest.raises(SourceError, match=r"none of .* planned pictures is there"):
        extract_here(config_of(cache, source, teachers={"vit": VIT, "cnn": CNN}))
    names[0].unlink()
    with pytest.raises(ConfigError, match="none of them is in"):
        extract_here(config_of(cache, source))
    names[0].write_bytes(kept + b"more")
    with pytest.raises(ConfigError, match=rf"changed since they were planned.*{names[0].name}"):
        extract_here(config_of(cache, source))
