"""What the memory benchmark sees of processes; its figures themselves are no test's business."""

import sys
from pathlib import Path

import pytest

from pipeline import bench_memory
from pipeline.bench_memory import PICTURES, data_set, measure, peaks_of
from schemas.errors import TeachonceError
from schemas.options import BenchOptions
from tests.caches import Quiet

HOLDS_60_MB = "import time; held = bytearray(60 << 20); time.sleep(1)"
WITH_A_WORKER = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {HOLDS_60_MB!r}], check=True)
subprocess.run(["ray::Worker", "-c", {HOLDS_60_MB!r}], executable=sys.executable, check=True)
"""


def test_data_set__few_pictures_under_many_names(tmp_path: Path) -> None:
    names = sorted(data_set(tmp_path / "pictures", PICTURES + 6).iterdir())
    assert len(names) == PICTURES + 6
    assert len({name.read_bytes() for name in names}) == PICTURES
    assert len({name.stat().st_ino for name in names}) == PICTURES


def test_peaks_of__each_role_and_all_at_one_moment() -> None:
    peaks = peaks_of([sys.executable, "-c", WITH_A_WORKER])
    assert peaks.keys() == {"driver", "workers", "ray", "together"}
    assert peaks["driver"] < 40
    assert 60 < peaks["workers"] < 100
    assert 60 < peaks["ray"] < 100
    # The two did not run at the same time.
    assert max(peaks.values()) == peaks["together"] < 140


def test_peaks_of__a_command_that_fails() -> None:
    with pytest.raises(TeachonceError, match="ended with 3: b'no\\\\n'"):
        peaks_of([sys.executable, "-c", "print('no'); exit(3)"])


def test_measure__ratios_of_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter(
        [{"driver": 200.0, "together": 300.0}] * 3 + [{"driver": 220.0, "together": 303.0}] * 3
    )
    monkeypatch.setattr(bench_memory, "peaks_of", lambda words: next(found))
    monkeypatch.setattr(bench_memory, "TIMES", 3)
    rows = measure(BenchOptions(what="memory", rows=4), Quiet())
    assert [str(row["case"]).partition(":")[0] for row in rows] == ["extract", "verify", "stream"]
    for row in rows:
        assert row["ratio"] == 1.01
        assert row["ratios"] == {"driver": 1.1, "together": 1.01}
        assert row["mb"] == {"driver": [200, 220], "together": [300, 303]}
