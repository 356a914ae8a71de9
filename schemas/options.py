"""Options of the commands that take no configuration file of their own."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from schemas.codec import choice_of, codec_label
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


def _tag(text: str) -> str:
    name = text.rpartition("=")[2]
    if (
        not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII)
        or name.isdigit()
        or name == "latest"
    ):
        raise ValueError(
            f"a tag begins with a letter or digit, goes on with letters, digits, '.', '_' and '-', "
            f"and is neither a number nor `latest`: not {name!r}"
        )
    return text


def _tag_of_number(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,8}=.*", text, re.ASCII | re.DOTALL):
        raise ValueError(f"is given as NUMBER=NAME, such as 3=paper: not {text!r}")
    return text


TagName = Annotated[str, Field(max_length=100), AfterValidator(_tag)]
NumberAndTag = Annotated[TagName, AfterValidator(_tag_of_number)]


class SnapshotsOptions(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    prune: bool = False
    """Make a new snapshot without the sets of teachers that no name means any more."""
    forget: Annotated[tuple[int, ...], BeforeValidator(one_or_several)] = ()
    """Snapshots that nobody needs any more; never the newest, nor one that has a tag."""
    tag: Annotated[tuple[NumberAndTag, ...], BeforeValidator(one_or_several)] = ()
    """Give snapshots names, as 3=paper: a tag keeps its snapshot and never moves to another."""
    untag: Annotated[tuple[TagName, ...], BeforeValidator(one_or_several)] = ()
    """Tags to be taken away first."""


class GcOptions(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    delete: bool = False
    """Remove what is listed."""


def _label(label: str) -> str:
    try:
        known = codec_label(choice_of(label))
    except ValueError:
        known = ""
    if known != label:
        raise ValueError(
            "is written as in paths: fp16, int8, int4.hadamard, variable3.pca (bits and rotation)"
        )
    return label


class CopyOptions(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    out: str = Field(min_length=1)
    """Where the copy is to be, likewise."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    teachers: Annotated[tuple[str, ...], BeforeValidator(one_or_several)] = ()
    """Names; all if none is given."""
    grids: Annotated[tuple[Grid, ...], BeforeValidator(one_or_several)] = ()
    """All if none is given."""
    views: Annotated[tuple[int, ...], BeforeValidator(one_or_several)] = ()
    """Shards that hold something of these; all if none is given."""
    codec: Annotated[str, AfterValidator(_label)] | None = None
    """Sets in this codec alone; where there is none, it is made of what stands in fp16."""


class PackOptions(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    root: str | None = None
    """Where the data set has moved to, if not where it was when it was extracted."""
    threads: int = Field(16, ge=1)
    """That read pictures."""


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
    arguments: dict[str, Any] = {}
    """Of a `timm:NAME`: further arguments of timm's constructor."""
    limit: int | None = Field(None, ge=1)
    """Only the first N pictures of each part, in hash order."""
    batch_size: int = Field(64, ge=1)


def _weights_file(path: str) -> str:
    if not path.endswith((".safetensors", ".pth")):
        raise ValueError("ends in .safetensors or .pth, which says how it is written")
    return path


class ExportOptions(StrictModel):
    student: str = Field(min_length=1)
    """A run, or one of its checkpoints."""
    to: Literal["timm", "eupe"]
    """Whose names its tensors get: `timm` is for `timm.create_model(checkpoint_path=...)`, `eupe`
    for the code of EUPE's authors and all that reads their files."""
    out: Annotated[str, AfterValidator(_weights_file)]
    """The file, PATH.safetensors or PATH.pth; one that is there is replaced. EUPE's own code reads
    .pth alone."""


class BenchOptions(StrictModel):
    what: Literal["codec", "extract", "loader", "loss", "memory", "train"]
    """Which measurement."""
    images: str | None = None
    """Pictures to measure with; by default those of the quickstart."""
    limit: int = Field(64, ge=1)
    """Pictures that `extract` measures with."""
    case: Literal["one", "three", "both"] = "both"
    """How many teachers `extract` measures with: one, three of different kinds, or each in turn."""
    precision: Precision | None = None
    """Of the forward in `extract` and `train`; by default float32, on a GPU bfloat16."""
    cache: str | None = None
    """The cache that `loader`, `train` and `codec` read: a folder, or s3://BUCKET/PREFIX. `codec`
    needs none: it measures with made-up features as well."""
    caches: Annotated[tuple[str, ...], BeforeValidator(one_or_several)] = ()
    """Further caches that `codec` reads."""
    sample: int = Field(512, ge=4)
    """Rows of each set that `codec` measures with: the pictures of one half calibrate, those of
    the other judge."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    pixels: Annotated[int, Field(ge=16)] | None = None
    """`loader`: also stream with pictures of this side."""
    teacher: str = "teacher"
    """Whose set `loader` and `train` read; `codec` reads every one stored as fp16 if not said."""
    grid: Grid | None = None
    """At which grid; needed where the teacher has several, but for `codec`. The smaller one of
    `loss`, by default 16."""
    students: Annotated[tuple[str, ...], BeforeValidator(one_or_several)] = ()
    """Of `train`; by default timm's ViT-T, on a GPU EUPE's ViT-T, S and B."""
    impls: Annotated[tuple[str, ...], BeforeValidator(one_or_several)] = ("auto",)
    """Of the loss in `train`, as in `loss.impl`: each in turn."""
    batch_size: int | None = Field(None, ge=1)
    """Of `train`, by default 16, on a GPU 256; of `loss`, 2 and 256; of `codec`, whose speed goes
    with it, 64."""
    channels: Annotated[tuple[int, ...], BeforeValidator(one_or_several)] = ()
    """Of the features that `loss` is of; by default 256, on a GPU 1024, 1280 and 1536."""
    steps: int = Field(20, ge=1)
    """Of each run of `train`."""
    repeats: int = Field(3, ge=1)
    """Every figure but those of `memory` is the median of this many runs, interleaved."""
    rows: int = Field(1_000, ge=2)
    """Rows of the smaller data set of `memory`; the other has 100 times as many."""
    out: str = "tests/benchmarks/results"
    """Folder of the result files that rows are appended to."""
