"""The loaders of others beside ours: the same rows, shuffled, in batches of 64.

    python -m tests.benchmarks.loaders.run --cache C [--peer NAME ...] [--environments FOLDER]

The rows of one set of a local cache are copied out of it, and each format writes them in its own
way. Then every repeat reads all formats in turn, each in a process of its own, with no workers and
with two: cold, the first epoch without a byte of the format in memory; warm, a second epoch.
"""

import argparse
import shutil
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from infra.page_cache import evict, files_below
from infra.provenance import commit, hardware
from schemas.names import BLOCK_ROWS
from tests.benchmarks.damage.formats import Format
from tests.benchmarks.loaders.formats import FORMATS
from tests.benchmarks.peers import append, parser_of, told_by
from trainer.cache import CacheReader

WORKERS = (0, 2)
RESIDENT = 0.01
"""Share of a format's bytes in memory up to which it counts as cold."""
Runs = dict[tuple[str, str, int], list[dict[str, float]]]
"""(format, warm or cold, workers) -> what each repeat gave."""


def main() -> None:
    options = _options()
    forms = [form for form in FORMATS if not options.peer or form.name in options.peer]
    made = {"commit": commit(), "hardware": hardware()}
    with tempfile.TemporaryDirectory(prefix="loaders-", dir=options.scratch) as scratch:
        count = _write_truth(options.cache, Path(scratch) / "truth")
        versions: dict[str, dict[str, Any]] = {}
        runs: Runs = defaultdict(list)
        for form in forms:
            versions[form.name] = _ask(form, options, scratch, "write")
            print(f"{form.name}: written", flush=True)
        for repeat in range(options.repeats):
            _repeat(forms, options, scratch, repeat, runs)
    rows = [
        {**row, "rows": count, "versions": versions[str(row["reader"])]} for row in _rows_of(runs)
    ]
    append(options.out, rows, made)
    print(_table(rows))


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__, "loader.jsonl")
    names = [form.name for form in FORMATS]
    parser.add_argument("--cache", required=True, help="folder of a cache with one set")
    parser.add_argument("--peer", nargs="+", choices=names, help="these formats alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where the formats are written")
    return parser.parse_args()


def _write_truth(cache: str, folder: Path) -> int:
    """The rows of a cache's only set as plain files."""
    reader = CacheReader(cache)
    count = reader.generations[0].rows
    folder.mkdir()
    tokens = cls = None
    for number in range(-(-count // BLOCK_ROWS)):
        block, read = reader.read_block(0, number)
        ((name, rows),) = block.sets.items()
        if tokens is None or cls is None:
            assert rows.cls is not None
            shapes = [(count, *part.shape[1:]) for part in (read[name], rows.cls)]
            tokens, cls = (
                np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
                for name, shape in zip(("tokens", "cls"), shapes)
            )
        here = slice(number * BLOCK_ROWS, number * BLOCK_ROWS + len(rows.ok))
        tokens[here], cls[here] = read[name], rows.cls
    return count


def _repeat(
    forms: list[Format], options: argparse.Namespace, scratch: str, repeat: int, runs: Runs
) -> None:
    for state in ("warm", "cold"):
        for workers in WORKERS:
            for form in forms:
                folder = _folder(form, options, scratch)
                if state == "cold" and (left := evict(files_below(str(folder)))) > RESIDENT:
                    raise RuntimeError(f"{form.name}: {left:.0%} stays in the page cache")
                numbers = {"workers": workers, "seed": repeat, "epoch": int(state == "warm")}
                told = _ask(form, options, scratch, "read", **numbers)
                runs[form.name, state, workers].append(told)
                rate = told["whole_rows_per_s"]
                print(f"{repeat} {state} {workers} {form.name}: {rate:.0f} rows/s", flush=True)


def _folder(form: Format, options: argparse.Namespace, scratch: str) -> Path:
    if form.module == "ours":
        return Path(options.cache)
    return Path(scratch) / ("truth" if form.module == "memmap" else form.module)


def _ask(
    form: Format, options: argparse.Namespace, scratch: str, do: str, **numbers: int
) -> dict[str, Any]:
    folder = _folder(form, options, scratch)
    if do == "write" and form.module == "zarr_python" and folder.exists():
        shutil.rmtree(folder)  # both ways read one array, and each reports its versions
    words = [do, "--folder", folder, "--truth", f"{scratch}/truth", *form.arguments]
    words += [word for name, number in numbers.items() for word in (f"--{name}", number)]
    log = options.environments / f"loader-{form.module}.log"
    return told_by(form, f"{__package__}.{form.module}", words, log)


def _rows_of(runs: Runs) -> list[dict[str, object]]:
    """What is written down."""
    rows: list[dict[str, object]] = []
    for (name, state, workers), told in runs.items():
        whole = [each["whole_rows_per_s"] for each in told]
        medians = {key: statistics.median(each[key] for each in told) for key in told[0]}
        rows.append(
            {
                "case": f"loaders, {state}",
                "reader": name,
                "workers": workers,
                "rows_per_s": round(medians["whole_rows_per_s"]),
                "min_max": [round(min(whole)), round(max(whole))],
                "steady_rows_per_s": round(medians["steady_rows_per_s"]),
                "first_batch_ms": round(medians["first_batch_ms"]),
                "cpu_us_per_row": round(medians["cpu_us_per_row"]),
                "shuffle_reach": round(medians["shuffle_reach"], 2),
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    """The better of the two numbers of workers, of each reader and state."""
    best: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        mine = best[row["reader"]]
        if row["case"] not in mine or mine[row["case"]]["rows_per_s"] < row["rows_per_s"]:
            mine[row["case"]] = row
    lines = [
        "| reader | warm rows/s | cold rows/s | CPU us a row, warm | shuffle reach |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in best.items():
        cells = [_cell(found[f"loaders, {state}"]) for state in ("warm", "cold")]
        warm = found["loaders, warm"]
        cells += [str(warm["cpu_us_per_row"]), f"{warm['shuffle_reach']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    least, most = row["min_max"]
    return f"{row['rows_per_s']:,} ({least:,}..{most:,}), {row['workers']} workers"


if __name__ == "__main__":
    main()
