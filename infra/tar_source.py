"""Pictures in tar archives, as webdataset keeps them: `.tar` files, one or many, anywhere.

A picture's key is ARCHIVE/MEMBER, the archive's name relative to the data set's folder, however
many archives there are: another one beside them renames nothing. Listing reads headers and labels;
a worker that has not listed does so once for each archive; a picture is then one ranged read.
Nothing is unpacked, so that a member's name leads nowhere.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra.entry import Entry, refuse_key
from infra.local_files import too_large
from infra.redact import printable, public_url
from infra.remote_files import stamp
from infra.source_errors import listing, reading
from infra.tar_archive import SPARSE, Member, TarArchive
from schemas.errors import ImageError, SourceError

LISTERS = 16
"""Archives whose headers are read at once: each read waits for an answer."""


class TarSource:
    """Members with a picture's suffix. Their size is their own, their stamp the archive's."""

    def __init__(
        self, url: str, filesystem: Any, root: str, names: list[str], max_bytes: int
    ) -> None:
        self.url, self.location = public_url(url), url
        self._filesystem = filesystem
        self._max_bytes = max_bytes
        self._archives: dict[str, TarArchive] = {}
        for name in names:
            key = public_url(name)[len(public_url(root).rstrip("/")) :].lstrip("/")
            self._archives[key] = TarArchive(filesystem, name, printable(key))

    def entries(self) -> Iterator[Entry]:
        pool = ThreadPoolExecutor(LISTERS, thread_name_prefix="list")
        try:
            with listing(self.url):
                found = pool.map(self._list, self._archives.values())
                for (name, archive), (etag, members) in zip(self._archives.items(), found):
                    for member in members:
                        key = f"{name}/{member.name}"
                        refuse_key(self.url, public_url(archive.path), key)
                        yield Entry(key, member.size, etag, member.label)
        finally:
            pool.shutdown(cancel_futures=True)

    def _list(self, archive: TarArchive) -> tuple[str, list[Member]]:
        return stamp(self._filesystem.info(archive.path)), archive.members()

    def read(self, key: str) -> bytes:
        with reading(self.url, key):
            archive, place, size = self._find(key)
            if place == SPARSE:
                raise ImageError("is a sparse file in its archive; pack it without --sparse")
            if size > self._max_bytes:
                raise ImageError(too_large(size, self._max_bytes))
            if size == 0:  # of no bytes there is no range
                return b""
            data = self._filesystem.cat_file(archive.path, start=place, end=place + size)
            if len(data) != size:
                raise SourceError(
                    f"images {self.url}: reading {printable(key)} gave {len(data)} bytes and not "
                    f"{size}: the archive has changed meanwhile, or its server gives no parts of "
                    "a file; run again, or download it"
                )
            return bytes(data)

    def _find(self, key: str) -> tuple[TarArchive, int, int]:
        for end, letter in enumerate(key):
            archive = self._archives.get(key[:end]) if letter == "/" else None
            found = archive.find(key[end + 1 :]) if archive else None
            if archive and found:
                return archive, *found
        raise ImageError("is no longer in the data set", missing=True)
