"""What was read of a remote cache, kept on a local disk for the epochs to come.

A store that answers reads of tokens and CLS tables from a folder where it can. When the folder is
full, what will be needed latest goes first: the order of the epochs is known, so nothing has to be
guessed. The time of the next use stands in the file's name, and a checksum behind its bytes:
whatever is cut, damaged or of another run is at worst read again. Several processes may share it.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from crc32c import crc32c

from infra.buffers import Buffers, room_of, spread
from infra.store import Bytes, ObjectStore
from schemas.errors import ConfigError

PARTIAL = ".partial-"
ROOM = 0.9
"""Share that stays when something has to go: it is not looked through for every block."""
CHECKSUM_BYTES = 4
WHOLE = (0, 0)
"""The range that stands for a whole object."""


class DiskCache:
    """A store in front of another.

    Args:
        folder: made if it is not there; nothing in it but what a cache wrote is ever touched.
        max_bytes: of all files.

    Raises:
        ConfigError: nothing can be written there.
    """

    def __init__(self, store: ObjectStore, folder: Path, max_bytes: int) -> None:
        self.url = store.url
        self._store, self._folder, self._most = store, folder, max_bytes
        self._lock = threading.Lock()
        self._next = threading.local()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self._files = {name: (when, size) for name, when, size in self._found()}
        except OSError as error:
            raise ConfigError(f"loader.local_cache {folder}: {error.strerror or error}") from None
        self._bytes = sum(size for _, size in self._files.values())

    @contextmanager
    def needed_again(self, when: int) -> Iterator[None]:
        """What this thread reads inside is needed again at a time; times only grow."""
        self._next.when = when
        yield
        self._next.when = 0

    def get_range(self, key: str, start: int, end: int) -> memoryview:
        if "/tokens/c/" not in key:
            return self._store.get_range(key, start, end)
        return self._through(
            self._name(key, start, end), lambda: self._store.get_range(key, start, end)
        )

    def forget(self, key: str, start: int, end: int) -> bool:
        """What was read of a key, because it is not what it should be; whether it was kept."""
        name = self._name(key, start, end)
        with self._lock:
            known = self._files.get(name)
        if known is None:
            return False
        self._path(name, known[0]).unlink(missing_ok=True)
        self._forget(name)
        return True

    def fill(self, key: str, start: int, buffers: Buffers) -> int:
        return spread(self.get_range(key, start, start + room_of(buffers)), buffers)

    def create(self, key: str, data: Bytes) -> None:
        self._store.create(key, data)

    def get(self, key: str) -> bytes:
        if "/cls/" not in key:
            return self._store.get(key)
        whole = self._name(key, *WHOLE)
        return bytes(self._through(whole, lambda: memoryview(self._store.get(key))))

    def size(self, key: str) -> int:
        return self._store.size(key)

    def keys(self, prefix: str) -> Iterator[str]:
        return self._store.keys(prefix)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def _name(self, key: str, start: int, end: int) -> str:
        return blake2b(f"{self.url}\n{key}\n{start}\n{end}".encode(), digest_size=16).hexdigest()

    def _through(self, name: str, read: Callable[[], memoryview]) -> memoryview:
        data = self._kept(name)
        if data is None:
            data = read()
            with suppress(OSError):  # a full disk costs speed, no more
                self._keep(name, data)
        return data

    @property
    def _when(self) -> int:
        return getattr(self._next, "when", 0)

    def _kept(self, name: str) -> memoryview | None:
        with self._lock:
            known = self._files.get(name)
        if known is None:
            return None
        path = self._path(name, known[0])
        try:
            data = memoryview(path.read_bytes())
        except OSError:  # another process has removed or renamed it
            self._forget(name)
            return None
        if _checksum(data[:-CHECKSUM_BYTES]) != data[-CHECKSUM_BYTES:]:
            path.unlink(missing_ok=True)
            self._forget(name)
            return None
        with suppress(OSError):
            path.rename(self._path(name, self._when))
            with self._lock:
                self._files[name] = (self._when, known[1])
        return data[:-CHECKSUM_BYTES]

    def _keep(self, name: str, data: memoryview) -> None:
        size = len(data) + CHECKSUM_BYTES
        if not self._make_room(size):
            return
        partial = self._folder / f"{PARTIAL}{os.getpid()}-{uuid.uuid4().hex}"
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.write(_checksum(data))
            partial.rename(self._path(name, self._when))
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        with self._lock:
            # Another thread may have kept the same a moment ago.
            other = self._files.get(name, (self._when, 0))
            self._files[name] = (self._when, size)
            self._bytes += size - other[1]
        if other[0] != self._when:
            self._path(name, other[0]).unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Whether there is room now for what this thread reads; what is needed later has gone."""
        with self._lock:
            if self._bytes + size <= self._most:
                return True
            later = sorted(
                (when, name) for name, (when, _) in self._files.items() if when > self._when
            )
            going = []
            while later and self._bytes + size > ROOM * self._most:
                when, name = later.pop()
                self._bytes -= self._files.pop(name)[1]
                going.append(self._path(name, when))
            fits = self._bytes + size <= self._most
        for path in going:
            path.unlink(missing_ok=True)
        return fits

    def _forget(self, name: str) -> None:
        with self._lock:
            _, size = self._files.pop(name, (0, 0))
            self._bytes -= size

    def _path(self, name: str, when: int) -> Path:
        return self._folder / f"{name}.{when}"

    def _found(self) -> Iterator[tuple[str, int, int]]:
        """(name, next use, bytes) of every file that a cache kept here."""
        for entry in os.scandir(self._folder):
            name, _, when = entry.name.partition(".")
            if len(name) == 32 and when.isdecimal():
                yield name, int(when), entry.stat().st_size

    def _remove_leftovers(self) -> None:
        """Of processes that were killed while they wrote."""
        for path in self._folder.glob(f"{PARTIAL}*"):
            process = path.name.removeprefix(PARTIAL).partition("-")[0]
            if not Path(f"/proc/{process}").exists():
                path.unlink(missing_ok=True)


def _checksum(data: memoryview) -> bytes:
    return int(crc32c(data)).to_bytes(CHECKSUM_BYTES, "little")
