"""Options of the commands that take no configuration file of their own."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from schemas.extract_config import Columns
from schemas.names import Grid, Precision
from schemas.store_config import StoreOptions
from schemas.strict import StrictModel, one_or_several


class VerifyOptions(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    against_teacher: int | None = Field(None, ge=1)
    """Also replay so many rows of each set from their pictures, run its teacher again, and compare
    the pixels and the features."""


class SnapshotsOptions(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    prune: bool = False
    """Make a new snapshot without the sets of teachers that no name means any more."""
    forget: Annotated[tuple[int, ...], BeforeValidator(one_or_several)] = ()
    """Snapshots that nobody needs any more; never the newest."""


class GcOptions(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    delete: bool = False
    """Remove what is listed."""


class EvaluateOptions(StrictModel):
    student: str = Field(min_length=1)
    """A run, one of its checkpoints, or `timm:NAME` for a model of timm's."""
    data: str = Field(min_length=1)
    """Labelled pictures: Parquet, or a folder of one folder a class. One without `train` and
    `val` or `test` of its own is divided 80 / 20 by a hash of the key."""
    columns: Columns = Columns()
    grid: Grid | None = None
    """Pictures are shown at 16 x grid pixels; by default as the student was trained."""
    weights: str = "pretrained"
    """Of a `timm:NAME`: `pretrained`, a path or URL, or `random:SEED`."""
    limit: int | None = Field(None, ge=1)
    """Only the first N pictures of each part, in hash order."""
    batch_size: int = Field(64, ge=1)


class BenchOptions(StrictModel):
    what: Literal["extract", "loader"]
    """Which measurement."""
    images: str | None = None
    """Pictures to measure with; by default those of the quickstart."""
    limit: int = Field(64, ge=1)
    """Pictures that `extract` measures with."""
    case: Literal["one", "three", "both"] = "both"
    """How many teachers `extract` measures with: one, three of different kinds, or each in turn."""
    precision: Precision | None = None
    """Of the forward in `extract`; by default float32, on a GPU bfloat16."""
    cache: str | None = None
    """The cache that `loader` reads."""
    teacher: str = "teacher"
    """Whose set `loader` reads."""
    grid: Grid | None = None
    """At which grid; needed where the teacher has several."""
    repeats: int = Field(3, ge=1)
    """Every figure is the median of this many runs, interleaved."""
    out: str = "tests/benchmarks/results"
    """Folder of the result files that rows are appended to."""
