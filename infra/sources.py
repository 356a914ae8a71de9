"""Data sets of pictures: a folder, a glob, Parquet with a column of encoded images, tar archives,
or a list of addresses.

Both sides read them: extraction lists and reads, training reads again by key, evaluation reads
labels too. Whatever fsspec opens works (a path, s3://, https://).

Nothing that a data set holds is trusted: a key is a name and no path that may lead elsewhere, and
what is too large is not read. Credentials in a URL open it and are told to nobody.
"""

import glob
import os
from collections.abc import Iterator
from typing import Any, Protocol

import fsspec

from infra.address_list import AddressList
from infra.entry import Entry, is_picture
from infra.folder_source import FolderSource
from infra.parquet_source import ParquetSource
from infra.pixels.limits import DEFAULT
from infra.redact import printable, public_url
from infra.remote_files import parent
from infra.source_errors import opening
from infra.tar_source import TarSource
from schemas.errors import ConfigError
from schemas.extract_config import Columns

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


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
        ConfigError: nothing is there, or it cannot be reached.
    """
    url = url if "://" in url else os.path.abspath(os.path.expanduser(url))
    with opening(url):
        source = _open(url, columns, max_bytes)
    if source is None:
        raise ConfigError(
            f"images {public_url(url)}: no picture, Parquet file or folder is there; give a folder "
            "of pictures, a glob, a .parquet or .tar file or a folder of such, or a .txt file of "
            "addresses"
        )
    return source


def _open(url: str, columns: Columns, max_bytes: int) -> Source | None:
    filesystem, path = fsspec.core.url_to_fs(url)

    def archives(root: str, names: list[str]) -> Source | None:
        if names and all(map(_is_parquet, names)):
            return ParquetSource(url, filesystem, names, columns, max_bytes)
        if names and all(map(_is_tar, names)):
            return TarSource(url, filesystem, root, names, max_bytes)
        return None

    # What is there comes before what looks like a pattern: names may have brackets in them.
    if filesystem.isfile(path):
        root = parent(path)
        if _is_list(path):
            return AddressList(url, filesystem, path, max_bytes)
        if is_picture(path):
            return FolderSource(url, filesystem, root, [path], max_bytes)
        _refuse_compressed([path])
        return archives(root, [path])
    if filesystem.isdir(path):
        names = _archives_alone(filesystem, path)
        return archives(path, names) or FolderSource(url, filesystem, path, None, max_bytes)
    if glob.has_magic(path):
        root = _fixed_part(path)
        names = sorted(name for name in filesystem.glob(path) if filesystem.isfile(name))
        if not names and not filesystem.isdir(root):
            return None
        _refuse_compressed(names)
        return archives(root, names) or FolderSource(url, filesystem, root, names, max_bytes)
    return None


def _is_parquet(path: str) -> bool:
    return public_url(path).lower().endswith(".parquet")


def _is_tar(path: str) -> bool:
    return public_url(path).lower().endswith(".tar")


def _is_list(path: str) -> bool:
    return public_url(path).lower().endswith(".txt")


def _refuse_compressed(names: list[str]) -> None:
    """A compressed archive has no places to read from; beside pictures or Parquet it is nothing."""
    if any(is_picture(name) or _is_parquet(name) for name in names):
        return
    for name in map(public_url, names):
        if name.lower().endswith(COMPRESSED):
            raise ConfigError(
                f"images: {printable(name)} is compressed, so that no picture can be read without "
                "all before it; decompress it to .tar (gunzip, unxz, zstd -d)"
            )


def _archives_alone(filesystem: Any, folder: str) -> list[str]:
    """The Parquet or tar files below a folder, if there are no pictures beside them."""
    names: list[str] = []
    for path, _, files in filesystem.walk(folder, detail=True):
        if any(map(is_picture, files)):
            return []
        # Neither pipes nor devices: opening one may never end.
        names += [
            f"{path}/{name}"
            for name, facts in files.items()
            if facts["type"] == "file" or filesystem.isfile(f"{path}/{name}")
        ]
    _refuse_compressed(names)
    tables, tars = (sorted(filter(kind, names)) for kind in (_is_parquet, _is_tar))
    if tables and tars:
        raise ConfigError(
            f"images: {printable(public_url(folder))} holds Parquet files and tar archives; give a "
            "glob of those that are meant"
        )
    return tables or tars


def _fixed_part(pattern: str) -> str:
    """The folders of a glob before its first wildcard: keys are relative to it."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first])
