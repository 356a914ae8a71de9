"""`teachonce verify`: every checksum, count and alignment of a cache's newest snapshot."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from infra.catalog import Catalog
from infra.command import Outcome
from infra.plan_reader import FEW_GROUPS, PlanReader
from infra.store import ObjectStore, open_store
from infra.terminal import Terminal
from pipeline.checks import Line, check_object, check_set, check_span
from pipeline.comparison import Comparison, tell
from pipeline.coverage import Coverage, coverage
from pipeline.findings import Findings
from pipeline.publish import places
from pipeline.recompute import Recomputation
from schemas import layout
from schemas.errors import DamageError
from schemas.layout import SetPath
from schemas.options import VerifyOptions
from schemas.records import PackCommit
from schemas.sealed import unseal
from schemas.spans import Whole

DAMAGE_SHOWN = 20
REPACK = "remove it and run `teachonce pack` again"
REMEDY = "`teachonce extract --repair` computes shards anew; else restore the objects from a copy"


def run(options: VerifyOptions, terminal: Terminal) -> Outcome:
    """Raises CacheError where there is no cache of this version."""
    store = open_store(options.cache, options.store)
    findings = Findings()
    try:
        catalog = Catalog(store)
        number = catalog.latest_snapshot()
        snapshot = None if number is None else catalog.snapshot(number)
        counted = snapshot.commit.generations if snapshot else 0
        every = catalog.generations(counted)
        # What is planned and not in the snapshot yet replaces nothing in it.
        generations = every[:counted] if snapshot else every
        superseded = catalog.superseded(generations)
    except DamageError as error:
        findings.damage(str(error.__dict__.get("key", options.cache)), str(error))
        return _outcome(findings, None, terminal)
    plans = [PlanReader(store, commit, FEW_GROUPS) for commit in generations]
    for commit in every:
        for part in (*commit.parts, *filter(None, [commit.superseded])):
            check_object(store, part, findings)
    _check_packs(store, findings)
    planned = sum(plan.rows for plan in generations) - len(superseded)
    if snapshot is None:
        left = min(store.keys("snapshots/"), default=None)
        if left is None:
            terminal.warn("no snapshot yet: extract has not finished")
        else:
            findings.damage(layout.snapshot_commit(1), f"is missing: {left} is there", missing=True)
        return _outcome(findings, Coverage(planned, 0, {}), terminal)
    lines = snapshot.table.to_pylist()
    if len(set(places(snapshot.table))) != snapshot.commit.shards:
        key = layout.snapshot_commit(snapshot.commit.number)
        findings.damage(key, f"counts {snapshot.commit.shards} shards; its tables name others")
    for path, codec_sha256 in sorted({(line["set"], line["codec_sha256"]) for line in lines}):
        check_set(store, SetPath.parse(path), codec_sha256, findings)
    compared = None
    if options.against_teacher is not None and findings.clean:
        # Before the long walk: a teacher that cannot be had is known at once.
        count = options.against_teacher
        compared = Recomputation(catalog, snapshot, plans, superseded, count).run(terminal)
    elif options.against_teacher is not None:
        terminal.warn("the teachers are not run before the damage named here is mended")
    walk(store, plans, lines, superseded, findings, terminal)
    findings.drop_superseded(superseded)
    covered = coverage(snapshot, generations, superseded)
    return _outcome(findings, covered, terminal, compared)


def _check_packs(store: ObjectStore, findings: Findings) -> None:
    """The pictures beside the features; what can be done about them is another thing."""
    for key in sorted(store.keys(layout.PACK_COMMITS)):
        try:
            pack = unseal(store.get(key), PackCommit, key)
        except DamageError as error:
            findings.damage(key, f"{error}; {REPACK}")
            continue
        check_object(store, pack.object, findings)


def walk(
    store: ObjectStore,
    plans: list[PlanReader],
    lines: list[Line],
    superseded: Whole,
    findings: Findings,
    terminal: Terminal,
) -> None:
    """Check every shard, a span's of all sets together."""
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        terminal.progress("verify", sum(line["rows"] for line in lines), "rows") as meter,
    ):
        groups = _by_span(lines, plans)
        checks = pool.map(
            lambda group: check_span(store, plans, group, superseded, findings), groups
        )
        for group, _ in zip(groups, checks):
            meter.advance(sum(line["rows"] for line in group))


def _by_span(lines: list[Line], plans: list[PlanReader]) -> list[list[Line]]:
    """The shards of all sets that hold the same images together."""

    def span(line: Line) -> tuple[int, int]:
        plan = plans[line["generation"]].commit
        return line["generation"], line["first_row"] // (plan.span_images * plan.view_count)

    return [list(group) for _, group in groupby(sorted(lines, key=span), key=span)]


def _outcome(
    findings: Findings,
    covered: Coverage | None,
    terminal: Terminal,
    compared: dict[str, Comparison | None] | None = None,
) -> Outcome:
    covered = covered or Coverage(0, 0, {})
    for note in findings.notes[:DAMAGE_SHOWN]:
        terminal.warn(note)
    if not findings.clean:
        terminal.warn(f"{len(findings.notes)} faults in all; {REMEDY}")
    for path, entry in covered.sets.items():
        terminal.say(
            f"set          {path}  {entry['teacher'] or 'an earlier teacher'}  "
            f"{entry['rows']:,} of {covered.planned:,} rows"
        )
    shards = sum(int(str(entry["shards"])) for entry in covered.sets.values())
    terminal.say(
        f"verified     {covered.planned:,} rows, {shards:,} shards: {len(findings.missing)} "
        f"objects missing, {len(findings.corrupt)} corrupt, {findings.misaligned} rows misaligned"
    )
    result: dict[str, object] = {
        "rows": covered.planned,
        "ok": covered.rows - len(findings.bad_rows),
        "bad": len(findings.bad_rows),
        "shards": shards,
        "missing": len(findings.missing),
        "corrupt": len(findings.corrupt),
        "misaligned": findings.misaligned,
        "coverage": covered.sets,
        "damage": findings.notes,
        "against_teacher": None,
    }
    clean = findings.clean
    if compared is not None:
        tell(compared, DAMAGE_SHOWN, terminal)
        result["against_teacher"] = {
            path: None if each is None else each.result() for path, each in compared.items()
        }
        clean &= all(each is None or each.clean for each in compared.values())
    return Outcome(result, status=0 if clean else 1)
