"""Thousands of malformed pictures: every one a reason or a sound picture, in bounded time and
memory, and nothing dies of any. Each is decoded in a process that is watched."""

import functools
import json
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from infra.pixels import limits
from infra.pixels.decode import decode
from schemas.errors import ImageError
from schemas.limits import Limits
from tests.builders import ROOT
from tests.fault import corpus
from tests.fault.attacks import ATTACKS, jpeg_with

PROCESSES = 2
SECONDS = 30.0
"""Of one picture. Ten are what the limits allow where everything goes on in Python."""
BYTES = 1 << 30
"""Of a process: its libraries, 20 bytes for each of 2^24 pixels, and 2^20 code blocks."""

Answer = dict[str, Any]


class Watched:
    """A process that decodes cases, and a new one whenever it dies."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.fault.corpus"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, number: int) -> Answer:
        """What became of a case; `fault` says how the process ended that did not answer."""
        assert self._process.stdin
        assert self._process.stdout
        print(number, file=self._process.stdin, flush=True)
        is_ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        line = self._process.stdout.readline() if is_ready else ""
        if line:
            return json.loads(line)
        self.stop()
        how = f"died with {self._process.returncode}" if is_ready else "hung"
        self._process = self._start()
        return {"number": number, "fault": how}

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def watch(numbers: Sequence[int]) -> list[Answer]:
    watched = Watched()
    try:
        return [watched.ask(number) for number in numbers]
    finally:
        watched.stop()


@functools.cache
def answers() -> dict[int, Answer]:
    """What became of every case, on as many processes as there are cores."""
    shares = [range(first, corpus.count(), PROCESSES) for first in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        return {told["number"]: told for part in pool.map(watch, shares) for told in part}


def test_corpus__is_large_and_always_the_same() -> None:
    assert corpus.count() >= 2000
    again = [corpus.case(number).data for number in range(0, corpus.count(), 97)]
    assert again == [corpus.case(number).data for number in range(0, corpus.count(), 97)]


def test_corpus__what_it_is_made_of_is_sound() -> None:
    for name, data in corpus.pictures().items():
        assert min(decode(data).size) > 0, name


def test_corpus__nothing_dies_and_nothing_hangs() -> None:
    assert [told for told in answers().values() if "fault" in told] == []
    assert sorted(answers()) == list(range(corpus.count()))


def test_corpus__every_one_is_a_reason_or_a_sound_picture() -> None:
    wrong = []
    for told in answers().values():
        if "reason" in told:
            sound = bool(told["reason"]) and told["reason"].isprintable()
        else:
            mode, width, height, size = told["size"]
            sound = mode == "RGB" and size == 3 * width * height > 0 and told["same"]
        if not sound:
            wrong.append(told)
    assert wrong == []
    kinds = [("reason" in told) for told in answers().values()]
    assert min(kinds.count(True), kinds.count(False)) > 500


def test_corpus__time_and_memory_are_bounded() -> None:
    assert [told for told in answers().values() if told["seconds"] > SECONDS] == []
    assert [told for told in answers().values() if told["bytes"] > BYTES] == []
    # Refused by the system and not by a limit: a machine with more memory would have held it.
    assert [told for told in answers().values() if "MemoryError" in told.get("reason", "")] == []


def test_attacks__are_refused_for_what_they_are() -> None:
    wrong = {}
    first = corpus.count() - len(ATTACKS)
    for number, (name, (_, wanted)) in enumerate(ATTACKS.items(), first):
        found = answers()[number].get("reason")
        if wanted is not None and (found is None or not re.search(wanted, found)):
            wrong[name] = found
    assert wrong == {}


def test_reads__are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg_with(b"\xff" * 5000)
    decode(data)
    monkeypatch.setattr(limits, "_READS", 4000)
    with pytest.raises(ImageError, match="more than 4000 reads"):
        decode(data)


def test_limits__are_configuration() -> None:
    data = corpus.pictures()["png"]
    assert decode(data, Limits(max_pixels=48 * 32, max_bytes=len(data))).size == (32, 48)
    with pytest.raises(ImageError, match="48 x 32 pixels are more than the 1535 allowed"):
        decode(data, Limits(max_pixels=48 * 32 - 1))
    with pytest.raises(ImageError, match=f"{len(data)} bytes are more than the 100 allowed"):
        decode(data, Limits(max_bytes=100))


def test_reason__has_no_control_characters() -> None:
    with pytest.raises(ImageError) as caught:
        decode(b"P6 \x1b[2J\n" + np.random.default_rng(0).bytes(100))
    assert str(caught.value).isprintable()
