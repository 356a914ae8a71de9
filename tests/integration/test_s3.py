"""The whole way with the cache, and the pictures, on S3."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError
from s3fs import S3FileSystem

from infra.command import Outcome
from infra.sources import open_source
from infra.store import LocalStore
from pipeline import gc, verify
from schemas.errors import ConfigError, SourceError
from schemas.extract_config import Columns
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
from tests.unit.infra.archives import tar_bytes
from trainer import CacheStream

pytestmark = pytest.mark.s3
PICTURES = 40
CLOSED = "http://127.0.0.1:1"
REASONS = {
    "bucket": "give a folder of pictures",
    "credentials": "Unable to locate credentials; set AWS_ACCESS_KEY_ID and",
    "endpoint": "Could not connect to the endpoint URL.*; check the address",
}
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


def spoil(server: S3Server, monkeypatch: pytest.MonkeyPatch, wrong: str) -> str:
    """Something is wrong with the way to this bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", CLOSED if wrong == "endpoint" else server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.key)
    if wrong == "credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    return "no-such-bucket-here" if wrong == "bucket" else server.bucket


@pytest.fixture
def fresh() -> Iterator[None]:
    """fsspec keeps its file systems, whatever has become of the variables since."""
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


def parquet_bytes(pictures: list[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    names, images = zip(*pictures)
    pq.write_table(pa.table({"path": names, "image": images}), sink)
    return sink.getvalue()


@pytest.fixture
def bucket(server: S3Server, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix with photographs in two archives, and as files of their own that a list names."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    client, prefix = server.client(), tmp_path.name
    files = sorted(pictures(tmp_path / "pictures", PICTURES).iterdir())
    whole = [(path.name, path.read_bytes()) for path in files]
    objects = {
        "tars/000.tar": tar_bytes(*whole[:25]),
        "tars/001.tar": tar_bytes(*whole[25:], ("empty.jpg", b"")),
        "table.parquet": parquet_bytes(whole[:4]),
        **{f"photos/{name}": data for name, data in whole},
    }
    root = f"s3://{server.bucket}/{prefix}"
    lines = [f"photos/{whole[0][0]}", *(f"{root}/photos/{name}" for name, _ in whole[1:])]
    objects["list.txt"] = "\n".join(lines).encode()
    for name, data in objects.items():
        client.put_object(Bucket=server.bucket, Key=f"{prefix}/{name}", Body=data)
    return root


@pytest.mark.parametrize("what", ["tars", "tars/*.tar", "list.txt"])
def test_extract__from_archives_and_lists_in_a_bucket(
    bucket: str, tmp_path: Path, what: str
) -> None:
    config = config_of(tmp_path / "cache", f"{bucket}/{what}", tolerate_bad_images=0.1)
    told = extract_here(config).result
    assert (told["ok"], told["bad"]) == (PICTURES, int("tar" in what))
    stream = CacheStream(str(tmp_path / "cache"), pixels=32, batch_size=PICTURES)
    assert len(next(iter(stream)).rows) == PICTURES
    again = extract_here(config).result
    assert (again["teacher_forwards"], again["snapshot"]) == (0, 1)


def test_source__archives_in_a_bucket_have_stamps(bucket: str) -> None:
    entries = list(open_source(f"{bucket}/tars", Columns()).entries())
    assert len({entry.etag for entry in entries} - {""}) == 2
    assert {entry.key.partition("/")[0] for entry in entries} == {"000.tar", "001.tar"}


@pytest.mark.parametrize("source", ["photos", "a.tar", "*.tar"])
@pytest.mark.parametrize("wrong", REASONS)
def test_source__in_a_bucket_that_cannot_be_reached(
    server: S3Server, fresh: None, monkeypatch: pytest.MonkeyPatch, source: str, wrong: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    bucket = spoil(server, monkeypatch, wrong)
    with pytest.raises(ConfigError, match=REASONS[wrong]):
        open_source(f"s3://{bucket}/{source}", Columns())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoCredentialsError(), REASONS["credentials"]),
        (EndpointConnectionError(endpoint_url=f"{CLOSED}/b?sig=s1gn4ture"), REASONS["endpoint"]),
    ],
    ids=["credentials", "endpoint"],
)
@pytest.mark.parametrize("what", ["photos", "tars", "list.txt", "table.parquet"])
def test_source__that_is_lost_once_it_is_open(
    bucket: str, monkeypatch: pytest.MonkeyPatch, what: str, error: Exception, told: str
) -> None:
    source = open_source(f"{bucket}/{what}", Columns())
    key = next(iter(source.entries())).key
    source = open_source(f"{bucket}/{what}", Columns())  # one that has not listed

    async def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(S3FileSystem, "_call_s3", fail)
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setattr("infra.address_list.PAUSES_S", ())
    S3FileSystem.current().invalidate_cache()
    with pytest.raises(SourceError, match=f"reading .*{told}.*run again") as reading:
        source.read(key)
    with pytest.raises(ConfigError, match=f"listing failed: {told}") as listing:
        list(source.entries())
    assert "s1gn4ture" not in f"{reading.value} {listing.value}"


@pytest.mark.parametrize(
    "wrong",
    # The libraries try a closed port again for 20 s.
    [pytest.param(wrong, marks=[pytest.mark.slow] * (wrong == "endpoint")) for wrong in REASONS],
)
def test_extract__with_pictures_that_cannot_be_reached(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    bucket = spoil(server, monkeypatch, wrong)
    values = settings(tmp_path / "cache", f"s3://{bucket}/photos")
    told = run(by_module("extract"), "--config", config_file(tmp_path / "extract.yaml", values))
    assert told.status == 2, told.stderr
    assert re.search(REASONS[wrong], told.stderr)
    assert "Traceback" not in told.stderr
    assert server.secret not in told.stderr + told.stdout
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("command", ["verify", "train"])
def test_commands__on_a_cache_in_no_bucket(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    bucket = spoil(server, monkeypatch, "bucket")
    words = ["--cache", f"s3://{bucket}/cache"]
    if command == "train":
        words += ["--student.model", "timm:test_vit", "--student-grids", "[2]", "--out", "run"]
    told = run(by_module(command), *words)
    assert told.status == 2, told.stderr
    assert f"there is no bucket {bucket}; create it" in told.stderr
    assert "Traceback" not in told.stderr
