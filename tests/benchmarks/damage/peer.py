"""What every format's process shares: the rows, and the loop that answers the harness.

Runs in the environments of others, so it needs numpy and the standard library alone. Requests and
answers are JSON, one a line. Each request is answered by a fork of its own: a reader that hangs or
crashes takes nothing with it, no cache of one reading helps the next, and no library has threads
yet when it is forked.
"""

import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

ROWS, TOKENS, CHANNELS, ROWS_PER_SHARD = 256, 16, 64, 64
FIRST_KEY = 1000
"""Of a row; not 0, which a missing chunk of integers would be read as."""
PRINTED = 8192
"""Characters of what a reading printed that are kept."""
Tokens = npt.NDArray[np.float16]
Row = tuple[object, Any]
"""(key, tokens [TOKENS, CHANNELS])."""
Span = tuple[int, int]


@dataclass(frozen=True)
class File:
    """One file of a written set of rows."""

    path: str
    """Below the folder."""
    holds: str
    """`rows`, or `records`: what says how rows are to be read."""
    index: tuple[Span, ...] = ()
    """Where in a file of rows its own index and headers lie."""
    row_start: int = 0
    """Where a row in the middle of a file of rows begins."""


Write = Callable[[Path, int], list[File]]
Truth = Callable[[Path, int], Iterable[Row]]
Read = Callable[[Path], Iterable[Row]]
ReadShort = Callable[[Path, int, float], Iterable[Row]]
"""With one reply of the store, by its number, cut to a share of its length."""


def rows(run: int) -> Tokens:
    """[ROWS, TOKENS, CHANNELS]; another run has other numbers in the same shape."""
    drawn = np.random.default_rng(run).standard_normal((ROWS, TOKENS, CHANNELS))
    return drawn.astype(np.float16)


def keys() -> list[int]:
    return list(range(FIRST_KEY, FIRST_KEY + ROWS))


def keyed_rows(run: int) -> list[Row]:
    return list(zip(keys(), rows(run)))


@dataclass(frozen=True)
class Side:
    """How one format is written and read."""

    write: Write
    read: Read
    packages: Sequence[str]
    """Whose versions are reported."""
    truth: Truth = lambda folder, run: keyed_rows(run)
    """What a set that was just written must be read as."""
    read_short: ReadShort | None = None
    """For formats whose store can be made to reply with less than was asked for."""

    def answer(self, request: Mapping[str, Any]) -> dict[str, object]:
        folder, number = Path(request["folder"]), request["number"]
        if request["do"] == "write":
            return {
                "files": [asdict(file) for file in self.write(folder, number)],
                "truth": [_digest(row) for row in self.truth(folder, number)],
                "versions": _versions(self.packages),
            }
        if request["do"] == "read":
            return _served(self.read(folder))
        assert self.read_short is not None
        return _served(self.read_short(folder, number, request["share"]))


def serve(side: Side) -> None:
    """Answer requests until there are no more."""
    answers = _own_stdout()
    for line in sys.stdin:
        request = json.loads(line)
        answer = _apart(partial(side.answer, request), request["timeout"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _own_stdout() -> TextIO:
    """The channel for answers; what a library prints goes to the log instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _apart(work: Callable[[], dict[str, object]], timeout: float) -> dict[str, object]:
    """What a fork of this process answers, or how else it ended, and the last it printed."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    with tempfile.TemporaryFile() as printed:

        def answered() -> None:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sending.send(work())

        process = context.Process(target=answered)
        process.start()
        sending.close()
        try:
            answer: dict[str, object] = (
                receiving.recv() if receiving.poll(timeout) else {"served": [], "end": "hang"}
            )
        except EOFError:
            answer = {"served": [], "end": "crash"}
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    return answer | {"printed": text[-PRINTED:]}


def _served(rows: Iterable[Row]) -> dict[str, object]:
    """The rows that a reading served, and how it ended."""
    served: list[object] = []
    try:
        for row in rows:
            # One by one, because what was served before an error counts.
            served.append(_digest(row))  # noqa: PERF401
    except BaseException as error:
        return {"served": served, "end": "error", "error": _told(error)}
    return {"served": served, "end": "whole"}


def _told(error: BaseException | None) -> str:
    """An error and what caused it."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return " <- ".join(texts)


def _digest(row: Row) -> tuple[str, str, bool]:
    """(key, digest of the tokens, whether they are one constant, as fill values are)."""
    tokens = np.asarray(row[1])
    digest = hashlib.blake2b(repr((tokens.shape, tokens.dtype.str)).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(tokens).tobytes())
    is_constant = bool(tokens.size and (np.isnan(tokens).all() or (tokens == tokens.flat[0]).all()))
    return str(row[0]), digest.hexdigest(), is_constant


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}
