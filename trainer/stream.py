"""The stream: batches of pictures and cached targets, in the exact order, prepared on threads.

Reads blocks ahead of the batches that need them (trainer/ahead.py), bounded in bytes; replays each
row's stored view from its picture; joins every teacher's rows by plan row. The state of the stream
is a cursor; what threads there are changes only the speed.
"""

import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import IterableDataset, get_worker_info

from infra.pixels.decode import silence_pillow
from infra.store import FROM_ENVIRONMENT
from schemas.errors import CacheError, ConfigError, ResumeError
from schemas.keyed_hash import hash_texts
from schemas.store_config import StoreOptions
from trainer.ahead import Ahead, Planned
from trainer.batch import Batch, State
from trainer.cache import AS_WRITTEN, CacheReader, Codecs, Grids
from trainer.epochs import Epochs
from trainer.order import OrderKey
from trainer.pictures import FromPacks, FromSource, Pictures
from trainer.replay import Replay
from trainer.serving import Serving, ViewChoice
from trainer.teacher_info import TeacherInfo

MAX_AUTO_THREADS = 16
AHEAD_AT_LEAST = 2
"""Batches: the next one, and one that is read while that is trained on, whatever its size."""
ROWS_PER_TASK = 8
"""Whose pictures are decoded one after the other."""


class CacheStream(IterableDataset[Batch]):
    """Endless batches of a pinned snapshot, epoch after epoch; an epoch's last may be short.

    Args:
        cache: folder of the cache, or s3://BUCKET/PREFIX.
        snapshot: its number or tag, or the newest.
        teachers: name -> grid, several, or None for the only one it was cached at; None for every
            teacher. Each block has one of several grids in an epoch, and each batch as well.
        pixels: side of the student's squares, or several of which each batch has one; None gives
            batches without pictures.
        views: which views of each image are served; `random` is one of them in each epoch.
        seed: of the order.
        images_root: where the data set is now, if not where it was extracted from.
        pack: take pictures from the cache, where `teachonce pack` has put them.
        threads: that read and decode.
        prefetch_batches: batches prepared ahead.
        memory_bytes: of blocks that are read ahead, beside one block a lane and choice of grids and
            what the next two batches need.
        disk: folder, and how many bytes of it, to keep what was read of a cache on S3 in.
        rank, world: which part of every batch is served here, of how many.
        store: how S3 is reached, where the environment does not say it.
        codecs: name -> codec, for teachers that were cached in several, as `int8`.

    Raises:
        CacheError: no cache, no snapshot, no rows to serve.
        ConfigError: no such grid, or teachers with several grids that are not the same ones.
    """

    def __init__(
        self,
        cache: str,
        *,
        snapshot: int | str = "latest",
        teachers: Grids | None = None,
        pixels: int | Sequence[int] | None,
        batch_size: int,
        views: ViewChoice = "all",
        seed: int = 0,
        images_root: str | None = None,
        pack: bool = False,
        threads: int | Literal["auto"] = "auto",
        prefetch_batches: int = 4,
        memory_bytes: int = 512 << 20,
        disk: tuple[Path, int] | None = None,
        rank: int = 0,
        world: int = 1,
        store: StoreOptions = FROM_ENVIRONMENT,
        codecs: Codecs = AS_WRITTEN,
    ) -> None:
        super().__init__()
        silence_pillow()
        self._reader = CacheReader(cache, snapshot, teachers, store, disk, codecs)
        self._batch_size, self._seed, self._views = batch_size, seed, views
        self._sides = [pixels or 0] if isinstance(pixels, int | None) else list(pixels)
        automatic = min(MAX_AUTO_THREADS, os.cpu_count() or 1)
        self._threads = automatic if threads == "auto" else threads
        self._prefetch, self._memory_bytes = prefetch_batches, memory_bytes
        self._grids = _choices(self.teachers)
        record = self._reader.record
        key = bytes.fromhex(record.order_key)
        order = OrderKey(record.lanes, record.window_blocks, key, seed)
        self._serving = Serving(self._reader, views, order)
        self.rows = self._serving.table(0).rows
        """Rows of the first epoch, and of every one unless views are drawn at random."""
        if self.rows == 0:
            raise CacheError(
                f"{cache}: snapshot {self.snapshot} has no rows that all of "
                f"{', '.join(self.teachers)} cover in the views asked for"
            )
        choices = (len(self._grids), len(self._sides))
        self._epochs = Epochs(self._serving, order, choices, rank, world)
        self._replay = self._replay_of(images_root, pack) if any(self._sides) else None
        self._at: State = {"epoch": 0, "row": 0, "cursors": [0] * len(self._grids)}

    def _replay_of(self, root: str | None, pack: bool) -> Replay:
        generations = self._reader.generations
        pictures: Pictures = (
            FromPacks(self._reader.store, generations) if pack else FromSource(generations, root)
        )
        return Replay(generations, pictures)

    @property
    def snapshot(self) -> int:
        return self._reader.snapshot

    @cached_property
    def teachers(self) -> dict[str, TeacherInfo]:
        return self._reader.teachers

    def state_dict(self) -> State:
        """After the last batch handed out; the same as that batch's `state`."""
        return self._state(self._at)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin where `state` says, with any batch size, threads and ranks.

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
        self._at = {name: state[name] for name in self._at}

    def __iter__(self) -> Generator[Batch, None, None]:
        if get_worker_info() is not None:
            raise ConfigError(
                "CacheStream has threads of its own: give it to a DataLoader with num_workers=0, "
                "or iterate over it directly"
            )
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="stream")
        planner = Ahead(pool, self._reader, self._serving, self._epochs, self._grids, self._sides)
        ahead = planner.begun(self._at, self._batch_size)
        waiting: deque[tuple[Planned, list[Future[None]]]] = deque()
        try:
            while True:
                while self._may_begin(waiting):
                    batch = next(ahead)
                    waiting.append((batch, self._see(pool, batch)))
                yield self._whole(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            ahead.close()

    def _may_begin(self, waiting: Sequence[tuple[Planned, object]]) -> bool:
        """Whether another batch may be read ahead; one at least, beside that which is next."""
        size = sum(batch.bytes_begun for batch, _ in waiting)
        fits = len(waiting) <= self._prefetch and size <= self._memory_bytes
        return len(waiting) < AHEAD_AT_LEAST or fits

    def _see(self, pool: ThreadPoolExecutor, batch: Planned) -> list[Future[None]]:
        """Begin with a batch's pictures. They wait for blocks whose reading was begun before them,
        so no number of threads can come to a standstill."""
        room, replay = batch.room, self._replay
        assert room is not None
        if replay is None:
            return []

        def see(first: int) -> None:
            for place, (reading, row) in enumerate(batch.rows[first : first + ROWS_PER_TASK]):
                block = reading.block()
                if block.is_good(row):
                    pixels = room.pixels[first + place]
                    pixels[:] = replay.see(block, reading.where.generation, row, len(pixels))

        return [pool.submit(see, first) for first in range(0, len(batch.rows), ROWS_PER_TASK)]

    def _whole(self, batch: Planned, pictures: Sequence[Future[None]]) -> Batch:
        readings = {reading.future for reading, _ in batch.rows if reading.future is not None}
        for reading in wait(readings).done:  # wakes up once, not for each
            reading.result()
        for picture in pictures:
            picture.result()
        assert batch.room is not None
        self._at = batch.drawn.state
        return batch.room.batch(batch.drawn, self._state(self._at))

    def _state(self, at: State) -> State:
        return self._identity | at

    @cached_property
    def _identity(self) -> State:
        """What the order is of."""
        told = self.teachers
        teachers = sorted(f"{n} {i.fingerprint} {i.grids}" for n, i in told.items())
        return {
            "format": 2,
            "snapshot": self.snapshot,
            "seed": self._seed,
            "views": self._views if isinstance(self._views, str) else sorted(self._views),
            "teachers": f"{int(hash_texts([str(teachers)], b'stream')[0]):016x}",
        }


def _choices(teachers: Mapping[str, TeacherInfo]) -> list[dict[str, int]]:
    """What a batch may have: of the teachers with several grids all the same one."""
    several = {info.grids for info in teachers.values() if len(info.grids) > 1}
    if len(several) > 1:
        raise ConfigError(
            "teachers.*.grids: a step draws one grid for all teachers that have several, so they "
            f"must be the same, not {' and '.join(map(str, sorted(several)))}"
        )
    drawn = several.pop() if several else (0,)
    return [
        {name: grid if len(info.grids) > 1 else info.grids[0] for name, info in teachers.items()}
        for grid in drawn
    ]
