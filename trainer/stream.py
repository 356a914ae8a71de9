"""The stream: batches of pictures and cached targets, in the exact order, prepared on threads.

Reads whole blocks, ahead of the batches that need them and bounded in bytes; replays each row's
stored view from its picture; joins every teacher's rows by plan row. The state of the stream is a
cursor; what threads there are changes only the speed.
"""

import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import IterableDataset, get_worker_info

from infra.pixels.decode import silence_pillow
from infra.store import FROM_ENVIRONMENT
from schemas.errors import CacheError, ConfigError, ResumeError
from schemas.keyed_hash import hash_texts
from schemas.store_config import StoreOptions
from trainer.assemble import Assembler, Row
from trainer.batch import Batch, State
from trainer.cache import AS_WRITTEN, CacheReader, Codecs, Grids
from trainer.epochs import Drawn, Epochs
from trainer.held_blocks import HeldBlocks
from trainer.order import OrderKey
from trainer.pictures import FromPacks, FromSource, Pictures
from trainer.replay import Replay
from trainer.serving import Serving, ViewChoice
from trainer.set_reader import TeacherInfo

MAX_AUTO_THREADS = 16


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
        memory_bytes: of blocks that are read before a batch of theirs is being prepared, and as
            much of those that are kept in case they come again; beside one block a lane.
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
        replay = self._replay(images_root, pack) if any(self._sides) else None
        self._assembler = Assembler(self.teachers, replay)
        self._at: State = {"epoch": 0, "row": 0, "cursors": [0] * len(self._grids)}

    def _replay(self, root: str | None, pack: bool) -> Replay:
        generations = self._reader.generations
        pictures: Pictures = (
            FromPacks(self._reader.store, generations) if pack else FromSource(generations, root)
        )
        return Replay(generations, pictures)

    @property
    def snapshot(self) -> int:
        return self._reader.snapshot

    @property
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
        waiting: deque[tuple[Drawn, Future[Batch]]] = deque()
        try:
            planned = self._read_ahead(pool)
            while True:
                while len(waiting) <= self._prefetch:
                    drawn, rows = next(planned)
                    waiting.append((drawn, self._prepare(pool, drawn, rows)))
                drawn, future = waiting.popleft()
                batch = future.result()
                self._at = drawn.state
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _read_ahead(
        self, pool: ThreadPoolExecutor
    ) -> Generator[tuple[Drawn, list[Row]], None, None]:
        """Batches whose blocks are being read: as many ahead as the bytes allow."""
        blocks = HeldBlocks(
            pool, self._reader, self._serving, self._epochs, self._grids, self._memory_bytes
        )
        queue: deque[tuple[Drawn, list[Row], int]] = deque()
        ahead = 0
        for drawn in self._epochs.batches(self._at, self._batch_size):
            rows, size = blocks.read(drawn)
            queue.append((drawn, rows, size))
            ahead += size
            while queue and (ahead > self._memory_bytes or len(queue) > self._prefetch):
                drawn, rows, size = queue.popleft()
                ahead -= size
                yield drawn, rows

    def _prepare(self, pool: ThreadPoolExecutor, drawn: Drawn, rows: list[Row]) -> Future[Batch]:
        grids, side = self._grids[drawn.choice], self._sides[drawn.side]
        return self._assembler.submit(pool, rows, grids, side, drawn, self._state(drawn.state))

    def _state(self, at: State) -> State:
        told = self.teachers
        teachers = sorted(f"{n} {i.fingerprint} {i.grids}" for n, i in told.items())
        views = self._views if isinstance(self._views, str) else sorted(self._views)
        return {
            "format": 2,
            "snapshot": self.snapshot,
            "seed": self._seed,
            "views": views,
            "teachers": f"{int(hash_texts([str(teachers)], b'stream')[0]):016x}",
            **at,
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
