"""What the plan lacks: new pictures, changed ones, ones to be tried again, and further views."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from infra.catalog import Catalog
from infra.sources import Source
from infra.terminal import Terminal
from pipeline.changes import changed_places, places_to_retry
from pipeline.listing import Listing, Standing
from pipeline.publish import Place
from schemas.extract_config import ExtractConfig
from schemas.spans import Whole


@dataclass(frozen=True)
class Growth:
    """A generation to be: these pictures, from this view on."""

    places: Whole
    """In the listing, ascending."""
    first_view: int
    superseded: Whole
    """Plan rows that it replaces, ascending."""
    why: str

    def rows(self, config: ExtractConfig) -> int:
        return len(self.places) * (config.views.per_image - self.first_view)


def growths(
    catalog: Catalog,
    standing: Sequence[Standing],
    listing: Listing,
    config: ExtractConfig,
    source: Source,
    terminal: Terminal,
    damaged: Collection[Place] = (),
) -> list[Growth]:
    """The generations that the plan lacks, in the order in which they are appended.

    Args:
        damaged: shards that nothing is to be read from.

    Raises:
        SourceError: as `changed_places`.
    """
    changed = changed_places(catalog, standing, listing, source, terminal, damaged)
    retried = places_to_retry(catalog, standing, damaged) - changed if config.retry_bad else set()
    anew = np.zeros(len(listing.keys), bool)
    anew[sorted(changed | retried)] = True
    planned_views = np.zeros(len(listing.keys), np.int64)
    superseded = [np.empty(0, np.int64)]
    for generation in standing:
        here = generation.present
        planned_views[generation.places[here]] = generation.plan.views.per_image
        replaced = np.flatnonzero(here & anew[generation.places])
        superseded.append(generation.live_rows(replaced))
    planned_views[anew] = 0
    # A changed picture gets new rows even where it is not asked for: shards of others hold it too.
    asked = np.flatnonzero((np.arange(len(listing.keys)) < listing.asked) | anew)
    found = []
    for first_view in np.unique(planned_views[asked]).tolist():
        if first_view >= config.views.per_image:
            continue
        places = asked[planned_views[asked] == first_view]
        if first_view:
            why = f"views {first_view} to {config.views.per_image - 1} of {len(places):,} images"
            found.append(Growth(places, first_view, np.empty(0, np.int64), why))
        else:
            fresh = len(places) - len(changed) - len(retried)
            counts = {"new": fresh, "changed": len(changed), "tried again": len(retried)}
            why = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
            rows = np.sort(np.concatenate(superseded))
            found.append(Growth(places, 0, rows, f"images: {why}"))
    return found
