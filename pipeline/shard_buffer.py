"""The rows of one shard, gathered until all are there, and what is written of them.

Nothing here touches a store: pipeline/writer.py commits a shard, pipeline/mend.py repairs one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.encode import Encoded, Halves
from pipeline.job import FeatureSet, ShardTask
from schemas import shard, tables
from schemas.records import ObjectRecord, ShardCommit, ShardError

Floats = npt.NDArray[np.float32]
ADOPTION_COSINE = 0.999
"""Of exact features from two machines."""


@dataclass
class RowNote:
    """What the CLS table says of a row beside its vector."""

    key: str
    view: int
    reason: str | None
    image_sha256: bytes | None = None
    width: int | None = None
    height: int | None = None
    pixels_sha256: bytes | None = None
    relative_rms: float | None = None
    cosine: Floats | None = None
    """[tokens] to the exact ones."""
    saturated: float | None = None


class ShardBuffer:
    """What a task asks for, a row at a time."""

    def __init__(self, task: ShardTask, feature_set: FeatureSet, global_first_row: int) -> None:
        self.task, self.set = task, feature_set
        self._global_first_row = global_first_row
        self._notes: list[RowNote | None] = [None] * task.rows
        self._left = task.rows

    @property
    def complete(self) -> bool:
        return self._left == 0

    # Made when the first row comes: most shards of a span are not begun while others are filled.
    @cached_property
    def _tokens(self) -> shard.Rows:
        form = self.set.row_form
        return np.zeros((self.task.rows, form.height, form.width), form.dtype)

    @cached_property
    def _cls(self) -> npt.NDArray[np.float16] | None:
        width = self.set.record.cls_width
        return None if width is None else np.full((self.task.rows, width), np.nan, np.float16)

    def put(
        self,
        row: int,
        note: RowNote,
        tokens: shard.Rows | None = None,
        cls: Halves | None = None,
    ) -> None:
        """Take in a row of the generation; without tokens it is bad, for the note's reason."""
        place = row - self.task.first_row
        if self._notes[place] is None:
            self._left -= 1
        self._notes[place] = note
        if tokens is not None:
            self._tokens[place] = tokens
            if self._cls is not None and cls is not None:
                self._cls[place] = cls

    def put_encoded(
        self, row: int, note: RowNote, encoded: Encoded, index: int, cls: Halves | None
    ) -> None:
        """Take in row `index` of what was encoded, which makes the row bad if it is not finite."""
        if not encoded.finite[index]:
            note.reason = "the teacher's features are not finite in float16"
            self.put(row, note)
            return
        note.cosine = encoded.cosine[index]
        note.relative_rms = float(encoded.relative_rms[index])
        note.saturated = float(encoded.saturated[index])
        self.put(row, note, encoded.tokens[index], cls)

    @property
    def _gathered(self) -> list[RowNote]:
        return [note for note in self._notes if note is not None]

    @property
    def _present(self) -> list[bool]:
        return [note.reason is None for note in self._gathered]

    def encode(self) -> bytearray:
        """The object that holds the tokens."""
        return shard.encode(self._tokens, self._present, self.task.rows_per_shard)

    def difference(self, found: bytes, key: str) -> str:
        """How the rows of an object differ from those gathered; empty where they do not.

        Raises:
            DamageError: it cannot be read.
        """
        size = self.task.rows_per_shard
        stored = shard.decode(found, key, self.set.row_form, size)
        present = self._present
        wanted = np.zeros(len(stored), bool)
        wanted[: len(present)] = present
        held = ~shard.is_absent(shard.decode_index(found, key, size))
        if not np.array_equal(held, wanted):
            return f"{held.sum()} good ones, not the {wanted.sum()} just computed"
        worst = _worst_cosine(*map(self._decoded, (self._tokens[present], stored[wanted])))
        least = least_cosine(self.error().cosine_mean)
        return "" if worst >= least else f"cosine {worst:.4f}, {least:.4f} needed to adopt it"

    def _decoded(self, rows: shard.Rows) -> Floats:
        """[rows, tokens, channels] in the codec's basis."""
        if not len(rows):
            return np.zeros((0, self.set.token_count, 1), np.float32)
        decoded: Floats = self.set.codec.rotated(
            torch.from_numpy(rows), self.set.token_count
        ).numpy()
        return decoded

    def table(self, checksums: list[int | None]) -> bytes:
        """The CLS table of the rows whose tokens have these checksums."""
        notes = self._gathered
        first = self._global_first_row + self.task.first_row
        columns: dict[str, object] = {
            "row": range(first, first + len(notes)),
            "key": [note.key for note in notes],
            "view": [note.view for note in notes],
            "status": [tables.OK if note.reason is None else tables.BAD for note in notes],
            "reason": [note.reason for note in notes],
            "image_sha256": [note.image_sha256 for note in notes],
            "width": [note.width for note in notes],
            "height": [note.height for note in notes],
            "pixels_sha256": [note.pixels_sha256 for note in notes],
            "tokens_crc32c": checksums[: len(notes)],
            "relative_rms": [note.relative_rms for note in notes],
        }
        width = self.set.record.cls_width
        if width is not None and self._cls is not None:
            flat = pa.array(self._cls.reshape(-1))
            columns["cls"] = pa.FixedSizeListArray.from_arrays(flat, width)
        return tables.blocks_to_parquet(pa.table(columns, schema=tables.cls_schema(width)))

    def record(
        self, tokens: ObjectRecord, cls: ObjectRecord, attempt: str, revision: int = 0
    ) -> ShardCommit:
        """The commit that names these objects."""
        task, ok = self.task, sum(self._present)
        return ShardCommit(
            set=str(self.set.path),
            generation=task.generation,
            shard=task.shard,
            first_row=task.first_row,
            rows=task.rows,
            ok=ok,
            bad=task.rows - ok,
            tokens=tokens,
            cls=cls,
            codec_sha256=self.set.codec_sha256,
            array_sha256=task.array_sha256,
            attempt=attempt,
            revision=revision,
            error=self.error(),
        )

    def error(self) -> ShardError:
        """What storing the rows cost."""
        return _error(self._gathered)


def least_cosine(of_codec: float | None) -> float:
    """From when on coded features are another teacher's, or of other pixels: where two machines
    differ in a last bit, two codes may lie a whole step apart.

    Args:
        of_codec: mean cosine of what is coded to what it is coded from.
    """
    return ADOPTION_COSINE - 2 * (1 - (1.0 if of_codec is None else min(1.0, of_codec)))


def _worst_cosine(mine: Floats, theirs: Floats) -> float:
    """The smallest cosine between the rows [rows, tokens, channels] of two shards."""
    a, b = (rows.reshape(len(rows), -1) for rows in (mine, theirs))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(norms, 1e-12)).min(initial=1.0))


def _error(notes: list[RowNote]) -> ShardError:
    cosines = [note.cosine for note in notes if note.cosine is not None]
    if not cosines:
        return ShardError.model_validate(dict.fromkeys(ShardError.model_fields))
    rms = [note.relative_rms for note in notes if note.relative_rms is not None]
    saturated = [note.saturated for note in notes if note.saturated is not None]
    return ShardError(
        cosine_mean=float(np.mean(cosines, dtype=np.float64)),
        cosine_p1=float(np.percentile(cosines, 1)),
        cosine_min=float(np.min(np.mean(cosines, axis=1))),
        relative_rms=float(np.sqrt(np.mean(np.square(rms)))),
        saturated=float(np.mean(saturated)),
    )
