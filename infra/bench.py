"""`teachonce bench`: measure, and append the rows with what made them."""

import datetime
import json
from pathlib import Path

from infra.command import Outcome, load
from infra.provenance import commit, hardware, versions
from infra.terminal import Terminal
from schemas.options import BenchOptions

MEASUREMENTS = {
    "extract": "pipeline.bench_extract:measure",
    "loader": "trainer.bench_loader:measure",
    "loss": "trainer.bench_loss:measure",
    "train": "trainer.bench_train:measure",
    "codec": "pipeline.bench_codec:measure",
    "memory": "pipeline.bench_memory:measure",
}


def run(options: BenchOptions, terminal: Terminal) -> Outcome:
    """Run one measurement; its rows go to `out`/NAME.jsonl and to the terminal."""
    provenance = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    rows: list[dict[str, object]] = load(MEASUREMENTS[options.what])(options, terminal)
    target = Path(options.out) / f"{options.what}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a") as file:
        for row in rows:
            file.write(json.dumps({**row, **provenance}) + "\n")
    for row in rows:
        terminal.say("  ".join(f"{name} {value}" for name, value in row.items()))
    terminal.say(f"appended     {len(rows)} rows to {target}")
    return Outcome({"bench": options.what, "rows": rows})
