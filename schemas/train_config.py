"""What a training run is asked to do."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.names import Grid, Name
from schemas.store_config import StoreOptions
from schemas.strict import StrictModel


class Student(StrictModel):
    model: str = Field(min_length=1)
    """`eupe_vit_{t,s,b}`, `eupe_convnext_{t,s,b}`, or any `timm:NAME`."""


class TeacherTerm(StrictModel):
    weight: float = Field(1.0, ge=0)
    """Factor of this teacher's loss."""
    grids: tuple[Grid, ...] | None = Field(None, min_length=1, max_length=1)
    """The grid of this teacher's targets; by default the one it was cached at."""


class ImagesRoot(StrictModel):
    root: str | None = None
    """Where the data set has moved to, if not where it was when it was extracted."""


class PatchLoss(StrictModel):
    cosine: float = Field(0.9, ge=0)
    smooth_l1: float = Field(0.1, ge=0)
    beta: float = Field(1.0, gt=0)
    """Where smooth-L1 turns from quadratic to linear, in standard deviations."""


class Loss(StrictModel):
    cls: Literal["cosine"] = "cosine"
    patch: PatchLoss = PatchLoss()


class Head(StrictModel):
    hidden: int = Field(3072, ge=1)
    """Width between the two linear layers of an adapter head."""


class Optim(StrictModel):
    lr: float = Field(2e-5, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1)
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient."""


class Checkpoint(StrictModel):
    every_steps: int = Field(1000, ge=1)
    keep: int = Field(3, ge=1)


class Loader(StrictModel):
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads that read blocks and decode pictures; changes the speed, never the batches."""
    prefetch_batches: int = Field(4, ge=1)
    """Batches prepared ahead of the step."""


class TrainConfig(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    snapshot: Annotated[int, Field(ge=1)] | Literal["latest"] = "latest"
    """Pinned to its number when the run starts."""
    stage: Literal["fixed"] = "fixed"
    student: Student
    teachers: dict[Name, TeacherTerm] = {}
    """By default every teacher of the snapshot, with weight 1."""
    student_grids: tuple[Grid, ...] = Field((16,), min_length=1, max_length=1)
    """The student sees 16 x grid pixels, whatever its stride."""
    views: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    images: ImagesRoot = ImagesRoot()
    loss: Loss = Loss()
    head: Head = Head()
    optim: Optim = Optim()
    checkpoint: Checkpoint = Checkpoint()
    loader: Loader = Loader()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the student's forward; `auto` is bfloat16 on a GPU that has it, else float32."""
    seed: int = Field(0, ge=0)
    """Of the student's first weights and of the order of rows."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this step, for a short run; the schedule stays that of `optim.steps`."""
    out: str = Field(min_length=1)
    """Folder of the run."""
