"""Which squares a task needs of each image of its span."""

from collections.abc import Sequence
from dataclasses import replace

from infra.pixels.views import draws_of_row
from infra.plan_reader import PlanReader
from pipeline.job import CalibrationTask, Excused, FeatureSet, SpanTask
from pipeline.pictures import Order
from schemas.spans import Span, span_of


def orders_of_task(plan: PlanReader, task: SpanTask, sets: Sequence[FeatureSet]) -> list[Order]:
    """One order for each image of a span, for the shards that are to be computed."""
    span = span_of(plan.commit, task.span)
    wanted = {
        (
            row,
            plan.commit.first_view + (row - span.first_row) // span.images,
            sets[shard.feature_set].pixels,
        )
        for shard in task.shards
        if not shard.sources
        for row in range(shard.first_row, shard.first_row + shard.rows)
    }
    return _excuse(orders_of_span(plan, span, sorted(wanted)), task.excused)


def orders_of_sample(plan: PlanReader, task: CalibrationTask, sides: set[int]) -> list[Order]:
    """One order an image; images take turns in the views, so that crops count as well."""
    span = span_of(plan.commit, task.span)
    end = task.first_image + task.images
    wanted = []
    for image in range(task.first_image, end):
        view = (span.first_image + image) % plan.commit.view_count
        wanted += [(span.row(view, image), view, side) for side in sides]
    return _excuse(orders_of_span(plan, span, wanted)[task.first_image : end], task.excused)


def orders_of_span(
    plan: PlanReader, span: Span, wanted: Sequence[tuple[int, int, int]]
) -> list[Order]:
    """One order for each image of a span.

    Args:
        wanted: (row of the generation, view, side) of every square that is needed.
    """
    rows = plan.rows(span.first_row, span.images * plan.commit.view_count).to_pylist()
    squares: list[list[tuple[int, int]]] = [[] for _ in range(span.images)]
    for row, view, side in wanted:
        squares[(row - span.first_row) % span.images].append((view, side))
    orders = []
    for image in range(span.images):
        views = rows[image :: span.images]
        orders.append(
            Order(
                key=views[0]["key"],
                draws={row["view"]: draws_of_row(row) for row in views},
                squares=tuple(sorted(set(squares[image]))),
                limits=plan.commit.limits,
            )
        )
    return orders


def _excuse(orders: list[Order], excused: Excused) -> list[Order]:
    """The orders, with the reason why some of them are not to be read."""
    for image, reason in excused:
        orders[image] = replace(orders[image], reason=reason)
    return orders
