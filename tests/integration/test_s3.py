"""The whole way with the cache, and the pictures, on S3."""

import os
from pathlib import Path
from typing import Any

import pytest

from infra.command import Outcome
from infra.store import LocalStore
from pipeline import gc, verify
from schemas.options import GcOptions, VerifyOptions
from schemas.store_config import StoreOptions
from tests.caches import (
    CNN,
    VIT,
    Quiet,
    assert_same,
    config_of,
    contents,
    extract_here,
    pictures,
    settings,
)
from tests.processes import by_module, config_file, run
from tests.s3server import S3Server
from trainer import CacheStream

pytestmark = pytest.mark.s3
PICTURES = 40
ASKED: dict[str, Any] = {"teachers": {"vit": VIT, "cnn": CNN}, "views": {"per_image": 2}}


def verified(url: str, server: S3Server) -> Outcome:
    options = VerifyOptions(cache=url, store=StoreOptions(endpoint=server.endpoint))
    return verify.run(options, Quiet())


def test_extract__gives_on_s3_what_it_gives_on_a_disk(server: S3Server, tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", PICTURES)
    store, there = server.store(), {"endpoint": server.endpoint}
    told = extract_here(config_of(store.url, source, store=there, **ASKED)).result
    here = extract_here(config_of(tmp_path / "cache", source, **ASKED)).result
    assert (told["ok"], told["shards"]) == (here["ok"], here["shards"])
    assert_same(contents(store), contents(LocalStore(tmp_path / "cache")))
    outcome = verified(store.url, server)
    assert (outcome.status, outcome.result["ok"]) == (0, 2 * PICTURES)
    stream = CacheStream(store.url, pixels=32, batch_size=50, store=StoreOptions(**there))
    assert [len(batch.rows) for batch, _ in zip(stream, range(3))] == [50, 30, 50]
    again = extract_here(config_of(store.url, source, store=there, **ASKED)).result
    assert (again["teacher_forwards"], again["snapshot"]) == (0, 1)
    store.create("features/0123456789ab/left", b"behind")
    collected = gc.run(
        GcOptions(cache=store.url, store=StoreOptions(**there), delete=True), Quiet()
    )
    assert collected.result["deleted"] == 1


def test_commands__with_pictures_and_cache_in_a_bucket(server: S3Server, tmp_path: Path) -> None:
    """Real Ray workers, which find the store and the pictures by themselves."""
    client = server.client()
    prefix = tmp_path.name
    for path in sorted(pictures(tmp_path / "pictures", PICTURES).iterdir()):
        client.put_object(
            Bucket=server.bucket, Key=f"{prefix}/photos/{path.name}", Body=path.read_bytes()
        )
    root = f"s3://{server.bucket}/{prefix}"
    environment = {**os.environ, **server.environment(), "AWS_ENDPOINT_URL": server.endpoint}
    extraction = config_file(
        tmp_path / "extract.yaml",
        settings(f"{root}/cache", f"{root}/photos", store={"endpoint": server.endpoint}, **ASKED),
    )
    told = run(by_module("extract"), "--config", extraction, environment=environment)
    assert (told.status, told.result.get("ok")) == (0, 2 * PICTURES), told.stderr
    training = {
        "cache": f"{root}/cache",
        "student": {"model": "timm:test_vit"},
        "student_grids": [2],
        "head": {"hidden": 16},
        "optim": {"lr": 1e-3, "steps": 3, "batch_size": 16, "warmup_steps": 1},
        "out": str(tmp_path / "run"),
    }
    config = config_file(tmp_path / "train.yaml", training)
    trained = run(by_module("train"), "--config", config, environment=environment)
    assert (trained.status, trained.result.get("step")) == (0, 3), trained.stderr
    for text in (told.stderr, trained.stderr, told.stdout):
        assert server.secret not in text
