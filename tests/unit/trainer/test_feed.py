"""Several caches that take turns."""

import json
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import ConfigError, ResumeError
from schemas.train_config import TrainConfig
from tests.caches import CNN, VIT, config_of, extract_here, pictures
from trainer import CacheStream
from trainer.batch import Affine, Batch, Target
from trainer.feed import Feed, open_feed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches of the same teachers, over other pictures and so with other statistics."""
    folder = tmp_path_factory.mktemp("feed")
    teachers = {"vit": VIT, "cnn": CNN}
    for name, count, first in (("web", 70, 0), ("net", 45, 500)):
        source = pictures(folder / name, count, first=first)
        extract_here(config_of(folder / f"{name}-cache", source, teachers=teachers))
    source = pictures(folder / "few", 5)
    others = {"vit": VIT, "cnn": CNN | {"weights": "random:77"}}
    extract_here(config_of(folder / "other-cache", source, teachers=others))
    return folder


def feed_of(folder: Path, share: float = 0.3, **changes: Any) -> Feed:
    values = {
        "cache": str(folder / "web-cache"),
        "mix": {"net": {"cache": str(folder / "net-cache"), "share": share}},
        "student": {"model": "timm:test_vit"},
        "optim": {"batch_size": 8},
        "out": "unused",
        **changes,
    }
    return open_feed(TrainConfig.model_validate(values), [32])


def take(feed: Feed, count: int) -> list[Batch]:
    with closing(iter(feed)) as batches:
        return list(islice(batches, count))


def raw(target: Target) -> torch.Tensor:
    affine = target.tokens_affine or Affine(torch.tensor(1.0), torch.tensor(0.0))
    return target.tokens.float() * affine.scale + affine.shift


def test_feed__takes_turns_by_their_shares(folder: Path) -> None:
    turns = Counter(
        batch.targets["vit"].tokens_affine is None for batch in take(feed_of(folder), 400)
    )
    assert 240 < turns[True] < 320  # 280 expected, deviation 9


def test_feed__each_cache_serves_its_rows_in_its_own_order(folder: Path) -> None:
    batches = take(feed_of(folder), 60)
    for name, is_main in (("web", True), ("net", False)):
        mine = [b for b in batches if (b.targets["vit"].tokens_affine is None) == is_main]
        stream = CacheStream(str(folder / f"{name}-cache"), pixels=32, batch_size=8)
        with closing(iter(stream)) as alone:
            for batch, expected in zip(mine, alone):
                assert torch.equal(batch.rows, expected.rows)
                assert torch.equal(batch.pixels, expected.pixels)


def test_feed__standardises_all_alike(folder: Path) -> None:
    """What the teacher said, whichever cache it comes from, by the first one's statistics."""
    feed = feed_of(folder)
    main = feed.teachers["vit"].statistics[2]
    other = CacheStream(str(folder / "net-cache"), pixels=None, batch_size=1).teachers["vit"]
    theirs = other.statistics[2]
    assert not np.array_equal(main.tokens_mean, theirs.tokens_mean)
    batch = next(b for b in take(feed, 30) if b.targets["vit"].tokens_affine is not None)
    features = batch.targets["vit"].tokens.numpy() * theirs.tokens_std + theirs.tokens_mean
    expected = (features - main.tokens_mean) / main.tokens_std
    np.testing.assert_allclose(raw(batch.targets["vit"]).numpy(), expected, atol=1e-4)


def test_feed__goes_on_from_any_state(folder: Path) -> None:
    whole = take(feed_of(folder), 40)
    again = feed_of(folder)
    again.load_state_dict(json.loads(json.dumps(whole[17].state)))
    assert again.state_dict() == whole[17].state
    for batch, expected in zip(take(again, 22), whole[18:]):
        assert torch.equal(batch.rows, expected.rows)
        assert batch.state == expected.state
    assert len(json.dumps(whole[17].state)) < 1024


def test_feed__of_other_streams_is_refused(folder: Path) -> None:
    state = feed_of(folder).state_dict()
    with pytest.raises(ResumeError, match="was fed by cache, net, now by cache"):
        feed_of(folder, mix={}).load_state_dict(state)


def test_open_feed__other_teachers_are_refused(folder: Path) -> None:
    part = {"cache": str(folder / "other-cache"), "share": 0.1}
    with pytest.raises(ConfigError, match=r"mix\.few: its teacher cnn is another"):
        feed_of(folder, mix={"few": part})


def test_open_feed__shares_leave_something_for_the_first(folder: Path) -> None:
    part = {"cache": str(folder / "net-cache"), "share": 0.5}
    with pytest.raises(ConfigError, match="shares add up to 1"):
        feed_of(folder, mix={"one": part, "two": part})


def test_open_feed__one_cache_has_no_affine(folder: Path) -> None:
    batch = take(feed_of(folder, mix={}, teachers={"vit": {}}), 1)[0]
    assert batch.targets["vit"].tokens_affine is None
    assert list(batch.targets) == ["vit"]
