"""One tar archive: which pictures are in it, and where their bytes lie.

Python's tarfile reads the headers. What it does not bound is bounded here, because an archive may
come from anywhere: how much a header may be, that it goes forward, and that what ends it is its
end and no damage, which tarfile takes for the end as well.
"""

import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.entry import is_picture
from infra.redact import harmless, printable
from schemas.errors import ConfigError
from schemas.keyed_hash import Words, hash_texts

HEADER_BYTES = 64 << 10
"""Of one member, its long names and extended attributes included."""
BLOCK_BYTES = 64 << 10
"""What a request for headers fetches: one each for larger members, one of many small ones."""
LABEL_BYTES = 1 << 10
MOST_PADDING = 1 << 20
"""Zeros behind an archive's end."""
SPARSE = -1
"""Instead of a place: the bytes do not lie together."""
_DAMAGE = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError)
"""What tarfile raises of a damaged header: whatever its arithmetic comes to."""
_KEY = os.urandom(16)
"""Of the index's hash: nobody can make names that fall together."""


@dataclass(frozen=True, slots=True)
class Member:
    """A picture in an archive."""

    name: str
    place: int
    """Of its first byte, or SPARSE."""
    size: int
    label: str | None


@dataclass(frozen=True)
class _Index:
    """24 bytes a picture, in the order of the hashes of their names."""

    hashes: Words
    places: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


class TarArchive:
    """An uncompressed archive.

    Args:
        shown: its name in messages.
    """

    def __init__(self, filesystem: Any, path: str, shown: str) -> None:
        self._filesystem, self.path, self._shown = filesystem, path, shown
        self._index: _Index | None = None
        self._lock = threading.Lock()

    def members(self) -> list[Member]:
        """Every picture, in the archive's order, with the text of the `.cls` beside it or else the
        name of the folder it lies in as its label. Links and devices are passed over.

        Raises:
            ConfigError: it is no tar archive or damaged, or a name stands in it twice.
            Exception: whatever the file system has.
        """
        found: list[tuple[str, int, int]] = []
        labels: dict[str, str] = {}
        with self._filesystem.open(
            self.path, "rb", block_size=BLOCK_BYTES, cache_type="readahead"
        ) as file:
            for info in self._headers(file):
                name = info.name.removeprefix("./")
                stem, suffix = _split(name)
                if is_picture(name):
                    found.append((name, SPARSE if info.issparse() else info.offset_data, info.size))
                elif suffix == "cls" and not info.issparse():
                    labels[stem] = self._label(file, info, name)
        self._refuse_twice([name for name, _, _ in found])
        self._index = _indexed(found)
        return [
            Member(name, place, size, labels.get(_split(name)[0]) or _folder(name))
            for name, place, size in found
        ]

    def find(self, name: str) -> tuple[int, int] | None:
        """Place and size of a picture; None if there is none of that name. Raises as `members`."""
        with self._lock:
            if self._index is None:
                self.members()
        index = self._index
        assert index is not None
        code = _hashes([name])[0]
        at = int(np.searchsorted(index.hashes, code))
        if at == len(index.hashes) or index.hashes[at] != code:
            return None
        return int(index.places[at]), int(index.sizes[at])

    def _headers(self, file: Any) -> Iterator[tarfile.TarInfo]:
        """Of every regular file."""
        reader: Any = _HeaderReader(file)
        before = -1
        try:
            tar = tarfile.TarFile(fileobj=reader, encoding="utf-8", errors="surrogateescape")
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                if info.size < 0 or not before < info.offset_data <= tar.offset:
                    raise tarfile.ReadError(f"the header at byte {info.offset} leads back")
                before = info.offset_data
                if info.isreg():
                    yield info
                reader.start_member()
            _refuse_no_end(file, tar.offset)
        except _DAMAGE as fault:
            raise ConfigError(
                f"images: {self._shown} is no tar archive, or a damaged one: "
                f"{harmless(str(fault))}; write it anew, uncompressed"
            ) from None

    def _label(self, file: Any, info: tarfile.TarInfo, name: str) -> str:
        file.seek(info.offset_data)
        data = file.read(min(info.size, LABEL_BYTES + 1))
        try:
            if len(data) <= LABEL_BYTES:
                return str(data.decode().strip())
        except UnicodeDecodeError:
            pass
        raise ConfigError(
            f"images: {printable(name)} in {self._shown} is no label: a word of UTF-8 is expected"
        )

    def _refuse_twice(self, names: list[str]) -> None:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise ConfigError(
                    f"images: {printable(name)} stands twice in {self._shown}; names must be "
                    "unique, write the archive anew"
                )
            seen.add(name)


class _HeaderReader:
    """A file as tarfile reads it, which gives no more of it than a member's headers may have."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.start_member()

    def start_member(self) -> None:
        self._left = HEADER_BYTES

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(
                f"a header at byte {self._file.tell()} has more than {HEADER_BYTES} bytes"
            )
        self._left -= size
        return bytes(self._file.read(size))


def _refuse_no_end(file: Any, end: int) -> None:
    """tarfile stops at a block that is damaged or cut short as it does at the end."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut short at byte {end}")
    if any(block):
        raise tarfile.ReadError(f"the header at byte {end} is damaged")
    rest = file.read(MOST_PADDING + 1)
    if len(rest) > MOST_PADDING or any(rest):
        raise tarfile.ReadError(
            f"it ends at byte {end} and goes on behind that (archives that were joined are not one)"
        )


def _indexed(found: list[tuple[str, int, int]]) -> _Index:
    hashes = _hashes([name for name, _, _ in found])
    order = np.argsort(hashes)
    numbers = np.array([(place, size) for _, place, size in found], np.int64).reshape(-1, 2)[order]
    return _Index(hashes[order], numbers[:, 0].copy(), numbers[:, 1].copy())


def _hashes(names: list[str]) -> Words:
    # A name that is not UTF-8 is refused where it is listed.
    return hash_texts((name.encode(errors="replace").decode() for name in names), _KEY)


def _split(name: str) -> tuple[str, str]:
    """(what the files of one sample have in common, what tells them apart), as webdataset has it:
    the name ends at the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _folder(name: str) -> str | None:
    return name.rpartition("/")[0].rpartition("/")[2] or None
