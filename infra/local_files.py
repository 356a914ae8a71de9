"""Files of a local folder, read so that no name leads out of it and none of them blocks.

A data set that was unpacked from somewhere, and a plan that somebody else wrote, may name anything:
`../../etc/passwd`, a link to it, a pipe that never ends, a sparse file of a terabyte.
"""

import os
import stat
from collections.abc import Iterator
from typing import Any

from schemas.errors import ImageError


def find_files(filesystem: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, facts) of every regular file below `root`, links to files among them, a folder's in
    the order of their names. Of files not yet come to only the names of one folder and its parents
    are held.

    Links to folders are not followed, so that no walk goes round or leaves the data set. Links to
    nothing, pipes, sockets and devices are no files.

    Raises:
        OSError: a folder cannot be listed; what is in it would be left out unsaid.
    """
    for name in sorted(os.listdir(root)):
        path = f"{root}/{name}"
        try:
            facts = filesystem.info(path)
        except OSError:
            if os.path.islink(path):
                continue
            raise
        if facts["type"] == "file":
            yield path, facts
        elif facts["type"] == "directory" and not facts["islink"]:
            yield from find_files(filesystem, path)


def read_inside(root: str, key: str, max_bytes: int) -> bytes:
    """The file `key` below `root`, which is a real path.

    Raises:
        ImageError: it is gone (`missing`), leads out of `root`, is no regular file, is larger than
            `max_bytes`, grows while it is read, or may not be read.
        OSError: reading failed for another reason.
    """
    if "\0" in key:
        raise ImageError("its name is not one of a file")
    path = os.path.realpath(f"{root}/{key}")
    if not path.startswith(root.rstrip("/") + "/"):
        raise ImageError(
            "leads out of the data set, by a link or by `..`; put a copy there, or name a folder "
            "that holds both as images.source"
        )
    try:
        # A pipe is not waited for, whatever it was when the data set was listed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("is no longer in the data set", missing=True) from None
    except PermissionError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
    with open(descriptor, "rb", buffering=0) as file:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise ImageError("is no longer in the data set", missing=True)
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError("is no regular file")
        if facts.st_size > max_bytes:
            raise ImageError(too_large(facts.st_size, max_bytes))
        data = file.read(facts.st_size + 1) or b""
        # One call reads all there is of a file on a disk; network file systems may give less.
        while len(data) <= facts.st_size and (more := file.read(facts.st_size + 1 - len(data))):
            data += more
    if len(data) > facts.st_size:
        raise ImageError("grew while it was read; wait until it is whole")
    return data


def too_large(size: int, max_bytes: int) -> str:
    """The reason of a picture that is refused for its bytes alone."""
    return f"{size} bytes are more than the {max_bytes} allowed; raise images.max_bytes to read it"
