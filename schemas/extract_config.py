"""What an extraction is asked to do."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from schemas.limits import Limits
from schemas.names import BLOCK_ROWS, Grid, Name, Precision
from schemas.store_config import StoreOptions
from schemas.strict import StrictModel, one_or_several


class Columns(StrictModel):
    image: str = "image"
    """Column of encoded image bytes (or a struct with a `bytes` field)."""
    key: str = "path"
    """Column that names the image; must be unique."""
    label: str = "label"
    """Column of the class, read by `evaluate` only."""


class Images(Limits):
    source: str
    """Folder (searched recursively) or glob of pictures; file, folder or glob of Parquet or of .tar
    archives (webdataset); .txt file of addresses, one a line. A path or any fsspec URL."""
    columns: Columns = Columns()
    limit: int | None = Field(None, ge=1)
    """Only the first N images, in hash order."""


class Photometric(StrictModel):
    """Changes of colour and sharpness, drawn for each view and stored with it."""

    color_jitter: float = Field(0.4, ge=0, le=1)
    """Strength: brightness and contrast change by up to this share, saturation by half of it, hue
    by a quarter; in four of five views."""
    blur: float = Field(0.5, ge=0, le=1)
    """Share of the views that a Gaussian blurs."""
    solarize: float = Field(0.2, ge=0, le=1)
    """Share of the views whose bright half is inverted."""


class Views(StrictModel):
    per_image: int = Field(1, ge=1, le=1024)
    """View 0 is the whole image; the others are random resized crops. May be raised later."""
    crop_scale: tuple[float, float] = (0.32, 1.0)
    """Range of a crop's share of the image's area."""
    flip: bool = True
    """Mirror a crop with probability one half. View 0 never is."""
    photometric: Photometric | None = None
    """Show teachers and students the views with changed colours, as EUPE does; by default not."""
    seed: int = Field(0, ge=0)

    @field_validator("crop_scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("a pair 0 < low <= high <= 1 is expected")
        return scale


def _distinct(grids: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(grids)) != len(grids):
        raise ValueError("a grid is named twice")
    return grids


Grids = Annotated[tuple[Grid, ...], BeforeValidator(one_or_several), AfterValidator(_distinct)]


class CodecChoice(StrictModel):
    tokens: Literal["fp16", "int8", "int4", "variable"] = "fp16"
    """How standardised patch tokens are stored. `variable`: wide channels get more bits."""
    bits: float | None = Field(None, ge=1.5, le=6, multiple_of=0.25)
    """Of `variable`: mean of a channel of a token, all that is stored with it included; 4 if not
    said."""
    rotation: Literal["none", "hadamard", "pca"] | None = None
    """Basis that tokens are stored in: their own channels, one in which all channels are equally
    wide, or the principal axes. If not said: none for int8, hadamard for int4, pca for variable."""
    min_cosine: float = Field(0.9, ge=0, le=1)
    """An extraction ends where a shard's tokens have a mean cosine to the exact ones below it."""

    @model_validator(mode="after")
    def _belongs_together(self) -> "CodecChoice":
        if self.bits is not None and self.tokens != "variable":
            raise ValueError(f"bits: {self.tokens} has a fixed number; use tokens: variable")
        if self.tokens == "fp16" and self.rotation not in (None, "none"):
            raise ValueError("rotation: fp16 has nothing to gain from one; leave it out")
        return self


class Teacher(StrictModel):
    library: Literal["timm", "open_clip", "teachonce", "python"]
    """Where the architecture comes from."""
    model: str = ""
    """The library's name of the model; `module:function` for python, nothing for teachonce."""
    weights: str = "pretrained"
    """`pretrained` (open_clip: also `pretrained:TAG`), a path or URL of safetensors or a state
    dict, or `random:SEED`; for teachonce the folder of a run."""
    arguments: dict[str, Any] = {}
    """Further arguments of the library's model constructor."""
    grids: Grids | None = Field(None, min_length=1)
    """Instead of the job's grids."""
    pixels: dict[Grid, Annotated[int, Field(ge=1)]] = {}
    """Grid: side in pixels of what the teacher is fed, where it is not grid x patch."""
    codec: CodecChoice | None = None
    """Instead of the job's codec."""
    precision: Precision | None = None
    """Instead of the job's precision."""

    @field_validator("weights")
    @classmethod
    def _seed_is_a_number(cls, weights: str) -> str:
        if weights.startswith("random:") and not weights.removeprefix("random:").isdigit():
            raise ValueError("random weights are written random:SEED with a whole number")
        return weights

    @model_validator(mode="after")
    def _model_where_one_is_needed(self) -> "Teacher":
        if self.library != "teachonce" and not self.model:
            raise ValueError(f"library {self.library} needs `model`, the name of one")
        no_folder = self.weights == "pretrained" or self.weights.startswith("random:")
        if self.library == "teachonce" and no_folder:
            raise ValueError("library teachonce needs `weights`, the folder of a trained model")
        if self.library == "python" and ":" not in self.model:
            raise ValueError("library python needs `model` as module:function")
        return self


class Workers(StrictModel):
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of one worker; `auto` is 1 where Ray has any, else 0."""
    count: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Worker processes; `auto` is one a GPU, or one a CPU core where there is no GPU."""
    batch_size: int = Field(32, ge=1)
    """Rows in one forward. Part of a feature's bits, not of its meaning."""
    precision: Precision = "float32"
    """Precision of the forward; part of the fingerprint."""
    decode_threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads that decode ahead of the forward, in each worker."""


def _power_of_two(rows: int) -> int:
    if rows & (rows - 1):
        raise ValueError("a power of two is expected")
    return rows


class Cost(StrictModel):
    """What `plan` reckons with. Seconds are measured where it runs; the rest stands here."""

    workers: float = Field(1, gt=0)
    """Machines like this one that share the work."""
    worker_hour: float | None = Field(None, ge=0)
    """Price of one such machine for an hour."""
    storage_gb_month: float | None = Field(None, ge=0)
    """Price of 10^9 bytes for a month."""
    months: float = Field(1, ge=0)
    """How long the cache is kept."""
    currency: str = "USD"
    views_per_epoch: float = Field(1, gt=0)
    """Views of each image that one epoch of training shows."""
    grids_per_epoch: float = Field(1, gt=0)
    """Grids at which a teacher run online would see each view."""


class ExtractConfig(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    images: Images
    views: Views = Views()
    grids: Grids = Field((16,), min_length=1)
    """The pyramid: patch tokens per side. Pixels = grid x the teacher's patch."""
    teachers: dict[Name, Teacher] = Field(min_length=1)
    codec: CodecChoice = CodecChoice()
    rows_per_shard: (
        Annotated[int, Field(ge=BLOCK_ROWS), AfterValidator(_power_of_two)] | Literal["auto"]
    ) = "auto"
    """`auto`: the most whose tokens fit 64 MiB. Frozen when a set's generation is created."""
    calibration_images: int = Field(512, ge=1)
    """Images, the first in hash order, whose tokens give the mean and standard deviation."""
    workers: Workers = Workers()
    tolerate_bad_images: float = Field(0.01, ge=0, le=1)
    """Share of bad rows beyond which the command ends with status 1."""

    cost: Cost = Cost()
    only: Annotated[tuple[Name, ...], BeforeValidator(one_or_several)] = ()
    """Teachers to run now, of those named above; none named means all. The others' features stay
    in the snapshot."""
    repair: bool = False
    """Check what is there first, and compute anew what is damaged."""
    retry_bad: bool = False
    """Give images that have bad rows new rows, and try them again."""

    @model_validator(mode="after")
    def _only_known(self) -> "ExtractConfig":
        unknown = [name for name in self.only if name not in self.teachers]
        if unknown:
            raise ValueError(
                f"only: no teacher {', '.join(unknown)}; there are {', '.join(self.teachers)}"
            )
        return self

    def grids_of(self, teacher: str) -> tuple[int, ...]:
        """The grids at which a teacher is run."""
        return self.teachers[teacher].grids or self.grids

    def codec_of(self, teacher: str) -> CodecChoice:
        """How a teacher's tokens are stored."""
        return self.teachers[teacher].codec or self.codec

    @property
    def teachers_now(self) -> tuple[str, ...]:
        """Names of the teachers that this job runs."""
        return tuple(dict.fromkeys(self.only or self.teachers))
