"""Every object key of a cache, spelled once. FORMAT.md shows the tree."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

CACHE = "cache.json"
PLAN_COMMITS = "commits/plan/"
SNAPSHOT_COMMITS = "commits/snapshots/"
SHARD_COMMITS = "commits/features/"
FORGOTTEN = "commits/forgotten/"
TAGS = "commits/tags/"
PACK_COMMITS = "commits/images/"
JOBS = "jobs/"
COMMITS_PER_FOLDER = 1024


def numbers(keys: Iterable[str]) -> set[int]:
    """The numbers of listed records; whatever else lies beside them is passed over."""
    found = (re.search(r"/(\d+)(\.r\d+)?\.json$", key) for key in keys)
    return {int(match[1]) for match in found if match}


def place_of_commit(key: str) -> tuple[str, int, int] | None:
    """(set, generation, shard) of the key of a shard's commit; None of any other."""
    match = re.fullmatch(r"commits/(features/\w+/g\d+/[\w.-]+)/(\d+)/\d+/(\d+)\.json", key)
    return match and (match[1], int(match[2]), int(match[3]))


def forgotten(number: int) -> str:
    return f"{FORGOTTEN}{number:06d}.json"


def tag(name: str) -> str:
    return f"{TAGS}{name}.json"


def job_folder(job: str) -> str:
    return f"{JOBS}{job}/"


def job(job: str) -> str:
    return f"{job_folder(job)}job.json"


def beat(job: str, number: int) -> str:
    return f"{job_folder(job)}{number}"


def plan_part(generation: int, part: int, attempt: str) -> str:
    return f"plan/{generation:06d}/{part:05d}.{attempt}.parquet"


def plan_superseded(generation: int, attempt: str) -> str:
    return f"plan/{generation:06d}/superseded.{attempt}.parquet"


def plan_commit(generation: int) -> str:
    return f"{PLAN_COMMITS}{generation:06d}.json"


def pack(generation: int, number: int, attempt: str) -> str:
    return f"images/{generation:06d}/{number}.{attempt}.tar"


def pack_commit(generation: int, number: int) -> str:
    return f"{PACK_COMMITS}{generation:06d}/{number // COMMITS_PER_FOLDER}/{number}.json"


def snapshot(number: int, attempt: str) -> str:
    return f"snapshots/{number:06d}.{attempt}.parquet"


def snapshot_commit(number: int) -> str:
    return f"{SNAPSHOT_COMMITS}{number:06d}.json"


def teacher(fingerprint12: str) -> str:
    return f"teachers/{fingerprint12}/teacher.json"


def calibration(fingerprint12: str, grid: int) -> str:
    return f"features/{fingerprint12}/g{grid}/calibration.json"


def covariance(fingerprint12: str, grid: int, vector: str, attempt: str) -> str:
    """`vector` is `tokens` or `cls`."""
    return f"features/{fingerprint12}/g{grid}/covariance.{vector}.{attempt}.parquet"


def axes(fingerprint12: str, grid: int, attempt: str) -> str:
    return f"features/{fingerprint12}/g{grid}/axes.{attempt}.parquet"


def probe(fingerprint12: str, grid: int) -> str:
    return f"features/{fingerprint12}/g{grid}/probe.json"


@dataclass(frozen=True, slots=True)
class SetPath:
    """One feature set: (teacher fingerprint, grid, codec)."""

    fingerprint12: str
    grid: int
    codec: str
    """Label and first 8 hex digits of the sha256 of codec.json, as `fp16-0a1b2c3d`."""

    def __str__(self) -> str:
        return f"features/{self.fingerprint12}/g{self.grid}/{self.codec}"

    @classmethod
    def parse(cls, text: str) -> "SetPath":
        _, fingerprint12, grid, codec = text.split("/")
        return cls(fingerprint12, int(grid[1:]), codec)

    @property
    def codec_label(self) -> str:
        return self.codec.partition("-")[0]

    @property
    def codec_json(self) -> str:
        return f"{self}/codec.json"

    def array(self, generation: int) -> str:
        return f"{self}/{generation:06d}/tokens/zarr.json"

    def tokens(self, generation: int, shard: int) -> str:
        return f"{self}/{generation:06d}/tokens/c/{shard}/0/0"

    def cls_table(self, generation: int, shard: int, attempt: str) -> str:
        return f"{self}/{generation:06d}/cls/{shard}.{attempt}.parquet"

    def commits(self, generation: int) -> str:
        return f"commits/{self}/{generation:06d}/"

    def commit(self, generation: int, shard: int, revision: int = 0) -> str:
        folder = f"{self.commits(generation)}{shard // COMMITS_PER_FOLDER}"
        return f"{folder}/{shard}{f'.r{revision}' if revision else ''}.json"
