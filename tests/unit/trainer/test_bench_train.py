"""What the training benchmark writes down; its figures themselves are no test's business."""

import pytest

from schemas.errors import ConfigError
from schemas.options import BenchOptions
from tests.caches import Quiet
from tests.unit.trainer.streams import Cached
from trainer.bench_train import measure


def test_measure__share_and_wait(cached: Cached) -> None:
    asked = {"what": "train", "cache": str(cached.cache), "teacher": "vit", "grid": 2}
    small = {"students": "timm:test_vit", "batch_size": 4, "steps": 2, "repeats": 2}
    (row,) = measure(BenchOptions.model_validate({**asked, **small}), Quiet())
    assert str(row["case"]).startswith("timm:test_vit, batch 4, float32, vit 64 wide at 2")
    shares = row["shares"]
    assert isinstance(shares, list)
    assert len(shares) == 2
    assert 0 < float(str(row["share"])) < 100
    assert 0 <= float(str(row["data_wait"])) < 1


def test_measure__needs_a_cache() -> None:
    with pytest.raises(ConfigError, match="--cache"):
        measure(BenchOptions(what="train"), Quiet())
