"""Pictures that are files of their own: a folder, what a glob finds, one picture."""

import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from infra.entry import Entry, is_picture, refuse_key
from infra.local_files import find_files, read_inside
from infra.redact import public_url
from infra.remote_files import read_whole, stamp
from infra.source_errors import listing, reading
from schemas.errors import ImageError


class FolderSource:
    """Files with a picture's suffix. A file's label is the name of the folder it lies in."""

    def __init__(
        self, url: str, filesystem: Any, root: str, names: list[str] | None, max_bytes: int
    ) -> None:
        self.url, self.location = public_url(url), url
        self._filesystem = filesystem
        self._is_local = isinstance(filesystem, LocalFileSystem)
        self._root = root.rstrip("/")
        self._real_root = os.path.realpath(root) if self._is_local else ""
        self._names = names
        self._max_bytes = max_bytes

    def entries(self) -> Iterator[Entry]:
        for name, facts in self._found():
            # Neither pipes nor devices: reading one may never end.
            if not is_picture(name) or facts["type"] != "file":
                continue
            key = name[len(self._root) :].lstrip("/")
            refuse_key(self.url, name, key)
            label = PurePosixPath(name).parent.name
            yield Entry(key, int(facts["size"] or 0), stamp(facts), label)

    def _found(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with listing(self.url):
            if self._names is not None:
                yield from [(name, self._filesystem.info(name)) for name in self._names]
            elif self._is_local:
                yield from find_files(self._filesystem, self._root)
            else:
                yield from sorted(self._filesystem.find(self._root, detail=True).items())

    def read(self, key: str) -> bytes:
        with reading(self.url, key):
            if self._is_local:
                return read_inside(self._real_root, key, self._max_bytes)
            if ".." in key.split("/"):
                raise ImageError("leads out of the data set, by `..`")
            return read_whole(self._filesystem, f"{self._root}/{key}", self._max_bytes)
