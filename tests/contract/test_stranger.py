"""The format's page is enough: a program that has only it reads a cache and recomputes its rows."""

import json
import subprocess
import sys
from pathlib import Path

ROWS = 20
STRANGER = Path(__file__).with_name("stranger.py")


def test_stranger__reads_checks_and_recomputes(grown_cache: Path) -> None:
    words = [sys.executable, str(STRANGER), str(grown_cache), str(ROWS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 3 * (38 + 10 + 3)
    assert told["superseded"] == 2
    assert len(told["sets"]) == 4
    for path, rows in told["sets"].items():
        assert len(rows) == ROWS, path
        assert {row["view"] for row in rows} == {0, 1, 2}
        unusual = {row["key"] for row in rows if not row["key"][0].isdigit()}
        assert len(unusual) == 7, unusual
        assert [row for row in rows if not row["pixels"]] == []
        assert min(row["tokens"] for row in rows) > 0.999
        assert min(row["cls"] for row in rows) > 0.999
