"""Spans: consecutive images of a plan's generation with all their views, the unit of work."""

from dataclasses import dataclass

from schemas.names import BLOCK_ROWS, MAX_SPAN_IMAGES
from schemas.records import PlanCommit

SPANS_WANTED = 16
"""A data set of fewer full spans than this gets smaller ones, so that workers are not idle."""


@dataclass(frozen=True)
class Span:
    """A stretch of a generation's images with all their views."""

    first_image: int
    images: int
    first_row: int
    """Within the generation."""

    def row(self, view: int, image: int) -> int:
        """Row within the generation of the span's `image`-th image."""
        return self.first_row + view * self.images + image


def span_of(commit: PlanCommit, number: int) -> Span:
    first = number * commit.span_images
    return Span(
        first_image=first,
        images=min(commit.span_images, commit.images - first),
        first_row=first * commit.views.per_image,
    )


def span_count(commit: PlanCommit) -> int:
    return -(-commit.images // commit.span_images)


def span_images(images: int) -> int:
    """The span of a generation of so many images."""
    span = MAX_SPAN_IMAGES
    while span > BLOCK_ROWS and images < span * SPANS_WANTED:
        span //= 2
    return span
