"""`teachonce verify`: every checksum, count and alignment of a cache's newest snapshot."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from infra.catalog import Catalog, PlanReader, Snapshot
from infra.command import Outcome
from infra.store import open_store
from infra.terminal import Terminal
from pipeline.checks import Findings, Line, check_object, check_set, check_span
from pipeline.publish import places
from schemas import layout
from schemas.errors import DamageError
from schemas.layout import SetPath
from schemas.options import VerifyOptions
from schemas.records import PlanCommit

DAMAGE_SHOWN = 20
REMEDY = "restore the object from a copy, or extract into a new folder"


def run(options: VerifyOptions, terminal: Terminal) -> Outcome:
    """Raises CacheError where there is no cache of this version."""
    store = open_store(options.cache)
    findings = Findings()
    try:
        catalog = Catalog(store)
        number = catalog.latest_snapshot()
        snapshot = None if number is None else catalog.snapshot(number)
        generations = catalog.generations(snapshot.commit.generations if snapshot else 0)
    except DamageError as error:
        findings.damage(str(error.__dict__.get("key", options.cache)), str(error))
        return _outcome(findings, [], None, terminal)
    plans = [PlanReader(store, commit) for commit in generations]
    for commit in generations:
        for part in commit.parts:
            check_object(store, part, findings)
    if snapshot is None:
        terminal.warn("no snapshot yet: extract has not finished")
        return _outcome(findings, generations, None, terminal)
    lines = snapshot.table.to_pylist()
    if len(set(places(snapshot.table))) != snapshot.commit.shards:
        key = layout.snapshot_commit(snapshot.commit.number)
        findings.damage(key, f"counts {snapshot.commit.shards} shards; its tables name others")
    for path, codec_sha256 in sorted({(line["set"], line["codec_sha256"]) for line in lines}):
        check_set(store, SetPath.parse(path), codec_sha256, findings)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        terminal.progress("verify", sum(line["rows"] for line in lines), "rows") as meter,
    ):
        groups = _by_span(lines, generations)
        checks = pool.map(lambda group: check_span(store, plans, group, findings), groups)
        for group, _ in zip(groups, checks):
            meter.advance(sum(line["rows"] for line in group))
    return _outcome(findings, generations, snapshot, terminal)


def _by_span(lines: list[Line], generations: list[PlanCommit]) -> list[list[Line]]:
    """The shards of all sets that hold the same images together."""

    def span(line: Line) -> tuple[int, int]:
        plan = generations[line["generation"]]
        return line["generation"], line["first_row"] // (plan.span_images * plan.views.per_image)

    return [list(group) for _, group in groupby(sorted(lines, key=span), key=span)]


def _coverage(
    snapshot: Snapshot, generations: list[PlanCommit]
) -> Iterator[tuple[str, dict[str, object]]]:
    """Per set: rows it has of those planned, and the teacher's name if a name means it."""
    planned = sum(plan.rows for plan in generations)
    names = {fp12: name for name, fp12 in snapshot.commit.teachers.items()}
    grouped = snapshot.table.group_by("set").aggregate([("rows", "sum")])
    for line in grouped.sort_by("set").to_pylist():
        path = SetPath.parse(line["set"])
        yield (
            line["set"],
            {
                "teacher": names.get(path.fingerprint12),
                "grid": path.grid,
                "rows": line["rows_sum"],
                "of": planned,
            },
        )


def _outcome(
    findings: Findings,
    generations: list[PlanCommit],
    snapshot: Snapshot | None,
    terminal: Terminal,
) -> Outcome:
    rows = sum(plan.rows for plan in generations)
    coverage = dict(_coverage(snapshot, generations)) if snapshot else {}
    for note in findings.notes[:DAMAGE_SHOWN]:
        terminal.warn(note)
    if not findings.clean:
        terminal.warn(f"{len(findings.notes)} faults in all; {REMEDY}")
    for path, entry in coverage.items():
        terminal.say(f"set          {path}  {entry['teacher']}  {entry['rows']:,} of {rows:,} rows")
    shards = 0 if snapshot is None else snapshot.commit.shards
    terminal.say(
        f"verified     {rows:,} rows, {shards:,} shards: {len(findings.missing)} objects missing, "
        f"{len(findings.corrupt)} corrupt, {findings.misaligned} rows misaligned"
    )
    result: dict[str, object] = {
        "rows": rows,
        "ok": max((int(str(e["rows"])) for e in coverage.values()), default=0)
        - len(findings.bad_rows),
        "bad": len(findings.bad_rows),
        "shards": shards,
        "missing": len(findings.missing),
        "corrupt": len(findings.corrupt),
        "misaligned": findings.misaligned,
        "coverage": coverage,
        "damage": findings.notes,
    }
    return Outcome(result, status=0 if findings.clean else 1)
