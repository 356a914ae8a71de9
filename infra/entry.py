"""What a data set says of one of its pictures, and which names it may give them."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from infra.redact import printable, public_url
from schemas.errors import ConfigError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".jp2", ".avif", ".ico", ".tga"}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a source: its key, and what tells whether it has changed."""

    key: str
    size: int
    etag: str
    label: str | None = None


def is_picture(path: str) -> bool:
    """Whether a file's suffix, in any case, is one of a picture."""
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def refuse_key(url: str, address: str, key: str) -> None:
    """Keys are written into the cache as they are.

    Args:
        url: of the data set, without secrets. address: where the picture is.

    Raises:
        ConfigError: the key is no text, or the address would give a secret away.
    """
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"images {url}: the file name {key!r} is not UTF-8; rename it") from None
    if public_url(address) != address:
        raise ConfigError(
            f"images {url}: the address of {printable(public_url(address))} has a query or a "
            "user in it, which would be written into the cache; give a plain address"
        )
