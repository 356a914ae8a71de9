"""Labelled pictures for evaluation: which ones train, which ones test, and their pixels."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import fsspec
import numpy as np
import torch
from torch import Tensor

from infra.entry import Entry
from infra.pixels.decode import decode
from infra.pixels.views import Pixels, box, render
from infra.sources import Source, open_source
from infra.terminal import Terminal
from schemas.errors import ConfigError, ImageError
from schemas.extract_config import Columns
from schemas.keyed_hash import hash_texts
from schemas.options import EvaluateOptions

SPLIT_KEY = b"teachonce evaluate"
"""Never changed: which picture trains and which one tests is the same for every student."""
TEST_NAMES = ("val", "test")
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Part:
    """Pictures of one purpose."""

    source: Source
    entries: list[Entry]

    @property
    def labels(self) -> list[str]:
        return [str(entry.label) for entry in self.entries]


def split(config: EvaluateOptions, terminal: Terminal) -> tuple[Part, Part]:
    """The training and the test part of a data set, in reading order.

    Raises:
        ConfigError: nothing is there, pictures have no label, or there is only one class.
    """
    source = open_source(config.data, config.columns)
    own = _own_split(source.location, config.columns)
    if own is not None:
        terminal.decide("split", f"{own[0].url} | {own[1].url}", "the data set's own")
        train, test = (_part(half, list(half.entries()), 0, 10, config) for half in own)
    else:
        terminal.decide("split", "80 / 20", "by a hash of the key; no train and val | test there")
        entries = list(source.entries())
        train = _part(source, entries, 0, 8, config)
        test = _part(source, entries, 8, 10, config)
    _check(source.url, train, test)
    return train, test


def pictures(part: Part, side: int, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Decode the whole picture of each entry, ahead of the caller, on threads.

    Yields:
        Positions in `part.entries` of the pictures that could be read, and their pixels: uint8
        [as many, 3, side, side].
    """
    waiting: deque[list[Future[Pixels | None]]] = deque()
    first = 0
    with ThreadPoolExecutor() as pool:
        entries = iter(part.entries)
        while True:
            while len(waiting) <= BATCHES_AHEAD and (batch := list(islice(entries, batch_size))):
                waiting.append(
                    [pool.submit(_pixels, part.source, entry.key, side) for entry in batch]
                )
            if not waiting:
                return
            squares = [future.result() for future in waiting.popleft()]
            good = [index for index, square in enumerate(squares) if square is not None]
            if good:
                stack = np.stack([square for square in squares if square is not None])
                yield [first + index for index in good], torch.from_numpy(stack).permute(0, 3, 1, 2)
            first += len(squares)


def _pixels(source: Source, key: str, side: int) -> Pixels | None:
    """Pixel recipe 1, view 0; None for a picture that cannot be read."""
    try:
        image = decode(source.read(key))
    except ImageError:
        return None
    return render(image, box(None, *image.size, (1.0, 1.0), flip=False), side)


def _own_split(url: str, columns: Columns) -> tuple[Source, Source] | None:
    filesystem, root = fsspec.core.url_to_fs(url)
    for suffix in ("", ".parquet"):
        for name in TEST_NAMES:
            if all(filesystem.exists(f"{root}/{part}{suffix}") for part in ("train", name)):
                return (
                    open_source(f"{url}/train{suffix}", columns),
                    open_source(f"{url}/{name}{suffix}", columns),
                )
    return None


def _part(
    source: Source, entries: list[Entry], first: int, last: int, config: EvaluateOptions
) -> Part:
    """Tenths `first` to `last` of the pictures by hash, the first `limit` of them; in the order of
    the source, because Parquet is read by row group."""
    order = np.argsort(hash_texts((entry.key for entry in entries), SPLIT_KEY), kind="stable")
    chosen = order[len(entries) * first // 10 : len(entries) * last // 10][: config.limit]
    return Part(source, [entries[place] for place in np.sort(chosen)])


def _check(data: str, train: Part, test: Part) -> None:
    if not train.entries or not test.entries:
        raise ConfigError(
            f"data {data}: {len(train.entries)} pictures to compare with and {len(test.entries)} "
            "to test; at least one of each is needed"
        )
    if any(entry.label is None for part in (train, test) for entry in part.entries):
        raise ConfigError(
            f"data {data}: pictures without a label; name the column with --columns.label, or give "
            "a folder that has one folder for each class"
        )
    classes = sorted(set(train.labels))
    if len(classes) < 2:
        raise ConfigError(
            f"data {data}: every picture to compare with is of the class {classes[0]!r}, so there "
            "is nothing to tell apart; give a folder that has one folder for each class, name the "
            "label column with --columns.label, or raise --limit"
        )
