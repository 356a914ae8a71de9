"""What a training run is fed: one stream, or several that take turns (EUPE, arXiv 2603.22387,
section 4.1: a tenth of the batches from ImageNet alone).

Which stream gives a step's batch is a keyed hash of the number of batches so far. Every stream
keeps its own place, so each of its rows comes as often as the others of the same cache.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from schemas.errors import ConfigError, ResumeError
from schemas.keyed_hash import mix, subkey
from schemas.train_config import Part, TrainConfig
from trainer.batch import Affine, Batch, State, Target
from trainer.cache import Grids
from trainer.stream import CacheStream
from trainer.teacher_info import Statistics, TeacherInfo

MAIN = "cache"


class Feed:
    """Endless batches of one stream or several, by name; the first says what is standardised by.

    Raises:
        ConfigError: the streams are not of the same teachers.
    """

    def __init__(
        self, streams: Mapping[str, CacheStream], shares: Mapping[str, float], seed: int
    ) -> None:
        self._streams, self._seed = dict(streams), seed
        self._names = list(streams)
        others = [shares[name] for name in self._names[1:]]
        if sum(others) >= 1:
            raise ConfigError(f"mix: shares add up to {sum(others):g}, and `cache` gets the rest")
        self._ends = np.cumsum([1 - sum(others), *others])
        self.teachers = streams[self._names[0]].teachers
        for name in self._names[1:]:
            _refuse_other_teachers(name, self.teachers, streams[name].teachers)
        self._affines = {
            name: _affines(self.teachers, stream.teachers)
            for name, stream in streams.items()
            if name != self._names[0]
        }
        self._batches = 0

    @property
    def snapshots(self) -> dict[str, int]:
        return {name: stream.snapshot for name, stream in self._streams.items()}

    @property
    def rows(self) -> int:
        """Of an epoch of the first stream."""
        return self._streams[self._names[0]].rows

    def state_dict(self) -> State:
        return self._state({name: each.state_dict() for name, each in self._streams.items()})

    def load_state_dict(self, state: State) -> None:
        """Raises ResumeError where the state is of other streams."""
        if set(state["streams"]) != set(self._names):
            raise ResumeError(
                f"the run was fed by {', '.join(state['streams'])}, now by {', '.join(self._names)}"
            )
        for name, stream in self._streams.items():
            stream.load_state_dict(state["streams"][name])
        self._batches = int(state["batches"])

    def __iter__(self) -> Generator[Batch, None, None]:
        with ExitStack() as stack:
            sources = {
                name: stack.enter_context(closing(iter(stream)))
                for name, stream in self._streams.items()
            }
            states = {name: stream.state_dict() for name, stream in self._streams.items()}
            while True:
                name = self._turn()
                batch = next(sources[name])
                states[name] = batch.state
                self._batches += 1
                yield replace(
                    batch,
                    targets=_standardised(batch.targets, self._affines.get(name, {})),
                    state=self._state(states),
                )

    def _turn(self) -> str:
        """Whose batch comes next."""
        word = mix(np.array([self._batches]), subkey(b"mix", self._seed))[0]
        place = float(word >> np.uint64(11)) * 2.0**-53
        return self._names[
            min(int(np.searchsorted(self._ends, place, "right")), len(self._ends) - 1)
        ]

    def _state(self, states: Mapping[str, State]) -> State:
        return {"batches": self._batches, "streams": dict(states)}


def open_feed(
    config: TrainConfig,
    sides: Sequence[int],
    pinned: Mapping[str, int] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Feed:
    """The streams of a run.

    Args:
        sides: of the student's pictures, in pixels, one a student grid.
        pinned: the snapshot of each stream, of a run that goes on.

    Raises:
        ConfigError, CacheError: as CacheStream and Feed.
    """
    grids: Grids | None = {
        name: term.grids if term.grids is None or len(term.grids) > 1 else term.grids[0]
        for name, term in config.teachers.items()
    } or None

    codecs = {name: term.codec for name, term in config.teachers.items()}
    local, size = config.loader.local_cache, int(config.loader.local_cache_gb * 2**30)

    def stream(name: str, part: Part | TrainConfig) -> CacheStream:
        return CacheStream(
            part.cache,
            snapshot=part.snapshot if pinned is None else pinned[name],
            teachers=grids,
            pixels=sides,
            batch_size=config.optim.batch_size,
            views=config.views,
            seed=config.seed,
            images_root=part.images.root,
            pack=part.images.pack == "original",
            threads=config.loader.threads,
            prefetch_batches=config.loader.prefetch_batches,
            memory_bytes=config.loader.memory_mb << 20,
            disk=None if local is None else (Path(local).expanduser(), size),
            rank=rank,
            world=world,
            store=config.store,
            codecs=codecs,
        )

    streams = {MAIN: stream(MAIN, config)}
    streams |= {name: stream(name, part) for name, part in config.mix.items()}
    return Feed(streams, {name: part.share for name, part in config.mix.items()}, config.seed)


def _refuse_other_teachers(
    name: str, mine: Mapping[str, TeacherInfo], others: Mapping[str, TeacherInfo]
) -> None:
    for teacher, info in mine.items():
        other = others.get(teacher)
        found = other and (other.fingerprint, other.grids)
        if found != (info.fingerprint, info.grids):
            raise ConfigError(
                f"mix.{name}: its teacher {teacher} is another than that of `cache`: fingerprint "
                f"and grids {found}, not {(info.fingerprint, info.grids)}; caches that are mixed "
                "are of the same teachers"
            )


Affines = dict[str, dict[int, tuple[Affine, Affine | None]]]


def _affines(mine: Mapping[str, TeacherInfo], others: Mapping[str, TeacherInfo]) -> Affines:
    """From what another cache is standardised by to what the first is, by teacher and grid."""
    return {
        name: {
            grid: _affine(statistics, others[name].statistics[grid])
            for grid, statistics in info.statistics.items()
        }
        for name, info in mine.items()
    }


def _affine(mine: Statistics, other: Statistics) -> tuple[Affine, Affine | None]:
    tokens = Affine(
        torch.from_numpy(other.tokens_std / mine.tokens_std),
        torch.from_numpy((other.tokens_mean - mine.tokens_mean) / mine.tokens_std),
    )
    if mine.cls_mean is None or other.cls_mean is None:
        return tokens, None
    assert mine.cls_std is not None
    assert other.cls_std is not None
    cls = Affine(
        torch.from_numpy(other.cls_std / mine.cls_std),
        torch.from_numpy((other.cls_mean - mine.cls_mean) / mine.cls_std),
    )
    return tokens, cls


def _standardised(targets: Mapping[str, Target], affines: Affines) -> dict[str, Target]:
    return {
        name: replace(target, tokens_affine=tokens, cls_affine=cls)
        for name, target in targets.items()
        for tokens, cls in [affines[name][target.grid] if affines else (None, None)]
    }
