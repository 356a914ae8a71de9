"""The sealed records of a cache: what FORMAT.md describes, as types.

Those of what was measured of a teacher, and of codecs, are in measured.py.
"""

from typing import Literal

from pydantic import Field

from schemas.extract_config import Columns, Views
from schemas.fingerprint import FINGERPRINT_DIGITS
from schemas.limits import Limits
from schemas.names import BLOCK_ROWS, FORMAT_VERSION, PIXEL_RECIPE, ClsKind, Precision
from schemas.strict import StrictModel


class CacheRecord(StrictModel):
    """`cache.json`: written first, never changed."""

    format_version: int = FORMAT_VERSION
    name: str
    block_rows: int = BLOCK_ROWS
    lanes: int = Field(ge=1)
    """Stretches of an epoch that the training order takes rows from in turn."""
    window_blocks: int = Field(ge=1)
    """Blocks of a lane whose rows it mixes with one another."""
    order_key: str
    """Hex key of the keyed hash that orders images and shuffles blocks."""
    pixel_recipe: int = PIXEL_RECIPE


class ObjectRecord(StrictModel):
    """One object that a commit names."""

    key: str
    size: int
    sha256: str


class PlanCommit(StrictModel):
    """Makes a generation of the plan exist."""

    generation: int
    first_row: int
    images: int
    first_view: int
    """The first of this generation's views; more than 0 where it adds views to known images."""
    views: Views
    """How views are drawn; this generation has those from `first_view` to `per_image` - 1."""
    span_images: int
    source: str
    """Where the images lay."""
    columns: Columns
    limits: Limits = Limits()
    """Pictures beyond them are bad rows of this generation, wherever they are read again."""
    parts: tuple[ObjectRecord, ...]
    superseded: ObjectRecord | None
    """Table of the earlier rows that no longer count, because their images are here anew."""

    @property
    def view_count(self) -> int:
        """Views of each image in this generation."""
        return self.views.per_image - self.first_view

    @property
    def rows(self) -> int:
        return self.images * self.view_count


class PackCommit(StrictModel):
    """Makes a pack of source images exist: `PACK_IMAGES` consecutive ones of a generation, as they
    lie in the data set, in one tar."""

    generation: int
    number: int
    object: ObjectRecord
    offsets: tuple[int, ...]
    """Where each image's bytes begin in the object; -1 of one that could not be read."""
    sizes: tuple[int, ...]


class TeacherRecord(StrictModel):
    """`teachers/<fp12>/teacher.json`: who spoke."""

    fingerprint: str
    library: str
    model: str
    arguments_json: str
    """Further constructor arguments, as JSON."""
    tensors_sha256: str
    """Of the names, types, shapes and bytes of the tensors that were really loaded."""
    pixel_recipe: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    precision: Precision
    patch_pixels: int
    """Pixels along one side of what one token covers."""
    patch_width: int
    """Channels of a patch token."""
    cls_width: int | None
    """Channels of the CLS vector; none where the teacher has none."""
    cls_kind: ClsKind
    pixels_by_grid: tuple[tuple[int, int], ...]
    """(grid, side in pixels) where the side is not grid x patch_pixels."""
    native_pixels: int
    """Side of the pictures the model was made for; not part of the fingerprint."""
    weights: str
    """What the configuration called the weights; not part of the fingerprint."""
    versions: dict[str, str]
    """Libraries and device that were used first; not part of the fingerprint."""

    @property
    def fingerprint12(self) -> str:
        """As it stands in paths."""
        return self.fingerprint[:FINGERPRINT_DIGITS]

    def pixels(self, grid: int) -> int:
        """Side of the square that the teacher is fed for a grid."""
        return dict(self.pixels_by_grid).get(grid, grid * self.patch_pixels)


class ShardError(StrictModel):
    """What storing cost, on standardised tokens of the shard's good rows."""

    cosine_mean: float | None
    cosine_p1: float | None
    """1st percentile of the tokens' cosines."""
    cosine_min: float | None
    relative_rms: float | None
    saturated: float | None
    """Share of the values beyond the last code: of `variable` the share of tokens that were made
    coarser until none was."""


class ShardCommit(StrictModel):
    """Makes a shard exist."""

    set: str
    generation: int
    shard: int
    first_row: int
    """Within the generation."""
    rows: int
    ok: int
    bad: int
    tokens: ObjectRecord
    cls: ObjectRecord
    codec_sha256: str
    """Of codec.json."""
    array_sha256: str
    """Of zarr.json, which carries no checksum of its own."""
    attempt: str
    """Of the worker that wrote it."""
    revision: int = 0
    """How often the shard was repaired with other bytes than it had."""
    error: ShardError


class JobRecord(StrictModel):
    """`jobs/<id>/job.json`: a job at work, while it is."""

    kind: Literal["extract", "gc"]
    """`extract`: whatever adds to the plan, the snapshots, or sets."""
    fingerprints12: tuple[str, ...]
    """Of the teachers whose sets it works on."""
    host: str


class Forgotten(StrictModel):
    """`commits/forgotten/<number>.json`: nobody needs this snapshot any more."""

    number: int


class Tag(StrictModel):
    """`commits/tags/<name>.json`: a name of a snapshot, which keeps it."""

    name: str
    number: int


class SnapshotCommit(StrictModel):
    """Makes a snapshot exist: its parent's shards and those its own table adds."""

    number: int
    parent: int | None
    generations: int
    """Plan generations that existed."""
    shards: int
    """Shards of this snapshot, its parents' included."""
    teachers: dict[str, str]
    """For each teacher's name the one fingerprint (12 hex digits) that it means here."""
    table: ObjectRecord
