"""What the loader benchmark writes down; its figures themselves are no test's business."""

import pytest

from schemas.errors import ConfigError
from schemas.options import BenchOptions
from tests.caches import Quiet
from tests.unit.trainer.streams import ROWS, Cached
from trainer import bench_loader, bench_readers
from trainer.bench_loader import measure

READERS = {"raw", "blocks", "stream", "tensorstore"}


def _options(cached: Cached, **changes: object) -> BenchOptions:
    asked = {"what": "loader", "cache": str(cached.cache), "teacher": "vit", "grid": 2}
    return BenchOptions.model_validate({**asked, "repeats": 1, **changes})


def test_measure__every_reader_warm_and_cold(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied = []
    monkeypatch.setattr(bench_loader, "evict", lambda files: emptied.append(files) or 0)
    monkeypatch.setattr(bench_readers, "PICTURE_ROWS", 64)
    rows = measure(_options(cached, pixels=32), Quiet())
    told = {(row["reader"], str(row["case"]).split()[-1], row["threads"]) for row in rows}
    threads = {row["threads"] for row in rows}
    states = {"warm", "cold"}
    every = {(reader, state, count) for reader in READERS for state in states for count in threads}
    pictures = {("stream with pictures", s, t) for s in states for t in threads}
    second = {("stream, second epoch", "warm", t) for t in threads}
    assert told - every == pictures | second
    assert every <= told
    assert all(row["share_of_raw"] == 1 for row in rows if row["reader"] == "raw")
    # Before each run of each reader, the one that is not counted included.
    assert len(emptied) == 2 * len(threads) * (len(READERS) + 1)


def test_measure__reads_what_it_says(cached: Cached) -> None:
    case = bench_loader._case(_options(cached))
    first = ROWS - 10  # of the first generation
    assert (case.rows, len(case.blocks)) == (first, -(-first // 32))
    assert sum(bench_readers._epoch(bench_readers._opened(case, 1, None))) == ROWS


def test_measure__what_stays_in_memory_is_not_called_cold(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_loader, "evict", lambda files: 0.5)
    with pytest.raises(ConfigError, match="50% of it stays in the page cache"):
        bench_loader._make_cold(bench_loader._case(_options(cached)))


def test_measure__needs_a_cache() -> None:
    with pytest.raises(ConfigError, match="--cache"):
        measure(BenchOptions(what="loader"), Quiet())
