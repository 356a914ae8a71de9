"""What a training run is asked to do."""

from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.names import Grid, Name
from schemas.store_config import StoreOptions
from schemas.strict import StrictModel


class Student(StrictModel):
    model: str = Field(min_length=1)
    """`eupe_vit_{t,s,b}`, `eupe_convnext_{t,s,b}`, `proxy_vit_g`, or any `timm:NAME`."""
    arguments: dict[str, Any] = {}
    """Further arguments of timm's constructor."""
    init: str | None = None
    """Start from these weights: a run or one of its checkpoints, with its heads where teachers and
    widths are the same; or a file of tensors. By default random ones, by `seed`."""
    rope_rescale: float | None = Field(None, ge=1)
    """While training, multiply RoPE's coordinates by a log-uniform factor in [1/R, R]; EUPE's own
    definition has 2. By default off."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them: less memory, more time."""


class TeacherTerm(StrictModel):
    weight: float = Field(1.0, ge=0)
    """Factor of this teacher's loss."""
    grids: tuple[Grid, ...] | None = Field(None, min_length=1)
    """Grids of this teacher's targets; by default the one it was cached at. Of several (stage
    `multires`) each step draws one, for all teachers that have several."""
    codec: str | None = None
    """Which of several codecs it was cached in, as in paths (`int8`, `variable3.pca`); by default
    the one that was written last."""
    drop: float = Field(0.0, ge=0, lt=1)
    """Share of the steps in which this teacher is left out."""


class ImagesRoot(StrictModel):
    root: str | None = None
    """Where the data set has moved to, if not where it was when it was extracted."""
    pack: Literal["none", "original"] = "none"
    """`original`: read the pictures that `teachonce pack` copied beside the features."""


class Part(StrictModel):
    """A further cache that some of the batches come from."""

    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX; of the same teachers at the same grids."""
    share: float = Field(gt=0, lt=1)
    """Of the steps. The paper draws a tenth of its batches from ImageNet alone."""
    snapshot: Annotated[int, Field(ge=1)] | str = "latest"
    images: ImagesRoot = ImagesRoot()


class Augment(StrictModel):
    """Colours alone, of what the student sees: the geometry is the stored view. A function of
    (seed, epoch, row)."""

    color_jitter: float = Field(0.0, ge=0, le=1)
    """Brightness and contrast by up to this share, saturation by half of it, hue by a quarter; in
    eight of ten rows."""
    grayscale: float = Field(0.0, ge=0, le=1)
    """Share of the rows."""
    blur: float = Field(0.0, ge=0, le=1)
    """Share of the rows; Gaussian, sigma 0.1 to 2 px at 224 px."""
    solarize: float = Field(0.0, ge=0, le=1)
    """Share of the rows; values from a half on are inverted."""


class Reframe(StrictModel):
    """Another part of the stored view, of what the student sees; teachers' grids are sampled alike,
    which is not quite what they would have said. A function of (seed, epoch, row)."""

    flip: float = Field(0.0, ge=0, le=1)
    """Share of the rows that are mirrored."""
    least_area: float = Field(1.0, gt=0, le=1)
    """Parts are squares of an area drawn from here to 1, anywhere in the view."""


class PatchLoss(StrictModel):
    cosine: float = Field(0.9, ge=0)
    smooth_l1: float = Field(0.1, ge=0)
    beta: float = Field(1.0, gt=0)
    """Where smooth-L1 turns from quadratic to linear, in standard deviations."""


class Loss(StrictModel):
    cls: Literal["cosine"] = "cosine"
    patch: PatchLoss = PatchLoss()
    not_finite: Literal["stop", "drop"] = "stop"
    """What a token that is not finite does to a run: end it at the next look, or not count; how
    many there were is logged."""
    impl: Literal["auto", "twin", "compiled", "triton", "fused"] = "auto"
    """`twin` is plain PyTorch, `compiled` the same through torch.compile, `triton` one pass on a
    GPU once grids are of one size, `fused` a kernel that resizes as well, and `auto` is `triton`
    where there are a GPU and Triton, else `twin`."""


class Head(StrictModel):
    hidden: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Width between the two linear layers of an adapter head; `auto` is the paper's: 1536 in stage
    `proxy`, else 3072."""


class Optim(StrictModel):
    lr: float = Field(2e-5, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1)
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient."""
    accumulate: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Parts that a batch is cut into, one after the other; `auto` begins with 1 and doubles it
    whenever the GPU's memory does not suffice."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential mean of the student's weights, which then is what is saved as the
    finished student."""


class Checkpoint(StrictModel):
    every_steps: int = Field(1000, ge=1)
    keep: int = Field(3, ge=1)


class Loader(StrictModel):
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads that read blocks and decode pictures; changes the speed, never the batches."""
    prefetch_batches: int = Field(4, ge=1)
    """Batches prepared ahead of the step."""
    memory_mb: int = Field(512, ge=1)
    """Features read ahead, beside one block a lane and grid and what the next two batches need."""
    local_cache: str | None = None
    """Folder that keeps what was read of a cache on S3, for the epochs to come."""
    local_cache_gb: float = Field(50.0, gt=0)
    """At most; what is needed latest goes first."""


class TrainConfig(StrictModel):
    cache: str = Field(min_length=1)
    """Folder of the cache, or s3://BUCKET/PREFIX."""
    store: StoreOptions = StoreOptions()
    """How S3 is reached."""
    snapshot: Annotated[int, Field(ge=1)] | str = "latest"
    """Its number or tag; pinned to the number when the run starts."""
    mix: dict[Name, Part] = {}
    """Further caches; each step's batch comes from one of them, or from `cache`."""
    stage: Literal["proxy", "fixed", "multires"] = "fixed"
    """`proxy`: several experts into a large student. `fixed`: one grid. `multires`: student and
    teacher grids drawn at each step, each for itself."""
    student: Student
    teachers: dict[Name, TeacherTerm] = {}
    """By default every teacher of the snapshot, with weight 1."""
    student_grids: tuple[Grid, ...] = Field((16,), min_length=1)
    """The student sees 16 x grid pixels, whatever its stride. Of several (stage `multires`) each
    step draws one."""
    views: Literal["all", "random"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Which views of each image an epoch serves; `random`: one of them, another each epoch."""
    images: ImagesRoot = ImagesRoot()
    augment: Augment = Augment()
    reframe: Reframe = Reframe()
    loss: Loss = Loss()
    head: Head = Head()
    optim: Optim = Optim()
    checkpoint: Checkpoint = Checkpoint()
    loader: Loader = Loader()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the student's forward; `auto` is bfloat16 on a GPU that has it, else float32."""
    compile: bool = False
    """Compile the student's forward with torch.compile."""
    seed: int = Field(0, ge=0)
    """Of the student's first weights and of the order of rows."""
    from_weights: bool = False
    """Where `out` holds a run of another recipe: keep its weights and begin anew with this one."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this step, for a short run; the schedule stays that of `optim.steps`."""
    out: str = Field(min_length=1)
    """Folder of the run."""
