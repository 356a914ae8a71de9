"""A text file that names pictures: one a line, as a path beside the list or as a full URL.

A picture's key is its line as it is written. Of files on a local disk size and time of change are
asked when they are listed; of what is remote nothing is, or a million lines were a million
requests: its size is 0 and its stamp empty, an address that is gone becomes a bad row when it is
read, and a picture that was replaced there is found by whoever compares sha256 sums, not by the
next `extract`.

A list may come from anywhere, and so may a plan with its keys. A path stays in the list's folder,
and a URL is one of a remote place: fsspec would open a file of this machine by some.
"""

import io
import os
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from infra.entry import Entry, refuse_key
from infra.local_files import read_inside
from infra.redact import harmless, printable, public_url
from infra.remote_files import parent, read_whole, stamp
from infra.source_errors import listing, reading
from schemas.errors import ConfigError, ImageError, SourceError

LINE_CHARACTERS = 8192
SCHEMES = frozenset(
    {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf"}
)
PAUSES_S = (0.5, 2.0)
"""Before an address is read once more: what may pass does so every thousandth time on the web, and
fsspec tries nothing twice there."""


class AddressList:
    """Pictures wherever a list says; a label is the name of the folder in the address."""

    def __init__(self, url: str, filesystem: Any, path: str, max_bytes: int) -> None:
        self.url, self.location = public_url(url), url
        self._filesystem, self._path = filesystem, path
        self._is_local = isinstance(filesystem, LocalFileSystem)
        self._root = parent(path)
        self._real_root = os.path.realpath(self._root) if self._is_local else ""
        protocol = filesystem.protocol
        own = {protocol} if isinstance(protocol, str) else set(protocol)
        self._schemes = SCHEMES if self._is_local else SCHEMES | own
        self._max_bytes = max_bytes

    def entries(self) -> Iterator[Entry]:
        seen: set[str] = set()
        for number, line in self._lines():
            where = f"images {self.url}: line {number}"
            if line in seen:
                raise ConfigError(f"{where}: {_shown(line)} stands twice; remove one")
            seen.add(line)
            fault = self._fault(line)
            if fault is not None:
                raise ConfigError(f"{where}: {_shown(line)} {fault}")
            refuse_key(self.url, self._address(line), line)
            yield self._entry(line)

    def read(self, key: str) -> bytes:
        fault = self._fault(key)
        if fault is not None:
            raise ImageError(fault)
        for pause in PAUSES_S:
            try:
                return self._read(key)
            except SourceError:
                time.sleep(pause)
        return self._read(key)

    def _read(self, key: str) -> bytes:
        with reading(self.url, key):
            if self._is_local and "://" not in key:
                return read_inside(self._real_root, key, self._max_bytes)
            filesystem, path = self._filesystem, self._address(key)
            if "://" in key:
                filesystem, path = fsspec.core.url_to_fs(key)
            return read_whole(filesystem, path, self._max_bytes)

    def _lines(self) -> Iterator[tuple[int, str]]:
        """(number, text) of each line that names something."""
        with (
            listing(self.url),
            self._filesystem.open(self._path, "rb") as file,
            io.TextIOWrapper(file, "utf-8-sig") as text,
        ):
            number = 0
            while line := self._line(text, number := number + 1):
                if (stripped := line.strip()) and not stripped.startswith("#"):
                    yield number, stripped

    def _line(self, text: io.TextIOWrapper, number: int) -> str:
        try:
            line = text.readline(LINE_CHARACTERS + 1)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"images {self.url}: line {number} or one soon after is not UTF-8: "
                f"{harmless(error.reason)}; a list has one path or URL a line"
            ) from None
        if len(line) > LINE_CHARACTERS:
            raise ConfigError(
                f"images {self.url}: line {number} has more than {LINE_CHARACTERS} characters; a "
                "list has one path or URL a line"
            )
        return line

    def _fault(self, line: str) -> str | None:
        """Why nothing is read at an address."""
        scheme, separator, _ = line.partition("://")
        if separator and scheme.lower() not in self._schemes:
            return (
                "is no URL that a list may have; of this machine write a path relative to the "
                f"list's folder, of another one of {', '.join(sorted(self._schemes))}"
            )
        if not separator and (line.startswith(("/", "~")) or ".." in line.split("/")):
            return (
                "leads out of the list's folder; put the list into a folder that holds all its "
                "pictures, and write paths relative to that"
            )
        return None

    def _address(self, line: str) -> str:
        return line if "://" in line else f"{self._root}/{line}"

    def _entry(self, line: str) -> Entry:
        label = PurePosixPath(line.partition("://")[2] or line).parent.name or None
        if not self._is_local or "://" in line:
            return Entry(line, 0, "", label)
        try:
            facts = self._filesystem.info(self._address(line))
        except (OSError, ValueError):  # a row with a reason, once it is read
            return Entry(line, 0, "", label)
        return Entry(line, int(facts["size"]), stamp(facts), label)


def _shown(line: str) -> str:
    return printable(public_url(line))
