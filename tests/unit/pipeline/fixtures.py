"""Records that the pipeline's parts work on, of small numbers."""

from collections.abc import Sequence

import numpy as np

from infra.codec.codec import TokenCodec
from pipeline.job import FeatureSet
from pipeline.listing import GONE, Standing
from schemas.codec import codec_folder, codec_record
from schemas.extract_config import CodecChoice, Columns, Views
from schemas.layout import SetPath
from schemas.measured import Moments
from schemas.records import PlanCommit, TeacherRecord
from schemas.sealed import digest, seal
from tests.calibrations import calibration


def plan(images: int, per_image: int = 1, span_images: int = 32, first_row: int = 0) -> PlanCommit:
    return PlanCommit(
        generation=0,
        first_row=first_row,
        images=images,
        first_view=0,
        views=Views(per_image=per_image),
        span_images=span_images,
        source="/photos",
        columns=Columns(),
        parts=(),
        superseded=None,
    )


def standing(
    commit: PlanCommit, *, gone: Sequence[int] = (), replaced: Sequence[int] = (), **changes: int
) -> Standing:
    """A generation whose pictures are all there as they were, but for those named."""
    places = np.arange(commit.images)
    places[list(gone)] = GONE
    live = ~np.isin(np.arange(commit.images), replaced)
    asked = {"asked": commit.images, "views": commit.views.per_image, **changes}
    return Standing(commit, places, live, np.zeros(commit.images, bool), **asked)


def teacher_record(width: int = 4, cls_width: int | None = 3) -> TeacherRecord:
    return TeacherRecord(
        fingerprint="f" * 64,
        library="timm",
        model="test_vit",
        arguments_json="{}",
        tensors_sha256="0" * 64,
        pixel_recipe=1,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
        precision="float32",
        patch_pixels=16,
        patch_width=width,
        cls_width=cls_width,
        cls_kind="class_token" if cls_width else "none",
        pixels_by_grid=(),
        native_pixels=32,
        weights="random:0",
        versions={},
    )


def feature_set(width: int = 4, cls_width: int | None = 3, grid: int = 2) -> FeatureSet:
    """A set whose codec is the identity."""
    record = teacher_record(width, cls_width)
    cls = cls_width and Moments(count=9, mean=(0.0,) * cls_width, variance=(1.0,) * cls_width)
    tokens = Moments(count=9, mean=(0.0,) * width, variance=(1.0,) * width)
    codec = codec_record(CodecChoice(), calibration(tokens, cls or None))
    return FeatureSet(
        teacher="vit",
        path=SetPath("f" * 12, grid, codec_folder(codec)),
        record=record,
        codec=TokenCodec(codec),
        codec_sha256=digest(seal(codec)),
    )
