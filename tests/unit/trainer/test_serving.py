"""Which rows are served, against looking at every row."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from infra.catalog import is_superseded
from schemas.names import BLOCK_ROWS
from schemas.spans import images_and_views
from trainer.order import OrderKey
from trainer.serving import Serving, ViewChoice

KEY = OrderKey(4, 1, bytes(16), 1)


class Planned:
    """A reader of generations of which nothing exists but their numbers."""

    def __init__(self, generations: list[tuple[int, int, int]], gone: list[int]) -> None:
        self.generations: list[Any] = []
        first_row = 0
        for number, (images, views, span) in enumerate(generations):
            plan = SimpleNamespace(
                generation=number,
                first_row=first_row,
                first_view=number % 2,
                images=images,
                rows=images * views,
                view_count=views,
                span_images=span,
            )
            first_row += plan.rows
            self.generations.append(plan)
        self.superseded = np.array(sorted({row % first_row for row in gone}), np.int64)

    def covered(self, plan: Any) -> Any:
        """All but every seventh block."""
        return np.arange(-(-plan.rows // BLOCK_ROWS)) % 7 != 5

    def served(self, plan: Any, rows: Any) -> Any:
        return ~is_superseded(self.superseded, plan.first_row + rows)


GENERATIONS = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 4), st.sampled_from([32, 64, 128])),
    min_size=1,
    max_size=3,
)
VIEWS = st.one_of(
    st.just("all"), st.just("random"), st.lists(st.integers(0, 4), min_size=1, unique=True)
)


@given(GENERATIONS, st.lists(st.integers(0, 10**6), max_size=40), VIEWS, st.integers(0, 3))
def test_table__is_what_looking_at_every_row_gives(
    generations: list[tuple[int, int, int]], gone: list[int], views: ViewChoice, epoch: int
) -> None:
    reader = Planned(generations, gone)
    serving = Serving(cast("Any", reader), views, KEY)
    table = serving.table(epoch)
    index = 0
    for plan in reader.generations:
        rows = np.arange(plan.rows)
        wanted = reader.served(plan, rows)
        images, here = images_and_views(plan, rows)
        if views == "random":
            once = np.zeros(plan.images, int)
        elif views != "all":
            wanted &= np.isin(here, list(views))
        for block in np.flatnonzero(reader.covered(plan)).tolist():
            assert serving.place(index) == (plan.generation, block)
            assert table.first_row[index] == plan.first_row + block * BLOCK_ROWS
            inside = rows[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
            served = serving.rows(serving.place(index), epoch)
            assert table.sizes[index] == len(served)
            expected = np.flatnonzero(wanted[inside])
            if views == "random":
                assert set(served.tolist()) <= set(expected.tolist())
                np.add.at(once, images[inside[served]], 1)
            else:
                np.testing.assert_array_equal(served, expected)
            index += 1
        if views == "random":
            assert once.max(initial=0) <= 1
            if len(gone) == 0 and reader.covered(plan).all():
                assert once.min() == 1
    assert index == len(table.sizes)
