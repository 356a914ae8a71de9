"""What a person sees: decisions with their reasons, progress with rate and time left.

On a terminal a bar; elsewhere a plain line now and then. With `--json` everything here goes to
standard error, and standard output carries the one object.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from infra.redact import harmless

SECONDS_BETWEEN_LINES = 10.0


class Terminal:
    def __init__(self, to_stderr: bool = False, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(
            stderr=to_stderr, quiet=quiet, highlight=False, emoji=False, soft_wrap=True
        )

    def say(self, text: str) -> None:
        self._console.print(harmless(text), markup=False)

    def decide(self, what: str, choice: object, reason: str) -> None:
        """Print an automatic decision and why it was made."""
        self.say(f"{what:<12} {choice}  ({reason})")

    def warn(self, text: str) -> None:
        console = Console(
            stderr=True, quiet=self._quiet, highlight=False, emoji=False, soft_wrap=True
        )
        console.print(f"warning: {harmless(text)}", markup=False)

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator["Meter"]:
        """A meter over `total` units of work."""
        if self._console.is_terminal:
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            with bar:
                yield Meter(what, total, unit, self, bar)
        else:
            yield Meter(what, total, unit, self, None)


class Meter:
    """Counts finished units; prints the rate, a note and the time left."""

    def __init__(
        self, what: str, total: int, unit: str, terminal: Terminal, bar: Progress | None
    ) -> None:
        self._what, self._total, self._unit, self._terminal = what, total, unit, terminal
        self._bar = bar
        self._task: Any = bar.add_task(what, total=total, note="") if bar else None
        self._done = 0
        self._start = self._last_line = time.monotonic()

    def advance(self, units: int, note: str = "") -> None:
        self._done += units
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        text = f"{rate:,.1f} {self._unit}/s{'  ' + note if note else ''}"
        if self._bar:
            self._bar.update(self._task, advance=units, note=text)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES or self._done >= self._total:
            self._last_line = now
            left = (self._total - self._done) / max(rate, 1e-9)
            self._terminal.say(
                f"{self._what}  {self._done:,}/{self._total:,} {self._unit}  {text}  "
                f"{left:,.0f} s left"
            )


def human_bytes(count: float) -> str:
    units = ("B", "KB", "MB", "GB", "TB", "PB")
    power = next((n for n in range(len(units) - 1) if count < 1000 ** (n + 1)), len(units) - 1)
    return f"{count / 1000**power:,.{1 if power else 0}f} {units[power]}"
