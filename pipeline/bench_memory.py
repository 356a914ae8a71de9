"""Peak memory of `extract`, `verify` and the trainer's stream at so many rows, and at 100 times as
many.

Each runs as the process that a user would start, Ray and its workers with it, and is watched from
outside. What counts is what each process has of its own, and once, for all of them, what the one
that has the most has mapped of files: libraries, which the processes share, with each other and
with whatever else runs here. The pictures are a few small ones under many names, and the teacher is
tiny, because memory is to be seen growing with rows and with nothing else.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from infra.terminal import Terminal
from schemas.errors import TeachonceError
from schemas.options import BenchOptions

TIMES = 100
VIEWS = 2
PICTURES = 64
"""That differ; the others are links to them."""
SIDE = 40
SAMPLE_S = 0.2
STREAM = """
import sys
from trainer import CacheStream
stream = CacheStream(sys.argv[1], pixels=32, batch_size=64)
read = 0
for batch in stream:
    read += len(batch.rows)
    if read >= stream.rows:
        break
"""
"""One epoch of the smallest loop a user writes; a program of its own, because nothing that
extracts imports the trainer."""
Peaks = dict[str, float]
"""MB by role, and of all at one moment together."""


def measure(options: BenchOptions, terminal: Terminal) -> list[dict[str, object]]:
    """A row for each command: its peaks at both sizes, and their ratio."""
    peaks: dict[str, list[Peaks]] = {}
    sizes = (options.rows, options.rows * TIMES)
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            for name, found in _commands(Path(folder) / str(rows), rows, terminal).items():
                peaks.setdefault(name, []).append(found)
    return [_row(name, sizes, small, large) for name, (small, large) in peaks.items()]


def _row(name: str, sizes: tuple[int, int], small: Peaks, large: Peaks) -> dict[str, object]:
    return {
        "case": f"{name}: {sizes[0]:,} and {sizes[1]:,} rows, {VIEWS} views, test_vit at grid 2",
        "ratio": round(large["together"] / small["together"], 3),
        "ratios": {role: round(large[role] / small[role], 3) for role in small},
        "mb": {role: [round(small[role]), round(large[role])] for role in small},
    }


def _commands(folder: Path, rows: int, terminal: Terminal) -> dict[str, Peaks]:
    """Peaks of each command over a data set and a cache of so many rows."""
    source = data_set(folder / "pictures", rows // VIEWS)
    cache = folder / "cache"
    config = folder / "extract.yaml"
    config.write_text(yaml.safe_dump(_settings(source, cache)))
    cli = [sys.executable, "-m", "infra.cli"]
    commands = {
        "extract": [*cli, "extract", "--config", str(config), "--json"],
        "verify": [*cli, "verify", str(cache), "--json"],
        "stream": [sys.executable, "-c", STREAM, str(cache)],
    }
    found = {}
    for name, words in commands.items():
        start = time.monotonic()
        found[name] = peaks_of(words)
        told = ", ".join(f"{role} {peak:,.0f}" for role, peak in found[name].items())
        terminal.say(f"{name} of {rows:,} rows: {told} MB, {time.monotonic() - start:.0f} s")
    return found


def _settings(source: Path, cache: Path) -> dict[str, object]:
    return {
        "cache": str(cache),
        "images": {"source": str(source)},
        "views": {"per_image": VIEWS},
        "grids": [2],
        "teachers": {"vit": {"library": "timm", "model": "test_vit", "weights": "random:0"}},
        "workers": {"gpus": 0},
    }


def data_set(folder: Path, pictures: int) -> Path:
    """So many names of at most `PICTURES` small pictures."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(pictures):
        path = folder / f"{number:09d}.png"
        if number < PICTURES:
            pixels = noise.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(path)
        else:
            os.link(folder / f"{number % PICTURES:09d}.png", path)
    return folder


def peaks_of(words: Sequence[str]) -> Peaks:
    """Run a command to its end, and see how much memory its processes take.

    Raises:
        TeachonceError: it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        ended = threading.Event()
        peaks: Peaks = {}
        watch = threading.Thread(target=_watch, args=(process.pid, peaks, ended))
        watch.start()
        try:
            status = process.wait()
        finally:
            ended.set()
            watch.join()
        if status:
            output.seek(0)
            raise TeachonceError(f"{' '.join(words)}: ended with {status}: {output.read()!r}")
    return peaks


def _watch(session: int, peaks: Peaks, ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_S):
        own: Counter[str] = Counter()
        mapped: Counter[str] = Counter()
        for pid in _processes_of(session):
            # It may end at any moment.
            with suppress(OSError):
                kb = _kilobytes(pid)
                for role in (_role(pid, session), "together"):
                    own[role] += kb["Anonymous"]
                    mapped[role] = max(mapped[role], kb["Rss"] - kb["Anonymous"])
        for role, taken in (own + mapped).items():
            peaks[role] = max(peaks.get(role, 0.0), taken / 1024)


def _processes_of(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(path.parent.name))
    return found


def _role(pid: int, driver: int) -> str:
    if pid == driver:
        return "driver"
    with suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker"):
            return "workers"
    return "ray"


def _kilobytes(pid: int) -> Counter[str]:
    """What the system says of its memory; nothing where it is just ending."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return Counter({name: int(size.split()[0]) for name, size in (row.split(":") for row in lines)})
