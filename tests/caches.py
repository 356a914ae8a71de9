"""Tiny caches: photographs, a configuration over them, and an extraction in this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from infra.command import Outcome
from infra.store import LocalStore, ObjectStore
from infra.terminal import Terminal
from pipeline import verify
from pipeline.extract import extract
from pipeline.job import Job
from pipeline.pool import LocalPool
from schemas import shard
from schemas.extract_config import ExtractConfig
from schemas.options import VerifyOptions
from schemas.records import PlanCommit, ShardCommit
from schemas.sealed import unseal
from schemas.strict import parse
from tests.builders import encoded, photograph, photograph_bytes

VIT = {"library": "timm", "model": "test_vit", "weights": "random:1"}
"""16 px a patch, 64 channels, a class token."""
CNN = {"library": "timm", "model": "test_resnet", "weights": "random:2"}
"""32 px a patch, 96 channels, a mean."""
Array = npt.NDArray[Any]


class Quiet(Terminal):
    """Keeps what it is told instead of printing it."""

    def __init__(self) -> None:
        super().__init__(to_stderr=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)


def pictures(folder: Path, count: int, first: int = 0) -> Path:
    """`count` photographs in JPEG, none of them square, of fifteen sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        width, height = 41 + 9 * (seed % 5), 38 + 13 * (seed % 3)
        data = photograph_bytes(seed, width, height)
        (folder / f"{seed:04d}.jpg").write_bytes(data)
    return folder


def odd_pictures(folder: Path) -> tuple[set[str], set[str]]:
    """Pictures that are sound though unusual, and files that are none; their names."""
    picture = photograph(99, 53, 37)
    sixteen = np.arange(53 * 37, dtype=np.uint16).reshape(37, 53) * 33
    alpha = picture.copy()
    alpha.putalpha(picture.convert("L"))
    turned = Image.Exif()
    turned[0x0112] = 6
    sound = {
        "one_pixel.png": encoded(picture.resize((1, 1))),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "sixteen_bit.png": encoded(Image.fromarray(sixteen)),
        "animated.gif": encoded(picture, "GIF", save_all=True, append_images=[photograph(98)]),
        "turned.jpg": encoded(picture, "JPEG", exif=turned),
        "alpha.png": encoded(alpha),
        "palette.png": encoded(picture.convert("P")),
    }
    unsound = {
        "cut.jpg": photograph_bytes(97)[:-200],
        "empty.jpg": b"",
        "text.jpg": b"these are words\n",
    }
    for name, data in (sound | unsound).items():
        (folder / name).write_bytes(data)
    return set(sound), set(unsound)


def settings(cache: str | Path, source: str | Path, **changes: Any) -> dict[str, Any]:
    """What a configuration file holds; one ViT at one small grid unless `changes` say more."""
    return {
        "cache": str(cache),
        "images": {"source": str(source)},
        "grids": [2],
        "teachers": {"vit": VIT},
        "workers": {"batch_size": 32, "gpus": 0, "count": 1, "decode_threads": 1},
        **changes,
    }


def config_of(cache: str | Path, source: str | Path, **changes: Any) -> ExtractConfig:
    return parse(ExtractConfig, settings(cache, source, **changes), "test")


@contextmanager
def local_pool(job: Job, tasks: int) -> Iterator[LocalPool]:
    yield LocalPool(job)


def extract_here(config: ExtractConfig, terminal: Terminal | None = None) -> Outcome:
    """The whole command without Ray, in this process."""
    return extract(config, terminal or Quiet(), local_pool)


def undisturbed(cache: Path, source: Path, processes: int, **changes: Any) -> dict[str, Any]:
    """What a cache holds after a run in this process, with the threads of one of so many workers:
    bits depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    try:
        extract_here(config_of(cache, source, **changes))
    finally:
        torch.set_num_threads(threads)
    return contents(LocalStore(cache))


def verify_here(cache: str | Path, against_teacher: int | None = None) -> Outcome:
    options = VerifyOptions(cache=str(cache), against_teacher=against_teacher)
    return verify.run(options, Quiet())


def commits(store: ObjectStore) -> dict[str, ShardCommit]:
    """Every shard's commit by its key, found by listing."""
    return {
        key: unseal(store.get(key), ShardCommit, key) for key in store.keys("commits/features/")
    }


def contents(store: ObjectStore) -> dict[str, Array | pa.Table]:
    """Every committed number of a cache, without what may differ between two runs: attempts.

    By the commit's key the stored tokens and CLS vectors, NaN in bad rows (0 in codes), and what
    else the CLS table says; by the generation's key the rows of the plan.
    """
    found: dict[str, Array | pa.Table] = {}
    for key, commit in commits(store).items():
        array = f"{commit.set}/{commit.generation:06d}/tokens/zarr.json"
        metadata = store.get(array)
        rows = shard.rows_per_shard_of(metadata)
        _, form = shard.form_of(metadata)
        data = store.get(commit.tokens.key)
        found[f"{key} tokens"] = shard.decode(data, commit.tokens.key, form, rows)
        table = read_table(store, commit.cls.key)
        if "cls" in table.column_names:
            # Apart from its table, because to Arrow no NaN equals another.
            vectors = table["cls"].combine_chunks().flatten()
            found[f"{key} cls"] = np.asarray(vectors).reshape(len(table), -1)
            table = table.drop_columns("cls")
        found[f"{key} rows"] = table
    for key in store.keys("commits/plan/"):
        parts = unseal(store.get(key), PlanCommit, key).parts
        # An etag of a local file is its time of change.
        rows = pa.concat_tables(read_table(store, part.key) for part in parts)
        found[key] = rows.drop_columns("etag")
    return found


def read_table(store: ObjectStore, key: str) -> pa.Table:
    # Five times as fast as pq.read_table.
    return pq.ParquetFile(pa.BufferReader(store.get(key))).read()


def assert_same(first: dict[str, Array | pa.Table], second: dict[str, Array | pa.Table]) -> None:
    """Two caches' `contents` are equal to the bit."""
    assert sorted(first) == sorted(second)
    for key, value in first.items():
        if isinstance(value, pa.Table):
            assert value.equals(second[key]), key
        else:
            np.testing.assert_array_equal(value, second[key], err_msg=key)
