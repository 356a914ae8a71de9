"""Data sets of pictures: a folder, a glob, or Parquet with a column of encoded images.

Both sides read them: extraction lists and reads, training reads again by key, evaluation reads
labels too. Whatever fsspec opens works (a path, s3://, https://).

Nothing that a data set holds is trusted: a key is a name and no path that may lead elsewhere, and
what is too large is not read. Credentials in a URL open it and are told to nobody.
"""

import errno
import glob
import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from infra.entry import Entry
from infra.local_files import find_files, read_inside, too_large
from infra.parquet_source import ParquetSource
from infra.pixels.limits import DEFAULT
from infra.redact import harmless, printable, public_url
from schemas.errors import ConfigError, ImageError, SourceError
from schemas.extract_config import Columns

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".jp2", ".avif", ".ico", ".tga"}
)


class Source(Protocol):
    url: str
    """As it may be shown and written down: without credentials."""
    location: str
    """As it is opened again elsewhere: nobody is to see it."""

    def entries(self) -> Iterator[Entry]:
        """Every picture once; labels where the source has them.

        Raises:
            ConfigError: what is there is no data set.
            SourceError: it cannot be listed just now.
        """

    def read(self, key: str) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: it is gone (`missing`), may not be read, leads out of the data set or is too
                large: a fact about this picture.
            SourceError: reading failed for another reason, which may pass.
        """


def open_source(url: str, columns: Columns, max_bytes: int = DEFAULT.max_bytes) -> Source:
    """The data set at a path or URL; a local path is made absolute, so that it means the same to
    every worker and to a later training run.

    Args:
        max_bytes: of one picture; a larger one is refused, and not read where that can be told.

    Raises:
        ConfigError: nothing is there.
    """
    url = url if "://" in url else os.path.abspath(os.path.expanduser(url))
    try:
        source = _open(url, columns, max_bytes)
    # Each filesystem has errors of its own for what cannot be reached, and they quote the URL.
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"images {public_url(url)}: {harmless(str(error))}") from None
    if source is None:
        raise ConfigError(
            f"images {public_url(url)}: no picture, Parquet file or folder is there; give a folder "
            "of pictures, a glob, or a .parquet file"
        )
    return source


def _open(url: str, columns: Columns, max_bytes: int) -> Source | None:
    filesystem, path = fsspec.core.url_to_fs(url)
    # What is there comes before what looks like a pattern: names may have brackets in them.
    if filesystem.isfile(path) and _is_parquet(path):
        return ParquetSource(url, filesystem, [path], columns, max_bytes)
    if filesystem.isfile(path) and _is_picture(path):
        return FolderSource(url, filesystem, path.rpartition("/")[0], [path], max_bytes)
    if filesystem.isdir(path):
        names = _parquet_alone(filesystem, path)
        if names:
            return ParquetSource(url, filesystem, names, columns, max_bytes)
        return FolderSource(url, filesystem, path, None, max_bytes)
    if glob.has_magic(path):
        names = sorted(name for name in filesystem.glob(path) if filesystem.isfile(name))
        if names and all(map(_is_parquet, names)):
            return ParquetSource(url, filesystem, names, columns, max_bytes)
        return FolderSource(url, filesystem, _fixed_part(path), names, max_bytes)
    return None


def _is_parquet(path: str) -> bool:
    return public_url(path).lower().endswith(".parquet")


def _is_picture(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def _parquet_alone(filesystem: Any, folder: str) -> list[str]:
    """The Parquet files below a folder, if there are no pictures beside them."""
    names: list[str] = []
    for path, _, files in filesystem.walk(folder):
        if any(map(_is_picture, files)):
            return []
        names += [f"{path}/{name}" for name in files if _is_parquet(name)]
    return sorted(names)


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
            if not _is_picture(name) or facts["type"] != "file":
                continue
            stamp = facts.get("ETag") or facts.get("etag") or facts.get("mtime") or ""
            key = name[len(self._root) :].lstrip("/")
            self._refuse_key(name, key)
            yield Entry(key, int(facts["size"] or 0), str(stamp), PurePosixPath(name).parent.name)

    def _found(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            if self._names is not None:
                yield from [(name, self._filesystem.info(name)) for name in self._names]
            elif self._is_local:
                yield from find_files(self._filesystem, self._root)
            else:
                yield from sorted(self._filesystem.find(self._root, detail=True).items())
        except OSError as error:
            raise SourceError(
                f"images {self.url}: listing failed: {harmless(str(error))}; make it readable and "
                "run again"
            ) from None

    def _refuse_key(self, name: str, key: str) -> None:
        """Keys are written into the cache as they are."""
        try:
            key.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"images {self.url}: the file name {key!r} is not UTF-8; rename it"
            ) from None
        if public_url(name) != name:
            raise ConfigError(
                f"images {self.url}: the address of {printable(public_url(name))} has a query or a "
                "user in it, which would be written into the cache; give a plain address"
            )

    def read(self, key: str) -> bytes:
        try:
            if self._is_local:
                return read_inside(self._real_root, key, self._max_bytes)
            return self._read_remote(key)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ImageError("is no longer in the data set", missing=True) from None
        except PermissionError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from None
        except ImageError:
            raise
        # Each filesystem has errors of its own, and they quote the URL.
        except Exception as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(
                f"images {self.url}: reading {printable(key)} failed: {harmless(str(reason))}; "
                "what was committed stays, run again when the data set can be read"
            ) from None

    def _read_remote(self, key: str) -> bytes:
        if ".." in key.split("/"):
            raise ImageError("leads out of the data set, by `..`")
        path = f"{self._root}/{key}"
        try:
            data = bytes(self._filesystem.cat_file(path, start=0, end=self._max_bytes + 1))
        except OSError as error:
            # Of no bytes there is no range.
            if error.errno != errno.EINVAL or self._filesystem.info(path)["size"]:
                raise
            return b""
        if len(data) > self._max_bytes:
            raise ImageError(too_large(self._filesystem.info(path)["size"], self._max_bytes))
        return data


def _fixed_part(pattern: str) -> str:
    """The folders of a glob before its first wildcard: keys are relative to it."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first])
