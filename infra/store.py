"""The object store: its operations, and what every implementation promises.

* `create` is all or nothing and create-only: of two racing writers of a key exactly one succeeds,
  and nobody ever reads part of an object.
* What `create` returned from is durable.
* `keys` may lag behind other writers; a listing is a hint, never the truth.
* Threads may share a store. Other processes open it again, by its URL; what a fork inherits works
  on a local disk and in memory, and is refused on S3.
"""

import os
import re
import stat
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol

from infra.buffers import Buffers, room_of, spread
from infra.durable import make_folders, sync_folder, write_through
from infra.redact import public_url
from schemas.errors import AlreadyExists, ConfigError, NotFound, StoreError
from schemas.store_config import StoreOptions

Bytes = bytes | bytearray | memoryview
PARTIAL = ".partial"
"""Where a local store writes what is not an object yet; the first part of no key."""
_NO_KEY_HAS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""What S3 does not take in a key: control characters, and names that are not UTF-8."""
FROM_ENVIRONMENT = StoreOptions()


class ObjectStore(Protocol):
    url: str

    def create(self, key: str, data: Bytes) -> None:
        """Write an object that must not exist. Raises AlreadyExists."""

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        """Bytes [start, end); fewer where the object ends before. Raises NotFound."""

    def fill(self, key: str, start: int, buffers: Buffers) -> int:
        """The bytes from `start` on into buffers, one after the other; returns how many there were,
        fewer than there is room for where the object ends before. Raises NotFound."""

    def size(self, key: str) -> int:
        """Bytes of the object. Raises NotFound."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys that begin with `prefix`, in no particular order."""

    def delete(self, key: str) -> None:
        """Remove an object; no error where there is none. A power failure may bring it back."""


def open_store(url: str, options: StoreOptions = FROM_ENVIRONMENT) -> ObjectStore:
    """The store at a path or URL. Nothing is asked of it yet.

    Args:
        options: how S3 is reached; of no meaning to the others.

    Raises:
        ConfigError: a scheme that has no implementation; of S3, a URL or options that cannot be
            meant, no credentials, or a package that is not installed.
    """
    if url.startswith("memory://"):
        return MemoryStore.named(url)
    if url.startswith("s3://"):
        return _open_s3(url, options)
    if "://" in url and not url.startswith("file://"):
        raise ConfigError(f"cache {public_url(url)}: give a path, or s3://BUCKET/PREFIX")
    return LocalStore(Path(url.removeprefix("file://")))


def _open_s3(url: str, options: StoreOptions) -> ObjectStore:
    try:
        from infra.s3_store import S3Store
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a cache on S3 needs {error.name}, which is not installed: pip install 'teachonce[s3]'"
        ) from None
    return S3Store(url, options)


class LocalStore:
    """A folder. Objects are files; a file appears by an exclusive link, once it is on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.url = str(self.root)

    def create(self, key: str, data: Bytes) -> None:
        target = self._path(key)
        partial = self.root / PARTIAL / uuid.uuid4().hex
        try:
            make_folders(target.parent)
            make_folders(partial.parent)
            try:
                write_through(partial, data)
                _link(partial, target, f"{self.url}: {key} exists already", key)
            finally:
                partial.unlink(missing_ok=True)
            sync_folder(target.parent)
        except OSError as error:
            raise StoreError(f"{self.url}: writing {key} failed: {error}", key=key) from error

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise self._reading_failed(key, error) from None

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return memoryview(os.pread(descriptor, end - start, start))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._reading_failed(key, error) from None

    def fill(self, key: str, start: int, buffers: Buffers) -> int:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.preadv(descriptor, [buffer.data for buffer in buffers], start)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._reading_failed(key, error) from None
        if size < room_of(buffers):
            # The object ends here, or the system gives so much at once and no more.
            return spread(self.get_range(key, start, start + room_of(buffers)), buffers)
        return size

    def size(self, key: str) -> int:
        try:
            status = self._path(key).stat()
        except OSError as error:
            raise self._reading_failed(key, error) from None
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"{self.url}: no object {key}", key=key)
        return status.st_size

    def keys(self, prefix: str) -> Iterator[str]:
        folder = self.root
        if "/" in prefix:
            folder = self._path(prefix.rpartition("/")[0])
        for path, _, names in os.walk(folder):
            for name in names:
                key = (Path(path) / name).relative_to(self.root).as_posix()
                if key.startswith(prefix) and not key.startswith(f"{PARTIAL}/"):
                    yield key

    def partials(self) -> dict[Path, int]:
        """Files that are no objects yet, being written or left by a writer that was killed, and
        their bytes."""
        found = {}
        for path in (self.root / PARTIAL).glob("*"):
            with suppress(FileNotFoundError):
                found[path] = path.stat().st_size
        return found

    def remove_partial(self, path: Path) -> None:
        """One of `partials`; no error where there is none any more."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self.url}: removing {path.name} failed: {error}") from error

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            # The system's word for unlinking a folder is not the same everywhere.
            if not self._path(key).is_dir():
                raise StoreError(f"{self.url}: removing {key} failed: {error}", key=key) from error

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key, self.url)

    def _reading_failed(self, key: str, error: OSError) -> StoreError:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return NotFound(f"{self.url}: no object {key}", key=key)
        return StoreError(f"{self.url}: reading {key} failed: {error}", key=key)


class MemoryStore:
    """Objects in this process; for tests."""

    _stores: ClassVar[dict[str, "MemoryStore"]] = {}

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def named(cls, url: str) -> "MemoryStore":
        """The same store for the same URL, as a folder is the same folder."""
        return cls._stores.setdefault(url, cls(url))

    def create(self, key: str, data: Bytes) -> None:
        with self._lock:
            if checked_key(key, self.url) in self._objects:
                raise AlreadyExists(f"{self.url}: {key} exists already", key=key)
            self._objects[key] = bytes(data)

    def get(self, key: str) -> bytes:
        try:
            return self._objects[checked_key(key, self.url)]
        except KeyError:
            raise NotFound(f"{self.url}: no object {key}", key=key) from None

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        return memoryview(self.get(key))[start:end]

    def fill(self, key: str, start: int, buffers: Buffers) -> int:
        return spread(self.get_range(key, start, start + room_of(buffers)), buffers)

    def size(self, key: str) -> int:
        return len(self.get(key))

    def keys(self, prefix: str) -> Iterator[str]:
        if "/" in prefix:
            checked_key(prefix.rpartition("/")[0], self.url)
        yield from [key for key in list(self._objects) if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(checked_key(key, self.url), None)


def checked_key(key: str, url: str) -> str:
    """The key, if it names the same one place below a store's root on every store.

    Raises:
        StoreError: it does not.
    """
    parts = key.split("/")
    if {"", ".", ".."} & set(parts) or parts[0] == PARTIAL or _NO_KEY_HAS.search(key):
        raise StoreError(f"{url}: {key!r} is not a key", key=key)
    return key


def _link(partial: Path, target: Path, message: str, key: str) -> None:
    try:
        os.link(partial, target)
    except FileExistsError:
        raise AlreadyExists(message, key=key) from None
