"""Spans: consecutive images of a plan's generation with all their views, the unit of work.

Arithmetic alone: which image and which view a row holds follows from the generation's record.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.records import PlanCommit

Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """A stretch of a generation's images with all their views."""

    first_image: int
    images: int
    first_row: int
    """Within the generation."""

    def row(self, view: int, image: int) -> int:
        """Row within the generation of the span's `image`-th image in the generation's `view`-th
        view."""
        return self.first_row + view * self.images + image


def span_of(commit: PlanCommit, number: int) -> Span:
    first = number * commit.span_images
    return Span(
        first_image=first,
        images=min(commit.span_images, commit.images - first),
        first_row=first * commit.view_count,
    )


def span_count(commit: PlanCommit) -> int:
    return -(-commit.images // commit.span_images)


def images_and_views(commit: PlanCommit, rows: Whole) -> tuple[Whole, Whole]:
    """Image (within the generation) and view (as the plan numbers it) of rows of a generation."""
    span, inside = np.divmod(rows, commit.span_images * commit.view_count)
    first_image = span * commit.span_images
    images = np.minimum(commit.span_images, commit.images - first_image)
    view, image = np.divmod(inside, images)
    return first_image + image, commit.first_view + view


def rows_of(commit: PlanCommit, images: Whole) -> Whole:
    """Rows within the generation [images, view_count] of the given images."""
    span, inside = np.divmod(images, commit.span_images)
    in_span = np.minimum(commit.span_images, commit.images - span * commit.span_images)
    first = span * commit.span_images * commit.view_count + inside
    return np.asarray(first[:, None] + np.arange(commit.view_count) * in_span[:, None])
