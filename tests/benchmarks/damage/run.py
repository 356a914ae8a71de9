"""The damage harness: what each format finds of what was done to its bytes, and what it serves.

    python -m tests.benchmarks.damage.run [--peer NAME ...] [--out FILE] [--environments FOLDER]

Every format writes the same few hundred rows of float16 tokens; each damage is done to a fresh
copy, and the copy is read in the format's normal way. See `outcome_of` for what an outcome is.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.provenance import commit, hardware
from tests.benchmarks.damage.cases import Case, Written, cases, every_byte
from tests.benchmarks.damage.formats import FORMATS, Format, python_of
from tests.benchmarks.damage.peer import File
from tests.benchmarks.damage.tables import OUTCOMES, markdown
from tests.benchmarks.peers import ROOT, append, parser_of

WRITE_SECONDS = 300
EXAMPLE = 300
"""Characters of an example."""
Truth = Counter[tuple[str, str]]
"""(key, digest) of every row."""


class Peer:
    """A format's process, asked one thing at a time."""

    def __init__(self, python: Path, form: Format, log: Path) -> None:
        self._name = form.name
        command = [str(python), "-m", f"{__package__}.{form.module}", *form.arguments]
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"number": 0, **request}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} has ended; its log tells why")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


_SCRATCH = re.compile(re.escape(tempfile.gettempdir()) + r"/[^/\s'\"\\]+/?")


@dataclass
class Tally:
    """What became of one kind of damage."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, answer: dict[str, Any], truth: Truth, paths: Sequence[str]) -> None:
        outcome, error = outcome_of(answer, truth), answer.get("error", "")
        if outcome == "lost" and _names(answer["printed"], paths):
            outcome = "printed"
        self.counts[outcome] += 1
        self.counts["named"] += outcome == "found" and _names(error, paths)
        self.counts["raised_later"] += outcome in ("wrong", "fill") and bool(error)
        # Where the formats were written says nothing of them.
        detail = _SCRATCH.sub("", f"{case.what}: {error or answer['end']}")
        self.examples.setdefault(outcome, detail[:EXAMPLE])

    def row(self) -> dict[str, object]:
        tried = sum(self.counts[outcome] for outcome in OUTCOMES)
        counts = {name: self.counts[name] for name in (*OUTCOMES, "named", "raised_later")}
        return {"tried": tried, **counts, "examples": self.examples}


def main() -> None:
    options = _options()
    rows: list[dict[str, object]] = []
    for form in FORMATS:
        if options.peer and form.name not in options.peer:
            continue
        rows += measure(form, options)
    append(options.out, rows, {"commit": commit(), "hardware": hardware()})
    print(markdown(rows))


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__, "damage.jsonl")
    names = [form.name for form in FORMATS]
    parser.add_argument("--peer", nargs="+", choices=names, help="these formats alone")
    parser.add_argument("--places", type=int, default=64, help="bytes of a kind to flip")
    parser.add_argument(
        "--every-byte", action="store_true", help="of index and records; no other damage"
    )
    parser.add_argument("--timeout", type=float, default=60, help="seconds until it is a hang")
    return parser.parse_args()


def measure(form: Format, options: argparse.Namespace) -> list[dict[str, object]]:
    """All damages to one format: a row for each kind."""
    options.environments.mkdir(parents=True, exist_ok=True)
    python = python_of(form, options.environments)
    tallies: dict[str, Tally] = {}
    with (
        tempfile.TemporaryDirectory(prefix="damage-") as scratch,
        _opened(python, form, options.environments / f"{form.module}.log") as peer,
    ):
        sound, truth, versions = _write(peer, Path(scratch) / "sound", 1)
        stale, _, _ = _write(peer, Path(scratch) / "stale", 2)
        read_sound = peer.ask(do="read", folder=str(sound.folder), timeout=options.timeout)
        if (found := outcome_of(read_sound, truth)) != "harmless":
            raise RuntimeError(f"{form.name}: sound rows are read as {found}: {read_sound}")
        sampled = cases(sound, stale, options.places, form.has_short_replies)
        for case in every_byte(sound) if options.every_byte else sampled:
            answer = _tried(peer, case, sound, options.timeout)
            paths = list(case.changed) or [file.path for file in sound.files]
            tallies.setdefault(case.kind, Tally()).add(case, answer, truth, paths)
    made = {"format": form.name, "how": form.how, "versions": versions}
    return [{**made, "damage": kind, **tally.row()} for kind, tally in tallies.items()]


@contextmanager
def _opened(python: Path, form: Format, log: Path) -> Iterator[Peer]:
    peer = Peer(python, form, log)
    try:
        yield peer
    finally:
        peer.close()


def _write(peer: Peer, folder: Path, run: int) -> tuple[Written, Truth, dict[str, str]]:
    answer = peer.ask(do="write", folder=str(folder), number=run, timeout=WRITE_SECONDS)
    if "files" not in answer:
        raise RuntimeError(f"writing ended with {answer}")
    truth = Counter((key, digest) for key, digest, _ in answer["truth"])
    return Written(folder, [_file(each) for each in answer["files"]]), truth, answer["versions"]


def _file(told: dict[str, Any]) -> File:
    return File(**{**told, "index": tuple((start, end) for start, end in told["index"])})


def _tried(peer: Peer, case: Case, sound: Written, timeout: float) -> dict[str, Any]:
    """What reading a damaged copy gave. A fresh copy each time: no reader sees another's
    leavings."""
    copy = sound.folder.with_name("copy")
    shutil.copytree(sound.folder, copy)
    try:
        for path, data in case.changed.items():
            (copy / path).unlink()
            if data is not None:
                (copy / path).write_bytes(data)
        if case.reply is None:
            return peer.ask(do="read", folder=str(copy), timeout=timeout)
        number, share = case.reply
        return peer.ask(
            do="read short", folder=str(copy), number=number, share=share, timeout=timeout
        )
    finally:
        shutil.rmtree(copy)


def outcome_of(answer: dict[str, Any], truth: Truth) -> str:
    """One word of tables.OUTCOMES: what happened, the worst first.

    Rows count from the moment they are served: a wrong row before an error is a wrong row.
    """
    served = Counter((key, digest) for key, digest, _ in answer["served"])
    wrong = [
        is_constant or key == "0"
        for key, digest, is_constant in answer["served"]
        if (key, digest) not in truth
    ]
    if wrong:
        return "fill" if all(wrong) else "wrong"
    if answer["end"] != "whole":
        return "found" if answer["end"] == "error" else str(answer["end"])
    return "harmless" if served == truth else "lost"


def _names(error: str, paths: Sequence[str]) -> bool:
    """Whether an error tells which object is damaged, by its path or by a name that is its own."""
    names = [Path(path).name for path in paths if Path(path).suffix]
    return any(name in error for name in (*paths, *names))


if __name__ == "__main__":
    main()
