"""`teachonce pack`: the pictures themselves beside the features, in the order of the plan.

Training then needs the cache alone, and one kind of read: no millions of small files, no archive
that is read again and again because its order is another. A pack is a tar of consecutive images;
which bytes are whose stands in its commit. Whatever a picture has become since it was extracted,
training compares it with what the teachers saw, so nothing has to be decoded or compared here.
"""

import io
import tarfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np

from infra.catalog import Catalog
from infra.command import Outcome
from infra.entry import is_picture
from infra.plan_reader import PlanReader
from infra.sources import Source, open_source
from infra.store import ObjectStore, open_store
from infra.terminal import Terminal, human_bytes
from pipeline.lease import lease
from schemas import layout
from schemas.errors import AlreadyExists, ImageError
from schemas.names import PACK_IMAGES
from schemas.options import PackOptions
from schemas.records import ObjectRecord, PackCommit, PlanCommit
from schemas.sealed import digest, seal, unseal
from schemas.spans import rows_of


def run(options: PackOptions, terminal: Terminal) -> Outcome:
    """Pack what is not packed yet.

    Raises:
        CacheError: there is no cache. ConfigError: the data set is not there.
        SourceError: reading it failed; what was committed stays.
    """
    store = open_store(options.cache, options.store)
    catalog = Catalog(store)
    with lease(store, "extract"):
        packed = [
            _Packing(store, commit, options).run(terminal) for commit in catalog.generations()
        ]
    images, bad, written = (sum(each) for each in zip(*packed)) if packed else (0, 0, 0)
    terminal.say(
        f"pack         {images:,} pictures, {human_bytes(written)} written; {bad:,} of those that "
        "were packed now could not be read"
    )
    return Outcome({"images": images, "bad": bad, "bytes_written": written})


def packs(store: ObjectStore) -> Iterator[PackCommit]:
    """Every pack that a listing shows. Raises DamageError."""
    for key in sorted(store.keys(layout.PACK_COMMITS)):
        yield unseal(store.get(key), PackCommit, key)


class _Packing:
    """Of one generation of the plan."""

    def __init__(self, store: ObjectStore, commit: PlanCommit, options: PackOptions) -> None:
        self._store, self._commit, self._threads = store, commit, options.threads
        self._plan = PlanReader(store, commit)
        self._source: Source = open_source(
            options.root or commit.source, commit.columns, commit.limits.max_bytes
        )

    def run(self, terminal: Terminal) -> tuple[int, int, int]:
        """Pictures, those of them that cannot be read, and bytes written."""
        generation = self._commit.generation
        folder = layout.pack_commit(generation, 0).rpartition("/")[0].rpartition("/")[0]
        known = layout.numbers(self._store.keys(f"{folder}/"))
        bad = written = 0
        with (
            ThreadPoolExecutor(self._threads, thread_name_prefix="pack") as pool,
            terminal.progress(f"pack {generation}", self._commit.images, "pictures") as meter,
        ):
            for number in range(-(-self._commit.images // PACK_IMAGES)):
                keys = self._keys(number)
                if number not in known:
                    pictures = list(pool.map(self._read, keys))
                    bad += sum(picture is None for picture in pictures)
                    written += self._write(number, keys, pictures)
                meter.advance(len(keys))
        return self._commit.images, bad, written

    def _keys(self, number: int) -> list[str]:
        end = min((number + 1) * PACK_IMAGES, self._commit.images)
        rows = rows_of(self._commit, np.arange(number * PACK_IMAGES, end))[:, 0]
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return [
            key for run in runs for key in self._plan.rows(int(run[0]), len(run))["key"].to_pylist()
        ]

    def _read(self, key: str) -> bytes | None:
        try:
            return self._source.read(key)
        except ImageError:
            return None  # a bad row, or one that training will refuse by name

    def _write(self, number: int, keys: list[str], pictures: list[bytes | None]) -> int:
        """Write a pack; returns its bytes, 0 where another job has made it meanwhile."""
        generation, attempt = self._commit.generation, uuid.uuid4().hex[:12]
        data, offsets = _tar(number * PACK_IMAGES, keys, pictures)
        key = layout.pack(generation, number, attempt)
        commit = PackCommit(
            generation=generation,
            number=number,
            object=ObjectRecord(key=key, size=len(data), sha256=digest(data)),
            offsets=offsets,
            sizes=tuple(len(picture or b"") for picture in pictures),
        )
        self._store.create(key, data)
        try:
            self._store.create(layout.pack_commit(generation, number), seal(commit))
        except AlreadyExists:
            return 0
        return len(data)


def _tar(
    first_image: int, keys: list[str], pictures: list[bytes | None]
) -> tuple[bytes, tuple[int, ...]]:
    """An archive of the pictures by number, and where the bytes of each begin; -1 of none."""
    file, offsets = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for image, (key, picture) in enumerate(zip(keys, pictures), first_image):
            if picture is None:
                offsets.append(-1)
                continue
            # By number: a key may be whatever a hostile data set calls a picture.
            suffix = PurePosixPath(key).suffix.lower() if is_picture(key) else ""
            member = tarfile.TarInfo(f"{image:09d}{suffix}")
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
            offsets.append(file.tell() - _padded(len(picture)))
    return file.getvalue(), tuple(offsets)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
