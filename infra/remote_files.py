"""Files of whatever fsspec opens: how one is read, and what tells that it has changed."""

import errno
from typing import Any

from infra.local_files import too_large
from schemas.errors import ImageError

_NO_SUCH_RANGE = (416, errno.EINVAL)
"""HTTP's word for it, and s3fs's."""


def read_whole(filesystem: Any, path: str, max_bytes: int) -> bytes:
    """A file, of which no more is asked for than may be used.

    Raises:
        ImageError: it is larger than `max_bytes`.
        Exception: whatever the file system has.
    """
    try:
        data = bytes(filesystem.cat_file(path, start=0, end=max_bytes + 1))
    except Exception as error:
        # Of no bytes there is no range.
        found = getattr(error, "status", None) or getattr(error, "errno", None)
        if found not in _NO_SUCH_RANGE or filesystem.info(path)["size"]:
            raise
        return b""
    if len(data) > max_bytes:
        raise ImageError(too_large(filesystem.info(path)["size"] or len(data), max_bytes))
    return data


def stamp(facts: dict[str, Any]) -> str:
    """What differs where a file has been written anew; empty where the file system does not say."""
    return str(facts.get("ETag") or facts.get("etag") or facts.get("mtime") or "")


def parent(path: str) -> str:
    """The folder of a file; on the web a path is a URL, which may have a query."""
    return (path.partition("?")[0] if "://" in path else path).rpartition("/")[0]
