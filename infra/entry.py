"""What a data set says of one of its pictures."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a source: its key, and what tells whether it has changed."""

    key: str
    size: int
    etag: str
    label: str | None = None
