"""What an extraction tells at its end: the JSON object, the bad rows, where the time went."""

import time
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import numpy as np

from infra.catalog import Snapshot
from infra.store import ObjectStore
from infra.terminal import Terminal, human_bytes
from pipeline.bad_rows import bad_rows
from pipeline.job import FeatureSet, GivenUp, SpanReport, SpanTask
from pipeline.listing import Standing
from schemas.extract_config import ExtractConfig
from schemas.records import PlanCommit

BAD_SHOWN = 10


@dataclass
class Work:
    """What an extraction did, and what stands now."""

    sets: tuple[FeatureSet, ...] = ()
    committed: list[tuple[FeatureSet, PlanCommit, set[int]]] = field(default_factory=list)
    reports: list[SpanReport] = field(default_factory=list)
    given_up: list[tuple[SpanTask, GivenUp]] = field(default_factory=list)
    compute_seconds: float = 0.0
    """Wall seconds from the first span to the last, without start-up and calibration."""


def result(
    work: Work, snapshot: Snapshot | None, rows: int, bad: int, left: int, start: float
) -> dict[str, object]:
    """The keys of the JSON object.

    Args:
        rows: that are asked for; of them `bad` cannot be computed, and `left` are not, because
            their spans were given up.
    """
    found = sum(len(shards) for _, _, shards in work.committed)
    return {
        "rows": rows,
        "ok": rows - bad - left,
        "bad": bad,
        "shards": found + sum(len(report.commits) for report in work.reports),
        "shards_written": sum(report.written for report in work.reports),
        "shards_reused": found + sum(report.reused for report in work.reports),
        "teacher_forwards": sum(report.forwards for report in work.reports),
        "bytes_written": sum(report.bytes_written for report in work.reports),
        "seconds": round(time.perf_counter() - start, 3),
        "compute_seconds": round(work.compute_seconds, 3),
        "decodes": sum(report.decodes for report in work.reports),
        "decode_seconds": round(sum(report.decode_seconds for report in work.reports), 3),
        "wait_seconds": round(sum(report.wait_seconds for report in work.reports), 3),
        "forward_seconds": round(sum(sum(r.forward_seconds.values()) for r in work.reports), 3),
        "encode_seconds": round(sum(report.encode_seconds for report in work.reports), 3),
        "given_up": sum(len(task.shards) for task, _ in work.given_up),
        "snapshot": None if snapshot is None else snapshot.commit.number,
    }


def bad_rows_asked(
    store: ObjectStore,
    sets: Sequence[FeatureSet],
    snapshot: Snapshot,
    standing: Sequence[Standing],
) -> dict[int, str]:
    """Of the rows that are asked for, those that are bad in any of the sets, and why."""
    bad = bad_rows(store, snapshot, {str(feature_set.path) for feature_set in sets})
    rows = np.array(sorted(bad), np.int64)
    asked: dict[int, str] = {}
    for generation in standing:
        plan = generation.plan
        mine = rows[(rows >= plan.first_row) & (rows < plan.first_row + plan.rows)]
        for row in mine[generation.asks(mine - plan.first_row)].tolist():
            asked[row] = bad[row]
    return asked


def rows_left(work: Work, standing: Sequence[Standing], bad: Container[int]) -> int:
    """Rows that are asked for, not bad, and in a span that was given up in any of the sets."""
    left: set[int] = set()
    for task, _ in work.given_up:
        generation = standing[task.generation]
        for shard in task.shards:
            rows = np.arange(shard.first_row, shard.first_row + shard.rows)
            left.update((generation.plan.first_row + rows[generation.asks(rows)]).tolist())
    return sum(row not in bad for row in left)


def name_bad(config: ExtractConfig, terminal: Terminal, rows: int, bad: dict[int, str]) -> int:
    """Say which rows are bad and why; returns the exit status."""
    texts = sorted(set(bad.values()))
    for text in texts[:BAD_SHOWN]:
        terminal.warn(text)
    if len(texts) > BAD_SHOWN:
        terminal.warn(f"and {len(texts) - BAD_SHOWN} more; the CLS tables say why of each row")
    if len(bad) <= config.tolerate_bad_images * rows:
        return 0
    terminal.warn(
        f"{len(bad):,} of {rows:,} rows are bad, more than tolerate_bad_images "
        f"({config.tolerate_bad_images:g}) allows; the good ones stand"
    )
    return 1


def name_given_up(terminal: Terminal, work: Work) -> int:
    """Say which spans were given up and why; returns the exit status."""
    for task, told in work.given_up:
        terminal.warn(
            f"span {task.span} of generation {task.generation}, {len(task.shards)} shards, is not "
            f"computed: {told.reason}. All else stands; run again to try it once more"
        )
    return 1 if work.given_up else 0


def summarise(
    config: ExtractConfig, terminal: Terminal, work: Work, told: dict[str, object]
) -> None:
    """Say where the time went, and what stands."""
    if work.reports:
        _tell_times(terminal, work)
    terminal.say(
        f"cache        {config.cache}: snapshot {told['snapshot']}, {told['ok']:,} rows ok, "
        f"{told['bad']:,} bad; wrote {told['shards_written']:,} shards, "
        f"{human_bytes(sum(report.bytes_written for report in work.reports))} in "
        f"{told['seconds']} s"
    )


def _tell_times(terminal: Terminal, work: Work) -> None:
    """Where the workers' time went."""
    forwards: dict[str, float] = defaultdict(float)
    for report in work.reports:
        for label, seconds in report.forward_seconds.items():
            forwards[label] += seconds
    for label, seconds in forwards.items():
        terminal.say(f"forward      {label}: {seconds:,.1f} s")
    encode = sum(report.encode_seconds for report in work.reports)
    wait = sum(report.wait_seconds for report in work.reports)
    decode = sum(report.decode_seconds for report in work.reports)
    decodes = sum(report.decodes for report in work.reports)
    terminal.say(
        f"time         forward {sum(forwards.values()):,.1f} s, encode {encode:,.1f} s, waited for "
        f"pictures {wait:,.1f} s; beside it {decodes:,} pictures decoded once each in "
        f"{decode:,.1f} thread-seconds"
    )
