"""What is done to a written set of rows: one damage at a time, the same for every format."""

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path

from tests.benchmarks.damage.peer import File, Span

REPLIES = 24
"""Of the store that are cut short, one at a time: records, tables, indices and blocks."""
EVERY_BYTE_OF = 2048
"""Records up to this size."""
Place = tuple[File, Span]


@dataclass(frozen=True)
class Case:
    kind: str
    what: str
    changed: dict[str, bytes | None]
    """Path -> what stands there instead; None for nothing."""
    reply: tuple[int, float] | None = None
    """Which reply of the store is cut to what share."""


@dataclass(frozen=True)
class Written:
    folder: Path
    files: list[File]

    def bytes_of(self, file: File) -> bytes:
        return (self.folder / file.path).read_bytes()

    def holding(self, what: str) -> list[File]:
        return [file for file in self.files if file.holds == what]


def cases(sound: Written, stale: Written, places: int, has_short_replies: bool) -> Iterator[Case]:
    """Every kind of damage; `places` bytes of a kind are flipped, one at a time."""
    rows, records = sound.holding("rows"), sound.holding("records")
    index = [(file, span) for file in rows for span in file.index]
    body = [(file, span) for file in rows for span in _between(sound, file)]
    whole = [(file, (0, len(sound.bytes_of(file)))) for file in records]
    yield from _flips(sound, "flip rows", body, places)
    yield from _flips(sound, "flip index", index, places)
    yield from _flips(sound, "flip records", whole, places)
    for file in sound.files:
        data = sound.bytes_of(file)
        for length in sorted(_lengths(file, len(data))):
            yield Case("cut", f"{file.path} to {length}", {file.path: data[:length]})
        yield Case("gone", file.path, {file.path: None})
    for one, other in pairwise(rows):
        if _is_alike(one, other):
            changed = {one.path: sound.bytes_of(other), other.path: sound.bytes_of(one)}
            yield Case("swap", f"{one.path} with {other.path}", dict(changed))
    for mine, theirs in zip(rows, stale.holding("rows")):
        if (data := stale.bytes_of(theirs)) != sound.bytes_of(mine):
            yield Case("stale", mine.path, {mine.path: data})
    for number in range(REPLIES if has_short_replies else 0):
        for share in (0.0, 0.5, 1.0):
            what = f"reply {number} cut to {share:.0%}, at least by one byte"
            yield Case("short reply", what, {}, (number, share))


def every_byte(sound: Written) -> Iterator[Case]:
    """Each byte, flipped, of an index and of the records: one of each kind, and no tables."""
    kinds: dict[object, File] = {}
    for file in sound.holding("records"):
        kinds.setdefault((Path(file.path).parent, Path(file.path).suffix), file)
    for file in kinds.values():
        size = len(sound.bytes_of(file))
        for offset in range(size if size <= EVERY_BYTE_OF else 0):
            yield _flip(sound, "every byte of records", file, offset, offset % 8)
    for file in [file for file in sound.holding("rows") if file.index][:1]:
        for offset in chain.from_iterable(range(*span) for span in file.index):
            yield _flip(sound, "every byte of an index", file, offset, offset % 8)


def _flips(sound: Written, kind: str, spans: Sequence[Place], places: int) -> Iterator[Case]:
    """The places, as shares of all bytes of a kind, are those of every format."""
    ends = list(accumulate(end - start for _, (start, end) in spans))
    draw = random.Random(kind)
    for _ in range(places if ends else 0):
        place, bit = int(draw.random() * ends[-1]), draw.randrange(8)
        number = bisect.bisect_right(ends, place)
        file, (_, end) = spans[number]
        yield _flip(sound, kind, file, end - (ends[number] - place), bit)


def _flip(sound: Written, kind: str, file: File, offset: int, bit: int) -> Case:
    data = bytearray(sound.bytes_of(file))
    data[offset] ^= 1 << bit
    return Case(kind, f"{file.path} byte {offset} bit {bit}", {file.path: bytes(data)})


def _between(sound: Written, file: File) -> Iterator[Span]:
    """What of a file of rows is not its index."""
    edges = [0, *chain.from_iterable(file.index), len(sound.bytes_of(file))]
    for start, end in zip(edges[::2], edges[1::2]):
        if start < end:
            yield start, end


def _is_alike(one: File, other: File) -> bool:
    """Whether both hold the same part of rows."""
    mine, theirs = Path(one.path), Path(other.path)
    return (len(mine.parts), mine.suffix) == (len(theirs.parts), theirs.suffix)


def _lengths(file: File, size: int) -> set[int]:
    """A length of every class: nothing, within and after an index, between and within rows, all
    but the end."""
    lengths = {0, 1, size // 2, size - 1}
    for start, end in file.index[:1]:
        lengths |= {(start + end) // 2, end}
    if file.row_start:
        lengths |= {file.row_start, file.row_start + 600}
    return {length for length in lengths if 0 <= length < size}
