"""The stream: batches of pictures and cached targets, in the exact order, prepared on threads.

Reads whole blocks, replays each row's stored view from the source image, and joins every teacher's
rows by plan row. The state of the stream is a cursor; what threads there are changes only the
speed. A row's picture must be the one the teachers saw, to the byte, and where the student's size
equals a teacher's, to the pixel.
"""

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from infra.pixels.decode import decode, silence_pillow
from infra.pixels.views import draws_of_row, pixels_digest, see
from infra.redact import printable
from infra.sources import Source, open_source
from infra.store import FROM_ENVIRONMENT
from schemas.errors import CacheError, ConfigError, ImageError, ResumeError
from schemas.keyed_hash import hash_texts
from schemas.names import BLOCK_ROWS
from schemas.spans import images_and_views
from schemas.store_config import StoreOptions
from trainer.batch import Batch, Target
from trainer.cache import Block, CacheReader
from trainer.order import BlockTable, EpochOrder
from trainer.set_reader import TeacherInfo

MAX_AUTO_THREADS = 16
Place = tuple["Future[Block]", int, int]
"""(block, generation, row of the block) of one row of a batch."""


class CacheStream(IterableDataset[Batch]):
    """Endless batches of a pinned snapshot, epoch after epoch; an epoch's last may be short.

    Args:
        cache: folder of the cache, or s3://BUCKET/PREFIX.
        snapshot: its number, or the newest.
        teachers: name -> grid, None for the only one it was cached at; None for every teacher.
        pixels: side of the student's squares; None gives batches without pictures.
        views: which views of each image are served.
        seed: of the order.
        images_root: where the data set is now, if not where it was extracted from.
        threads: that read and decode.
        prefetch_batches: batches prepared ahead.
        store: how S3 is reached, where the environment does not say it.

    Raises:
        CacheError: no cache, no snapshot, no rows to serve.
    """

    def __init__(
        self,
        cache: str,
        *,
        snapshot: int | Literal["latest"] = "latest",
        teachers: Mapping[str, int | None] | None = None,
        pixels: int | None,
        batch_size: int,
        views: Literal["all"] | Sequence[int] = "all",
        seed: int = 0,
        images_root: str | None = None,
        threads: int | Literal["auto"] = "auto",
        prefetch_batches: int = 4,
        store: StoreOptions = FROM_ENVIRONMENT,
    ) -> None:
        super().__init__()
        silence_pillow()
        self._reader = CacheReader(cache, snapshot, teachers, store)
        self._pixels, self._batch_size, self._seed = pixels, batch_size, seed
        automatic = min(MAX_AUTO_THREADS, os.cpu_count() or 1)
        self._threads = automatic if threads == "auto" else threads
        self._prefetch = prefetch_batches
        self._views = None if views == "all" else frozenset(views)
        self._table, self._places = self._serve()
        if self._table.rows == 0:
            raise CacheError(
                f"{cache}: snapshot {self.snapshot} has no rows that all of "
                f"{', '.join(self.teachers)} cover in the views asked for"
            )
        self._sources: list[Source] = [
            open_source(images_root or commit.source, commit.columns, commit.limits.max_bytes)
            for commit in (self._reader.generations if pixels else ())
        ]
        self._epoch = self._row = 0

    @property
    def snapshot(self) -> int:
        return self._reader.snapshot

    @property
    def teachers(self) -> dict[str, TeacherInfo]:
        return self._reader.teachers

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return self._table.rows

    def state_dict(self) -> dict[str, int | str]:
        """After the last batch handed out; the same as that batch's `state`."""
        return self._state(self._epoch, self._row)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin where `state` says, with any batch size and threads.

        Raises:
            ResumeError: the state is of another snapshot, seed or choice of rows.
        """
        mine = self.state_dict()
        for name in ("snapshot", "seed", "views", "teachers"):
            if state.get(name) != mine[name]:
                raise ResumeError(
                    f"the stream's state is of another order: {name} was {state.get(name)}, "
                    f"now {mine[name]}"
                )
        self._epoch, self._row = int(state["epoch"]), int(state["row"])

    def __iter__(self) -> Generator[Batch, None, None]:
        if get_worker_info() is not None:
            raise ConfigError(
                "CacheStream has threads of its own: give it to a DataLoader with num_workers=0, "
                "or iterate over it directly"
            )
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="stream")
        waiting: deque[Future[Batch]] = deque()
        try:
            batches = self._batches(pool)
            for places, state in islice(batches, self._prefetch):
                waiting.append(pool.submit(self._assemble, places, state))
            while True:
                batch = waiting.popleft().result()
                places, state = next(batches)
                waiting.append(pool.submit(self._assemble, places, state))
                self._epoch, self._row = int(batch.state["epoch"]), int(batch.state["row"])
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(
        self, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Place], dict[str, int | str]]]:
        """The rows of each batch; a window's blocks are asked for one window ahead."""
        start = self._row
        for epoch in count(self._epoch):
            ahead: list[Place] = []
            done = start
            for begin, places in self._windows(pool, epoch, start):
                ahead += places[begin:]
                while len(ahead) >= self._batch_size:
                    now, ahead = ahead[: self._batch_size], ahead[self._batch_size :]
                    done += len(now)
                    yield now, self._after(epoch, done)
            if ahead:
                yield ahead, self._after(epoch, done + len(ahead))
            start = 0

    def _windows(
        self, pool: ThreadPoolExecutor, epoch: int, start: int
    ) -> Iterator[tuple[int, list[Place]]]:
        record = self._reader.record
        order = EpochOrder(
            self._table, record.window_blocks, bytes.fromhex(record.order_key), self._seed, epoch
        )
        queue: deque[tuple[int, list[Place]]] = deque()
        for begin, window in order.windows(start):
            places = [self._places[index] for index in window.blocks]
            futures = [pool.submit(self._reader.read_block, *place[:2]) for place in places]
            rows = [
                (futures[block], places[block][0], int(places[block][2][row]))
                for block, row in zip(window.block_of, window.row_of)
            ]
            queue.append((begin, rows))
            if len(queue) > 1:
                yield queue.popleft()
        yield from queue

    def _assemble(self, places: list[Place], state: dict[str, int | str]) -> Batch:
        rows = np.empty(len(places), np.int64)
        weight = np.ones(len(places), np.float32)
        for index, (block, _, row) in enumerate(places):
            rows[index] = block.result().first_row + row
            weight[index] = all(part.ok[row] for part in block.result().sets.values())
        side = self._pixels or 0
        pixels = np.zeros((len(places), side, side, 3), np.uint8)
        for index in np.flatnonzero(weight).tolist() if side else ():
            block, generation, row = places[index]
            pixels[index] = self._replay(block.result(), generation, row)
        targets = {}
        for name, info in self.teachers.items():
            parts = [(block.result().sets[name], row) for block, _, row in places]
            has_cls = info.cls_width is not None
            targets[name] = Target(
                grid=info.grid,
                tokens=torch.from_numpy(np.stack([part.tokens[row] for part, row in parts])),
                cls=torch.from_numpy(np.stack([part.cls[row] for part, row in parts]))  # type: ignore[index]
                if has_cls
                else None,
            )
        return Batch(
            rows=torch.from_numpy(rows),
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            weight=torch.from_numpy(weight),
            targets=targets,
            state=state,
        )

    def _replay(self, block: Block, generation: int, row: int) -> npt.NDArray[np.uint8]:
        """The stored view of a row at the student's size. Raises CacheError if it is another."""
        line = {name: block.plan[name][row].as_py() for name in block.plan.column_names}
        commit = self._reader.generations[generation]
        key = line["key"]
        try:
            data = self._sources[generation].read(key)
            image = decode(data, commit.limits)
        except ImageError as error:
            raise CacheError(
                f"image {printable(key)}: {error}; it could be read when it was extracted. "
                "Set images.root if the data set has moved"
            ) from None
        square = see(image, draws_of_row(line), commit.views, self._pixels or 0)
        self._refuse_other_pixels(block, row, key, data, square)
        return square

    def _refuse_other_pixels(
        self, block: Block, row: int, key: str, data: bytes, square: npt.NDArray[np.uint8]
    ) -> None:
        sha256 = hashlib.sha256(data).digest()
        for part in block.sets.values():
            if part.image_sha256[row] != sha256:
                raise CacheError(
                    f"image {printable(key)}: has changed since it was extracted; run extract "
                    "again and train on the new snapshot, or restore the picture"
                )
            if part.pixels == self._pixels and part.pixels_sha256[row] != pixels_digest(square):
                raise CacheError(
                    f"image {printable(key)}: decodes to other pixels here than where it was "
                    "extracted; install the Pillow version that teacher.json names"
                )

    def _serve(self) -> tuple[BlockTable, list[tuple[int, int, npt.NDArray[np.int64]]]]:
        """The blocks to serve, and for each its (generation, block, rows of the block)."""
        first_rows, sizes = [], []
        places: list[tuple[int, int, npt.NDArray[np.int64]]] = []
        for generation, plan in enumerate(self._reader.generations):
            for block in np.flatnonzero(self._reader.covered(generation)).tolist():
                rows = self._served_rows(generation, block)
                if len(rows):
                    places.append((generation, block, rows))
                    first_rows.append(plan.first_row + block * BLOCK_ROWS)
                    sizes.append(len(rows))
        return BlockTable(np.array(first_rows, np.int64), np.array(sizes, np.int64)), places

    def _served_rows(self, generation: int, block: int) -> npt.NDArray[np.int64]:
        plan = self._reader.generations[generation]
        rows = np.arange(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, plan.rows))
        keep = self._reader.served(generation, rows)
        if self._views is not None:
            keep &= np.isin(images_and_views(plan, rows)[1], sorted(self._views))
        return np.flatnonzero(keep)

    def _after(self, epoch: int, row: int) -> dict[str, int | str]:
        return self._state(epoch, row) if row < self.rows else self._state(epoch + 1, 0)

    def _state(self, epoch: int, row: int) -> dict[str, int | str]:
        teachers = sorted(f"{n} {i.fingerprint} {i.grid}" for n, i in self.teachers.items())
        return {
            "format": 1,
            "snapshot": self.snapshot,
            "seed": self._seed,
            "views": "all" if self._views is None else ",".join(map(str, sorted(self._views))),
            "teachers": f"{int(hash_texts([str(teachers)], b'stream')[0]):016x}",
            "epoch": epoch,
            "row": row,
        }
