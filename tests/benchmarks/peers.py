"""What every benchmark beside others does alike: options, a peer's process, rows of results."""

import argparse
import datetime
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.damage.formats import Format, python_of

ROOT = Path(__file__).resolve().parents[2]


def parser_of(module_doc: str | None, results: str) -> argparse.ArgumentParser:
    """With the options that all have; rows go to `results` unless `--out` says another file."""
    parser = argparse.ArgumentParser(description=(module_doc or "").partition("\n")[0])
    out = Path(__file__).parent / "results" / results
    parser.add_argument("--out", type=Path, default=out, help="rows are appended to this file")
    environments = ROOT / "runs" / "peers"
    parser.add_argument("--environments", type=Path, default=environments, help="of the others")
    return parser


def told_by(
    form: Format,
    module: str,
    words: Iterable[object],
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object that a module prints, run in a format's own environment beside its log.

    Args:
        environment: variables beside those of this process.

    Raises:
        RuntimeError: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [python_of(form, log.parent), "-m", module, *words]
    with log.open("a") as errors:
        told = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    if told.returncode:
        raise RuntimeError(f"{form.name} ended with {told.returncode}; {log} tells why")
    return dict(json.loads(told.stdout))


def append(
    out: Path, rows: Iterable[Mapping[str, object]], made: Mapping[str, object]
) -> list[dict[str, object]]:
    """Write rows down, each with the date and what made it; as they were written."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    written = [{**row, "date": date, **made} for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in written)
    return written
