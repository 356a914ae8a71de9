"""What a worker is told: all that an extraction needs, as values that travel between processes."""

from dataclasses import dataclass, field

from infra.codec.codec import TokenCodec
from pipeline.moments import Spread
from schemas.extract_config import Columns, Teacher
from schemas.layout import SetPath
from schemas.names import Precision
from schemas.records import ObjectRecord, PlanCommit, ShardCommit, TeacherRecord
from schemas.shard import RowForm
from schemas.store_config import StoreOptions


@dataclass(frozen=True)
class TeacherTask:
    """A teacher of this job and the grids it is run at."""

    name: str
    teacher: Teacher
    precision: Precision
    record: TeacherRecord
    grids: tuple[int, ...]


@dataclass(frozen=True)
class FeatureSet:
    """One feature set that this job writes."""

    teacher: str
    path: SetPath
    record: TeacherRecord
    codec: TokenCodec
    codec_sha256: str
    min_cosine: float = 0.0
    """Below which a shard's mean cosine must not be."""

    @property
    def token_count(self) -> int:
        return self.path.grid**2

    @property
    def pixels(self) -> int:
        """Side of the squares that the teacher is fed."""
        return self.record.pixels(self.path.grid)

    @property
    def row_form(self) -> RowForm:
        """What one row's tokens are in a shard."""
        return self.codec.row_form(self.token_count)


@dataclass(frozen=True)
class Damaged:
    """What a snapshot names of a shard of which something is damaged."""

    tokens: ObjectRecord
    cls: ObjectRecord
    revision: int
    commit_sha256: str


@dataclass(frozen=True)
class Source:
    """A shard of the same teacher at the same grid, stored as float16."""

    first_row: int
    rows: int
    rows_per_shard: int
    tokens: ObjectRecord
    cls: ObjectRecord

    @property
    def end(self) -> int:
        return self.first_row + self.rows


@dataclass(frozen=True)
class ShardTask:
    """A shard that is missing, or damaged."""

    feature_set: int
    """Index into the job's feature sets."""
    generation: int
    shard: int
    first_row: int
    rows: int
    rows_per_shard: int
    array_sha256: str
    damaged: Damaged | None = None
    sources: tuple[Source, ...] = ()
    """That it is made from; none where it is computed from pictures."""


Excused = tuple[tuple[int, str], ...]
"""(image within the span, reason) of images that are not read: their rows are bad."""


@dataclass(frozen=True)
class SpanTask:
    """The unit of work: what is missing of a span."""

    generation: int
    span: int
    shards: tuple[ShardTask, ...]
    excused: Excused

    @property
    def needs_pictures(self) -> bool:
        return not all(shard.sources for shard in self.shards)


@dataclass(frozen=True)
class CalibrationTask:
    """Images of one span to measure teachers on."""

    pairs: tuple[tuple[int, int], ...]
    """(index into Job.teachers, grid) of what is not calibrated yet."""
    generation: int
    span: int
    first_image: int
    """Within the span."""
    images: int
    excused: Excused


@dataclass(frozen=True)
class CalibrationPart:
    """What a stretch of images contributes to one (teacher, grid)."""

    rows: int
    tokens: Spread
    cls: Spread | None


@dataclass(frozen=True)
class Job:
    """What every worker of an extraction knows from the start."""

    cache: str
    store: StoreOptions
    source: str = field(repr=False)
    """As it is opened: nobody is to see it."""
    columns: Columns
    teachers: tuple[TeacherTask, ...]
    generations: tuple[PlanCommit, ...]
    batch_size: int
    decode_threads: int
    forward_threads: int
    """CPU threads of the forward; 0 leaves torch's own choice (with a GPU)."""
    device: str


@dataclass(frozen=True)
class GivenUp:
    """A task that ended one worker after the other."""

    reason: str


@dataclass(frozen=True)
class SpanReport:
    """What became of a span."""

    commits: tuple[ShardCommit, ...]
    """Of every shard asked for, whoever wrote it."""
    written: int
    reused: int
    """Shards that another worker or an earlier attempt turned out to have written."""
    forwards: int
    bytes_written: int
    decodes: int
    """Pictures read and decoded."""
    decode_seconds: float
    """Thread-seconds of reading, decoding and cropping."""
    wait_seconds: float
    """Wall seconds in which the forward waited for pictures."""
    forward_seconds: dict[str, float]
    """Wall seconds of the bare forwards, by teacher and grid."""
    encode_seconds: float
    """Wall seconds of standardising, rounding and measuring what it cost."""
    batch_size: int
    """Rows of a forward at its end: fewer than configured where a GPU had no room for more."""
