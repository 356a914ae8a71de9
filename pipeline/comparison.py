"""What rows of a feature set are beside what their teacher says of their pictures now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from infra.codec.codec import TokenCodec
from infra.redact import printable
from infra.terminal import Terminal
from pipeline.encode import Halves, encode
from pipeline.pictures import Picture, Square
from pipeline.sample import StoredRow
from pipeline.shard_buffer import Floats, least_cosine
from pipeline.teachers import LoadedTeacher


@dataclass
class Comparison:
    """Of some rows of one set."""

    rows: int
    rows_damaged: int = 0
    """Not compared, because something of their shard is damaged; what, the other checks say."""
    pictures_changed: int = 0
    """Rows whose picture is gone or another by now: there is nothing to compare them with."""
    pixels_different: int = 0
    """Rows whose picture is the same to the byte and gives other pixels, or none."""
    cosines: list[float] = field(default_factory=list)
    """Of each row compared, the mean over its standardised tokens."""
    cls_cosines: list[float] = field(default_factory=list)
    changes: dict[str, str] = field(default_factory=dict)
    """Key of a picture that has changed: what is with it, and what to do."""
    faults: list[str] = field(default_factory=list)
    """Rows that are not what their teacher says."""

    @property
    def clean(self) -> bool:
        return not (self.faults or self.rows_damaged)

    def result(self) -> dict[str, object]:
        """As it stands in the JSON object."""
        return {
            "rows": self.rows,
            "rows_damaged": self.rows_damaged,
            "pictures_changed": self.pictures_changed,
            "pixels_different": self.pixels_different,
            "cosine_min": min(self.cosines, default=None),
            "cosine_mean": float(np.mean(self.cosines)) if self.cosines else None,
            "cls_cosine_min": min(self.cls_cosines, default=None),
            "faults": self.faults,
        }

    def add(
        self,
        loaded: LoadedTeacher,
        codec: TokenCodec,
        rows: Sequence[StoredRow],
        pictures: Sequence[Picture],
    ) -> None:
        """Run the teacher on a batch of rows and compare. Each picture holds the one square that
        the teacher was fed, or the reason why there is none."""
        squares = [self._square(row, picture) for row, picture in zip(rows, pictures)]
        seen = [(row, square) for row, square in zip(rows, squares) if square is not None]
        if not seen:
            return
        now = encode(codec, *loaded([square.pixels for _, square in seen]))
        for index, (row, square) in enumerate(seen):
            is_finite = bool(now.finite[index])
            both = torch.from_numpy(np.stack([row.tokens, now.tokens[index]]))
            stored, again = codec.rotated(both, len(now.cosine[index])).numpy()
            cosine = _cosine(stored, again) if is_finite else 0.0
            self.cosines.append(cosine)
            what, least = f"cosine of its tokens {cosine:.5f}", cosine
            if row.cls is not None and now.cls is not None:
                cls_cosine = _cosine(row.cls[None], now.cls[index][None]) if is_finite else 0.0
                self.cls_cosines.append(cls_cosine)
                what, least = f"{what}, of its CLS {cls_cosine:.5f}", min(least, cls_cosine)
            if square.sha256 != row.pixels_sha256:
                self.pixels_different += 1
                self.faults.append(f"{row}: other pixels; {what}")
            # As near as a shard that an extraction adopts for its own; other weights and other
            # pixels are far below.
            elif least < least_cosine(float(now.cosine[index].mean())):
                self.faults.append(f"{row}: {what}")

    def _square(self, row: StoredRow, picture: Picture) -> Square | None:
        if picture.image_sha256 != row.image_sha256:
            self.pictures_changed += 1
            self.changes[row.key] = (
                f"{picture.reason}: bring it back to compare its rows"
                if picture.image_sha256 is None
                else "has changed since it was extracted: run extract again, which gives it new "
                "rows, or restore it"
            )
            return None
        if picture.reason is not None:
            self.pixels_different += 1
            self.faults.append(f"{row}: the picture is the same, and here {picture.reason}")
            return None
        (square,) = picture.squares.values()
        return square


def tell(found: Mapping[str, Comparison | None], shown: int, terminal: Terminal) -> None:
    """Warn of the first `shown` pictures and rows of each kind, and sum up each set."""
    compared = {text: each for text, each in found.items() if each is not None}
    changes = {key: what for each in compared.values() for key, what in each.changes.items()}
    for key, what in list(changes.items())[:shown]:
        terminal.warn(f"picture {printable(key)} {what}")
    faults = [f"{text}: {fault}" for text, each in compared.items() for fault in each.faults]
    for fault in faults[:shown]:
        terminal.warn(fault)
    if faults:
        terminal.warn(
            f"{len(faults)} rows are not what their teachers say (features further from them than "
            "two machines differ, or other pixels): install the versions that teacher.json names "
            "and verify again; if they are still others, extract into a new folder"
        )
    for text, each in compared.items():
        least = [f"{min(values):.5f}" for values in (each.cosines, each.cls_cosines) if values]
        terminal.say(
            f"recomputed   {text}  {each.rows:,} rows: cosine (tokens, CLS) at least "
            f"{', '.join(least) or 'unknown'}; {each.pixels_different} have other pixels, "
            f"{each.pictures_changed} a picture that has changed"
        )


def _cosine(stored: Floats | Halves, now: Floats | Halves) -> float:
    """Between vectors [vectors, channels], the mean over them."""
    a, b = stored.astype(np.float64), now.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    # What is equal is alike, also where it has no direction: features that never change are
    # stored as zeros.
    cosine[(stored == now).all(axis=1)] = 1.0
    return min(1.0, float(cosine.mean()))
