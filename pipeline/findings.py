"""Where `verify` and `--repair` note what they find."""

import threading
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Findings:
    """What was found wrong, gathered by many threads."""

    missing: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    misaligned: int = 0
    keys: set[str] = field(default_factory=set)
    """Of all objects with which something is wrong."""
    bad_rows: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def damage(self, key: str, what: str, *, missing: bool = False) -> None:
        """Note an object, once however often it is met."""
        with self._lock:
            if key not in self.keys:
                (self.missing if missing else self.corrupt).append(key)
                self.notes.append(f"{key}: {what}")
            self.keys.add(key)

    def misalign(self, key: str, rows: int, what: str) -> None:
        with self._lock:
            self.misaligned += rows
            self.keys.add(key)
            self.notes.append(f"{key}: {what}")

    def mark_bad(self, rows: list[int]) -> None:
        with self._lock:
            self.bad_rows.update(rows)

    def drop_superseded(self, rows: npt.NDArray[np.int64]) -> None:
        """Rows that stand anew in a later generation do not count as bad."""
        self.bad_rows.difference_update(rows.tolist())

    @property
    def clean(self) -> bool:
        return not (self.missing or self.corrupt or self.misaligned)
